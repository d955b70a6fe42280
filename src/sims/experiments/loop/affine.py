"""An affine denoiser, fitted exactly in every generation: the loop that theory knows."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from sims.denoiser import Stateless
from sims.errors import UserError


class AffineReplicas(Stateless):
    """D(x, sigma) = mu + S (S + sigma^2 I)^-1 (x - mu), exact for N(mu, S): one per slice, x (B, M, D).

    ``points`` (N, M, D), N >= 2, are what it is fitted to: their means, and their unbiased covariances.
    """

    def __init__(self, points: Tensor, sigma_min: float = 0.002, sigma_max: float = 80.0) -> None:
        if len(points) < 2:
            raise UserError(f"{len(points)} point(s): a covariance needs at least 2")
        x = points.double()
        self.mean = x.mean(dim=0)  # (M, D)
        apart = x - self.mean
        self.covariance = torch.einsum("nmd,nme->mde", apart, apart) / (len(x) - 1)  # (M, D, D)
        values, self._vectors = torch.linalg.eigh(self.covariance)
        self._values = values.clamp(min=0.0)  # (M, D)
        self.data_shape: tuple[int, ...] = tuple(x.shape[1:])
        self.num_classes, self.sigma_min, self.sigma_max = 0, sigma_min, sigma_max

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """x (B, M, D), sigma (B,) -> like x; computed in float64."""
        z = torch.einsum("mde,bmd->bme", self._vectors, x.double() - self.mean)
        variances = self._values + sigma.double().square()[:, None, None]
        return (self.mean + torch.einsum("mde,bme->bmd", self._vectors, self._values / variances * z)).to(x.dtype)

    def select(self, indices: Sequence[int]) -> AffineReplicas:
        """The denoiser of some of the slices, in this order."""
        chosen = copy.copy(self)
        index = list(indices)
        chosen.mean, chosen.covariance = self.mean[index], self.covariance[index]
        chosen._vectors, chosen._values = self._vectors[index], self._values[index]
        chosen.data_shape = tuple(chosen.mean.shape)
        return chosen
