"""The arithmetic of training: which number format the network computes in, and what fp16 needs besides."""

from __future__ import annotations

import math
import time
from functools import cache
from statistics import median
from typing import Literal

import torch
from torch import nn

from sims.denoiser import half_precision
from sims.measured import kept
from sims.processes import agree

Precision = Literal["auto", "fp32", "bf16", "fp16"]
WORTH = 1.2  # times as fast as fp32, from which on bf16 is taken
ROUNDS = 7


def has_bf16(device: torch.device) -> bool:
    """Whether a device multiplies matrices in bfloat16 natively: recent GPUs, and CPUs with AVX512-BF16 or AMX."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return any(getattr(torch.cpu, name, bool)() for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return False


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """The half precision to compute in; None for float32. Errors: UserError for fp16 on a CPU."""
    if precision == "auto":
        precision = "bf16" if bf16_speed(device) >= WORTH else "fp32"
    return half_precision(precision, device)


def said(device: torch.device) -> str:
    """What ``auto`` is on this device, and why."""
    if not has_bf16(device):
        return "fp32: this device has no arithmetic of bf16"
    speed = bf16_speed(device)
    return f"{'bf16' if speed >= WORTH else 'fp32'}: bf16 is {speed:.2g} times as fast here"


@cache
def bf16_speed(device: torch.device) -> float:
    """How many times as fast as fp32 a network trains in bf16 on this device; 0 where that is not native.

    Processors that have its instructions can be slower with them than without. On a CPU some tenths of a second tell,
    kept for the machine (``arithmetic.json`` in the cache); a GPU that has bf16 is faster with it.
    """
    if not has_bf16(device):
        return 0.0
    if device.type != "cpu":
        return 2.0
    return agree(kept("", _measured))


def _measured() -> float:
    """The ratio of times of a matrix product and of a convolution, with their gradients; both in turn, medians."""
    with torch.random.fork_rng(devices=[]):
        linear, convolution = nn.Linear(512, 512), nn.Conv2d(64, 64, 3, padding=1)
        inputs = torch.randn(512, 512), torch.randn(4, 64, 32, 32)

    def seconds(half: bool) -> tuple[float, ...]:
        taken = []
        for module, x in zip((linear, convolution), inputs):
            begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                module(x).float().square().mean().backward()
            taken.append(time.perf_counter() - begin)
        return tuple(taken)

    with torch.enable_grad():
        seconds(True), seconds(False)
        rows = [(seconds(False), seconds(True)) for _ in range(ROUNDS)]
    ratios = [median(row[0][part] for row in rows) / median(row[1][part] for row in rows) for part in (0, 1)]
    return math.sqrt(ratios[0] * ratios[1])


def loss_scaler(dtype: torch.dtype | None, device: torch.device) -> torch.amp.GradScaler:
    """Keeps small gradients from vanishing in fp16 (Micikevicius et al. 2018); does nothing in other formats."""
    return torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
