"""Training that tells real data from a model's own samples: the data of both kinds, and what is minimized on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, expand
from sims.training.loss import weighted_errors


class RealAndOwn:
    """Real data and own samples in equal shares, the smaller set repeated, with labels that say which is which."""

    def __init__(self, real: Dataset, own: Dataset) -> None:
        self.real, self.own = real, own
        self.half = max(len(real), len(own))

    def __len__(self) -> int:
        return 2 * self.half

    def batch(self, indices: Any) -> tuple[Tensor, Tensor | None]:
        """Clean data (B, *data_shape); labels (B, 2): the class, -1 = none, and 1 for what is real."""
        index = np.asarray(indices)
        is_real = index < self.half
        clean = torch.empty(len(index), *self.real.data_shape)
        labels = torch.stack([torch.full((len(index),), -1), torch.from_numpy(is_real.astype(np.int64))], dim=1)
        for data, of_data in ((self.real, is_real), (self.own, ~is_real)):
            if of_data.any():
                clean[of_data], classes = data.batch(index[of_data] % self.half % len(data))
                if classes is not None:
                    labels[of_data, 0] = classes
        return clean, labels


def _parted(network: nn.Module, labels: Tensor) -> tuple[Tensor | None, Tensor]:
    """Classes (B,), or None for a network without any, and whether each is real, (B,), of labels (B, 2)."""
    inner: Any = getattr(network, "module", network)
    return labels[:, 0] if inner.num_classes else None, labels[:, 1] > 0


def discriminator_loss(
    network: nn.Module,
    clean: Tensor,
    labels: Tensor,
    noise: Tensor,
    sigma: Tensor,
    teacher: Denoiser | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of a ``RatioPrecond`` on noised ``RealAndOwn``, a scalar: Kim et al. 2023, section 3.

    All levels weigh the same. Weighted by 1 / c_in the noise of high levels, where hardly anything can be told apart,
    hid what there is to learn at others (on the digits).
    """
    classes, is_real = _parted(network, labels)
    logit = network(clean + expand(sigma, clean) * noise, sigma, classes, logit=True).float()
    return F.softplus(torch.where(is_real, -logit, logit)).mean()


@dataclass(frozen=True)
class DirectLoss:
    """-log s(beta delta) on real data, -alpha log s(-beta delta) on own samples: Zheng et al. 2025 (arXiv 2503.01103).

    s is the sigmoid, and delta = (L_frozen - L) / sqrt(D) at the same noise and level, where L sums the
    ``weighted_errors`` of the D values of a sample: what its log-likelihood has gained over the frozen network, in a
    unit in which independent values would make it spread alike whatever their number.

    The defaults were the best of alpha 1 to 16 and beta 0.08 to 8 on one small base of the digits.
    """

    alpha: float = 4.0
    beta: float = 0.8

    def __call__(
        self,
        network: nn.Module,
        clean: Tensor,
        labels: Tensor,
        noise: Tensor,
        sigma: Tensor,
        frozen: nn.Module,
        augment: Tensor | None = None,
    ) -> Tensor:
        """A scalar, of ``RealAndOwn``; both networks compute with the same precision, since their difference counts."""
        inner: Any = getattr(network, "module", network)
        classes, is_real = _parted(network, labels)
        sigma = inner.round_sigma(sigma)
        noisy = clean + expand(sigma, clean) * noise
        with torch.no_grad():
            before = weighted_errors(frozen, noisy, sigma, classes, clean)
        gained = (before - weighted_errors(network, noisy, sigma, classes, clean)).flatten(1)  # (B, D)
        logit = self.beta * gained.sum(1) / gained.shape[1] ** 0.5
        return torch.where(is_real, F.softplus(-logit), self.alpha * F.softplus(logit)).mean()
