"""Classifier-free guidance (arXiv 2207.12598): away from the same network without a class; nothing is trained."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import ClassifierFree, knows_no_class
from sims.methods.contract import Continuous, Method
from sims.model import Model
from sims.results.common import Look


def _guided(base: Model, aux: Model, w: float) -> Denoiser:
    return ClassifierFree(base.denoiser, w)


CFG = Method(
    "cfg",
    "guided away from itself without a class",
    Look("Classifier-free guidance", "#8a6d00", "#d9b93b", "X"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    lambda base, real, settings, run: None,
    _guided,
    fits=lambda base: None if knows_no_class(base) else "it needs a base with classes that can also be told none",
    networks=2,
    budget="none",
)
