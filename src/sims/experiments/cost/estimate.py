"""What a job would cost, before it runs: images, network evaluations, disk, memory and time."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch

from sims.denoiser import weights_of
from sims.errors import UserError
from sims.experiments.cost.described import DataSize
from sims.experiments.cost.judge_rates import JudgeRates, measure_judge
from sims.experiments.cost.memory import free_memory, resident
from sims.experiments.cost.rates import Rates, measure_rates, share_of
from sims.experiments.cost.table import Estimate
from sims.experiments.options import ImproveOptions
from sims.guidance import Extrapolate
from sims.guidance.guide import innermost
from sims.methods.auxiliary import trainable
from sims.model import Model
from sims.runs.work import Sampling, Training, Work
from sims.sampling import nfe
from sims.scoring.extractor_fitting import FIT_VALUES
from sims.training.base import new_model
from sims.training.probe import is_foreign

STARTED = time.process_time()  # seconds that the imports took, mostly
HELD_OUT = 16_384  # held-out images whose nearest neighbours are sought at once
REPORT = 2.0  # seconds of the report, about the same for all jobs: figures of matplotlib
FEATURES = {"inception": 2048, "dinov2": 1024, "clip": 512, "efficientnet-lite0": 1280}  # others: about 64

Plan = Callable[[Sampling], list[Work]]  # what a job does after its references, stage by stage, in order


@dataclass(frozen=True)
class Pilot:
    """What a short while of a job's own training and sampling tells; ``weights`` are bytes of its network."""

    sampling: Sampling
    work: list[Work]
    rates: Rates
    network: str
    parameters: int
    weights: int


def estimate(
    options: ImproveOptions, data: DataSize, model: Model | None, plan: Plan, device: torch.device, processes: int = 1
) -> Estimate:
    """What a job with these options would cost on this device; ``model`` is the one to improve, where one is given.

    Runs parts of the real job for about half a minute; writes nothing.
    """
    begun = resident()
    judge, notes = _judge(options, data, device)
    held = resident()  # imports, part of the data, features and what else the job will have in memory
    pilot = run_pilot(options, data, model, plan, device, processes)
    work = [Work("start", seconds=STARTED), Work("read the data", seconds=data.seconds)]
    work += [Work("references", seconds=judge.references)] if options.is_judged else []
    work += [*pilot.work, Work("report", seconds=REPORT)]
    return Estimate(
        data=data,
        network=pilot.network,
        parameters=pilot.parameters,
        sampler=f"{pilot.sampling.options.solver}, {pilot.sampling.options.steps} steps",
        nfe=pilot.sampling.nfe,
        guided_nfe=pilot.sampling.guided,
        work=work,
        disk=_disk(options, data, pilot),
        memory=_memory(options, data, pilot, judge, max(begun, held), processes, device),
        rates=pilot.rates,
        judge=judge,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        free=free_memory(device),
        processes=processes,
        notes=notes + _notes(options, data, pilot.rates, processes),
        given=model is not None,
    )


def run_pilot(
    options: ImproveOptions, data: DataSize, model: Model | None, plan: Plan, device: torch.device, processes: int
) -> Pilot:
    """Train and sample for a short while, as the job would."""
    example = data.stand_in()
    given = model is not None
    if model is None:
        model = new_model(example, options.network, options.sampler, options.seed, options.base.train)
    model = model.to(device)
    trained = trainable(model, options.auxiliary, options.seed)
    guided = Extrapolate(model.denoiser, model.denoiser, 1.0, (options.guidance.sigma_low, options.guidance.sigma_high))
    own, pair = nfe(model, model.sampler), nfe(guided, model.sampler)
    sampling = Sampling(model.denoiser, model.sampler, own, pair, is_foreign(model))
    work = plan(sampling)
    rates = measure_rates(model, trained, example, trainings_of(work), options.batch_size, processes, device)
    parameters = weights_of(model)
    settled = options.network.settled(model.data_shape, model.codec.latents is not None)
    network = _called(innermost(model.denoiser)) if given else settled.said()
    weights = sum(p.numel() * p.element_size() for p in cast(torch.nn.Module, trained.denoiser).parameters())
    return Pilot(sampling, work, rates, network, sum(p.numel() for p in parameters), weights)


def _called(denoiser: Any) -> str:
    """The class of its network, also of one that lies in a pipeline."""
    network = getattr(denoiser, "network", denoiser)
    return type(getattr(network, "frozen", network)).__name__


def trainings_of(work: Sequence[Work]) -> list[Training]:
    """What trains in these stages, each once."""
    return list(dict.fromkeys(stage.training for stage in work if stage.training is not None))


def _judge(options: ImproveOptions, data: DataSize, device: torch.device) -> tuple[JudgeRates, list[str]]:
    """What judging costs; nothing where it cannot be measured, which the notes then say."""
    if not options.is_judged:
        return JudgeRates(), []
    if options.reference is not None or options.vae is not None or data.some is None:
        return JudgeRates(), ["features and scores are not counted"]
    try:
        return measure_judge(data, options.evaluation, max(options.search.rungs), device), []
    except UserError as error:
        if not options.evaluation.download:
            raise
        return JudgeRates(), [f"features and scores are not counted: {error}"]


def _disk(options: ImproveOptions, data: DataSize, pilot: Pilot) -> dict[str, int]:
    """Bytes of what a run leaves, at most, by kind."""
    features = 4 * FEATURES.get(options.evaluation.extractor.partition(":")[0], 64)
    disk: dict[str, int] = {}
    for left in (left for stage in pilot.work for left in stage.leaves):
        count = left.networks * pilot.weights + left.samples * data.image_bytes + left.features * features
        disk[left.kind] = disk.get(left.kind, 0) + count
    return {kind: count for kind, count in disk.items() if count}


def _memory(
    options: ImproveOptions, data: DataSize, pilot: Pilot, judge: JudgeRates, host: int, processes: int,
    device: torch.device,
) -> dict[str, int]:  # fmt: skip
    """Peak of every stage: what the pilot took, the networks that lie beside, on the machine itself also the data."""
    on_gpu = device.type == "cuda"
    references = 4 * judge.width * (data.num_train + data.num_test)
    rest = 0 if on_gpu else host + data.held + references
    # Images that an extractor is fitted to, twice in float32; then held-out ones beside their copies in float64.
    fitted = 8 * min(data.num_train * data.values, FIT_VALUES)
    fitted = max(fitted, 20 * min(data.num_test, HELD_OUT) * data.values) * (judge.width > 0 and not on_gpu)
    memory = {"references": rest + fitted}
    for training, rate in pilot.rates.training.items():
        stage = next(stage.stage for stage in pilot.work if stage.training == training)
        beside = (2 if training.taught else 1) * pilot.weights
        memory[stage] = rest + beside + rate.bytes(share_of(training.options, processes))
    draws = 0 if on_gpu else 4 * judge.width * sum(stage.measured for stage in pilot.work)
    memory["sample"] = rest + draws + pilot.rates.evaluation.bytes(options.batch_size)
    return memory


def _notes(options: ImproveOptions, data: DataSize, rates: Rates, processes: int) -> list[str]:
    notes = []
    for training, rate in rates.training.items():
        share = share_of(training.options, processes)
        if rate.batch == 0:
            notes.append(f"there is no memory here for training ({training.name}): its time and memory are left out")
        elif rate.batch < share:
            notes.append(f"training ({training.name}) was timed at {rate.batch} of the {share} images of a step")
    if rates.evaluation.batch < options.batch_size:
        notes.append(f"sampling was timed at {rates.evaluation.batch} of {options.batch_size} samples at once")
    if data.some is None and options.is_judged:
        notes.append("without the data, its reading and what depends on its number are not counted")
    if options.is_judged:
        notes.append("what follows from results is counted as it usually goes; its bound is in brackets")
    return notes
