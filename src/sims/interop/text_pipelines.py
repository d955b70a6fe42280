"""Text-to-image pipelines of diffusers: which ones can be read, what lies in their folders, how they are sampled."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sims.config import JSON, fitted, read_as
from sims.data.mapped import content
from sims.errors import UserError
from sims.files import digest
from sims.interop.diffusers_folder import find_layout, listed
from sims.interop.diffusers_weights import pretrained
from sims.interop.parameterizations import library, quiet
from sims.sampling import SamplerOptions, SolverName

ATTENTION = ("to_k", "to_q", "to_v", "to_out.0")
JOINT = ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")


@dataclass(frozen=True)
class Kind:
    """A class of pipelines.

    component  what it calls its network, of the class ``network``
    pooled     the network is told a pooled embedding of the prompt too
    sizes      and the size of the picture (SDXL)
    targets    the layers that a LoRA is laid on, as in the library's training scripts
    """

    pipeline: str
    component: str
    network: str
    pooled: bool = False
    sizes: bool = False
    targets: tuple[str, ...] = ATTENTION


KINDS = {
    kind.pipeline: kind
    for kind in (
        Kind("StableDiffusionPipeline", "unet", "UNet2DConditionModel"),
        Kind("StableDiffusionXLPipeline", "unet", "UNet2DConditionModel", pooled=True, sizes=True),
        Kind("StableDiffusion3Pipeline", "transformer", "SD3Transformer2DModel", True, targets=(*ATTENTION, *JOINT)),
    )
}
DISTILLED = ("turbo", "lightning", "lcm", "schnell", "hyper")  # what names of guidance-distilled models have in them
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
# Schedulers of the library by how they step; others are taken by their first-order method.
SOLVERS: Mapping[str, SolverName] = {
    "HeunDiscreteScheduler": "heun",
    "FlowMatchHeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp2m",
    "DPMSolverSinglestepScheduler": "dpmpp2m",
    "DEISMultistepScheduler": "dpmpp2m",
    "UniPCMultistepScheduler": "unipc",
}
FIRST_ORDER = ("DDIMScheduler", "EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")


@dataclass(frozen=True)
class Facts:
    """What counts of the network's configuration."""

    in_channels: int
    sample_size: int | tuple[int, int] = 64
    time_cond_proj_dim: int | None = None
    addition_embed_type: str | None = None
    encoder_hid_dim_type: str | None = None


def is_text_pipeline(folder: Path) -> bool:
    """Whether a folder is a pipeline of diffusers that draws pictures of texts."""
    file = folder / "model_index.json"
    if not file.is_file():
        return False
    index = read_as(file, dict[str, JSON])
    return any(listed(index, name) for name in ENCODERS if name.startswith("text"))


@dataclass(frozen=True)
class TextPipeline:
    """A folder of a pipeline that can be read: its kind, and the facts of its network and autoencoder."""

    folder: Path
    kind: Kind
    index: Mapping[str, JSON]
    facts: Facts
    scheduler: Mapping[str, JSON]

    @classmethod
    def read(cls, folder: Path) -> TextPipeline:
        """What lies in a folder. Errors: UserError for a pipeline of another class, parts that are missing or foreign.

        No weights are read, and no code from the folder is run.
        """
        folder = folder.expanduser().resolve()
        index = read_as(folder / "model_index.json", dict[str, JSON])
        name = str(index.get("_class_name"))
        if name not in KINDS:
            raise UserError(
                f"{folder} is a {name[:60]!a}, and only {', '.join(KINDS)} can be read: choose one of these"
            )
        kind, layout = KINDS[name], find_layout(folder)
        for part in ENCODERS:
            entry = index.get(part)
            if isinstance(entry, list) and entry[:1] not in (["transformers"], [None]):
                raise UserError(
                    f"{folder} has a {part} of {str(entry[0])[:60]!a}: only those of transformers are read, since code "
                    "from a folder is not run"
                )
        if listed(index, "vae") is None or not (folder / "vae").is_dir():
            raise UserError(f"{folder} has no autoencoder (vae): copy the pipeline whole")
        config = read_as(layout.network / "config.json", dict[str, JSON])
        if (found := config.get("_class_name")) != kind.network:
            raise UserError(f"{layout.network} holds a {str(found)[:60]!a} where a {kind.network} belongs: restore it")
        facts: Facts = fitted(config, Facts, str(layout.network / "config.json"), rest=True)
        if facts.encoder_hid_dim_type is not None or (facts.addition_embed_type == "text_time") != kind.sizes:
            raise UserError(f"the network in {folder} is told more than a prompt: choose a plain {name}")
        return cls(folder, kind, index, facts, read_as(layout.scheduler, dict[str, JSON]))

    @property
    def network(self) -> Path:
        return find_layout(self.folder).network

    @property
    def distilled(self) -> str | None:
        """Why it is taken for a model whose guidance was distilled into it; None where nothing says so."""
        if self.facts.time_cond_proj_dim is not None:
            return "its network is told the guidance scale (time_cond_proj_dim)"
        told = " ".join([str(self.index.get("_name_or_path", "")), self.folder.name]).lower()
        word = next((word for word in DISTILLED if word in told), None)
        if word is None and self.scheduler.get("_class_name") in ("LCMScheduler", "TCDScheduler"):
            return f"its scheduler is a {self.scheduler['_class_name']}"
        return None if word is None else f"its name has {word!r} in it"

    @property
    def usual_scale(self) -> float:
        """The guidance scale that the library takes where none is given."""
        return float(self._usual("guidance_scale"))

    def latent_shape(self, size: tuple[int, int] | None, reduction: int) -> tuple[int, int, int]:
        """The shape (c, h, w) of latents of pictures of (height, width); of the network's own size where not given."""
        side = self.facts.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        if size is not None:
            if any(pixels < reduction or pixels % reduction for pixels in size):
                raise UserError(f"text.size is {list(size)}: height and width must be multiples of {reduction}")
            height, width = (pixels // reduction for pixels in size)
        return self.facts.in_channels, height, width

    def sampler(self, steps: int | None, to_sigma: Any) -> tuple[SamplerOptions, str]:
        """How the pipeline samples, without what its scheduler adds by chance; and what is to be said of it.

        The levels are those of the scheduler's timesteps, which ``to_sigma`` maps (N,) to noise levels (N,) float64.
        """
        name, count = str(self.scheduler.get("_class_name")), steps or int(self._usual("num_inference_steps"))
        if not 1 <= count <= 1000:
            raise UserError(f"text.steps is {count}: give 1 to 1,000")
        made = getattr(library(), name).from_config(self.scheduler)
        with quiet(), torch.device("cpu"):
            made.set_timesteps(count)
        times = torch.as_tensor(made.timesteps).double()
        levels = [float(level) for level in to_sigma(times)]
        levels = [level for level, before in zip(levels, [float("inf"), *levels]) if level < before]
        solver = SOLVERS.get(name, "euler")
        exact = name in FIRST_ORDER and not self.scheduler.get("stochastic_sampling")
        how = "as its scheduler does" if exact else f"in place of its {name}, which is stochastic or of another order"
        said = f"sampled by {solver} with {len(levels)} steps at the levels of its timesteps, {how}"
        return SamplerOptions(solver=solver, steps=len(levels), levels=tuple(levels)), said

    def _usual(self, argument: str) -> Any:
        return inspect.signature(self.pipeline_class.__call__).parameters[argument].default

    @property
    def pipeline_class(self) -> Any:
        with quiet():
            return getattr(library(), self.kind.pipeline)


def content_of(cache: Path, *folders: Path) -> str:
    """Content hash of all files in folders; what it is of files that nobody has touched since is kept in ``cache``."""
    found = [(folder, file) for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()]
    found = [(folder, file) for folder, file in found if not file.name.startswith(".")]
    names = [file.relative_to(folder.parent).as_posix() for folder, file in found]
    files = [file for _, file in found]
    return digest(names, content(files, cache))[:16]


@functools.lru_cache(maxsize=2)
def frozen_network(kind: str, folder: Path, content: str, dtype: torch.dtype) -> nn.Module:
    """The network of a pipeline, held once in a process, whatever is laid on it; ``content`` tells versions apart."""
    network, _ = pretrained(kind, folder)
    with quiet():
        return network if dtype == torch.float32 else network.to(dtype)
