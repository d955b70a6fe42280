"""What a job would cost, before it runs: images, network evaluations, disk, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, cast

import torch

from sims.errors import UserError
from sims.experiments.cost.described import Known, known_data, pictures, stand_in
from sims.experiments.cost.disk import disk_of
from sims.experiments.cost.judge_rates import JudgeCost, probe_judge
from sims.experiments.cost.memory import free_memory, resident
from sims.experiments.cost.rates import Cost, Training, probe, share_of
from sims.experiments.cost.table import lines
from sims.experiments.cost.work import is_judged, methods_of, work_of
from sims.experiments.options import ImproveOptions
from sims.guidance import Extrapolate
from sims.metrics.pretrained import NAMES
from sims.model import Model, make_network
from sims.preconditioning import Preconditioned
from sims.processes import rank
from sims.runs.work import Sampling, Work
from sims.sampling import nfe
from sims.scoring.fitting import FIT_VALUES
from sims.training.augment import augment_dim

STARTED = time.process_time()  # seconds that the imports took, mostly
HELD_OUT = 16_384  # held-out images whose nearest neighbours are sought at once
REPORT = 2.0  # seconds of the report, about the same for all jobs: figures of matplotlib


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
    judge: JudgeCost
    device: str
    free: int
    processes: int
    share: int
    batch_size: int
    notes: list[str] = field(default_factory=list)

    def seconds(self, work: Work) -> float:
        """Time of a stage on this device."""
        spent = work.evaluations * self.cost.evaluation.image + work.samples * self.cost.sample
        if work.training:
            rate = self.cost.train[work.training.name]
            spent += work.images * rate.image + work.steps * rate.step * self.processes
        judge = self.judge
        spent += work.searched * judge.features + work.measured * judge.measured + work.draws * judge.scores
        return spent / self.processes + work.cells * judge.cell + work.seconds

    @property
    def total(self) -> float:
        return sum(self.seconds(work) for work in self.work)

    @property
    def peak(self) -> int:
        """Bytes of one process, at most."""
        return max((count for _, count in self.memory), default=0)

    def text(self) -> str:
        """The table that ``--dry-run`` prints."""
        return "\n".join(lines(self))

    def told(self, quiet: bool) -> dict[str, Any]:
        """Plain values; the main process also prints the table."""
        if rank() == 0 and not quiet:
            print(self.text())
        return self.to_json()

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the seconds of each stage."""
        work = [{**asdict(entry), "seconds": self.seconds(entry)} for entry in self.work]
        plain = asdict(replace(self, data=replace(self.data, pictures=[])))
        return {**plain, "work": work, "seconds": self.total, "peak": self.peak}


@dataclass(frozen=True)
class Pilot:
    """What was learned of a job without running it: the network as it is sampled, and what its work costs."""

    sampling: Sampling
    cost: Cost
    weights: int


def estimate(
    options: ImproveOptions,
    model: Model | None,
    device: torch.device,
    processes: int = 1,
    *,
    plan: Callable[[ImproveOptions, Sampling], list[Work]] = work_of,
    disk: Callable[[ImproveOptions, Known, int, list[Work]], list[tuple[str, int]]] = disk_of,
) -> Estimate:
    """What the job of ``options`` would cost on this device; ``model`` is the one to improve, where one is given.

    Runs pieces of the real job for about half a minute; writes nothing. ``plan`` and ``disk`` say what the job does
    after its references, and what it leaves. UserError where neither the data nor its shape is known.
    """
    begun = resident()
    known = known_data(options, model)
    notes: list[str] = []
    judge = _judge(options, known, device, notes)
    held = resident() - begun  # part of the data, features and what else the job will have in memory
    pilot = measure(options, known, model, device, processes)
    sampler, denoiser = pilot.sampling.options, pilot.sampling.denoiser
    references = Work("references", seconds=judge.references) if is_judged(options) else None
    work = [Work("start", seconds=STARTED), Work("read the data", seconds=known.seconds)]
    work += ([references] if references else []) + plan(options, pilot.sampling)
    work[-1] = replace(work[-1], seconds=REPORT)
    parameters = sum(p.numel() for p in cast(torch.nn.Module, denoiser).parameters())
    share = share_of(options.base.train if model is None else options.auxiliary.train, processes)
    return Estimate(
        known,
        options.network.type if model is None else type(getattr(denoiser, "network", denoiser)).__name__,
        parameters,
        f"{sampler.solver}, {sampler.steps} steps",
        pilot.sampling.nfe,
        pilot.sampling.guided,
        work,
        disk(options, known, pilot.weights, work),
        _memory(options, known, pilot, judge, begun + held, processes, device),
        pilot.cost,
        judge,
        torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        free_memory(device),
        processes,
        share,
        options.batch_size,
        notes + _notes(options, known, pilot.cost, share),
    )


def measure(options: ImproveOptions, known: Known, model: Model | None, device: torch.device, processes: int) -> Pilot:
    """Train and sample for a short while, as the job would."""
    if model is None:
        fresh = _network(options, known, device)
        real = Model(fresh, known.codec, options.sampler, tuple(map(str, range(known.classes))))
    else:
        real = model.to(device)
    denoiser: Any = real.denoiser
    limits = (options.guidance.sigma_low, options.guidance.sigma_high)
    guided = Extrapolate(denoiser, denoiser, 1.0, limits)
    sampling = Sampling(denoiser, real.sampler, nfe(real, real.sampler), nfe(guided, real.sampler))
    trainings = _trainings(options, model)
    cost = probe(real, stand_in(known), trainings, options.batch_size, processes, device)
    return Pilot(sampling, cost, sum(p.numel() * p.element_size() for p in denoiser.parameters()))


def _network(options: ImproveOptions, known: Known, device: torch.device | str) -> Preconditioned:
    """The base that would be trained; on the device ``meta`` without weights."""
    train = options.base.train
    width = augment_dim(train.augment_transforms) if train.augment else 0
    tables = options.network.tables(options.network.sigma_data or 0.5, width)
    with torch.random.fork_rng(devices=[]), torch.device(device):
        return make_network(known.shape, known.classes, *tables)


def _trainings(options: ImproveOptions, model: Model | None) -> list[Training]:
    """All that trains a network in this job."""
    methods = methods_of(options)
    found = []
    if model is None or "continued" in methods:
        found.append(Training("base", options.base.train))
    if {*methods} & {"sims", "neon", "self-trained", "placebo"}:
        found.append(Training("auxiliary", options.auxiliary.train))
    if "distilled" in methods:
        found.append(Training("distilled", options.distilled.train, taught=True))
    return found


def _judge(options: ImproveOptions, known: Known, device: torch.device, notes: list[str]) -> JudgeCost:
    """What judging costs; nothing where it cannot be measured, which the notes then say."""
    if not is_judged(options):
        return JudgeCost()
    kind = options.evaluation.extractor.partition(":")[0]
    if kind in NAMES and kind != "torchscript" and known.shape[0] not in (1, 3):
        notes.append(
            f"{kind} sees pictures and the data has {known.shape[0]} channels: without an autoencoder (--vae) the job "
            "stops at its references; use --evaluation.extractor pca"
        )
        return JudgeCost()
    if options.reference is not None or options.vae is not None:
        notes.append("features and scores are not counted")
        return JudgeCost()
    try:
        return probe_judge(pictures(known), options.evaluation, max(options.search.rungs), device)
    except UserError as error:
        notes.append(f"features and scores are not counted: {error}")
        return JudgeCost()


def _memory(
    options: ImproveOptions, known: Known, pilot: Pilot, judge: JudgeCost, host: int, processes: int,
    device: torch.device,
) -> list[tuple[str, int]]:  # fmt: skip
    """Peak of every stage: what the pilot took, the networks that lie beside, on the machine itself also the data."""
    methods, weights, cost = methods_of(options), pilot.weights, pilot.cost
    on_gpu = device.type == "cuda"
    evaluation = options.evaluation
    references = 4 * judge.width * (known.train + known.test)
    rest = 0 if on_gpu else host + known.held + references
    # Pictures that an extractor is fitted to, twice in float32; then held-out ones beside their copies in float64.
    fitted = 8 * min(known.train * known.values, FIT_VALUES)
    fitted = max(fitted, 20 * min(known.test, HELD_OUT) * known.values) * (judge.width > 0 and not on_gpu)
    parts = [("references", rest + fitted)]

    def training(stage: str, name: str, beside: int) -> None:
        options_ = {t.name: t.options for t in _trainings(options, None)}[name]
        peak = cost.train[name].bytes(share_of(options_, processes))
        parts.append((stage, rest + beside * weights + peak))

    if options.model is None:
        training("train the base", "base", 1)
    if "auxiliary" in cost.train:
        training("train the auxiliary", "auxiliary", 1)
    if "distilled" in cost.train:
        training("distil", "distilled", 2)
    sampled = cost.evaluation.bytes(options.batch_size)
    draws = 0 if on_gpu else 4 * judge.width * evaluation.draws * evaluation.samples * len(methods)
    parts.append(("sample", rest + draws + sampled))
    return parts


def _notes(options: ImproveOptions, known: Known, cost: Cost, share: int) -> list[str]:
    notes = []
    for name, rate in cost.train.items():
        if rate.batch == 0:
            notes.append(f"there is no memory here for training ({name}): its time and memory are left out")
        elif rate.batch < share:
            notes.append(f"training ({name}) was timed at {rate.batch} of the {share} images of a step")
    if cost.evaluation.batch < options.batch_size:
        notes.append(f"sampling was timed at {cost.evaluation.batch} of {options.batch_size} samples at once")
    if not known.pictures and is_judged(options):
        notes.append("without the data, its reading and what depends on its number are not counted")
    if is_judged(options):
        notes.append("what follows from results is counted as it usually goes; its bound is in brackets")
    return notes
