"""Where along a trajectory to recompute a correction: the rule of a pilot, and dynamic programming for the places."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sims.config import JSON, convert, to_dict
from sims.errors import UserError
from sims.sampling import SamplerOptions, sample_seeds

if TYPE_CHECKING:
    from sims.guidance.correction import CorrectionGuide

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Step:
    """What to do at one evaluation: compute the correction anew, and the factor by which it is applied."""

    refresh: bool
    scale: float


@dataclass(frozen=True)
class CacheRule:
    """Where to recompute the correction c = D_base - D_aux, and how much of it to reuse between: no hand-placed list.

    A short pilot gives the Gram matrix G_ij = E <c_i, c_j> of corrections at its noise levels; it is the whole rule.
    For any other levels it is interpolated in ln sigma. A correction of level i, reused at level j with the best
    factor a = G_ij / G_ii, misses c_j by |c_j - a c_i| = sqrt(G_jj - G_ij^2 / G_ii). An error e in the denoiser at
    sigma_j moves the end of the probability-flow ODE dx / d ln sigma = x - D by |e| times the step in ln sigma times
    exp(-integral_0^sigma_j s / (sigma_data^2 + s^2) ds) = sigma_data / sqrt(sigma_data^2 + sigma_j^2), the
    contraction of the flow for Gaussian data. The refreshes minimize the sum of |c_j - a c_i| with these weights over
    all levels (errors along one trajectory add up), exactly, by dynamic programming. Before the first refresh there may
    be no correction at all.

    Evaluations that follow one another at one level (Heun's corrector and the next predictor) share one computation,
    the first. Measured with 18 Heun steps, 8 refreshes, 5,000 samples and equal seeds on two trainings of CIFAR-10 at
    8 x 8 and three of the digits, the share of the gain in FD that is kept: 0.98, 0.97, 1.06, 1.01, 0.98. The sum of
    squares instead of the sum: 0.91, 0.99, 1.02, 1.01, 0.64. Factors that keep the size, sqrt(G_jj / G_ii): 0.97, 0.97,
    1.06, 1.01, 0.94. ``from_pilot`` makes one.
    """

    sigmas: tuple[float, ...]
    """The pilot's noise levels, decreasing (L,)."""
    gram: tuple[tuple[float, ...], ...]
    """Mean inner products of the corrections (L, L)."""
    sigma_data: float
    """Standard deviation of the data, per value."""
    refreshes: int
    """How often to compute the correction in one trajectory, at most."""

    def __post_init__(self) -> None:
        size = len(self.sigmas)
        if size == 0 or len(self.gram) != size or any(len(row) != size for row in self.gram):
            raise UserError(f"a cache rule needs {size} x {size} inner products, at least one")
        if not all(a > b for a, b in zip(self.sigmas, self.sigmas[1:])) or self.sigmas[-1] <= 0:
            raise UserError(f"a cache rule's noise levels must decrease and be positive; got {self.sigmas}")
        if not all(math.isfinite(value) for row in self.gram for value in row):
            raise UserError("a cache rule's inner products must be finite: the pilot diverged; lower w")
        if not 0 < self.sigma_data < math.inf:
            raise UserError(f"sigma_data must be positive; got {self.sigma_data}")
        if self.refreshes < 1:
            raise UserError(f"a cache rule needs at least 1 refresh; got {self.refreshes}")

    @classmethod
    def from_corrections(
        cls, sigmas: Sequence[float], corrections: Sequence[Tensor], sigma_data: float, refreshes: int
    ) -> CacheRule:
        """The rule from a pilot's corrections (B, *data_shape), one per evaluation, at these levels, in order.

        Corrections at one level (Heun's corrector and the next predictor) are averaged.
        """
        if len(sigmas) != len(corrections) or not sigmas:
            raise UserError(f"a pilot needs one correction per level; got {len(corrections)} for {len(sigmas)}")
        levels = sorted(set(sigmas), reverse=True)
        at = torch.tensor([[float(s == level) for s in sigmas] for level in levels], dtype=torch.float64)
        at = at / at.sum(dim=1, keepdim=True)  # (L, P), averages
        flat = torch.stack([c.flatten() for c in corrections])  # (P, B * D)
        gram = at @ (flat @ flat.T / len(corrections[0])).to(torch.float64) @ at.T
        rows = tuple(tuple(row) for row in gram.tolist())
        return cls(tuple(float(level) for level in levels), rows, float(sigma_data), refreshes)

    @classmethod
    def from_pilot(
        cls,
        guided: CorrectionGuide,
        seeds: Sequence[int],
        sampler: SamplerOptions | None = None,
        refreshes: int = 8,
        sigma_data: float | None = None,
    ) -> CacheRule:
        """The rule from one batch of samples of these seeds with full guidance: 128 are enough.

        ``sigma_data`` is the base's own where it has one, else 0.5. Errors: UserError if the samples diverge, or
        nothing is guided at the levels of this sampler.

        >>> import dataclasses, sims
        >>> model = sims.load(GUIDED)
        >>> rule = sims.CacheRule.from_pilot(model.denoiser, range(16), model.sampler, refreshes=3)
        >>> cached = model.with_denoiser(dataclasses.replace(model.denoiser, cache=rule))
        >>> cached.sample(seeds=range(4)).shape
        torch.Size([4, 1, 8, 8])
        """
        from sims.guidance.recorder import Recorder  # which is made of guides, and these of rules

        recorder = Recorder(guided, [])
        sample_seeds(recorder, seeds, sampler or SamplerOptions(), batch_size=max(1, len(seeds)))
        levels, corrections = [level for level, _ in recorder.records], [c for _, c in recorder.records]
        if sigma_data is None:
            sigma_data = float(getattr(guided.base, "sigma_data", 0.5))
        return cls.from_corrections(levels, corrections, sigma_data, refreshes)

    def with_refreshes(self, refreshes: int) -> CacheRule:
        """The same rule with another budget."""
        return replace(self, refreshes=refreshes)

    def plan(self, sigmas: Tensor) -> list[Step]:
        """What to do at each of these levels, in the order of their evaluation."""
        levels, group = _grouped(sigmas)
        if not levels:
            return []
        gram = self._interpolated(levels)
        factors = _factors(gram)
        chosen, _ = _place(gram, _weights(levels, self.sigma_data), self.refreshes)
        steps: list[Step] = []
        current: int | None = None
        for position, j in enumerate(group):
            first = position == 0 or group[position - 1] != j
            if first and j in chosen:
                current = j
                steps.append(Step(True, 1.0))
            elif current is None:
                steps.append(Step(False, 0.0))
            else:
                steps.append(Step(False, 1.0 if current == j else float(factors[current, j])))
        return steps

    def to_json(self) -> dict[str, JSON]:
        """Plain lists and numbers."""
        return to_dict(self)

    @classmethod
    def from_json(cls, data: JSON) -> CacheRule:
        """The rule that to_json() described; UserError for anything else."""
        return convert(data, cls, "cache", what="entry")  # type: ignore[no-any-return]

    def _interpolated(self, levels: Sequence[float]) -> Array:
        """The Gram matrix (M, M) at other levels: bilinear in ln sigma, so that it stays positive semidefinite."""
        pilot = np.log(self.sigmas)[::-1]
        hats = [np.interp(np.log(levels), pilot, row) for row in np.eye(len(pilot))[::-1]]
        at = np.stack(hats, axis=1)  # (M, L), rows sum to 1
        return at @ np.array(self.gram) @ at.T


def _grouped(sigmas: Tensor) -> tuple[list[float], list[int]]:
    """Levels with repeats that follow one another merged, and the index of each evaluation's merged level."""
    levels: list[float] = []
    group: list[int] = []
    for sigma in sigmas.tolist():
        if not levels or sigma != levels[-1]:
            levels.append(sigma)
        group.append(len(levels) - 1)
    return levels, group


def _weights(levels: Sequence[float], sigma_data: float) -> Array:
    """How far an error at each level moves the final sample (M,): trapezoid in ln sigma times contraction."""
    sigmas = np.array(levels)
    order = np.argsort(sigmas)  # churn makes the levels go up and down
    ascending = np.log(sigmas[order])
    # The last step, from the lowest level to 0, takes the denoised estimate as it is: length 1.
    gaps = np.concatenate([[1.0], np.diff(ascending) / 2])
    lengths = np.empty(len(levels))
    lengths[order] = gaps + np.concatenate([gaps[1:], [0.0]])
    return lengths * sigma_data / np.sqrt(sigma_data**2 + sigmas**2)


def _factors(gram: Array) -> Array:
    """The best factor a_ij (M, M) by which correction i stands for correction j: G_ij / G_ii."""
    norms = np.diagonal(gram)[:, None]
    return np.divide(gram, norms, out=np.zeros_like(gram), where=norms > 0)


def _misses(gram: Array) -> Array:
    """The root mean square (M, M) of what correction i misses of correction j: sqrt(G_jj - G_ij^2 / G_ii)."""
    return np.sqrt(np.maximum(np.diagonal(gram)[None, :] - _factors(gram) * gram, 0.0))


def _place(gram: Array, weights: Array, refreshes: int) -> tuple[list[int], float]:
    """The at most `refreshes` levels whose corrections, each held until the next, cost least; and that cost.

    gram (M, M), weights (M,). Exact, by dynamic programming over the first `end` levels and the refreshes among them.
    """
    num, misses, skipped = len(weights), _misses(gram), np.sqrt(np.maximum(np.diagonal(gram), 0.0))
    held = np.zeros((num, num + 1))  # held[i, end]: correction i for the levels i .. end - 1
    for i in range(num):
        held[i, i + 1 :] = np.cumsum(weights[i:] * misses[i, i:])
        held[i, : i + 1] = math.inf
    best = np.concatenate([[0.0], np.cumsum(weights * skipped)])  # no refresh among the first `end` levels
    choices: list[Array] = []
    for _ in range(min(refreshes, num)):
        costs = best[:num, None] + held  # (M, M + 1): the latest refresh at i
        choices.append(costs.argmin(axis=0))
        # A refresh that gains nothing is not made.
        choices[-1] = np.where(costs.min(axis=0) < best, choices[-1], -1)
        best = np.minimum(costs.min(axis=0), best)
    chosen: list[int] = []
    end = num
    for choice in reversed(choices):
        if choice[end] >= 0:
            end = int(choice[end])
            chosen.append(end)
    return sorted(chosen), float(best[num])
