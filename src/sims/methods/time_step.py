"""Time-step guidance: away from the same network told of more noise (arXiv 2412.05827, 2407.02687)."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import TimeShift
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look


def _guided(base: Model, aux: Model, w: float, factor: float) -> Denoiser:
    return TimeShift(base.denoiser, w, factor)


TIME_STEP = Method(
    "time-step",
    "guided away from itself told another noise level",
    Look("Time-step guidance", "#7d5a3c", "#c9a27e", "8"),
    Continuous(start=(0.1, 0.25, 0.5), usual=0.25),
    lambda base, real, settings, run: None,
    _guided,
    extra=Extra("noise level times", (0.8, 1.1, 1.25, 1.5), usual=1.25),
    networks=2,
    budget="none",
    default=False,
)
