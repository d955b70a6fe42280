"""What the parts of an improvement share, and what one part hands to the next."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import numpy as np

from sims.data.dataset import Dataset
from sims.experiments.options import ImproveOptions
from sims.methods import Leader, Settings
from sims.model import Model
from sims.results.common import Cost
from sims.runs.clock import Clock
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.scoring.judge import Judge


def mark(options: ImproveOptions, round_: int) -> str:
    """What tells the stages of several rounds apart."""
    return f" (round {round_ + 1})" if options.rounds > 1 else ""


def settings_of(options: ImproveOptions, round_: int = 0, leader: Leader | None = None) -> Settings:
    """What methods are prepared with in a round."""
    return Settings(options.auxiliary, options.seed, round_, options.batch_size, options.distilled, leader)


@dataclass(frozen=True)
class Context:
    """A run and its options, the real data, what judges, and the features of images that are known to be real.

    ``faithful`` (n,) says how well the base's samples of the selection seeds show what their prompts ask for;
    ``held_out`` are the shares of the prompts that were kept back for the table, where some were.
    """

    run: Run
    options: ImproveOptions
    clock: Clock
    real: Dataset | None = None
    judge: Judge | None = None
    trusted: np.ndarray | None = None
    faithful: np.ndarray | None = None
    held_out: tuple[float, ...] = ()

    def shown(self, model: Model) -> Model:
        """A model as its samples are judged and shown: of the prompts that were kept back, where some were."""
        if not self.held_out:
            return model
        return replace(model, sampler=replace(model.sampler, class_shares=self.held_out))

    def stage(self, name: str, round_: int) -> AbstractContextManager[None]:
        """Time a stage of a round."""
        return self.clock.stage(name + mark(self.options, round_))

    @property
    def needed_judge(self) -> Judge:
        assert self.judge is not None
        return self.judge

    @property
    def interval(self) -> tuple[float, float]:
        """The noise levels at which whatever guides is to guide."""
        return self.options.guidance.sigma_low, self.options.guidance.sigma_high


@dataclass(frozen=True)
class Choice:
    """A method ready to be judged: its model, strength and budget, and what it cost beyond the base.

    ``label`` is the method's name, or that of a variant; ``planned`` is what a plan, which cannot know it, has instead.
    """

    method: str
    label: str
    model: Model
    w: float = 0.0
    budget: int | None = None
    cost: Cost = field(default_factory=Cost)
    note: str = ""
    planned: str = ""

    @property
    def nfe(self) -> int:
        return nfe(self.model, self.model.sampler)

    def as_leader(self) -> Leader:
        return Leader(self.model, self.w, self.label, self.budget, self.cost)
