"""Runs with a network of a user's code: two processes do what one does, and a killed one goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits

import sims
import tiny
from sims.cli import main
from sims.interop import wrapping
from test_kill import script  # noqa: F401 (a fixture)
from test_processes import ENVIRONMENT, killed, launched, same_rows
from test_user_code import CODE

SHAPES = {"inner.0.weight": (32, 68), "inner.0.bias": (32,), "inner.2.weight": (64, 32), "inner.2.bias": (64,)}


@dataclass(frozen=True)
class Desk:
    """A folder with code, weights and data, and the job on them in one of its folders."""

    place: Path

    def job(self, run: str) -> list[str]:
        words = ["--model", f"{self.place / 'net.py'}:make", "--weights", str(self.place / "w.safetensors")]
        words += ["--data.path", str(self.place / "digits.npz"), "--data.test-fraction", "0.3", *tiny.PCA]
        words += ["--methods", "base,sims,distilled", "--auxiliary.budgets", "1280", "--search.rungs", "50"]
        words += ["--guidance.cache-cost", "0", "--distilled.images", "1280", "--evaluation.no-check"]
        return tiny.improve_arguments(self.place / run, *words)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """With the finished job of one process in ``whole``."""
    place = tmp_path_factory.mktemp("desk")
    (place / "net.py").write_text(CODE.replace("import helper_of_net\n", "").replace(" * helper_of_net.ONE", ""))
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    save_file({**tensors, "classes.weight": torch.eye(3)}, place / "w.safetensors")
    digits = load_digits(n_class=2)
    np.savez(place / "digits.npz", images=(digits.images * 15).astype(np.uint8), labels=digits.target)
    made = dict(wrapping.MADE)
    assert main(Desk(place).job("whole")) == 0
    yield Desk(place)
    wrapping.MADE.clear()
    wrapping.MADE.update(made)


def test_two_processes_do_what_one_does(desk: Desk) -> None:
    done = subprocess.run(
        launched("-m", "--", "sims", *desk.job("two")), capture_output=True, text=True, timeout=300, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = desk.place / "whole", desk.place / "two"
    stores = [file.parent.relative_to(one) for file in one.rglob("manifest.json")]
    own = [store for store in stores if json.loads((one / store / "header.json").read_text())["provenance"]["w"] == 0]
    assert own
    for store in own:  # drawn with equal weights: bit for bit
        assert tiny.snapshot(one / store) == tiny.snapshot(two / store)
    same_rows(one, two)
    for name in ("sims/base", "sims/aux", "distilled"):
        a, b = (load_file(run / name / "model.safetensors") for run in (one, two))
        assert a.keys() == b.keys()
        assert all(torch.allclose(a[key], b[key], rtol=1e-3, atol=1e-5) for key in a), name
        assert (two / name / "net.py").read_bytes() == (desk.place / "net.py").read_bytes()
    samples = [sims.load(run / "distilled").sample(range(4)) for run in (one, two)]
    assert torch.allclose(*samples, atol=1e-3)


def test_a_killed_run_ends_with_the_same_bytes(desk: Desk, script: ModuleType, say: tiny.Say) -> None:  # noqa: F811
    """Killed after the auxiliary, and continued by the same command."""
    words, run = desk.job("killed"), desk.place / "killed"
    killed([sys.executable, "-m", "sims", *words], run, "artefacts/auxiliary-*/snapshots/*")
    assert not (run / "summary.json").exists()
    status, _, err = say(*words)
    assert status == 0, err
    whole, found = script.contents(desk.place / "whole"), script.contents(run)
    assert found.keys() == whole.keys()
    for name, content in whole.items():  # but for the run's own name
        assert found[name].replace(bytes(run), bytes(desk.place / "whole")) == content, name


def test_export_writes_the_names_of_the_user(desk: Desk, say: tiny.Say) -> None:
    for name in ("distilled", "sims/aux"):
        out = desk.place / f"{name.replace('/', '-')}.safetensors"
        status, _, err = say("export", desk.place / "whole" / name, out, "--code", f"{desk.place / 'net.py'}:make")
        assert status == 0, err
        found, given = load_file(out), load_file(desk.place / "w.safetensors")
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in given.items()}
        assert any(not torch.equal(found[key], given[key]) for key in given)
