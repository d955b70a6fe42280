"""Noise of which sample i depends on seed i alone, whatever the batch, the order or the number of processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sims.errors import UserError
from sims.seeds import NUM_SEEDS


class SeededNoise:
    """One CPU generator per seed (EDM's convention), drawn from in a fixed order.

    The order is: initial noise, class label (if there are classes), churn noise of each step. The label is
    drawn whether or not the caller uses it, and takes one word of the generator whatever the shares, so that choosing
    classes never changes any noise. ``class_shares`` are weights, one for each class; evenly where there are none.
    Raises UserError for seeds that are not integers in 0 .. 2^32 - 1, and weights that are no shares of the classes.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        class_shares: Sequence[float] = (),
    ) -> None:
        self.data_shape = tuple(data_shape)
        self._generators = [torch.Generator().manual_seed(_checked(seed)) for seed in seeds]
        self._initial = self._randn(torch.float32)
        self._labels: Tensor | None = None
        if num_classes > 0:
            self._labels = self._classes(num_classes, checked_shares(class_shares, num_classes))

    def initial(self) -> Tensor:
        """Standard normal noise (B, *data_shape) float32; the same at each call."""
        return self._initial

    def labels(self) -> Tensor | None:
        """The classes drawn (B,) int64; None without classes."""
        return self._labels

    def step(self) -> Tensor:
        """The next step's standard normal noise (B, *data_shape) float64, as the sampler's state."""
        return self._randn(torch.float64)

    def _classes(self, num_classes: int, shares: tuple[float, ...]) -> Tensor:
        drawn = torch.empty(len(self._generators), dtype=torch.int64)
        if len(set(shares)) <= 1:
            for i, generator in enumerate(self._generators):
                torch.randint(num_classes, (), generator=generator, out=drawn[i])
            return drawn
        words = drawn.to(torch.int32)
        for i, generator in enumerate(self._generators):
            words[i].random_(generator=generator)  # 0 .. 2^31 - 1
        above = torch.tensor(shares, dtype=torch.float64).cumsum(0)
        # Classes without a share have no width; the last bound is open, whatever the rounding of the sum.
        last = max(index for index, share in enumerate(shares) if share > 0)
        return torch.searchsorted(above, words.double() / 2**31 * above[-1], right=True).clamp(max=last)

    def _randn(self, dtype: torch.dtype) -> Tensor:
        noise = torch.empty(len(self._generators), *self.data_shape, dtype=dtype)
        for i, generator in enumerate(self._generators):
            noise[i].normal_(generator=generator)
        return noise


def checked_shares(weights: Sequence[float], num_classes: int) -> tuple[float, ...]:
    """Shares (num_classes,) that sum to 1, of weights; () for none or a single one, which stand for even shares."""
    shares = tuple(map(float, weights))
    total = sum(shares)
    if shares and (min(shares) < 0 or not 0 < total < math.inf):
        raise UserError(f"class shares {list(shares)[:8]} must be finite numbers of at least 0, not all 0")
    if len(shares) <= 1:
        return ()
    if len(shares) != num_classes:
        raise UserError(f"{len(shares)} class shares for {num_classes} classes: give one for each, or 1 alone for even")
    return tuple(share / total for share in shares)


def _checked(seed: int) -> int:
    try:
        exact = int(seed)
        whole = exact == seed and math.isfinite(exact)
    except (TypeError, ValueError, OverflowError):
        exact, whole = 0, False
    if not whole or not 0 <= exact < NUM_SEEDS:
        raise UserError(f"seed {seed!r} is not an integer in 0 .. {NUM_SEEDS - 1}; choose seeds in that range")
    return exact
