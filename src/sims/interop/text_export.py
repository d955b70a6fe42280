"""Models on text-to-image pipelines as files that other programs load: LoRAs, and how to guide away from one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.guidance import ClassifierFree, ConditionalExtrapolate, Extrapolate, Guide
from sims.guidance.guide import innermost
from sims.interop.diffusers_folder import fresh_folder
from sims.interop.lora_files import has_kohya_names, write_kohya, write_lora
from sims.interop.text_guidance import write_guidance
from sims.interop.text_network import TextDenoiser
from sims.model import Model

Pair = Extrapolate | ConditionalExtrapolate
LORA, LORA_KOHYA = "lora.safetensors", "lora-kohya.safetensors"


def is_on_pipeline(model: Model) -> bool:
    """Whether a model lies on a text-to-image pipeline."""
    return isinstance(innermost(model.denoiser), TextDenoiser)


def export_adapters(model: Model, folder: Path) -> str:
    """Write the LoRA of a model, or of a guided pair what ``write_pair`` does; in a sentence, what is there.

    Errors: UserError for a model without a LoRA, another rule of guidance, and a folder that is not empty.
    """
    rule, network = model.denoiser, innermost(model.denoiser).network
    with fresh_folder(folder) as temporary:
        if isinstance(rule, Pair):
            write_pair(temporary, rule)
            return f"{folder} holds the LoRA to guide away from, its opposite, and how to guide (guide_pipeline)"
        if isinstance(rule, Guide) and not isinstance(rule, ClassifierFree):
            raise UserError(f"{rule.kind} cannot be exported: export 'neon' or 'sims' of a run, which are LoRAs")
        if network.settings is None:
            raise UserError("this model is the pipeline itself, without a LoRA: there is nothing to export")
        write_lora(temporary / LORA, network.adapter, network.component, network.alpha)
        if has_kohya_names(network.frozen):
            write_kohya(temporary / LORA_KOHYA, network.adapter, network.frozen, network.alpha)
    return f"{folder} holds a LoRA: pipe.load_lora_weights({str(folder)!r}, weight_name={LORA!r})"


def write_pair(folder: Path, guided: Pair, cached: Denoiser | None = None, opposite: Denoiser | None = None) -> None:
    """The LoRA of a guided pair's auxiliary, its strength, and in ``opposite`` Neon's: see ``write_guidance``.

    Corrections are reused as ``cached`` does, the same pair, where that is given.
    """
    network: Any = innermost(guided.aux).network
    scale = 1.0 + guided.base.w if isinstance(guided.base, Guide) else 1.0
    rule = getattr(cached, "cache", None) if cached is not None else guided.cache
    write_guidance(
        folder, network.conditioning.pipeline.kind.pipeline, network.frozen, network.adapter,
        w=guided.w, scale=scale, alpha=network.alpha, interval=guided.interval, refresh=rule,
        condition_only=isinstance(guided, ConditionalExtrapolate),
        opposite=None if opposite is None else innermost(opposite).network.adapter,
    )  # fmt: skip
