"""The exact denoiser of a mixture of Gaussians: the truth that tests compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sims.denoiser import Stateless
from sims.errors import UserError


class GaussianMixture(Stateless):
    """The ideal denoiser of p(x) = sum_k weights_k N(x; means_k, covariances_k), in closed form.

    weights          (K,) >= 0, normalized here
    means            (K, *data_shape); D is the product of data_shape
    covariances      (K, D, D) symmetric positive semidefinite
    component_labels (K,) the class of each component, 0 .. num_classes - 1, each class at least once;
                     None = unconditional

    With noise of standard deviation sigma added, component k is N(means_k, covariances_k + sigma^2 I) and
    E[x0 | x, k] = means_k + covariances_k (covariances_k + sigma^2 I)^-1 (x - means_k); the denoiser is the
    average of these, weighted with the posterior probability of each component. Everything is computed in
    float64 from eigendecompositions, so that tiny and huge sigma and singular covariances are exact too.
    """

    def __init__(
        self,
        weights: Tensor | Sequence[float],
        means: Tensor,
        covariances: Tensor,
        component_labels: Tensor | Sequence[int] | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        means = torch.as_tensor(means, dtype=torch.float64)
        covariances = torch.as_tensor(covariances, dtype=torch.float64)
        num_components, dim = len(weights), math.prod(means.shape[1:])
        if means.ndim < 2 or len(means) != num_components or covariances.shape != (num_components, dim, dim):
            raise UserError(
                f"a mixture of {num_components} components needs means ({num_components}, *data_shape) and covariances "
                f"({num_components}, D, D); got {tuple(means.shape)} and {tuple(covariances.shape)}"
            )
        if not (weights >= 0).all() or not 0 < float(weights.sum()) < math.inf:
            raise UserError(f"mixture weights must be non-negative, finite and not all zero; got {weights.tolist()}")
        eigenvalues, self._vectors = torch.linalg.eigh(covariances)  # (K, D), (K, D, D)
        if not (eigenvalues >= -1e-9 * eigenvalues.abs().amax().clamp(min=1.0)).all():
            raise UserError(
                f"covariances must be positive semidefinite; smallest eigenvalue {float(eigenvalues.min())}"
            )
        self._values = eigenvalues.clamp(min=0.0)
        self.data_shape: tuple[int, ...] = tuple(means.shape[1:])
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.weights = weights / weights.sum()
        self.means = means.reshape(num_components, dim)
        self.covariances = covariances
        self.num_classes = 0
        self.component_labels: Tensor | None = None
        if component_labels is not None:
            self.component_labels = torch.as_tensor(component_labels, dtype=torch.int64)
            self.num_classes = int(self.component_labels.max()) + 1
            if self.component_labels.shape != (num_components,) or set(self.component_labels.tolist()) != set(
                range(self.num_classes)
            ):
                raise UserError(
                    f"component_labels must give {num_components} classes that cover 0 .. n-1; "
                    f"got {self.component_labels.tolist()}"
                )

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """E[x0 | x, labels]: x (B, *data_shape), sigma (B,), labels (B,) or None -> like x (its dtype and device)."""
        z, log_posterior = self._posterior(x, sigma, labels)
        variances = self._noisy_variances(sigma, len(x))  # (B, K, D)
        shrunk = torch.einsum("kde,bke->bkd", self._vectors, self._values / variances * z)
        denoised = torch.einsum("bk,bkd->bd", log_posterior.softmax(dim=1), self.means + shrunk)
        return denoised.reshape(x.shape).to(x)

    def sample(self, n: int, generator: torch.Generator | None = None, labels: Tensor | None = None) -> Tensor:
        """n exact samples (n, *data_shape) float64; labels (n,) choose each sample's class, -1 or None = any."""
        chances = self._log_weights(labels, n).exp()  # (n, K)
        component = torch.multinomial(chances, 1, generator=generator).squeeze(1)  # (n,)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        z = self._values[component].sqrt() * z
        x = self.means[component] + torch.einsum("bde,be->bd", self._vectors[component], z)
        return x.reshape(n, *self.data_shape)

    def _posterior(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Coordinates of x - means_k in component k's eigenbasis (B, K, D); log joint density of x and k (B, K)."""
        flat = x.to("cpu", torch.float64).reshape(len(x), 1, -1)  # (B, 1, D)
        z = torch.einsum("kde,bkd->bke", self._vectors, flat - self.means)
        variances = self._noisy_variances(sigma, len(x))
        log_density = -0.5 * (z.square() / variances + (2 * math.pi * variances).log()).sum(dim=2)
        return z, log_density + self._log_weights(labels, len(x))

    def _noisy_variances(self, sigma: Tensor, batch: int) -> Tensor:
        squared = sigma.detach().to("cpu", torch.float64).expand(batch).square()
        return self._values + squared[:, None, None]  # (B, K, D)

    def _log_weights(self, labels: Tensor | None, batch: int) -> Tensor:
        """Log weights (B, K), minus infinity where a component is not of the sample's class."""
        log_weights = self.weights.log().expand(batch, -1)
        if labels is None or self.component_labels is None:
            return log_weights
        labels = labels.cpu()
        if int(labels.max()) >= self.num_classes:
            raise UserError(f"label {int(labels.max())} is beyond the {self.num_classes} classes of this mixture")
        other = (labels[:, None] >= 0) & (labels[:, None] != self.component_labels)
        return log_weights.masked_fill(other, -math.inf)
