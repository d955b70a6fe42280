"""Guidance: denoisers in, one denoiser out. One rule is one class in one file of this folder."""

import importlib
import pkgutil

from sims.guidance.another_class import AnotherClass
from sims.guidance.cache import CacheRule, Step
from sims.guidance.classifier_free import ClassifierFree, knows_no_class
from sims.guidance.conditional import ConditionalExtrapolate
from sims.guidance.correction import CorrectionGuide
from sims.guidance.extrapolate import Extrapolate
from sims.guidance.guide import RULES, Guide, innermost, of_trajectory
from sims.guidance.interval import IntervalGuide
from sims.guidance.momentum import Momentum
from sims.guidance.perturbed import Perturbed, attentions_of, blocks_of, drops
from sims.guidance.recorder import Recorder
from sims.guidance.temperature import Temperature
from sims.guidance.time_shift import TimeShift

for _file in pkgutil.iter_modules(__path__):  # defining the class of a rule registers it in RULES
    importlib.import_module(f"{__name__}.{_file.name}")

__all__ = [
    "RULES",
    "AnotherClass",
    "CacheRule",
    "ClassifierFree",
    "ConditionalExtrapolate",
    "CorrectionGuide",
    "Extrapolate",
    "Guide",
    "IntervalGuide",
    "Momentum",
    "Perturbed",
    "Recorder",
    "Step",
    "Temperature",
    "TimeShift",
    "attentions_of",
    "blocks_of",
    "drops",
    "innermost",
    "knows_no_class",
    "of_trajectory",
]
