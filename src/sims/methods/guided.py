"""How denoisers and weights are combined: shared by the methods."""

from __future__ import annotations

import copy

import torch

from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.guidance import ConditionalExtrapolate, Extrapolate
from sims.guidance.guide import around, innermost
from sims.model import Model


def extrapolate(base: Model, aux: Model, w: float) -> Denoiser:
    """D_base + w (D_base - D_aux)."""
    return Extrapolate(base.denoiser, aux.denoiser, w)


def extrapolate_conditional(base: Model, aux: Model, w: float) -> Denoiser:
    """D_cfg + w s (D(y) - D_aux(y)), around classifier-free guidance of scale s."""
    return ConditionalExtrapolate(base.denoiser, innermost(aux.denoiser), w)


def replace(base: Model, aux: Model, w: float) -> Denoiser:
    """The prepared network itself."""
    return aux.denoiser


@torch.no_grad()
def extrapolate_weights(base: Model, aux: Model, w: float) -> Denoiser:
    """theta_base + w (theta_base - theta_aux), every parameter: Neon (arXiv 2510.03597).

    Of an auxiliary that is a LoRA on the base, that is the same LoRA times -w.
    """
    inner, other = innermost(base.denoiser), innermost(aux.denoiser)
    if (scaled := getattr(other, "scaled", None)) is not None:
        return around(base.denoiser, scaled(-w))
    merged = copy.deepcopy(inner)
    theirs = dict(other.named_parameters())
    ours = dict(merged.named_parameters())
    if {n: p.shape for n, p in ours.items()} != {n: p.shape for n, p in theirs.items()}:
        raise UserError("weights can only be extrapolated between networks of one architecture")
    for name, parameter in ours.items():
        parameter.add_(parameter - theirs[name], alpha=w)
    return around(base.denoiser, merged)
