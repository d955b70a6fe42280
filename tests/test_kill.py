"""A job killed at any moment goes on where it was, and leaves the same files byte for byte."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from pathlib import Path
from types import ModuleType

import pytest

from sims.results.improve import ImproveResult
from sims.results.summaries import read_result

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kill.py"
METHODS = ["--methods", "base,autoguidance,sims,distilled"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kill", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def files_in(run: Path) -> int:
    return sum(file.is_file() for file in run.rglob("*"))


def kill_when(script: ModuleType, job: list[str], place: Path, files: int) -> None:
    """Start the job, and kill it when its folder has so many files, a moment that no other work moves."""
    process = script.start(job, place)
    while process.poll() is None and files_in(place / "run") < files:
        time.sleep(0.02)
    assert process.poll() is None, f"ended before it had {files} files"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def test_a_job_killed_three_times_leaves_the_same_files(script: ModuleType, tmp_path: Path) -> None:
    whole, killed, job = tmp_path / "whole", tmp_path / "killed", script.command("small", METHODS)
    script.finish(job, whole)
    expected, total = script.contents(whole / "run"), files_in(whole / "run")
    assert {"summary.json", "metrics.jsonl", "config.json", "grids.npz", "improved/model.json"} <= {*expected}
    assert expected["metrics.jsonl"].count(b"\n") > 20
    (killed / "run" / "base").mkdir(parents=True)
    left = killed / "run" / "base" / ".state.tmp-01234567.safetensors"
    left.write_bytes(b"left by a process that was killed while writing")
    for share in (0.1, 0.4, 0.7):
        kill_when(script, job, killed, int(share * total))
    script.finish(job, killed)
    assert script.contents(killed / "run") == expected
    assert not list(killed.rglob(".*.tmp-*"))
    assert (killed / "run" / "times.json").read_bytes() != (whole / "run" / "times.json").read_bytes()
    both = [read_result(place / "run", ImproveResult) for place in (whole, killed)]
    assert all(row.seconds_per_1000 for result in both for row in result.rows)
    assert all(result.reproduction.seconds > 0 for result in both)


def test_moments_are_spread_over_the_whole_job(script: ModuleType) -> None:
    moments = script.spaced(20, 60.0, seed=0)
    assert moments == script.spaced(20, 60.0, seed=0) != script.spaced(20, 60.0, seed=1)
    assert all(3 * index <= moment <= 3 * (index + 1) for index, moment in enumerate(moments))
