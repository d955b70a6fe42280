"""The exact mixture denoiser against integration by hand, autograd and samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.gaussians import GaussianMixture

MEANS = torch.tensor([[1.0, 2.0], [-1.0, 0.0], [0.5, -1.0]])
COVARIANCES = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[1.0, -0.5], [-0.5, 0.6]], [[0.1, 0.0], [0.0, 0.4]]])
WEIGHTS = [0.2, 0.5, 0.3]


def mixture(labels: list[int] | None = None) -> GaussianMixture:
    return GaussianMixture(WEIGHTS, MEANS, COVARIANCES, labels)


def test_implements_the_contract() -> None:
    g = mixture([0, 1, 1])
    assert isinstance(g, Denoiser)
    assert (g.data_shape, g.num_classes) == ((2,), 2)
    assert g.evaluations(torch.ones(5)) == 5


def log_prob(g: GaussianMixture, x: Tensor, sigma: float = 0.0, labels: Tensor | None = None) -> Tensor:
    """Log density of x (B, *data_shape) under the mixture, noised by sigma if given: (B,) float64."""
    _, log_joint = g._posterior(x, torch.full((len(x),), sigma, dtype=torch.float64), labels)
    return log_joint.logsumexp(dim=1) - g._log_weights(labels, len(x)).logsumexp(dim=1)


def test_denoiser_is_the_posterior_mean_in_one_dimension() -> None:
    """Against E[x0 | x] integrated numerically over x0."""
    g = GaussianMixture([0.4, 0.6], torch.tensor([[-1.0], [1.5]]), torch.tensor([[[0.2]], [[0.5]]]))
    x0 = torch.linspace(-8, 8, 20001, dtype=torch.float64)[:, None]
    prior = log_prob(g, x0).exp()
    for sigma in (0.3, 1.0, 4.0):
        x = torch.linspace(-5, 5, 7, dtype=torch.float64)[:, None]
        posterior = prior * torch.exp(-0.5 * ((x - x0.T) / sigma) ** 2)  # (7, 20001)
        expected = (posterior @ x0) / posterior.sum(dim=1, keepdim=True)
        torch.testing.assert_close(g(x, torch.full((7,), sigma)), expected, atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
@pytest.mark.parametrize("labels", [None, [0, 1, -1, 1]])
def test_denoiser_is_the_score_of_the_noisy_density(sigma: float, labels: list[int] | None) -> None:
    """Tweedie: D(x) = x + sigma^2 grad log p_sigma(x); differences of log_prob stand for the gradient."""
    g = mixture([0, 1, 1])
    classes = None if labels is None else torch.tensor(labels)
    x = torch.tensor([[0.1, 0.2], [1.0, 2.0], [-1.0, 0.3], [0.4, -0.9]], dtype=torch.float64)
    eps = 1e-5 * sigma
    gradient = torch.empty_like(x)
    for d in range(2):
        shift = eps * torch.eye(2, dtype=torch.float64)[d]
        up, down = log_prob(g, x + shift, sigma, classes), log_prob(g, x - shift, sigma, classes)
        gradient[:, d] = (up - down) / (2 * eps)
    expected = x + sigma**2 * gradient
    levels = torch.full((4,), sigma, dtype=torch.float64)
    torch.testing.assert_close(g(x, levels, classes), expected, atol=1e-5, rtol=1e-5)


def test_extreme_noise_levels_and_singular_covariances_stay_finite() -> None:
    g = GaussianMixture([0.5, 0.5], torch.tensor([[3.0, 0.0], [-3.0, 0.0]]), torch.zeros(2, 2, 2))
    x = torch.tensor([[2.9, 0.1], [-500.0, 1.0], [1e7, 1e7]])
    for sigma in (1e-8, 1e-3, 1.0, 1e8):
        assert torch.isfinite(g(x, torch.full((3,), sigma))).all()
    assert torch.equal(g(x, torch.full((3,), 1e-3))[:2], torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
    torch.testing.assert_close(g(x, torch.full((3,), 1e9))[:2], torch.zeros(2, 2), atol=1e-6, rtol=0.0)


def test_labels_select_components_and_each_sample_has_its_own_level() -> None:
    g, alone = mixture([0, 1, 1]), GaussianMixture([1.0], MEANS[:1], COVARIANCES[:1])
    x, sigma = torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 5.0])
    torch.testing.assert_close(g(x, sigma, torch.zeros(3, dtype=torch.int64)), alone(x, sigma))
    assert torch.equal(g(x, sigma, torch.full((3,), -1)), g(x, sigma))
    torch.testing.assert_close(g(x, sigma)[1:2], g(x[1:2], sigma[1:2]))


def test_images_are_flattened_and_dtype_is_kept() -> None:
    shape = (1, 2, 2)
    g = GaussianMixture([1.0], torch.zeros(1, *shape), 2 * torch.eye(4)[None])
    x = torch.ones(3, *shape)
    denoised = g(x, torch.full((3,), 1.0))
    assert denoised.dtype == torch.float32
    torch.testing.assert_close(denoised, x * 2 / 3)
    assert g.sample(5).shape == (5, *shape)


def test_samples_have_the_moments_of_the_mixture() -> None:
    g, generator = mixture([0, 1, 1]), torch.Generator().manual_seed(3)
    x = g.sample(40_000, generator).numpy()
    weights, means = np.array(WEIGHTS), MEANS.double().numpy()
    mean = weights @ means
    covariance = np.einsum("k,kde->de", weights, COVARIANCES.double().numpy() + np.einsum("kd,ke->kde", means, means))
    covariance -= np.outer(mean, mean)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.04)
    only = g.sample(10_000, generator, torch.zeros(10_000, dtype=torch.int64)).mean(0)
    torch.testing.assert_close(only, MEANS[0].double(), atol=0.03, rtol=0.0)


@pytest.mark.parametrize(
    "arguments",
    [
        ([0.5, 0.5], MEANS, COVARIANCES),
        ([0.5, -0.5, 1.0], MEANS, COVARIANCES),
        (WEIGHTS, MEANS, -COVARIANCES),
        (WEIGHTS, MEANS, COVARIANCES, [0, 2, 2]),
        (WEIGHTS, MEANS, COVARIANCES, [0, 1]),
        (WEIGHTS, MEANS, float("nan") * COVARIANCES),
    ],
)
def test_bad_mixtures_are_user_errors(arguments: tuple) -> None:
    with pytest.raises(UserError):
        GaussianMixture(*arguments)


def test_unknown_class_is_a_user_error() -> None:
    with pytest.raises(UserError, match="beyond the 2 classes"):
        mixture([0, 1, 1])(torch.zeros(1, 2), torch.ones(1), torch.tensor([2]))
