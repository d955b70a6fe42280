"""One scoring: a run's judge and `sims evaluate` measure the same, say with what, and take a new metric alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import sims
import tiny
from scoring import EVERY, Toy, write_npz
from sims.cli import main
from sims.data.dataset import Dataset, View
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.metrics.comparison import COMPARED, require_comparable
from sims.metrics.copies import memorization, nearest_distances
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.kernel import kernel_distance
from sims.metrics.precision_recall import manifold
from sims.results.common import FigureFacts
from sims.results.improve import ImproveResult
from sims.results.scores import ScoreFigure, ScoreRow
from sims.results.summaries import read_result
from sims.scoring import figures as figures_module
from sims.scoring.figures import METRICS, Metric, run_figures
from sims.scoring.judge import Draw, Judge, load_judge
from sims.scoring.options import EvaluationOptions, ScoreOptions
from sims.scoring.reference import Reference, make_references
from sims.training.classifier import train_classifier
from tiny import Say

OPTIONS = EvaluationOptions(samples=120, manifold_samples=60)
COUNT = 120


@pytest.fixture(scope="module")
def data() -> tuple[Dataset, Dataset, Dataset]:
    """Training and held-out digits with their classes, and the other half of the held-out ones."""
    train, test = load_pair("digits")
    return train.subset(range(600)), test.subset(range(0, 360, 2)), test.subset(range(1, 360, 2))


@pytest.fixture(scope="module")
def folder(data: tuple[Dataset, Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """References with both extractors, trained for less long than usual."""
    folder = tmp_path_factory.mktemp("references")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=20))
        make_references(folder, data[0], data[1], OPTIONS)
    return folder


def samples_of(train: Dataset) -> Tensor:
    """Digits with noise, rounded as samples are; a few are copies."""
    x = View(train)[0:COUNT]
    x[4:] += 0.3 * torch.randn(x[4:].shape, generator=torch.manual_seed(0))
    return train.codec.encode(train.codec.decode(x))


@pytest.fixture(scope="module")
def judge(folder: Path, data: tuple[Dataset, Dataset, Dataset]) -> Judge:
    return load_judge(folder, data[0], data[1], OPTIONS)


@pytest.fixture(scope="module")
def draw(judge: Judge, data: tuple[Dataset, Dataset, Dataset]) -> Draw:
    labels = data[0].labels
    assert labels is not None
    return judge.scored(judge.measure(samples_of(data[0]), torch.from_numpy(labels[:COUNT])))


def test_figures_of_a_run_equal_those_computed_from_the_features(
    judge: Judge, draw: Draw, data: tuple[Dataset, Dataset, Dataset]
) -> None:
    train, test = judge.train.require_features(), judge.test and judge.test.require_features()
    assert test is not None
    some = [x[np.random.default_rng(0).permutation(len(x))[:60]] for x in (train, test)]
    scale = float(np.sqrt(np.trace(Moments.of(train).covariance) / train.shape[1]))
    near = manifold(some[0], draw.features[:60])
    held_out = nearest_distances(View(data[1])[0:180], View(data[0])[0:600])
    copies = memorization(nearest_distances(samples_of(data[0]), View(data[0])[0:600]), held_out)
    expected = {
        "fd": frechet_distance(Moments.of(draw.features), Moments.of(train)),
        "fd_held_out": frechet_distance(Moments.of(draw.features), Moments.of(test)),
        "kid": kernel_distance(draw.features[:60] / scale, some[0] / scale).value,
        "kid_held_out": kernel_distance(draw.features[:60] / scale, some[1] / scale).value,
        **vars(near),
        "memorized": copies.share_1,
        "distance_ratio": copies.median_ratio,
    }
    assert {name: value for name, value in draw.scores.items() if not name.startswith("check_")} == expected
    of_prompts = METRICS["prompts"].figures
    assert set(draw.scores) == {name for name in run_figures() if name.removeprefix("check_") not in of_prompts}


def test_a_draw_is_kept_whole(draw: Draw, tmp_path: Path) -> None:
    file = tmp_path / "draw.safetensors"
    replace(draw, diverged=3).save(file)
    kept = Draw.load(file)
    assert kept.rows == draw.rows and kept.diverged == 3 and np.array_equal(kept.features, draw.features)
    row = kept.described(range(500, 620), label="mine")[0]
    assert row["label"] == "mine" and row["seeds"] == [500, 620]


def test_a_run_and_evaluate_say_the_same(
    judge: Judge, draw: Draw, folder: Path, data: tuple[Dataset, Dataset, Dataset]
) -> None:
    samples = replace(data[0], raw=data[0].codec.decode(samples_of(data[0])), labels=None, class_names=())
    options = {"metrics": ("fd", "kid", "manifold"), "neighbours": 60}
    found = sims.evaluate(samples, str(folder), options=options, cache=folder / "cache", quiet=True)
    ours, theirs = ({row.metric: row for row in rows} for rows in (draw.rows, found.rows))
    assert set(theirs) == {name for name in ours if not name.startswith("check_")} - {"memorized", "distance_ratio"}
    for name, row in theirs.items():
        require_comparable([ours[name], row], ignore=("dtype",))  # what was stored: float64 here
        if name.startswith("fd"):
            assert row.value == pytest.approx(ours[name].value, rel=1e-4)


def other_scale(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reference, "scale", 2.0)


def other_k(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(figures_module, "K_PAIR", 4)
    patch.setattr(figures_module, "K_COVER", 6)


CHANGES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None] | None, dict[str, Any], set[str]]] = {
    "scale": (other_scale, {}, {"kid", "kid_held_out"}),
    "k": (other_k, {}, {"precision", "recall", "density"}),
    "samples of pairs": (None, {"manifold_samples": 40}, {"kid", "precision", "recall", "density"}),
    "held-out data": (None, {"held_out": 2}, {"fd_held_out", "kid_held_out", "memorized", "distance_ratio"}),
    "training data": (None, {"train": 1}, {"fd", "kid", "precision", "recall", "memorized", "distance_ratio"}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_row_says_what_determines_its_figure(
    change: str,
    draw: Draw,
    data: tuple[Dataset, Dataset, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the value of a figure changes with an input, one of the fields that rows are compared by does."""
    patch, inputs, moved = CHANGES[change]
    monkeypatch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=20))
    train = data[0].subset(range(100, 600)) if "train" in inputs else data[0]
    options = replace(OPTIONS, manifold_samples=inputs.get("manifold_samples", 60))
    held_out = data[inputs.get("held_out", 1)]
    make_references(tmp_path, train, held_out, options)
    if patch:
        patch(monkeypatch)
    judge = load_judge(tmp_path, train, held_out, options)
    found = judge.scored(judge.measure(samples_of(data[0])))
    before, after = ({row.metric: row for row in one.rows} for one in (draw, found))
    changed = {name for name in before if before[name].value != after[name].value}
    assert moved <= changed, "the change was one"
    for name in changed:
        same = [field for field in COMPARED if getattr(before[name], field) == getattr(after[name], field)]
        assert len(same) < len(COMPARED), f"{name} says nothing of {change}"


def test_rows_of_copies_name_model_space(draw: Draw, judge: Judge) -> None:
    rows = {row.metric: row for row in draw.rows}
    for name in ("memorized", "distance_ratio"):
        row = rows[name]
        assert (row.extractor_name, row.resize, row.dtype) == ("model space", "none", judge.space.dtype)
        assert judge.test is not None and row.settings["held_out"] == judge.test.hash
    assert rows["memorized"].settings["quantile"] == 0.01
    assert rows["fd"].extractor_hash == judge.extractor.hash
    assert judge.second is not None and rows["check_fd"].extractor_hash == judge.second.extractor.hash
    assert "check_memorized" not in rows


# -- a new metric is a function and a record ---------------------------------------------------------------------------


def widest(s: Any, r: Any, held_out: Any, how: Any) -> dict[str, ScoreFigure]:
    value = float(np.abs(s.kept).max() - np.abs(r.kept).max())
    return {"widest": ScoreFigure(value, value - 1, value + 1, interval="made up", samples=s.count)}


@pytest.fixture
def toy_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"widest": FigureFacts("widest feature", "lower", "distance")}
    monkeypatch.setitem(METRICS, "toy", Metric("toy", widest, facts, in_runs=True))


def test_a_metric_appears_everywhere(
    toy_metric: None, judge: Judge, data: tuple[Dataset, Dataset, Dataset], tmp_path: Path, say: Say
) -> None:
    found = judge.scored(judge.measure(samples_of(data[0])))
    assert {"widest", "check_widest"} <= found.scores.keys()
    assert {row["metric"] for row in found.described(range(COUNT))} >= {"widest", "check_widest"}
    assert run_figures()["widest"].title == "widest feature" and "check_widest" in run_figures()
    files = [write_npz(tmp_path / f"{i}.npz", part.raw) for i, part in enumerate(data[1:])]
    assert ScoreOptions(metrics=("toy",)).metrics == ("toy",)
    words = ["evaluate", *files, "--reference", "digits", "--extractor", "pca", "--metrics", "toy,fd"]
    words += ["--cache", tmp_path / "cache", "--paired"]
    status, out, err = say(*words)
    assert status == 0, err
    assert out.count("widest feature") == 4, "two tables, side by side, and the differences"
    assert "in widest" in out, "a verdict"
    answer = json.loads(say(*words, "--json")[1])
    assert all("widest" in score["metrics"] and "widest" in score["floor"] for score in answer["scores"])
    assert "widest" in {row["metric"] for row in answer["differences"]}
    status, _, err = say("evaluate", files[0], "--metrics", "widst")
    assert status == 2 and "unknown metric" in err


def test_a_metric_appears_on_the_page_of_a_run(toy_metric: None, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(tiny.improve_arguments(run, *tiny.PCA, "--methods", "base,sims", "--evaluation.samples", "60")) == 0
    result = read_result(run, ImproveResult)
    assert result.figures["widest"].title == "widest feature"
    assert all("widest" in row.figures for row in result.rows)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["label"] for row in rows if row["metric"] == "widest"} == {row.label for row in result.rows}
    assert "widest feature" in (run / "report.html").read_text()


def test_evaluate_has_no_metrics_of_model_space() -> None:
    assert "copies" not in EVERY and set(EVERY) | {"copies"} == set(METRICS)
    with pytest.raises(UserError, match="unknown metric 'copies'"):
        ScoreOptions(metrics=("copies",))


# -- samples that diverge are bad samples ------------------------------------------------------------------------------


def test_samples_that_diverge_are_counted_in_every_row(judge: Judge, data: tuple[Dataset, Dataset, Dataset]) -> None:
    found = judge.scored(judge.measure(samples_of(data[0]), diverged=7))
    assert {row.diverged for row in found.rows} == {7} and found.diverged == 7


def test_evaluate_counts_samples_that_diverge(model: Path, tmp_path: Path, say: Say) -> None:
    broken = sims.load(model)
    for parameter in broken.denoiser.network.parameters():  # type: ignore[attr-defined]
        parameter.data *= 1e30
    broken.save(tmp_path / "broken")
    words = ["evaluate", tmp_path / "broken", "--extractor", "pca", "--samples", "20", "--draws", "2"]
    words += ["--metrics", "fd,kid", "--cache", tmp_path / "cache", "--out", tmp_path / "rows.jsonl"]
    status, out, err = say(*words)
    assert status == 0, err
    assert "WARNING: 40 of 40 samples diverged" in out
    rows = [ScoreRow.from_json(json.loads(line)) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert {row.diverged for row in rows} == {20}
    status, out, _ = say("evaluate", tmp_path / "rows.jsonl")
    assert status == 0 and "WARNING: 20 of 20 samples diverged" in out
    answer = json.loads(say(*words, "--json")[1])
    assert all(abs(row["value"]) < float("inf") for row in answer["rows"])


def test_some_samples_that_diverge(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = sims.load(model)
    sample = type(whole).sample_labelled

    def some_nan(self: Any, seeds: Any, **how: Any) -> Any:
        x, labels = sample(self, seeds, **how)
        x[::5, 0, 0, 0] = float("nan")
        return x, labels

    options = {"samples": 20, "draws": 1, "metrics": ("fd",)}
    good = sims.evaluate(whole, "digits", extractor=Toy(), options=options, cache=tmp_path / "a", quiet=True)
    monkeypatch.setattr(type(whole), "sample_labelled", some_nan)
    found = sims.evaluate(whole, "digits", extractor=Toy(), options=options, cache=tmp_path / "b", quiet=True)
    assert [row.diverged for row in found.rows] == [4, 4] and [row.diverged for row in good.rows] == [0, 0]
    assert any(note.startswith("WARNING: 4 of 20 samples diverged") for note in found.notes)
    assert [row.num_samples for row in found.rows] == [20, 20], "nothing leaves them out"
