"""The denoising loss, for data and for distillation, and the noise levels it is taken at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sims.denoiser import Denoiser, expand
from sims.model import Model
from sims.training.options import TrainOptions


def denoising_loss(
    network: nn.Module,
    clean: Tensor,
    labels: Tensor | None,
    noise: Tensor,
    sigma: Tensor,
    teacher: Denoiser | None = None,
    augment: Tensor | None = None,
) -> Tensor:
    """Weighted denoising error, a scalar: Karras et al. 2022 (EDM), equation 8 and table 1 (``loss_weight``).

    clean, noise (B, *data_shape); sigma (B,), rounded to a level the network knows; labels (B,) or None. With a
    ``teacher`` the target is its denoised image rather than the clean one: the network learns to be the teacher.
    ``augment`` (B, augment_dim) tells the network what was done to the clean images.
    A network with a head for the log-variance u(sigma) is weighted by it: error / exp(u) + u (Karras et al. 2024,
    equation 21).
    """
    inner: Any = getattr(network, "module", network)  # without what several processes wrap around it
    sigma = inner.round_sigma(sigma)
    noisy = clean + expand(sigma, clean) * noise
    target = clean
    if teacher is not None:
        # Full precision: guidance multiplies the small difference of two networks.
        with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
            target = teacher(noisy, sigma, labels)
    return weighted_errors(network, noisy, sigma, labels, target, augment).mean()


def weighted_errors(
    network: nn.Module,
    noisy: Tensor,
    sigma: Tensor,
    labels: Tensor | None,
    target: Tensor,
    augment: Tensor | None = None,
) -> Tensor:
    """The summands of ``denoising_loss``, like ``target``: one of every value of noisy (B, *data_shape)."""
    inner: Any = getattr(network, "module", network)
    more = {} if augment is None else {"augment": augment}
    weight = inner.loss_weight(sigma)
    if getattr(inner, "loss_head", None) is None:
        error = (network(noisy, sigma, labels, **more).float() - target) ** 2
        return expand(weight, error) * error
    denoised, u = network(noisy, sigma, labels, log_variance=True, **more)
    error, u = (denoised.float() - target) ** 2, expand(u.float(), target)
    return expand(weight, error) / u.exp() * error + u


def training_levels(start: Model, options: TrainOptions, normal: Tensor) -> Tensor:
    """Noise levels (B,) to train at, of standard normal numbers (B,): the denoiser's own, or even along the schedule.

    The schedule is that of Karras et al. 2022, equation 5, of the model's sampler, down to the denoiser's lowest level.
    """
    denoiser: Any = start.denoiser
    if options.levels == "lognormal":
        return denoiser.training_sigma(normal, options.p_mean, options.p_std)  # type: ignore[no-any-return]
    inverse = 1 / start.sampler.rho
    high = (start.sampler.sigma_max or denoiser.sigma_max) ** inverse
    low = denoiser.sigma_min**inverse
    return (low + torch.special.ndtr(normal) * (high - low)) ** start.sampler.rho
