"""Manifolds, copies, classes and points: planted faults are found, and other libraries agree."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import ot
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from sims.errors import UserError
from sims.metrics import points
from sims.metrics.copies import Copying, copying, nearest, nearest_distances
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.per_class import per_class_table
from sims.metrics.precision_recall import Manifold, manifold, manifolds, radii_at

seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None)


def clusters(seed: int, count: int, num_modes: int = 5, width: int = 8, spread: float = 0.3) -> np.ndarray:
    """Samples (count, width) of well separated modes that every seed shares."""
    centres = np.random.default_rng(99).normal(size=(num_modes, width)) * 3
    rng = np.random.default_rng(seed)
    return centres[rng.integers(0, num_modes, count)] + spread * rng.normal(size=(count, width))


def prdc(real: np.ndarray, samples: np.ndarray, k: int) -> dict[str, float]:
    with contextlib.redirect_stdout(io.StringIO()):
        return compute_prdc(real, samples, k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_four_equal_prdc_exactly(dtype: type) -> None:
    real, samples = clusters(0, 250, width=40).astype(dtype), clusters(1, 180, width=40, spread=0.35).astype(dtype)
    for rows in (None, 37):
        found = manifolds(real, samples, rows=rows)
        assert list(found) == [3, 5]
        for k, figures in found.items():
            assert vars(figures) == pytest.approx(prdc(real, samples, k), rel=1e-14)
    both = manifold(real, samples)
    assert (both.precision, both.recall) == (found[3].precision, found[3].recall)
    assert (both.density, both.coverage) == (found[5].density, found[5].coverage)


@few
@given(seeds)
def test_manifold_ignores_order_and_rotation(seed: int) -> None:
    real, samples = clusters(seed, 40), clusters(seed + 1, 35, spread=0.4)
    rng = np.random.default_rng(seed)
    truth = manifolds(real, samples)
    assert manifolds(real[rng.permutation(40)], samples[rng.permutation(35)]) == truth
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert manifolds(real @ turn + 5, samples @ turn + 5) == truth


def test_planted_faults() -> None:
    real = clusters(0, 600)
    honest, noisy = clusters(1, 600), clusters(1, 600) + np.random.default_rng(2).normal(size=(600, 8))
    collapsed = clusters(3, 2000)
    first = np.random.default_rng(99).normal(size=(5, 8))[:2] * 3
    collapsed = collapsed[nearest_distances(collapsed, first) < 3][:600]
    good, bad, narrow = (manifold(real, x) for x in (honest, noisy, collapsed))
    assert good.precision > 0.75 and good.recall > 0.75 and good.coverage > 0.9
    assert bad.precision < 0.3 * good.precision
    assert narrow.precision > good.precision - 0.05
    assert narrow.recall < 0.6 and narrow.coverage < 0.6


def test_radii_refuse() -> None:
    assert manifolds(clusters(0, 9), clusters(1, 9), ks=(1, 8))[8].recall == 1
    with pytest.raises(UserError, match="k = 5"):
        manifolds(clusters(0, 9), clusters(1, 5))
    with pytest.raises(UserError, match="k = 0"):
        radii_at(clusters(0, 9), [0])
    assert isinstance(manifold(clusters(0, 9), clusters(1, 9)), Manifold)


# Copies


def copies(seed: int, share: float, num_train: int = 1500, held_out: int = 500, blur: float = 1.0) -> Copying:
    rng = np.random.default_rng(seed)
    scale = np.arange(1, 33) ** -0.5
    train, real, samples = (rng.normal(size=(n, 32)) * scale for n in (num_train, held_out, 1000))
    samples *= blur
    planted = int(share * 1000)
    samples[:planted] = train[rng.integers(0, num_train, planted)] + 0.01 * rng.normal(size=(planted, 32))
    return copying(nearest(samples, train), nearest(samples, real), nearest_distances(real, train), num_train)


def test_planted_copies_are_found() -> None:
    found = copies(0, 0.3)
    assert found.excess_close.mean == pytest.approx(0.3, abs=0.04) and not found.excess_close.excludes(0.3)
    assert found.excess_nearer.mean == pytest.approx(0.3, abs=0.15) and not found.excess_nearer.excludes(0.3)
    assert found.excess_close.excludes(0) and found.excess_nearer.excludes(0)
    every = copies(1, 1.0)
    assert every.excess_close.mean == 1 and every.excess_nearer.mean == pytest.approx(1)
    assert every.median_ratio < 0.1


def test_no_copies_and_smooth_samples() -> None:
    found = [copies(seed, 0.0) for seed in range(20)]
    for name in ("excess_close", "excess_nearer"):
        assert np.mean([not getattr(f, name).excludes(0) for f in found]) >= 0.85
        assert abs(np.mean([getattr(f, name).mean for f in found])) < 0.03
    assert found[0].share_nearer == pytest.approx(found[0].expected_nearer, abs=0.1)
    smooth = copies(0, 0.0, blur=0.3)  # nearer to everything, and no copies
    assert smooth.excess_close.mean > 0.3 and not smooth.excess_nearer.excludes(0)


@few
@given(seeds, st.integers(1, 9))
def test_nearest_names_the_reference(seed: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    queries, references = rng.normal(size=(6, 4)), rng.normal(size=(9, 4))
    distances = np.linalg.norm(queries[:, None] - references[None], axis=2)
    found = nearest(queries, references, chunk)
    np.testing.assert_array_equal(found.indices, distances.argmin(axis=1))
    np.testing.assert_allclose(found.distances, distances.min(axis=1), rtol=1e-7)


def test_copying_refuses_and_takes_ties() -> None:
    x = clusters(0, 20)
    same = copying(nearest(x, x), nearest(x, x), nearest_distances(x, x), 20)
    assert same.share_nearer == 0.5 and same.excess_nearer.mean == 0
    with pytest.raises(UserError, match="same samples"):
        copying(nearest(x, x), nearest(x[:3], x), nearest_distances(x, x), 20)
    with pytest.raises(UserError, match="Quantile"):
        copying(nearest(x, x), nearest(x, x), nearest_distances(x, x), 20, quantile=5)


# Classes


def test_class_table() -> None:
    x, y = clusters(0, 120), clusters(1, 90)
    labels, real = np.arange(120) % 3, np.arange(90) % 3
    labels[labels == 2] = [2] * 3 + [1] * 37
    table = per_class_table(x, labels, y, real, 4)
    assert [row.count for row in table] == [40, 77, 3, 0]
    assert sum(row.share for row in table) == pytest.approx(1)
    assert [row.reference_count for row in table] == [30, 30, 30, 0]
    a, b = x[labels == 1], y[real == 1]
    assert table[1].frechet == frechet_distance(Moments.of(a), Moments.of(b))
    assert (table[1].precision, table[1].recall) == (manifold(b, a).precision, manifold(b, a).recall)
    assert table[2].frechet is not None and table[2].precision is None
    assert (table[3].frechet, table[3].precision, table[3].recall) == (None, None, None)


# Points


def test_wasserstein_matches_closed_forms() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 2))
    assert points.wasserstein(x, x + np.array([3, 4])) == pytest.approx(5, rel=1e-9)
    assert points.wasserstein(x, x[::-1]) == pytest.approx(0, abs=1e-7)
    a, b = rng.normal(size=(30, 1)), rng.normal(size=(45, 1)) + 1
    assert points.wasserstein(a, b) == pytest.approx(np.sqrt(ot.wasserstein_1d(a[:, 0], b[:, 0], p=2)), rel=1e-9)
    assert points.sliced_wasserstein(a, b) == pytest.approx(points.wasserstein(a, b), rel=1e-9)
    with pytest.raises(UserError, match="same extractor"):
        points.wasserstein(a, x)


def test_wasserstein_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ot", None)
    with pytest.raises(UserError, match=r"sims-diffusion\[points\]"):
        points.wasserstein(np.zeros((3, 2)), np.ones((3, 2)))


@pytest.mark.parametrize(("n", "m", "width"), [(40, 40, 2), (35, 50, 2), (20, 30, 5)])
def test_sliced_wasserstein_matches_pot(n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(n, width)), rng.normal(size=(m, width)) * 2
    if width == 2:
        angles = np.arange(16) * np.pi / 16
        directions = np.stack([np.cos(angles), np.sin(angles)])
    else:
        directions = np.random.default_rng(7).normal(size=(width, 16))
        directions /= np.linalg.norm(directions, axis=0)
    truth = ot.sliced_wasserstein_distance(x, y, projections=directions)
    assert points.sliced_wasserstein(x, y, 16, seed=7) == pytest.approx(truth, rel=1e-9)
    shifted = points.sliced_wasserstein(x[:, :2], x[:, :2] + np.array([2, 0]))
    assert shifted == pytest.approx(np.sqrt(2), rel=1e-9)  # the mean of (2 cos)² is 2


def test_gaussian_mmd() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(12, 2)), rng.normal(size=(15, 2)) + 1
    width = points.median_distance(y)

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.exp(-np.square(a[:, None] - b[None]).sum(axis=2) / (2 * width**2))

    within = sum((kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y))
    assert points.gaussian_mmd(x, y) == pytest.approx(within - 2 * kernel(x, y).mean(), rel=1e-7)
    same = [points.gaussian_mmd(rng.normal(size=(60, 2)), rng.normal(size=(60, 2)), 1.0) for _ in range(100)]
    assert abs(np.mean(same)) < 4 * np.std(same) / 10
    with pytest.raises(UserError, match="coincide"):
        points.gaussian_mmd(x, np.ones((9, 2)))


def test_mode_coverage() -> None:
    angles = np.arange(8) * np.pi / 4
    centres = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rng = np.random.default_rng(0)
    honest = centres[np.arange(4000) % 8] + 0.05 * rng.normal(size=(4000, 2))
    found = points.mode_coverage(honest, centres, 0.05)
    assert found.hit == 8
    assert found.high_quality == pytest.approx(1 - np.exp(-4.5), abs=0.01)  # |z| <= 3 in two dimensions
    assert sum(found.counts) == round(found.high_quality * 4000)
    collapsed = points.mode_coverage(honest[np.arange(4000) % 8 < 2], centres, np.full(8, 0.05))
    assert collapsed.hit == 2
    blurred = honest + 0.3 * rng.normal(size=honest.shape)
    assert points.mode_coverage(blurred, centres, 0.05).high_quality < 0.3
    assert points.mode_coverage(honest[:9], centres, 0.05, radius=9, minimum=2).hit == 1
    with pytest.raises(UserError, match="above 0"):
        points.mode_coverage(honest, centres, 0.0)
