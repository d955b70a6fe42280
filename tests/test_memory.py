"""Memory: what is free, what work takes, batches that fit, and one sentence where they do not."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from sims.cli import main, parse
from sims.config import override
from sims.data.codec import Codec
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.cost import fit, rates
from sims.experiments.cost.described import DataSize
from sims.experiments.cost.estimate import Pilot
from sims.experiments.cost.fit import Batches, choose_batches
from sims.experiments.cost.memory import Peak, free_memory, is_out_of_memory
from sims.experiments.cost.rates import Rate, Rates, measure_rates
from sims.experiments.improve.job import improve
from sims.experiments.options import ImproveOptions
from sims.gaussians import GaussianMixture
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.work import Sampling, Training
from sims.sampling import SamplerOptions
from sims.training.trainer import Trainer, TrainOptions

CPU = torch.device("cpu")
MB = 1_000_000
DATA = DataSize((1, 8, 8), 0, Codec("pixels", 0.0, 16.0, "uint8"), "stated")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.5)


def system(root: Path, available: int, **limits: Any) -> Path:
    """The files in which a system tells of its memory."""
    files = {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n", **limits}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(str(text))
    return root


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    new, old = "sys/fs/cgroup/memory", "sys/fs/cgroup/memory/memory"
    assert free_memory(CPU, system(tmp_path / "none", 4096 * MB)) == 4096 * MB
    limits = {f"{new}.max": 1000, f"{new}.current": 700, f"{new}.stat": "inactive_file 50\nanon 600\n"}
    assert free_memory(CPU, system(tmp_path / "two", 4096 * MB, **limits)) == 350
    limits = {f"{new}.max": "max", f"{new}.current": 700, f"{new}.stat": ""}
    assert free_memory(CPU, system(tmp_path / "unlimited", 4096 * MB, **limits)) == 4096 * MB
    limits = {f"{old}.limit_in_bytes": 900, f"{old}.usage_in_bytes": 950, f"{old}.stat": "total_inactive_file 10\n"}
    assert free_memory(CPU, system(tmp_path / "one", 4096 * MB, **limits)) == 0
    assert free_memory(CPU) > 0


def test_the_peak_of_a_block() -> None:
    with Peak(CPU) as peak:
        held = torch.ones(25 * MB)  # 100 MB
    assert 90 * MB < peak.bytes < 150 * MB and len(held)
    with Peak(CPU) as little:
        torch.ones(1000)
    assert little.bytes < 20 * MB


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
            True,
        ),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_errors_that_tell_of_memory(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


OPTIONS = ImproveOptions()
BASE, AUXILIARY = Training("base", OPTIONS.base.train), Training("auxiliary", OPTIONS.auxiliary.train)


def pilot(item: float, fixed: float = 100 * MB, base: Training = BASE) -> Pilot:
    rate = Rate(1e-3, 0.0, item, fixed, 8)
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    sampling = Sampling(exact, SamplerOptions(), 35, 70)
    return Pilot(sampling, [], Rates({base: rate, AUXILIARY: rate}, rate, 0.0), "mlp", 12_500_000, 50 * MB)


@pytest.mark.parametrize("free", [10**9, 500 * MB, 300 * MB])
def test_batches_are_the_largest_that_fit(free: int) -> None:
    item = 3 * MB
    found = choose_batches(OPTIONS, DATA, pilot(item), free, 1, CPU)
    room = fit.ROOM * free
    assert {*found.parts} == {"base", "auxiliary"}  # what does not train stays as asked for
    for parts in found.parts.values():
        assert 256 % parts == 0 and 100 * MB + item * 256 // parts + 50 * MB <= room
        assert parts == 1 or 100 * MB + item * 512 // parts + 50 * MB > room  # half as many would not do
    assert found.batch_size == min(500, int((room - 100 * MB) / item))
    applied = found.applied(OPTIONS)
    assert (applied.batch_size, applied.base.train.accumulate) == (found.batch_size, found.parts["base"])


def test_plenty_changes_nothing_and_too_little_is_said() -> None:
    options = override(OPTIONS, {"base": {"train": {"accumulate": 2}}})
    plenty = pilot(1000.0, base=Training("base", options.base.train))
    assert choose_batches(options, DATA, plenty, 10**12, 1, CPU) == Batches(500, {"base": 2, "auxiliary": 1})
    with pytest.raises(UserError, match="smaller network"):
        choose_batches(options, DATA, pilot(1000.0), 100 * MB, 1, CPU)
    with pytest.raises(UserError, match="smaller network"):
        choose_batches(options, DATA, pilot(1e9), 10**9, 1, CPU)


def test_a_teacher_lies_beside_the_network_that_trains() -> None:
    alone, taught = Training("distilled", TrainOptions()), Training("distilled", TrainOptions(), taught=True)
    free = int((100 * MB + 256 * MB + 1.5 * 50 * MB) / fit.ROOM)  # for one network beside, but not for two
    parts = [choose_batches(OPTIONS, DATA, pilot(MB, base=one), free, 1, CPU).parts for one in (alone, taught)]
    assert [entry["distilled"] for entry in parts] == [1, 2]


JOB = ("--methods", "base,sims", "--search.w", "1", "--search.budget", "5120", "--auxiliary.budgets", "5120")


def test_a_run_keeps_what_it_chose_and_computes_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: tiny.Say
) -> None:
    plain, fitted = tmp_path / "plain", tmp_path / "fitted"
    words = [*tiny.PCA, *JOB, "--guidance.cache-cost", "0"]
    assert main(tiny.improve_arguments(plain, *words)) == 0
    monkeypatch.setattr(fit, "choose_batches", lambda *_: Batches(40, {"base": 4, "auxiliary": 2}))
    assert main(tiny.improve_arguments(fitted, *words, "--fit-memory")) == 0
    assert json.loads((fitted / "batches.json").read_text())["batch_size"] == 40
    results = [read_result(run) for run in (plain, fitted)]
    assert all(isinstance(result, ImproveResult) for result in results)
    for one, other in zip(*(result.rows for result in results)):  # type: ignore[attr-defined]
        assert other.mean("fd") == pytest.approx(one.mean("fd"), rel=2e-3)  # what differs is the last bits of sums

    monkeypatch.setattr(fit, "choose_batches", lambda *_: Batches(7, {"base": 1, "auxiliary": 1}))
    kept = (fitted / "metrics.jsonl").read_bytes()
    for name in ("summary.json", "metrics.jsonl"):
        (fitted / name).unlink()
    status, _, err = say(*tiny.improve_arguments(fitted, *words))  # the flag is not needed again
    assert status == 0 and "40 samples at once" in err and (fitted / "metrics.jsonl").read_bytes() == kept


def test_the_pilot_of_a_fit_is_the_real_network(tmp_path: Path) -> None:
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *JOB, "--fit-memory")[1:]
    improve(parse("improve", words), quiet=True)
    chosen = json.loads((tmp_path / "run" / "batches.json").read_text())
    assert chosen == {"batch_size": 100, "parts": {"base": 1, "auxiliary": 1}}  # so little fits everywhere


@pytest.mark.parametrize("command", ["improve", "train"])
def test_too_little_memory_is_one_sentence(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: tiny.Say
) -> None:
    def update(trainer: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB.\nSee documentation")

    monkeypatch.setattr(Trainer, "update", update)
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA) if command == "improve" else ["train", *tiny.TRAIN]
    status, _, err = say(*words, *([] if command == "improve" else ["--out", tmp_path / "run"]))
    last = [line for line in err.splitlines() if line.startswith("sims:")]
    assert status == 2 and len(last) == 1 and err.splitlines()[-1] == last[0] and "Traceback" not in err
    assert ("fit_memory" if command == "improve" else "--base.train.accumulate") in last[0]


def test_the_pilot_trains_the_job_s_own_batch_and_leaves_the_model_alone() -> None:
    data = load("digits", limit=50).without_labels()
    model = tiny.model(data, width=64)
    before = {name: value.clone() for name, value in model.denoiser.state_dict().items()}  # type: ignore[attr-defined]
    trainings = [
        Training("base", TrainOptions(precision="fp32", batch=64)),
        Training("auxiliary", TrainOptions(precision="fp32", batch=64, lr=1e-4)),
        Training("distilled", TrainOptions(precision="fp32", batch=64), taught=True),
    ]
    state = torch.random.get_rng_state()
    measured = measure_rates(model, model, data, trainings, 32, 1, CPU)
    assert torch.equal(state, torch.random.get_rng_state())
    after = model.denoiser.state_dict()  # type: ignore[attr-defined]
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    base, auxiliary, distilled = (measured.training[training] for training in trainings)
    assert base is auxiliary  # the learning rate costs nothing
    assert distilled.image > 0 and measured.evaluation.image > 0
    assert all(rate.batch <= 64 for rate in measured.training.values()) and measured.evaluation.batch <= 32


def test_what_takes_longer_than_there_is_time_is_called_on_three_items() -> None:
    """One, and two, which tell what an item takes; where there is time, first calls do not count."""
    called = list[int]()

    def slow(count: int) -> None:
        called.append(count)
        time.sleep(0.3 * count)  # longer than what is quick enough to be done in any case

    rate = rates._rate(slow, 64, time.monotonic() - 1, CPU)
    assert called == [1, 2] and rate.batch == 2
    called.clear()
    rates._rate(called.append, 4, time.monotonic() + 60, CPU)
    assert called[:5] == [1, 1, 1, 4, 4]
