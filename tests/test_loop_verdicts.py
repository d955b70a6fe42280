"""Verdicts on loops: constructed curves, the coverage of their intervals, and loops whose theory is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from affine_theory import expected, fixed_point, log_det_law
from sims.errors import UserError
from sims.experiments.loop.affine import AffineReplicas
from sims.experiments.loop.toys import sampling_noise
from sims.experiments.loop.verdicts import ALLOWED, choose_strength, mad, strong_prevention, weak_prevention
from sims.gaussians import GaussianMixture
from sims.metrics.intervals import Interval
from sims.sampling import SamplerOptions, sample

COVARIANCE = np.array([[2.0, 1.0], [1.0, 2.0]])


def curve(start: float, slope: float, replicas: int = 12, generations: int = 10, noise: float = 0.01) -> np.ndarray:
    """Distances (R, T + 1) of a loop that changes by ``slope`` a generation."""
    rng = np.random.default_rng(int(1e6 * (start + slope)))
    return start + slope * np.arange(generations + 1) + noise * rng.normal(size=(replicas, generations + 1))


# -- constructed curves ------------------------------------------------------------------------------------------------


def test_a_growing_distance_is_mad() -> None:
    found = mad(curve(0.1, 0.02))
    assert found.holds
    assert found.intervals["growth"].low < 0.02 * 8.5 < found.intervals["growth"].high  # the last quarter: 9 and 10
    assert found.intervals["rise"].mean == pytest.approx(0.2, abs=0.02)
    assert "grows" in found.text


@pytest.mark.parametrize("slope", [0.0, -0.02])
def test_a_level_or_falling_distance_is_not_mad(slope: float) -> None:
    found = mad(curve(0.5, slope))
    assert not found.holds
    assert "does not significantly grow" in found.text


def test_a_jump_after_generation_0_alone_is_not_mad() -> None:
    level = curve(0.1, 0.0)
    level[:, 1:] += 0.1
    found = mad(level)
    assert found.intervals["rise"].low > 0 and not found.holds


def test_a_loop_that_recovers_is_not_mad() -> None:
    rising = curve(0.1, 0.02)
    rising[:, 0] = 0.5
    assert mad(rising).intervals["growth"].low > 0
    assert not mad(rising).holds


def test_growth_to_a_level_is_mad_however_long_one_looks() -> None:
    """A fixed real set bounds a loop."""
    for generations in (10, 400):
        level = curve(0.3, 0.0, generations=generations, noise=0.03)
        level -= 0.15 * np.exp(-np.arange(generations + 1.0))
        found = mad(level)
        assert found.holds and found.intervals["growth"].low < 0.15 * np.exp(-1) < found.intervals["growth"].high


def test_weak_prevention_is_paired() -> None:
    """A difference far below the spread between replicas is found, because both arms share that spread."""
    shared = np.random.default_rng(0).normal(1.0, 0.3, size=(12, 1))
    equal, better = shared + curve(0.2, 0.01, noise=0.001), shared + curve(0.19, 0.01, noise=0.001)
    assert weak_prevention(better, equal).holds
    assert not weak_prevention(equal, better).holds
    assert not weak_prevention(equal, equal + 1e-9 * np.arange(-6, 6)[:, None]).holds


def test_strong_prevention_allows_15_percent() -> None:
    standard = curve(0.1, 0.02, noise=0.001)
    assert strong_prevention(curve(0.11, 0.0, noise=0.001), standard).holds
    assert not strong_prevention(curve(0.12, 0.0, noise=0.001), standard).holds
    assert not strong_prevention(standard, standard).holds
    noisy = strong_prevention(curve(0.11, 0.0, noise=0.05), standard)  # on average good enough, but not surely
    assert noisy.intervals["difference"].mean < 0.005 and not noisy.holds


@pytest.mark.parametrize("verdict", ["weak", "strong"])
def test_coverage_of_the_paired_bound(verdict: str) -> None:
    """In 2.5 % of experiments at the edge the upper bound errs, with 8 replicas whose noise is shared in part."""
    rng = np.random.default_rng(1)
    trials, wrong = 1_500, 0
    for _ in range(trials):
        shared = rng.normal(size=(8, 1))
        other = 1.0 + 0.1 * (shared + 0.5 * rng.normal(size=(8, 3)))
        edge = 1.0 + 0.1 * (shared + 0.5 * rng.normal(size=(8, 3)))
        if verdict == "weak":
            wrong += weak_prevention(edge, other).holds
        else:
            wrong += strong_prevention(ALLOWED * edge, other).holds
    low, high = stats.binom.ppf([0.0005, 0.9995], trials, 0.025)
    assert low <= wrong <= high


def test_strength_is_chosen_by_the_given_replicas_alone() -> None:
    curves = {0.5: curve(0.2, 0.0), 1.0: curve(0.1, 0.0), 2.0: curve(0.3, 0.0)}
    assert choose_strength(curves, range(6)) == 1.0
    curves[1.0][6:] = 9.0  # replicas that have no say
    curves[2.0][6:] = 0.0
    assert choose_strength(curves, range(6)) == 1.0
    assert choose_strength(curves, range(6, 12)) == 2.0
    assert choose_strength({2.0: curves[0.5], 1.0: curves[0.5]}, [0]) == 1.0
    curves[1.0][0, -1] = np.nan  # a strength that diverges is a bad one
    assert choose_strength(curves, range(6)) == 0.5


def test_bad_curves_are_named() -> None:
    with pytest.raises(UserError, match="at least 2"):
        mad(curve(0.1, 0.0)[:1])
    with pytest.raises(UserError, match="at least 3 generations"):
        mad(curve(0.1, 0.0)[:, :2])
    with pytest.raises(UserError, match="0 replicas"):
        choose_strength({1.0: curve(0.1, 0.0)}, [])


# -- affine loops ------------------------------------------------------------------------------------------------------


def loop(first: int, fresh: int, synthetic: int, generations: int, replicas: int = 400) -> list[AffineReplicas]:
    """A loop of exactly fitted affine denoisers, all replicas at once, sampled as every model is."""
    factor = torch.from_numpy(np.linalg.cholesky(COVARIANCE))
    options = SamplerOptions(solver="dpmpp2m", steps=120, sigma_min=0.01, sigma_max=4000.0, rho=40.0)

    def exact(count: int, *key: object) -> torch.Tensor:
        return sampling_noise(range(replicas), count, "exact", *key).double() @ factor.T

    models = [AffineReplicas(exact(first, 0))]
    for generation in range(1, generations + 1):
        noise = sampling_noise(range(replicas), synthetic, "passed", generation)
        points = sample(models[-1], noise, options.sigmas(models[-1])).double()
        parts = [points] if not fresh else [points, exact(fresh, generation)]
        models.append(AffineReplicas(torch.cat(parts)))
    return models


def near(values: torch.Tensor, truth: float, level: float = 0.999) -> bool:
    """Whether the truth lies in the t-interval of the mean of independent values."""
    half = stats.t.ppf((1 + level) / 2, len(values) - 1) * float(values.std()) / len(values) ** 0.5
    return abs(float(values.mean()) - truth) <= half


def errors(model: AffineReplicas) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Per replica |mu|², tr S / tr C and |S - C|²."""
    covariance = torch.from_numpy(COVARIANCE)
    apart = (model.covariance - covariance).square().sum(dim=(1, 2))
    trace = model.covariance.diagonal(dim1=1, dim2=2).sum(dim=1) / covariance.trace()
    return model.mean.square().sum(dim=1), trace, apart


def test_fully_synthetic_affine_loop_follows_theory() -> None:
    """E[S_t] = C for ever, while the logarithm of the volume falls by the law of Wishart products."""
    models = loop(40, 0, 40, 12)
    for generation in (0, 4, 12):
        mean_error, trace, apart = errors(models[generation])
        theory = expected(COVARIANCE, 40, 0, 40, generation)
        assert theory.covariance == pytest.approx(1.0)
        assert theory.mean_error == pytest.approx(4.0 * (generation + 1) / 40)
        assert near(mean_error, theory.mean_error) and near(trace, 1.0) and near(apart, theory.covariance_error)
        volume = torch.linalg.det(models[generation].covariance).log() - np.log(np.linalg.det(COVARIANCE))
        mean, variance = log_det_law(2, (40,) * (generation + 1))
        assert near(volume, mean)
        low, high = stats.chi2.ppf([0.0005, 0.9995], len(volume) - 1) / (len(volume) - 1)
        assert low <= float(volume.var()) / variance <= high
    assert log_det_law(2, (40,) * 13)[0] < -0.9  # it has lost most of its volume, and the test has seen it


def test_fresh_data_affine_loop_follows_theory_to_its_fixed_point() -> None:
    models = loop(20, 15, 45, 14)
    for generation in (0, 1, 5, 14):
        theory = expected(COVARIANCE, 20, 15, 45, generation)
        mean_error, trace, apart = errors(models[generation])
        assert near(mean_error, theory.mean_error) and near(trace, theory.covariance)
        assert near(apart, theory.covariance_error)
    end = fixed_point(COVARIANCE, 15, 45)
    late = expected(COVARIANCE, 20, 15, 45, 400)
    assert (late.mean_error, late.covariance, late.covariance_error) == pytest.approx(
        (end.mean_error, end.covariance, end.covariance_error), rel=1e-9
    )
    assert end.covariance_error < expected(COVARIANCE, 20, 0, 60, 14).covariance_error


def test_one_dimension_is_a_product_of_chi_squares() -> None:
    mean, variance = log_det_law(1, (9, 9))
    log = np.log(stats.chi2(8).rvs(size=(200_000, 2), random_state=0) / 8).sum(axis=1)
    assert mean == pytest.approx(log.mean(), abs=0.01) and variance == pytest.approx(log.var(), rel=0.02)
    error = expected(np.array([[3.0]]), 9, 0, 9, 1).covariance_error
    assert error == pytest.approx(9 * ((1 + 2 / 8) ** 2 - 1))  # E[chi²_8² / 64] = 1 + 2/8


def test_affine_denoiser_is_that_of_a_gaussian() -> None:
    points = torch.randn(50, 3, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 3.0])
    affine = AffineReplicas(points)
    x, sigma = torch.randn(7, 3, 2), torch.linspace(0.01, 5, 7)
    for index in range(3):
        one = GaussianMixture([1.0], affine.mean[index : index + 1], affine.covariance[index : index + 1])
        assert torch.allclose(affine(x, sigma)[:, index], one(x[:, index], sigma), atol=1e-5)
        assert torch.equal(affine.select([index])(x[:, [index]], sigma), affine(x, sigma)[:, [index]])
    assert np.allclose(affine.covariance[1], np.cov(points[:, 1].T), atol=1e-5)


def test_a_covariance_needs_two_points() -> None:
    with pytest.raises(UserError, match="at least 2"):
        AffineReplicas(torch.zeros(1, 3, 2))


def test_interval_is_two_sided() -> None:
    values = curve(0.11, 0.0)
    standard = curve(0.1, 0.0)
    found = strong_prevention(values, standard).intervals["difference"]
    low, high = stats.t.interval(
        0.95, 11, *(lambda d: (d.mean(), stats.sem(d)))(values[:, -1] - ALLOWED * standard[:, 0])
    )
    assert isinstance(found, Interval) and (found.low, found.high) == pytest.approx((low, high))
