"""What a job would cost, before it runs: images, network evaluations, disk, memory and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.bounds import cheapest_bound, search_bound
from sims.experiments.options import ImproveOptions
from sims.experiments.probe import Cost, free_memory, probe
from sims.guidance import Extrapolate
from sims.methods import METHODS, Continuous
from sims.model import Model, make_network
from sims.preconditioning import Preconditioned
from sims.sampling import SamplerOptions, nfe
from sims.training.augment import augment_dim
from sims.training.loop import TrainOptions

GUIDED = ("sims", "placebo", "autoguidance")  # two networks at every evaluation
SHARED = ("sims", "neon", "self-trained")  # of one auxiliary
FEATURES = {"inception": 2048, "dinov2": 1024, "clip": 512, "efficientnet-lite0": 1280}  # others: about 64
AVERAGES = 32  # stored power-function averages of a run, unless ema_every says otherwise


@dataclass(frozen=True)
class Known:
    """What is known of the data: the shape of an image, the classes, bytes of a value, and how it is known."""

    shape: tuple[int, ...]
    classes: int
    itemsize: int
    source: str


@dataclass(frozen=True)
class Sampling:
    """The base as it is sampled, and the evaluations of a sample: its own, and with guidance."""

    denoiser: Any
    options: SamplerOptions
    nfe: int
    guided: int


@dataclass(frozen=True)
class Work:
    """A stage: training images, network evaluations, optimizer steps; ``bound`` = at most so much."""

    stage: str
    images: int = 0
    evaluations: int = 0
    steps: int = 0
    bound: bool = False


@dataclass(frozen=True)
class Estimate:
    """All that ``--dry-run`` prints; bytes and seconds."""

    data: Known
    network: str
    parameters: int
    sampler: str
    nfe: int
    guided_nfe: int
    work: list[Work]
    disk: list[tuple[str, int]]
    memory: list[tuple[str, int]]
    cost: Cost
    device: str
    free: int
    processes: int
    notes: list[str] = field(default_factory=list)

    def seconds(self, work: Work) -> float:
        """Time of a stage on this device."""
        cost = self.cost
        spent = work.images * cost.train + work.evaluations * cost.evaluation
        return spent / self.processes + work.steps * cost.update

    @property
    def total(self) -> float:
        return sum(self.seconds(work) for work in self.work)

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the seconds of each stage."""
        work = [{**asdict(entry), "seconds": self.seconds(entry)} for entry in self.work]
        return {**asdict(self), "work": work, "seconds": self.total}

    def text(self) -> str:
        """The table that ``--dry-run`` prints."""
        return "\n".join(_lines(self))


def estimate(options: ImproveOptions, model: Model | None, device: torch.device, processes: int = 1) -> Estimate:
    """What the job of ``options`` would cost on this device; ``model`` is the one to improve, where one is given.

    Measures the real network for half a minute at most; writes nothing. UserError where neither the data nor its
    shape is known.
    """
    known = _known(options, model)
    train = options.base.train if model is None else options.auxiliary.train
    denoiser: Any = model.denoiser if model is not None else _network(options, known, "meta")
    sampler = options.sampler if model is None else model.sampler
    sampling = Sampling(denoiser, sampler, nfe(denoiser, sampler), nfe(_guided(options, denoiser), sampler))
    parameters = sum(p.numel() for p in denoiser.parameters())
    weights = sum(p.numel() * p.element_size() for p in denoiser.parameters())
    work = _work(options, sampling)
    real: Any = model.denoiser if model is not None else _network(options, known, device)
    share = _share(train, processes)
    cost = probe(real, train, share, options.batch_size, device)
    name = options.network.type if model is None else type(getattr(denoiser, "network", denoiser)).__name__
    return Estimate(
        known,
        name,
        parameters,
        f"{sampler.solver}, {sampler.steps} steps",
        sampling.nfe,
        sampling.guided,
        work,
        _disk(options, known, weights, work),
        _memory(options, weights, cost, processes),
        cost,
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        free_memory(device),
        processes,
        _notes(options, known, cost, share),
    )


# -- data and network --------------------------------------------------------------------------------------------------


def _known(options: ImproveOptions, model: Model | None) -> Known:
    data = options.data
    if model is not None:
        return Known(model.data_shape, model.num_classes, _itemsize(model.codec.dtype), f"of the model {options.model}")
    try:
        found = load(data.path, options=data.source, limit=2)
    except UserError as error:
        if not str(error).startswith("no data at"):
            raise
        if data.shape is None:
            raise UserError(
                f"{error}; without the data --dry-run needs its shape: give --data.shape, such as 3,32,32"
            ) from None
        if data.conditional and data.classes is None:
            raise UserError(
                f"{error}; without the data --dry-run needs its number of classes: give --data.classes, such as 10"
            ) from None
        size = 1 if data.shape[0] in (1, 3) else 4  # pixels, or latents
        classes = (data.classes or 0) if data.conditional else 0
        return Known(data.shape, classes, size, f"stated; no data at {data.path}")
    if len(found.data_shape) != 3:
        raise UserError(f"{data.path} holds points of shape {found.data_shape}, not images (C, H, W): give images")
    if data.conditional and found.labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    classes = found.num_classes if data.conditional else 0
    return Known(found.data_shape, classes, _itemsize(found.codec.dtype), f"read from {data.path}")


def _itemsize(dtype: str) -> int:
    return np.dtype(dtype).itemsize


def _network(options: ImproveOptions, known: Known, device: torch.device | str) -> Preconditioned:
    """The base that would be trained; on the device ``meta`` without weights."""
    train = options.base.train
    width = augment_dim(train.augment_transforms) if train.augment else 0
    tables = options.network.tables(options.network.sigma_data or 0.5, width)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return make_network(known.shape, known.classes, *tables)


def _guided(options: ImproveOptions, denoiser: Any) -> Extrapolate:
    limits = (options.guidance.sigma_low, options.guidance.sigma_high)
    return Extrapolate(denoiser, denoiser, 1.0, limits)


def _share(train: TrainOptions, processes: int) -> int:
    """Images that a process holds at once in training."""
    return max(1, train.batch // processes // train.accumulate)


# -- work --------------------------------------------------------------------------------------------------------------


def methods_of(options: ImproveOptions) -> list[str]:
    """The methods that this job can run: without real data, or snapshots of the base, some are left out."""
    real = options.data.path != "none"
    snapshots = options.model is None and bool(options.base.snapshots)
    possible = [name for name in options.methods if real or not METHODS[name].needs_real]
    return [name for name in possible if name != "autoguidance" or snapshots]


def _work(options: ImproveOptions, sampling: Sampling) -> list[Work]:
    work = []
    if options.model is None:
        work.append(_training("train the base", options.base.images, options.base.train))
    for round_ in range(options.rounds):
        methods = methods_of(options)
        if round_:
            methods = [name for name in methods if name in ("base", "sims", "distilled")]
        mark = f" (round {round_ + 1})" if options.rounds > 1 else ""
        work += _round(options, methods, sampling, mark)
    return work


def _training(stage: str, images: int, train: TrainOptions, evaluations: int = 0, bound: bool = False) -> Work:
    return Work(stage, images, evaluations, math.ceil(images / train.batch), bound)


def _round(options: ImproveOptions, methods: Sequence[str], sampling: Sampling, mark: str) -> list[Work]:
    """One round: preparation of every method, search, and evaluation."""
    auxiliary, longest = options.auxiliary, max(options.auxiliary.budgets)
    judged = options.data.path != "none" or options.reference is not None
    work = []
    if set(methods) & set(SHARED):
        work.append(Work(f"synthesize{mark}", evaluations=auxiliary.samples * sampling.nfe))
        work.append(_training(f"train the auxiliary{mark}", longest, auxiliary.train))
    if "placebo" in methods:
        work.append(_training(f"train the placebo{mark}", longest, auxiliary.train))
    searches: dict[str, int] = {}
    for name in methods if judged else ():
        strengths = METHODS[name].strengths
        if isinstance(strengths, Continuous):
            cost = sampling.guided if name in GUIDED else sampling.nfe
            searches[name] = search_bound(options.search, _budgets(options, name), strengths.start) * cost
            work.append(Work(f"search {name}{mark}", evaluations=searches[name], bound=True))
    if "continued" in methods:
        spent = auxiliary.samples * sampling.nfe + searches.get("sims", 0)
        work.append(_training(f"continue the base{mark}", longest + spent // 3, options.base.train, bound=True))
    if "distilled" in methods:
        own = options.distilled
        cost = own.samples * sampling.guided + 2 * own.images
        work.append(_training(f"distil{mark}", own.images, own.train, cost))
    if judged:
        work += _judging(options, methods, sampling, mark)
    return work


def _judging(options: ImproveOptions, methods: Sequence[str], sampling: Sampling, mark: str) -> list[Work]:
    """The cheapest sampler, and the draws of every row of the table."""
    cached = "sims" in methods and bool(options.guidance.cache_cost)
    work, selection = [], max(options.search.rungs)
    if "sims" in methods:
        after = sampling.nfe if "distilled" in methods else sampling.guided
        cost = selection * (sampling.nfe + after)
        if cached:
            cost += (selection + options.guidance.pilot) * sampling.guided
            if not mark or mark.endswith(" 1)"):
                cost += selection * cheapest_bound(sampling.denoiser, sampling.options)
        work.append(Work(f"choose the sampler{mark}", evaluations=cost, bound=True))
    judged = options.evaluation.draws * options.evaluation.samples
    rows = sum(sampling.guided if name in GUIDED else sampling.nfe for name in methods)
    rows += 2 * sampling.guided if cached else 0
    work.append(Work(f"evaluate{mark}", evaluations=judged * rows, bound=cached))
    return work


def _budgets(options: ImproveOptions, name: str) -> int:
    """How many budgets a search chooses from."""
    if name == "placebo":  # it takes what sims chose
        return 1
    if name == "autoguidance":
        return len({*options.base.snapshots})
    return 1 if options.search.budget is not None else len({*options.auxiliary.budgets})


# -- disk and memory ---------------------------------------------------------------------------------------------------


def _averages(train: TrainOptions) -> int:
    return len(train.ema_rel) if train.ema == "power" else 1


def _folder(train: TrainOptions, images: int, snapshots: int, weights: int) -> int:
    """Bytes of a training folder: snapshots, state to resume from, stored averages."""
    stored = 0
    if train.ema == "power":
        every = train.ema_every or max(1, images // AVERAGES)
        stored = min(math.ceil(images / train.batch), images // every + 1)
    return (snapshots + 3 + _averages(train) + stored * _averages(train)) * weights


def _disk(options: ImproveOptions, known: Known, weights: int, work: Sequence[Work]) -> list[tuple[str, int]]:
    methods, aux = methods_of(options), options.auxiliary
    image = math.prod(known.shape) * known.itemsize
    rounds, longest = options.rounds, max(aux.budgets)
    budgets = len({*aux.budgets})
    parts = []
    if options.model is None:
        base = options.base
        parts.append(("base", _folder(base.train, base.images, len({*base.snapshots}) + 1, weights)))
    trained = _folder(aux.train, longest, budgets, weights)
    if set(methods) & set(SHARED):
        parts.append(("own samples, before compression", rounds * aux.samples * image))
        parts.append(("auxiliary", rounds * trained))
    if "placebo" in methods:
        parts.append(("placebo", trained))
    if "continued" in methods:
        images = next(entry.images for entry in work if entry.stage.startswith("continue"))
        parts.append(("continued", _folder(options.base.train, images, 1, weights)))
    if "distilled" in methods:
        own = options.distilled
        parts.append(("guided samples, before compression", rounds * own.samples * image))
        parts.append(("distilled", rounds * _folder(own.train, own.images, 1, weights)))
    parts.append(("results", (2 if "sims" in methods else 0) * weights + ("distilled" in methods) * weights))
    features = 4 * FEATURES.get(options.evaluation.extractor.partition(":")[0], 64)
    parts.append(("features of samples", features * _judged_samples(options, methods)))
    return [(name, size) for name, size in parts if size]


def _judged_samples(options: ImproveOptions, methods: Sequence[str]) -> int:
    """Samples whose features are kept, at most: searches and draws."""
    if options.data.path == "none" and options.reference is None:
        return 0
    count = 0
    for name in methods:
        strengths = METHODS[name].strengths
        if isinstance(strengths, Continuous):
            count += search_bound(options.search, _budgets(options, name), strengths.start)
    return options.rounds * (count + (len(methods) + 2) * options.evaluation.draws * options.evaluation.samples)


def _memory(options: ImproveOptions, weights: int, cost: Cost, processes: int) -> list[tuple[str, int]]:
    """Peak of every training: weights, gradients, two moments of Adam, averages; activations; networks beside."""

    def peak(train: TrainOptions, beside: int) -> int:
        activations = cost.activations_fixed + _share(train, processes) * cost.activations
        # The start of a run is kept beside the network that is trained; so is what a student learns from.
        return int((4 + _averages(train) + beside) * weights + activations)

    parts = []
    methods = methods_of(options)
    if options.model is None:
        parts.append(("train the base", peak(options.base.train, 0)))
    if {*methods} & {*SHARED, "placebo"}:
        parts.append(("train the auxiliary", peak(options.auxiliary.train, 1)))
    if "distilled" in methods:
        parts.append(("distil", peak(options.distilled.train, 2)))
    return parts


def _notes(options: ImproveOptions, known: Known, cost: Cost, share: int) -> list[str]:
    notes = []
    if cost.train_batch < share:
        notes.append(f"timed at {cost.train_batch} of the {share} images of a step: larger batches are often faster")
    if cost.evaluation_batch < options.batch_size:
        notes.append(f"sampling was timed at {cost.evaluation_batch} of {options.batch_size} samples at once")
    if cost.update == 0:
        notes.append("there is no memory for Adam's moments here: its time is left out")
    kind = options.evaluation.extractor.partition(":")[0]
    if kind in FEATURES and known.shape[0] not in (1, 3):
        notes.append(
            f"{kind} sees pictures and the data has {known.shape[0]} channels: "
            "the job would stop at its references; use --evaluation.extractor pca"
        )
    notes.append("reading data, extracting features and training classifiers are not counted")
    return notes


# -- text --------------------------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} s"


def size(count: float) -> str:
    """Bytes in the unit that suits them."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def _lines(found: Estimate) -> list[str]:
    shape = "x".join(map(str, found.data.shape))
    classes = f"{found.data.classes} classes" if found.data.classes else "no classes"
    cost = found.cost
    lines = [
        "dry run: nothing was run or written",
        f"data      {shape}, {classes} ({found.data.source})",
        f"network   {found.network}, {found.parameters / 1e6:,.1f} M parameters",
        f"sampler   {found.sampler}: {found.nfe} evaluations a sample, {found.guided_nfe} guided",
        f"device    {found.processes} x {found.device}, {size(found.free)} of memory free",
        f"measured  {1e3 * cost.train:.3g} ms to train on an image ({cost.train_batch} at once), "
        f"{1e3 * cost.update:.3g} ms to update, {1e3 * cost.evaluation:.3g} ms an evaluation "
        f"({cost.evaluation_batch} at once)",
        "",
        f"{'stage':<34}{'training images':>18}{'evaluations':>20}{'time':>14}",
    ]
    for work in found.work:
        stage = f"{work.stage}{' (at most)' if work.bound else ''}"
        images, evaluations = (f"{count:,}" if count else "-" for count in (work.images, work.evaluations))
        lines.append(f"{stage:<34}{images:>18}{evaluations:>20}{duration(found.seconds(work)):>14}")
    images, evaluations = (sum(getattr(work, name) for work in found.work) for name in ("images", "evaluations"))
    lines.append(f"{'total':<34}{images:>18,}{evaluations:>20,}{duration(found.total):>14}")
    lines += ["", f"{'disk':<52}{'at most':>14}"]
    lines += [f"  {name:<50}{size(count):>14}" for name, count in found.disk]
    lines.append(f"{'total':<52}{size(sum(count for _, count in found.disk)):>14}")
    lines += ["", f"{'memory of one process':<52}{'peak':>14}"]
    lines += [f"  {name:<50}{size(count):>14}{_fits(count, found.free)}" for name, count in found.memory]
    return [*lines, "", *(f"note: {note}" for note in found.notes)]


def _fits(needed: int, free: int) -> str:
    return "" if needed < free else "  more than is free: raise accumulate, or lower the batch"
