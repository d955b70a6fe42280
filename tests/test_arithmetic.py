"""The arithmetic that training takes by itself: measured once, kept for the machine, and the faster one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sims import measured
from sims.training import arithmetic
from sims.training.arithmetic import WORTH, autocast_dtype, bf16_speed, has_bf16, said

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("SIMS_CACHE", str(tmp_path / "cache"))
    bf16_speed.cache_clear()
    yield tmp_path / "cache" / "arithmetic.json"
    bf16_speed.cache_clear()


@pytest.mark.parametrize(("speed", "dtype"), [(0.5, None), (1.0, None), (WORTH, torch.bfloat16), (4.0, torch.bfloat16)])
def test_the_faster_one_is_taken_and_said(
    speed: float, dtype: torch.dtype | None, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: True)
    monkeypatch.setattr(arithmetic, "_measured", lambda: speed)
    assert autocast_dtype("auto", CPU) == dtype
    assert autocast_dtype("bf16", CPU) == torch.bfloat16 and autocast_dtype("fp32", CPU) is None
    assert said(CPU).startswith("fp32" if dtype is None else "bf16") and f"{speed:g} times" in said(CPU)
    assert list(json.loads(home.read_text()).values()) == [speed]


def test_it_is_measured_once_for_a_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: True)
    monkeypatch.setattr(arithmetic, "_measured", lambda: calls.append(1) or 2.0)
    for _ in range(2):
        assert bf16_speed(CPU) == 2.0
        bf16_speed.cache_clear()  # as another process
    assert len(calls) == 1
    monkeypatch.setattr(measured, "processor", lambda: "another one")
    assert bf16_speed(CPU) == 2.0 and len(calls) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "fast"}'])
def test_a_damaged_file_is_measured_anew(content: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: True)
    monkeypatch.setattr(arithmetic, "_measured", lambda: 3.0)
    home.parent.mkdir(parents=True)
    home.write_text(content)
    assert bf16_speed(CPU) == 3.0


def test_a_device_without_it_is_not_measured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "has_bf16", lambda device: False)
    monkeypatch.setattr(arithmetic, "_measured", lambda: 1 / 0)
    assert autocast_dtype("auto", CPU) is None and "no arithmetic of bf16" in said(CPU) and not home.exists()


@pytest.mark.skipif(not has_bf16(CPU), reason="this processor has no bf16")
def test_the_measurement_gives_a_number_and_leaves_random_numbers_alone() -> None:
    state = torch.get_rng_state()
    assert 0.01 < arithmetic._measured() < 100
    assert torch.equal(torch.get_rng_state(), state)
