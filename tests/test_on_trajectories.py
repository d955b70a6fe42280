"""Learning from a teacher's trajectories: what its sampler does, a loss by hand, a student that has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from sims.data.dataset import Dataset
from sims.guidance import Momentum
from sims.methods import DISTILLED, Base, DistilledOptions, Leader, Settings
from sims.model import Model, load
from sims.runs.directory import Run
from sims.runs.measure import steps_of
from sims.sampling import SamplerOptions, nfe
from sims.training.on_trajectories import Steps, Trajectories
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

FAST = TrainOptions(batch=32, warmup=64, ema_halflife=200.0, checkpoint_seconds=1e9)


@pytest.fixture(params=["unconditional", "conditional"])
def teacher(request: pytest.FixtureRequest, digits: Dataset) -> Model:
    model = tiny.model(digits if request.param == "conditional" else digits.without_labels())
    generator = torch.Generator().manual_seed(0)
    for network in model.networks:
        for weight in network.parameters():
            weight.requires_grad_(False).add_(0.01 * torch.randn(weight.shape, generator=generator))
    return replace(model.with_denoiser(Momentum(model.denoiser, 0.5)), sampler=SamplerOptions(steps=4))


def test_steps_are_those_of_the_sampler(teacher: Model, tmp_path: Path) -> None:
    seen: list[tuple[float, torch.Tensor, torch.Tensor]] = []
    x, labels = teacher.sample_labelled(
        range(5), batch_size=5, callback=lambda step: seen.append((step.sigma, step.x, step.denoised))
    )
    parts = [steps_of(teacher, range(3), 2), steps_of(teacher, range(3, 5), 2)]
    for index, part in enumerate(parts):
        part.save(tmp_path / f"{index}.safetensors")
    ways = Trajectories([Steps.load(tmp_path / f"{index}.safetensors") for index in range(2)])
    assert len(ways) == 5 * 4 and ways.levels.tolist() == pytest.approx([sigma for sigma, _, _ in seen])
    packed, told = ways.batch(np.array([0, 19, 7, 12]))
    for row, (sample, step) in enumerate([(0, 0), (4, 3), (1, 3), (3, 0)]):
        _, state, estimate = seen[step]
        torch.testing.assert_close(packed[row, 0], state[sample], rtol=2e-3, atol=2e-3)
        torch.testing.assert_close(packed[row, 1], estimate[sample], rtol=2e-3, atol=2e-3)
        assert told[row].tolist() == [-1 if labels is None else int(labels[sample]), step]
    assert torch.isfinite(x).all()


def test_the_loss_by_hand(teacher: Model) -> None:
    ways, student = Trajectories([steps_of(teacher, range(6), 3)]), teacher.denoiser.base  # type: ignore[union-attr, attr-defined]
    packed, told = ways.batch(np.arange(24))
    classes = told[:, 0] if student.num_classes else None
    levels = ways.levels[told[:, 1]]
    error = (student(packed[:, 0], levels, classes) - packed[:, 1]) ** 2
    c_out = student.coefficients(levels)[1]
    by_hand = (error / (c_out**2 + 0.05**2)[:, None, None, None]).mean()
    found = ways.loss(student, packed, told, torch.randn(24, 1, 8, 8), torch.ones(24))
    torch.testing.assert_close(found, by_hand)


def test_a_student_comes_closer_on_ways_that_it_has_not_seen(finished: Path, tmp_path: Path) -> None:
    base = load(next((finished / "base" / "snapshots").glob("*12800")))
    teacher = base.with_denoiser(Momentum(base.denoiser, 0.3, 1.0))
    ways = Trajectories([steps_of(teacher, range(start, start + 200)) for start in (0, 200, 400)])
    options = {"images": 12_800, "seed": 1, "objective": ways.loss}
    trained = Trainer(base, ways, FAST, tmp_path / "student", **options).run()  # type: ignore[arg-type]
    packed, told = Trajectories([steps_of(teacher, range(1000, 1100), 100)]).batch(np.arange(600))
    before, after = (float(ways.loss(m.denoiser, packed, told, packed, packed)) for m in (base, load(trained.last)))  # type: ignore[arg-type]
    assert after < 0.7 * before


def test_the_heir_of_a_rule_that_remembers(teacher: Model, tmp_path: Path) -> None:
    base = teacher.with_denoiser(teacher.denoiser.base)  # type: ignore[union-attr, attr-defined]
    leader = Leader(teacher, 0.5, "history")
    settings = Settings(batch_size=20, distilled=DistilledOptions(100, 200, FAST), leader=leader)
    run = Run(tmp_path / "run", {}, quiet=True)
    made = DISTILLED.prepare(Base(base, base.hash, train=FAST), None, settings, run)
    assert made is not None and made.note == "of history"
    (folder,) = (run.path / "artefacts").glob("trajectories-*")
    assert sum(len(Steps.load(file).states) for file in folder.iterdir()) == 50  # of 4 steps each, 200 in all
    assert made.cost.images == 200 and made.cost.evaluations == 100 * nfe(teacher, teacher.sampler)
    before = tiny.snapshot(folder)
    assert DISTILLED.prepare(Base(base, base.hash, train=FAST), None, settings, run) == made
    assert tiny.snapshot(folder) == before
    run.close()
