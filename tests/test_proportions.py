"""Corrected proportions: exact where the classifier is, honest where it errs, and one sentence where it is no use."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.proportions import (
    called_shares,
    check_confusion,
    confusion,
    distances_to,
    kl,
    proportions,
    total_variation,
    weighted_moments,
    weights_to,
)

Array = np.ndarray


def rates(num: int, accuracy: float) -> Array:
    """A classifier that is right with this probability and errs evenly."""
    found = np.full((num, num), (1 - accuracy) / (num - 1))
    np.fill_diagonal(found, accuracy)
    return found


@st.composite
def measured(draw: st.DrawFn) -> tuple[Array, Array]:
    """Predicted values (n,) and confusion counts (K, K) of a classifier that is better than chance."""
    num = draw(st.integers(2, 5))
    counts = draw(st.lists(st.integers(0, 40), min_size=num, max_size=num).filter(any))
    wrong = draw(st.lists(st.integers(0, 5), min_size=num * num, max_size=num * num))
    return np.repeat(np.arange(num), counts), np.array(wrong).reshape(num, num) + np.diag([50] * num)


@given(measured())
def test_estimates_lie_on_the_simplex_inside_their_intervals(case: tuple[Array, Array]) -> None:
    found = proportions(*case, draws=100)
    assert found.values.sum() == pytest.approx(1, abs=1e-12) and found.raw.sum() == pytest.approx(1)
    assert (found.low >= 0).all() and (found.low <= found.values).all()
    assert (found.values <= found.high).all() and (found.high <= 1 + 1e-12).all() and found.n == len(case[0])


@given(measured(), st.randoms(use_true_random=False))
def test_the_names_of_the_values_do_not_matter(case: tuple[Array, Array], random: object) -> None:
    predicted, counts = case
    order = np.array(random.sample(range(len(counts)), len(counts)))  # type: ignore[attr-defined]
    place = np.argsort(order)  # value order[k] becomes value k
    found = proportions(place[predicted], counts[np.ix_(order, order)], draws=100)
    np.testing.assert_allclose(found.values, proportions(predicted, counts, draws=100).values[order], atol=1e-6)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any), st.integers(5, 1000))
def test_a_perfect_classifier_is_believed(counts: list[int], held: int) -> None:
    predicted = np.repeat(np.arange(len(counts)), counts)
    found = proportions(predicted, held * np.eye(len(counts)), draws=100)
    np.testing.assert_allclose(found.values, np.array(counts) / sum(counts), atol=1e-12)
    np.testing.assert_array_equal(found.raw, np.array(counts) / sum(counts))


@settings(max_examples=30)
@given(measured())
def test_the_estimate_is_the_maximum_of_the_likelihood(case: tuple[Array, Array]) -> None:
    """Against scipy's constrained optimizer."""
    predicted, counts = case
    shares = np.bincount(predicted, minlength=len(counts)) / len(predicted)
    known = counts / counts.sum(axis=1, keepdims=True)

    def loss(p: Array) -> float:
        return -float(shares @ np.log(np.maximum(p @ known, 1e-300)))

    rule = {"type": "eq", "fun": lambda p: p.sum() - 1}
    start = np.full(len(counts), 1 / len(counts))
    best = minimize(loss, start, bounds=[(0, 1)] * len(counts), constraints=rule, tol=1e-12)
    assert loss(proportions(*case, draws=100).values) <= best.fun + 1e-7


def test_a_known_error_is_taken_out_of_two_values() -> None:
    """Rogan and Gladen 1978: (share + specificity - 1) / (sensitivity + specificity - 1)."""
    found = proportions(np.repeat([0, 1], [260, 740]), np.array([[90, 10], [20, 80]]))
    assert found.values[0] == pytest.approx((0.26 + 0.8 - 1) / (0.9 + 0.8 - 1))
    assert found.raw[0] == 0.26
    assert proportions(np.repeat([0, 1], [100, 900]), np.array([[90, 10], [20, 80]])).values[0] == 0  # below its errors


@pytest.mark.parametrize(
    ("truth", "accuracy", "count", "held"),
    [
        ([0.3, 0.7], 0.9, 1000, 200),
        ([0.02, 0.98], 0.9, 1000, 200),
        ([0.0, 1.0], 0.95, 1000, 200),
        ([0.4, 0.3, 0.2, 0.1], 0.97, 2000, 100),
        ([0.02, *[0.98 / 9] * 9], 0.98, 10_000, 72),
        ([0.1] * 10, 1.0, 10_000, 72),
        ([0.1032, 0.0968] * 5, 0.98, 20_000, 108),  # as far from uniform as errors reach
    ],
)
def test_intervals_hold_what_they_promise(truth: list[float], accuracy: float, count: int, held: int) -> None:
    """Of 95 % intervals from 250 simulated measurements at least 90 % hold the truth; none is wider than due."""
    p, num, sims, rng = np.array(truth), len(truth), 250, np.random.default_rng(4)
    uniform, noise = np.full(num, 1 / num), rates(num, accuracy)
    inside, tv_inside, tv_below, kl_inside, width = np.zeros(num), 0, 0, 0, np.zeros(num)
    for seed in range(sims):
        counts = np.stack([rng.multinomial(held, row) for row in noise])
        predicted = np.repeat(np.arange(num), rng.multinomial(count, p @ noise))
        found = proportions(predicted, counts, seed=seed, draws=200)
        inside += (found.low <= p) & (p <= found.high)
        width += found.high - found.low
        tv, divergence = distances_to(uniform, predicted, counts, seed=seed, draws=200)
        tv_inside, tv_below = tv_inside + (tv[1] <= total_variation(p, uniform) <= tv[2]), tv_below + (tv[1] == 0)
        kl_inside += divergence[1] <= kl(p, uniform) <= divergence[2]
    assert inside.min() >= 0.9 * sims
    assert tv_inside >= 0.9 * sims and kl_inside >= 0.89 * sims
    if truth == [0.1] * 10:
        assert tv_below >= 0.9 * sims  # on target: not told apart from it
    # The delta method's width: samples' and confusion matrix's errors through the inverse.
    back = np.linalg.inv(noise.T)
    shown = p @ noise
    variance = (np.diag(shown) - np.outer(shown, shown)) / count
    for share, row in zip(p, noise):
        variance = variance + share**2 * (np.diag(row) - np.outer(row, row)) / held
    expected = 2 * 1.96 * np.sqrt(np.diag(back @ variance @ back.T))
    assert (width / sims <= 1.5 * expected + 2 * 3.7 / held).all()  # rule of three: what so few cannot exclude


def test_more_samples_and_more_held_out_data_both_narrow_the_interval() -> None:
    noise = rates(3, 0.9)

    def width(count: int, held: int) -> float:
        predicted = np.repeat(np.arange(3), np.round(count * np.array([0.5, 0.3, 0.2]) @ noise).astype(int))
        found = proportions(predicted, np.round(held * noise).astype(int))
        return float((found.high - found.low).mean())

    assert width(1000, 10_000) < 0.5 * width(100, 10_000)
    assert width(100_000, 100) > 3 * width(100_000, 10_000)  # many samples cannot make up for few labels


def test_the_same_seed_gives_the_same_interval() -> None:
    case = np.repeat([0, 1, 2], [30, 20, 50]), np.diag([20, 20, 20]) + 1
    first, again, other = (proportions(*case, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.low, again.low)
    assert (first.low != other.low).any() and (first.values == other.values).all()


def test_distances() -> None:
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    assert total_variation(p, q) == pytest.approx(0.3) and total_variation(p, p) == 0
    assert kl(p, q) == pytest.approx(0.3 * math.log(2.5)) and kl(p, p) == 0
    assert kl(np.array([1.0, 0.0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert kl(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == math.inf
    predicted, counts = np.repeat([0, 1], [50, 50]), 100 * np.eye(2)
    assert distances_to(np.array([1.0, 0.0]), predicted, counts)[1] == (math.inf, math.inf, math.inf)
    assert distances_to(np.array([1.0, 0.0]), np.zeros(50, int), counts)[1] == (0, 0, math.inf)


def test_confusion_counts_leave_unknown_values_out() -> None:
    counts = confusion(np.array([0, 1, 1, -1, 2]), np.array([0, 1, 2, 1, 2]), 3)
    assert counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]


# ---- reweighted references


@given(
    st.lists(st.floats(0.05, 1.0), min_size=2, max_size=6),
    st.lists(st.floats(0.05, 1.0), min_size=6, max_size=6),
    st.floats(0.9, 1.0),
)
def test_samples_accepted_by_a_fallible_classifier_have_the_target(
    a: list[float], b: list[float], right: float
) -> None:
    target, shares = np.array(a) / np.sum(a), np.array(b[: len(a)]) / np.sum(b[: len(a)])
    counts = 1000 * rates(len(a), right)
    called = called_shares(target, shares, counts)
    assert called.sum() == pytest.approx(1) and (called >= 0).all()
    joint = shares[:, None] * counts / 1000  # true i, called j
    delivered = joint @ (called / joint.sum(axis=0))
    if (called > 0).all():
        assert delivered == pytest.approx(target, abs=1e-9)
    assert np.abs(delivered - target).sum() <= np.abs(joint @ (target / joint.sum(axis=0)) - target).sum() + 1e-9


def test_weights_give_the_target() -> None:
    labels = np.array([0] * 6 + [1] * 2 + [-1])
    weights = weights_to(np.array([0.5, 0.5]), labels)
    assert weights[:6].sum() == pytest.approx(0.5) and weights[6:8].sum() == pytest.approx(0.5) and weights[8] == 0
    assert weights_to(np.array([1.0, 0.0, 0.0]), labels)[6:].sum() == 0  # not wanted: may be missing


def test_weighted_moments() -> None:
    rng = np.random.default_rng(0)
    x = 100 + rng.normal(size=(50, 3)) @ rng.normal(size=(3, 3))
    plain, equal = Moments.of(x), weighted_moments(x, np.full(50, 7.0))
    np.testing.assert_allclose(equal.mean, plain.mean, rtol=1e-13)
    np.testing.assert_allclose(equal.covariance, plain.covariance, rtol=1e-10)
    assert equal.count == 50 and equal.mean.dtype == equal.covariance.dtype == np.float64
    some = weighted_moments(x, np.repeat([1.0, 0.0], [20, 30]))
    np.testing.assert_allclose(some.covariance, Moments.of(x[:20]).covariance, rtol=1e-10)
    assert some.count == 20
    many = [weighted_moments(y, np.repeat([3.0, 1.0], 5)).covariance[0, 0] for y in rng.normal(size=(20_000, 10, 1))]
    assert np.mean(many) == pytest.approx(1, abs=0.02)  # unbiased


# ---- bad input


@pytest.mark.parametrize(
    "counts",
    [
        [[50, 50], [50, 50]],
        [[10, 90], [90, 10]],  # worse than chance: invertible, and yet no measure of anything
        [[55, 45], [50, 50]],  # better by less than chance allows
        [[90, 5, 5], [5, 48, 47], [5, 46, 49]],
    ],
)
def test_a_classifier_no_better_than_chance_names_its_worst_pair(counts: list[list[int]]) -> None:
    names = ("loop", "stick", "hook")[-len(counts) :]
    with pytest.raises(UserError, match=r"no better than chance at telling '(stick|hook)' from '(stick|hook)'"):
        proportions(np.zeros(10, int), np.array(counts), names=names)
    check_confusion(np.array([[90, 10], [30, 70]]), names)


def test_a_singular_matrix_without_a_bad_pair_is_refused_too() -> None:
    counts = 1000 * np.array([[0.5, 0, 0.25, 0.25], [0, 0.5, 0.25, 0.25], [0.25, 0.25, 0.5, 0], [0.25, 0.25, 0, 0.5]])
    with pytest.raises(UserError, match="no better than chance"):
        check_confusion(counts)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: proportions(np.array([0, 3]), 10 * np.eye(3)), "a predicted value is 3"),
        (lambda: proportions(np.array([0.0, 1.0]), 10 * np.eye(3)), "whole numbers from 0 to 2"),
        (lambda: proportions(np.zeros(0, int), 10 * np.eye(3)), "at least one sample"),
        (lambda: proportions(np.zeros(5, int), np.ones((2, 3))), r"counts >= 0 \(K, K\)"),
        (lambda: proportions(np.zeros(5, int), np.diag([10, 0])), "no held-out sample has value 1"),
        (lambda: proportions(np.zeros(5, int), 10 * np.eye(2), level=1.0), "between 0 and 1"),
        (lambda: proportions(np.zeros(5, int), 10 * np.eye(2), draws=5), "at least 100"),
        (lambda: distances_to(np.array([0.5, 0.4]), np.zeros(5, int), 10 * np.eye(2)), "sum to 1"),
        (lambda: distances_to(np.full(4, 0.25), np.zeros(5, int), 10 * np.eye(2)), "4 shares .* 2 values"),
        (lambda: confusion(np.zeros(3, int), np.zeros(4, int), 2), "one of each per sample"),
        (lambda: weights_to(np.array([0.5, 0.5]), np.zeros(4, int), ("cat", "dog")), "0.5 of 'dog', which no real"),
        (lambda: weighted_moments(np.zeros((3, 2)), np.array([1.0, 0, 0])), "at least 2"),
        (lambda: weighted_moments(np.zeros((3, 2)), np.array([1.0, -1, 0])), "one finite weight >= 0"),
    ],
)
def test_bad_input_is_one_sentence(call: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        call()  # type: ignore[operator]
