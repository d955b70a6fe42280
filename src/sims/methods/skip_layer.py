"""Skip-layer guidance: away from the same network without one of its blocks (arXiv 2411.18664, 2508.12880)."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import Perturbed, blocks_of
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look


def _lacks(base: Denoiser) -> str | None:
    return None if blocks_of(base) else "its network has no block that could be left out"


def _guided(base: Model, aux: Model, w: float, depth: float) -> Denoiser:
    blocks = blocks_of(base.denoiser)
    return Perturbed(base.denoiser, w, "blocks", blocks=(blocks[round(depth * (len(blocks) - 1))],))


SKIP_LAYER = Method(
    "skip-layer",
    "guided away from itself without a block",
    Look("Skip-layer guidance", "#9c4f96", "#d690d0", "p"),
    Continuous(start=(0.05, 0.15, 0.5), usual=0.25),
    lambda base, real, settings, run: None,
    _guided,
    fits=_lacks,
    extra=Extra("without the block at depth", (0.25, 0.5, 0.75, 1.0), usual=0.5),
    networks=2,
    budget="none",
    default=False,
)
