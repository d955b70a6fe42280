"""The base model as it is."""

from __future__ import annotations

from sims.methods.contract import Fixed, Method
from sims.methods.guided import replace
from sims.results.common import Look

BASE = Method(
    "base",
    "the model as it is",
    Look("Base", "#66707f", "#a7b0be", "o"),
    Fixed(0.0),
    lambda base, real, settings, run: None,
    replace,
    later_rounds=True,
    of_text=True,
)
