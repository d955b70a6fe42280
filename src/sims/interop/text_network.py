"""A text-to-image network of diffusers as a class-conditional denoiser whose classes are prompts, and LoRAs on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sims.config import JSON, check_arguments, options_of, read_as, to_dict
from sims.denoiser import Precision
from sims.errors import UserError
from sims.files import canonical_json
from sims.interop.diffusers_network import DiffusersDenoiser
from sims.interop.parameterizations import quiet
from sims.interop.text_conditioning import Conditioning
from sims.interop.text_pipelines import TextPipeline, content_of, frozen_network
from sims.networks.lora import LoraOptions

BESIDE = "pipeline.json"  # lies beside the weights
ADAPTER = "default"  # what peft calls the only one
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Beside:
    """What lies beside the weights: the pipeline's folder, the prompts, and where their embeddings are kept."""

    pipeline: str
    prompts: tuple[str, ...]
    cache: str


class TextNetwork(nn.Module):
    """A network of diffusers as F(x, timestep, labels): (B, C, H, W), (B,), (B,) or None -> (B, C, H, W).

    Label i is the prompt i, -1 no prompt (or the negative one). Its weights stay in the pipeline's folder, and in
    memory there is one copy of them for all: only a ``lora`` is the network's own, what it trains and what is saved.
    ``content`` and ``told`` are hashes of the pipeline's network, and of its encoders with the prompts and the negative
    one; ``weights`` is the number format that the network is held in.
    """

    kind = "text"
    null_class = True

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int,
        content: str,
        told: str,
        negative: str = "",
        lora: dict[str, JSON] | None = None,
        weights: Precision = "fp32",
        beside: Beside | None = None,
        conditioning: Conditioning | None = None,
    ) -> None:
        super().__init__()
        assert beside is not None
        self.data_shape, self.num_classes = tuple(data_shape), num_classes
        self.content, self.told, self.negative, self.weights = content, told, negative, weights
        self.settings: LoraOptions | None = None if lora is None else options_of(LoraOptions, lora, "lora.")
        self._beside, cache = beside, Path(beside.cache)
        if num_classes != len(beside.prompts):
            raise UserError(f"{num_classes} classes for {len(beside.prompts)} prompts: restore {BESIDE}")
        opened = TextPipeline.read(Path(beside.pipeline))
        if content_of(cache, opened.network) != content:
            raise UserError(f"the network in {opened.network} is another than it was: restore it")
        frozen = frozen_network(opened.kind.network, opened.network, content, DTYPES[weights])
        self._shared = (frozen,)  # in a tuple, so that torch does not count it among the weights
        self.conditioning = conditioning or Conditioning(opened, beside.prompts, negative, cache, frozen)
        if self.conditioning.content != told:
            raise UserError(f"the text encoders in {opened.folder}, or the prompts, are others than they were")
        self._twin: tuple[nn.Module, ...] = ()
        self.lora = nn.ParameterDict()
        if self.settings is not None:
            self._lay(self.settings)
        self.register_load_state_dict_post_hook(lambda module, keys: module._bind())

    @property
    def config(self) -> dict[str, JSON]:
        names = ("content", "told", "negative", "weights")
        return {**{name: getattr(self, name) for name in names}, "lora": self.settings and to_dict(self.settings)}

    @property
    def beside(self) -> dict[str, bytes]:
        return {BESIDE: canonical_json(to_dict(self._beside))}

    @property
    def prompts(self) -> tuple[str, ...]:
        return self._beside.prompts

    @property
    def frozen(self) -> nn.Module:
        """The pipeline's own network."""
        return self._shared[0]

    @property
    def device(self) -> torch.device:
        return next(self.frozen.parameters()).device

    def adapted(self, lora: LoraOptions, seed: int) -> TextNetwork:
        """The same network with a LoRA on it that changes nothing yet (B = 0), and whose A is drawn by ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._remade(to_dict(lora)).to(self.device)

    @property
    def component(self) -> str:
        """What its pipeline calls it."""
        return self.conditioning.pipeline.kind.component

    @property
    def alpha(self) -> float | None:
        """That of the LoRA; None without one."""
        return None if self.settings is None else self.settings.alpha

    @property
    def adapter(self) -> dict[str, Tensor]:
        """The LoRA by peft's names."""
        return {name.replace("/", ".").replace(f".{ADAPTER}.", "."): value for name, value in self.lora.items()}

    def scaled(self, factor: float) -> TextNetwork:
        """The same network with its LoRA times a factor: W + factor (alpha / rank) B A."""
        made = copy.deepcopy(self)
        with torch.no_grad():
            for name, parameter in made.lora.items():
                if "/lora_B/" in name:
                    parameter.mul_(factor)
        return made

    def _remade(self, lora: dict[str, JSON] | None) -> TextNetwork:
        config = {**self.config, "lora": lora}
        return TextNetwork(
            self.data_shape, self.num_classes, **config, beside=self._beside, conditioning=self.conditioning  # type: ignore[arg-type]
        )  # fmt: skip

    def __deepcopy__(self, memo: dict[int, Any]) -> TextNetwork:
        made = self._remade(None if self.settings is None else to_dict(self.settings))
        for name, parameter in self.lora.items():
            made.lora[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
        made._bind()
        return made.train(self.training)

    def _lay(self, lora: LoraOptions) -> None:
        """Lay a LoRA on a twin whose other weights are the shared network's."""
        peft = _peft()
        memo: dict[int, Any] = {id(parameter): parameter for parameter in self.frozen.parameters()}
        with torch.device("cpu"), quiet():
            twin: Any = copy.deepcopy(self.frozen, memo)
            targets = lora.targets or self.conditioning.pipeline.kind.targets
            how = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": list(targets)}
            try:
                twin.add_adapter(peft.LoraConfig(**how, init_lora_weights="gaussian"), ADAPTER)
            except ValueError as error:
                raise UserError(
                    f"lora.targets are {list(targets)}: the network has no such layers ({_short(error)})"
                ) from None
        if lora.checkpointing:
            twin.enable_gradient_checkpointing()
        self._twin = (twin.eval(),)
        for name, parameter in twin.named_parameters():
            if ".lora_" in name:
                parameter.data = parameter.data.float()  # whatever the network is held in: small steps add up
                self.lora[name.replace(".", "/")] = parameter

    def _bind(self) -> None:
        """Put the LoRA's parameters, where loading or copying made others, into the twin."""
        if not self._twin:
            return
        for name, parameter in self.lora.items():
            path, _, last = name.replace("/", ".").rpartition(".")
            self._twin[0].get_submodule(path)._parameters[last] = parameter

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TextNetwork:
        super()._apply(fn, recurse)
        for module in (*self._shared, *self._twin):
            module._apply(fn)
        self._bind()
        return self

    def train(self, mode: bool = True) -> TextNetwork:
        super().train(mode)
        for twin in self._twin:
            twin.train(mode)
        return self

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), -1, dtype=torch.int64)
        if self.training and self.settings is not None and self.settings.dropped:
            labels = torch.where(torch.rand(len(labels)) < self.settings.dropped, -1, labels.cpu())
        tokens, pooled = self.conditioning.of(labels, x.device)  # (B, L, E), (B, P)
        module: Any = self._twin[0] if self._twin else self.frozen
        dtype = DTYPES[self.weights]
        x, tokens = x.to(dtype), tokens.to(dtype)
        pooled = None if pooled is None else pooled.to(dtype)
        timestep = timestep.expand(len(x))  # (B,)
        kind = self.conditioning.pipeline.kind
        if self.component == "transformer":
            found = module(x, tokens, pooled, timestep, return_dict=False)
        else:
            more = {}
            if kind.sizes:
                more = {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": self._sizes(len(x)).to(x)}}
            found = module(x, timestep, tokens, return_dict=False, **more)
        return found[0].float()  # type: ignore[no-any-return]

    def _sizes(self, count: int) -> Tensor:
        """(B, 6): the size of the original, where it was cropped, the size asked for, in pixels; nothing is cropped."""
        config = read_as(self.conditioning.pipeline.folder / "vae" / "config.json", dict[str, JSON])
        step = 2 ** (len(config.get("block_out_channels", [0])) - 1)  # type: ignore[arg-type]
        size = [step * side for side in self.data_shape[1:]]
        return torch.tensor([*size, 0, 0, *size], dtype=torch.float32).expand(count, -1)


class TextDenoiser(DiffusersDenoiser):
    """D(x, sigma, labels) of a TextNetwork, whose weights lie beside it: see ``DiffusersDenoiser``."""

    kind = "text"

    @property
    def device(self) -> torch.device:
        return self.network.device  # type: ignore[return-value]

    @property
    def frozen_weights(self) -> list[nn.Parameter]:
        """The pipeline's own, which all that is laid on it shares."""
        return list(self.network.frozen.parameters())  # type: ignore[union-attr]

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts, by label."""
        return self.network.prompts  # type: ignore[return-value]

    def adapted(self, lora: LoraOptions, seed: int) -> TextDenoiser:
        """With a LoRA that changes nothing yet: see ``TextNetwork.adapted``."""
        return self._around(self.network.adapted(lora, seed))  # type: ignore[operator]

    def scaled(self, factor: float) -> TextDenoiser:
        """With its LoRA times a factor; Neon is the factor -w (arXiv 2510.03597)."""
        return self._around(self.network.scaled(factor))  # type: ignore[operator]

    def _around(self, network: nn.Module) -> TextDenoiser:
        made = TextDenoiser(network, self.data_shape, self.num_classes, **self.config)  # type: ignore[arg-type]
        made.class_shares = self.class_shares
        return made.eval().requires_grad_(False)


def make_denoiser(
    data_shape: tuple[int, ...],
    num_classes: int,
    network: dict[str, Any],
    preconditioning: dict[str, Any],
    folder: Path,
) -> TextDenoiser:
    """The network that the two tables of the ``model.json`` in a ``folder`` describe; its LoRA is yet to be read."""
    check_arguments(TextNetwork, network, "network")
    check_arguments(TextDenoiser, preconditioning, "preconditioning")
    with torch.device("cpu"):  # also where others are made on meta
        raw = TextNetwork(data_shape, num_classes, **network, beside=read_as(folder / BESIDE, Beside))
    return TextDenoiser(raw, data_shape, num_classes, **preconditioning)


def _short(error: Exception) -> str:
    return ascii(" ".join(str(error).split())[:200])[1:-1]


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError(f"LoRAs need the package peft ({error}): pip install 'sims-diffusion[text]'") from error
    return peft
