"""A loop killed at any moment goes on where it was, and leaves the same files byte for byte."""

from __future__ import annotations

import os
import shlex
import signal
import time
from pathlib import Path

import pytest

import tiny_loop
from sims.cli import main

RUN = Path("run")
OFTEN = ["--base.train.checkpoint-seconds", "0.01", "--auxiliary.train.checkpoint-seconds", "0.01"]
FEW = tiny_loop.loop_arguments(
    RUN, "--repeats", "2", "--remedies", "standard,sims", "--w", "1", "--generations", "2", *OFTEN
)
POINTS = shlex.split(
    "loop --run run --data.path gaussian --generations 2 --repeats 11 --w 1 --base.images 2560 "
    "--auxiliary.budgets 1280 --auxiliary.samples 100 --remedies standard,sims --counts.real 50 --counts.synthetic 40 "
    "--evaluation.samples 60 --sampler.steps 4"
)


def files_in(run: Path) -> int:
    return sum(file.is_file() for file in run.rglob("*"))


@pytest.mark.parametrize("words", [FEW, [*POINTS, *OFTEN]], ids=["images", "points"])
def test_a_loop_killed_with_its_processes_leaves_the_same_files(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import kill

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for place in (whole, killed):
        place.mkdir()
    monkeypatch.chdir(whole)
    assert main(words) == 0
    process = kill.start([*words, "--jobs", "2"], killed)  # repeats in processes of their own
    while process.poll() is None and files_in(killed / RUN) < files_in(whole / RUN) // 2:
        time.sleep(0.01)
    assert process.poll() is None, (killed / "out").read_text()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    monkeypatch.chdir(killed)
    assert main(words) == 0
    expected = kill.contents(whole / RUN)
    assert "summary.json" in expected and kill.contents(killed / RUN) == expected
    assert not list(killed.rglob(".*.tmp-*"))
