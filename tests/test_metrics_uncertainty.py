"""Intervals keep their promise in simulations; tests of equality keep their level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sims.errors import UserError
from sims.metrics.bootstrap import balanced_halves, frechet_interval, paired_frechet_interval, subsample_interval
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.infinity import frechet_infinity
from sims.metrics.intervals import error_interval, share_interval
from sims.metrics.kernel import kernel_distance
from sims.metrics.matrices import working_type
from sims.metrics.precision_recall import manifold
from sims.metrics.subset_distances import subset_distances
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


@pytest.mark.parametrize(("num_subsets", "count", "blocks"), [(20, 10_000, 32), (3, 8, 4), (20, 8, 4), (40, 100, 32)])
def test_halves_are_balanced(num_subsets: int, count: int, blocks: int) -> None:
    """What halves add to a mean is uncorrelated, so their spread has the freedom that t assumes."""
    signs = np.where(balanced_halves(count, num_subsets), 1, -1)
    assert signs.shape == (min(num_subsets, blocks - 1), blocks)
    assert not signs.sum(axis=1).any()
    np.testing.assert_array_equal(signs @ signs.T, blocks * np.eye(len(signs)))
    with pytest.raises(UserError, match="at least 8"):
        balanced_halves(7, num_subsets)


@pytest.mark.parametrize(("width", "rank"), [(4, 4), (60, 60), (60, 9)])
def test_distances_of_subsets_are_those_of_each_alone(width: int, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, width)) + 100
    reference = Moments.of(rng.normal(size=(70, rank)) @ rng.normal(size=(rank, width)) + 100)
    blocks = np.array_split(rng.permutation(50), 6)
    subsets = rng.random((5, 6)) < 0.6
    subsets[:, 0] = True
    truth = [
        frechet_distance(Moments.of(x[np.concatenate([rows for rows, has in zip(blocks, one) if has])]), reference)
        for one in subsets
    ]
    for held in (1 << 27, 2 * rank**2):  # all at once, and two at a time
        monkeypatch.setattr("sims.metrics.subset_distances.HELD", held)
        np.testing.assert_allclose(subset_distances(x, reference, blocks, subsets), truth, rtol=1e-6)
    with pytest.raises(UserError, match="same extractor"):
        subset_distances(x[:, 1:], reference, blocks, subsets)


@pytest.mark.parametrize("count", [40, 47])
def test_interval_does_not_depend_on_the_order_of_classes(count: int) -> None:
    """Sets sorted by class have intervals as wide as shuffled ones, also where blocks leave a rest."""
    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=(200, count, 1)), axis=1)
    mixed = rng.permuted(x, axis=1)
    found = [[frechet_interval(one, standard(1, 0.5), seed=i) for i, one in enumerate(sets)] for sets in (x, mixed)]
    widths = [[limits.high - limits.low for limits in one] for one in found]
    assert np.mean(widths[0]) == pytest.approx(np.mean(widths[1]), rel=0.1)


def test_wide_float32_features_give_the_same_figures() -> None:
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(300, 300)).astype(np.float32) + shift for shift in (1.0, 1.02))
    assert working_type(x, y) is torch.float32
    assert torch.float64 is working_type(x[:, :8], y[:, :8]) is working_type(x, y.astype(np.float64))
    found, truth = kernel_distance(x, y), kernel_distance(x.astype(np.float64), y.astype(np.float64))
    assert found.value == pytest.approx(truth.value, rel=1e-4, abs=1e-6)
    assert found.standard_error == pytest.approx(truth.standard_error, rel=1e-3)
    narrow, wide = manifold(x, y), manifold(x.astype(np.float64), y.astype(np.float64))
    assert vars(narrow) == pytest.approx(vars(wide), abs=2 / 300)


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
    line = found[0].intercept.mean + found[0].slope / np.array(found[0].sizes)
    assert abs(line - np.array(found[0].values)).max() < 0.05


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
