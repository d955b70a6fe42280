"""How many threads: what a process may use, what is faster, and what a run keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tiny
from sims import limits, threads


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in threads.SET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "cpus", lambda: 8)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, 99),
        ({"cpu.max": "max 100000"}, 99),
        ({"cpu.max": "150000 100000"}, 2),
        ({"cpu.max": "10000 100000"}, 1),
        ({"cpu.max": "garbage"}, 99),
        ({"cpu/cpu.cfs_quota_us": "300000", "cpu/cpu.cfs_period_us": "100000"}, 3),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 99),
    ],
)
def test_a_containers_share_counts(
    files: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(99), raising=False)
    for name, content in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    assert limits.cpus(tmp_path) == most


def test_the_affinity_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5}, raising=False)
    assert limits.cpus(tmp_path) == 2


def test_no_more_threads_than_processors_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.limit()
    assert torch.get_num_threads() == 4
    monkeypatch.setattr(threads, "cpus", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    threads.limit()
    assert torch.get_num_threads() == 4
    monkeypatch.delenv("OMP_NUM_THREADS")
    threads.limit()
    assert torch.get_num_threads() == 3
    threads.limit(2)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(
    ("speeds", "number"),
    [([1.0, 0.6, 0.4], 4), ([1.0, 1.05, 1.09], 4), ([1.0, 1.5, 0.9], 2), ([1.0, 1.5, 1.6], 2), ([1.0, 1.5, 1.7], 1)],
)
def test_fewer_are_taken_where_that_is_worth_it(
    speeds: list[float], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "speeds", lambda numbers: speeds if numbers == [4, 2, 1] else None)
    assert threads.fastest() == number


def test_speeds_leave_threads_and_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    found = threads.speeds([4, 1])
    assert found[0] == 1 and 0.01 < found[1] < 1000
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 4


def test_a_run_keeps_its_number(tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "fastest", lambda: 2)
    job = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, "--methods", "base")
    status, _, err = say(*job)
    assert status == 0, err
    assert "2 threads, the fastest here" in (tmp_path / "run" / "log").read_text()
    assert json.loads((tmp_path / "run" / "threads.json").read_text()) == 2
    assert torch.get_num_threads() == 2
    torch.set_num_threads(4)
    (tmp_path / "run" / "summary.json").unlink()
    monkeypatch.setattr(threads, "fastest", lambda: 1 / 0)
    assert say(*job)[0] == 0 and torch.get_num_threads() == 2


@pytest.mark.parametrize(("policy", "expected"), [(None, "10000"), ("passive", "None")])
def test_waiting_threads_give_the_processor_away(policy: str | None, expected: str) -> None:
    bare = {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    code = "import os, sims, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    environment = bare if policy is None else {**bare, "OMP_WAIT_POLICY": policy}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected, "False"]
