"""The main job from end to end, at a size that takes seconds."""

from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import sims
import tiny
from sims.cli import main, parse
from sims.data.dataset import Dataset
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.experiments.cost.table import Estimate
from sims.experiments.improve import job
from sims.experiments.improve.improvement import Choice
from sims.experiments.improve.rows import Measured, with_retained
from sims.experiments.options import ImproveOptions
from sims.guidance import Extrapolate
from sims.methods import METHODS, TUNED, VARIANTS, default_methods
from sims.model import load as load_model
from sims.preconditioning import Preconditioned
from sims.results.common import Cost, Figure, Row
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import nfe as evaluations
from sims.seeds import seed_range


def result_of(run: Path) -> ImproveResult:
    return read_result(run, ImproveResult)


def rows_of(run: Path) -> dict[str, Row]:
    return {row.label: row for row in result_of(run).rows}


def metrics_of(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def result(finished: Path) -> ImproveResult:
    return result_of(finished)


def test_the_result_says_what_was_done(result: ImproveResult) -> None:
    assert result.verified and "sims against base: FD to training data " in result.headline
    assert (result.data.num_train, result.data.num_test) == (1437, 360)
    assert result.data.shape == (1, 8, 8) and not result.data.conditional
    assert result.floor is not None and result.floor.values["fd_held_out"] > 0
    assert result.extractor is not None and result.extractor.hash
    assert result.reproduction.commands[1].endswith("--seeds 0-63 --out samples")
    assert result.reproduction.seconds > 0 and all(stage.seconds >= 0 for stage in result.reproduction.stages)
    assert result.spent is not None
    assert (result.spent.synthesized, result.spent.distillation_images) == (200, 5120)


def test_the_table_has_a_row_for_every_method(result: ImproveResult) -> None:
    rows = {row.label: row for row in result.rows}
    able = [name for name in default_methods() if METHODS[name].fits is None]  # this base has no classes
    assert [label for label in rows if label in METHODS] == able
    tuned = {label.removesuffix(TUNED) for label in rows if label.endswith(TUNED)}  # the base, and the best at its cost
    assert {*able, "sims (cached)"} <= set(rows) <= {*able, *VARIANTS, *(name + TUNED for name in tuned)}
    assert set(rows) == set(result.looks) and len(tuned - {"base"}) <= 1
    assert all(METHODS[name].networks == 1 and rows[name + TUNED].nfe <= rows["base"].nfe for name in tuned)
    for row in rows.values():
        assert (row.draws, row.samples_per_draw, row.diverged) == (2, 100, 0)
        for name in ("fd", "fd_held_out", "kid_held_out", "precision", "recall", "memorized"):
            figure = row.figures[name]
            assert figure.low is not None and figure.high is not None and figure.low <= figure.mean <= figure.high
    nfe = {label: row.nfe for label, row in rows.items()}
    assert nfe["base"] == nfe["neon"] == nfe["distilled"] == nfe["continued"] == 11
    assert nfe["sims"] == nfe["autoguidance"] == 22
    assert rows["base"].w == 0 and rows["base"].cost == Cost()
    sims = rows["sims"].cost.total
    assert 0 <= sims - rows["continued"].cost.total < 3
    assert rows["continued"].cost.images > (rows["sims"].budget or 0) and rows["distilled"].cost.total > sims


def test_what_needs_no_training_alone(finished: Path, tmp_path: Path) -> None:
    """A given base, and the rules that need nothing else: nothing is trained, and the best of them is saved."""
    given, run = next((finished / "base" / "snapshots").glob("*12800")), tmp_path / "run"
    assert main(tiny.improve_arguments(run, *tiny.PCA, "--model", str(given), "--methods", "free")) == 0
    result = result_of(run)
    labels = [row.label for row in result.rows if not row.label.endswith(TUNED)]
    assert labels == ["base", "rescaled", "history", "time-step", "dropout-guidance"]  # one block cannot be left out
    assert all(row.budget is None and row.cost.images == 0 for row in result.rows)
    assert not (run / "artefacts").exists()
    saved = load_model(run / "improved")
    assert result.improved.removesuffix(TUNED) in ("rescaled", "history") and evaluations(saved, saved.sampler) <= 11
    assert {row.label for row in result.rows} >= {"base (tuned)", result.improved}  # its sampler is sought like others'
    assert {item.trained for item in result.recommended} == {True, False}
    assert f"{result.improved} against base: FD to training data" in result.headline
    assert f"with {result.improved}, on the selection seeds" in (run / "log").read_text()
    assert "rescaled" in (run / "report.html").read_text() and "without training" in (run / "report.html").read_text()


def test_groups_of_methods_stand_for_their_names() -> None:
    free = [name for name, method in METHODS.items() if method.is_free]
    assert ImproveOptions(methods=("free",)).methods == tuple(free) and "base" in free and "sims" not in free
    assert ImproveOptions(methods=("all",)).methods == tuple(METHODS)
    assert ImproveOptions(methods=("default", "icg")).methods == (*default_methods(), "icg")
    assert ImproveOptions(methods=("base", "free")).methods == tuple(free)
    with pytest.raises(UserError, match="unknown method 'histroy'; did you mean 'history'"):
        ImproveOptions(methods=("histroy",))


def test_the_search_is_reported_with_its_cost(result: ImproveResult) -> None:
    search = result.search
    searched = {"autoguidance", "sims", "neon", "history", "rescaled"}
    assert search is not None and set(search.chosen) - {"pair"} == searched
    assert sum(chosen.samples for chosen in search.chosen.values()) < search.grid_samples
    for name, chosen in search.chosen.items():
        cells = [c for c in search.cells if c.method == name and c.n == 100]
        best = min(cells, key=lambda c: c.fd or math.inf)
        assert (best.budget, best.w, best.extra) == (chosen.budget, chosen.w, chosen.extra)
        row = next(row for row in result.rows if row.label == name)
        assert (row.budget or 0, row.w) == (chosen.budget, chosen.w)


def test_sims_is_compared_with_all_others(result: ImproveResult) -> None:
    for entry in result.comparisons:
        assert entry.difference.low <= entry.difference.mean <= entry.difference.high
        assert ("better" in entry.verdict) == (entry.difference.high < 0)
        assert ("worse" in entry.verdict) == (entry.difference.low > 0)
    others = {row.label for row in result.rows} - {"sims"}
    pairs = {("sims", label) for label in others} | {
        (f"sims ({how})", other) for how in ("fast", "within cost") for other in ("base", "base (tuned)")
    }
    assert {(entry.a, entry.b, entry.figure) for entry in result.comparisons} == {
        (*pair, figure) for pair in pairs if {*pair} <= {*others, "sims"} for figure in ("fd", "fd_held_out")
    }


def test_every_figure_says_what_it_was_measured_with(finished: Path, result: ImproveResult) -> None:
    rows = metrics_of(finished)
    needed = {"metric", "value", "extractor_name", "extractor_hash", "reference_name", "reference_hash", "num_samples"}
    needed |= {"seeds", "method", "label", "w", "budget", "nfe", "draw"}
    assert all(needed <= set(row) for row in rows)
    assert {row["label"] for row in rows} == {row.label for row in result.rows}
    for row in result.rows:
        values = [r["value"] for r in rows if r["label"] == row.label and r["metric"] == "fd"]
        assert len(values) == 2 and np.mean(values) == pytest.approx(row.mean("fd"))


@pytest.mark.parametrize(("sims", "share"), [(6.0, {"fd": 0.75}), (12.0, {})])
def test_there_is_no_share_of_a_gain_where_there_is_none(digits: Dataset, sims: float, share: dict[str, float]) -> None:
    model = tiny.model(digits)
    table = [
        Measured(Choice(label, label, model), Row(label=label, method=label, figures={"fd": Figure(fd)}))
        for label, fd in (("base", 10.0), ("sims", sims), ("sims (fast)", 7.0))
    ]
    assert with_retained(table)[2].row.retained == share


def test_every_stage_that_a_run_times_is_counted_by_the_dry_run(
    finished: Path, result: ImproveResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the reverse: a stage that is forgotten in one of the two is seen here, whatever it is."""
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    options = parse("improve", tiny.improve_arguments(finished, *tiny.PCA, "--dry-run")[1:])
    estimate = job.improve(options)
    assert isinstance(estimate, Estimate)
    counted = [work.stage for work in estimate.work]
    assert (counted[0], counted[-1]) == ("start", "report"), "before there is a run, and after its last stage"
    timed = [stage.name for stage in result.reproduction.stages]
    at_times = {"search pair", "evaluate pair", "evaluate rival (cached)", "evaluate sims (within cost)"}
    assert {*counted[1:-1]} | at_times == {*timed} | at_times and len(counted) == len({*counted})


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
    rows, saved = rows_of(finished), result_of(finished).improved
    assert evaluations(improved, improved.sampler) == rows[saved].nfe <= 1.25 * rows["base"].nfe
    assert isinstance(distilled.denoiser, Preconditioned)
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
    result = result_of(run)
    assert result.data.conditional and result.extractor is not None and (result.extractor.accuracy or 0) > 0.9
    for row in result.rows:
        assert [entry.name for entry in row.per_class] == list("0123456789")
        assert sum(entry.share for entry in row.per_class) == pytest.approx(1)
        assert all(entry.agreement is None or 0 <= entry.agreement <= 1 for entry in row.per_class)
    model = load_model(run / "improved")
    assert model.num_classes == 10 and model.class_names == tuple("0123456789")
    assert not torch.equal(model.sample([0], labels=[3]), model.sample([0], labels=[4]))


def test_pictures_without_labels_are_judged_by_pca(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    for index, pixels in enumerate(load("digits", limit=120).raw):
        Image.fromarray(pixels[0] * 15).save(tmp_path / "pictures" / f"{index:03d}.png")
    run = tmp_path / "run"
    assert main(tiny.improve_arguments(run, "--data.path", str(tmp_path / "pictures"), *FEW)) == 0
    result = result_of(run)
    assert result.extractor is not None and "pca" in result.extractor.name and result.data.num_train == 108
    assert all(row.per_class == () for row in result.rows)


def test_without_any_data_the_default_is_used_unverified(finished: Path, tmp_path: Path) -> None:
    given, run = next((finished / "base" / "snapshots").glob("*12800")), tmp_path / "run"
    assert main(tiny.improve_arguments(run, "--model", str(given), "--data.path", "none")) == 0
    result, rows = result_of(run), rows_of(run)
    assert not result.verified and "nothing was verified" in result.headline
    assert set(rows) == {"base", "sims", "neon", "distilled"}
    assert (rows["sims"].w, rows["sims"].budget) == (1.0, 2560)
    assert not any(row.figures for row in rows.values())
    improved = load_model(run / "improved").denoiser
    assert isinstance(improved, Extrapolate) and improved.w == 1.0
    assert (run / "report.html").is_file()


def test_statistics_of_real_data_are_enough_to_choose(finished: Path, tmp_path: Path) -> None:
    given, run = next((finished / "base" / "snapshots").glob("*12800")), tmp_path / "run"
    reference = ["--reference", str(finished / "references"), "--methods", "base,sims"]
    assert main(tiny.improve_arguments(run, "--model", str(given), "--data.path", "none", *reference)) == 0
    ours, theirs = rows_of(run), rows_of(finished)
    assert ours["base"].figures["fd"] == theirs["base"].figures["fd"]
    assert (ours["sims"].w, ours["sims"].budget) == (theirs["sims"].w, theirs["sims"].budget)
    assert ours["sims"].figures["fd"] == theirs["sims"].figures["fd"]


def test_trusted_images_choose_the_strength(tmp_path: Path, say: tiny.Say) -> None:
    (tmp_path / "trusted").mkdir()
    for index, pixels in enumerate(load("digits", limit=30).raw):
        Image.fromarray(pixels[0] * 15).save(tmp_path / "trusted" / f"{index}.png")
    words = [*tiny.PCA, "--methods", "base,sims", "--guidance.cache-cost", "0", "--search.budget", "2560"]
    words = tiny.improve_arguments(tmp_path / "run", *words, "--trusted", str(tmp_path / "trusted"))
    assert main(words) == 0
    search, log = result_of(tmp_path / "run").search, (tmp_path / "run" / "log").read_text()
    assert search is not None and (found := search.chosen["sims"].trusted) is not None
    w = search.chosen["sims"].w
    assert found.size == 30 and f"{w:g}" in found.distances and sum(found.shares.values()) == pytest.approx(1)
    assert f"w = {w:g}" in log and f"by 30 trusted images; by the training data {found.by_data:g}" in log
    (tmp_path / "few").mkdir()
    for wrong, sentence in (("no/such", "no data at"), (str(tmp_path / "few"), "few")):
        status, _, err = say(*tiny.improve_arguments(tmp_path / "other", "--trusted", wrong))
        assert status == 2 and sentence in err and not (tmp_path / "other" / "base").exists()
    status, _, err = say(*tiny.improve_arguments(tmp_path / "other", "--trusted", "few", "--search.w", "1"))
    assert status == 2 and "leave out --trusted, or a fixed --search.w" in " ".join(err.split())


def test_a_fixed_budget_is_the_auxiliarys_not_autoguidances(tmp_path: Path) -> None:
    run, fixed = tmp_path / "run", ["--search.budget", "2560", "--search.w", "1"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *FEW, "--methods", "base,autoguidance,sims", *fixed)) == 0
    rows = rows_of(run)
    assert (rows["sims"].budget, rows["sims"].w) == (2560, 1.0)
    assert rows["autoguidance"].budget in (320, 640)


def test_samples_that_diverge_are_bad_samples_and_are_counted(tmp_path: Path) -> None:
    run, far = tmp_path / "run", ["--search.budget", "2560", "--search.w", "1e30", "--guidance.cache-cost", "0"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *FEW, *far)) == 0
    result, rows = result_of(run), rows_of(run)
    assert rows["base"].diverged == 0 < rows["sims"].diverged <= 100
    assert math.isfinite(rows["sims"].mean("fd") or math.nan)
    counted = f"{rows['sims'].diverged} samples of sims diverged"
    assert counted in result.headline
    warned = f"{rows['sims'].diverged} of 100 samples of sims diverged"
    assert (run / "report.html").read_text().count(warned) == 1  # and not in other words from elsewhere
    assert not any("diverged" in text for text in result.warnings)


def test_rounds_start_from_the_distilled_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "accept", lambda *args, **more: (True, "accepted: by this test"))
    run, methods = tmp_path / "run", ["--methods", "base,sims,distilled", "--rounds", "2"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *methods)) == 0
    first, second = result_of(run).rounds
    assert (first.round, second.round) == (1, 2)
    assert {row.label for row in second.rows} - {*VARIANTS} == {"base", "sims", "distilled"}
    distilled = next(row for row in first.rows if row.label == "distilled")
    assert second.rows[0].mean("fd") == pytest.approx(distilled.mean("fd"), rel=0.3)


def test_rounds_stop_before_one_that_is_no_improvement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "accept", lambda *args, **more: (False, "stopped: by this test"))
    run, methods = tmp_path / "run", ["--methods", "base,sims,distilled", "--rounds", "3"]
    assert main(tiny.improve_arguments(run, *tiny.PCA, *methods)) == 0
    assert [(entry.round, entry.accepted) for entry in result_of(run).rounds] == [(1, False)]
    assert load_model(run / "improved").data_shape == (1, 8, 8)  # what was made is kept: the report says what it is


def test_a_ready_made_extractor_judges_and_is_found_again(tmp_path: Path) -> None:
    class Corners(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, ::3, ::3].flatten(1)

    file = tmp_path / "corners.pt"
    torch.jit.script(Corners()).save(str(file))
    words = ["--methods", "base,sims", "--evaluation.extractor", f"torchscript:{file}", "--evaluation.no-check"]
    assert main(tiny.improve_arguments(tmp_path / "run", *words)) == 0
    extractor = result_of(tmp_path / "run").extractor
    assert extractor is not None and extractor.num_features == 9 and "torchscript" in extractor.name
    assert main(["evaluate", str(tmp_path / "run" / "improved"), "--reference", str(tmp_path / "run" / "references"),
                 "--samples", "100", "--draws", "2", "--cache", str(tmp_path / "cache")]) == 0  # fmt: skip
    torch.jit.script(torch.nn.Flatten()).save(str(file))
    (tmp_path / "run" / "summary.json").unlink()
    assert main(tiny.improve_arguments(tmp_path / "run", *words)) == 2, "the weights are others now"


def test_a_ready_made_extractor_scores_a_second_time(tmp_path: Path) -> None:
    """It chooses nothing, needs no labels, and the run's figures are those of `sims evaluate` with it."""
    file, run = tmp_path / "tiny.pt", tmp_path / "run"
    torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())).save(str(file))
    words = [*tiny.PCA, "--methods", "base,sims", "--evaluation.check-extractor", f"torchscript:{file}"]
    assert main(tiny.improve_arguments(run, *words)) == 0
    result = result_of(run)
    assert result.second_extractor is not None and result.second_extractor.num_features == 16
    assert result.second_extractor.name in (run / "report.html").read_text(encoding="utf-8")
    options = {"samples": 100, "draws": 2, "metrics": ["fd"]}
    improved, reference = run / "improved", run / "references" / "check"
    again = sims.evaluate(improved, reference, options=options, cache=tmp_path, quiet=True).figures
    found = next(row for row in result.rows if row.label == result.improved).figures
    for name in ("fd", "fd_held_out"):
        assert found[f"check_{name}"].mean == pytest.approx(again[name].mean, rel=1e-6)
    bare = tmp_path / "bare"  # scores nothing a second time, and chooses the same
    assert main(tiny.improve_arguments(bare, *tiny.PCA, "--methods", "base,sims")) == 0
    assert result_of(bare).second_extractor is None
    assert [(row.label, row.w, row.figures["fd"]) for row in result_of(bare).rows] == [
        (row.label, row.w, row.figures["fd"]) for row in result.rows
    ]


def test_an_unknown_extractor_is_refused_before_anything_runs(tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny.improve_arguments(tmp_path / "run", "--evaluation.extractor", "dinov3"))
    assert status == 2 and "dinov2" in err and not (tmp_path / "run").exists()
