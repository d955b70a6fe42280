"""SIMS: steer away from a network fine-tuned on the base's own samples (Alemohammad et al. 2024, arXiv 2408.16333)."""

from __future__ import annotations

from sims.methods.auxiliary import prepare_auxiliary
from sims.methods.contract import Continuous, Method
from sims.methods.guided import extrapolate

SIMS = Method("sims", "guided away from its own samples", Continuous(), prepare_auxiliary, extrapolate)
