"""Auxiliaries on samples that end early, on guided samples, from random weights: exact, counted, from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from sims.cli import main, parse
from sims.data.dataset import Dataset
from sims.data.store import Store
from sims.denoiser import as_denoiser
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.experiments.cost.table import Estimate
from sims.experiments.improve import job
from sims.gaussians import GaussianMixture
from sims.methods import METHODS, Artefact, Base, Method
from sims.methods.auxiliary import own_sampler
from sims.methods.settings import AuxiliarySettings, Leader, Settings
from sims.methods.sims import SIMS
from sims.methods.sims_variants import GUIDED, SCRATCH, TRUNCATED
from sims.methods.weight_decay import WEIGHT_DECAY
from sims.model import load
from sims.results.common import Cost
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.sampling import SamplerOptions, SamplingStep, SolverName, nfe, sample_seeds
from sims.sampling.noise import SeededNoise
from sims.training.base import train_base
from sims.training.trainer import Trainer, TrainOptions

RIVALS = (WEIGHT_DECAY, TRUNCATED, GUIDED, SCRATCH)
MEAN, VARIANCE, TOP = torch.tensor([0.3, -0.2], dtype=torch.float64), 0.25, 80.0
EXACT = GaussianMixture([1.0], MEAN[None], VARIANCE * torch.eye(2)[None])


def truncated(stop: float) -> AuxiliarySettings:
    return AuxiliarySettings(synthesis="truncated", stop=stop)


# ---- against truth


@pytest.mark.parametrize("stop", [0.05, 0.5, 3.0])
def test_a_truncated_sample_is_the_estimate_at_the_level_where_it_stops(stop: float) -> None:
    """For one Gaussian the flow from noise to any level, and the estimate there, are known."""
    sampler = own_sampler(EXACT, SamplerOptions(steps=400), truncated(stop))
    x, _ = sample_seeds(EXACT, range(8), sampler)
    start = SeededNoise(list(range(8)), (2,), 0).initial().double() * TOP
    there = MEAN + (start - MEAN) * math.sqrt((VARIANCE + stop**2) / (VARIANCE + TOP**2))
    estimate = MEAN + VARIANCE / (VARIANCE + stop**2) * (there - MEAN)
    torch.testing.assert_close(x.double(), estimate, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("solver", ["heun", "dpmpp2m", "unipc", "euler"])
def test_it_takes_the_steps_above_and_costs_what_is_counted(solver: SolverName) -> None:
    whole = SamplerOptions(solver=solver, steps=18)
    levels = whole.sigmas(EXACT)
    calls, steps = 0, list[SamplingStep]()

    def counted(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return EXACT(x, sigma)

    denoiser = as_denoiser(counted, (2,))
    for stop, above in ((float(levels[9]), 9), (0.5, int((levels > 0.5).sum()))):
        sampler, calls = own_sampler(denoiser, whole, truncated(stop)), 0
        steps.clear()
        x, _ = sample_seeds(denoiser, range(3), sampler, callback=steps.append)
        assert len(steps) == above + 1 and steps[-1].sigma == pytest.approx(stop)
        assert torch.equal(x, steps[-1].denoised)
        assert calls == nfe(denoiser, sampler) == (2 * above + 1 if solver == "heun" else above + 1)
        assert calls < nfe(denoiser, whole)
    at_its_own = own_sampler(denoiser, whole, truncated(float(levels[9]))).sigmas(denoiser)
    torch.testing.assert_close(at_its_own[:-1], levels[:10])


def test_churn_adds_as_much_in_every_step() -> None:
    sampler = SamplerOptions(steps=18, s_churn=3.6)
    stopped = own_sampler(EXACT, sampler, truncated(0.5))
    assert stopped.s_churn / stopped.steps == pytest.approx(0.2)
    assert own_sampler(EXACT, sampler, AuxiliarySettings()) is sampler


@pytest.mark.parametrize("stop", [1e-4, 80.0, 200.0])
def test_a_level_that_it_never_comes_to_is_refused(stop: float) -> None:
    with pytest.raises(UserError, match=r"go from noise level 80 to 0\.002: choose one in between, such as .* 0\.4"):
        own_sampler(EXACT, SamplerOptions(), truncated(stop))


def test_samples_of_one_step_cannot_end_early() -> None:
    with pytest.raises(UserError, match="single step cannot end early"):
        own_sampler(EXACT, SamplerOptions(solver="dpmpp2m", steps=1), truncated(0.5))
    assert nfe(EXACT, own_sampler(EXACT, SamplerOptions(solver="dpmpp2m", steps=2), truncated(0.5))) == 2


# ---- what is prepared

FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200.0, checkpoint_seconds=0.0)
SETTINGS = Settings(AuxiliarySettings(60, (64, 128), train=FAST, stop=2.0), seed=3, batch_size=20)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("variants") / "run", {}, quiet=True)
    yield run
    run.close()


@pytest.fixture(scope="module")
def base(plain: Dataset, run: Run) -> Base:
    how: Any = {"images": 320, "seed": 5, "log": lambda text: None}
    trained = train_base(plain, tiny.NETWORK, tiny.SAMPLER, FAST, run.path / "base", **how)
    model = load(trained.last)
    return Base(model, model.hash)


@pytest.fixture(scope="module")
def settings(base: Base, run: Run) -> Settings:
    """After a leader that cost 64 images and 96 evaluations."""
    aux = prepared(SIMS, base, SETTINGS, run).load(64)
    return replace(
        SETTINGS, leader=Leader(base.model.guided(aux, 0.5), 0.5, SIMS.name, 64, Cost(images=64, evaluations=96))
    )


def prepared(method: Method, base: Base, settings: Settings, run: Run) -> Artefact:
    artefact = method.prepare(base, None, settings, run)
    assert artefact is not None
    return artefact


def test_a_variant_is_sims_with_that_setting(base: Base, settings: Settings, run: Run) -> None:
    changes: dict[Method, dict[str, Any]] = {TRUNCATED: {"synthesis": "truncated"}, SCRATCH: {"init": "scratch"}}
    for method, change in changes.items():
        asked = replace(settings, auxiliary=replace(settings.auxiliary, **change))
        artefact = prepared(method, base, settings, run)
        assert artefact == prepared(SIMS, base, asked, run) != prepared(SIMS, base, settings, run)


def test_what_they_cost(base: Base, settings: Settings, run: Run) -> None:
    sampler = own_sampler(base.model, base.model.sampler, replace(settings.auxiliary, synthesis="truncated"))
    own, short = nfe(base.model, base.model.sampler), nfe(base.model, sampler)
    assert (short, own) == (7, 9)
    cost = {method: prepared(method, base, settings, run).cost for method in RIVALS}
    assert cost[WEIGHT_DECAY] == cost[SCRATCH] == prepared(SIMS, base, settings, run).cost == Cost(128, 60 * own)
    assert cost[TRUNCATED] == Cost(128, 60 * short)
    assert cost[GUIDED] == Cost(128, 60 * 2 * own) + Cost(images=64, evaluations=96)  # and all of the leader's


def test_the_guided_samples_are_those_of_the_leader(base: Base, settings: Settings, run: Run) -> None:
    assert settings.leader is not None
    prepared(GUIDED, base, settings, run)
    (folder,) = (run.path / "artefacts").glob("guided-*")
    header = json.loads((folder / "header.json").read_text())
    assert header["provenance"]["model"] == settings.leader.model.hash and header["provenance"]["w"] == 0.5
    seeds = range(*header["provenance"]["seeds"])
    wanted = base.model.codec.decode(settings.leader.model.sample(seeds, batch_size=20))
    assert (Store.read(folder).raw == wanted).all()


@pytest.mark.parametrize("method", RIVALS, ids=lambda method: method.name)
def test_an_interrupted_preparation_goes_on_to_the_same_files(
    method: Method, base: Base, settings: Settings, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(method, base, settings, run)
    again, update, calls = Run(tmp_path / "run", {}, quiet=True), Trainer.update, 0

    def interrupted(trainer: Trainer) -> tuple[float, bool]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise InterruptedError
        return update(trainer)

    monkeypatch.setattr(Trainer, "update", interrupted)
    with pytest.raises(InterruptedError):
        prepared(method, base, settings, again)
    found = prepared(method, base, settings, again)
    again.close()
    assert found.key == whole.key and found.cost == whole.cost and calls > 3
    files = tiny.snapshot(tmp_path / "run" / "artefacts")
    assert len(files) > 5
    assert all((run.path / "artefacts" / name).read_bytes() == content for name, content in files.items())


# ---- from end to end

NAMES = [method.name for method in RIVALS]
WORDS = ["--methods", ",".join(["base", SIMS.name, *NAMES]), "--guidance.cache-cost", "0", "--auxiliary.stop", "1"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("rivals") / "run"
    assert main(tiny.improve_arguments(run, *tiny.PCA, *WORDS)) == 0
    return run


def test_they_stand_in_the_table_and_nowhere_unasked(finished: Path, say: tiny.Say) -> None:
    result = read_result(finished, ImproveResult)
    assert not any(method.default for method in RIVALS)
    for method in RIVALS:
        row = result.row(method.name)
        assert row is not None and row.nfe == 22 and row.figures["fd"].mean > 0
        assert result.looks[method.name] == method.look
        assert method.look.title in (finished / "report.html").read_text()
    status, _, err = say(*tiny.improve_arguments(finished, *tiny.PCA, *WORDS))
    shown = {line.split()[1] for line in err.splitlines() if line.startswith("│ ")}
    assert status == 0 and {*NAMES} <= shown


def test_the_dry_run_counts_the_stages_that_were_timed(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.05)
    estimate = job.improve(parse("improve", tiny.improve_arguments(finished, *tiny.PCA, *WORDS, "--dry-run")[1:]))
    assert isinstance(estimate, Estimate)
    work = {work.stage: work for work in estimate.work}
    timed = [stage.name for stage in read_result(finished, ImproveResult).reproduction.stages]
    assert {*list(work)[1:-1]} == {*timed}
    sampler = own_sampler(EXACT, SamplerOptions(steps=6), truncated(1.0))
    counted = {method: work[f"prepare {method.prepared_as}"].evaluations for method in RIVALS}
    assert counted == {WEIGHT_DECAY: 2200, TRUNCATED: 200 * nfe(EXACT, sampler), GUIDED: 4400, SCRATCH: 2200}
    assert nfe(EXACT, sampler) < 11


def test_they_are_named_in_the_help(say: tiny.Say) -> None:
    status, out, _ = say("improve", "--help")
    flat = "".join(out.replace("│", " ").split())
    assert status == 0 and all(name in flat for name in METHODS)
    assert all(name in flat for name in ("--auxiliary.synthesis{full,truncated}", "--auxiliary.stop"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--auxiliary.stop", "0"], "--auxiliary.stop is 0.0: it must be a positive number"),
        (["--auxiliary.synthesis", "truncated", "--auxiliary.stop", "90"], "from noise level 80 to 0.002: choose one"),
        (["--methods", "base,sims-truncated", "--auxiliary.stop", "0.001"], "from noise level 80 to 0.002: choose one"),
        (["--methods", "base,sims-guided"], "name both, or neither"),
        (["--auxiliary.synthesis", "short"], "short"),
    ],
)
def test_bad_options_are_refused_before_anything_is_made(
    words: list[str], said: str, tmp_path: Path, say: tiny.Say
) -> None:
    for more in ([], ["--dry-run"]):
        status, _, err = say(*tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *words, *more))
        flat = " ".join(err.replace("│", " ").split())
        assert status == 2 and said in flat and "Traceback" not in err
        assert not (tmp_path / "run" / "base").exists() and not (tmp_path / "run" / "artefacts").exists()


def test_loops_say_what_they_do_not_know(say: tiny.Say, tmp_path: Path) -> None:
    words = ["loop", "--run", str(tmp_path / "run"), "--auxiliary.synthesis", "truncated"]
    status, _, err = say(*words, "--data.path", "gaussian")
    assert status == 2 and "is for images: a loop of points knows full" in err
    status, _, err = say(*words, "--auxiliary.stop", "100")
    assert status == 2 and "choose one in between" in " ".join(err.replace("│", " ").split())
