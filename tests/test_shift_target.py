"""Targets, attributes and the choice of samples in wanted proportions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sims.data.dataset import Dataset
from sims.data.sources import load, load_pair
from sims.errors import UserError
from sims.experiments.shift.attributes import Attribute
from sims.experiments.shift.contenders import ratio_within
from sims.experiments.shift.options import ShiftOptions, SolverOptions, SteeringOptions
from sims.experiments.shift.proportion_solver import rejection_ratio
from sims.experiments.shift.steering import accepted, allotted
from sims.experiments.shift.target import check_support, cut, mapping_of, split_parts, target_of

DIGITS = Attribute("class", tuple("0123456789"))
JOINT = Attribute("parity,loop", ("even,loop", "even,none", "odd,loop", "odd,none"))


def read(text: str, attribute: Attribute = DIGITS) -> list[float]:
    return target_of(text, attribute, lambda path: np.full(10, float(path))).tolist()


def test_targets_by_flag() -> None:
    assert read("uniform") == [0.1] * 10
    assert read("0=0.3,*=0.7") == pytest.approx([0.3] + [0.7 / 9] * 9)
    assert read("0=30%, *=70%") == read("0=0.3,*=0.7")
    assert read("1=1") == [0, 1, *[0] * 8]
    wanted = [0.4, 0.1, 0.2, 0.3]
    assert read("even,loop=0.4,even,none=0.1,odd,loop=0.2,odd,none=0.3", JOINT) == pytest.approx(wanted)
    assert read("like:0.1") == [0.1] * 10


def test_targets_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[target]\n"0" = 0.3\n"*" = 0.7\n')
    (tmp_path / "b.json").write_text(json.dumps({"target": {"0": 0.3, "*": 0.7}}))
    (tmp_path / "c.json").write_text(json.dumps({"0": 0.3, "*": 0.7}))
    for name in ("a.toml", "b.json", "c.json"):
        assert read(str(tmp_path / name)) == read("0=0.3,*=0.7")


@pytest.mark.parametrize(
    ("text", "needle"),
    [
        ("0=0.3,1=0.3", "sum to 0.6 and must sum to 1; not named: 2"),
        ("0=0.7,*=0.7", "sum to 1.4"),
        ("zero=1", "unknown value 'zero' of class"),
        ("0=1.5", "between 0 and 1"),
        ("0=-0.5", "between 0 and 1"),
        ("0=much", "give a number"),
        ("0=0.5,0=0.5", "twice"),
        ("evenly", "not understood"),
        ("missing.toml", "no target file"),
        ("0=0.1,1=0.1,2=0.1,3=0.1,4=0.1,5=0.1,6=0.1,7=0.1,8=0.1,9=0.1,*=0", "all are named"),
        ("0=nan,*=0.5", "give a number"),
    ],
)
def test_bad_targets_are_one_sentence(text: str, needle: str) -> None:
    with pytest.raises(UserError, match=needle):
        read(text)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    for name, content in (("a.toml", "[target"), ("b.json", "{"), ("c.json", "[1, 2]")):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match=name):
            read(str(tmp_path / name))


def test_attributes_made_of_classes() -> None:
    assert mapping_of("parity:even=0+2/odd=1+3") == ("parity", {"0": "even", "2": "even", "1": "odd", "3": "odd"})
    for text in ("parity:even", "parity:even=0/odd", "parity:"):
        with pytest.raises(UserError, match="not understood"):
            mapping_of(text)
    with pytest.raises(UserError, match="two values"):
        mapping_of("parity:even=0/odd=0")


def test_support_is_checked() -> None:
    labels = np.array([0, 0, 2, -1])
    attribute = Attribute("class", ("a", "b", "c"))
    with pytest.raises(UserError, match="'b' of class, and the data has no sample"):
        check_support(np.full(3, 1 / 3), labels, attribute, "the data")
    check_support(np.array([0.5, 0.0, 0.5]), labels, attribute, "the data")


@pytest.mark.parametrize("limit", [None, 40])
def test_a_label_file_has_a_row_for_each_image_of_the_source(tmp_path: Path, limit: int | None) -> None:
    images = np.arange(60, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8), np.uint8)  # each says its row
    np.savez(tmp_path / "data.npz", images=images[:, 0])
    rows = ["id,split,shade", *(f"{i}.png,all,{'dark' if i < 30 else 'bright'}" for i in range(60))]
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    path, file = str(tmp_path / "data.npz"), tmp_path / "labels.csv"
    train, test = load_pair(path, limit=limit)
    parts, test_parts = split_parts(("shade",), train, test, file, lambda: load(path))
    assert test_parts is not None
    for data, ((attribute, values), *_) in ((train, parts), (test, test_parts)):
        assert attribute == Attribute("shade", ("bright", "dark"))
        assert (values == (data.raw[:, 0, 0, 0] < 30)).all()
    (tmp_path / "short.csv").write_text("\n".join(rows[:-1]))
    with pytest.raises(UserError, match=r"has 59 values of 'shade', and .* has 60 samples"):
        split_parts(("shade",), train, test, tmp_path / "short.csv", lambda: load(path))
    with pytest.raises(UserError, match="no column 'shades'; did you mean 'shade'"):
        split_parts(("shades",), train, test, file, lambda: load(path))
    with pytest.raises(UserError, match=r"has the values \['all'\]"):
        split_parts(("split",), train, test, file, lambda: load(path))


def test_an_imbalance_is_planted(digits: Dataset) -> None:
    found = cut(digits, "0=0.02,1=0.05", seed=0)
    assert found.labels is not None and digits.labels is not None
    shares = np.bincount(found.labels, minlength=10) / len(found)
    assert shares[:2] == pytest.approx([0.02, 0.05], abs=0.005)
    assert (np.bincount(found.labels)[2:] == np.bincount(digits.labels)[2:]).all()
    assert found.fingerprint == cut(digits, "0=0.02,1=0.05", seed=0).fingerprint
    for text, needle in (
        ("x=0.1", "unknown class"), ("0=0.9", "only cut"), ("0=0", "between 0 and 1"), ("0=0.6,1=0.6", "sum to 1.2"),
        ("0=0.1,0=0.2", "imbalance .* names '0' twice"), ("0=0.06,junk", "at 'junk': write CLASS=SHARE,CLASS=SHARE"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=needle) as caught:
            cut(digits, text, seed=0)
        assert "target" not in str(caught.value)
    with pytest.raises(UserError, match="has none"):
        cut(digits.without_labels(), "0=0.02", seed=0)


def test_accepted_samples_have_exactly_the_proportions() -> None:
    rng = np.random.default_rng(0)
    values = rng.choice(3, size=10_000, p=[0.1, 0.3, 0.6])
    for wanted in ([0.5, 0.25, 0.25], [0.0, 0.4, 0.6], [0.1, 0.3, 0.6]):
        proportions = np.array(wanted)
        found = accepted(values, proportions, 1_500)
        counts = np.bincount(values[found], minlength=3)
        assert counts.sum() == 1_500 and np.abs(counts - 1_500 * proportions).max() < 1
        assert (np.diff(found) > 0).all()
        assert (counts[proportions == 0] == 0).all()
    some = accepted(values, np.array([0.5, 0.25, 0.25]), 10_000)
    assert len(some) == pytest.approx(2 * (values == 0).sum(), abs=2), "no more than the rarest value allows"
    assert len(accepted(values, np.array([0.1, 0.2, 0.7, 0.0]), 100)) == 100
    assert len(accepted(values[values > 0], np.array([0.1, 0.2, 0.7]), 100)) == 0
    assert allotted(np.array([1 / 3, 1 / 3, 1 / 3]), 10).tolist() == [4, 3, 3]


def test_the_cost_of_rejection_at_an_allowed_error() -> None:
    shares, target = np.array([0.02, *[0.98 / 9] * 9]), np.full(10, 0.1)
    assert ratio_within(target, shares, 0.0) == rejection_ratio(target, shares) == pytest.approx(5)
    assert ratio_within(target, shares, 0.04) == pytest.approx(3), "zeros at 6 % are enough"
    assert ratio_within(target, shares, 0.5) == 1
    assert ratio_within(np.array([0.5, 0.5]), np.array([0.0, 1.0]), 0.1) == float("inf")
    assert ratio_within(np.array([0.05, 0.95]), np.array([0.0, 1.0]), 0.05) == 1, "what is allowed makes up for it"


@pytest.mark.parametrize(
    ("make", "needle"),
    [
        (lambda: ShiftOptions(attributes=()), "at least one"),
        (lambda: ShiftOptions(classifier=("a:b", "c:d")), "2 of classifier for 1"),
        (lambda: ShiftOptions(classifier=("a:b",), judge=("a:b",)), "also steers"),
        (lambda: ShiftOptions(imbalance="0=0.1", model=Path("m")), "model or imbalance"),
        (lambda: SolverOptions(w=5), "max_w"),
        (lambda: SolverOptions(level=1.0), "confidence"),
        (lambda: SolverOptions(samples=10**11), "solver.samples is 100,000,000,000: at most 100,000,000"),
        (lambda: SteeringOptions(max_candidates=10**11), "max_candidates is 100,000,000,000"),
        (lambda: SteeringOptions(candidates=100), "candidates"),
        (lambda: SteeringOptions(min_samples=1), "min_samples"),
    ],
)
def test_bad_options_are_one_sentence(make, needle: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=needle):
        make()
