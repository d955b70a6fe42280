"""Methods: each turns a base model and its own samples into a denoiser. One small file and one line here."""

from __future__ import annotations

from sims.methods.autoguidance import AUTOGUIDANCE
from sims.methods.base import BASE
from sims.methods.continued import CONTINUED
from sims.methods.contract import Artefact, Base, Continuous, Fixed, Method
from sims.methods.distilled import DISTILLED
from sims.methods.neon import NEON
from sims.methods.placebo import PLACEBO
from sims.methods.self_trained import SELF_TRAINED
from sims.methods.sims import SIMS

METHODS: dict[str, Method] = {
    rule.name: rule for rule in (BASE, CONTINUED, PLACEBO, SELF_TRAINED, AUTOGUIDANCE, SIMS, NEON, DISTILLED)
}

__all__ = ["METHODS", "Artefact", "Base", "Continuous", "Fixed", "Method"]
