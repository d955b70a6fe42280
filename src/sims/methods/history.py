"""History: momentum of the trajectory's own estimates (arXiv 2602.20360, 2509.22300); nothing is trained."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import Momentum
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look


def _guided(base: Model, aux: Model, w: float, memory: float) -> Denoiser:
    return Momentum(base.denoiser, w, memory)


HISTORY = Method(
    "history",
    "guided away from its own earlier estimates",
    Look("History", "#00786b", "#3ccbb5", "h"),
    Continuous(start=(0.1, 0.25, 0.5), usual=0.25),
    lambda base, real, settings, run: None,
    _guided,
    extra=Extra("memory", (0.25, 0.5, 1.0, 2.0, 4.0), usual=1.0),
    composes=True,
    budget="none",
    of_text=True,
)
