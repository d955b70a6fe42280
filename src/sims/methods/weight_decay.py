"""Autoguidance without a history: the weak model is the base with its weights shrunk, by a fine-tune that decays them.

Guidance away from a weaker version of the base (Karras et al. 2024, arXiv 2406.02507) needs earlier snapshots. This one
needs none, and no real data: the base is trained on its own samples with strong weight decay (AdamW's: Loshchilov and
Hutter 2019, arXiv 1711.05101).
"""

from __future__ import annotations

from dataclasses import replace

from sims.denoiser import Denoiser
from sims.methods.auxiliary import altered
from sims.methods.contract import Continuous, Method
from sims.methods.guided import extrapolate
from sims.methods.settings import AuxiliarySettings
from sims.results.common import Look
from sims.training.sharding import can_decay


def _decaying(options: AuxiliarySettings) -> AuxiliarySettings:
    return replace(options, train=replace(options.train, weight_decay=options.weight_decay))


def _lacks(base: Denoiser) -> str | None:
    return None if can_decay(base) else "its weights are normalized at every use, so that decay shrinks nothing"


_prepare, _work = altered(_decaying)
WEIGHT_DECAY = Method(
    "weight-decay",
    "guided away from itself with decayed weights",
    Look("Weight decay", "#5b7a12", "#a9cc4d", "d"),
    Continuous(),
    _prepare,
    extrapolate,
    _work,
    networks=2,
    prepared_as="decayed auxiliary",
    fits=_lacks,
    default=False,
)
