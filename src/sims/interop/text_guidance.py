"""Guidance away from own samples for models that draw images of a text, in diffusers' own pipelines.

A run leaves a folder: the network fine-tuned on the model's own samples as a LoRA, and how to guide away from it.

    negative.safetensors          the LoRA, in diffusers' naming
    neon.safetensors              the LoRA times -w, to be loaded at strength 1
    negative-kohya.safetensors    both in kohya's naming, for U-Nets: ComfyUI and A1111 read these alone
    neon-kohya.safetensors
    guidance.json                 strength and what belongs to it (TextGuidance); written last

``guide_pipeline`` makes a pipeline draw guided samples. All outputs of one call have one noise level, and in every
parameterization D = c_skip x + c_out F with factors that depend on the level alone; classifier-free guidance is linear
too. So F + w (F - F_LoRA), on both halves of the batch, is D_cfg + w (D_cfg - D_cfg,LoRA); on the conditional half
alone it is D_cfg + scale w (D_cond - D_cond,LoRA).
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sims.config import read_as, to_dict
from sims.errors import UserError
from sims.files import write_json
from sims.guidance.cache import CacheRule, Step
from sims.interop.lora_files import baked, has_kohya_names, read_lora, scaled, write_kohya, write_lora
from sims.interop.parameterizations import Schedule, read_schedule
from sims.interop.text_pipelines import KINDS

NEGATIVE, NEGATIVE_KOHYA = "negative.safetensors", "negative-kohya.safetensors"
OPPOSITE, OPPOSITE_KOHYA = "neon.safetensors", "neon-kohya.safetensors"
SETTINGS = "guidance.json"
ADAPTER = "sims_negative"
FORMAT = 1
COMPONENTS = {  # of the pipelines that are read, and of those that begin at a picture
    name.replace("Pipeline", f"{begin}Pipeline"): kind.component
    for name, kind in KINDS.items()
    for begin in ("", "Img2Img")
}
_NOT_BATCHED = ("cross_attention_kwargs", "joint_attention_kwargs")
_ATTRIBUTE = "sims_guide"  # of a network that is guided


@dataclass(frozen=True, kw_only=True)
class TextGuidance:
    """How to guide; guidance.json as it stands.

    w               strength; 0 = the base
    scale           classifier-free guidance in diffusers' convention; 1 = none
    condition_only  whether the prediction with the prompt alone is guided
    interval        (low, high]: noise levels sigma of x = x0 + sigma n at which to guide. SD3's own time is
                    s = sigma / (1 + sigma)
    refresh         where to compute the LoRA's prediction anew: null = at every step; a fraction of the guided steps,
                    evenly; or the rule of a pilot
    pipeline        class of the pipeline
    base            content of the base's network, see ``base_hash``
    """

    w: float
    scale: float
    pipeline: str
    base: str
    condition_only: bool = False
    interval: tuple[float, float] = (0.0, math.inf)
    refresh: float | CacheRule | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise UserError(
                f"the guidance has format {self.format}, and this version reads {FORMAT}: update this package"
            )
        if not (math.isfinite(self.w) and math.isfinite(self.scale)):
            raise UserError(f"w is {self.w} and the scale {self.scale}: both must be finite numbers")
        if not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"the interval is {self.interval}: it needs 0 <= low < high")
        if isinstance(self.refresh, float) and not 0 < self.refresh <= 1:
            raise UserError(f"refresh is {self.refresh}: a fraction of the steps is above 0 and at most 1")


def component_of(name: str) -> str:
    """What pipelines of a class call the network that denoises; UserError for other pipelines."""
    if name not in COMPONENTS:
        raise UserError(f"a {name} cannot be guided: only {', '.join(COMPONENTS)} can; open the model as one of these")
    return COMPONENTS[name]


def network_of(pipeline: Any) -> tuple[str, Any]:
    """The name of the component that denoises, and that network; UserError for other pipelines."""
    component = component_of(type(pipeline).__name__)
    return component, getattr(pipeline, component)


def write_guidance(
    folder: Path | str,
    pipeline: str,
    network: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    w: float,
    scale: float,
    opposite: float | Mapping[str, Tensor] | None = None,
    condition_only: bool = False,
    interval: tuple[float, float] = (0.0, math.inf),
    refresh: float | CacheRule | None = None,
    alpha: float | None = None,
) -> TextGuidance:
    """Write the folder of a run, for the ``network`` of a class of pipelines.

    ``tensors`` are peft's of the LoRA, ``alpha`` its alpha (None = its rank). ``opposite`` is what becomes Neon's: a
    strength, by which the LoRA is subtracted (``w`` if not given), or a LoRA of its own that is to be added. The files
    in kohya's naming are left out for networks that have no names there (SD3). Settings as ``TextGuidance``.
    Errors: UserError for settings out of range, another pipeline, and tensors that are no LoRA.
    """
    component = component_of(pipeline)
    settings = TextGuidance(
        w=w,
        scale=scale,
        pipeline=pipeline,
        base=base_hash(network),
        condition_only=condition_only,
        interval=interval,
        refresh=refresh,
    )
    folder, own = Path(folder), baked(tensors, alpha)
    opposite = w if opposite is None else opposite
    neon = scaled(own, -opposite) if isinstance(opposite, float | int) else baked(opposite, alpha)
    for plain, kohya, lora in ((NEGATIVE, NEGATIVE_KOHYA, own), (OPPOSITE, OPPOSITE_KOHYA, neon)):
        write_lora(folder / plain, lora, component)
        if has_kohya_names(network):
            write_kohya(folder / kohya, lora, network)
    write_json(folder / SETTINGS, to_dict(settings))
    return settings


def read_guidance(folder: Path | str) -> TextGuidance:
    """The settings in a folder; UserError where they are missing, damaged or out of range."""
    return read_as(Path(folder) / SETTINGS, TextGuidance)


def base_hash(network: nn.Module) -> str:
    """``<dtype>:<SHA-256 of all tensors in float16>`` without adapters.

    Half precision, so that the weights are the same base whether they are loaded in float32 or float16.
    """
    sha = hashlib.sha256()
    state = {name.replace(".base_layer.", "."): tensor for name, tensor in network.state_dict().items()}
    for name in sorted(state):
        if ".lora_" in name:
            continue
        values = state[name].detach()
        values = values.to(torch.float16) if values.is_floating_point() else values
        sha.update(f"{name} {tuple(values.shape)}\n".encode())
        sha.update(values.to("cpu").contiguous().numpy().tobytes())
    return f"{str(next(network.parameters()).dtype).removeprefix('torch.')}:{sha.hexdigest()}"


def check_base(network: nn.Module, recorded: str, where: str) -> None:
    """UserError where a network is surely not the recorded one: rounded otherwise, that cannot be told."""
    halves = ("float32", "float16")
    theirs, ours = recorded.partition(":")[0], str(next(network.parameters()).dtype).removeprefix("torch.")
    if theirs != ours and not (theirs in halves and ours in halves):
        return
    found = base_hash(network)
    if found.partition(":")[2] != recorded.partition(":")[2]:
        raise UserError(
            f"{where} was made for a network of the hash {recorded[:24]}, and this pipeline's is {found[:24]}: "
            "open the model that was improved, or pass check=False to guide another one by it"
        )


def guide_pipeline(pipeline: Any, folder: Path | str, w: float | None = None, check: bool = True) -> TextGuidance:
    """Make a pipeline draw guided samples by what a run left in ``folder``; ``unguide`` takes it back.

    Returns the settings: ``pipeline(prompt, guidance_scale=settings.scale)`` draws as the run found best. ``w`` is
    another strength than the folder's (0 = the base, bit for bit and at its cost). The LoRA is an adapter within the
    pipeline's own network, so weights are held once; other adapters stay as they are, for both predictions. With
    ``check`` the base must be the one that the LoRA was trained from. Errors: UserError for another pipeline or base,
    files that are missing or do not fit, adapters that are merged into the weights.
    """
    settings = read_guidance(folder)
    if w is not None:
        settings = TextGuidance(**{**vars(settings), "w": w})
    component, network = network_of(pipeline)
    if COMPONENTS.get(settings.pipeline) != component:
        raise UserError(
            f"{folder} was made for a {settings.pipeline}, and this is a {type(pipeline).__name__}: open that model"
        )
    unguide(pipeline)
    if check:
        check_base(network, settings.base, str(folder))
    before = _load_adapter(pipeline, network, read_lora(Path(folder) / NEGATIVE, network, component))
    guide = _Guide(pipeline, settings, before)
    guide.handle = network.register_forward_hook(guide, with_kwargs=True)
    setattr(network, _ATTRIBUTE, guide)
    return settings


def unguide(pipeline: Any) -> None:
    """Take guidance off a pipeline again: its network is as it was before, bit for bit. Nothing where there is none."""
    _, network = network_of(pipeline)
    guide = getattr(network, _ATTRIBUTE, None)
    if guide is None:
        return
    guide.handle.remove()
    delattr(network, _ATTRIBUTE)
    for name, layer in list(network.named_modules()):
        if not _has_adapter(layer, ADAPTER):
            continue
        layer.delete_adapter(ADAPTER)
        if not layer.r:  # no other adapter: the layer as it was
            parent, _, last = name.rpartition(".")
            setattr(network.get_submodule(parent), last, layer.get_base_layer())
    configs = getattr(network, "peft_config", {})
    configs.pop(ADAPTER, None)
    if not configs:
        for attribute in ("peft_config", "_hf_peft_config_loaded"):
            network.__dict__.pop(attribute, None)
        network.__dict__.update(guide.before)


def _load_adapter(pipeline: Any, network: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Add the LoRA to the network, at rest; returns what the network said of adapters before."""
    layers = {name: layer for name, layer in network.named_modules() if hasattr(layer, "merged_adapters")}
    if any(layer.merged_adapters for layer in layers.values()):
        raise UserError(
            "an adapter is merged into the weights of this pipeline, which hides others: call pipeline.unfuse_lora(), "
            "or pipeline.unload_lora_weights() after merging"
        )
    active = {name: list(layer.active_adapters) for name, layer in layers.items()}
    trainable = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    modes = {id(module): module.training for module in network.modules()}
    named = ("_hf_peft_config_loaded",)
    before = {name: network.__dict__[name] for name in named if name in network.__dict__}
    with warnings.catch_warnings():  # of other adapters, which are meant to be there
        warnings.simplefilter("ignore")
        network.load_lora_adapter(dict(tensors), prefix=None, adapter_name=ADAPTER, _pipeline=pipeline)
    for name, layer in network.named_modules():
        if hasattr(layer, "merged_adapters"):  # loading made the new adapter the only active one, in every layer
            layer._active_adapter = active.get(name, [])
        if _has_adapter(layer, ADAPTER):
            layer.train(modes.get(id(layer.get_base_layer()), network.training))
            for part in (layer.lora_A[ADAPTER], layer.lora_B[ADAPTER]):
                part.requires_grad_(False)
    for parameter, wanted in trainable:
        parameter.requires_grad_(wanted)
    return before


def _has_adapter(layer: nn.Module, name: str) -> bool:
    return name in getattr(layer, "lora_A", ())


@contextmanager
def adapter_used(network: nn.Module, name: str, used: bool = True) -> Iterator[None]:
    """The network with (or without) one of its adapters, the others as they are; UserError where it has no such one.

    Which adapters are active is set directly: peft's own way also changes which parameters are trained.
    """
    layers: list[Any] = [layer for layer in network.modules() if _has_adapter(layer, name)]
    if not layers:
        raise UserError(
            f"the {type(network).__name__} has no adapter {name!r}: load negative.safetensors under this name"
        )
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer in layers:
            others = [] if layer.disable_adapters else [one for one in layer.active_adapters if one != name]
            layer._active_adapter, layer._disable_adapters = [*others, name] if used else others, False
        yield
    finally:
        for layer, active, disabled in before:
            layer._active_adapter, layer._disable_adapters = active, disabled


@dataclass
class _Run:
    """One sampling run: what to do at each timestep, and the correction held."""

    timesteps: Any  # the scheduler's own tensor, which it makes anew for every run
    plan: dict[float, Step]
    last: float = math.inf
    held: tuple[Tensor, float, float] | None = field(default=None, repr=False)  # F - F_LoRA, its c_out, its timestep


class _Guide:
    """What is called after every call of the network, and returns the output that the pipeline sees.

    Nothing outlives a run: plan and correction belong to the scheduler's tensor of timesteps, which is a new one in
    every call of the pipeline, and are looked up by timestep, so nothing is counted.
    """

    handle: Any

    def __init__(self, pipeline: Any, settings: TextGuidance, before: dict[str, Any]) -> None:
        self.pipeline, self.settings, self.before = pipeline, settings, before
        self._read: tuple[Any, Schedule] | None = None
        self._run: _Run | None = None

    def __call__(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if self.settings.w == 0 or kwargs.get("skip_layers") is not None:  # a network of fewer layers, in SD3
            return None
        ours = output[0]
        names = list(inspect.signature(type(network).forward).parameters)[1:]
        given = {**dict(zip(names, args)), **kwargs}
        start = len(ours) // 2 if self.settings.condition_only and self._classifier_free() else 0
        correction = self._correction(network, given, ours[start:], start)
        if correction is None:
            return None
        guided = (ours[start:].float() + self.settings.w * correction).to(ours.dtype)
        guided = torch.cat([ours[:start], guided]) if start else guided
        if isinstance(output, tuple):
            return (guided, *output[1:])
        output.sample = guided
        return output

    def _classifier_free(self) -> bool:
        """Whether batches have two halves, the first without the prompt."""
        return hasattr(self.pipeline, "_guidance_scale") and bool(self.pipeline.do_classifier_free_guidance)

    def _correction(self, network: Any, given: dict[str, Any], ours: Tensor, start: int) -> Tensor | None:
        """F - F_LoRA in float32, or what stands for it; None = nothing is added at this step."""
        time = float(torch.as_tensor(given["timestep"]).reshape(-1)[0])
        schedule = self._schedule()
        sigma = schedule.sigma(torch.tensor(time, dtype=torch.float64))
        low, high = self.settings.interval
        if not low < float(sigma) <= high:
            return None
        if self.settings.refresh is None:
            return self._fresh(network, given, ours, start)
        run = self._current_run(schedule, time)
        step = run.plan.get(time, Step(True, 1.0))
        c_out = float(schedule.scalings(sigma)[1])
        held = run.held if run.held is not None and run.held[0].shape == ours.shape else None
        if step.refresh and held is not None and held[2] == time:  # a solver's second evaluation at one level
            return held[0]
        if step.refresh or (held is None and step.scale != 0):  # nothing is held where a run begins in the middle
            run.held = (self._fresh(network, given, ours, start), c_out, time)
            return run.held[0]
        return None if held is None else held[0] * (step.scale * held[1] / c_out)

    def _fresh(self, network: Any, given: dict[str, Any], ours: Tensor, start: int) -> Tensor:
        if ADAPTER not in getattr(network, "peft_config", {}):
            raise UserError(
                f"the adapter {ADAPTER!r} was unloaded from a guided pipeline: call unguide(pipeline), and "
                "guide_pipeline again"
            )
        total = len(ours) + start
        parts = {name: value if name in _NOT_BATCHED else _from(value, start, total) for name, value in given.items()}
        with adapter_used(network, ADAPTER):
            theirs = network.forward(**{**parts, "return_dict": False})[0]  # no hooks, so not this one again
        return ours.float() - theirs.float()  # type: ignore[no-any-return]

    def _schedule(self) -> Schedule:
        config = self.pipeline.scheduler.config
        if self._read is None or self._read[0] is not config:
            name = type(self.pipeline.scheduler).__name__
            self._read = config, read_schedule({**config, "_class_name": name})
        return self._read[1]

    def _current_run(self, schedule: Schedule, time: float) -> _Run:
        timesteps = self.pipeline.scheduler.timesteps
        if self._run is None or self._run.timesteps is not timesteps or time > self._run.last:
            self._run = _Run(timesteps, planned(self.settings, schedule, timesteps))
        self._run.last = time
        return self._run


def planned(settings: TextGuidance, schedule: Schedule, timesteps: Tensor) -> dict[float, Step]:
    """What to do at each guided timestep of a run."""
    low, high = settings.interval
    times = list(dict.fromkeys(float(time) for time in timesteps))
    levels = schedule.sigma(torch.tensor(times, dtype=torch.float64))
    guided = [(time, level) for time, level in zip(times, levels.tolist()) if low < level <= high]
    if isinstance(settings.refresh, CacheRule):
        steps = settings.refresh.plan(torch.tensor([level for _, level in guided], dtype=torch.float64))
        return {time: step for (time, _), step in zip(guided, steps)}
    count = max(1, math.ceil((settings.refresh or 1.0) * len(guided)))
    fresh = {place * len(guided) // count for place in range(count)}
    return {time: Step(place in fresh, 1.0) for place, (time, _) in enumerate(guided)}


def _from(value: Any, start: int, total: int) -> Any:
    """The part of a batch from ``start`` on, of tensors wherever they lie."""
    if start == 0:
        return value
    if isinstance(value, Tensor):
        return value[start:] if value.ndim > 0 and len(value) == total else value
    if isinstance(value, Mapping):
        return {name: _from(item, start, total) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_from(item, start, total) for item in value)
    return value
