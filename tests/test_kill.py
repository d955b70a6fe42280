"""A job killed at any moment goes on where it was, and ends with the same figures bit for bit."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest

import tiny

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_in(run: Path) -> int:
    return sum(file.is_file() for file in run.rglob("*"))


def kill_when(script: ModuleType, job: list[str], log: Path, run: Path, files: int) -> None:
    """Start the job, and kill it when its folder has so many files, a moment that no other work moves."""
    process = script.start(job, log)
    while process.poll() is None and files_in(run) < files:
        time.sleep(0.02)
    assert process.poll() is None, f"ended before it had {files} files"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_job_killed_three_times_ends_the_same(script: ModuleType, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    script.finish(script.command(whole, "small"), whole.with_suffix(".out"))
    expected, total = script.figures(whole), files_in(whole)
    assert expected["metrics"].count("\n") > 20
    run = tmp_path / "killed"
    (run / "base").mkdir(parents=True)
    (run / "base" / ".state.tmp-01234567.safetensors").write_bytes(b"left by a process that was killed while writing")
    job = script.command(run, "small")
    for share in (0.1, 0.4, 0.7):
        kill_when(script, job, run.with_suffix(".out"), run, int(share * total))
    script.finish(job, run.with_suffix(".out"))
    assert script.figures(run) == expected
    assert not list(run.rglob(".*.tmp-*"))
    assert tiny.figures(run) == tiny.figures(whole)


def test_moments_are_spread_over_the_whole_job(script: ModuleType) -> None:
    moments = script.spaced(20, 60.0, seed=0)
    assert moments == script.spaced(20, 60.0, seed=0) != script.spaced(20, 60.0, seed=1)
    assert all(3 * index <= moment <= 3 * (index + 1) for index, moment in enumerate(moments))
