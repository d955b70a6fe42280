"""The training loop: exact to resume, the same for any number of processes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.files import read_json, write_json
from sims.model import Model
from sims.training.augment import TRANSFORMS, Augment, Mirrored, Transform, check_augmentation
from sims.training.checkpoint import load_state, save_state
from sims.training.ema import EMA, PowerEMA, ema_decay, power_exponent
from sims.training.loss import denoising_loss
from sims.training.noise import DataOrder, TrainingNoise
from sims.training.posthoc import begin, store


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively: recent GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False


class TrainingData(Protocol):
    """What the loop asks of data: a length and batches in model space."""

    def __len__(self) -> int: ...

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained; durations are counted in images seen."""

    batch: int = 256
    """Images per step, over all processes."""
    lr: float = 1e-3
    """Learning rate (Adam)."""
    warmup: int = 25_600
    """Images over which the learning rate rises linearly from zero."""
    decay: Literal["constant", "cosine", "sqrt"] = "constant"
    """Learning rate after the warm-up; cosine falls to zero at the end, sqrt as 1 / sqrt(batches) (EDM2)."""
    decay_batches: int | None = None
    """Batches up to which the learning rate stays (sqrt); then it is lr / sqrt(batches / decay_batches)."""
    ema_halflife: int = 500_000
    """Half-life of the weight average, in images."""
    ema_rampup: float = 0.05
    """The half-life never exceeds this share of the images seen so far (0 = no ramp)."""
    ema: Literal["halflife", "power"] = "halflife"
    """Weight average: of a half-life, or of a width relative to the whole run, to be chosen anew after training."""
    ema_rel: tuple[float, ...] = (0.05, 0.10)
    """Relative widths of the averages kept (power); the first is the one that models are saved with."""
    ema_every: int | None = None
    """Images between stored averages, all of ema_rel at full size (power); a 32nd of the run if not given."""
    clip: float = 1.0
    """Gradient norm limit."""
    p_mean: float = -1.2
    """Mean of ln(sigma) in training."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""
    xflip: bool = False
    """Train on the mirror image of every image too."""
    augment: float = 0.0
    """Probability of each augmentation (EDM: 0.12 to 0.15; 0 = none), which the network must be able to be told."""
    augment_transforms: tuple[Transform, ...] = TRANSFORMS
    """Augmentations; all of them take 9 labels."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the network in training; auto is bf16 where the device has it natively, else fp32."""
    accumulate: int = 1
    """Gradient accumulation: the batch is split into this many parts to save memory."""
    max_nonfinite: int = 20
    """Steps with a non-finite gradient (skipped and counted) in a row before the run stops."""
    checkpoint_seconds: float = 20.0
    """Seconds between saves of the state to resume from."""

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "clip", "p_std", "ema_halflife"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name} is {getattr(self, name)}: it must be a positive number")
        self._check_ema()
        batches = self.decay_batches
        if (batches is None) == (self.decay == "sqrt") or (batches is not None and batches < 1):
            raise UserError(
                f"decay is {self.decay!r} and decay_batches {self.decay_batches}: sqrt needs at least 1 batch up to "
                "which the learning rate stays (EDM2: 35000 or 70000), the others take none"
            )
        if not 0 <= self.augment <= 1:
            raise UserError(f"augment is {self.augment}: it is a probability, choose one from 0 to 1")
        unknown = sorted({*self.augment_transforms} - {*TRANSFORMS})
        if unknown or len({*self.augment_transforms}) != len(self.augment_transforms) or not self.augment_transforms:
            raise UserError(
                f"augment_transforms are {list(self.augment_transforms)}: name at least one, each once, "
                f"of {', '.join(TRANSFORMS)}"
            )

    def _check_ema(self) -> None:
        if not self.ema_rel or len({*self.ema_rel}) != len(self.ema_rel):
            raise UserError(f"ema_rel is {list(self.ema_rel)}: give at least one width, each once")
        for width in self.ema_rel:
            power_exponent(width)
        if self.ema_every is not None and self.ema_every < 1:
            raise UserError(f"ema_every is {self.ema_every}: it must be at least 1")

    def rate(self, seen: float, total: float) -> float:
        """Learning rate after ``seen`` of ``total`` images."""
        rise = min(seen / self.warmup, 1.0) if self.warmup > 0 else 1.0
        fall = 0.5 * (1 + math.cos(math.pi * min(seen / total, 1.0))) if self.decay == "cosine" else 1.0
        if self.decay_batches is not None:  # EDM2: Karras et al. 2024
            fall = 1 / math.sqrt(max(seen / (self.decay_batches * self.batch), 1.0))
        return self.lr * rise * fall


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


def snapshot_path(folder: Path, budget: int) -> Path:
    """The model directory of the snapshot taken after ``budget`` images."""
    return folder / "snapshots" / f"{budget:09d}"


def read_trained(folder: Path) -> Trained | None:
    """What a finished training left in its folder; None if it has not finished."""
    if not (folder / "done.json").is_file():
        return None
    done = read_json(folder / "done.json")
    snapshots = {budget: snapshot_path(folder, budget) for budget in done["budgets"]}
    return Trained(folder, snapshots, done["images"], done["nonfinite"], [tuple(entry) for entry in done["losses"]])


class Trainer:
    """One training run in one folder; ``run`` trains, continues, or returns what is finished.

    ``start`` is the model whose weights the run begins with. ``earlier`` is the folder of a finished run of
    the same network, data order and seed: this run then continues it; with a constant learning rate, exactly as if
    it had been longer.
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
        earlier: Path | None = None,
        accelerator: Accelerator | None = None,
    ) -> None:
        self.start, self.options, self.folder = start, options, folder
        self.data = Mirrored(data) if options.xflip else data
        self.images, self.teacher, self.earlier = images, teacher, earlier
        self.budgets = tuple(sorted({*snapshots, images}))
        self.accelerator = accelerator or Accelerator()
        self.noise = TrainingNoise(seed, start.data_shape)
        self.augment = Augment(seed, options.augment, options.augment_transforms) if options.augment else None
        self.order = DataOrder(seed, len(self.data))
        self.seed = seed
        self.steps = math.ceil(images / options.batch)
        self._check()

    def _check(self) -> None:
        parts = self.accelerator.num_processes * self.options.accumulate
        if self.options.batch % parts:
            raise UserError(
                f"batch {self.options.batch} cannot be split over {parts} parts: choose a multiple of {parts}"
            )
        if len(self.data) < 1:
            raise UserError("there are no training images: at least 1 is needed")
        if self.budgets[0] < 1:
            raise UserError(f"a training budget of {self.budgets[0]} images: at least 1 is needed")
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
        with torch.random.fork_rng(devices=cuda):
            self._loop(advance, log)
        if self.accelerator.is_main_process:
            result = {"images": self.images, "nonfinite": self.nonfinite, "losses": self.losses}
            write_json(self.folder / "done.json", {**result, "budgets": list(self.budgets)})
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        finished = read_trained(self.folder)
        assert finished is not None
        return finished

    def _prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        device = self.accelerator.device
        self.network: nn.Module = copy.deepcopy(self.start.denoiser).to(device).train().requires_grad_(True)  # type: ignore[attr-defined]
        self.sigma_data = float(getattr(self.start.denoiser, "sigma_data", 0.5))
        power = self.options.ema == "power"
        self.ema = PowerEMA(self.network, self.options.ema_rel) if power else EMA(self.network)
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.Adam(self.parameters, lr=self.options.lr, fused=True)
        position = load_state(self.folder / "state.safetensors", self.network, self.ema, self.optimizer)
        if position is None and self.accelerator.is_main_process:
            begin(self.folder, self.earlier)
        if position is None and self.earlier is not None:
            position = load_state(self.earlier / "state.safetensors", self.network, self.ema, self.optimizer)
            if position is None:
                raise UserError(f"{self.earlier} has no state.safetensors to continue from: restore it")
        position = position or {"step": 0, "nonfinite": 0, "losses": [], "partial": [0.0, 0]}
        self.step, self.nonfinite = position["step"], position["nonfinite"]
        self.losses, self.partial = position["losses"], position["partial"]
        self.wrapped = self.accelerator.prepare(self.network)
        self.bf16 = self.options.precision == "bf16" or (self.options.precision == "auto" and has_bf16(device))

    def _loop(self, advance: Callable[[int], None], log: Callable[[str], None]) -> None:
        in_a_row, saved = 0, time.monotonic()
        log_every = max(1, self.steps // 50)
        while self.step < self.steps:
            loss, good = self._update()
            self.step += 1
            in_a_row = 0 if good else in_a_row + 1
            if good:
                self.partial = [self.partial[0] + loss, self.partial[1] + 1]
            else:
                self._report_nonfinite(in_a_row, log)
            if self.step % log_every == 0 and self.partial[1]:
                self.losses.append((self.step * self.options.batch, round(self.partial[0] / self.partial[1], 6)))
                self.partial = [0.0, 0]
            self._snapshots()
            advance(self.options.batch)
            if self.step == self.steps or (not in_a_row and self._due(saved)):  # a losing streak replaces no good state
                self._save()
                saved = time.monotonic()

    def _due(self, saved: float) -> bool:
        """Whether to save now; the main process decides for all, since clocks differ."""
        due = time.monotonic() - saved > self.options.checkpoint_seconds
        if self.accelerator.num_processes == 1 or self.step % 50:
            return due and self.accelerator.num_processes == 1
        return bool(self.accelerator.gather(torch.tensor([float(due)], device=self.accelerator.device))[0])

    def _update(self) -> tuple[float, bool]:
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
        share = options.batch // accelerator.num_processes // options.accumulate
        loss = torch.zeros((), device=accelerator.device)
        for part in range(options.accumulate):
            first = seen + (accelerator.process_index * options.accumulate + part) * share
            piece = self._loss(first, share) / options.accumulate
            accelerator.backward(piece)
            loss = loss + piece.detach()
        norm = accelerator.clip_grad_norm_(self.parameters, options.clip)
        good = bool(torch.isfinite(norm))
        if good:
            self.optimizer.step()
            self._average(seen + options.batch)
        self.optimizer.zero_grad()
        return float(accelerator.reduce(loss, "mean") if accelerator.num_processes > 1 else loss), good

    def _average(self, seen: int) -> None:
        options = self.options
        if isinstance(self.ema, PowerEMA):
            self.ema.update(seen)
        else:
            self.ema.update(ema_decay(options.batch, seen, options.ema_halflife, options.ema_rampup))

    def _loss(self, first: int, count: int) -> Tensor:
        device = self.accelerator.device
        clean, labels = self.data.batch(self.order.indices(first, count))
        noise, normal = self.noise.draw(first, count)
        clean, noise, normal = (t.to(device, non_blocking=True) for t in (clean, noise, normal))
        labels = labels.to(device) if labels is not None else None
        clean, augment = self.augment(clean, first) if self.augment is not None else (clean, None)
        sigma = (normal * self.options.p_std + self.options.p_mean).exp()
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return denoising_loss(self.wrapped, clean, labels, noise, sigma, self.sigma_data, self.teacher, augment)

    def _report_nonfinite(self, in_a_row: int, log: Callable[[str], None]) -> None:
        self.nonfinite += 1
        if self.nonfinite in (1, 10, 100, 1000):
            log(
                f"non-finite gradient at {self.step * self.options.batch:,} images, step skipped"
                f" ({self.nonfinite} so far)"
            )
        if in_a_row >= self.options.max_nonfinite:
            seen = self.step * self.options.batch
            self.step, self.nonfinite = self.step - in_a_row, self.nonfinite - in_a_row  # nothing has changed since
            self._save()
            raise UserError(
                f"training stopped: {in_a_row} steps in a row had a non-finite gradient by {seen:,} "
                f"images; the last good state is kept in {self.folder}: lower the learning rate ({self.options.lr:g})"
            )

    def _snapshots(self) -> None:
        seen = self.step * self.options.batch
        for budget in self.budgets:
            if seen - self.options.batch < budget <= seen and self.accelerator.is_main_process:
                snapshot = self.start.with_denoiser(cast(Denoiser, self.ema.average), images=budget)
                snapshot.save(snapshot_path(self.folder, budget))
        if isinstance(self.ema, PowerEMA) and self.ema.seen and self.accelerator.is_main_process:
            every = self.options.ema_every or max(1, self.images // 32)
            if self.step == self.steps or seen // every > (seen - self.options.batch) // every:
                store(self.folder, self.ema)

    def _save(self) -> None:
        if self.accelerator.is_main_process:
            position = {"step": self.step, "nonfinite": self.nonfinite, "losses": self.losses, "partial": self.partial}
            save_state(self.folder / "state.safetensors", self.network, self.ema, self.optimizer, position)
