"""Two-dimensional test beds for loops: the true distributions, random numbers per replica, and what is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims.gaussians import GaussianMixture
from sims.metrics.copies import memorization, nearest_distances
from sims.metrics.points import mode_coverage, sliced_wasserstein
from sims.metrics.precision_recall import manifolds
from sims.results.common import FigureFacts
from sims.seeds import derive_seed
from sims.training.training_noise import TrainingNoise

_BLOCK = 256  # rows of training noise that are drawn together, as TrainingNoise does
NEIGHBOURS = 500  # samples, and exact ones, that precision, recall and memorization look at
EXACT = 10_000  # exact samples that stand for the truth of a mixture
PROJECTIONS = 32
LEAST_SHARE = 0.2  # of its true share that a mode must have to be covered
POINT_FIGURES = {
    "w2": FigureFacts("2-Wasserstein distance", "lower", "distance"),
    "sliced_w2": FigureFacts("sliced Wasserstein distance", "lower", "distance"),
    "precision": FigureFacts("precision", "higher", "share"),
    "recall": FigureFacts("recall", "higher", "share"),
    "memorized": FigureFacts("share suspiciously near a training point", "lower", "share"),
    "distance_ratio": FigureFacts("distance to the nearest training point, against held-out ones"),
    "coverage": FigureFacts("modes covered", "higher", "share"),
    "class_distance": FigureFacts("total variation of the modes' shares", "lower", "share"),
    "log_det": FigureFacts("log determinant of the covariance"),
}


@dataclass(frozen=True)
class Toy:
    """A true distribution in two dimensions; ``spread`` is the standard deviation of its modes, None without modes."""

    name: str
    truth: GaussianMixture
    spread: float | None = None

    @property
    def distance(self) -> str:
        """The figure that says how far samples are from the truth."""
        return "w2" if self.spread is None else "sliced_w2"

    @property
    def sigma_data(self) -> float:
        """Root mean variance per axis of the truth."""
        mean, covariance = self.moments()
        return math.sqrt(float(np.trace(covariance)) / len(mean))

    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean (2,) and covariance (2, 2) of the truth."""
        weights, means = self.truth.weights.numpy(), self.truth.means.numpy()
        mean = weights @ means
        apart = means - mean
        within = np.einsum("k,kde->de", weights, self.truth.covariances.numpy())
        return mean, within + np.einsum("k,kd,ke->de", weights, apart, apart)

    def draw(self, count: int, *key: object) -> Tensor:
        """Exact samples (count, 2) float32 that depend on the key alone."""
        generator = torch.Generator().manual_seed(derive_seed("points", self.name, *key))
        return self.truth.sample(count, generator).float()


def _gaussian() -> Toy:
    covariance = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]])
    return Toy("gaussian", GaussianMixture([1.0], torch.zeros(1, 2), covariance))


def _mixture() -> Toy:
    """Five modes on a circle of radius 2, of unequal shares: rare modes are what loops lose first."""
    angles = torch.arange(5) * (2 * math.pi / 5) + math.pi / 2
    means = 2 * torch.stack([angles.cos(), angles.sin()], dim=1)
    covariances = 0.3**2 * torch.eye(2).expand(5, 2, 2)
    return Toy("mixture", GaussianMixture([0.3, 0.25, 0.2, 0.15, 0.1], means, covariances), 0.3)


TOYS: dict[str, Callable[[], Toy]] = {"gaussian": _gaussian, "mixture": _mixture}


class ReplicaData:
    """Training points (N, M, 2), one set of N for each of M slices: what the training loop asks of data."""

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def __len__(self) -> int:
        return len(self.points)

    def batch(self, indices: np.ndarray) -> tuple[Tensor, None]:
        """The points (B, M, 2) at these indices, the same index in every set."""
        return self.points[torch.from_numpy(np.asarray(indices))], None


class ReplicaNoise(TrainingNoise):
    """Training noise for slices arm * R + replica: a replica has numbers of its own, the same in every arm.

    They depend on the replica's number and not on which others run beside it. The noise levels are shared by all
    slices, as a batch has one level a row; so that no common luck moves all replicas, each block of 256 spreads them
    evenly over the quantiles of the normal distribution.
    """

    def __init__(self, seed: int, replicas: Sequence[int], arms: int) -> None:
        super().__init__(seed, (arms * len(replicas), 2))
        self.arms = arms
        self.seeds = [derive_seed("noise", seed, replica) for replica in replicas]

    def _block(self, block: int) -> np.ndarray:
        shared = np.random.Generator(np.random.Philox(key=[self.seed, block]))
        places = (shared.permutation(_BLOCK) + shared.random(_BLOCK)) / _BLOCK  # one in every 256th of [0, 1)
        levels = torch.special.ndtri(torch.from_numpy(places).clamp(1e-6, 1 - 1e-6)).float().numpy()
        own = np.empty((_BLOCK, 1, len(self.seeds), 2), np.float32)
        for index, seed in enumerate(self.seeds):
            own[:, 0, index] = _normal(seed, block, _BLOCK)
        noise = np.broadcast_to(own, (_BLOCK, self.arms, len(self.seeds), 2))
        return np.concatenate([levels[:, None], noise.reshape(_BLOCK, -1)], axis=1)


def sampling_noise(replicas: Sequence[int], count: int, *key: object) -> Tensor:
    """Standard normal noise (count, R, 2) float32; a replica's depends on its number and the key alone."""
    drawn = [_normal(derive_seed("sampling", *key, replica), 0, count) for replica in replicas]
    return torch.from_numpy(np.stack(drawn, axis=1))


def _normal(seed: int, block: int, count: int) -> np.ndarray:
    generator = np.random.Generator(np.random.Philox(key=[seed, block]))
    return generator.standard_normal((count, 2), dtype=np.float32)


def gaussian_w2(points: np.ndarray, mean: np.ndarray, covariance: np.ndarray) -> float:
    """The 2-Wasserstein distance of the Gaussian with the points' moments (N, 2) to N(mean, covariance).

    |m - mean|² + tr(C + S - 2 (C S)^½), and tr (C S)^½ = (tr C S + 2 (det C S)^½)^½ for 2 x 2. It sees nothing of the
    points beyond their mean and (unbiased) covariance.
    """
    own = np.cov(points.T)
    shift = float(np.square(points.mean(axis=0) - mean).sum())
    root = math.sqrt(max(0.0, float(np.linalg.det(own) * np.linalg.det(covariance))))
    cross = math.sqrt(max(0.0, float(np.trace(own @ covariance)) + 2 * root))
    return math.sqrt(max(0.0, shift + float(np.trace(own) + np.trace(covariance)) - 2 * cross))


class Ruler:
    """Measures samples of one replica against the truth, and against the real points that generation 0 has seen."""

    def __init__(self, toy: Toy) -> None:
        self.toy = toy
        self.mean, self.covariance = toy.moments()
        self.exact = toy.draw(EXACT, "exact").double().numpy()
        self.held_out = self.exact[:NEIGHBOURS]

    def measure(self, samples: Tensor, real: Tensor) -> dict[str, float]:
        """Figures of samples (N, 2); ``real`` (n, 2) are the training points that they could be copies of.

        Samples that diverged count as points far away, so that no figure is undefined.
        """
        points = samples.double().nan_to_num(1e3, 1e3, -1e3).clamp(-1e3, 1e3).numpy()
        distance = gaussian_w2(points, self.mean, self.covariance)
        if self.toy.spread is not None:
            distance = sliced_wasserstein(points, self.exact, PROJECTIONS)
        figures = {self.toy.distance: distance} | self._neighbours(points[:NEIGHBOURS], real.double().numpy())
        if self.toy.spread is not None:
            return figures | self._modes(points)
        determinant = max(float(np.linalg.det(np.cov(points.T))), 1e-300)
        return figures | {"log_det": math.log(determinant / float(np.linalg.det(self.covariance)))}

    def floor(self, count: int, draws: int = 40) -> float:
        """The mean distance that as many exact samples have to the truth."""
        sets = [self.toy.draw(count, "floor", draw).double().numpy() for draw in range(draws)]
        if self.toy.spread is None:
            return float(np.mean([gaussian_w2(points, self.mean, self.covariance) for points in sets]))
        return float(np.mean([sliced_wasserstein(points, self.exact, PROJECTIONS) for points in sets]))

    def _neighbours(self, points: np.ndarray, real: np.ndarray) -> dict[str, float]:
        both = manifolds(self.held_out, points, (3,))[3]
        copies = memorization(nearest_distances(points, real), nearest_distances(self.held_out, real))
        return {
            "precision": both.precision,
            "recall": both.recall,
            "memorized": copies.share_1,
            "distance_ratio": copies.median_ratio,
        }

    def _modes(self, points: np.ndarray) -> dict[str, float]:
        assert self.toy.spread is not None
        weights = self.toy.truth.weights.numpy()
        modes = mode_coverage(points, self.toy.truth.means, self.toy.spread)
        shares = np.array(modes.counts) / max(1, sum(modes.counts))
        return {
            "coverage": float((shares >= LEAST_SHARE * weights).mean()),
            "class_distance": float(np.abs(shares - weights).sum() / 2),
        }
