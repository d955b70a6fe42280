"""A linear layer that multiplies with the faster of the two libraries that torch has for a CPU."""

from __future__ import annotations

import time
from functools import cache
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.measured import kept

LEAST = 1 << 22  # multiplications, below which it makes no difference
WORTH = 1.3  # times as fast, from which on oneDNN is taken
ROUNDS = 15


class Linear(nn.Linear):
    """``nn.Linear``; where samples are drawn in fp32 on a CPU, by oneDNN if that is faster there than torch's choice.

    torch multiplies matrices of fp32 with MKL, which knows processors of other makers less well (half as fast on an
    AMD EPYC, ``benchmarks/cpu.py``). Values agree up to rounding.
    """

    def forward(self, x: Tensor) -> Tensor:
        sampling = not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        large = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() * self.out_features >= LEAST
        if sampling and large and onednn_speed() >= WORTH:
            return _onednn(x, self.weight, self.bias)
        return super().forward(x)


@cache
def onednn_speed() -> float:
    """How many times as fast as MKL oneDNN multiplies matrices of fp32 on this machine; 0 where it cannot."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0.0
    return kept("oneDNN over MKL: ", _measured)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def _measured() -> float:
    """The ratio of times of a product of usual size; both in turn, medians."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        x, weight, bias = torch.randn(512, 256), torch.randn(512, 256), torch.randn(512)
        rows = []
        for _ in range(ROUNDS + 1):
            stamps = [time.perf_counter()]
            for multiply in (F.linear, _onednn):
                for _ in range(4):
                    multiply(x, weight, bias)
                stamps.append(time.perf_counter())
            rows.append((stamps[1] - stamps[0], stamps[2] - stamps[1]))
    return median(mkl / onednn for mkl, onednn in rows[1:])
