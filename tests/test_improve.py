"""The main job from end to end, at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sims.experiments.improve.summary import retained

import tiny
from sims.cli import main
from sims.data.sources import load
from sims.experiments.improve import job
from sims.experiments.options import ALL_METHODS
from sims.guidance import Extrapolate
from sims.model import load as load_model
from sims.seeds import seed_range

LABELS = ["base", "continued", "placebo", "self-trained", "autoguidance", "sims", "neon", "distilled"]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def summary(finished: Path) -> dict[str, Any]:
    return summary_of(finished)


def test_the_summary_says_what_was_done(summary: dict[str, Any]) -> None:
    assert summary["format"] == 1 and summary["verified"]
    assert summary["headline"].startswith("sims against base: FD to training data ")
    assert summary["data"]["num_train"] == 1437 and summary["data"]["num_test"] == 360
    assert summary["data"]["shape"] == [1, 8, 8] and not summary["data"]["conditional"]
    assert summary["floor"]["fd"] > 0 and summary["extractor"]["hash"]
    assert summary["commands"][1].endswith("--seeds 0-63 --out samples")
    assert summary["seconds"] > 0 and all(stage["seconds"] >= 0 for stage in summary["stages"])
    assert summary["costs"]["synthesized"] == 200 and summary["costs"]["distillation_images"] == 5120


def test_the_table_has_a_row_for_every_method(summary: dict[str, Any]) -> None:
    rows = {row["label"]: row for row in summary["rows"]}
    assert set(LABELS) <= set(rows) and set(LABELS) == set(ALL_METHODS)
    assert [label for label in rows if label in LABELS] == LABELS
    for row in rows.values():
        assert row["draws"] == 2 and row["samples_per_draw"] == 100
        for metric in ("fd", "fd_held_out", "kid_held_out", "precision", "recall", "memorized"):
            figure = row[metric]
            assert np.isfinite(figure["mean"]) and figure["low"] <= figure["mean"] <= figure["high"]
    nfe = {label: row["nfe"] for label, row in rows.items()}
    assert nfe["base"] == nfe["neon"] == nfe["distilled"] == nfe["continued"] == 11
    assert nfe["sims"] == nfe["placebo"] == nfe["autoguidance"] == 22
    assert rows["base"]["w"] == 0 and rows["base"]["extra_training_images"] == 0
    sims = rows["sims"]["extra_training_images"]
    assert rows["continued"]["extra_training_images"] == sims > rows["placebo"]["budget"]
    assert rows["distilled"]["extra_training_images"] > sims


def test_the_search_is_reported_with_its_cost(summary: dict[str, Any]) -> None:
    search = summary["search"]
    assert set(search["chosen"]) == {"placebo", "autoguidance", "sims", "neon"}
    assert search["samples"] == sum(search["samples_by_method"].values()) < search["grid_samples"]
    for name, chosen in search["chosen"].items():
        cells = [c for c in search["cells"] if c["method"] == name and c["n"] == 100]
        best = min(cells, key=lambda c: c["fd"])
        assert (best["budget"], best["w"]) == (chosen["budget"], chosen["w"])
        row = next(row for row in summary["rows"] if row["label"] == name)
        assert (row["budget"], row["w"]) == (chosen["budget"], chosen["w"])


def test_sims_is_compared_with_all_others(summary: dict[str, Any]) -> None:
    for entry in summary["comparisons"]:
        low, mean, high = (entry["difference"][key] for key in ("low", "mean", "high"))
        assert low <= mean <= high
        assert ("better" in entry["verdict"]) == (high < 0) and ("worse" in entry["verdict"]) == (low > 0)
    others = {row["label"] for row in summary["rows"]} - {"sims"}
    assert {(entry["b"], entry["metric"]) for entry in summary["comparisons"]} == {
        (label, metric) for label in others for metric in ("fd", "fd_held_out")
    }


def test_every_figure_says_what_it_was_measured_with(finished: Path, summary: dict[str, Any]) -> None:
    rows = metrics_of(finished)
    needed = {"metric", "value", "extractor_name", "extractor_hash", "reference_name", "reference_hash", "num_samples"}
    needed |= {"seeds", "method", "label", "w", "budget", "nfe", "draw"}
    assert all(needed <= set(row) for row in rows)
    assert {row["label"] for row in rows} == {row["label"] for row in summary["rows"]}
    for row in summary["rows"]:
        values = [r["value"] for r in rows if r["label"] == row["label"] and r["metric"] == "fd"]
        assert len(values) == 2 and np.mean(values) == pytest.approx(row["fd"]["mean"])


def test_there_is_no_share_of_a_gain_where_there_is_none() -> None:
    rows = {name: {"fd": {"mean": fd}} for name, fd in (("base", 10.0), ("sims", 6.0), ("fast", 7.0))}
    assert retained(rows, "fast", "fd") == 0.75
    rows["sims"]["fd"]["mean"] = 12.0
    assert retained(rows, "fast", "fd") is None


def test_what_selects_shares_no_seed_with_what_judges(finished: Path) -> None:
    judged = [range(*row["seeds"]) for row in metrics_of(finished)]
    searched = [file.stem.split("-") for file in (finished / "search").glob("*/*/*.safetensors")]
    selected = {seed for first, last in searched for seed in range(int(first), int(last))}
    assert selected and not any(seed in selected for part in judged for seed in part)
    purposes = ("evaluation", "selection", "synthesis", "distillation", "pilot", "figures")
    for seed, round_ in ((0, 0), (123, 4), (2**31 - 1, 9)):
        ranges = sorted((seed_range(p, seed, 10**8, round_) for p in purposes), key=lambda r: r.start)
        assert all(a.stop <= b.start for a, b in pairwise(ranges))


def test_the_improved_models_open_and_sample(finished: Path) -> None:
    improved, distilled = load_model(finished / "improved"), load_model(finished / "distilled")
    assert isinstance(improved.denoiser, Extrapolate) and not isinstance(distilled.denoiser, Extrapolate)
    for model in (improved, distilled):
        images = model.images(range(5))
        assert images.shape == (5, 1, 8, 8) and images.dtype == np.uint8 and images.max() <= 16
        assert np.array_equal(images[2:3], model.images([2]))


def test_the_run_directory_is_complete(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert page.lstrip().lower().startswith("<!doctype html") and 'src="http' not in page
    assert "round 1" in (finished / "log").read_text()
    grids = np.load(finished / "grids.npz")
    assert {"real", "nearest", "base@0"} <= set(grids.files) and all(len(grids[k]) == 64 for k in grids.files)
    assert not list(finished.rglob(".*.tmp-*"))


def test_running_again_changes_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.snapshot(finished)
    assert main(tiny.improve_arguments(finished, *tiny.PCA)) == 0
    assert "is finished" in capsys.readouterr().err
    assert tiny.snapshot(finished) == before


def test_a_lost_report_is_written_again(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "report.html").unlink()
    assert main(tiny.improve_arguments(run, *tiny.PCA)) == 0
    assert (run / "report.html").stat().st_size > 10_000
    assert tiny.figures(run) == tiny.figures(finished)


FEW = ["--methods", "base,sims", "--base.images", "2560", "--evaluation.draws", "1"]


def test_a_conditional_job_reports_every_class(tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = ["--data.conditional", "--data.limit", "300", *FEW, "--methods", "base,sims,neon,distilled"]
    assert main(tiny.improve_arguments(run, *more)) == 0
    summary = summary_of(run)
    assert summary["data"]["conditional"] and summary["extractor"]["accuracy"] > 0.9
    for row in summary["rows"]:
        assert [entry["class"] for entry in row["per_class"]] == list("0123456789")
        assert sum(entry["share"] for entry in row["per_class"]) == pytest.approx(1)
        assert all(entry["agreement"] is None or 0 <= entry["agreement"] <= 1 for entry in row["per_class"])
    model = load_model(run / "improved")
    assert model.num_classes == 10 and model.class_names == tuple("0123456789")
    assert not torch.equal(model.sample([0], labels=[3]), model.sample([0], labels=[4]))


def test_pictures_without_labels_are_judged_by_pca(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index, pixels in enumerate(load("digits", limit=120).raw):
        Image.fromarray(pixels[0] * 15).save(tmp_path / "pictures" / f"{index:03d}.png")
    run = tmp_path / "run"
    assert main(tiny.improve_arguments(run, "--data.path", str(tmp_path / "pictures"), *FEW)) == 0
    summary = summary_of(run)
    assert "pca" in summary["extractor"]["name"] and summary["data"]["num_train"] == 108
    assert all(row["per_class"] == [] for row in summary["rows"])


def test_without_any_data_the_default_is_used_unverified(finished: Path, tmp_path: Path) -> None:
    given, run = next((finished / "base" / "snapshots").glob("*12800")), tmp_path / "run"
    assert main(tiny.improve_arguments(run, "--model", str(given), "--data.path", "none")) == 0
    summary = summary_of(run)
    assert not summary["verified"] and "nothing was verified" in summary["headline"]
    rows = {row["label"]: row for row in summary["rows"]}
    assert set(rows) == {"base", "self-trained", "sims", "neon", "distilled"}
    assert (rows["sims"]["w"], rows["sims"]["budget"]) == (1.0, 2560)
    assert all(row["fd"]["mean"] is None for row in rows.values())
    improved = load_model(run / "improved").denoiser
    assert isinstance(improved, Extrapolate) and improved.w == 1.0
    assert (run / "report.html").is_file()


def test_statistics_of_real_data_are_enough_to_choose(finished: Path, tmp_path: Path) -> None:
    given, run = next((finished / "base" / "snapshots").glob("*12800")), tmp_path / "run"
    reference = ["--reference", str(finished / "references"), "--methods", "base,sims"]
    assert main(tiny.improve_arguments(run, "--model", str(given), "--data.path", "none", *reference)) == 0
    ours, theirs = ({row["label"]: row for row in summary_of(r)["rows"]} for r in (run, finished))
    assert ours["base"]["fd"] == theirs["base"]["fd"]
    assert (ours["sims"]["w"], ours["sims"]["budget"]) == (theirs["sims"]["w"], theirs["sims"]["budget"])
    assert ours["sims"]["fd"] == theirs["sims"]["fd"]


def test_trusted_images_choose_the_strength(tmp_path: Path, say: tiny.Say) -> None:
    (tmp_path / "trusted").mkdir()
    for index, pixels in enumerate(load("digits", limit=30).raw):
        Image.fromarray(pixels[0] * 15).save(tmp_path / "trusted" / f"{index}.png")
    words = [*tiny.PCA, "--methods", "base,sims", "--guidance.cache-cost", "0", "--search.budget", "2560"]
    words = tiny.improve_arguments(tmp_path / "run", *words, "--trusted", str(tmp_path / "trusted"))
    assert main(words) == 0
    search = json.loads((tmp_path / "run" / "summary.json").read_text())["search"]
    found, w = search["trusted"]["sims"], search["chosen"]["sims"]["w"]
    assert found["size"] == 30 and f"{w:g}" in found["distances"] and sum(found["shares"].values()) == pytest.approx(1)
    assert f"w = {w:g}" in (tmp_path / "run" / "log").read_text()
    assert f"by 30 trusted images; by the training data {found['by_data']:g}" in (tmp_path / "run" / "log").read_text()
    (tmp_path / "few").mkdir()
    for wrong, sentence in (("no/such", "no data at"), (str(tmp_path / "few"), "few")):
        status, _, err = say(*tiny.improve_arguments(tmp_path / "other", "--trusted", wrong))
        assert status == 2 and sentence in err and not (tmp_path / "other" / "base").exists()
    status, _, err = say(*tiny.improve_arguments(tmp_path / "other", "--trusted", "few", "--search.w", "1"))
    assert status == 2 and "leave out --trusted, or a fixed --search.w" in " ".join(err.split())


def test_a_fixed_budget_is_the_auxiliarys_not_autoguidances(tmp_path: Path) -> None:
    run, fixed = tmp_path / "run", ["--search.budget", "2560", "--search.w", "1"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *FEW, "--methods", "base,autoguidance,sims", *fixed)) == 0
    rows = {row["label"]: row for row in summary_of(run)["rows"]}
    assert (rows["sims"]["budget"], rows["sims"]["w"]) == (2560, 1.0)
    assert rows["autoguidance"]["budget"] in (320, 640)


def test_rounds_start_from_the_distilled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_accept", lambda *args, **more: {"accepted": True, "reason": "accepted: by this test"})
    run, methods = tmp_path / "run", ["--methods", "base,sims,distilled", "--rounds", "2"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *methods)) == 0
    rounds = summary_of(run)["rounds"]
    assert [entry["round"] for entry in rounds] == [1, 2]
    assert {row["method"] for row in rounds[1]["rows"]} == {"base", "sims", "distilled"}
    first = {row["label"]: row for row in rounds[0]["rows"]}
    assert rounds[1]["rows"][0]["fd"]["mean"] == pytest.approx(first["distilled"]["fd"]["mean"], rel=0.3)


def test_rounds_stop_before_one_that_is_no_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_accept", lambda *args, **more: {"accepted": False, "reason": "stopped: by this test"})
    run, methods = tmp_path / "run", ["--methods", "base,sims,distilled", "--rounds", "3"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *methods)) == 0
    summary = summary_of(run)
    assert [(entry["round"], entry["accepted"]) for entry in summary["rounds"]] == [(1, False)]
    assert load_model(run / "improved").data_shape == (1, 8, 8)  # what was made is kept: the report says what it is


def test_a_ready_made_extractor_judges_and_is_found_again(tmp_path: Path) -> None:
    class Corners(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, ::3, ::3].flatten(1)

    file = tmp_path / "corners.pt"
    torch.jit.script(Corners()).save(str(file))
    words = ["--methods", "base,sims", "--evaluation.extractor", f"torchscript:{file}", "--evaluation.no-check"]
    assert main(tiny.improve_arguments(tmp_path / "run", *words)) == 0
    found = summary_of(tmp_path / "run")
    assert found["extractor"]["num_features"] == 9 and "torchscript" in found["extractor"]["name"]
    assert main(["evaluate", str(tmp_path / "run" / "improved"), "--reference", str(tmp_path / "run" / "references"),
                 "--samples", "100", "--draws", "2", "--cache", str(tmp_path / "cache")]) == 0  # fmt: skip
    torch.jit.script(torch.nn.Flatten()).save(str(file))
    (tmp_path / "run" / "summary.json").unlink()
    assert main(tiny.improve_arguments(tmp_path / "run", *words)) == 2, "the weights are others now"


def test_an_unknown_extractor_is_refused_before_anything_runs(tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny.improve_arguments(tmp_path / "run", "--evaluation.extractor", "dinov3"))
    assert status == 2 and "dinov2" in err and not (tmp_path / "run").exists()
