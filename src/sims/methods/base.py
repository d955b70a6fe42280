"""The base model as it is."""

from __future__ import annotations

from sims.methods.contract import Fixed, Method
from sims.methods.guided import replace

BASE = Method("base", "the model as it is", Fixed(0.0), lambda base, real, settings, run: None, replace)
