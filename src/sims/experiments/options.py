"""Options that all experiments share, and those of the main job; every docstring is its ``--help``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from sims.config import LATER, left_open, nearest
from sims.data.pictures import SourceOptions
from sims.errors import UserError
from sims.experiments.improve.search import SearchOptions
from sims.interop.hub_models import HubOptions
from sims.interop.text_pipelines import is_text_pipeline
from sims.interop.text_to_image import TextOptions
from sims.methods import (
    HEIR,
    LEADER,
    LENGTH,
    METHODS,
    AuxiliarySettings,
    Continuous,
    DistilledOptions,
    default_methods,
    listed,
    named,
)
from sims.networks.options import NetworkOptions
from sims.networks.usual import usual
from sims.runs.tracking import check_trackers
from sims.sampling import SamplerOptions
from sims.scoring.options import EvaluationOptions
from sims.seeds import check_drawn, check_seed
from sims.training.trainer import TrainOptions

T = TypeVar("T")


@dataclass(frozen=True)
class DataOptions:
    """Real data: for training a base, as reference, and for the controls."""

    path: str = "digits"
    """digits, a folder of images, a zip, parquet, npz, or none (no real data at all: needs --model)."""
    test: str | None = None
    """Held-out data; otherwise the source's own test part, or a share of the source."""
    test_fraction: float = 0.1
    """Share held out where the source has no test part."""
    conditional: bool = False
    """Train a class-conditional base (the data needs labels)."""
    source: SourceOptions = field(default_factory=SourceOptions)
    limit: int | None = None
    """At most this many training images."""
    shape: tuple[int, ...] | None = None
    """Channels, height and width that the data must have; what --dry-run goes by where the data is not at hand."""
    classes: int | None = None
    """Number of classes that --dry-run goes by where the data is not at hand."""

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) != 3 or min(self.shape) < 1):
            raise UserError(f"data.shape is {list(self.shape)}: give channels, height and width, such as 3,32,32")
        if self.classes is not None and self.classes < 1:
            raise UserError(f"data.classes is {self.classes}: give at least 1, or leave it out")
        if not 0 < self.test_fraction < 1:
            raise UserError(f"data.test_fraction is {self.test_fraction}: a share lies between 0 and 1, such as 0.1")


@dataclass(frozen=True)
class BaseOptions:
    """Training of the base model, where none is given."""

    images: int | None = None
    """Training length in images, fixed beforehand, never chosen by the result; by the data and the machine if not given."""  # noqa: E501
    snapshots: tuple[float, ...] = (0.125, 0.25)
    """Earlier snapshots kept for autoguidance, as shares of the length."""
    train: TrainOptions = field(default_factory=TrainOptions)

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 1:
            raise UserError(f"base.images is {self.images}: at least 1 is needed")
        if any(not 0 < share < 1 for share in self.snapshots):
            raise UserError(f"base.snapshots is {list(self.snapshots)}: shares of the length lie between 0 and 1")

    def length(self, data_shape: Sequence[int], latent: bool = False, count: int | None = None) -> int:
        """Images that a training sees: as many as were asked for, else what is usual for so many pictures here."""
        return self.images or usual(data_shape, latent).length(count)


@dataclass(frozen=True)
class GuidanceOptions:
    """How the improved model is guided."""

    sigma_low: float = 0.0
    """Guide only above this noise level."""
    sigma_high: float = float("inf")
    """Guide only up to this noise level."""
    cache_cost: float = 1.25
    """Sampling cost of the cached improved model, in units of the base's; 0: no caching, no other samplers."""
    pilot: int = left_open(256)
    """Samples of the pilot that decides where the correction is recomputed."""

    def __post_init__(self) -> None:
        if not 0 <= self.sigma_low < self.sigma_high:
            raise UserError(
                f"guidance.sigma_low is {self.sigma_low} and guidance.sigma_high {self.sigma_high}: "
                "0 <= low < high is needed"
            )
        if self.cache_cost and not 1 < self.cache_cost <= 2:
            raise UserError(
                f"guidance.cache_cost is {self.cache_cost}: it lies above 1 (the base) and at most at 2, or is 0"
            )
        if self.pilot < 2:
            raise UserError(f"guidance.pilot is {self.pilot}: at least 2 samples are needed")
        check_drawn("guidance.pilot", self.pilot)


def in_order(names: str) -> Callable[[type[T]], type[T]]:
    """Options are listed in this order, the others behind them: inherited ones would otherwise all come first."""

    def arranged(kind: type[T]) -> type[T]:
        fields = kind.__dataclass_fields__  # type: ignore[attr-defined]
        order = dict.fromkeys([*names.split(), *fields])
        kind.__dataclass_fields__ = {name: fields[name] for name in order}  # type: ignore[attr-defined]
        return kind

    return arranged


@dataclass(frozen=True)
class CommonOptions:
    """What all experiments share: the run directory, real data, a base and how it is trained, sampled and judged."""

    run: Path = Path("runs/experiment")
    """Directory of the run: everything is kept here."""
    data: DataOptions = field(default_factory=DataOptions)
    seed: int = 0
    """Seed of everything: networks, training, samples."""
    batch_size: int = left_open(500)
    """Samples computed at once."""
    network: NetworkOptions = field(default_factory=NetworkOptions)
    base: BaseOptions = field(default_factory=BaseOptions)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    """Of the base and all that follows; left at its defaults, a given model keeps its own."""
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    track: tuple[str, ...] = ()
    """Trackers that follow the run: tensorboard, wandb, trackio (losses, speeds, search, scores, samples)."""

    def __post_init__(self) -> None:
        self.check_counts("batch_size")
        check_seed(self.seed)
        check_trackers(self.track)

    def check_counts(self, *names: str) -> None:
        """UserError for the first of these options that is below 1."""
        for name in names:
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: at least 1 is needed")


@in_order(
    "run dry_run data model weights code download vae prompts text reference trusted methods rounds keep_going "
    "max_cost seed batch_size fit_memory network base sampler auxiliary search guidance distilled evaluation"
)
@dataclass(frozen=True)
class ImproveOptions(HubOptions, CommonOptions):
    """Make a diffusion model better with nothing but its own samples, and measure by how much.

    With no arguments: trains a small model on the bundled digits, improves it, and reports. Run the same command
    again to continue after an interruption.
    """

    run: Path = Path("runs/digits")
    dry_run: bool = False
    """Only say what the job would cost (images, evaluations, disk, memory, time); nothing is run or written."""
    model: Path | None = None
    """A trained model to improve: a model directory, a folder of diffusers, its name on the Hugging Face hub (owner/name), a .pkl of EDM or EDM2, or my_model.py:make, a file and a function of yours (its code is run). Otherwise a base is trained first."""  # noqa: E501
    weights: Path | None = None
    """Weights for the network that my_model.py:make makes (safetensors, .pt, .pth, .ckpt; nothing in it is run)."""
    code: str | None = None
    """my_model.py:make, the code that a model directory needs (it is run)."""
    vae: Path | None = None
    """Folder of the autoencoder (AutoencoderKL of diffusers) of a latent model: pictures are encoded with it, and samples decoded to measure and show them."""  # noqa: E501
    prompts: Path | None = None
    """Prompts of a text-to-image model, one a line; the captions of the data if not given."""
    reference: Path | None = None
    """Statistics of real data (the `references` folder of a run) to choose by, where the data itself is not at hand."""
    trusted: Path | None = None
    """Images that are known to be real (a hundred do), where synthetic ones may be among the training data: they choose w."""  # noqa: E501
    methods: tuple[str, ...] = field(default_factory=default_methods)
    """Methods and controls to run, in the order of the table; also `free` (all that need no training, and the base), `default` and `all`."""  # noqa: E501
    rounds: int = 1
    """Rounds of improvement: the distilled model becomes the next round's base."""
    keep_going: bool = False
    """Run all rounds, also after one that is not accepted (the improved model stays the last accepted one)."""
    max_cost: float = 1.25
    """What a sample of the improved model may cost, in units of the base's evaluations: the best of the table within it is saved as `improved`, whatever its name (inf: at any cost)."""  # noqa: E501
    fit_memory: bool = False
    """Lower batch_size, and split training batches (accumulate), until a short pilot says that memory suffices; the run keeps what was chosen."""  # noqa: E501
    text: TextOptions = field(default=TextOptions(), metadata=LATER)
    auxiliary: AuxiliarySettings = field(default_factory=AuxiliarySettings)
    search: SearchOptions = field(default_factory=SearchOptions)
    guidance: GuidanceOptions = field(default_factory=GuidanceOptions)
    distilled: DistilledOptions = field(default_factory=DistilledOptions)

    def settled(self, data_shape: Sequence[int], latent: bool = False) -> ImproveOptions:
        """With what follows from the length of the base's training, where it was left open."""
        images = LENGTH if self.model is not None else self.base.length(data_shape, latent)
        auxiliary, distilled = self.auxiliary.settled(images), self.distilled.settled(images)
        return replace(self, auxiliary=auxiliary, distilled=distilled)

    @staticmethod
    def more_help() -> str:
        """What --help says beyond the options: every method."""
        return listed()

    @property
    def is_text(self) -> bool:
        """Whether the model to improve draws pictures of texts."""
        return self.model is not None and is_text_pipeline(self.model)

    @property
    def is_judged(self) -> bool:
        """Whether there is anything to judge by."""
        return self.data.path != "none" or self.reference is not None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_counts("rounds")
        if not self.max_cost > 0:
            raise UserError(f"max_cost is {self.max_cost}: give a positive number, such as 1 (the base's evaluations)")
        object.__setattr__(self, "methods", named(self.methods))
        if not self.methods:
            raise UserError("methods is empty: name some, such as base,sims, or default")
        for name in self.methods:
            if name not in METHODS:
                raise UserError(f"unknown method {name!r}{nearest(name, METHODS)}")
            strengths, w = METHODS[name].strengths, self.search.w
            if isinstance(strengths, Continuous) and w is not None and w <= strengths.above:
                raise UserError(
                    f"search.w is {w:g}, and method {name!r} takes strengths above {strengths.above:g}: give a larger "
                    "one, or leave the method out of option 'methods'"
                )
            if METHODS[name].follows_leader and LEADER.name not in self.methods:
                raise UserError(f"method {name!r} follows from {LEADER.name!r}: name both, or neither")
        if self.rounds > 1 and HEIR.name not in self.methods:
            raise UserError(f"more than one round needs the method {HEIR.name!r}: its model is the next round's base")
        if self.auxiliary.budgets and self.search.budget not in (None, *self.auxiliary.budgets):
            known = ", ".join(map(str, sorted(self.auxiliary.budgets)))
            raise UserError(f"search.budget {self.search.budget} is none of the auxiliary's budgets: {known}")
        if self.auxiliary.init == "snapshot" and (self.model or self.rounds > 1 or not self.base.snapshots):
            raise UserError(
                "auxiliary.init = 'snapshot' needs base.snapshots of a base trained here, in every round: "
                "use base or scratch"
            )
        if self.trusted is not None and (self.data.path == "none" or self.search.w is not None):
            other = "a fixed search.w" if self.search.w is not None else "data.path none"
            raise UserError(
                f"trusted images choose a strength for models of the data: leave out option 'trusted', or {other}"
            )
        if self.prompts is not None and not self.is_text and (self.model is None or self.model.exists()):
            raise UserError(
                f"prompts {self.prompts} are for a text-to-image model of diffusers: give its folder with option "
                "'model', or leave them out"
            )
        if self.data.path == "none" and self.model is None:
            raise UserError("without real data (data.path none) a trained model is needed: give option 'model'")
