"""Independent condition guidance (arXiv 2407.02687): away from the same network told another class."""

from __future__ import annotations

from sims.denoiser import Denoiser
from sims.guidance import AnotherClass
from sims.methods.contract import Continuous, Method
from sims.model import Model
from sims.results.common import Look


def _lacks(base: Denoiser) -> str | None:
    return None if base.num_classes > 1 else "it needs a base with classes, 2 at least"


def _guided(base: Model, aux: Model, w: float) -> Denoiser:
    return AnotherClass(base.denoiser, w)


ICG = Method(
    "icg",
    "guided away from itself told another class",
    Look("Independent condition guidance", "#b0413e", "#e88d8a", "D"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    lambda base, real, settings, run: None,
    _guided,
    fits=_lacks,
    networks=2,
    budget="none",
    default=False,
)
