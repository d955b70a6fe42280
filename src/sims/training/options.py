"""Options of training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from sims.config import LATER, left_open
from sims.errors import UserError
from sims.training.arithmetic import Precision
from sims.training.augment import TRANSFORMS, Transform
from sims.training.ema import power_exponent

LEARNING_RATE = 1e-3  # of small networks that are trained here, from the beginning


@dataclass(frozen=True)
class TrainOptions:
    """How a network is trained; durations are counted in images seen."""

    batch: int = left_open(256)
    """Images per step, over all processes."""
    lr: float | None = None
    """Learning rate (Adam): 1e-3 unless stated; of a network that was trained elsewhere, or at another rate, what a probe finds."""  # noqa: E501
    beta2: float = 0.999
    """Decay of Adam's second moment (EDM: 0.999, EDM2: 0.99)."""
    warmup: int = left_open(25_600)
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
    weight_decay: float = field(default=0.0, metadata=LATER)
    """Decoupled weight decay of all weights (AdamW): each step multiplies them by 1 - learning rate x this."""
    p_mean: float = -1.2
    """Mean of ln(sigma) in training; with both at their defaults, a model of diffusers keeps to its own timesteps."""
    p_std: float = 1.2
    """Standard deviation of ln(sigma) in training."""
    levels: Literal["lognormal", "schedule"] = "lognormal"
    """Noise levels of training: lognormal (p_mean, p_std), or even along the schedule that samples are drawn at; a generator of few steps is fine-tuned so while p_mean and p_std are left alone."""  # noqa: E501
    xflip: bool = False
    """Train on the mirror image of every image too."""
    augment: float = 0.0
    """Probability of each augmentation (EDM: 0.12 to 0.15; 0 = none), which the network must be able to be told."""
    augment_transforms: tuple[Transform, ...] = TRANSFORMS
    """Augmentations; all of them take 9 labels."""
    optimizer: Literal["adam", "adam8bit"] = field(default="adam", metadata=LATER)
    """Adam; adam8bit keeps its moments in 8 bits, a quarter of the memory (extra 8bit, the package bitsandbytes)."""
    precision: Precision = "auto"
    """Arithmetic of the network in training; auto is bf16 where the device has it natively and a short measurement says that it is faster, else fp32. fp16: GPUs."""  # noqa: E501
    compile: bool = False
    """Let torch compile the network: minutes before the first step, for fewer and larger kernels after it (GPUs)."""
    shard: bool = False
    """Split weights, averages and the optimizer's state over the processes of torchrun (FSDP): for networks that do not fit on one GPU."""  # noqa: E501
    accumulate: int = 1
    """Gradient accumulation: the batch is split into this many parts to save memory."""
    max_nonfinite: int = 20
    """Steps with a non-finite gradient (skipped and counted) in a row before the run stops."""
    checkpoint_seconds: float = 20.0
    """Seconds between saves of the state to resume from."""

    def stored_every(self, images: int) -> int:
        """Images between stored averages (power) of a training of so many."""
        return self.ema_every or max(1, images // 32)

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("lr", "clip", "p_std", "ema_halflife"):
            if getattr(self, name) is not None and not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise UserError(f"{name} is {getattr(self, name)}: it must be a positive number")
        for name in ("warmup", "ema_rampup", "checkpoint_seconds"):
            if not getattr(self, name) >= 0:
                raise UserError(f"{name} is {getattr(self, name)}: it must be at least 0")
        if not math.isfinite(self.p_mean):
            raise UserError(f"p_mean is {self.p_mean}: give a finite number, such as -1.2")
        if not 0 <= self.beta2 < 1:
            raise UserError(f"beta2 is {self.beta2}: it is a decay, choose one from 0 up to, but not including, 1")
        if not 0 <= self.weight_decay * self.learning_rate < 1:
            limit = 1 / self.learning_rate
            raise UserError(
                f"weight_decay is {self.weight_decay}: a step multiplies weights by 1 - learning rate x this, "
                f"so choose one from 0 up to, but not including, {limit:g}"
            )
        self._check_ema()
        whole = ["compile"] * self.compile + ["precision fp16"] * (self.precision == "fp16")
        whole += ["optimizer adam8bit"] * (self.optimizer == "adam8bit")
        if self.shard and whole:
            raise UserError(f"shard with {whole[0]} is not supported: leave one of them out (bf16 needs no scaling)")
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

    def check_parts(self, num_processes: int) -> None:
        """UserError unless all parts of a batch are equal: only then is the mean of their losses that of the batch."""
        parts = num_processes * self.accumulate
        if self.batch % parts:
            raise UserError(f"batch {self.batch} cannot be split over {parts} parts: choose a multiple of {parts}")

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
        return self.learning_rate * rise * fall

    @property
    def learning_rate(self) -> float:
        """The rate that was given, else the usual one."""
        return LEARNING_RATE if self.lr is None else self.lr
