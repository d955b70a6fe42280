"""A loop killed at any moment goes on where it was, and ends with the same figures bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import tiny_loop
from sims.cli import main
from sims.files import read_json

FEW = ["--repeats", "2", "--remedies", "standard,sims", "--w", "1", "--generations", "2"]
OFTEN = ["--base.train.checkpoint-seconds", "0.01", "--auxiliary.train.checkpoint-seconds", "0.01"]


def start(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sims", *words]
    with log.open("ab") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)


def files_in(run: Path) -> int:
    return sum(file.is_file() for file in run.rglob("*"))


def kill_when(words: list[str], log: Path, run: Path, files: int) -> None:
    """Start the loop, and kill it with its processes when its folder has so many files."""
    process = start(words, log)
    while process.poll() is None and files_in(run) < files:
        time.sleep(0.01)
    assert process.poll() is None, log.read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_loop_killed_with_its_processes_ends_the_same(tmp_path: Path) -> None:
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert main(tiny_loop.loop_arguments(whole, *FEW, *OFTEN)) == 0
    words = tiny_loop.loop_arguments(run, *FEW, *OFTEN)
    kill_when([*words, "--jobs", "2"], log, run, files_in(whole) // 2)  # repeats in processes of their own
    assert main(words) == 0
    assert tiny_loop.figures(run) == tiny_loop.figures(whole)
    assert not list(run.rglob(".*.tmp-*"))


def test_a_loop_of_points_killed_with_its_processes_ends_the_same(tmp_path: Path) -> None:
    few = ["loop", "--data.path", "gaussian", "--generations", "2", "--repeats", "11", "--w", "1", *OFTEN]
    few += ["--base.images", "2560", "--auxiliary.budgets", "1280", "--auxiliary.samples", "100"]
    few += [
        "--remedies",
        "standard,sims",
        "--counts.real",
        "50",
        "--counts.synthetic",
        "40",
        "--evaluation.samples",
        "60",
        "--sampler.steps",
        "4",
    ]
    whole, run, log = tmp_path / "whole", tmp_path / "run", tmp_path / "log"
    assert main([*few, "--run", str(whole)]) == 0
    words = [*few, "--run", str(run)]
    kill_when([*words, "--jobs", "2"], log, run, files_in(whole) // 2)  # groups of replicas in processes of their own
    assert main(words) == 0
    assert read_json(run / "summary.json")["curves"] == read_json(whole / "summary.json")["curves"]
    assert not list(run.rglob(".*.tmp-*"))
