"""Perturbed-attention guidance: away from the same network whose attention has no effect (PAG, arXiv 2403.17377)."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import Perturbed, attentions_of
from sims.methods.contract import Continuous, Extra, Method
from sims.model import Model
from sims.results.common import Look

ALL, MIDDLE = 0.0, 1.0  # of the network's layers of attention


def _lacks(base: Denoiser) -> str | None:
    return None if attentions_of(base) else "its network has no self-attention that torch's own function computes"


def _guided(base: Model, aux: Model, w: float, which: float) -> Denoiser:
    middle = (attentions_of(base.denoiser) // 2,)
    return Perturbed(base.denoiser, w, "attention", at=middle if which == MIDDLE else ())


PERTURBED_ATTENTION = Method(
    "perturbed-attention",
    "guided away from itself without attention",
    Look("Perturbed-attention guidance", "#2f6f8f", "#7fbfdc", "H"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    lambda base, real, settings, run: None,
    _guided,
    fits=_lacks,
    extra=Extra("the middle layer alone:", (ALL, MIDDLE), usual=ALL),
    networks=2,
    budget="none",
    default=False,
)
