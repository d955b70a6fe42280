"""Guidance: denoisers in, one denoiser out. One rule is one class in one file of this folder."""

import importlib
import pkgutil

from sims.guidance.cache import CacheRule, Step
from sims.guidance.classifier_free import ClassifierFree, knows_no_class
from sims.guidance.correction import CorrectionGuide
from sims.guidance.extrapolate import Extrapolate
from sims.guidance.guide import RULES, Guide, innermost
from sims.guidance.recorder import Recorder

for _file in pkgutil.iter_modules(__path__):  # defining the class of a rule registers it in RULES
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "RULES",
    "CacheRule",
    "ClassifierFree",
    "CorrectionGuide",
    "Extrapolate",
    "Guide",
    "Recorder",
    "Step",
    "innermost",
    "knows_no_class",
]
