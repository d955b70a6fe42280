"""A job killed at any moment goes on where it was, and ends with the same figures bit for bit."""

from __future__ import annotations

import importlib.util
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


def test_a_job_killed_three_times_ends_the_same(script: ModuleType, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    duration = script.finish(script.command(whole, "small"), whole.with_suffix(".out"))
    expected = script.figures(whole)
    assert expected["metrics"].count("\n") > 20
    moments = [0.55 * duration + moment for moment in script.spaced(3, 0.4 * duration, seed=1)]
    run = tmp_path / "killed"
    (run / "base").mkdir(parents=True)
    (run / "base" / ".state.tmp-01234567.safetensors").write_bytes(b"left by a process that was killed while writing")
    entry = script.survive(script.command(run, "small"), run, moments, expected)
    assert entry["killed"][0] and entry["newest_file"][0] != "nothing written"
    assert entry["equal"], entry
    assert entry["leftovers"] == 0
    assert tiny.figures(run) == tiny.figures(whole)


def test_moments_are_spread_over_the_whole_job(script: ModuleType) -> None:
    moments = script.spaced(20, 60.0, seed=0)
    assert moments == script.spaced(20, 60.0, seed=0) != script.spaced(20, 60.0, seed=1)
    assert all(3 * index <= moment <= 3 * (index + 1) for index, moment in enumerate(moments))
