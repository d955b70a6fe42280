"""What a generation is trained on: the numbers of every kind of loop, and mixtures of real and synthetic samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.mixture import ORIGIN, REAL, accounting, chosen, mixture
from sims.errors import UserError
from sims.experiments.loop.schedule import KINDS, CountOptions, Counts, Kind, fresh_positions, schedule


def images(count: int, start: int = 0, labels: bool = False) -> Dataset:
    """Images whose pixels number them from ``start``."""
    raw = np.broadcast_to(np.arange(start, start + count, dtype=np.uint8)[:, None, None, None], (count, 1, 2, 2))
    return Dataset(np.ascontiguousarray(raw), np.arange(count) % 3 if labels else None, UINT8, name=f"set {start}")


def test_the_kinds_of_loops() -> None:
    some = CountOptions(real=10, synthetic=4)
    assert schedule("fully-synthetic", some, 2)[1:] == (Counts(0, 0, {0: 4}), Counts(0, 0, {1: 4}))
    assert schedule("augmentation", some, 2)[1:] == (Counts(10, 0, {0: 4}), Counts(10, 0, {1: 4}))
    assert schedule("accumulate", some, 2)[1:] == (Counts(10, 0, {0: 4}), Counts(10, 0, {0: 4, 1: 4}))
    fresh = replace(some, fresh=3)
    assert schedule("fresh", fresh, 2)[1:] == (Counts(0, 3, {0: 4}), Counts(0, 3, {1: 4}))
    assert schedule("counts", fresh, 2)[1:] == (Counts(10, 3, {0: 4}), Counts(10, 3, {1: 4}))
    for kind in KINDS:
        first, *later = schedule(kind, some if kind not in ("fresh", "counts") else fresh, 3)
        assert first == Counts(10) and all(c.real + c.fresh + sum(c.synthetic.values()) > 0 for c in later)


def test_numbers_that_are_left_out() -> None:
    assert schedule("augmentation", CountOptions(), 1, available=50)[1] == Counts(50, 0, {0: 50})
    assert schedule("fresh", CountOptions(), 4, available=50) == (
        Counts(10),
        *[Counts(0, 10, {t: 10}) for t in range(4)],
    )
    shares = CountOptions(total=10, shares=(0.5, 0.3, 0.2))
    assert schedule("counts", shares, 1)[1] == Counts(5, 2, {0: 3})
    assert schedule("counts", CountOptions(fresh=5), 2, available=50)[0] == Counts(40)


@given(st.sampled_from(KINDS), st.integers(2, 30), st.integers(2, 30), st.integers(1, 5), st.integers(1, 6))
def test_fresh_samples_are_never_seen_twice(kind: Kind, real: int, synthetic: int, fresh: int, last: int) -> None:
    options = CountOptions(real, synthetic, fresh if kind in ("fresh", "counts") else None)
    plan = schedule(kind, options, last, available=real + last * fresh)
    positions = [set(range(plan[0].real)), *[set(fresh_positions(plan, g)) for g in range(last + 1)]]
    assert sum(map(len, positions)) == len(set().union(*positions))
    assert max(set().union(*positions)) < real + last * fresh
    assert all(origin < generation for generation, counts in enumerate(plan) for origin in counts.synthetic)


@pytest.mark.parametrize(
    ("kind", "options", "last", "words"),
    [
        ("augmentation", {}, 0, "generations is 0: a loop needs at least 1"),
        ("augmentation", {"real": -1}, 1, "counts.real is -1: a number of samples cannot be negative"),
        ("augmentation", {"real": 51}, 1, "51 real = 51 real samples are needed, and there are 50"),
        ("augmentation", {"real": 1}, 1, "at least 2 samples are needed"),
        ("augmentation", {"synthetic": 0}, 1, "must pass on at least 1 sample"),
        ("augmentation", {"fresh": 5}, 1, "takes no fresh data"),
        ("augmentation", {"total": 5}, 1, "are for kind counts"),
        ("fully-synthetic", {"synthetic": 1}, 1, "at least 2 samples are needed to train on them alone"),
        ("fresh", {"real": 20, "fresh": 11}, 3, "20 real + 3 generations x 11 fresh = 53 real samples are needed"),
        ("fresh", {"fresh": 0}, 3, "needs at least 1 new real sample a generation"),
        ("fresh", {}, 60, "counts.real is 0"),
        ("counts", {"real": 10, "synthetic": 4, "fresh": 2, "total": 15}, 1, "add up to 16, not to counts.total 15"),
        ("counts", {"total": 10, "shares": (0.5, 0.3, 0.1)}, 1, "that add up to 1"),
        ("counts", {"total": 10, "shares": (0.5, 0.5)}, 1, "give three shares"),
        ("counts", {"total": 10, "shares": (1.5, -0.5, 0.0)}, 1, "give three shares"),
        ("counts", {"shares": (0.5, 0.3, 0.2)}, 1, "give counts.total"),
        ("counts", {"total": 10, "real": 5, "shares": (0.5, 0.3, 0.2)}, 1, "both given"),
        ("augmentation", {}, 10**9, "generations is 1,000,000,000: at most 10,000 can be planned"),
        ("accumulate", {}, 1_001, "generations is 1,001: at most 1,000 can be planned in a loop of kind accumulate"),
        ("counst", {}, 1, "did you mean 'counts'?"),
    ],
)
def test_what_cannot_be_had_is_refused(kind: str, options: dict, last: int, words: str) -> None:
    with pytest.raises(UserError, match=words.replace("+", r"\+").replace("?", r"\?")) as caught:
        schedule(kind, CountOptions(**options), last, available=50)  # type: ignore[arg-type]
    assert str(caught.value).count("\n") == 0


@given(st.integers(2, 40), st.integers(0, 2**31), st.data())
def test_what_is_chosen(size: int, seed: int, data: st.DataObject) -> None:
    whole = images(size)
    fewer = data.draw(st.integers(1, size))
    more = data.draw(st.integers(fewer, size))
    some, others = chosen(whole, fewer, seed), chosen(whole, more, seed)
    assert set(some.raw[:, 0, 0, 0]) <= set(others.raw[:, 0, 0, 0]) and len(some) == fewer
    assert some.fingerprint == chosen(whole, fewer, seed).fingerprint
    if more < size:
        rest = chosen(whole, size - more, seed, first=more)
        assert not set(rest.raw[:, 0, 0, 0]) & set(others.raw[:, 0, 0, 0])
    assert chosen(whole, size, seed) is whole
    with pytest.raises(UserError, match="has"):
        chosen(whole, 1, seed, first=size)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(-1, 5), st.integers(1, 9)), min_size=1, max_size=5), st.booleans())
def test_a_mixture_holds_all_its_parts(parts: list[tuple[int, int]], labels: bool) -> None:
    sets = [(origin, images(size, 10 * i, labels)) for i, (origin, size) in enumerate(parts)]
    if labels:  # classes are those of the largest part
        sets = [(origin, replace(part, class_names=("a", "b", "c"))) for origin, part in sets]
    mixed = mixture(sets)
    assert np.array_equal(mixed.raw, np.concatenate([part.raw for _, part in sets]))
    assert mixed.columns[ORIGIN].tolist() == [origin for origin, part in sets for _ in range(len(part))]
    assert sum(accounting(mixed).values()) == len(mixed)
    assert accounting(mixed).get("real", 0) == sum(size for origin, size in parts if origin == REAL)
    subset = mixed.subset([0, len(mixed) - 1])
    assert subset.columns[ORIGIN].tolist() == [parts[0][0], parts[-1][0]]
    if labels:
        assert np.array_equal(mixed.labels, np.concatenate([part.labels for _, part in sets]))


def test_the_real_data_alone_is_itself() -> None:
    data = images(6)
    assert mixture([(REAL, data)]).fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (replace(images(3), raw=np.zeros((3, 1, 2, 3), np.uint8)), "their shapes are"),
        (replace(images(3), codec=replace(UINT8, high=15.0)), "coded as"),
        (images(3, labels=True), "they have the classes none and 0, 1, 2"),
    ],
)
def test_unlike_samples_are_not_mixed(other: Dataset, words: str) -> None:
    with pytest.raises(UserError, match=words):
        mixture([(REAL, images(3)), (0, other)])


def test_a_mixture_needs_parts_and_origins() -> None:
    with pytest.raises(UserError, match="has no parts"):
        mixture([])
    with pytest.raises(UserError, match="origin -2"):
        mixture([(-2, images(3))])
    with pytest.raises(UserError, match="does not say which"):
        accounting(images(3))
