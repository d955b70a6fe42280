"""Dropout guidance: away from the same network with dropout left on (in-situ autoguidance, arXiv 2510.17136)."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import Perturbed, drops
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look


def _lacks(base: Denoiser) -> str | None:
    return None if drops(base) else "its network has no place for dropout"


def _guided(base: Model, aux: Model, w: float, rate: float) -> Denoiser:
    return Perturbed(base.denoiser, w, "dropout", rate=rate)


DROPOUT_GUIDANCE = Method(
    "dropout-guidance",
    "guided away from itself with dropout left on",
    Look("Dropout guidance", "#a0661c", "#e0ad6b", "P"),
    Continuous(usual=0.5),
    lambda base, real, settings, run: None,
    _guided,
    fits=_lacks,
    extra=Extra("rate", (0.1, 0.3, 0.5), usual=0.3),
    networks=2,
    budget="none",
    default=False,
)
