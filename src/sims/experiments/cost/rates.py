"""A short pilot of the real code on the real device: what every kind of work of a job costs in time and memory."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import nn

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.experiments.cost.memory import Peak, free_memory, is_out_of_memory
from sims.guidance import Extrapolate
from sims.model import Model
from sims.runs.work import Training
from sims.sampling import nfe
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

SECONDS = 24.0  # of all measurements together, beyond the first steps
QUICK = 0.5  # seconds that a call may take in any case
_SEVERAL = 6  # calls on one item that there must be time for, or none is repeated
SHARE = 0.5  # of the free memory that a pilot may fill


@dataclass(frozen=True)
class Rate:
    """What work on B items at once takes: ``image * B + step`` seconds and ``fixed + item * B`` bytes.

    ``batch`` is the largest that was timed.
    """

    image: float
    step: float
    item: float
    fixed: float
    batch: int

    def bytes(self, batch: int) -> int:
        """The peak with ``batch`` items at once."""
        return int(self.fixed + self.item * batch)


NOTHING = Rate(0.0, 0.0, 0.0, 0.0, 0)


@dataclass(frozen=True)
class Rates:
    """What was measured: every training, an evaluation of the network, the beginning of a sample.

    ``evaluation`` is of one sample at one noise level: seconds, and bytes with two networks in memory.
    """

    training: dict[Training, Rate]
    evaluation: Rate
    sample: float


def measure_rates(
    model: Model, trained: Model, data: Dataset, trainings: Sequence[Training], batch_size: int, processes: int,
    device: torch.device,
) -> Rates:  # fmt: skip
    """Sample ``model`` and train ``trained``, the network inside, for a short while; ``data`` has shape and classes.

    Batches are smaller than the job's where the time or half of the free memory does not suffice. Nothing is written,
    ``model`` keeps its weights, and the random generators their state. Several processes measure each for itself.
    """
    kinds = {_kind(training): training for training in trainings}
    seconds = SECONDS / (len(kinds) + 1)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        rates = {kind: _training(trained, data, one, processes, seconds, device) for kind, one in kinds.items()}
        evaluation, sample = _sampling(model, batch_size, seconds, device)
    return Rates({training: rates[_kind(training)] for training in trainings}, evaluation, sample)


def _kind(training: Training) -> tuple[Hashable, ...]:
    """What the cost of a training depends on: the learning rate and such change nothing."""
    names = ("batch", "accumulate", "xflip", "augment", "augment_transforms", "precision", "ema", "ema_rel", "shard")
    return training.taught, *(getattr(training.options, name) for name in names)


def share_of(options: TrainOptions, processes: int) -> int:
    """Images that a process holds at once in training."""
    return max(1, options.batch // processes // options.accumulate)


# -- training ----------------------------------------------------------------------------------------------------------


def _alone(device: torch.device) -> Any:
    """What the training loop asks of an accelerator, without other processes to wait for."""
    return SimpleNamespace(
        device=device, num_processes=1, process_index=0, is_main_process=True,
        prepare=lambda network: network, backward=torch.Tensor.backward, clip_grad_norm_=nn.utils.clip_grad_norm_,
    )  # fmt: skip


def _training(
    model: Model, data: Dataset, training: Training, processes: int, seconds: float, device: torch.device
) -> Rate:
    """Steps of the real loop; ``NOTHING`` where not even the weights, their moments and averages fit.

    The network is in one piece. Of one that is to be split, what the other processes hold is taken off at the end.
    """
    options = replace(training.options, accumulate=1, compile=False)
    deadline = time.monotonic() + seconds
    weights = sum(p.numel() * p.element_size() for p in cast(nn.Module, model.denoiser).parameters())
    held = (4 + (len(options.ema_rel) if options.ema == "power" else 1)) * weights  # gradient, moments, averages too
    if held + weights > free_memory(device):
        return NOTHING
    teacher = cast(Denoiser, Extrapolate(model.denoiser, model.denoiser, 1.0)) if training.taught else None
    trainer = Trainer(model, data, options, Path(), images=10**9, seed=0, teacher=teacher, accelerator=_alone(device))
    seen = 0

    def step(count: int) -> None:
        nonlocal seen
        trainer.options = replace(options, batch=count)
        trainer.step = -(-seen // count)  # images seen only grow, whatever the batch
        seen = (trainer.step + 1) * count
        trainer.update()

    with Peak(device) as built:
        trainer.build()
        step(1)
    rate = _rate(step, share_of(training.options, processes), deadline, device)
    others = held * (1 - 1 / processes) if options.shard else 0.0
    return replace(rate, fixed=max(0.0, built.bytes - others) + max(0.0, rate.fixed - rate.item))


# -- sampling ----------------------------------------------------------------------------------------------------------


def _sampling(model: Model, batch_size: int, seconds: float, device: torch.device) -> tuple[Rate, float]:
    """Of an evaluation, and seconds of a sample besides: its noise, its way to the CPU."""
    deadline = time.monotonic() + seconds
    for network in model.networks:
        network.to(device).eval().requires_grad_(False)
    short = replace(model.sampler.changed(None, 2), compile=False)
    guided = model.with_denoiser(Extrapolate(model.denoiser, model.denoiser, 1.0))

    def draw(count: int, steps: int = 2) -> None:
        sampler = model.sampler if steps == model.sampler.steps else model.sampler.changed(None, steps)
        model.sample(range(count), sampler=sampler, batch_size=count)

    rate = _rate(draw, batch_size, deadline - seconds / 2, device)
    count, few, many = rate.batch, nfe(model, short), nfe(model, model.sampler)
    with Peak(device) as pair:
        guided.sample(range(count), sampler=short, batch_size=count)
    weights = sum(p.numel() * p.element_size() for network in model.networks for p in network.parameters())
    rate = replace(rate, item=max(rate.item, (pair.bytes - rate.fixed) / count), fixed=rate.fixed + 2 * weights)
    brief = rate.image + rate.step / count  # of a sample of few evaluations
    whole = brief * many / few
    if many > few and count == batch_size and time.monotonic() + whole * count < deadline:
        whole = _repeated(lambda: draw(count, model.sampler.steps), deadline, device) / count
        each = (whole - brief) / (many - few)
        if each > 0:  # else the machine was too busy to tell the two apart
            return replace(rate, image=each, step=0.0), max(whole - many * each, 0.0)
    return replace(rate, image=brief / few, step=0.0), 0.0


# -- timing ------------------------------------------------------------------------------------------------------------


def _rate(call: Callable[[int], object], most: int, deadline: float, device: torch.device) -> Rate:
    """Time and memory of a call on up to ``most`` items, from growing numbers of them, until the deadline."""
    with Peak(device) as one:
        batch, seconds = 1, timed(lambda: call(1), device)
    if time.monotonic() + _SEVERAL * seconds < deadline:  # else the first call, which is slower, has to do
        seconds = timed(lambda: call(1), device)
        with Peak(device) as one:
            call(1)
    last, held, fixed, item = (1, seconds), one.bytes, float(one.bytes), 0.0
    while batch < most:
        in_time = int((deadline - time.monotonic()) / (2.5 * seconds / batch))  # one to warm up, one timed
        # Two tell what an image takes, whatever the time; what is quick is not left to the noise of small numbers.
        in_time = max(in_time, 2, int(QUICK * batch / seconds))
        room = int(SHARE * free_memory(device) / item) if item else 8 * batch
        larger = min(most, 8 * batch, in_time, room)
        if larger <= batch:
            break
        last = (batch, seconds)
        try:
            with Peak(device) as several:
                first = timed(lambda: call(larger), device)  # noqa: B023 (called at once)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            break
        item = max((several.bytes - held) / (larger - 1), 0.0)
        fixed = max(held - item, 0.0)
        again = time.monotonic() + first < deadline
        batch, seconds = larger, timed(lambda: call(larger), device) if again else first  # noqa: B023
    seconds = _repeated(lambda: call(batch), deadline, device, seconds)
    if batch == most:
        return Rate(seconds / batch, 0.0, item, fixed, batch)
    image = max((seconds - last[1]) / (batch - last[0]), 0.0) if batch > last[0] else seconds / batch
    return Rate(image, max(seconds - image * batch, 0.0), item, fixed, batch)


def _repeated(call: Callable[[], object], deadline: float, device: torch.device, first: float | None = None) -> float:
    """Median seconds of a call, repeated until the deadline; at least once."""
    times = [timed(call, device) if first is None else first]
    while len(times) < 200 and time.monotonic() + times[-1] < deadline:
        times.append(timed(call, device))
    return statistics.median(times[1:] or times)


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, and of all that it leaves for the device to do."""
    _synchronize(device)
    begin = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - begin


def _synchronize(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def affordable(rate: Rate, most: int, room: float) -> int:
    """The largest batch up to ``most`` whose peak fits into ``room`` bytes; at least 1."""
    return max(1, min(most, math.floor((room - rate.fixed) / rate.item) if rate.item else most))
