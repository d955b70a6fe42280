"""Control: guidance away from an auxiliary fine-tuned on real data with the same budget."""

from __future__ import annotations

from sims.methods.auxiliary import placebo_work, prepare_placebo
from sims.methods.contract import Continuous, Method
from sims.methods.guided import extrapolate
from sims.results.common import Look

PLACEBO = Method(
    "placebo",
    "control: guided away from a fine-tune on real data",
    Look("Placebo", "#b52c7c", "#f27fbd", "X"),
    Continuous(usual=0.3),
    prepare_placebo,
    extrapolate,
    placebo_work,
    needs_real=True,
    networks=2,
    prepared_as="placebo",
    budget="leader",
    follows_leader=True,
    default=False,
)
