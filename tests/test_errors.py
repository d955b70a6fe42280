"""Whatever goes wrong: one clear sentence, exit status 2, no traceback, no damaged file; mended, the job goes on."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tiny
from sims.cli import main
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.pictures import encode_png
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.data import same_data
from sims.files import read_json, write_json
from sims.model import load as load_model
from sims.runs.directory import Run
from sims.training.trainer import Trainer

FEW = [*tiny.PCA, "--methods", "base,sims", "--base.images", "2560", "--evaluation.draws", "1"]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must fail with one sentence; returns the sentence."""

    def check(*arguments: str) -> str:
        capsys.readouterr()
        assert main(arguments) == 2
        words = capsys.readouterr()
        assert "Traceback" not in words.err + words.out
        lines = words.err.strip().splitlines()
        assert sum(line.startswith("sims: ") for line in lines if "images, w =" not in line) == 1, words.err
        assert lines[-1].startswith("sims: ") and len(lines[-1]) > 30, words.err
        return lines[-1]

    return check


def improve(run: Path, *more: str) -> list[str]:
    return tiny.improve_arguments(run, *FEW, *more)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Forty digits as PNG files."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index, pixels in enumerate(load("digits", limit=40).raw):
        Image.fromarray(pixels[0] * 15).save(folder / f"{index:02d}.png")
    return folder


def halve(file: Path) -> None:
    """Cut a file in half."""
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


# -- data --------------------------------------------------------------------------------------------------------------


def test_data_that_are_not_there(refused: Callable[..., str], tmp_path: Path) -> None:
    assert "no data at" in refused(*improve(tmp_path / "run", "--data.path", str(tmp_path / "nowhere")))
    assert "did you mean 'digits'" in refused(*improve(tmp_path / "run2", "--data.path", "digit"))
    (tmp_path / "empty").mkdir()
    assert "holds no pictures" in refused(*improve(tmp_path / "run3", "--data.path", str(tmp_path / "empty")))


def test_a_truncated_picture(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    halve(pictures / "07.png")
    assert "07.png" in refused(*improve(tmp_path / "run", "--data.path", str(pictures)))


def test_pictures_of_several_sizes(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    Image.new("L", (9, 9)).save(pictures / "99.png")
    words = refused(*improve(tmp_path / "run", "--data.path", str(pictures)))
    assert "differ in size" in words and "99.png is 9x9" in words and "--data.source.size" in words


def _zip(file: Path, raw: np.ndarray) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for index, pixels in enumerate(raw):
            archive.writestr(f"{index}.png", encode_png(pixels))


def _parquet(file: Path, raw: np.ndarray) -> None:
    pq.write_table(pa.table({"image": [{"bytes": encode_png(pixels), "path": None} for pixels in raw]}), file)


def _npz(file: Path, raw: np.ndarray) -> None:
    np.savez(file, images=raw)


@pytest.mark.parametrize("kind", ["zip", "parquet", "npz"])
def test_a_truncated_archive(kind: str, refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / f"data.{kind}"
    {"zip": _zip, "parquet": _parquet, "npz": _npz}[kind](file, load("digits", limit=40).raw)
    halve(file)
    assert f"data.{kind} cannot be read" in refused(*improve(tmp_path / "run", "--data.path", str(file)))


def test_conditional_without_labels(refused: Callable[..., str], pictures: Path, tmp_path: Path) -> None:
    words = refused(*improve(tmp_path / "run", "--data.path", str(pictures), "--data.conditional"))
    assert "needs labels" in words


def test_after_the_data_are_mended_the_command_goes_on(
    refused: Callable[..., str], pictures: Path, tmp_path: Path
) -> None:
    whole = (pictures / "07.png").read_bytes()
    halve(pictures / "07.png")
    refused(*improve(tmp_path / "run", "--data.path", str(pictures)))
    (pictures / "07.png").write_bytes(whole)
    assert main(improve(tmp_path / "run", "--data.path", str(pictures))) == 0


# -- models and statistics ---------------------------------------------------------------------------------------------


@pytest.fixture
def given(finished: Path, tmp_path: Path) -> Path:
    """A copy of a trained model."""
    return Path(shutil.copytree(finished / "distilled", tmp_path / "model"))


def test_truncated_weights(refused: Callable[..., str], given: Path, tmp_path: Path) -> None:
    halve(given / "model.safetensors")
    words = refused(*improve(tmp_path / "run", "--model", str(given)))
    assert "model.safetensors is missing, truncated or altered" in words


def test_a_guided_pair_cannot_be_improved(refused: Callable[..., str], finished: Path, tmp_path: Path) -> None:
    assert "guided model" in refused(*improve(tmp_path / "run", "--model", str(finished / "sims")))


def test_a_truncated_model_description(refused: Callable[..., str], given: Path, tmp_path: Path) -> None:
    halve(given / "model.json")
    assert "model.json is not valid JSON" in refused(*improve(tmp_path / "run", "--model", str(given)))
    assert "no model at" in refused(*improve(tmp_path / "run2", "--model", str(tmp_path / "nowhere")))


@pytest.mark.parametrize("name", ["train.safetensors", "test.safetensors", "extractor.safetensors"])
def test_truncated_statistics(
    name: str, refused: Callable[..., str], finished: Path, given: Path, tmp_path: Path
) -> None:
    references = tmp_path / "references"
    shutil.copytree(finished / "references", references)
    halve(references / name)
    words = refused(
        *improve(tmp_path / "run", "--model", str(given), "--data.path", "none", "--reference", str(references))
    )
    assert name in words


def test_labels_outside_the_classes(refused: Callable[..., str], given: Path, finished: Path, tmp_path: Path) -> None:
    model = tiny.model(load("digits", limit=40))
    for label in (10, -2):
        with pytest.raises(UserError, match=f"label {label} is outside the classes: they are 0 to 9"):
            model.sample([0], labels=[label])
    with pytest.raises(UserError, match="unconditional"):
        load_model(given).sample([0], labels=[1])
    model.save(tmp_path / "classes")
    sample = ["sample", str(tmp_path / "classes"), "--seeds", "0-1", "--out", str(tmp_path / "samples")]
    assert "label 11 is outside the classes" in refused(*sample, "--label", "11")


# -- options and run directories ---------------------------------------------------------------------------------------


def test_a_misspelt_recipe_key(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[base]\nimagse = 3\n")
    words = refused("improve", "--recipe", str(tmp_path / "mine.toml"), "--run", str(tmp_path / "run"))
    assert "base.imagse" in words and "did you mean 'images'" in words
    assert "did you mean 'digits'" in refused("improve", "--recipe", "digit")
    (tmp_path / "mine.toml").write_text("[base\nimages = 3\n")
    assert "not valid TOML" in refused("improve", "--recipe", str(tmp_path / "mine.toml"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--search.w", "nan"], "search.w is nan"),
        (["--search.w", "inf"], "search.w is inf"),
        (
            ["--methods", "base,rescaled", "--search.w", "-2"],
            "search.w is -2, and method 'rescaled' takes strengths above -1",
        ),
        (["--methods", ""], "methods is empty"),
        (["--seed", "-1"], "seed is -1: give a whole number from 0"),
        (["--seed", "99999999999999999999999"], "give a whole number from 0 to 4,294,967,295"),
        (["--evaluation.samples", "1"], "at least 2 samples"),
        (["--methods", "base,simms"], "did you mean 'sims'"),
        (["--rounds", "0"], "rounds is 0"),
        (["--auxiliary.budgets", "0"], "auxiliary.budgets"),
        (["--data.path", "none"], "give --model"),
        (["--base.train.lr", "nan"], "lr is nan"),
        (["--search.budget", "77"], "none of the auxiliary's budgets"),
        (["--guidance.sigma-low", "5", "--guidance.sigma-high", "2"], "0 <= low < high"),
        (["--auxiliary.init", "snapshot", "--model", "mine"], "needs --base.snapshots"),
    ],
)
def test_options_that_cannot_work(options: list[str], words: str, refused: Callable[..., str], tmp_path: Path) -> None:
    assert words in refused(*improve(tmp_path / "run", *options))


def test_options_that_came_to_nothing_bind_nobody(refused: Callable[..., str], tmp_path: Path) -> None:
    for name in ("digit", "digist"):
        assert "did you mean 'digits'" in refused(*improve(tmp_path / "run", "--data.path", name))


def test_the_directory_of_another_configuration(refused: Callable[..., str], finished: Path) -> None:
    before = tiny.snapshot(finished)
    words = refused(*tiny.improve_arguments(finished, *tiny.PCA, "--seed", "1"))
    assert "another configuration (seed: 0 there, 1 now)" in words
    assert tiny.snapshot(finished) == before


@pytest.mark.parametrize(
    ("earlier", "words"),
    [
        ({"seed": 0}, "has format 1 and this version of sims makes format 2: continue it with the version"),
        ({"format": 3, "command": "loop", "seed": 0}, "has format 3"),
        ({"format": 2, "command": "shift", "seed": 0}, "was made by sims shift, not by sims loop: choose another run"),
        ({"format": 2, "command": "loop", "seed": 1}, "another configuration (seed: 1 there, 0 now)"),
    ],
)
def test_what_a_run_directory_was_made_by(earlier: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", earlier)
    (tmp_path / "artefacts").mkdir()
    with pytest.raises(UserError, match=re.escape(words)):
        Run(tmp_path, {"command": "loop", "seed": 0}, quiet=True)
    assert read_json(tmp_path / "config.json") == earlier


def test_a_directory_in_use(refused: Callable[..., str], finished: Path) -> None:
    before = tiny.snapshot(finished)
    with (finished / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "in use by another process" in refused(*tiny.improve_arguments(finished, *tiny.PCA))
    assert tiny.snapshot(finished) == before


def test_a_run_directory_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "is a file" in refused(*improve(tmp_path / "run"))
    assert "cannot be written" in refused(*improve(tmp_path / "run" / "below"))
    assert (tmp_path / "run").read_text() == "mine"


# -- no space ----------------------------------------------------------------------------------------------------------

POINTS = ["config.json", "train.safetensors", "judge.json", "model.json", "state.safetensors", "done.json"]
POINTS += [
    "part-00000.parquet",
    "manifest.json",
    "chosen.json",
    "metrics.jsonl",
    "grids.npz",
    "summary.json",
    "report.html",
]


def test_a_full_device_at_any_file(
    refused: Callable[..., str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every kind of file fails once, in a single run that is continued again and again; the figures do not care."""
    run, replace, left = tmp_path / "run", os.replace, list(POINTS)

    def full(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        if left and Path(target).name == left[0]:
            left.pop(0)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    arguments = tiny.improve_arguments(run, *tiny.PCA)
    while left:
        point = left[0]
        words = refused(*arguments)
        assert "no space left on" in words.lower() and point in words, (point, words)
        assert not list(run.rglob(".*.tmp-*"))
    assert main(arguments) == 0
    assert tiny.figures(run) == tiny.figures(finished)


@pytest.mark.parametrize("out", ["out", "x" * 300])
def test_a_limit_on_file_size_or_names_is_one_sentence(out: str, finished: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "sims", "sample", str(finished / "distilled"), "--seeds", "0-63"]
    line = f"ulimit -f 1; exec {shlex.join([*words, '--out', str(tmp_path / out)])}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    said = "no space left on the device" if out == "out" else "too long a name"
    assert said in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("line", "status"), [("{} --version >&-", 0), ("{} inspect nowhere 2>&-", 2),
                                              ("{} inspect nowhere 2>/dev/full", 2)])  # fmt: skip
def test_a_stream_that_is_closed_or_full_changes_no_status(line: str, status: int) -> None:
    command = line.format(shlex.join([sys.executable, "-m", "sims"]))
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr


@pytest.fixture
def small_device(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 kB."""
    place = tmp_path / "device"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs rights that this machine does not give")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_device_that_is_really_full(refused: Callable[..., str], small_device: Path) -> None:
    run = small_device / "run"
    for size in (300, 700, 1200):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(small_device)], check=True)
        assert "space" in refused(*improve(run)).lower()
    subprocess.run(["mount", "-o", "remount,size=50m", str(small_device)], check=True)
    assert main(improve(run)) == 0
    assert (run / "report.html").exists() and not list(run.rglob(".*.tmp-*"))


# -- interruptions -----------------------------------------------------------------------------------------------------


def test_an_interrupted_command_says_so_and_goes_on(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, update, steps = tmp_path / "run", Trainer.update, 0

    def interrupted(trainer: Trainer) -> tuple[float, bool]:
        nonlocal steps
        steps += 1
        if steps in (20, 60):
            raise KeyboardInterrupt
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    for _ in range(2):
        assert main(tiny.improve_arguments(run, *tiny.PCA)) == 130
        words = capsys.readouterr().err
        assert words.strip().endswith("sims: interrupted; run the same command again to continue")
        assert "Traceback" not in words
    assert main(tiny.improve_arguments(run, *tiny.PCA)) == 0
    assert tiny.figures(run) == tiny.figures(finished)


def test_ctrl_c_ends_a_process_with_130(tmp_path: Path) -> None:
    run = tmp_path / "run"
    often = ["--base.images", "100000000", "--base.train.checkpoint-seconds", "0.1"]
    command = [sys.executable, "-m", "sims", *improve(run, *often)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells make background jobs ignore it
    )
    while process.poll() is None and not (run / "base" / "state.safetensors").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=120)
    assert process.returncode == 130, words
    assert "interrupted" in words and "Traceback" not in words
    assert not list(run.rglob(".*.tmp-*"))


def test_data_that_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {}, quiet=True)
    try:
        parts = [Dataset(np.full((2, 1, 2, 2), value, np.uint8), None, UINT8) for value in (1, 2, 3)]
        same_data(run, "my/images", parts[0], parts[1])
        same_data(run, "my/images", parts[0], parts[1])
        with pytest.raises(UserError, match="my/images has changed since"):
            same_data(run, "my/images", parts[2], parts[1])
    finally:
        run.close()
