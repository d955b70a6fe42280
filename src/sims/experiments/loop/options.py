"""Options of the loops and of the pollution experiment; every docstring is its ``--help``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from sims.config import nearest
from sims.errors import UserError
from sims.experiments.improve.trusted import LEAST
from sims.experiments.loop.remedies import EQUAL, REMEDIES, STANDARD, STEPS, is_guided
from sims.experiments.loop.schedule import CountOptions, Kind, schedule
from sims.experiments.options import BaseOptions, CommonOptions, DataOptions, in_order
from sims.methods import METHODS, Fixed
from sims.methods.auxiliary import TRAINED_HERE, own_sampler
from sims.methods.neon import NEON
from sims.methods.settings import AuxiliarySettings
from sims.methods.sims import SIMS
from sims.networks.options import NetworkOptions
from sims.sampling import SamplerOptions
from sims.scoring.options import EvaluationOptions
from sims.training.trainer import TrainOptions

TOYS = ("gaussian", "mixture")


def _check_remedies(remedies: tuple[str, ...], base: BaseOptions) -> None:
    if not remedies or len({*remedies}) != len(remedies):
        raise UserError(f"remedies are {list(remedies)}: name at least one, each once")
    for name in remedies:
        if name not in REMEDIES:
            raise UserError(f"unknown remedy {name!r}{nearest(name, REMEDIES)}")
    if STANDARD not in remedies:
        raise UserError("remedies are compared with standard training: name 'standard' among them")
    if EQUAL in remedies and SIMS.name not in remedies:
        raise UserError(f"{EQUAL} is given the compute that {SIMS.name} spends: name both, or neither")
    needy = [name for name in remedies if is_guided(name) and METHODS[name].needs_snapshots]
    if needy and not base.snapshots:
        raise UserError(f"remedy {needy[0]!r} needs base.snapshots: give at least one share of the training length")


MOST_REPEATS = 10_000
MOST_POLLUTION = 100_000  # percent: a thousand synthetic samples for each real one


def _check_strengths(name: str, strengths: tuple[float, ...]) -> None:
    if not strengths or any(not math.isfinite(w) or w == 0 for w in strengths) or len({*strengths}) != len(strengths):
        raise UserError(f"{name} are {list(strengths)}: give finite numbers other than 0 (the base), each once")


@dataclass(frozen=True)
class RepeatedOptions(CommonOptions):
    """What the loops and the pollution experiment share."""

    repeats: int = 3
    """Repeats of the whole procedure, each with seeds of its own; intervals come from their spread."""
    jobs: int = 1
    """Repeats computed at once, each in a process of its own."""
    seed: int = 0
    """Seed of everything; repeat i has seeds of its own."""
    base: BaseOptions = field(default_factory=lambda: BaseOptions(snapshots=()))
    """Training of every generation's model."""
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    """How every model is sampled."""
    auxiliary: AuxiliarySettings = field(default_factory=lambda: AuxiliarySettings(budgets=(128_000,)))
    """The network that guided remedies steer away from; one budget."""
    evaluation: EvaluationOptions = field(default_factory=lambda: EvaluationOptions(draws=1))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("repeats", "jobs")
        if self.repeats > MOST_REPEATS:
            raise UserError(f"repeats is {self.repeats:,}: at most {MOST_REPEATS:,} can be planned")
        if len(self.auxiliary.budgets) != 1:
            shown = list(self.auxiliary.budgets)
            raise UserError(f"auxiliary.budgets is {shown}: a loop has one budget for all generations, give one")
        if self.auxiliary.init == "snapshot" and not self.base.snapshots:
            raise UserError("auxiliary.init = 'snapshot' needs base.snapshots: give a share, or use base or scratch")
        own_sampler(TRAINED_HERE, self.sampler, self.auxiliary)  # or it says what is wrong
        if self.data.path == "none":
            raise UserError("generation 0 is trained on real data: give data.path")


COMMON = "data repeats jobs seed batch_size network base sampler auxiliary evaluation"


@in_order(f"{COMMON} run kind generations counts remedies w strengths selection_generations passed_on start affine")
@dataclass(frozen=True)
class LoopOptions(RepeatedOptions):
    """Train generation after generation on earlier generations' samples, with and without a remedy, and compare.

    With no arguments: ten generations of the bundled digits, from the real digits and the last generation's samples.
    `--data.path gaussian` or `mixture` is the loop of the literature in two dimensions: many replicas at once. Run the
    same command again to continue after an interruption; a higher --repeats adds to what is there.
    """

    run: Path = Path("runs/loop")
    kind: Kind = "augmentation"
    """Training sets: fully-synthetic (the last generation's samples), augmentation (and a fixed real set), accumulate (and all earlier generations' samples), fresh (new real samples each time), counts (stated numbers)."""  # noqa: E501
    generations: int = 10
    """Generations after generation 0, which is trained on real data alone."""
    counts: CountOptions = field(default_factory=CountOptions)
    remedies: tuple[str, ...] = (STANDARD, EQUAL, SIMS.name, NEON.name)
    """What is done in every generation: standard, standard-equal (trained on for the compute that sims spends), standard-steps (points: sampled with twice the steps, for the network evaluations that sims spends), or methods that need no real data, such as sims and neon."""  # noqa: E501
    w: tuple[float, ...] = ()
    """Strengths of the guided remedies, an arm for each; if not given, each remedy's is chosen with a seed of its own."""  # noqa: E501
    strengths: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    """Strengths to choose from, where none is given."""
    selection_generations: int = 2
    """Generations after which the strength is chosen (at most --generations)."""
    passed_on: Literal["improved", "base"] = "improved"
    """Whose samples the next generation is trained on: the improved model's, or those of the base it was made from."""
    start: Literal["scratch", "continued"] = "scratch"
    """How a generation's weights start: drawn anew, or with the last generation's."""
    affine: bool = False
    """Gaussian and mixture: an affine denoiser, fitted exactly, in the network's place."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_remedies(self.remedies, self.base)
        if self.w:
            _check_strengths("w", self.w)
        _check_strengths("strengths", self.strengths)
        if self.selection_generations < 1:
            raise UserError(f"selection_generations is {self.selection_generations}: at least 1 is needed")
        schedule(self.kind, self.counts, self.generations)  # numbers that no data set could meet
        if STEPS in self.remedies and not self.is_toy:
            raise UserError(f"remedy {STEPS!r} is for the data {' and '.join(TOYS)}, not for {self.data.path}")
        if self.affine and not self.is_toy:
            raise UserError(f"affine is for the data {' and '.join(TOYS)}, not for {self.data.path}: leave it out")

    @property
    def is_toy(self) -> bool:
        """Whether the loop is one of points in two dimensions."""
        return self.data.path in TOYS


@in_order(f"{COMMON} run levels remedies strengths selection_samples trusted trusted_sizes trusted_draws")
@dataclass(frozen=True)
class PollutionOptions(RepeatedOptions):
    """Pollute real data with an earlier model's samples, and see what standard training and SIMS make of it.

    With no arguments: the bundled digits. At every level a model is trained on all real images and on that many
    samples of a model that was trained on the clean ones; SIMS is then applied over a range of strengths. A strength is
    also chosen without the clean data, from a few trusted images. Run the same command again to continue.
    """

    run: Path = Path("runs/pollution")
    levels: tuple[float, ...] = (0.0, 25.0, 50.0, 100.0, 200.0)
    """Numbers of synthetic samples, in percent of the real ones."""
    remedies: tuple[str, ...] = (STANDARD, EQUAL, SIMS.name)
    """standard, standard-equal (trained on for the compute that sims spends), and methods that need no real data."""
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    """Strengths that every guided remedy is measured at."""
    selection_samples: int = 2_000
    """Samples at each strength that the choice of a strength is made with."""
    trusted: str = "100"
    """What the strength is chosen by without the clean data: a number of real images that are known to be real, or the path of trusted images."""  # noqa: E501
    trusted_sizes: tuple[int, ...] = (25, 50, 100, 200, 400)
    """Numbers of trusted images whose reliability is measured."""
    trusted_draws: int = 50
    """Random sets of trusted images of each size, for that measurement."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_remedies(self.remedies, self.base)
        _check_strengths("strengths", self.strengths)
        if STEPS in self.remedies:
            raise UserError(f"remedy {STEPS!r} is for loops of points: leave it out")
        levels = list(self.levels)
        if not levels or levels != sorted({*levels}) or not all(0 <= x <= MOST_POLLUTION for x in levels):
            raise UserError(
                f"levels are {levels}: give rising percentages from 0 to {MOST_POLLUTION:,}, such as 0,25,50,100,200"
            )
        if not any(is_guided(name) for name in self.remedies):
            raise UserError(f"remedies are {list(self.remedies)}: name a method to compare with as well, such as sims")
        if fixed := [n for n in self.remedies if is_guided(n) and isinstance(METHODS[n].strengths, Fixed)]:
            raise UserError(f"remedy {fixed[0]!r} has a single strength, and strengths are compared here: leave it out")
        if self.trusted.isdecimal() and int(self.trusted) < LEAST:
            raise UserError(f"trusted is {self.trusted}: at least {LEAST} trusted images are needed")
        if self.trusted_sizes and min(self.trusted_sizes) < LEAST:
            shown = list(self.trusted_sizes)
            raise UserError(f"trusted_sizes are {shown}: at least {LEAST} trusted images are needed")
        if self.selection_samples < 2:
            raise UserError(f"selection_samples is {self.selection_samples}: at least 2 are needed for a covariance")
        if self.trusted_draws < 1:
            raise UserError(f"trusted_draws is {self.trusted_draws}: at least 1 is needed")
        if self.data.path in TOYS:
            raise UserError(f"the pollution experiment is for images, not for {self.data.path}: use sims loop")


def defaults_for(path: str | None, recipe: Mapping[str, object]) -> LoopOptions:
    """What options start from: the loops in two dimensions, asked for as data, have defaults of their own.

    Where no ``path`` of data is given, that of the recipe counts.
    """
    data = recipe.get("data")
    if path is None and isinstance(data, dict):
        path = data.get("path")
    return toy_defaults(path) if path in TOYS else LoopOptions()


def toy_defaults(name: str = "gaussian") -> LoopOptions:
    """Defaults of the two-dimensional loops: 100 generations, many replicas, small networks.

    With the exact denoiser of the Gaussian the sampler's own error is a 2-Wasserstein distance of 0.015, so what a
    generation gets wrong is what its network has not learned: noise levels are drawn as for images, which seldom
    reaches those where a covariance of this size is decided, and there the network keeps to the round Gaussian that
    its preconditioning starts from. The five modes of the mixture need a larger network.
    """
    train = TrainOptions(batch=256, decay="cosine")
    small = name == "gaussian"
    sizes = (
        NetworkOptions(width=8, blocks=1, embedding=8) if small else NetworkOptions(width=32, blocks=2, embedding=32)
    )
    return replace(
        LoopOptions(),
        run=Path("runs/loop-2d"),
        data=DataOptions(path=name),
        generations=100,
        counts=CountOptions(real=1_000, synthetic=2_000),
        remedies=(STANDARD, EQUAL, STEPS, SIMS.name),
        repeats=20,
        network=replace(sizes, sigma_min=0.05, sigma_max=20.0),
        base=BaseOptions(images=102_400, snapshots=(), train=replace(train, lr=2e-3, warmup=2_560, ema_rampup=0.2)),
        # The rate falls to zero: guidance multiplies what noise an auxiliary has.
        auxiliary=AuxiliarySettings(
            samples=3_000, budgets=(25_600,), train=replace(train, lr=2e-3, warmup=0, ema_rampup=0.5)
        ),
        sampler=SamplerOptions(solver="dpmpp2m", steps=20),
        evaluation=EvaluationOptions(draws=1, samples=2_000),
    )
