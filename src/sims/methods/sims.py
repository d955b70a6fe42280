"""SIMS: steer away from a network fine-tuned on the base's own samples (Alemohammad et al. 2024, arXiv 2408.16333)."""

from __future__ import annotations

from sims.methods.auxiliary import auxiliary_work, prepare_auxiliary
from sims.methods.contract import Continuous, Method
from sims.methods.guided import extrapolate
from sims.results.common import Look

SIMS = Method(
    "sims",
    "guided away from its own samples",
    Look("SIMS", "#1d5fd6", "#6fa3ff", "o"),
    Continuous(usual=2.5),
    prepare_auxiliary,
    extrapolate,
    auxiliary_work,
    networks=2,
    prepared_as="auxiliary",
    later_rounds=True,
    of_text=True,
)
