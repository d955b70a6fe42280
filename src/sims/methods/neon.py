"""Neon: extrapolate the weights away from the same auxiliary (arXiv 2510.03597); one network, the base's cost."""

from __future__ import annotations

from sims.methods.auxiliary import auxiliary_work, prepare_auxiliary
from sims.methods.contract import Continuous, Method
from sims.methods.guided import extrapolate_weights
from sims.results.common import Look

NEON = Method(
    "neon",
    "weights extrapolated away from its own samples",
    Look("Neon", "#c7530a", "#ff9d52", "^"),
    Continuous(usual=0.75),
    prepare_auxiliary,
    extrapolate_weights,
    auxiliary_work,
    prepared_as="auxiliary",
    saved=True,
    of_text=True,
)
