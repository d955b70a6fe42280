"""What methods are prepared with: their options, seeds, and what the leading method chose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from sims.config import LATER, left_open
from sims.errors import UserError
from sims.model import Model
from sims.networks.lora import LoraOptions
from sims.networks.usual import PLAIN
from sims.results.common import Cost
from sims.runs.work import Sampling
from sims.seeds import check_drawn
from sims.training.options import TrainOptions
from sims.training.probe import STEPS

LENGTH = 1_280_000  # images, taken for the training of a model that was given


@dataclass(frozen=True)
class AuxiliarySettings:
    """The auxiliary that sims and neon share (and placebo copies with real data)."""

    samples: int = left_open(10_000)
    """Own samples the auxiliary is trained on (n_s in the paper)."""
    budgets: tuple[int, ...] = ()
    """Training budgets to choose from, in images seen (B in the paper); if not given, 5, 10, 20 and 40 % of the base's training, or 64,000 to 512,000 for a model that was given."""  # noqa: E501
    init: Literal["base", "scratch", "snapshot"] = "base"
    """How it starts: a copy of the base, random weights, or the earliest snapshot of the base's training."""
    train: TrainOptions = field(default_factory=lambda: TrainOptions(ema_rampup=0.5))
    """Its training. The weights are averaged over half of it: guidance multiplies what noise an auxiliary has."""

    synthesis: Literal["full", "truncated"] = field(default="full", metadata=LATER)
    """How its data are drawn: as the base is sampled, or only down to the noise level stop, where the estimate is the sample."""  # noqa: E501
    stop: float = field(default=2.5, metadata=LATER)
    """Noise level at which truncated synthesis ends; on the digits, levels from 0.15 to 1.2 were worse."""
    weight_decay: float = field(default=1.0, metadata=LATER)
    """Weight decay of the auxiliary of the method weight-decay; that of all others is train.weight_decay."""

    lora: LoraOptions = field(default=LoraOptions(), metadata=LATER)
    """The auxiliary of a text-to-image model, which is a LoRA on it."""

    def __post_init__(self) -> None:
        for name in ("stop", "weight_decay"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"auxiliary.{name} is {getattr(self, name)}: it must be a positive number")
        if min(self.budgets, default=1) < 1:
            raise UserError(f"auxiliary.budgets is {list(self.budgets)}: give positive numbers of images")
        if self.samples < 2:
            raise UserError(f"auxiliary.samples is {self.samples}: at least 2 are needed")
        check_drawn("auxiliary.samples", self.samples)

    def settled(self, images: int, shares: Sequence[float] = PLAIN.budgets) -> AuxiliarySettings:
        """With the budgets that follow from ``images``, the length of the base's training, where none are given."""
        found = sorted({max(1, round(images * share)) for share in shares})
        return self if self.budgets else replace(self, budgets=tuple(found))


@dataclass(frozen=True)
class DistilledOptions:
    """How the student is trained."""

    samples: int = 10_000
    """Guided samples to learn from."""
    images: int = 0
    """Training images seen; 0: a tenth of the base's training, or 128,000 for a model that was given."""
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        check_drawn("distilled.samples", self.samples)

    def settled(self, images: int, share: float = PLAIN.distilled) -> DistilledOptions:
        """With the length that follows from ``images``, that of the base's training, where none is given."""
        return self if self.images else replace(self, images=max(1, round(images * share)))


@dataclass(frozen=True)
class Leader:
    """What the leading method chose, or the best of all: its model at strength w, the budget, the cost of all of it."""

    model: Model
    w: float
    label: str
    budget: int | None = None
    cost: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Settings:
    """What every method is prepared with; ``leader`` is known only to those that are prepared after it."""

    auxiliary: AuxiliarySettings = field(default_factory=AuxiliarySettings)
    seed: int = 0
    round: int = 0
    batch_size: int = 500
    distilled: DistilledOptions = field(default_factory=DistilledOptions)
    leader: Leader | None = None


@dataclass(frozen=True)
class Expected:
    """What is known of a job before it runs, for counting its work.

    train        how the base is trained
    nfe, guided  network evaluations of a sample of the base, and of a guided pair of networks
    leader       what the leading method is expected to cost
    sampling     the base and how it is sampled, where that is known
    foreign      the base was not trained here at the usual rate: learning rates are found by a probe
    """

    settings: Settings
    train: TrainOptions
    nfe: int = 0
    guided: int = 0
    leader: Cost = field(default_factory=Cost)
    foreign: bool = False
    sampling: Sampling | None = None

    def probe(self, train: TrainOptions) -> int:
        """Training images by which a learning rate is found: usually one of the first three."""
        return 3 * STEPS * train.batch if self.foreign and train.lr is None else 0

    def evaluations(self, networks: int) -> int:
        """Of a sample whose denoiser has so many networks."""
        return self.nfe + (networks - 1) * (self.guided - self.nfe)
