"""A text-to-image pipeline as its user samples it: network, guidance scale, scheduler, steps, and a list of prompts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sims.config import LATER, read_as, to_dict
from sims.data.mapped import say
from sims.denoiser import Denoiser, Precision
from sims.errors import UserError
from sims.guidance import ClassifierFree
from sims.interop.latents import Settings as VAE
from sims.interop.latents import latent_codec
from sims.interop.text_conditioning import Conditioning
from sims.interop.text_network import DTYPES, Beside, TextDenoiser, TextNetwork
from sims.interop.text_pipelines import TextPipeline, content_of, frozen_network
from sims.model import Model

MOST_PROMPTS = 1_000_000


@dataclass(frozen=True)
class TextOptions:
    """How a text-to-image pipeline is sampled, which is what is to be made better."""

    scale: float | None = None
    """Scale of classifier-free guidance, 1 = none; the one that diffusers takes for such a pipeline if not given."""
    steps: int | None = None
    """Steps of the pipeline's scheduler; as many as diffusers takes if not given."""
    negative: str = ""
    """Negative prompt, which guidance leads away from."""
    size: int | tuple[int, int] | None = None
    """Pixels a side of the pictures, or HEIGHT,WIDTH; the network's own if not given."""
    weights: Precision = "fp32"
    """Number format that the network's own weights are held in; bf16 or fp16 halve the memory (GPUs)."""
    column: str | None = None
    """Column of the data's captions, where it is not text, caption or prompt."""
    held_out: float = field(default=0.0, metadata=LATER)
    """Share of the prompts that are kept out of synthesis, training and search; then the table is of these alone."""

    def __post_init__(self) -> None:
        if self.scale is not None and not 1 <= self.scale < math.inf:
            raise UserError(f"text.scale is {self.scale}: give a number from 1 (no guidance) on, such as 7.5")
        if not 0 <= self.held_out < 1:
            raise UserError(f"text.held_out is {self.held_out}: give a share of the prompts from 0 up to below 1")


def open_text_to_image(
    folder: Path, prompts: tuple[str, ...], options: TextOptions, cache: Path, log: Callable[[str], None] = say
) -> Model:
    """The pipeline in a folder of diffusers as a model whose classes are ``prompts``; class i is drawn by prompt i.

    Its denoiser is classifier-free guidance around a ``TextDenoiser``. What the encoders make of the prompts is kept in
    the folder ``cache``. Errors: UserError for a pipeline that cannot be read, no prompts, and a scale for a model
    whose guidance was distilled into it.
    """
    opened = TextPipeline.read(folder)
    if not 1 <= len(prompts) <= MOST_PROMPTS:
        raise UserError(f"there are {len(prompts):,} prompts: give from 1 to {MOST_PROMPTS:,}, one a line")
    scale, why = options.scale, opened.distilled
    if why is not None and scale not in (None, 1.0):
        raise UserError(
            f"text.scale is {scale:g}, and {folder} has its guidance distilled into it ({why}): give 1, or leave it out"
        )
    scale = 1.0 if why is not None else opened.usual_scale if scale is None else scale
    codec = latent_codec(opened.folder / "vae")
    vae: VAE = read_as(opened.folder / "vae" / "config.json", VAE, rest=True)
    if vae.latent_channels != opened.facts.in_channels:
        raise UserError(
            f"the network in {folder} takes {opened.facts.in_channels} channels, and latents have "
            f"{vae.latent_channels}: it is made for another task than to draw of a text alone, choose another model"
        )
    size = (options.size, options.size) if isinstance(options.size, int) else options.size
    shape = opened.latent_shape(size, vae.reduction)
    content = content_of(cache, opened.network)
    frozen = frozen_network(opened.kind.network, opened.network, content, DTYPES[options.weights])
    told = Conditioning(opened, prompts, options.negative, cache, frozen, log)
    beside = Beside(str(opened.folder), prompts, str(cache))
    network = TextNetwork(
        shape, len(prompts), content, told.content, options.negative, None, options.weights, beside, told
    )
    denoiser = TextDenoiser(network, shape, len(prompts), dict(opened.scheduler)).eval().requires_grad_(False)
    told.release()
    sampler, said = opened.sampler(options.steps, denoiser.schedule.sigma)
    guided: Denoiser = denoiser if scale == 1 else ClassifierFree(denoiser, scale - 1)
    about = {"imported": "diffusers", "folder": str(folder), "pipeline": opened.kind.pipeline, "sampler": said}
    return Model(guided, codec, sampler, (), {**about, "text": to_dict(options)})
