"""The training loop: exact to resume, the same for any number of processes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sims.config import read_as, to_dict
from sims.denoiser import Denoiser, compile_networks
from sims.errors import UserError
from sims.files import write_json
from sims.model import Model
from sims.processes import agree, join
from sims.training.adam import make_adam
from sims.training.arithmetic import autocast_dtype, loss_scaler
from sims.training.augment import Augment, Mirrored, check_augmentation
from sims.training.checkpoint import Progress, load_state, save_state
from sims.training.ema import EMA, PowerEMA, ema_decay
from sims.training.feed import Feed, Position
from sims.training.loss import denoising_loss, training_levels
from sims.training.options import TrainOptions
from sims.training.posthoc import begin, store
from sims.training.sharding import can_decay, force_weights, put_together, split, whole
from sims.training.training_noise import DataOrder, TrainingNoise

Objective = Callable[..., Tensor]


class TrainingData(Protocol):
    """What the loop asks of data: a length and batches in model space."""

    def __len__(self) -> int: ...

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]: ...


@runtime_checkable
class Observer(Protocol):
    """Who follows a training: called with the images of every step, and told all losses whenever there is one more.

    Losses are (images seen, mean loss since the last one); those of earlier processes, which began it, are among them.
    """

    def __call__(self, count: int) -> None: ...

    def trained(self, folder: Path, images: int, losses: list[tuple[int, float]]) -> None: ...


@dataclass(frozen=True)
class Trained:
    """What a finished training left: models by images seen, and the folder to continue from."""

    folder: Path
    snapshots: dict[int, Path]
    images: int
    nonfinite: int
    losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def last(self) -> Path:
        return self.snapshots[max(self.snapshots)]


@dataclass(frozen=True)
class Done:
    """What a finished training writes last."""

    images: int
    nonfinite: int
    losses: tuple[tuple[int, float], ...]
    budgets: tuple[int, ...]


def snapshot_path(folder: Path, budget: int) -> Path:
    """The model directory of the snapshot taken after ``budget`` images."""
    return folder / "snapshots" / f"{budget:09d}"


def read_trained(folder: Path) -> Trained | None:
    """What a finished training left in its folder; None if it has not finished."""
    if not (folder / "done.json").is_file():
        return None
    done = read_as(folder / "done.json", Done)
    snapshots = {budget: snapshot_path(folder, budget) for budget in done.budgets}
    return Trained(folder, snapshots, done.images, done.nonfinite, list(done.losses))


class Trainer:
    """One training run in one folder; ``run`` trains, continues, or returns what is finished.

    ``start`` is the model whose weights the run begins with. ``earlier`` is the folder of a finished run of
    the same network, data order and seed: this run then continues it; with a constant learning rate, exactly as if
    it had been longer. ``objective`` takes what ``denoising_loss`` takes, and is what is minimized.
    """

    def __init__(
        self,
        start: Model,
        data: TrainingData,
        options: TrainOptions,
        folder: Path,
        *,
        images: int,
        seed: int,
        snapshots: tuple[int, ...] = (),
        teacher: Denoiser | None = None,
        objective: Objective = denoising_loss,
        earlier: Path | None = None,
        accelerator: Accelerator | None = None,
        noise: TrainingNoise | None = None,
    ) -> None:
        self.start, self.options, self.folder = start, options, folder
        self.data = Mirrored(data) if options.xflip else data
        self.images, self.teacher, self.objective, self.earlier = images, teacher, objective, earlier
        self.budgets = tuple(sorted({*snapshots, images}))
        self.accelerator = accelerator or join()
        self.noise = noise or TrainingNoise(seed, start.data_shape)
        self.augment = Augment(seed, options.augment, options.augment_transforms) if options.augment else None
        self.order = DataOrder(seed, len(self.data))
        self.seed = seed
        self.steps = math.ceil(images / options.batch)
        self.split = options.shard and self.accelerator.num_processes > 1
        self._check()

    def _check(self) -> None:
        self.options.check_parts(self.accelerator.num_processes)
        if len(self.data) < 1:
            raise UserError("there are no training images: at least 1 is needed")
        if self.budgets[0] < 1:
            raise UserError(f"a training budget of {self.budgets[0]} images: at least 1 is needed")
        if self.options.weight_decay and not can_decay(self.start.denoiser):
            raise UserError(
                f"weight_decay is {self.options.weight_decay:g} for a network of EDM2, which normalizes its "
                "weights wherever it uses them, so that decay changes nothing: set it to 0"
            )
        if self.options.xflip or self.augment is not None:
            check_augmentation(self.augment, self.start)
        if self.augment is not None and self.teacher is not None:
            raise UserError(
                f"augment is {self.options.augment} in training from a teacher, which knows images as they are: "
                "set it to 0"
            )

    def run(self, advance: Callable[[int], None] | None = None, log: Callable[[str], None] = print) -> Trained:
        """Train to the end. UserError after too many non-finite steps in a row; the last good state is kept."""
        if finished := read_trained(self.folder):
            return finished
        self._prepare()
        advance = advance or (lambda count: None)
        advance(self.step * self.options.batch)
        cuda = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                self._loop(advance, log)
        finally:
            self.feed.close()
        if self.accelerator.is_main_process:
            done = Done(self.images, self.nonfinite, tuple(self.losses), self.budgets)
            write_json(self.folder / "done.json", to_dict(done))
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        finished = read_trained(self.folder)
        assert finished is not None
        return finished

    def averaged(self, advance: Callable[[int], None] | None = None) -> nn.Module:
        """The averaged network after all steps, with nothing read or written: for trainings that only try something."""
        self.build()
        cuda = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices=cuda):
                while self.step < self.steps:
                    self.update()
                    self.step += 1
                    if advance is not None:
                        advance(self.options.batch)
        finally:
            self.feed.close()
        self.accelerator.free_memory()
        return self.ema.average

    def build(self) -> None:
        """Network, averages and optimizer as the run begins with them; reads and writes no file."""
        device = self.accelerator.device
        self.network = self._copy().train().requires_grad_(True)
        power = self.options.ema == "power"
        copied = (lambda network: self._copy()) if self.split else copy.deepcopy
        self.ema = PowerEMA(self.network, self.options.ema_rel, copied) if power else EMA(self.network, copied)
        self.parameters = list(self.network.parameters())
        self.optimizer = make_adam(self.parameters, self.options)
        self.step, self.nonfinite, self.partial = 0, 0, (0.0, 0)
        self.losses: list[tuple[int, float]] = []
        self.wrapped = self.network if self.split else self.accelerator.prepare(self.network)
        if self.options.compile:
            compile_networks(self.network)
        self.dtype = autocast_dtype(self.options.precision, device)
        self.scaler = loss_scaler(self.dtype, device)
        self.feed = Feed(self._batch, ahead=device.type == "cuda")

    def _copy(self) -> nn.Module:
        """The network that the run begins with, on the device; split over the processes where that was asked for."""
        network: nn.Module = copy.deepcopy(self.start.denoiser).to(self.accelerator.device)  # type: ignore[attr-defined]
        return split(network, self.accelerator) if self.split else network

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.build()
        position = load_state(self.folder / "state.safetensors", self.network, self.ema, self.optimizer)
        if position is None and self.accelerator.is_main_process:
            begin(self.folder, self.earlier)
        if position is None and self.earlier is not None:
            position = load_state(self.earlier / "state.safetensors", self.network, self.ema, self.optimizer)
            if position is None:
                raise UserError(f"{self.earlier} has no state.safetensors to continue from: restore it")
        step = None if position is None else position.step
        if agree(step) != step:
            raise UserError(
                f"the processes see different training states in {self.folder}: the run directory must lie on a "
                "file system that all machines share"
            )
        if position is not None:
            self.step, self.nonfinite = position.step, position.nonfinite
            self.losses, self.partial = list(position.losses), position.partial
            if position.scaler is not None:
                self.scaler.load_state_dict(position.scaler)

    def _loop(self, advance: Callable[[int], None], log: Callable[[str], None]) -> None:
        in_a_row, saved = 0, time.monotonic()
        log_every = max(1, self.steps // 50)
        while self.step < self.steps:
            loss, good = self.update()
            self.step += 1
            in_a_row = 0 if good else in_a_row + 1
            if good:
                self.partial = (self.partial[0] + loss, self.partial[1] + 1)
            else:
                self._report_nonfinite(in_a_row, log)
            if self.step % log_every == 0 and self.partial[1]:
                self.losses.append((self.step * self.options.batch, round(self.partial[0] / self.partial[1], 6)))
                self.partial = (0.0, 0)
                if isinstance(advance, Observer):
                    advance.trained(self.folder, self.step * self.options.batch, self.losses)
            self._snapshots()
            advance(self.options.batch)
            if self.step == self.steps or (not in_a_row and self._due(saved)):  # a losing streak replaces no good state
                self._save()
                saved = time.monotonic()

    def _due(self, saved: float) -> bool:
        """Whether to save now; only the main process writes, so only its clock counts."""
        due = self.accelerator.is_main_process and time.monotonic() - saved > self.options.checkpoint_seconds
        return agree(due) if self.split else due

    def update(self) -> tuple[float, bool]:
        """One optimizer step; returns the loss and whether the gradient was finite (else nothing changed)."""
        options, accelerator = self.options, self.accelerator
        seen = self.step * options.batch
        # For dropout. Not torch.manual_seed, which takes long where there is no GPU.
        seed = (self.seed * 1_000_003 + self.step * 997 + accelerator.process_index) % 2**63
        torch.default_generator.manual_seed(seed)
        if accelerator.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(seen + options.batch, self.images)
        loss = torch.zeros((), device=accelerator.device)
        for part in range(options.accumulate):
            last = part + 1 == options.accumulate  # only then do the processes exchange gradients
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                piece = self._loss(self.step * options.accumulate + part) / options.accumulate
                accelerator.backward(self.scaler.scale(piece))
            loss = loss + piece.detach()
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = accelerator.clip_grad_norm_(self.parameters, options.clip)
        good = bool(torch.isfinite(whole(norm)))
        if good:
            self.optimizer.step()
            self._average(seen + options.batch)
        if self.scaler.is_enabled():
            self.scaler.update()  # a smaller scale after a step that overflowed
        self.optimizer.zero_grad()
        return float(accelerator.reduce(loss, "mean") if accelerator.num_processes > 1 else loss), good

    def _average(self, seen: int) -> None:
        options = self.options
        if isinstance(self.ema, PowerEMA):
            self.ema.update(seen)
        else:
            self.ema.update(ema_decay(options.batch, seen, options.ema_halflife, options.ema_rampup))

    def _part(self, number: int) -> Position:
        """Which samples this process sees in the part of this number, of all its parts of all steps."""
        options, accelerator = self.options, self.accelerator
        share = options.batch // accelerator.num_processes // options.accumulate
        step, part = divmod(number, options.accumulate)
        return step * options.batch + (accelerator.process_index * options.accumulate + part) * share, share

    def _batch(self, first: int, count: int) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Clean data, labels, noise, and the normal variate of ln(sigma); where a GPU can fetch them by itself."""
        clean, labels = self.data.batch(self.order.indices(first, count))
        batch = clean, labels, *self.noise.draw(first, count)
        if self.accelerator.device.type == "cuda":
            return tuple(None if t is None else t.pin_memory() for t in batch)  # type: ignore[return-value]
        return batch

    def _loss(self, number: int) -> Tensor:
        if self.split:
            force_weights(self.network)
        device, (first, count) = self.accelerator.device, self._part(number)
        last = number + 1 == self.steps * self.options.accumulate
        clean, labels, noise, normal = self.feed.take((first, count), None if last else self._part(number + 1))
        clean, noise, normal = (t.to(device, non_blocking=True) for t in (clean, noise, normal))
        labels = None if labels is None else labels.to(device, non_blocking=True)
        clean, augment = self.augment(clean, first) if self.augment is not None else (clean, None)
        sigma = training_levels(self.start, self.options, normal)
        with torch.autocast(device.type, dtype=self.dtype, enabled=self.dtype is not None):
            return self.objective(self.wrapped, clean, labels, noise, sigma, self.teacher, augment)

    def _report_nonfinite(self, in_a_row: int, log: Callable[[str], None]) -> None:
        self.nonfinite += 1
        if self.nonfinite in (1, 10, 100, 1000):
            log(
                f"non-finite gradient at {self.step * self.options.batch:,} images, step skipped"
                f" ({self.nonfinite} so far)"
            )
        if in_a_row >= min(self.options.max_nonfinite, self.steps):  # where no step counts, nothing is trained
            seen = self.step * self.options.batch
            self.step, self.nonfinite = self.step - in_a_row, self.nonfinite - in_a_row  # nothing has changed since
            self._save()
            self.accelerator.wait_for_everyone()  # an error in one process would end the one that saves
            raise UserError(
                f"training stopped: {in_a_row} steps in a row had a non-finite gradient by {seen:,} "
                f"images; the last good state is kept in {self.folder}: lower the learning rate "
                f"({self.options.learning_rate:g})"
            )

    def _snapshots(self) -> None:
        seen = self.step * self.options.batch
        for budget in self.budgets:
            if seen - self.options.batch < budget <= seen and (found := self._whole([self.ema.average])):
                snapshot = self.start.with_denoiser(cast(Denoiser, found[0]), images=budget)
                snapshot.save(snapshot_path(self.folder, budget))
        if isinstance(self.ema, PowerEMA) and self.ema.seen:
            every = self.options.stored_every(self.images)
            due = self.step == self.steps or seen // every > (seen - self.options.batch) // every
            if due and (found := self._whole(self.ema.averages)):
                store(self.folder, self.ema, found)

    def _whole(self, networks: list[nn.Module]) -> list[nn.Module]:
        """The networks in the main process, put together where they are split; nothing in the others."""
        if self.split:
            plain = cast(nn.Module, self.start.denoiser)
            networks = [put_together(network, plain, self.accelerator.is_main_process) for network in networks]
        return networks if self.accelerator.is_main_process else []

    def _save(self) -> None:
        main = self.accelerator.is_main_process
        if main or self.split:
            scaler = self.scaler.state_dict() if self.scaler.is_enabled() else None
            held = self.ema.held()
            position = Progress(self.step, self.nonfinite, tuple(self.losses), self.partial, scaler, held)
            save_state(self.folder / "state.safetensors", self.network, self.ema, self.optimizer, position, main=main)
