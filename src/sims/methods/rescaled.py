"""Rescaled: the score times a factor (arXiv 2308.15321), or one that depends on the noise level (2510.01184)."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import Temperature
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look

EVERYWHERE = 0.0  # the scale that stands for none: all noise levels alike


def _guided(base: Model, aux: Model, w: float, scale: float) -> Denoiser:
    return Temperature(base.denoiser, w, None if scale == EVERYWHERE else scale)


_SMALL = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
RESCALED = Method(
    "rescaled",
    "its score a little larger or smaller",
    Look("Rescaled", "#5d7a10", "#a9c94f", "d"),
    Continuous(
        start=(-0.05, 0.05, 0.3),
        usual=0.3,
        among=(*(-w for w in _SMALL), *_SMALL, 0.85, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0),
        above=-1.0,
    ),
    lambda base, real, settings, run: None,
    _guided,
    extra=Extra("scale", (EVERYWHERE, 0.15, 0.3, 0.6, 1.2), usual=0.6),
    composes=True,
    budget="none",
    of_text=True,
)
