"""Distances between sets of features against closed forms and other libraries; what can be kept of a stream."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.image.fid import _compute_fid
from torchmetrics.image.kid import poly_mmd

from sims.errors import UserError
from sims.metrics.accumulate import MomentAccumulator, Reservoir, sample_keys
from sims.metrics.frechet import Moments, covariance_root, frechet_distance, polar_nuclear_norm
from sims.metrics.inception import inception_score
from sims.metrics.kernel import kernel_distance

seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None)


def draw(seed: int, count: int, width: int, decay: float = 0.75) -> np.ndarray:
    """Features (count, width) whose spectrum falls as those of networks do, with a mean away from zero."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.random.default_rng(width).normal(size=(width, width)))[0]
    return rng.normal(size=(count, width)) * np.arange(1, width + 1) ** -decay @ basis + 0.5


def in_pieces(x: np.ndarray, *cuts: int) -> Moments:
    accumulator = MomentAccumulator(x.shape[1])
    for part in np.split(x, cuts):
        accumulator.update(part)
    return accumulator.moments()


# Fréchet distance


@pytest.mark.parametrize("width", [1, 48, 300])
def test_frechet_agrees_with_sqrtm_and_torchmetrics(width: int) -> None:
    a, b = Moments.of(draw(1, 900, width)), Moments.of(draw(2, 700, width) * 1.1)
    found = frechet_distance(a, b)
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance)
    truth = np.square(a.mean - b.mean).sum() + np.trace(a.covariance + b.covariance - 2 * np.real(root))
    other = _compute_fid(*(torch.from_numpy(part) for m in (a, b) for part in (m.mean, m.covariance)))
    assert found == pytest.approx(truth, rel=1e-6)
    assert found == pytest.approx(float(other), rel=1e-6)


@pytest.mark.parametrize(("count", "width"), [(40, 300), (150, 2048), (900, 300)])
def test_frechet_of_a_set_with_itself(count: int, width: int) -> None:
    x = draw(0, count, width, decay=1.0)
    a, b = in_pieces(x, 7, 19), in_pieces(x[::-1], 11)
    assert not np.array_equal(a.covariance, b.covariance)
    scale = np.trace(a.covariance)
    assert frechet_distance(a, b) <= 1e-8 * scale
    rounded = Moments(a.mean, a.covariance.astype(np.float32).astype(np.float64), 0)  # not quite semidefinite
    assert frechet_distance(rounded, b) <= 1e-6 * scale


def test_frechet_of_separate_supports() -> None:
    x = np.zeros((50, 30))
    y = x.copy()
    x[:, :10], y[:, 20:] = draw(0, 50, 10), draw(1, 50, 10)
    a, b = Moments.of(x), Moments.of(y)
    truth = np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance)
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-12)
    nothing = Moments(np.zeros(30), np.zeros((30, 30)), 0)
    assert frechet_distance(nothing, a) == pytest.approx(np.square(a.mean).sum() + np.trace(a.covariance), rel=1e-12)


@few
@given(seeds, st.integers(2, 40), st.integers(2, 12))
def test_frechet_is_invariant(seed: int, count: int, width: int) -> None:
    x, y = draw(seed, count, width), draw(seed + 1, count + 3, width)
    truth = frechet_distance(Moments.of(x), Moments.of(y))
    scale = np.trace(Moments.of(x).covariance + Moments.of(y).covariance)
    rng = np.random.default_rng(seed)
    order = rng.permutation(width)
    turn = np.linalg.qr(rng.normal(size=(width, width)))[0]
    for a, b in ((x[:, order], y[:, order]), (x @ turn, y @ turn), (x[rng.permutation(count)], y)):
        assert frechet_distance(Moments.of(a), Moments.of(b)) == pytest.approx(truth, abs=1e-8 * scale)


@pytest.mark.parametrize("rank", [0, 1, 20, 64])
def test_roots_and_singular_values(rank: int) -> None:
    factor = draw(rank, 64, 64)[:, :rank]
    root = covariance_root(factor @ factor.T)
    assert root.shape[1] == (rank or 64)
    np.testing.assert_allclose(root @ root.T, factor @ factor.T, atol=1e-13 * (1 + np.square(factor).sum()))
    for matrix in (factor, factor.T @ draw(9, 64, 64)):
        truth = scipy.linalg.svdvals(matrix).sum() if rank else 0.0
        assert float(polar_nuclear_norm(torch.from_numpy(matrix))) == pytest.approx(truth, rel=1e-11)


def test_an_indefinite_covariance_is_cut_at_zero() -> None:
    a = Moments(np.zeros(2), np.array([[1.0, 1.001], [1.001, 1.0]]), 0)
    b = Moments(np.zeros(2), np.eye(2), 0)
    assert frechet_distance(a, b) == pytest.approx(2 + 2 - 2 * np.sqrt(2.001), rel=1e-12)


# Moments and subsets of a stream


@few
@given(seeds, st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_moments_do_not_depend_on_batches(seed: int, sizes: list[int]) -> None:
    x = np.random.default_rng(seed).normal(size=(sum(sizes) + 2, 4)) + 1e6
    found = in_pieces(x, *np.cumsum(sizes).tolist())
    truth = Moments.of(x)
    assert found.count == len(x)
    np.testing.assert_allclose(found.mean, truth.mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance, truth.covariance, atol=1e-8)


def test_moments_far_from_zero_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).normal(size=(1000, 2)) + 1e8
    monkeypatch.setattr("sims.metrics.accumulate.ROWS", 64)
    accumulator = MomentAccumulator(2)
    accumulator.update(x)
    np.testing.assert_allclose(accumulator.moments().covariance, np.cov(x.T), atol=1e-6)
    accumulator = MomentAccumulator(2)
    for bad in (np.zeros((3, 5)), np.zeros(2)):
        with pytest.raises(UserError, match="expected"):
            accumulator.update(bad)
    with pytest.raises(UserError, match="1 of 3 rows"):
        accumulator.update(np.array([[0.0, 1.0], [np.nan, 0.0], [1.0, 1.0]]))
    with pytest.raises(UserError, match="at least 2"):
        accumulator.moments()


@few
@given(seeds, st.integers(1, 40), st.integers(1, 12))
def test_subset_does_not_depend_on_the_way(seed: int, size: int, batch: int) -> None:
    rows = np.arange(30, dtype=np.float32)[:, None] * [1, 10]
    whole, part = Reservoir(size, seed), Reservoir(size, seed)
    whole.update(np.arange(30), rows)
    order = np.random.default_rng(seed).permutation(30)
    for start in range(0, 30, batch):
        chosen = order[start : start + batch]
        part.update(chosen, rows[chosen])
        part.update(chosen, torch.from_numpy(rows[chosen]))  # again, as after an interruption
    np.testing.assert_array_equal(part.indices, whole.indices)
    np.testing.assert_array_equal(part.rows, rows[whole.indices])
    assert len(whole.indices) == min(size, 30)
    smallest = np.sort(np.argsort(sample_keys(seed, np.arange(30)))[:size])
    np.testing.assert_array_equal(whole.indices, smallest)
    assert whole.rows.dtype == rows.dtype


def test_subset_is_uniform_and_limits() -> None:
    counts = np.zeros(50)
    for seed in range(2000):
        counts[np.argsort(sample_keys(seed, np.arange(50)))[:10]] += 1
    assert abs(counts - 400).max() < 5 * np.sqrt(400 * 0.8)
    pairs = [tuple(np.argsort(sample_keys(seed, np.arange(4)))) for seed in range(4800)]
    assert len(set(pairs)) == 24 and max(pairs.count(p) for p in set(pairs)) < 200 + 5 * np.sqrt(200)
    assert len(np.unique(sample_keys(3, np.arange(10**5)))) == 10**5
    reservoir = Reservoir(3)
    with pytest.raises(UserError, match="no samples"):
        _ = reservoir.rows
    with pytest.raises(UserError, match="one index"):
        reservoir.update(np.array([-1]), np.zeros((1, 2)))


# Kernel distance and Inception Score


def test_kernel_agrees_with_torchmetrics() -> None:
    x, y = draw(0, 60, 20), draw(1, 60, 20, decay=0.6)
    truth = float(poly_mmd(torch.from_numpy(y), torch.from_numpy(x)))
    assert kernel_distance(x, y).value == pytest.approx(truth, rel=1e-6)
    assert kernel_distance(x, y).value == pytest.approx(truth, rel=1e-6)


@pytest.mark.parametrize(("shift", "n", "m", "width"), [(0.0, 100, 100, 16), (0.4, 100, 60, 4), (1.0, 60, 90, 4)])
def test_kernel_standard_error(shift: float, n: int, m: int, width: int) -> None:
    rng = np.random.default_rng(0)
    found = [kernel_distance(rng.normal(size=(n, width)), rng.normal(size=(m, width)) + shift) for _ in range(300)]
    values, errors = (np.array([getattr(f, name) for f in found]) for name in ("value", "standard_error"))
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.2)
    covered = np.mean([not f.interval().excludes(values.mean()) for f in found])
    assert 0.88 < covered <= 1
    with pytest.raises(UserError, match="at least 4"):
        kernel_distance(np.zeros((3, 2)), np.zeros((9, 2)))


def test_inception_score() -> None:
    sure = np.eye(5)[np.arange(100) % 5]
    found = inception_score(sure)
    assert (found.mean, found.std) == (pytest.approx(5), pytest.approx(0, abs=1e-12))
    assert inception_score(np.full((40, 7), 1 / 7)).mean == pytest.approx(1, rel=1e-12)
    assert inception_score(sure, num_splits=100).mean == pytest.approx(1)  # one sample has nothing to differ from
    p = np.random.default_rng(0).dirichlet(np.ones(6), 90)
    naive = [np.exp(np.mean(np.sum(q * (np.log(q) - np.log(q.mean(0))), axis=1))) for q in np.split(p, 10)]
    found = inception_score(torch.from_numpy(p))
    assert (found.mean, found.std) == (pytest.approx(np.mean(naive)), pytest.approx(np.std(naive)))
    tiny = np.full((20, 3), [1 - 2e-30, 1e-30, 1e-30])
    assert inception_score(tiny, 2).mean == pytest.approx(1, rel=1e-12)
    for bad, words in ((p * 2, "softmax"), (p - 0.1, "softmax"), (p[:5], "splits")):
        with pytest.raises(UserError, match=words):
            inception_score(bad)
