"""The learning rate of a fine-tune, chosen by a probe: for networks that other programs trained, at rates unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, device_of
from sims.model import Model
from sims.processes import agree
from sims.seeds import derive_seed
from sims.training.loss import denoising_loss, training_levels
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer
from sims.training.training_noise import TrainingNoise

RATES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6)
STEPS = 32
WARMUP = 8  # steps
HELD_OUT = 512  # samples that the loss is measured on, or a quarter of them all
_FEW = 8  # samples of which one loss is taken
_HUGE = 1e30


@dataclass(frozen=True)
class Tried:
    """A rate, the loss on held-out samples after a few dozen steps at it, and the standard error of its change."""

    rate: float
    loss: float
    error: float


@dataclass(frozen=True)
class Probe:
    """The rate that was chosen, the loss before, what was tried, and the training images that it took.

    ``falls``: at that rate the loss fell; else it fell at none, and the lowest is taken.
    """

    rate: float
    falls: bool
    before: float
    tried: tuple[Tried, ...]
    images: int

    def said(self) -> str:
        """In one line."""
        changes = ", ".join(f"{tried.rate:g}: {100 * (tried.loss / self.before - 1):+.2g} %" for tried in self.tried)
        how = "the largest at which the loss falls" if self.falls else "the loss fell at none of those tried"
        return f"learning rate {self.rate:g}, {how} on held-out samples ({changes})"


def is_probed(model: Model, options: TrainOptions) -> bool:
    """Whether a rate is to be found: none is given, and the usual one is not the network's."""
    return options.lr is None and is_foreign(model)


def is_foreign(model: Model) -> bool:
    """Whether a network was trained elsewhere, or here at a rate that is not the usual one."""
    return "data_fingerprint" not in model.provenance or "lr" in model.provenance


def most_images(options: TrainOptions) -> int:
    """Training images that a probe sees at most."""
    return len(RATES) * STEPS * options.batch


def probe_rate(
    start: Model,
    data: Dataset,
    options: TrainOptions,
    seed: int,
    *,
    teacher: Denoiser | None = None,
    accelerator: Accelerator | None = None,
    advance: Callable[[int], None] | None = None,
) -> Probe:
    """The largest of ``RATES`` at which a few dozen steps lower the loss on held-out samples.

    ``data`` are what is trained on, of which some are held out here. The averaged weights are judged, which are what a
    training leaves; noise and levels are the same for all, so that small changes show.
    """
    rng = np.random.default_rng(derive_seed("probe", seed))
    order = rng.permutation(len(data))
    held = np.sort(order[: max(1, min(HELD_OUT, len(data) // 4))])
    rest = data.subset(np.sort(order[len(held) :]))
    noise = TrainingNoise(derive_seed("probe", seed), start.data_shape)

    def losses(network: nn.Module) -> np.ndarray:
        return _losses(network, start, data, held, noise, options, teacher)

    network: Any = start.denoiser
    before, tried, images = losses(network), list[Tried](), STEPS * options.batch
    for rate in RATES:
        tuned = replace(options, lr=rate, warmup=WARMUP * options.batch, decay="constant", decay_batches=None)
        how: dict[str, Any] = {"images": images, "seed": seed, "teacher": teacher, "accelerator": accelerator}
        change = agree(losses(Trainer(start, rest, tuned, Path(), **how).averaged(advance)) - before)
        error = float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else 0.0
        tried.append(Tried(rate, float(before.mean() + change.mean()), error))
        if change.mean() < 0:
            break
    falls = bool(change.mean() < 0)
    return Probe(tried[-1].rate, falls, float(before.mean()), tuple(tried), images * len(tried))


def _losses(
    network: nn.Module,
    start: Model,
    data: Dataset,
    held: np.ndarray,
    noise: TrainingNoise,
    options: TrainOptions,
    teacher: Denoiser | None,
) -> np.ndarray:
    """The training loss on held-out samples, a few at a time: (n,), huge where it is not finite."""
    found = []
    for first in range(0, len(held), _FEW):
        some = held[first : first + _FEW]
        clean, labels = data.batch(some)
        clean, drawn, normal = (t.to(device_of(network)) for t in (clean, *noise.draw(first, len(some))))
        labels = None if labels is None else labels.to(clean.device)
        sigma = training_levels(start, options, normal)
        with torch.no_grad():
            found.append(float(denoising_loss(network.eval(), clean, labels, drawn, sigma, teacher)))
    return np.nan_to_num(np.array(found), nan=_HUGE, posinf=_HUGE, neginf=_HUGE)
