"""The learning rate that a probe finds: right where it is known, kept by a run, counted, and only where wanted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sims
import tiny
from sims.cli import main
from sims.config import to_dict
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.interop.wrapping import wrap
from sims.model import Model, load
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.training.base import new_model
from sims.training.options import LEARNING_RATE, TrainOptions
from sims.training.probe import RATES, STEPS, is_foreign, is_probed, probe_rate

FAST = TrainOptions(batch=32, ema_rampup=0.5)


class Level(nn.Module):
    """One number for every picture, whatever is in it: ``scale`` times its only weight."""

    def __init__(self, scale: float, value: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.tensor([value / scale], dtype=torch.float32))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.scale * self.weight + 0 * x


def level(scale: float, value: float) -> Model:
    return wrap(Level(scale, value), data_shape=(2,), prediction="x0", schedule=sims.interpolants.edm())


def around(value: float, count: int = 400) -> Dataset:
    raw = value + 1e-4 * np.random.default_rng(0).standard_normal((count, 2)).astype(np.float32)
    return Dataset(raw, None, Codec("identity", -1.0, 1.0, "float32"), (), "around")


@pytest.mark.parametrize("scale", [1e5, 1e6, 1e7])
def test_the_rate_is_as_many_times_smaller_as_the_output_is_more_sensitive(scale: float) -> None:
    """Adam moves a weight by the rate at each step, whatever the loss: too far where that moves the output too far."""
    found = probe_rate(level(scale, 0.503), around(0.5), FAST, seed=0)
    assert found.falls and found.rate * scale == pytest.approx(10)
    assert found.images == len(found.tried) * STEPS * FAST.batch
    assert [tried.rate for tried in found.tried] == list(RATES[: len(found.tried)])
    assert found.tried[-1].loss < 0.5 * found.before and all(one.loss > 2 * found.before for one in found.tried[:-1])
    assert f"learning rate {found.rate:g}, the largest at which the loss falls" in found.said()


def test_where_every_rate_is_too_large_it_takes_the_lowest_and_says_so() -> None:
    found = probe_rate(level(1e8, 0.503), around(0.5), FAST, seed=0)
    assert found.rate == RATES[-1] and not found.falls and len(found.tried) == len(RATES)
    assert "the loss fell at none" in found.said()


def test_a_network_that_diverges_is_only_too_fast() -> None:
    """Losses beyond all numbers count as larger than any."""

    class Steep(Level):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return (self.weight * 1e6).exp() + 0 * x

    steep = wrap(Steep(1.0, -1e-6), data_shape=(2,), prediction="x0", schedule=sims.interpolants.edm())
    found = probe_rate(steep, around(0.38), FAST, seed=0)
    assert found.rate < 1e-3 and found.falls and found.tried[0].loss > 1e6 * found.before
    assert json.loads(json.dumps(to_dict(found)))["rate"] == found.rate


def test_it_leaves_model_and_random_numbers_as_they_were() -> None:
    model = level(1.0, 0.6)
    before, state = model.hash, torch.get_rng_state()
    first, again = (probe_rate(model, around(0.5), FAST, seed=1) for _ in range(2))
    assert first == again and model.hash == before and torch.equal(torch.get_rng_state(), state)


def test_who_is_probed(plain: Dataset) -> None:
    own, other = tiny.model(plain), level(1.0, 0.5)
    assert is_foreign(other) and not is_foreign(own)
    assert is_probed(other, FAST) and not is_probed(own, FAST) and not is_probed(other, replace(FAST, lr=1e-4))
    assert is_probed(new_model(plain, tiny.NETWORK, tiny.SAMPLER, 0, replace(FAST, lr=2e-4)), FAST)
    assert FAST.lr is None and FAST.learning_rate == LEARNING_RATE == FAST.rate(1e9, 1e9)


CODE = """
import torch
import sims


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.read = torch.nn.Linear(65, 64)
        self.write = torch.nn.Linear(64, 64)

    def forward(self, x, t):
        x = torch.cat([x.flatten(1), t[:, None] / 1000], 1)
        return self.write(torch.nn.functional.silu(self.read(x))).reshape(len(x), 1, 8, 8)


def make():
    torch.manual_seed(0)
    return sims.wrap(Net(), data_shape=(1, 8, 8), prediction="eps", schedule="linear",
                     sampler=sims.SamplerOptions(steps=5))
"""


@pytest.fixture
def words(tmp_path: Path) -> list[Any]:
    (tmp_path / "mine.py").write_text(CODE)
    given = ["--model", f"{tmp_path / 'mine.py'}:make", "--data.limit", "200", "--guidance.cache-cost", "0"]
    return tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *given)


def test_a_run_finds_keeps_says_and_counts_it(words: list[Any], tmp_path: Path, say: tiny.Say) -> None:
    methods = ["--methods", "base,sims,placebo,continued,distilled"]
    status, _, _ = say(*words, *methods, "--dry-run")
    assert status == 0 and not (tmp_path / "run").exists()
    assert main([*words, *methods]) == 0
    files = sorted((tmp_path / "run" / "artefacts").glob("rate-*/probe.json"))
    assert len(files) == 3  # own samples, real data, guided samples: the placebo has the auxiliary's
    found = [json.loads(file.read_text()) for file in files]
    assert all(probe["rate"] in RATES for probe in found)
    log, result = (tmp_path / "run" / "log").read_text(), read_result(tmp_path / "run", ImproveResult)
    assert log.count("learning rate ") >= 3
    rows = {row.label: row for row in result.rows}
    took = rows["sims"].cost.images - 5120  # the auxiliary's largest budget
    assert took in {probe["images"] for probe in found} and "learning rate" in rows["sims"].note
    for probe in found:
        assert f"learning rate {probe['rate']:g}, the largest" in log or "the loss fell at none" in log
    changed = [file.stat().st_mtime_ns for file in files]
    (tmp_path / "run" / "summary.json").unlink()
    assert main([*words, *methods]) == 0
    assert [file.stat().st_mtime_ns for file in files] == changed


def test_a_given_rate_is_the_rate(words: list[Any], tmp_path: Path) -> None:
    assert main([*words, "--methods", "base,sims", "--auxiliary.train.lr", "2e-4"]) == 0
    assert not list((tmp_path / "run" / "artefacts").glob("rate-*"))


def test_fine_tune_probes_a_network_of_somebody_else(tmp_path: Path) -> None:
    samples = torch.full((200, 2), 0.5)
    tuned = sims.fine_tune(
        level(1e6, 0.503), samples, images=640, batch=32, train={"warmup": 0}, folder=tmp_path / "tuned", quiet=True
    )
    probe = json.loads(next((tmp_path / "tuned").rglob("probe.json")).read_text())
    assert probe["rate"] < LEARNING_RATE and probe["falls"]
    assert tuned.hash != level(1e6, 0.503).hash


def test_a_model_directory_remembers_where_it_was_trained(plain: Dataset, tmp_path: Path) -> None:
    assert not is_foreign(load(tiny.model(plain).save(tmp_path / "model")))
