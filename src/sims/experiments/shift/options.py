"""Options of distribution control; every docstring is its ``--help``."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from sims.config import nearest
from sims.errors import UserError
from sims.experiments.options import BaseOptions, CommonOptions, GuidanceOptions, in_order
from sims.interop.hub_models import HubOptions
from sims.methods import DistilledOptions
from sims.scoring.options import EvaluationOptions
from sims.seeds import check_drawn
from sims.training.trainer import TrainOptions

BASELINES = ("rejection", "classifier", "fine-tuning")


@dataclass(frozen=True)
class SteeringOptions:
    """The auxiliary that moves the proportions, and the own samples it is trained on."""

    candidates: int = 20_000
    """Own samples drawn at first; the classifier labels them, and the auxiliary's data are drawn from them."""
    max_candidates: int = 100_000
    """Own samples at most; where rejection would need more, the auxiliary gets fewer."""
    samples: int = 20_000
    """Own samples that the auxiliary is trained on, where rejection leaves so many."""
    min_samples: int = 2_000
    """Fewest of them: a plan that leaves fewer is changed (proportions nearer to the base's, at a higher w)."""
    images: int = 512_000
    """Its training length, in images seen."""
    refine: int = 128_000
    """Training length of each further round, in images seen: it goes on from the last round's weights."""
    refine_lr: float = 0.3
    """Learning rate of further rounds, as a share of train.lr."""
    train: TrainOptions = field(default_factory=lambda: TrainOptions(decay="cosine", ema_rampup=0.5))
    """Its training. The learning rate falls to zero: a constant one leaves noise that moves every proportion."""

    @property
    def most(self) -> int:
        """Own samples that there can be: whole pools of ``candidates``."""
        return self.candidates * (self.max_candidates // self.candidates)

    def __post_init__(self) -> None:
        if not 2 <= self.min_samples <= self.samples:
            raise UserError(
                f"auxiliary.min_samples is {self.min_samples} and auxiliary.samples {self.samples}: "
                "2 <= min_samples <= samples is needed"
            )
        check_drawn("auxiliary.max_candidates", self.max_candidates)
        if not self.min_samples <= self.candidates <= self.max_candidates:
            raise UserError(
                f"auxiliary.candidates is {self.candidates} and auxiliary.max_candidates {self.max_candidates}: "
                f"auxiliary.min_samples ({self.min_samples}) <= candidates <= max_candidates is needed"
            )
        for name in ("images", "refine"):
            if getattr(self, name) < 1:
                raise UserError(f"auxiliary.{name} is {getattr(self, name)}: at least 1 is needed")
        if not 0 < self.refine_lr <= 1:
            raise UserError(f"auxiliary.refine_lr is {self.refine_lr}: it is a share, above 0 and at most 1")


@dataclass(frozen=True)
class SolverOptions:
    """How strength and proportions are chosen and corrected."""

    rounds: int = 8
    """Rounds at most: an auxiliary is trained, and then trained on, each time corrected by what its samples show."""
    samples: int = 10_000
    """Samples that a round is measured with (selection seeds)."""
    w: float = 2.0
    """Strength to begin with; it is raised where the auxiliary's proportions alone do not suffice."""
    max_w: float = 4.0
    """Highest strength: beyond some strength the samples become worse."""
    gain: float = 0.67
    """Expected gain in log-odds, as a share of w (log pi_r - log pi_s); every round measures it anew."""
    damping: float = 0.8
    """Share of the remaining difference in log-odds that a round corrects."""
    deepest: float = 2.0
    """Farthest that a value's share is lowered in the auxiliary's data, in nats (2 = to a seventh); then w rises."""
    strengths: int = 3
    """Strengths at which the first round's auxiliary is measured; only sampling is spent on it."""
    level: float = 0.95
    """Confidence that the target lies within the intervals of all values at once."""

    def __post_init__(self) -> None:
        for name in ("rounds", "strengths"):
            if getattr(self, name) < 1:
                raise UserError(f"solver.{name} is {getattr(self, name)}: at least 1 is needed")
        if self.samples < 20:
            raise UserError(f"solver.samples is {self.samples}: at least 20 are needed to measure proportions")
        check_drawn("solver.samples", self.samples)
        if not 0 < self.w <= self.max_w < math.inf:
            raise UserError(f"solver.w is {self.w} and solver.max_w {self.max_w}: 0 < w <= max_w is needed")
        for name, low, high in (("gain", 0.05, 2.0), ("damping", 0.05, 1.0), ("deepest", 0.1, 20.0)):
            if not low <= getattr(self, name) <= high:
                raise UserError(f"solver.{name} is {getattr(self, name)}: it lies between {low} and {high}")
        if not 0.5 <= self.level < 1:
            raise UserError(f"solver.level is {self.level}: a confidence lies between 0.5 and 1, such as 0.95")


@dataclass(frozen=True)
class BaselineOptions:
    """What the steered model is compared with, at the same seeds."""

    methods: tuple[str, ...] = BASELINES
    """rejection (of the base's samples), classifier (guidance by its gradient), fine-tuning (on own samples in the target's proportions); empty: none."""  # noqa: E501
    scales: tuple[float, ...] = (1.0, 3.0, 10.0, 30.0)
    """Scales of classifier guidance to choose from, by total variation on the selection seeds."""
    limit: int = 200_000
    """Samples of the base that rejection draws at most; it then delivers fewer."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in BASELINES:
                raise UserError(f"unknown baseline {name!r}{nearest(name, BASELINES)}")
        if not self.scales or any(not (math.isfinite(scale) and scale > 0) for scale in self.scales):
            raise UserError(f"baselines.scales are {list(self.scales)}: give positive numbers, at least one")
        if self.limit < 100:
            raise UserError(f"baselines.limit is {self.limit}: at least 100 samples are needed")


@in_order(
    "run dry_run target attributes labels classifier judge members min_accuracy imbalance data model weights code "
    "download seed batch_size network base sampler auxiliary solver guidance distilled baselines evaluation"
)
@dataclass(frozen=True)
class ShiftOptions(HubOptions, CommonOptions):
    """Move the proportions that a model generates to a target, without new real data or retraining the base.

    With --imbalance 0=0.02 and nothing else: trains a small unconditional model on the bundled digits, of which zeros
    are cut to 2 %, and moves its classes to equal shares. Run the same command again to continue after an interruption.
    """

    run: Path = Path("runs/shift")
    dry_run: bool = False
    """Only say what the job would cost (images, evaluations, disk, memory, time); nothing is run or written."""
    target: str = "uniform"
    """Wanted proportions: uniform; VALUE=SHARE,VALUE=SHARE,... ("*" = all others, in equal parts); a TOML or JSON file with a table "target"; or like:DATA, those of another labelled data set."""  # noqa: E501
    attributes: tuple[str, ...] = ("class",)
    """What the proportions are of: class; NAME:VALUE=CLASS+CLASS/VALUE=CLASS+... made of classes, such as parity:even=0+2/odd=1+3; or the name of a column of --labels. Several are taken jointly (values "even,loop")."""  # noqa: E501
    labels: Path | None = None
    """Label file (CSV or JSON) with a row for each image of the data, in the order of their names, empty where unknown: where the data itself has no labels, or other ones."""  # noqa: E501
    classifier: tuple[str, ...] = ()
    """What steers: torchscript:FILE, MODULE:FUNCTION or FILE.py:FUNCTION, one for each attribute; otherwise a small classifier is trained on the labels."""  # noqa: E501
    judge: tuple[str, ...] = ()
    """What measures the final proportions, given like --classifier; it must not steer."""
    members: int = 4
    """Networks that each classifier trained here is the mean of."""
    min_accuracy: float = 0.0
    """Least share of held-out images that a classifier must get right (mean over values)."""
    imbalance: str = ""
    """Plant an imbalance: cut these classes of the base's training data to a share of it, such as 0=0.02. References keep all."""  # noqa: E501
    model: Path | None = None
    """A trained model to steer: a model directory, a folder of diffusers, its name on the Hugging Face hub (owner/name), a .pkl of EDM or EDM2, or my_model.py:make, a file and a function of yours (its code is run). Otherwise a base is trained first."""  # noqa: E501
    weights: Path | None = None
    """Weights for the network that my_model.py:make makes (safetensors, .pt, .pth, .ckpt; nothing in it is run)."""
    code: str | None = None
    """my_model.py:make, the code that a model directory needs (it is run)."""
    base: BaseOptions = field(default_factory=lambda: BaseOptions(snapshots=()))
    auxiliary: SteeringOptions = field(default_factory=SteeringOptions)
    solver: SolverOptions = field(default_factory=SolverOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    distilled: DistilledOptions = field(default_factory=lambda: DistilledOptions(images=128_000))
    """The steered model in one network; distilled.samples = 0 leaves it out."""
    baselines: BaselineOptions = field(default_factory=BaselineOptions)
    evaluation: EvaluationOptions = field(default_factory=lambda: EvaluationOptions(draws=2, samples=5_000))

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("members")
        if self.distilled.images < 1:
            raise UserError(f"distilled.images is {self.distilled.images}: at least 1 is needed")
        if self.distilled.samples == 1:
            raise UserError("distilled.samples is 1: a network is distilled from at least 2, or from none (0)")
        if self.data.path == "none":
            raise UserError("proportions are measured against labelled real data: give data.path")
        if not self.attributes or len({*self.attributes}) != len(self.attributes):
            raise UserError(f"attributes are {list(self.attributes)}: name at least one, each once")
        if not 0 <= self.min_accuracy < 1:
            raise UserError(f"min_accuracy is {self.min_accuracy}: it is a share, at least 0 and below 1")
        for name in ("classifier", "judge"):
            given = getattr(self, name)
            if given and len(given) != len(self.attributes):
                raise UserError(
                    f"{len(given)} of {name} for {len(self.attributes)} attributes: give one for each, or none"
                )
        if self.classifier and {*self.classifier} & {*self.judge}:
            raise UserError("the judge also steers: give judge another classifier, or none (one is trained then)")
        if self.imbalance and self.model is not None:
            raise UserError(
                "an imbalance is planted in the data that a base is trained on: leave model or imbalance out"
            )
