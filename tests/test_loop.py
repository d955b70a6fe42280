"""Loops of generations on images, from end to end at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sims.experiments.loop.summary import judged

import tiny
import tiny_loop
from sims.cli import main, parse
from sims.data.store import Store
from sims.experiments.loop.models import Arm
from sims.experiments.loop.options import REMEDIES, LoopOptions, defaults_for
from sims.model import load
from sims.seeds import seed_range


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny loop, finished; tests must not change it."""
    folder = tmp_path_factory.mktemp("loop") / "run"
    assert main(tiny_loop.loop_arguments(folder, "--repeats", "2")) == 0
    return folder


@pytest.fixture(scope="module")
def summary(run: Path) -> dict[str, Any]:
    return tiny_loop.summary_of(run)


def entry(run: Path, arm: str, generation: int, repeat: int = 0) -> dict[str, Any]:
    return json.loads((run / f"repeats/{repeat:02d}/generations/{arm}-{generation:03d}.json").read_text())


def test_the_summary_holds_a_curve_for_every_arm(summary: dict[str, Any]) -> None:
    assert summary["experiment"] == "loop" and summary["kind"] == "augmentation" and summary["format"] == 1
    assert (summary["generations"], summary["repeats"]) == (2, 2)
    assert [arm["name"] for arm in summary["arms"]] == ["standard", "standard-equal", "sims"]
    for figure in ("fd", "fd_held_out", "precision", "recall", "memorized"):
        for values in summary["curves"][figure].values():
            assert np.asarray(values).shape == (3, 2) and np.isfinite(values).all()
    assert summary["floor"]["fd"] > 0 and summary["floor"]["perfect"] > 0
    assert summary["verdicts"]["sims"]["weak"]["against"] == "standard-equal"
    assert set(summary["verdicts"]) == {"standard", "standard-equal", "sims"}
    assert summary["conclusion"].startswith("After 2 generations standard training is")


def test_the_table_in_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.snapshot(run)
    assert main(tiny_loop.loop_arguments(run, "--repeats", "2")) == 0
    err = capsys.readouterr().err
    assert "is finished" in err and "standard training" in err and "FD train, 2" in err
    assert tiny.snapshot(run) == before


def test_generation_0_is_the_same_for_all_remedies(run: Path, summary: dict[str, Any]) -> None:
    first = {arm: entry(run, arm, 0) for arm in ("standard", "standard-equal", "sims")}
    assert len({found["base"] for found in first.values()}) == 1
    assert len({found["figures"]["fd"] for found in first.values()}) == 3
    later = {arm: entry(run, arm, 1) for arm in first}
    assert len({found["base"] for found in later.values()}) == 3
    assert entry(run, "sims", 0, 0)["base"] != entry(run, "sims", 0, 1)["base"]


def test_what_every_generation_was_trained_on(run: Path, summary: dict[str, Any]) -> None:
    used = [row["used"] for row in summary["accounting"]]
    assert used == [{"real": 150}, {"real": 150, "0": 150}, {"real": 150, "1": 150}]
    planned = [row["planned"]["total"] for row in summary["accounting"]]
    assert planned == [150, 300, 300]
    assert entry(run, "sims", 2)["store"] is None
    store = Store.read(run / "repeats/00" / entry(run, "sims", 1)["store"])
    assert len(store) == 150 and set(store.columns["method"]) == {"sims"}
    assert set(store.columns["w"]) == {summary["selection"]["chosen"]["sims"]}


def test_standard_training_of_equal_compute_costs_what_sims_costs(summary: dict[str, Any]) -> None:
    cost = {arm["name"]: arm["cost"] for arm in summary["arms"]}
    assert cost["standard-equal"]["total"] == pytest.approx(cost["sims"]["total"], abs=3)
    evaluations = 5  # 3 steps of Heun
    assert cost["standard"]["training_images"] == 3 * 2560
    assert cost["standard"]["evaluations"] == 2 * 150 * evaluations
    assert cost["sims"]["training_images"] == 3 * (2560 + 1280)
    assert cost["sims"]["evaluations"] == (3 * 50 + 2 * 2 * 150) * evaluations
    assert (cost["standard"]["nfe"], cost["sims"]["nfe"]) == (evaluations, 2 * evaluations)


def test_the_strength_is_chosen_where_nothing_is_judged(run: Path, summary: dict[str, Any]) -> None:
    found = summary["selection"]
    assert found["generations"] == 1 and set(found["fd"]["sims"]) == {"0.5", "1"}
    best = min(found["fd"]["sims"], key=found["fd"]["sims"].get)
    assert found["chosen"]["sims"] == float(best) == summary["arms"][2]["w"]
    selected = {child.name for child in (run / "selection/artefacts").glob("base-*")}
    judged_ = {child.name for child in (run / "repeats").glob("*/artefacts/base-*")}
    assert selected and not selected & judged_


def test_what_is_passed_on_judges_nothing(run: Path) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    judging = {seed for row in rows for seed in range(*row["seeds"])}
    for arm in ("standard", "sims"):
        for repeat in (0, 1):
            store = Store.read(run / f"repeats/{repeat:02d}" / entry(run, arm, 0, repeat)["store"])
            assert not judging & {*store.columns["seed"].tolist()}
    assert {row["arm"] for row in rows} == {"standard", "standard-equal", "sims"}
    assert all(row["extractor_hash"] and row["reference_hash"] for row in rows)
    assert len({*seed_range("evaluation", 1, 50, 0)} & {*seed_range("evaluation", 1, 50, 1)}) == 0


def test_pictures_of_every_generation(run: Path) -> None:
    grids = np.load(run / "grids.npz")
    assert {"real", *[f"{arm}@{g}" for arm in ("standard", "standard-equal", "sims") for g in range(3)]} == {*grids}
    assert all(grids[name].shape == (64, 8, 8, 1) and grids[name].dtype == np.uint8 for name in grids)


def test_finished_trainings_leave_no_state(run: Path) -> None:
    assert not list(run.rglob("state.safetensors")) and not list(run.rglob(".*.tmp-*"))


def test_missing_shards_are_named_and_drawn_again(
    run: Path, tmp_path: Path, say: tiny.Say, summary: dict[str, Any]
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    for file in (copy / "repeats/01/generations").glob("sims-002.*"):
        file.unlink()
    shard = next((copy / "repeats/01" / entry(copy, "sims", 1, 1)["store"]).glob("part-*.parquet"))
    shard.unlink()
    words = tiny_loop.loop_arguments(copy, "--repeats", "2")
    status, _, err = say(*words)
    file = copy / "repeats/01/generations/sims-001.json"
    assert status == 2 and "the samples of generation 1 (sims) are not whole" in err and "part-00000" in err
    assert f"delete {file}" in err.replace("\n", "")
    file.unlink()
    assert main(words) == 0
    assert tiny_loop.figures(copy) == tiny_loop.figures(run)


FEW = ["--generations", "1", "--repeats", "1", "--base.images", "1280", "--auxiliary.budgets", "640"]


@pytest.mark.parametrize("kind", ["accumulate", "fresh", "fully-synthetic"])
def test_the_other_kinds(kind: str, tmp_path: Path) -> None:
    words = ["--kind", kind, "--generations", "2", "--remedies", "standard", "--counts.real", "50"]
    assert main(tiny_loop.loop_arguments(tmp_path, *FEW, *words)) == 0
    used = [row["used"] for row in tiny_loop.summary_of(tmp_path)["accounting"]]
    assert (
        used
        == {
            "accumulate": [{"real": 50}, {"real": 50, "0": 50}, {"real": 50, "0": 50, "1": 50}],
            "fresh": [{"real": 50}, {"real": 50, "0": 50}, {"real": 50, "1": 50}],
            "fully-synthetic": [{"real": 50}, {"0": 50}, {"1": 50}],
        }[kind]
    )


def test_continued_weights_classes_and_several_strengths(tmp_path: Path) -> None:
    words = ["--start", "continued", "--data.conditional", "--w", "0.5,1", "--passed-on", "base"]
    words += ["--remedies", "standard,sims,neon,self-trained", "--counts.synthetic", "60"]
    assert main(tiny_loop.loop_arguments(tmp_path, *FEW, *words)) == 0
    summary = tiny_loop.summary_of(tmp_path)
    names = ["standard", "sims@0.5", "sims@1", "neon@0.5", "neon@1", "self-trained"]
    assert [arm["name"] for arm in summary["arms"]] == names and summary["selection"] is None
    assert summary["accounting"][1]["used"] == {"real": 150, "0": 60}
    assert len({entry(tmp_path, name, 1)["base"] for name in names}) == 1, "all go on with the base's own samples"
    assert summary["verdicts"] == {} and "--repeats" in summary["conclusion"]
    store = Store.read(tmp_path / "repeats/00" / entry(tmp_path, "sims@1", 0)["store"])
    assert store.num_classes == 10 and set(store.columns["method"]) == {"base"}
    model = load(tmp_path / "repeats/00" / entry(tmp_path, "standard", 1)["weights"])
    assert model.num_classes == 10 and summary["data"]["conditional"]


def test_more_repeats_are_added_to_what_is_there(tmp_path: Path, run: Path) -> None:
    words = tiny_loop.loop_arguments(tmp_path, *FEW, "--remedies", "standard")
    assert main(words) == 0
    before = tiny.snapshot(tmp_path / "repeats/00")
    assert main([*words, "--repeats", "2"]) == 0
    assert tiny.snapshot(tmp_path / "repeats/00") == before
    assert tiny_loop.summary_of(tmp_path)["repeats"] == 2


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--generations", "0"], "generations is 0: a loop needs at least 1"),
        (["--kind", "fresh", "--counts.real", "100", "--counts.fresh", "30"], "there are 150"),
        (["--kind", "counts", "--counts.total", "10", "--counts.shares", "0.5,0.5,0.5"], "add up to 1"),
        (
            ["--kind", "counts", "--counts.real", "10", "--counts.synthetic", "5", "--counts.total", "16"],
            "add up to 15",
        ),
        (["--counts.synthetic", "-5"], "cannot be negative"),
        (["--remedies", "standard,snims"], "did you mean 'sims'?"),
        (["--remedies", "sims"], "name 'standard' among them"),
        (["--remedies", "standard,standard-equal"], "name both, or neither"),
        (["--remedies", "standard,autoguidance"], "needs base.snapshots"),
        (["--w", "0"], "finite numbers other than 0"),
        (["--repeats", "0"], "repeats is 0"),
        (["--auxiliary.budgets", "640,1280"], "one budget"),
        (["--affine"], "affine is for the data gaussian and mixture"),
        (["--data.path", "none"], "give --data.path"),
        (["--recipe", "digits"], "is for improve and train"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], sentence: str, tmp_path: Path, say: tiny.Say
) -> None:
    status, out, err = say(*tiny_loop.loop_arguments(tmp_path / "run", *words))
    text = " ".join((out + err).replace("│", " ").split())
    assert status == 2 and sentence in text
    assert not list(tmp_path.rglob("artefacts")) and not list(tmp_path.rglob("judge.json"))


def test_another_configuration_is_refused(run: Path, say: tiny.Say) -> None:
    status, _, err = say(*tiny_loop.loop_arguments(run, "--repeats", "2", "--kind", "accumulate"))
    assert status == 2 and "another configuration (kind" in err


def test_the_options_of_two_dimensions_have_their_own_defaults() -> None:
    assert defaults_for("gaussian", {}).is_toy and defaults_for("mixture", {}).generations == 100
    assert defaults_for(None, {"data": {"path": "gaussian"}}).is_toy
    assert defaults_for("digits", {"data": {"path": "gaussian"}}) == LoopOptions() and not LoopOptions().is_toy
    for words in (["--data.path", "gaussian"], ["--data.path=mixture"], ["--data.path=digits", "--data.path=mixture"]):
        assert parse("loop", words).is_toy
    assert not parse("loop", ["--run", "gaussian"]).is_toy
    assert {"standard", "standard-equal", "sims", "neon", "autoguidance"} <= {*REMEDIES}
    assert not {"base", "continued", "placebo", "distilled"} & {*REMEDIES}


def test_the_conclusion_says_what_the_curves_say() -> None:
    arms = [Arm("standard", "standard"), Arm("sims", "sims", 1.0)]
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 6, 4))
    rising = (10 + 2 * np.arange(6)[:, None] + noise[0]).tolist()
    level = (10 + noise[1]).tolist()
    found, text = judged({"standard": rising, "sims": level}, arms)
    assert found["standard"]["mad"]["holds"] and not found["sims"]["mad"]["holds"]
    assert found["sims"]["weak"]["holds"] and found["sims"]["strong"]["holds"]
    assert "standard training is significantly worse" in text and "sims, w = 1: strong prevention" in text
    found, text = judged({"standard": level, "sims": rising}, arms)
    assert not found["sims"]["weak"]["holds"] and "sims, w = 1: no prevention" in text
