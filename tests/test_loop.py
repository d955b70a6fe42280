"""Loops of generations on images, from end to end at a size that takes seconds."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sims
import tiny
import tiny_loop
from sims.cli import main, parse
from sims.data.store import Store
from sims.experiments.loop.options import LoopOptions, defaults_for
from sims.experiments.loop.remedies import REMEDIES, arm_of
from sims.experiments.loop.verdicts import conclusion, verdicts_on
from sims.model import load
from sims.results.common import Cost
from sims.results.loop import LoopResult
from sims.seeds import seed_range


@pytest.fixture
def run(finished_loop: Path) -> Path:
    """The tiny experiment, finished; tests must not change it."""
    return finished_loop


@pytest.fixture
def result(run: Path) -> LoopResult:
    return tiny_loop.loop_result(run)


def entry(run: Path, arm: str, generation: int, repeat: int = 0) -> dict[str, Any]:
    return json.loads((run / f"repeats/{repeat:02d}/generations/{arm}-{generation:03d}.json").read_text())


def trained_on(run: Path) -> list[dict[str, int]]:
    """What every generation of a finished loop was trained on, without what is 0."""
    entries = tiny_loop.loop_result(run).trained_on
    found = [{"real": entry.real, "fresh": entry.fresh, **entry.synthetic} for entry in entries]
    assert [entry.place for entry in entries] == list(range(len(entries)))
    return [{name: count for name, count in one.items() if count} for one in found]


def test_the_result_holds_a_curve_for_every_arm(result: LoopResult) -> None:
    assert (result.kind, result.generations, result.repeats, result.judged) == ("augmentation", 2, 2, (0, 1))
    assert [arm.name for arm in result.arms] == ["standard", "standard-equal", "sims"]
    assert list(result.looks) == [arm.method for arm in result.arms]
    assert {*result.curves} == {*result.figures}
    for figure in ("fd", "fd_held_out", "precision", "recall", "memorized"):
        for values in result.curves[figure].values():
            assert np.asarray(values).shape == (3, 2) and np.isfinite(values).all()
    assert result.floor is not None and {*result.floor.values} == {"fd", "fd_held_out"}
    assert all(value > 0 for value in result.floor.values.values())
    assert set(result.verdicts) == {"standard", "standard-equal", "sims"}
    weak = result.verdicts["sims"].weak
    assert weak is not None and weak.against == "standard-equal"
    assert result.headline.startswith("After 2 generations standard training is")


def test_the_table_in_the_terminal(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.snapshot(run)
    assert main(tiny_loop.loop_arguments(run, "--repeats", "2")) == 0
    err = capsys.readouterr().err
    assert "is finished" in err and "standard training" in err and "FD, 2" in err
    assert tiny.snapshot(run) == before


def test_generation_0_is_the_same_for_all_remedies(run: Path, result: LoopResult) -> None:
    first = {arm: entry(run, arm, 0) for arm in ("standard", "standard-equal", "sims")}
    assert len({found["base"] for found in first.values()}) == 1
    assert len({found["measured"]["figures"]["fd"] for found in first.values()}) == 3
    later = {arm: entry(run, arm, 1) for arm in first}
    assert len({found["base"] for found in later.values()}) == 3
    assert entry(run, "sims", 0, 0)["base"] != entry(run, "sims", 0, 1)["base"]


def test_what_every_generation_was_trained_on(run: Path, result: LoopResult) -> None:
    assert trained_on(run) == [{"real": 150}, {"real": 150, "0": 150}, {"real": 150, "1": 150}]
    assert entry(run, "sims", 2)["store"] is None
    store = Store.read(run / "repeats/00" / entry(run, "sims", 1)["store"])
    assert len(store) == 150 and set(store.columns["method"]) == {"sims"}
    assert set(store.columns["w"]) == {result.selection["sims"].w}


def test_standard_training_of_equal_compute_costs_what_sims_costs(result: LoopResult) -> None:
    standard, equal, sims = result.arms
    assert equal.cost.total == pytest.approx(sims.cost.total, abs=9)  # three generations, rounded to training images
    evaluations = 5  # 3 steps of Heun
    assert standard.cost == Cost(3 * 2560, 2 * 150 * evaluations)
    assert sims.cost == Cost(3 * (2560 + 1280), (3 * 50 + 2 * 2 * 150) * evaluations)
    assert (standard.nfe, sims.nfe) == (evaluations, 2 * evaluations)


def test_the_strength_is_chosen_where_nothing_is_judged(run: Path, result: LoopResult) -> None:
    found = result.selection["sims"]
    assert found.generations == 1 and set(found.distances) == {"0.5", "1"}
    best = min(found.distances, key=found.distances.__getitem__)
    assert found.w == float(best) == result.arms[2].w
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


def test_missing_shards_are_named_and_drawn_again(run: Path, tmp_path: Path, say: tiny.Say, result: LoopResult) -> None:
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
    expected = {
        "accumulate": [{"real": 50}, {"real": 50, "0": 50}, {"real": 50, "0": 50, "1": 50}],
        "fresh": [{"real": 50}, {"fresh": 50, "0": 50}, {"fresh": 50, "1": 50}],
        "fully-synthetic": [{"real": 50}, {"0": 50}, {"1": 50}],
    }
    assert trained_on(tmp_path) == expected[kind]


def test_continued_weights_classes_and_several_strengths(tmp_path: Path) -> None:
    words = ["--start", "continued", "--data.conditional", "--w", "0.5,1", "--passed-on", "base"]
    words += ["--remedies", "standard,sims,neon,self-trained", "--counts.synthetic", "60"]
    assert main(tiny_loop.loop_arguments(tmp_path, *FEW, *words)) == 0
    result = tiny_loop.loop_result(tmp_path)
    names = ["standard", "sims@0.5", "sims@1", "neon@0.5", "neon@1", "self-trained"]
    assert [arm.name for arm in result.arms] == names and result.selection == {}
    assert trained_on(tmp_path)[1] == {"real": 150, "0": 60}
    assert len({entry(tmp_path, name, 1)["base"] for name in names}) == 1, "all go on with the base's own samples"
    assert result.verdicts == {} and "more repeats" in result.headline
    store = Store.read(tmp_path / "repeats/00" / entry(tmp_path, "sims@1", 0)["store"])
    assert store.num_classes == 10 and set(store.columns["method"]) == {"base"}
    model = load(tmp_path / "repeats/00" / entry(tmp_path, "standard", 1)["weights"])
    assert model.num_classes == 10 and result.data.conditional


def test_more_repeats_are_added_to_what_is_there(tmp_path: Path, run: Path) -> None:
    words = tiny_loop.loop_arguments(tmp_path, *FEW, "--remedies", "standard")
    assert main(words) == 0
    before = tiny.snapshot(tmp_path / "repeats/00")
    assert main([*words, "--repeats", "2"]) == 0
    assert tiny.snapshot(tmp_path / "repeats/00") == before
    assert tiny_loop.loop_result(tmp_path).repeats == 2


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
        (["--remedies", "standard,sims-conditional"], "'sims-conditional' cannot be had of these models"),
        (["--remedies", "sims"], "name 'standard' among them"),
        (["--remedies", "standard,standard-equal"], "name both, or neither"),
        (["--remedies", "standard,autoguidance"], "needs --base.snapshots"),
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
    arms = [arm_of("standard"), arm_of("sims", 1.0)]
    noise = np.random.default_rng(0).normal(0, 0.1, (2, 6, 4))
    rising = (10 + 2 * np.arange(6)[:, None] + noise[0]).tolist()
    level = (10 + noise[1]).tolist()
    curves = {"standard": rising, "sims": level}
    found = verdicts_on(curves, arms)
    text = conclusion(curves, arms, found, "FD to train", 2)
    assert found["standard"].mad and found["standard"].mad.holds and found["sims"].mad and not found["sims"].mad.holds
    assert "standard training is significantly worse" in text and "collapses" in text
    assert "sims, w = 1: strong prevention" in text
    curves = {"standard": level, "sims": rising}
    text = conclusion(curves, arms, verdicts_on(curves, arms), "FD to train", 2)
    assert "not significantly worse" in text and "sims, w = 1: no prevention" in text


def test_in_python(run: Path, tmp_path: Path) -> None:
    """The same options as the command's continue, and read, the same run; other data have defaults of their own."""
    options = parse("loop", tiny_loop.loop_arguments(run, "--repeats", "2")[1:])
    assert sims.loop(options, quiet=True) == tiny_loop.loop_result(run)
    found = sims.loop(
        run=tmp_path / "points", data="gaussian", generations=1, repeats=2, affine=True, w=(1.0,), quiet=True,
        counts={"real": 20, "synthetic": 20}, evaluation={"samples": 20}, remedies=("standard", "sims"),
    )  # fmt: skip
    assert found.denoiser == "affine" and np.asarray(found.curves["w2"]["sims"]).shape == (2, 2)
    recipe = tmp_path / "points.toml"
    recipe.write_text(found.reproduction.config_toml)
    assert sims.loop(recipe=str(recipe), run=tmp_path / "again", quiet=True).curves == found.curves
