"""The denoising loss, for data and for distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sims.denoiser import Denoiser, expand


def denoising_loss(
    network: nn.Module,
    clean: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    sigma: Tensor,
    sigma_data: float,
    teacher: Denoiser | None = None,
) -> Tensor:
    """Weighted denoising error, a scalar: Karras et al. 2022 (EDM), equation 8 and table 1.

    clean, noise (B, *data_shape); sigma (B,); labels (B,) or None. With a ``teacher`` the target is its
    denoised image rather than the clean one: the network learns to be the teacher.
    """
    noisy = clean + expand(sigma, clean) * noise
    target = clean
    if teacher is not None:
        # Full precision: guidance multiplies the small difference of two networks.
        with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
            target = teacher(noisy, sigma, labels)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = (network(noisy, sigma, labels).float() - target) ** 2
    return (expand(weight, error) * error).mean()
