"""The pollution experiment from end to end, at a size that takes seconds, and the choice of w by trusted images."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sims
import tiny
import tiny_loop
from sims.cli import main, parse
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.improve.trusted import Candidates
from sims.experiments.loop.options import PollutionOptions
from sims.results.loop import PollutionResult


@pytest.fixture
def run(finished_pollution: Path) -> Path:
    """The tiny experiment, finished; tests must not change it."""
    return finished_pollution


@pytest.fixture
def result(run: Path) -> PollutionResult:
    return tiny_loop.pollution_result(run)


def trained_on(result: PollutionResult) -> list[tuple[float, int, dict[str, int]]]:
    return [(entry.place, entry.real, entry.synthetic) for entry in result.trained_on]


ARMS = ["standard", "standard-equal", "sims", "sims-trusted"]


def test_the_result_holds_a_table_over_levels(result: PollutionResult) -> None:
    assert result.levels == (0, 100) and result.repeats == 2 and {*result.curves} == {*result.figures}
    assert [arm.name for arm in result.arms] == ARMS and list(result.looks) == ARMS[:3]
    for figure in ("fd", "fd_held_out", "precision", "recall"):
        assert list(result.curves[figure]) == ARMS
        assert all(np.asarray(rows).shape == (2, 2) for rows in result.curves[figure].values())
    assert trained_on(result) == [(0, 150, {}), (100, 150, {"0": 150})]
    entries = [entry for entry in result.comparisons if entry.figure == "fd" and entry.a == "sims"]
    assert [entry.level for entry in entries] == [0, 100]
    for entry in entries:
        ours, theirs = (np.array(result.curves["fd"][name][entry.level == 100]) for name in ("sims", "standard"))
        assert entry.difference and entry.difference.mean == pytest.approx((ours - theirs).mean())
        assert entry.better == (entry.difference.high < 0) and entry.means == (ours.mean(), theirs.mean())
        assert entry.over_clean and entry.over_clean.mean > 0
    assert "With 100 % synthetic samples" in result.headline


def test_every_strength_is_measured(result: PollutionResult) -> None:
    found, table = result.strengths["sims"], result.curves["fd"]
    assert found.w == (0, 1, 2) and np.asarray(found.figures["fd"]).shape == (2, 3, 2)
    for level in range(2):
        assert found.figures["fd"][level][0] == table["standard"][level]
        for repeat, w in enumerate(found.chosen[level]):
            index = found.w.index(w)
            assert result.arms[2].strengths[level][repeat] == w
            assert found.figures["fd"][level][index][repeat] == table["sims"][level][repeat]


def test_trusted_images_choose_a_strength(result: PollutionResult) -> None:
    found, table = result.trusted["sims"], result.curves["fd"]
    assert found.size == 20 and found.features == "pca"
    for level in range(2):
        for repeat, (w, ratio) in enumerate(zip(found.w[level], found.ratio[level])):
            assert w in result.strengths["sims"].w and result.arms[3].strengths[level][repeat] == w
            assert found.choices[level][repeat].w == w and {*found.choices[level][repeat].distances} == {"0", "1", "2"}
            trusted, chosen = (table[name][level][repeat] for name in ("sims-trusted", "sims"))
            assert ratio == pytest.approx(trusted / chosen)
        assert [[entry.size for entry in repeats] for repeats in found.reliability[level]] == [[10, 10], [20, 20]]
        for repeats in found.reliability[level]:
            for entry in repeats:
                assert entry.ratio <= entry.ratio_90 or entry.ratio_90 == pytest.approx(entry.ratio)
                assert 0 <= entry.within_10_percent <= 1


def test_pollution_is_shared_over_the_levels(run: Path) -> None:
    repeat = run / "repeats/00"
    assert len(list(repeat.glob("artefacts/passed-on-*"))) == 1
    assert len(list(repeat.glob("artefacts/base-*"))) == 2, "the clean model is the first level's"


def test_the_terminal_pictures_and_a_second_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tiny.snapshot(run)
    assert main(tiny_loop.pollution_arguments(run, "--repeats", "2")) == 0
    err = capsys.readouterr().err
    assert "is finished" in err and "+100 %" in err and "sims" in err
    assert tiny.snapshot(run) == before
    grids = np.load(run / "grids.npz")
    names = [f"{name}@{level}" for name in ARMS[:3] for level in (0, 100)]
    assert {*grids} == {"real", *names} and all(grids[name].shape == (64, 8, 8, 1) for name in grids)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {(row["arm"], row["level"]) for row in rows} == {(name, level) for name in ARMS for level in (0, 100)}


def test_an_interrupted_experiment_ends_the_same(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "summary.json").unlink()
    (copy / "repeats/01/levels/100.json").unlink()
    for folder in (copy / "repeats/01/artefacts").glob("scores-*"):
        shutil.rmtree(folder)
    assert main(tiny_loop.pollution_arguments(copy, "--repeats", "2")) == 0
    assert tiny_loop.figures(copy) == tiny_loop.figures(run)


def test_trusted_images_of_ones_own_and_classes(tmp_path: Path) -> None:
    (tmp_path / "trusted").mkdir()
    for index, pixels in enumerate(load("digits", limit=12).raw):
        Image.fromarray(pixels[0] * 15).save(tmp_path / "trusted" / f"{index}.png")
    words = ["--levels", "50", "--trusted", str(tmp_path / "trusted"), "--data.conditional", "--strengths", "1"]
    words += ["--remedies", "standard,neon", "--repeats", "1"]
    assert main(tiny_loop.pollution_arguments(tmp_path / "run", *words)) == 0
    result = tiny_loop.pollution_result(tmp_path / "run")
    assert result.trusted["neon"].size == 12 and result.data.conditional
    assert [arm.name for arm in result.arms] == ["standard", "neon", "neon-trusted"]
    assert trained_on(result) == [(50, 150, {"0": 75})]
    assert result.comparisons[0].over_clean is None and result.comparisons[0].difference is None


SPREAD = np.array([3, 1, 1, 0.3, 0.1])


def candidates(count: int = 400, side: float = 0.0) -> tuple[Candidates, np.ndarray]:
    """Samples whose spread shrinks with w: at w = 1 they have the truth's; and draws of the truth.

    Half of the polluted set is real, half has the spread of w = 0.5. Two kinds lie at -``side`` and ``side``.
    """
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(count, 5)) * SPREAD
    place = np.where(np.arange(count) % 2, side, -side)[:, None] * np.eye(5)[0]
    features = {w: noise * (2 - w) + place for w in (0.0, 0.5, 1.0, 1.5)}
    truth = rng.normal(size=(2_000, 5)) * SPREAD + np.where(np.arange(2_000) % 2, side, -side)[:, None] * np.eye(5)[0]
    return Candidates(features, np.concatenate([truth[-count:], features[0.5]])), truth


def test_the_rule_finds_the_strength_of_the_truth() -> None:
    found, truth = candidates()
    choice = found.choose(truth[:100])
    assert choice.w == 1.0 and min(choice.distances, key=choice.distances.__getitem__) == "1" and choice.size == 100
    assert sum(choice.shares.values()) == pytest.approx(1) and max(choice.shares, key=choice.shares.__getitem__) == "1"
    distances = np.linalg.norm(truth[:100, None] - found.samples[1][None], axis=2).mean(axis=1)
    np.testing.assert_allclose(found.distances(truth[:100])[1], distances)


def test_chance_among_the_kinds_does_not_count() -> None:
    """What trusted images say of two strengths varies less from one set of them to the next than without kinds."""
    found, truth = candidates(side=5.0)
    sets = list(np.random.default_rng(0).permutation(len(truth)).reshape(-1, 100))
    plain = [found.distances(truth[rows]).mean(axis=1) for rows in sets]
    freed = [found.corrected(found.distances(truth[rows]), found.kinds(truth[rows])).mean(axis=1) for rows in sets]
    without, with_kinds = (np.array([x[3] - x[1] for x in part]) for part in (plain, freed))
    assert with_kinds.std() < 0.7 * without.std()
    assert with_kinds.mean() == pytest.approx(without.mean(), rel=0.1)


def test_where_nothing_is_polluted_the_data_choose() -> None:
    rng = np.random.default_rng(1)
    real, noise = rng.normal(size=(2, 3_000, 5)) * SPREAD
    found = Candidates({w: noise[:1_000] * (1.6 - w) for w in (0.0, 0.25, 0.5, 0.75, 1.0)}, real)
    assert found.by_data == pytest.approx(0.6, abs=0.1)
    for rows in np.arange(600).reshape(6, 100):
        assert found.choose(real[rows]).w in (0.5, 0.75)


def test_kinds_of_few_images() -> None:
    features = {0.0: np.eye(4), 1.0: 2 * np.eye(4)}
    for count in (2, 5, 30):
        found = Candidates(features, np.tile(np.eye(4)[:1], (count, 1)) + 1e-3 * np.arange(count)[:, None])
        assert found.choose(np.eye(4)).w in (0.0, 1.0) and found.shares.sum() == pytest.approx(1)


def test_more_trusted_images_are_more_reliable() -> None:
    found, truth = candidates()
    scores = {0.0: 40.0, 0.5: 20.0, 1.0: 10.0, 1.5: 20.0}
    few, many = found.reliability(truth, [10, 200], 40, scores, 10.0, seed=1)
    assert many.ratio == 1.0 == many.within_10_percent and many.w == 1.0 and (few.size, many.size) == (10, 200)
    assert few.ratio > 1.0 >= few.within_10_percent


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--levels", "100,50"], "give rising percentages"),
        (["--levels", "-5,50"], "give rising percentages"),
        (["--remedies", "standard"], "name a method to compare with"),
        (["--remedies", "standard,neno"], "did you mean 'neon'?"),
        (["--remedies", "standard,sims-conditional"], "'sims-conditional' cannot be had of these models"),
        (["--remedies", "standard,self-trained"], "has a single strength"),
        (["--strengths", "1,1"], "each once"),
        (["--trusted", "5"], "at least 10 trusted images are needed"),
        (["--trusted", "151"], "there are 150 real images"),
        (["--trusted", "no/such/folder"], "no data at"),
        (["--trusted-sizes", "5,50"], "at least 10 trusted images are needed"),
        (["--trusted-draws", "0"], "trusted_draws is 0"),
        (["--selection-samples", "1"], "selection_samples is 1"),
        (["--data.path", "gaussian"], "use sims loop"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    words: list[str], sentence: str, tmp_path: Path, say: tiny.Say
) -> None:
    status, out, err = say(*tiny_loop.pollution_arguments(tmp_path / "run", *words))
    text = " ".join((out + err).replace("│", " ").split())
    assert status == 2 and sentence in text
    assert not list(tmp_path.rglob("artefacts")) and not list(tmp_path.rglob("judge.json"))


def test_the_page_shows_the_experiment(run: Path, result: PollutionResult) -> None:
    page = (run / "report.html").read_text()
    for part in ("levels", "strengths", "trusted", "trained", "samples"):
        assert f'id="{part}"' in page
    assert result.headline[:40] in page


def test_in_python(run: Path) -> None:
    options = parse("pollution", tiny_loop.pollution_arguments(run, "--repeats", "2")[1:])
    assert sims.pollution(options, quiet=True) == tiny_loop.pollution_result(run)


def test_a_strength_at_which_samples_diverge_is_measured_and_not_chosen(tmp_path: Path) -> None:
    words = ["--levels", "50", "--strengths", "1e30", "--remedies", "standard,sims", "--repeats", "1"]
    assert main(tiny_loop.pollution_arguments(tmp_path, *words)) == 0
    result = tiny_loop.pollution_result(tmp_path)
    curve = result.strengths["sims"]
    assert np.isfinite(curve.figures["fd"]).all() and np.asarray(curve.chosen).tolist() == [[0.0]]
    assert {arm.name: arm.diverged for arm in result.arms} == dict.fromkeys(["standard", "sims", "sims-trusted"], 0)


def test_samples_that_diverge_are_not_passed_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--w", "1e30", "--remedies", "standard,sims", "--generations", "1"]
    assert main(tiny_loop.loop_arguments(tmp_path, *words)) == 2
    assert "150 of 150 samples are not finite: the model diverges at w = 1e+30, lower it" in capsys.readouterr().err


def test_numbers_beyond_any_experiment_are_refused_before_it() -> None:
    for options, words in (({"levels": (0.0, 1e300)}, "from 0 to 100,000"), ({"repeats": 10**9}, "at most 10,000")):
        with pytest.raises(UserError, match=words):
            PollutionOptions(**options)  # type: ignore[arg-type]
