"""Metrics against closed forms, reference libraries and their own invariances."""

from __future__ import annotations

import contextlib
import doctest
import io

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

import sims
from sims.errors import UserError
from sims.metrics.copies import memorization, nearest_distances
from sims.metrics.custom import CallableExtractor
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.kernel import kernel_distance
from sims.metrics.per_class import class_agreement, class_shares, per_class_table
from sims.metrics.precision_recall import manifold, radii_at

seeds = st.integers(0, 2**31)
few = settings(max_examples=20, deadline=None)


def draw(seed: int, count: int, width: int, shift: float = 0.0) -> np.ndarray:
    """Correlated features (count, width) with a mean far from the origin."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) + 10 + shift


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    return Moments(np.asarray(mean, float), np.asarray(covariance, float), 100)


def test_frechet_closed_forms() -> None:
    one = frechet_distance(gaussian([1.0], [[4.0]]), gaussian([3.0], [[9.0]]))
    assert one == pytest.approx((3 - 1) ** 2 + (3 - 2) ** 2, rel=1e-12)
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(7, 7)))[0]
    a, b = rng.uniform(0.1, 4, 7), rng.uniform(0.1, 4, 7)
    a[:3] = 0  # commuting and rank-deficient
    left = gaussian(np.zeros(7), basis * a @ basis.T)
    right = gaussian(np.ones(7), basis * b @ basis.T)
    assert frechet_distance(left, right) == pytest.approx(7 + np.square(np.sqrt(a) - np.sqrt(b)).sum(), rel=1e-12)


@pytest.mark.parametrize("width", [1, 5, 40])
def test_frechet_matches_sqrtm(width: int) -> None:
    x, y = draw(1, 300, width), draw(2, 200, width)
    a, b = Moments.of(x), Moments.of(y)
    root = scipy.linalg.sqrtm(np.atleast_2d(np.cov(x.T)) @ np.atleast_2d(np.cov(y.T)))
    truth = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(a.covariance + b.covariance - 2 * np.real(root))
    assert frechet_distance(a, b) == pytest.approx(truth, rel=1e-8)


def test_frechet_rank_deficient_and_equal() -> None:
    few_samples = draw(3, 10, 64)
    same = Moments.of(few_samples)
    assert frechet_distance(same, Moments.of(few_samples)) == 0.0
    assert frechet_distance(same, Moments.of(few_samples + 1.0)) == pytest.approx(64.0, rel=1e-6)
    constant = Moments.of(np.full((5, 64), 2.0))
    truth = np.square(same.mean - 2).sum() + np.trace(same.covariance)
    assert frechet_distance(same, constant) == pytest.approx(truth, rel=1e-12)


@few
@given(seeds, st.integers(1, 12), st.floats(0, 3))
def test_frechet_properties(seed: int, width: int, shift: float) -> None:
    x, y = draw(seed, 30, width), draw(seed + 1, 25, width, shift)
    distance = frechet_distance(Moments.of(x), Moments.of(y))
    scale = np.trace(Moments.of(x).covariance) + np.trace(Moments.of(y).covariance) + shift**2
    assert distance >= 0
    assert distance == pytest.approx(frechet_distance(Moments.of(y), Moments.of(x)), abs=1e-10 * scale)
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]
    moved = frechet_distance(Moments.of(x @ turn + 3), Moments.of(y @ turn + 3))
    assert moved == pytest.approx(distance, abs=1e-8 * scale)
    assert frechet_distance(Moments.of(2 * x), Moments.of(2 * y)) == pytest.approx(4 * distance, abs=1e-8 * scale)


def test_moments_keep_precision_far_from_the_origin() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 2)) + 1e8
    np.testing.assert_allclose(Moments.of(torch.from_numpy(x)).covariance, np.cov(x.T), atol=1e-6)


def test_moments_refuse_bad_input() -> None:
    with pytest.raises(UserError, match="at least 2"):
        Moments.of(np.zeros((1, 3)))
    with pytest.raises(UserError, match="NaN"):
        Moments.of(np.array([[1.0], [np.nan]]))
    with pytest.raises(UserError, match="same extractor"):
        frechet_distance(Moments.of(draw(0, 9, 3)), Moments.of(draw(0, 9, 4)))


def naive_mmd(x: np.ndarray, y: np.ndarray) -> float:
    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (a @ b / len(a) + 1) ** 3

    def within(z: np.ndarray) -> float:
        return float(np.mean([kernel(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]))

    return within(x) + within(y) - 2 * float(np.mean([kernel(a, b) for a in x for b in y]))


def test_kernel_matches_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(0, 13, 3), draw(1, 9, 3, 0.5)
    assert kernel_distance(x, y).value == pytest.approx(naive_mmd(x, y), rel=1e-9)
    monkeypatch.setattr("sims.metrics.kernel.BLOCK_ELEMENTS", 20)  # several blocks
    assert kernel_distance(x, y).value == pytest.approx(naive_mmd(x, y), rel=1e-9)
    assert kernel_distance(y, x).value == pytest.approx(kernel_distance(x, y).value, rel=1e-9)


def test_kernel_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    values = np.array([kernel_distance(rng.normal(size=(60, 4)), rng.normal(size=(60, 4))).value for _ in range(100)])
    assert abs(values.mean()) < 4 * values.std() / 10  # equal distributions: zero in expectation
    assert (values < 0).any()
    assert kernel_distance(rng.normal(size=(300, 4)), rng.normal(size=(300, 4)) + 1).value > 5 * values.std()
    # E k(x, y) for independent standard normals in one dimension: E (xy + 1)^3 = 1 + 3 E (xy)^2 = 4
    x, y = rng.normal(size=(3000, 1)), np.zeros((3000, 1))
    assert kernel_distance(x, y).value == pytest.approx(4 + 1 - 2, abs=0.3)
    with pytest.raises(UserError, match="at least 4"):
        kernel_distance(x[:3], y)


@pytest.mark.parametrize(("real", "samples", "k"), [(60, 80, 3), (90, 40, 5)])
def test_manifold_matches_prdc(real: int, samples: int, k: int) -> None:
    x, y = draw(0, real, 6), draw(0, real + samples, 6)[real:] * 1.05
    with contextlib.redirect_stdout(io.StringIO()):
        truth = compute_prdc(x, y, k)
    for rows in (None, 7):
        found = manifold(x, y, k=k, k_coverage=k, rows=rows)
        assert vars(found) == pytest.approx(truth, rel=1e-12)


def test_manifold_extremes_and_limits() -> None:
    x = draw(0, 50, 4)
    same = manifold(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    far = manifold(x, x + 1e3)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    assert manifold(x, np.repeat(x[:1], 20, axis=0)).recall < 0.1  # a collapsed model
    np.testing.assert_allclose(radii_at(np.arange(5.0)[:, None], [1])[0], 1)
    with pytest.raises(UserError, match="k = 3"):
        manifold(x, x[:3])


@few
@given(seeds, st.integers(1, 9))
def test_nearest_distances(seed: int, chunk: int) -> None:
    rng = np.random.default_rng(seed)
    queries, references = rng.normal(size=(7, 1, 3, 4)), rng.normal(size=(9, 1, 3, 4))
    queries[0] = references[4]
    differences = (queries[:, None] - references[None]).reshape(7, 9, -1)
    found = nearest_distances(torch.from_numpy(queries).float(), torch.from_numpy(references).float(), chunk)
    np.testing.assert_allclose(found, np.linalg.norm(differences, axis=2).min(axis=1), atol=1e-5)
    assert found[0] < 1e-6


def test_memorization() -> None:
    rng = np.random.default_rng(0)
    train, test, fresh = (rng.normal(size=(n, 8)) for n in (500, 2000, 2000))
    held_out = nearest_distances(test, train)
    honest = memorization(nearest_distances(fresh, train), held_out)
    assert honest.share_1 == pytest.approx(0.01, abs=0.01)
    assert honest.median_ratio == pytest.approx(1, abs=0.05)
    copies = memorization(nearest_distances(train + 1e-3, train), held_out)
    assert copies.share_1 == 1
    assert copies.median_ratio < 0.01
    with pytest.raises(UserError, match="at least one"):
        memorization(np.empty(0), held_out)
    with pytest.raises(UserError, match="empty"):
        nearest_distances(test, np.empty((0, 8)))
    with pytest.raises(UserError, match="same extractor"):
        nearest_distances(test, train[:, :4])


def test_per_class() -> None:
    x, labels = draw(0, 90, 3), np.repeat([0, 1, 2], 30)
    labels[60:] = [2] * 29 + [3]
    reference, real = draw(1, 60, 3), np.arange(60) % 3
    found = per_class_table(x, torch.from_numpy(labels), reference, real, 4, k=None)
    for index in range(3):
        truth = frechet_distance(Moments.of(x[labels == index]), Moments.of(reference[real == index]))
        assert found[index].frechet == pytest.approx(truth, rel=1e-12)
    assert found[3].frechet is None and found[0].precision is None
    agreement = class_agreement(np.array([0, 1, 1, 1]), torch.tensor([0, 0, 1, 1]), 3)
    assert agreement == (0.5, 1.0, None)
    np.testing.assert_allclose(class_shares(np.array([0, 2, 2, 2]), 3), [0.25, 0, 0.75])
    with pytest.raises(UserError, match="one per row"):
        per_class_table(x, labels[:5], reference, real, 3)


# -- the door: functions of arrays, tensors, moments and images --------------------------------------------------------


@pytest.mark.parametrize("name", sims.metrics.__all__)
def test_public_metrics_have_an_example_that_runs(name: str) -> None:
    part = getattr(sims.metrics, name)
    tests = doctest.DocTestFinder(recurse=False).find(part, name)
    assert tests and tests[0].examples, f"{name} has no example"
    said: list[str] = []
    doctest.DocTestRunner().run(tests[0], out=said.append)
    assert not said, "".join(said)


def test_frechet_takes_moments_features_and_images() -> None:
    x, y = (torch.rand(60, 3, 4, 4, generator=torch.manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    means = CallableExtractor(lambda images: images.mean(dim=(2, 3)), name="means", version="1", data_shape=(3, 4, 4))
    a, b = (sims.metrics.features(images, means) for images in (x, y))
    assert np.allclose(a, x.mean(dim=(2, 3)).numpy(), atol=1e-6)
    truth = frechet_distance(Moments.of(a), Moments.of(b))
    assert truth == frechet_distance(a, torch.from_numpy(b)) == frechet_distance(x, y.numpy(), extractor=means)
    with pytest.raises(UserError, match="values from 0 to 255: give them in"):
        sims.metrics.features(np.full((2, 3, 4, 4), [[[[0, 255, 0, 0]]]]), means)
    with pytest.raises(AttributeError, match="no attribute 'frechet_distanc'"):
        sims.metrics.frechet_distanc  # type: ignore[attr-defined]  # noqa: B018
