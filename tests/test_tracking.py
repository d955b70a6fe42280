"""Trackers: off unless asked for; what they show is what the run did, once; and they never end a run."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import tiny
from sims.cli import main
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.fitting import train
from sims.results.common import Figure
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult
from sims.results.summaries import from_json, read_result
from sims.runs import directory, tracking
from sims.runs.directory import Run
from sims.runs.tracked_results import lines_of, sheet_of, track_result
from sims.runs.tracking import Tracking, check_trackers
from sims.training.trainer import Observer, read_trained

PUBLISHED = Path(__file__).parent.parent / "benchmarks" / "results"
Scalars = dict[str, list[tuple[int, float]]]


def shown(run: Path) -> tuple[Scalars, set[str]]:
    """What TensorBoard shows of a run: the points of every line, and the titles of pictures."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(run / "track" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, set(tags["images"])


def approximately(points: Any) -> list[tuple[int, Any]]:
    """TensorBoard keeps float32."""
    return [(step, pytest.approx(value, rel=1e-6)) for step, value in points]


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished training that was followed."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    folder = tmp_path_factory.mktemp("tracked") / "train"
    assert main(["train", "--out", str(folder), *tiny.TRAIN, "--track", "tensorboard"]) == 0
    return folder


def test_losses_and_speeds_of_a_training_are_shown(tracked: Path) -> None:
    trained = read_trained(tracked / "training")
    scalars, _ = shown(tracked)
    assert trained is not None and len(trained.losses) > 10
    assert scalars["loss/training"] == approximately(trained.losses)
    speeds = scalars["images per second/training"]
    assert [step for step, _ in speeds] == [images for images, _ in trained.losses]
    assert all(speed > 0 for _, speed in speeds)


def test_a_run_that_goes_on_logs_nothing_twice(tracked: Path) -> None:
    before = shown(tracked)[0]
    assert main(["train", "--out", str(tracked), *tiny.TRAIN, "--track", "tensorboard"]) == 0
    assert main(["train", "--out", str(tracked), *tiny.TRAIN]) == 0  # the same run without trackers
    assert shown(tracked)[0] == before


def test_what_was_trained_before_is_shown_later(home: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    assert not (run / "track").exists()
    train(run, {"path": "digits", "limit": 300, "conditional": True}, track=["tensorboard"], quiet=True, **TINY)
    trained = read_trained(run / "training")
    assert trained is not None and shown(run)[0] == {"loss/training": approximately(trained.losses)}


TINY: dict[str, Any] = {
    "network": {"width": 32, "blocks": 1, "embedding": 16},
    "base": {"images": 12800, "train": {"batch": 128}},
    "sampler": {"steps": 5},
}


def test_search_scores_and_grids_of_a_finished_run_are_shown(finished: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    result = read_result(finished, ImproveResult)
    run = tmp_path / "run"
    run.mkdir()
    for name in ("base", "grids.npz"):
        os.symlink(finished / name, run / name)
    for _ in range(2):  # the second time there is nothing new
        following = Tracking(["tensorboard"], run, print)
        following.configuration({"seed": 0, "search": {"rungs": [50, 100]}})
        track_result(following, result)
        following.close()
    scalars, images = shown(run)
    for row in result.rows:
        for figure, value in row.figures.items():
            assert scalars[f"scores, {figure}/{row.label}"] == approximately([(0, value.mean)])
    assert result.search is not None
    cells = [cell for cell in result.search.cells if cell.budget is not None and cell.fd is not None]
    searched = {title: points for title, points in scalars.items() if title.startswith("search, ")}
    assert sum(map(len, searched.values())) == len(cells)
    cell = cells[0]
    title = f"search, fd by w/{cell.method}, budget {cell.budget}, n {cell.n}"
    (points,) = [points for found, points in searched.items() if found.removesuffix(" (1000 x)") == title]
    scale = 1000 if f"{title} (1000 x)" in searched else 1
    assert (round(scale * cell.w), pytest.approx(cell.fd, rel=1e-6)) in points
    assert "loss/base" in scalars and "samples/base@0" in images and "samples/real" in images


def test_curves_of_a_loop_are_lines_over_generations() -> None:
    result = from_json(json.loads((PUBLISHED / "loop-digits.json").read_text())["summary"])
    assert isinstance(result, LoopResult)
    lines = lines_of(result)
    curve = result.curves["fd"]["standard"]
    assert lines[f"scores of {result.repeats} repeats, fd/standard"] == [
        (float(place), Figure.of(values).mean) for place, values in enumerate(curve)
    ]
    assert len(lines) == sum(map(len, result.curves.values()))


def test_a_training_that_begins_again_from_its_last_state_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    losses = [(images, 1.0 / images) for images in (10, 20, 30, 40)]
    for state, reached in ((0, 20), (10, 40)):  # killed at 20 with a state of 10; then to the end
        following = Tracking(["tensorboard"], tmp_path, print)
        watch = following.watch(lambda count: None)
        assert isinstance(watch, Observer)
        watch(state)
        for images in range(state + 10, reached + 10, 10):
            watch.trained(tmp_path / "base", images, [loss for loss in losses if loss[0] <= images])
            watch(10)
        following.close()
    scalars, _ = shown(tmp_path)
    assert scalars["loss/base"] == approximately(losses)
    assert [step for step, _ in scalars["images per second/base"]] == [10, 20, 30, 40]


def test_a_sheet_holds_the_images_in_order() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((10, 4, 4, 1), np.uint8)
    sheet = sheet_of(images)
    assert sheet.shape == (130, 526, 3)  # each 64 pixels a side, and 2 to the next
    assert sheet[0, 66].tolist() == [1, 1, 1] and sheet[66, 0].tolist() == [8, 8, 8]


def test_off_by_default(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("nobody asked for a tracker")

    monkeypatch.setattr(directory, "Tracking", fail)
    assert main(["train", "--out", str(tmp_path / "run"), *tiny.TRAIN, "--base.images", "128"]) == 0
    assert ImproveOptions().track == () and not [*home.rglob("track"), *tmp_path.rglob("track")]


@pytest.mark.parametrize("command", ["improve", "loop", "pollution", "shift", "train"])
def test_a_misspelt_or_missing_tracker_is_one_sentence(
    command: str, say: tiny.Say, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = "--out" if command == "train" else "--run"
    status, _, error = say(command, flag, tmp_path / "run", "--track", "tensorbord")
    assert status == 2 and "--track: unknown tracker 'tensorbord'; did you mean 'tensorboard'?" in " ".join(
        error.split()
    )
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    for name, remedy in tracking.TRACKERS.items():
        status, _, error = say(command, flag, tmp_path / "run", "--track", name)
        words = " ".join(error.replace("│", " ").split())
        assert status == 2 and f"--track: {name} needs the package {name}, which is missing: {remedy}" in words
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="option 'track'"):
        train(tmp_path / "run", track=["wandb"])
    assert not (tmp_path / "run").exists()


def test_a_folder_of_a_package_s_name_is_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: SimpleNamespace(origin=None))
    with pytest.raises(UserError, match="needs the package wandb"):
        check_trackers(["wandb"])


def test_trackers_are_no_part_of_what_a_run_is(tmp_path: Path) -> None:
    from sims.experiments.facts import reproduction
    from sims.experiments.runner import configuration

    plain, followed = ImproveOptions(run=tmp_path), ImproveOptions(run=tmp_path, track=("tensorboard",))
    assert configuration("improve", plain) == configuration("improve", followed)
    assert reproduction(plain).config_toml == reproduction(followed).config_toml


def test_a_tracker_that_fails_is_left_out_with_one_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorboard")
    run = Run(tmp_path / "run", {"command": "train"}, quiet=True, track=("tensorboard",))
    assert run.tracking is not None

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(run.tracking.trackers["tensorboard"], "log", fail)
    with run.progress("train", 100) as advance:
        for images in (10, 20, 30):
            advance(10)
            advance.trained(tmp_path / "base", images, [(10, 1.0), (20, 0.5)])  # type: ignore[attr-defined]
    run.close()
    log = (run.path / "log").read_text()
    assert log.count("WARNING") == 1 and "tensorboard is left out from here on (OSError: No space left" in log


def test_a_damaged_memory_of_what_was_logged_ends_no_run(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "track").mkdir()
    (tmp_path / "track" / "logged.json").write_text("{")
    said: list[str] = []
    following = Tracking(["tensorboard"], tmp_path, said.append)
    following.line("loss/base", [(1, 1.0)])
    following.close()
    assert len(said) == 1 and "tensorboard is left out" in said[0]


class Service:
    """Stands in for wandb and trackio: remembers what it is told."""

    def __init__(self) -> None:
        self.begun: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.config = SimpleNamespace(update=lambda values, **_: self.begun.update(config=values))
        self.api = SimpleNamespace(api_key=None)

    def init(self, **how: Any) -> Service:
        self.begun.update(how)
        return self

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        assert step is None  # their steps only rise
        self.rows.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def finish(self) -> None:
        self.begun["finished"] = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_services_get_lines_with_an_axis_of_their_own(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, module = Service(), ModuleType(name)
    vars(module).update(init=service.init, config=service.config, api=service.api, Image=lambda sheet: sheet.shape)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    said: list[str] = []
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    following = Tracking([name], tmp_path / "runs" / "mine", said.append)
    following.configuration({"seed": 3, "data": {"path": "digits", "shape": None}})
    following.line("search/sims", [(0.5, 9.0), (1.0, 8.0)])
    following.line("search/sims", [(0.5, 9.0), (1.0, 8.0), (1.5, 8.5)])
    following.images("samples/real", np.zeros((4, 4, 3), np.uint8))
    following.close()
    assert not said and service.begun["project"] == "runs" and service.begun["finished"]
    assert service.begun["config"] == {"seed": 3, "data.path": "digits", "data.shape": "None"}
    axis = "x of search/sims (1000 x)"
    assert [row[axis] for row in service.rows if axis in row] == [500, 1000, 1500]
    assert service.axes == {"search/sims (1000 x)": axis}
    assert any("samples/real" in row for row in service.rows)
    if name == "wandb":
        assert service.begun["mode"] == "offline" and service.begun["resume"] == "allow"
    kept = json.loads((tmp_path / "runs" / "mine" / "track" / "logged.json").read_text())
    assert kept[name]["search/sims"] == 1.5
