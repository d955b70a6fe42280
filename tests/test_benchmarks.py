"""Benchmarks that need other hardware than tests have run at toy size."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_the_gpu_checks_run_at_toy_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import gpu

    original = nn.Module.compile
    # Without the last stage, the slow C++ compiler.
    monkeypatch.setattr(nn.Module, "compile", lambda self, mode=None: original(self, backend="eager"))
    monkeypatch.setattr(shutil, "which", lambda name: name)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny"])
    status = gpu.main(["--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.json")])
    found = json.loads((tmp_path / "gpu.json").read_text())
    errors = {name: part["error"] for name, part in found.items() if isinstance(part, dict) and "error" in part}
    assert status == 0 and not errors
    assert [row["network"] for row in found["parity"]] == ["mlp", "ddpmpp"]
    assert all(row["largest_difference"] == 0 for row in found["parity"]), "the CPU against itself"
    assert {row["compiled"] for name in ("training", "training_compiled") for row in found[name]} == {False, True}
    costs = {row["name"]: row["nfe"] for row in found["guidance"]}
    assert costs["one network, distilled"] < costs["cached"] < costs["guided"]
    assert found["improve"]["rows"] and all(value > 0 for value in found["peak_tflops"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_they_say_so(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    import gpu

    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    out = capsys.readouterr().out
    assert out.startswith("no GPU here") and out.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()
