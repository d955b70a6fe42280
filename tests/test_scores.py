"""Intervals, reference statistics, and scores that know what they may be compared with."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from scoring import Toy
from sims.errors import UserError
from sims.metrics.comparison import differences, require_comparable
from sims.metrics.frechet import Moments
from sims.metrics.intervals import Interval, paired_interval, paired_ratio_interval, t_interval
from sims.results.scores import ScoreRow
from sims.scoring.features import FeatureSet
from sims.scoring.statistics import read_statistics, save_statistics


def test_t_interval_matches_scipy_and_covers() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(3, 2, 7)
    truth = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    found = t_interval(values, 0.9)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), rel=1e-12)
    assert found.mean == pytest.approx(values.mean())
    covered = np.mean([not t_interval(rng.normal(size=4)).excludes(0) for _ in range(1000)])
    assert 0.92 < covered < 0.98
    assert Interval(**json.loads(json.dumps(asdict(found)))) == found


def test_paired_intervals() -> None:
    a, b = [8.0, 9.5, 7.0], [10.0, 11.0, 9.5]
    truth = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired_interval(a, b)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high))
    assert found.excludes() and found.high < 0
    ratio = paired_ratio_interval([9.0, 18.0], [10.0, 20.0])
    assert (ratio.mean, ratio.low, ratio.high) == pytest.approx((-10, -10, -10))


def test_intervals_refuse() -> None:
    for bad in ([], [1.0], [1.0, float("nan")]):
        with pytest.raises(UserError):
            t_interval(bad)
    with pytest.raises(UserError, match="between 0 and 1"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(UserError, match="paired"):
        paired_interval([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(UserError, match="positive"):
        paired_ratio_interval([1.0, 2.0], [0.0, 1.0])


def write(path: Path, kept: bool = True, **changes: object) -> FeatureSet:
    features = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    found = FeatureSet("digits", "cd", Moments.of(features), features, labels=np.arange(20) % 3, data_shape=(1, 8, 8))
    found = replace(found, **{} if kept else {"kept": None, "labels": None}, **changes)
    save_statistics(path, found, Toy())
    return found


def test_statistics_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "reference.safetensors"
    saved, loaded = write(path), read_statistics(path)
    features = loaded.features
    np.testing.assert_array_equal(features.moments.mean, saved.moments.mean)
    np.testing.assert_array_equal(features.moments.covariance, saved.moments.covariance)
    np.testing.assert_array_equal(features.require_features(), saved.require_features())
    np.testing.assert_array_equal(features.labels, np.arange(20) % 3)
    assert (features.name, features.hash, features.count, features.data_shape) == ("digits", "cd", 20, (1, 8, 8))
    assert loaded.measured_with(Toy()) and not loaded.measured_with(Toy(width=7))
    write(tmp_path / "bare.safetensors", kept=False)
    bare = read_statistics(tmp_path / "bare.safetensors").features
    assert bare.kept is None and bare.labels is None
    with pytest.raises(UserError, match="moments only"):
        bare.require_features()


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.99])
def test_truncated_statistics_are_refused(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "reference.safetensors"
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep if isinstance(keep, int) else keep * len(content))])
    with pytest.raises(UserError, match="damaged"):
        read_statistics(path)


def test_missing_statistics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_statistics(tmp_path / "none.safetensors")


ROW = ScoreRow("fd", 1.5, "classifier-a", "ab", "digits-test", "cd", 5000, (0, 5000))


def test_rows_round_trip() -> None:
    row = json.loads(json.dumps({**ROW.to_json(), "note": "more"}))
    assert ScoreRow.from_json(row) == ROW
    assert ROW.sims_version and ROW.torch_version
    for value in (None, "much"):
        with pytest.raises(UserError, match=r"'value': .* is not a valid float"):
            ScoreRow.from_json({**row, "value": value})
    del row["extractor_hash"]
    with pytest.raises(UserError, match="extractor_hash"):
        ScoreRow.from_json(row)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metric", "kid"),
        ("extractor_name", "pca"),
        ("extractor_hash", "xy"),
        ("reference_name", "digits-train"),
        ("reference_hash", "xy"),
        ("num_samples", 1000),
        ("seeds", (5000, 10000)),
        ("resize", "box"),
        ("format", "png"),
        ("dtype", "uint8"),
        ("images", "grey repeated to RGB"),
        ("settings", {"k": 3}),
    ],
)
def test_scores_that_differ_are_not_compared(name: str, value: object) -> None:
    rows = [ROW, replace(ROW, value=2.0, torch_version="0"), replace(ROW, **{name: value})]
    require_comparable(rows[:2])
    assert list(differences(rows)) == [name]
    with pytest.raises(UserError, match=f"differ in {name}"):
        require_comparable(rows)
    require_comparable(rows, force=True)
    require_comparable(rows, ignore=(name,))
    with pytest.raises(UserError, match="Cannot ignore"):
        require_comparable(rows, ignore=("value",))
