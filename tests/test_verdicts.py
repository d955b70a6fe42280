"""What an evaluation concludes: planted failures found, intervals, floors, and whether two models differ."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import sims
from scoring import EVERY, QUICK, Toy, evaluate, in_bytes, means, write_folder, write_npz
from sims import api
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.metrics.extractors import extract
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.points import wasserstein
from sims.metrics.precision_recall import manifold
from sims.scoring.differences import paired
from sims.scoring.subjects import in_order_of_chance
from tiny import Say

# -- planted failures are found ----------------------------------------------------------------------------------------


def blurred(data: Dataset) -> Dataset:
    """Means of 3x3 pixels."""
    x = nn.functional.pad(torch.from_numpy(data.raw).float(), (1, 1, 1, 1), mode="replicate")
    return replace(data, raw=nn.functional.avg_pool2d(x, 3, 1).round().byte().numpy(), name="blurred")


def test_mode_collapse_costs_recall_and_not_precision(real: tuple[Dataset, Dataset], cache: Path) -> None:
    labels = load_pair("digits")[1].labels
    assert labels is not None
    whole, collapsed = (
        means(evaluate(real[1].subset(np.flatnonzero(labels < most)), real[0], cache)) for most in (10, 3)
    )
    assert collapsed["recall"] < 0.5 * whole["recall"] and collapsed["coverage"] < 0.5 * whole["coverage"]
    assert collapsed["precision"] > whole["precision"] - 0.05 and collapsed["density"] > 0.9 * whole["density"]
    assert collapsed["fd"] > 5 * whole["fd"] and collapsed["kid"] > 0.1 > whole["kid"]


def test_blur_costs_precision(real: tuple[Dataset, Dataset], cache: Path) -> None:
    sharp, blunt = (means(evaluate(one, real[0], cache)) for one in (real[1], blurred(real[1])))
    assert blunt["precision"] < 0.5 * sharp["precision"] and blunt["fd"] > 5 * sharp["fd"]


def copies(share: float) -> tuple[Dataset, Dataset, Dataset]:
    """Samples of which a share are training digits, the training digits, and held-out ones."""
    digits = in_bytes(sims.load_data("digits"))
    order = np.random.default_rng(0).permutation(1797)
    train, held_out, fresh = order[:900], order[900:1350], order[1350:]
    planted = np.random.default_rng(1).choice(train, round(share / (1 - share) * len(fresh)), replace=False)
    return digits.subset(np.concatenate([planted, fresh])), digits.subset(train), digits.subset(held_out)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
def test_planted_copies_are_found(share: float, cache: Path) -> None:
    samples, train, held_out = copies(share)
    found = evaluate(samples, train, cache, held_out=held_out, metrics=["memorization"])
    copied, close = (found["metrics"][name] for name in ("copied", "closer_than_real"))
    assert copied["mean"] == pytest.approx(share, abs=0.08) and copied["low"] < share < copied["high"]
    assert (
        close["mean"] == pytest.approx(0.05 + 0.95 * share, abs=0.05) and close["low"] < close["mean"] < close["high"]
    )
    assert (copied["low"] > 0) == (share > 0)
    assert (found["metrics"]["nearest_ratio"]["mean"] < 0.85) == (share > 0)
    assert {row["settings"]["held_out"] for row in found["rows"]} == {found["reference"]["held_out"]["hash"]}


def test_memorization_is_not_guessed(real: tuple[Dataset, Dataset], cache: Path) -> None:
    train, test = real
    without = evaluate(test, train, cache, metrics=["fd", "memorization"])
    assert set(without["metrics"]) == {"fd"} and without["notes"] == [
        "memorization is left out: it needs images that no model was trained on (option 'held_out')"
    ]
    for draws in (None, 2):  # samples that lie on held-out images: a ratio of distances that has no value
        found = evaluate(
            test, train, cache, held_out=test, extractor=Toy((1, 8, 8), 64), metrics=["memorization"], draws=draws,
            samples=150,
        )  # fmt: skip
        assert {"copied", "closer_than_real"} <= set(found["metrics"])
        assert all(np.isfinite(row["value"]) for row in found["rows"])


# -- intervals, warnings and floors ------------------------------------------------------------------------------------


def test_draws_give_students_interval(real: tuple[Dataset, Dataset], cache: Path) -> None:
    found = evaluate(real[1], real[0], cache, extractor=Toy(), draws=3, samples=100)
    assert found["draws"] == 3 and found["samples_per_draw"] == 100
    for metric, entry in found["metrics"].items():
        values = [row["value"] for row in found["rows"] if row["metric"] == metric]
        truth = stats.ttest_1samp(values, 0).confidence_interval(0.95)
        assert len(values) == 3 and entry["interval"] == "3 draws"
        assert (entry["mean"], entry["low"], entry["high"]) == pytest.approx((np.mean(values), *truth))
    order = np.random.default_rng(0).permutation(len(real[1]))
    for draw in (0, 2):
        part = real[1].subset(np.sort(order[100 * draw : 100 * (draw + 1)]))
        alone = means(evaluate(part, real[0], cache, extractor=Toy()))["fd"]
        assert alone == [row["value"] for row in found["rows"] if row["metric"] == "fd"][draw]


def test_draws_of_a_sorted_set_are_as_good_as_of_a_shuffled_one(real: tuple[Dataset, Dataset], cache: Path) -> None:
    """Folders come class by class (here by brightness): consecutive parts are worse than any draw of the whole."""

    def fd(given: Dataset, draws: int | None = None) -> dict[str, Any]:
        how: dict[str, Any] = {"metrics": ["fd"], "draws": draws, "samples": 100}
        return evaluate(given, real[0], cache, extractor=Toy(), **how)["metrics"]["fd"]

    ordered = real[1].subset(np.argsort(real[1].raw.mean(axis=(1, 2, 3)), kind="stable"))
    limits = fd(ordered, draws=3)
    assert limits["low"] < fd(real[1], draws=3)["mean"] < limits["high"]
    assert limits["high"] < min(fd(ordered.subset(range(first, first + 100)))["mean"] for first in (0, 100, 200))


@pytest.mark.parametrize(
    ("seeds", "labels", "expected"),
    [(None, None, False), ([0, 1, 2], None, True), ([0, 1, 2], [0, 1, 0], True), ([0, 1, 2], [0, 0, 1], False),
     (None, [0, 1, 0], False), ([0, 1, 2], [3, 3, 3], True)],
)  # fmt: skip
def test_which_sets_are_in_the_order_of_chance(seeds: Any, labels: Any, expected: bool) -> None:
    assert in_order_of_chance(seeds, labels) == expected


def test_one_draw_gives_an_interval_and_says_which(real: tuple[Dataset, Dataset], cache: Path) -> None:
    found = evaluate(real[1], real[0], cache, extractor=Toy(), metrics=EVERY, held_out=real[1])["metrics"]
    assert {name: entry["interval"] for name, entry in found.items()} == {
        "fd": "subsampling",
        "fd_held_out": "subsampling",
        "fd_infinity": "line in 1/n",
        **dict.fromkeys(("kid", "kid_held_out"), "std. error"),
        **dict.fromkeys(("precision", "recall", "density", "coverage"), "subsampling"),
        **dict.fromkeys(("two_sample", "copied", "closer_than_real"), "binomial"),
    }
    assert all(entry["low"] <= entry["mean"] <= entry["high"] for entry in found.values())
    assert found["fd"]["high"] - found["fd"]["low"] < 3 * found["fd"]["mean"]  # of real images: as wide as the figure


def test_the_interval_of_one_draw_covers(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Eight sets from a known distribution: the figure expected at this n lies within nearly all intervals."""
    rng = np.random.default_rng(0)

    def points(count: int, shift: float) -> Dataset:
        values = (rng.normal(120 + shift, 20, (count, 1, 2, 2))).clip(0, 255).round().astype(np.uint8)
        return Dataset(values, None, UINT8)

    reference = points(4000, 0)
    sets = [evaluate(points(400, 8), reference, tmp_path, extractor=Toy((1, 2, 2), 4), metrics=["fd"])["metrics"]["fd"]
            for _ in range(8)]  # fmt: skip
    expected = np.mean([found["mean"] for found in sets])
    assert sum(found["low"] < expected < found["high"] for found in sets) >= 6
    widths, spread = [found["high"] - found["low"] for found in sets], np.std([found["mean"] for found in sets], ddof=1)
    assert 1.5 < np.mean(widths) / spread < 8


def test_the_interval_is_that_of_all_samples_though_few_are_kept(real: tuple[Dataset, Dataset], cache: Path) -> None:
    how: dict[str, Any] = {"extractor": Toy(), "metrics": ["fd"], "resamples": 150}
    all_kept, some = (
        evaluate(blurred(real[1]), real[0], cache, neighbours=size, **how)["metrics"]["fd"] for size in (200, 45)
    )
    assert some["mean"] == all_kept["mean"]
    widths = [found["high"] - found["low"] for found in (some, all_kept)]
    assert widths[0] == pytest.approx(widths[1], rel=0.3), "that of a quarter of them is twice as wide"


def test_few_samples_are_warned_of(real: tuple[Dataset, Dataset], cache: Path) -> None:
    few = evaluate(real[1].subset(range(64)), real[0], cache)["notes"]
    assert few[0].startswith("WARNING: 64 samples for 64 features: their covariance has no full rank")
    assert not [note for note in evaluate(real[1].subset(range(65)), real[0], cache)["notes"] if "WARNING" in note]
    small = evaluate(real[1], real[0].subset(range(50)), cache, extractor=Toy(width=60))["notes"]
    assert "WARNING: 50 reference images for 60 features: biased likewise" in small
    two = evaluate(real[1].subset(range(2)), real[0], cache, extractor=Toy(), metrics=EVERY)
    assert set(two["metrics"]) == {"fd"} and two["metrics"]["fd"]["interval"] == "none"


def test_the_floor_is_held_out_images_in_the_samples_place(real: tuple[Dataset, Dataset], cache: Path) -> None:
    train, test = real
    found = evaluate(test.subset(range(100)), train, cache, extractor=Toy(), held_out=test)
    assert found["floor_of"] == "100 held-out images against the reference"
    assert {row["floor_samples"] for row in found["rows"] if row["floor"] is not None} == {100}
    rows = np.sort(np.random.default_rng(1).permutation(360)[:100])
    x, y = (extract(Toy(), data.all()[0]) for data in (test.subset(rows), train))
    assert found["floor"]["fd"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-6)
    assert found["floor"]["recall"] == manifold(y, x).recall
    larger = evaluate(train.subset(range(500)), train, cache, extractor=Toy(), held_out=test)
    assert larger["floor_of"] == "360 held-out images against the reference", "as many as there are"
    assert larger["notes"][-1].startswith("real against real is of 360 images, fewer than the samples")
    assert set(found["floor"]) == {"fd", "kid", "precision", "recall", "density", "coverage"}


def test_without_held_out_images_the_floor_divides_the_reference(real: tuple[Dataset, Dataset], cache: Path) -> None:
    train, test = real
    found = evaluate(test, train, cache, extractor=Toy())
    assert found["floor_of"] == "360 images of the reference against its other 1,077"
    order = np.random.default_rng(2).permutation(1437)
    features = extract(Toy(), train.all()[0])
    x, y = features[np.sort(order[:360])], features[np.sort(order[360:])]
    assert found["floor"]["fd"] == pytest.approx(frechet_distance(Moments.of(x), Moments.of(y)), rel=1e-4)
    assert found["floor"]["precision"] == manifold(y, x).precision
    whole = evaluate(train, train, cache, extractor=Toy())
    assert whole["floor_of"] == "718 images of the reference against its other 719" and means(whole)["fd"] == 0.0


# -- are two different? ------------------------------------------------------------------------------------------------


def noisy(data: Dataset, amount: float, first_seed: int | None = 0) -> Dataset:
    """The same images with noise, made from the seeds ``first_seed`` on."""
    x = torch.from_numpy(data.raw).float()
    x += amount * torch.randn(x.shape, generator=torch.manual_seed(0))
    seeds = {} if first_seed is None else {"seed": np.arange(first_seed, first_seed + len(data))}
    return replace(data, raw=x.clamp(0, 255).round().byte().numpy(), columns=seeds, name=f"noise {amount:g}")


def differences(a: Dataset, b: Dataset, reference: Dataset, cache: Path, **options: Any) -> dict[str, dict[str, Any]]:
    options.setdefault("metrics", QUICK)
    found = api.compare([a, b], reference, options=options, cache=cache, quiet=True).to_json()["differences"]
    return {row["metric"]: row for row in found}


def test_identical_models_do_not_differ(real: tuple[Dataset, Dataset], cache: Path) -> None:
    for how in ({}, {"draws": 3, "samples": 100}):
        found = differences(noisy(real[1], 5), noisy(real[1], 5), real[0], cache, **how)
        assert set(found) == {"fd", "kid", "precision", "recall", "density", "coverage"}
        for metric, row in found.items():
            assert row["difference"] == 0 and not row["significant"]
            assert row["verdict"].startswith(f"no difference in {metric} can be shown")


@pytest.mark.parametrize("how", [{}, {"draws": 3, "samples": 100}])
@pytest.mark.parametrize("first_seed", [0, None])
def test_the_better_model_is_named(
    how: dict[str, int], first_seed: int | None, real: tuple[Dataset, Dataset], cache: Path
) -> None:
    a, b = noisy(real[1], 0, first_seed), noisy(real[1], 40, first_seed)
    for first, second in ((a, b), (b, a)):
        found = differences(first, second, real[0], cache, **how)
        for metric in ("fd", "kid", "precision", "density"):
            row = found[metric]
            assert row["significant"] and row["low"] < row["difference"] < row["high"]
            assert row["verdict"].startswith(f"noise 0 is better than noise 40 in {metric}: by ")
            assert (row["difference"] < 0) == ((metric in ("fd", "kid")) == (first is a))
    ways = {"fd": found["fd"]["interval"], "kid": found["kid"]["interval"]}
    if how:
        assert set(ways.values()) == {"draws in order" if first_seed is None else "paired draws of the same seeds"}
    else:
        paired = "unpaired: both intervals" if first_seed is None else "subsets of the same seeds"
        assert ways == {"fd": paired, "kid": "unpaired: both intervals"}


def test_pairing_sharpens(real: tuple[Dataset, Dataset], cache: Path) -> None:
    together = differences(noisy(real[1], 0), noisy(real[1], 5), real[0], cache)
    apart = differences(noisy(real[1], 0), noisy(real[1], 5, first_seed=7), real[0], cache)
    for metric in ("fd", "precision", "recall", "density", "coverage"):
        widths = [found[metric]["high"] - found[metric]["low"] for found in (together, apart)]
        assert widths[0] < 0.8 * widths[1] and together[metric]["difference"] == apart[metric]["difference"]
    assert together["fd"]["significant"] and not apart["fd"]["significant"]


def test_an_interval_is_one_of_the_figures_shown(real: tuple[Dataset, Dataset], cache: Path) -> None:
    """Neighbour figures of 60 of 360 samples have the error of 60 samples."""
    a, b = noisy(real[1], 0), noisy(real[1], 20)
    few, many = (differences(a, b, real[0], cache, neighbours=count)["precision"] for count in (60, 360))
    assert few["high"] - few["low"] > 1.5 * (many["high"] - many["low"])


def test_unequal_numbers_of_draws_are_refused(real: tuple[Dataset, Dataset], cache: Path) -> None:
    scores = []
    for draws in (3, 1):
        options = {"metrics": ["fd"], "samples": 100, "draws": draws}
        suite = api._suite(real[0], None, Toy(), options, cache, True)
        scores.append(suite.score(noisy(real[1], 10)))
    with pytest.raises(UserError, match=r"has 3 draw\(s\) and noise 10 1: give both as many with option 'draws'"):
        paired(*scores, suite.options)


def test_models_of_one_name_are_told_apart(real: tuple[Dataset, Dataset], cache: Path) -> None:
    a, b = (replace(noisy(real[1], amount), name="mine") for amount in (0, 40))
    found = differences(a, b, real[0], cache, metrics=["fd"])
    assert found["fd"]["verdict"].startswith("mine (the first) is better than mine (the second) in fd")


def test_the_command_compares_two(real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path, say: Say) -> None:
    folders = [write_folder(tmp_path / name, noisy(real[1], amount).raw) for name, amount in (("a", 0), ("b", 40))]
    words = ["evaluate", *folders, "--reference", write_npz(tmp_path / "train.npz", real[0].raw)]
    words += ["--paired", "--metrics", ",".join(QUICK), "--cache", cache]
    status, out, _ = say(*words)
    assert status == 0 and "first minus second" in out and "subsets of the same seeds" in out
    assert f"{folders[0]} is better than {folders[1]} in fd: by" in out
    found = json.loads(say(*words, "--json")[1])
    assert {row["metric"] for row in found["differences"]} == set(found["scores"][0]["metrics"])


# -- points ------------------------------------------------------------------------------------------------------------


def test_points_are_measured_as_they_are(cache: Path) -> None:
    data = sims.load_data("toy:grid25", limit=600)
    half, rest = data.subset(range(300)), data.subset(range(300, 600))
    found = evaluate(half, rest, cache, metrics=EVERY)
    assert found["extractor"]["name"] == "points" and found["extractor"]["num_features"] == 2
    assert means(found)["wasserstein"] == pytest.approx(wasserstein(half.raw, rest.raw), rel=1e-6)
    assert means(found)["fd"] == pytest.approx(frechet_distance(Moments.of(half.raw), Moments.of(rest.raw)), rel=1e-6)
    assert means(found)["modes_hit"] == 25 and means(found)["high_quality"] > 0.95
    assert {row["resize"] for row in found["rows"]} == {"none"}


def test_lost_modes_are_counted(cache: Path) -> None:
    data = sims.load_data("toy:grid25", limit=1000)
    assert data.labels is not None
    lost = data.subset(np.flatnonzero(data.labels < 20)[:300])
    apart = replace(lost, raw=lost.raw + np.float32(1))  # between the modes
    how: dict[str, Any] = {"metrics": ["manifold", "points"], "neighbours": 300, "resamples": 4}
    found = [means(evaluate(one, data, cache, **how)) for one in (data.subset(range(300)), lost, apart)]
    assert [figures["modes_hit"] for figures in found] == [25, 20, 0]
    assert found[1]["high_quality"] > 0.97 and found[2]["high_quality"] == 0
    for metric in ("wasserstein", "sliced_wasserstein", "mmd"):
        assert 2 * found[0][metric] < found[1][metric]
    assert found[1]["recall"] < 0.9 < found[0]["recall"] and found[1]["precision"] > 0.9
