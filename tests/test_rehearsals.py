"""A dry run and a check ask what the job asks: whatever the one refuses, the other refuses in the same words."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sims
import tiny
import tiny_shift
from sims.cli import parse
from sims.data import mapped
from sims.data.check import check
from sims.data.pictures import encode_png
from sims.data.sources import load, load_pair
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.experiments.cost.table import Estimate
from sims.experiments.improve import job
from sims.experiments.runner import configuration, rehearsed
from sims.experiments.shift.shift_job import shift
from sims.files import write_json
from sims.results.summaries import FORMAT

Build = Callable[[Path], None]
MODELS = {"grey": "digits", "colour": "colour", "two": "two"}  # name -> data


def write(folder: Path, count: int, seed: int = 0, shape: tuple[int, int, int] = (3, 8, 8), low: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for i, pixels in enumerate(np.random.default_rng(seed).integers(low, 256, (count, *shape), dtype=np.uint8)):
        (folder / f"{i:03d}.png").write_bytes(encode_png(pixels))


def build(root: Path) -> None:
    """Data that some job or other cannot take."""
    write(root / "colour", 40)
    write(root / "single", 1)
    write(root / "few", 4)
    write(root / "constant", 20, low=255)
    for name, classes in (("two", "ab"), ("four", "abcd")):
        for i, label in enumerate(classes):
            write(root / name / label, 40 // len(classes), i)
    for part, last in (("train", "b"), ("test", "c")):
        write(root / "stranger" / part / "a", 10, len(part))
        write(root / "stranger" / part / last, 10, 9)
    write(root / "sizes" / "train", 20)
    write(root / "sizes" / "test", 6, shape=(3, 6, 6))
    write(root / "channels" / "train", 20)
    write(root / "channels" / "test", 6, shape=(1, 8, 8))
    write(root / "broken", 20)
    (root / "broken" / "013.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write(root / "unlabelled" / "a", 20)
    for name in ("x.png", "y.png", "z.png", "u.png", "v.png", "w.png"):
        (root / "unlabelled" / name).write_bytes((root / "few" / "000.png").read_bytes())
    write(root / "unlabelled" / "b", 20, 1)
    (root / "points.npz").parent.mkdir(exist_ok=True)
    np.savez(root / "points.npz", data=np.random.default_rng(0).normal(size=(50, 2)))
    np.savez(root / "depths.npz", images=np.zeros((9, 8, 8, 3), np.uint16))
    (root / "a file").write_text("x")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rehearsals")
    build(root)
    for name, path in MODELS.items():
        data = load(path if path == "digits" else root / path)
        data = data if name == "two" else data.without_labels()
        tiny.model(data).save(root / "models" / name)
    model = sims.load(root / "models" / "grey")
    model.guided(model, w=1.0).save(root / "models" / "guided")
    for name, command in (("other", "loop"), ("options", "improve")):
        (root / name / "base").mkdir(parents=True)
        (root / name / "config.json").write_text(json.dumps({"format": FORMAT, "command": command, "seed": 77}))
    return root


IMPROVE = {
    "shape": "--model {}/models/colour --data.path digits",
    "classes": "--model {}/models/two --data.path {}/four",
    "no classes": "--model {}/models/two --data.path {}/colour",
    "single": "--data.path {}/single",
    "few": "--data.path {}/few",
    "fraction": "--data.path {}/colour --data.test-fraction 0.001",
    "one held out": "--data.path {}/colour --data.test-fraction 0.03",
    "fraction above one": "--data.path {}/colour --data.test-fraction 1.5",
    "limit": "--data.path {}/colour --data.limit 0",
    "points": "--data.path {}/points.npz",
    "labels": "--data.path {}/colour --data.conditional",
    "stated shape": "--data.path {}/colour --data.shape 1,8,8",
    "stranger": "--data.path {}/stranger",
    "sizes": "--data.path {}/sizes",
    "channels": "--data.path {}/channels",
    "broken": "--data.path {}/broken",
    "constant": "--data.path {}/constant",
    "constant, stated deviation": "--data.path {}/constant --network.sigma-data 0.5",
    "unlabelled": "--data.path {}/unlabelled",
    "test": "--data.path {}/colour --data.test {}/nowhere",
    "other test": "--data.path {}/colour --data.test digits",
    "test depth": "--data.path {}/colour --data.test {}/depths.npz",
    "size": "--data.path {}/colour --data.source.size 16",
    "empty": "--data.path {}/two/nothing --data.shape 3,8,8 --model {}/models/grey",
    "model": "--model {}/nowhere",
    "guided": "--model {}/models/guided",
    "vae": "--model {}/models/grey --vae {}/nowhere",
    "vae alone": "--vae {}/nowhere",
    "reference": "--model {}/models/grey --data.path none --reference {}/nowhere",
    "trusted": "--trusted {}/nowhere",
    "trusted few": "--data.path {}/colour --trusted {}/few",
    "trusted shape": "--data.path {}/colour --trusted digits",
    "extractor": "--evaluation.extractor torchscript:{}/nowhere",
    "extractor broken": "--evaluation.extractor torchscript:{}/a\\ file",
    "extractor name": "--evaluation.extractor inceptoin",
    "second extractor": "--evaluation.check-extractor torchscript:{}/nowhere",
    "second extractor pca": "--evaluation.check-extractor pca",
    "second extractor unlabelled": "--data.path {}/colour --evaluation.check-extractor classifier",
    "second extractor twice": "--evaluation.check-extractor dinov2 --evaluation.extractor dinov2",
    "classifier": "--data.path {}/colour --evaluation.extractor classifier",
    "run": "--run {}/a\\ file",
    "run below": "--run {}/a\\ file/run",
    "command": "--run {}/other",
    "options": "--run {}/options",
}
SHIFT = {
    "class": "--target yes=0.1,nope=0.9",
    "support": "--data.limit 3 --data.test-fraction 0.5 --target yes=1",
    "attribute": "--attributes nope",
    "labels": "--labels {}/nowhere.csv",
    "like": "--target like:{}/nowhere",
    "no labels": "--data.path {}/colour",
    "classifier": "--classifier torchscript:{}/nowhere",
    "judge": "--judge {}/nowhere.py:f",
    "imbalance": "--imbalance nope=0.1",
    "shape": "--data.path digits --model {}/models/colour --imbalance=",
    "conditional": "--data.conditional",
    "run": "--run {}/other",
}
# Data that are not at hand may be stated: what is said then is of the rehearsal alone.
ALONE = {"empty"}


def said(work: Callable[[], object]) -> str:
    with pytest.raises(UserError) as error:
        work()
    return str(error.value)


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize(("command", "words"), [("improve", w) for w in IMPROVE] + [("shift", w) for w in SHIFT])
def test_a_rehearsal_refuses_what_the_job_refuses(
    command: str, words: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    table, first, run = (
        (IMPROVE, tiny.improve_arguments, job.improve)
        if command == "improve"
        else (SHIFT, tiny_shift.shift_arguments, shift)
    )
    more = [word.replace("\\ ", " ") for word in table[words].replace("\\ ", "\0").replace("{}", str(place)).split()]
    more = [word.replace("\0", " ") for word in more]
    arguments = first(tmp_path / "run", *more)[1:]
    before = files(place)
    rehearsal = said(lambda: run(parse(command, [*arguments, "--dry-run"])))
    assert files(place) == before and not files(tmp_path)
    if words not in ALONE:
        assert rehearsal == said(lambda: run(parse(command, arguments), quiet=True))
    else:
        assert "shape" in rehearsal


def test_a_model_and_its_data_mean_the_same_classes(place: Path, tmp_path: Path) -> None:
    """A model knows its classes by number, and where data have the same names in another order, they are renumbered."""
    model = sims.load(place / "models" / "two")
    replace(model, class_names=("b", "a")).save(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), "--data.path", str(place / "two")]
    options = parse("improve", tiny.improve_arguments(tmp_path / "run", *words)[1:])
    with rehearsed(job.IMPROVE, options) as run:
        opened = job._opened(run, options)
    for ours, theirs in zip((opened.real, opened.test), load_pair(place / "two")):
        assert ours is not None and ours.labels is not None and theirs.labels is not None
        assert ours.class_names == ("b", "a") and np.array_equal(ours.labels, 1 - theirs.labels)
        assert np.array_equal(ours.raw, theirs.raw)


def test_a_directory_in_use_is_in_use_for_a_rehearsal_too(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    options = parse("improve", tiny.improve_arguments(tmp_path, "--dry-run")[1:])
    with (tmp_path / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert "in use by another process" in said(lambda: job.improve(options))


def test_what_a_run_was_begun_with_is_compared(place: Path, tmp_path: Path) -> None:
    arguments = tiny.improve_arguments(tmp_path, "--data.path", str(place / "colour"))[1:]
    options = parse("improve", arguments)
    config = configuration("improve", options, job.IMPROVE.unbound)
    write_json(tmp_path / "config.json", {"format": FORMAT, **config})
    write_json(tmp_path / "data.json", {"train": "another", "test": "one"})
    told = said(lambda: job.improve(parse("improve", [*arguments, "--dry-run"])))
    assert "has changed since" in told and told == said(lambda: job.improve(options, quiet=True))


TRAINED = ("single", "few", "constant", "stranger", "sizes", "channels", "broken", "depths.npz", "colour", "four")


@pytest.mark.parametrize("name", TRAINED)
def test_a_check_calls_a_problem_what_training_refuses(name: str, place: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"network": {"width": 8, "blocks": 1}, "base": {"images": 64, "train": {"batch": 64}}}
    try:
        sims.train(tmp_path / "run", place / name, quiet=True, **how)
        refused = False
    except UserError:
        refused = True
    report = check(place / name)
    assert refused == (name not in ("colour", "four")) == bool(report.problems)


def test_large_data_are_read_where_they_are_looked_at(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the size that is held in memory a rehearsal decodes a few pictures, writes nothing, and names the same."""
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    monkeypatch.chdir(tmp_path)
    with mapped.rehearsed():
        asked = load_pair(place / "colour")
        assert not files(tmp_path)
    whole = load_pair(place / "colour")
    for ours, theirs in zip(asked, whole):
        assert isinstance(ours.raw, mapped.Rows) and np.array_equal(ours.raw, theirs.raw)
        assert ours.fingerprint == theirs.fingerprint
    monkeypatch.setattr("sims.experiments.cost.described.SOME", 8)
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    words = tiny.improve_arguments(tmp_path / "new", "--data.path", str(place / "colour"), *tiny.PCA, "--dry-run")
    estimate = job.improve(parse("improve", words[1:]))
    assert isinstance(estimate, Estimate) and (estimate.data.num_train, estimate.data.num_test) == (36, 4)
    assert estimate.data.some is not None and len(estimate.data.some) == 8 and estimate.data.held > 0
