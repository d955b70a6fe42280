"""A short probe of the real network on the real device: what a training step and an evaluation cost."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sims.denoiser import Denoiser
from sims.training.ema import EMA
from sims.training.loop import TrainOptions, has_bf16
from sims.training.loss import denoising_loss

SECONDS = 24.0  # of all measurements together, beyond the first two steps
SHARE = 0.5  # of the free memory that a probe may fill


@dataclass(frozen=True)
class Cost:
    """What was measured, with the batches it was measured at; seconds are per image on one process.

    A training step of B images at once keeps ``activations_fixed + B * activations`` bytes for its backward pass.
    ``update`` is what a step costs whatever its batch: gradient norm, Adam, average of the weights.
    """

    train: float
    update: float
    evaluation: float
    activations: float
    activations_fixed: float
    train_batch: int
    evaluation_batch: int


def probe(denoiser: Denoiser, options: TrainOptions, share: int, batch_size: int, device: torch.device) -> Cost:
    """Measure ``denoiser`` on ``device``; ``share`` images are trained on and ``batch_size`` sampled at once.

    The batches are smaller where the time or half of the free memory does not suffice. Nothing is written, and the
    state of the random generators is given back; the weights of ``denoiser`` may change.
    """
    deadline = time.monotonic() + SECONDS
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = denoiser.to(device).train().requires_grad_(True)  # type: ignore[attr-defined]
        step = _Step(network, options, device)
        kept, seconds = step.kept(1)
        fixed, first = 0, 1
        if seconds < SECONDS / 8:  # a second step tells what does not grow with the batch
            twice, seconds = step.kept(2)
            fixed, kept, first = max(2 * kept - twice, 0), max(twice - kept, 0), 2
        most = max(2, int(SHARE * free_memory(device) / max(kept, 1)))
        train, batch = _per_image(step, first, seconds, min(share, most), deadline - SECONDS / 2, device)
        update = _update(network, device)
        network.eval().requires_grad_(False)
        evaluation, sampled = _evaluations(step, min(batch_size, 4 * most), deadline, device)
    return Cost(train, update, evaluation, kept, fixed, batch, sampled)


class _Step:
    """Forward and backward passes, and evaluations, on random images of any number."""

    def __init__(self, network: Any, options: TrainOptions, device: torch.device) -> None:
        self.network, self.options, self.device = network, options, device
        self.bf16 = options.precision == "bf16" or (options.precision == "auto" and has_bf16(device))
        config = getattr(getattr(network, "network", None), "config", {})
        self.augment_dim = config.get("augment_dim", 0) if options.augment else 0

    def _images(self, count: int) -> tuple[Tensor, Tensor | None]:
        x = torch.randn(count, *self.network.data_shape, device=self.device)
        classes = self.network.num_classes
        return x, torch.randint(classes, (count,), device=self.device) if classes else None

    def loss(self, count: int) -> Tensor:
        x, labels = self._images(count)
        sigma = (torch.randn(count, device=self.device) * self.options.p_std + self.options.p_mean).exp()
        augment = torch.zeros(count, self.augment_dim, device=self.device) if self.augment_dim else None
        sigma_data = float(getattr(self.network, "sigma_data", 0.5))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            return denoising_loss(self.network, x, labels, torch.randn_like(x), sigma, sigma_data, augment=augment)

    def __call__(self, count: int) -> None:
        self.loss(count).backward()

    def kept(self, count: int) -> tuple[int, float]:
        """Bytes that a step keeps for its backward pass besides the weights, and its seconds."""
        own = {p.untyped_storage().data_ptr() for p in self.network.parameters()}
        held: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return tensor

        def step() -> None:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                loss = self.loss(count)
            loss.backward()

        seconds = timed(step, self.device)
        return sum(held.values()), seconds

    @torch.no_grad()
    def evaluate(self, count: int) -> None:
        x, labels = self._images(count)
        self.network(x, torch.ones(count, device=self.device), labels)


def _per_image(
    call: Callable[[int], object], first: int, seconds: float, most: int, deadline: float, device: torch.device
) -> tuple[float, int]:
    """Seconds per image of a call, and the largest affordable batch it was timed at, from a timed call of ``first``."""
    rate, batch = seconds / first, first
    while batch < most:
        larger = min(most, 4 * batch, int((deadline - time.monotonic()) / (2 * rate)))  # one to warm up, one timed
        if larger <= batch:
            break
        call(larger)
        rate, batch = timed(lambda: call(larger), device) / larger, larger  # noqa: B023 (called at once)
    repeats = min(3, int((deadline - time.monotonic()) / (rate * batch)))
    return min([rate, *(timed(lambda: call(batch), device) / batch for _ in range(repeats))]), batch


def _evaluations(step: _Step, most: int, deadline: float, device: torch.device) -> tuple[float, int]:
    seconds = timed(lambda: step.evaluate(1), device)
    return _per_image(step.evaluate, 1, seconds, most, deadline, device)


def _update(network: nn.Module, device: torch.device) -> float:
    """Seconds of gradient norm, Adam and average; 0 where their memory is not free."""
    parameters = list(network.parameters())
    needed = 4 * sum(p.numel() * p.element_size() for p in parameters)  # moments, average, and some room
    if needed > free_memory(device):
        network.zero_grad(set_to_none=True)
        return 0.0
    optimizer, average = torch.optim.Adam(parameters, lr=0.0, fused=True), EMA(network)

    def step() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        average.update(0.5)

    seconds = min(timed(step, device) for _ in range(2))
    network.zero_grad(set_to_none=True)
    return seconds


def timed(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, and of all that it leaves for the device to do."""
    _synchronize(device)
    begin = time.monotonic()
    call()
    _synchronize(device)
    return time.monotonic() - begin


def _synchronize(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def free_memory(device: torch.device) -> int:
    """Bytes free on a device; of the machine, where the device has no memory of its own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
