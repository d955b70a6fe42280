"""Control: the auxiliary alone, D_base - (D_base - D_aux): what training on its own samples does without guidance."""

from __future__ import annotations

from sims.methods.auxiliary import auxiliary_work, prepare_auxiliary
from sims.methods.contract import Fixed, Method
from sims.methods.guided import replace
from sims.results.common import Look

SELF_TRAINED = Method(
    "self-trained",
    "control: the auxiliary alone",
    Look("Self-trained", "#a32b2e", "#f2858a", "<"),
    Fixed(-1.0),
    prepare_auxiliary,
    replace,
    auxiliary_work,
    prepared_as="auxiliary",
    budget="leader",
    default=False,
)
