"""Intervals keep their promise in simulations; tests of equality keep their level."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from sims.errors import UserError
from sims.metrics.bootstrap import frechet_interval, paired_frechet_interval, subsample_interval
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.infinity import frechet_infinity
from sims.metrics.intervals import error_interval, share_interval
from sims.metrics.two_sample import two_sample_test


def standard(width: int, shift: float = 0.0) -> Moments:
    """A Gaussian at distance `shift` from the standard one; its true distance to it is shift²."""
    return Moments(np.full(width, shift / np.sqrt(width)), np.eye(width), 0)


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (0.3, 40), (1.0, 7)])
def test_share_interval_is_wilsons(share: float, count: int) -> None:
    truth = stats.binomtest(round(share * count), count).proportion_ci(0.9, method="wilson")
    found = share_interval(share, count, 0.9)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=1e-12)
    assert found.mean == share
    with pytest.raises(UserError, match="share"):
        share_interval(1.2, 10)


def test_error_interval() -> None:
    found = error_interval(1.0, 2.0, 0.9, freedom=4)
    assert (found.low, found.high) == pytest.approx(stats.t.interval(0.9, 4, 1, 2))
    assert error_interval(0.0, 1.0).high == pytest.approx(1.959964, rel=1e-6)


@pytest.mark.parametrize("size", [None, 30])
def test_subsampling_matches_the_error_of_a_mean(size: int | None) -> None:
    """For a mean, the rescaled spread of subsets estimates s / √n without bias, at any subset size."""
    x = np.random.default_rng(0).normal(size=200)
    found = subsample_interval(lambda rows: float(x[rows].mean()), 200, size, num_resamples=2000)
    half = stats.t.ppf(0.975, 1999) * x.std(ddof=1) / np.sqrt(200)
    assert (found.mean, found.high - found.mean) == (pytest.approx(x.mean()), pytest.approx(half, rel=0.06))


@pytest.mark.parametrize(("width", "count"), [(1, 200), (4, 400)])
def test_frechet_interval_covers_the_figure_at_this_number(width: int, count: int) -> None:
    """Its expectation at n samples, estimated from 1,000 draws, lies within the interval about as often as it says."""
    rng = np.random.default_rng(1)
    reference = standard(width, 0.5)
    values = [frechet_distance(Moments.of(rng.normal(size=(count, width))), reference) for _ in range(1000)]
    found = [frechet_interval(rng.normal(size=(count, width)), reference) for _ in range(150)]
    assert 0.88 <= np.mean([not f.excludes(float(np.mean(values))) for f in found]) <= 1
    half = np.mean([f.high - f.mean for f in found])
    assert half == pytest.approx(stats.t.ppf(0.975, 19) * np.std(values), rel=0.15)


def test_paired_difference_is_sharper() -> None:
    rng = np.random.default_rng(0)
    reference = standard(4)
    noise = rng.normal(size=(400, 4))
    a, b = noise * 1.3 + 0.3, noise * 1.3 + 0.35
    found = paired_frechet_interval(a, b, reference)
    truth = frechet_distance(Moments.of(a), reference) - frechet_distance(Moments.of(b), reference)
    assert found.mean == pytest.approx(truth) and found.excludes(0)
    apart = [frechet_interval(x, reference) for x in (a, b)]
    assert found.high - found.low < 0.5 * np.hypot(*(i.high - i.low for i in apart))
    assert paired_frechet_interval(a, a, reference).high == 0
    assert paired_frechet_interval(a, b, reference) == found
    with pytest.raises(UserError, match="one of each"):
        paired_frechet_interval(a, b[:5], reference)


def test_subsampling_refuses() -> None:
    for size in (1, 10):
        with pytest.raises(UserError, match="between 2 and 9"):
            subsample_interval(lambda rows: 0.0, 10, size)
    with pytest.raises(UserError, match="better 20"):
        subsample_interval(lambda rows: 0.0, 10, 5, num_resamples=1)


def test_infinity_removes_the_bias() -> None:
    """16 features, 1,000 samples: the distance exceeds its limit 0.25 by 0.08; the intercept does not."""
    rng = np.random.default_rng(0)
    reference = standard(16, 0.5)
    found = [frechet_infinity(rng.normal(size=(1000, 16)), reference, seed=s) for s in range(60)]
    plain = np.mean([f.values[0] for f in found])
    assert plain - 0.25 > 0.05
    assert np.mean([f.intercept.mean for f in found]) == pytest.approx(0.25, abs=0.02)
    assert np.mean([not f.intercept.excludes(0.25) for f in found]) >= 0.88
    assert np.mean([f.slope for f in found]) == pytest.approx(1000 * (plain - 0.25), rel=0.2)
    assert found[0].sizes == pytest.approx((1000, 500, 1000 / 3, 250, 200), rel=1e-3)
    assert found[0].largest_residual < 0.05


def test_infinity_is_deterministic_and_refuses() -> None:
    x = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    assert frechet_infinity(x, standard(3)) == frechet_infinity(x, standard(3))
    assert frechet_infinity(x, standard(3), seed=1) != frechet_infinity(x, standard(3))
    with pytest.raises(UserError, match="two different"):
        frechet_infinity(x, standard(3), parts=(2, 2))
    with pytest.raises(UserError, match="2 per part"):
        frechet_infinity(x[:8], standard(3))


def test_two_samples_of_one_distribution_pass() -> None:
    rng = np.random.default_rng(0)
    for kind in ("logistic", "neighbours"):
        p_values = [
            two_sample_test(rng.normal(size=(120, 5)), rng.normal(size=(100, 5)), kind).p_value for _ in range(60)
        ]
        assert np.mean(np.array(p_values) < 0.05) <= 0.13
        assert 0.3 < np.mean(p_values) < 0.75


def test_differences_are_found() -> None:
    rng = np.random.default_rng(0)
    real, shifted = rng.normal(size=(800, 6)), rng.normal(size=(500, 6)) + 0.5
    found = two_sample_test(real, shifted)
    best = stats.norm.cdf(0.5 * np.sqrt(6) / 2)  # of all classifiers
    assert found.accuracy.mean == pytest.approx(best, abs=0.05) and found.p_value < 1e-6
    assert (found.num_train, found.num_test) == (500, 500)
    assert found == two_sample_test(real, shifted)
    wide = rng.normal(size=(800, 6)) * 2  # equal means: nothing linear tells them apart
    assert two_sample_test(real, wide, "neighbours").p_value < 1e-6
    assert two_sample_test(real, wide).accuracy.mean < 0.6
    assert two_sample_test(real, shifted, limit=50).num_test == 50
    with pytest.raises(UserError, match="logistic, neighbours"):
        two_sample_test(real, shifted, "svm")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least 20"):
        two_sample_test(real[:19], shifted)
