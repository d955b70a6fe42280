"""Generators of one to four evaluations as bases: sampled in their own way, fine-tuned along their own levels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from sims.cli import main
from sims.data.dataset import Dataset
from sims.experiments.adapter_check import check_adapter
from sims.methods import METHODS
from sims.model import Model, load
from sims.preconditioning import ConsistencyPrecond
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.sampling import SamplerOptions, edm_sigmas, nfe
from sims.training.loss import training_levels
from sims.training.options import TrainOptions

OPTIONS = TrainOptions(batch=32, lr=1e-4)


@pytest.fixture(scope="module")
def generator(plain: Dataset) -> Model:
    """A consistency model of digits that nobody has trained."""
    drawn = tiny.model(plain)
    network = drawn.denoiser.network  # type: ignore[attr-defined]
    denoiser = ConsistencyPrecond(network, drawn.data_shape, sigma_data=0.5, scale=0.25)
    sampler = SamplerOptions("consistency", 2, sigma_min=0.8)
    return replace(drawn, denoiser=denoiser.eval().requires_grad_(False), sampler=sampler, provenance={})


def test_levels_are_even_along_the_schedule(generator: Model) -> None:
    """The levels at k / (N - 1) of all the normal numbers are those that Karras et al. 2022 give N steps."""
    options = replace(OPTIONS, levels="schedule")
    share = torch.linspace(0, 1, 18, dtype=torch.float64)[1:-1]
    levels = training_levels(generator, options, torch.special.ndtri(1 - share))
    torch.testing.assert_close(levels, edm_sigmas(18, 0.002, 80.0)[1:-2])  # down to the lowest that it knows
    high = replace(generator, sampler=replace(generator.sampler, sigma_max=10.0))
    assert float(training_levels(high, options, torch.tensor([9.0]))) == pytest.approx(10.0)
    normal = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(training_levels(generator, OPTIONS, normal), (1.2 * normal - 1.2).exp())


def test_who_is_fine_tuned_along_the_schedule(generator: Model, plain: Dataset, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", {}, quiet=True)

    def levels(model: Model, options: TrainOptions = OPTIONS) -> str:
        return with_rate(model, lambda: plain, "", options, 0, run).options.levels

    assert levels(generator) == "schedule"
    assert levels(replace(generator, sampler=SamplerOptions("euler", 4))) == "schedule"
    assert levels(replace(generator, sampler=SamplerOptions("euler", 5))) == "lognormal"
    assert levels(generator, replace(OPTIONS, p_mean=0.0)) == "lognormal"
    own = tiny.model(plain)
    assert levels(replace(own, sampler=SamplerOptions("euler", 2))) == "lognormal"
    run.close()


def test_it_is_saved_with_what_its_network_is_told(generator: Model, tmp_path: Path) -> None:
    again = load(generator.save(tmp_path / "model"))
    assert again.hash == generator.hash and again.sampler == generator.sampler
    assert torch.equal(again.sample(range(3)), generator.sample(range(3)))
    sigma = torch.tensor([1.0, 80.0])
    told = generator.denoiser.coefficients(sigma)[3]  # type: ignore[attr-defined]
    torch.testing.assert_close(told, 0.25 * sigma.log())


def test_its_errors_are_not_held_against_a_denoisers(generator: Model, plain: Dataset) -> None:
    found = check_adapter(generator, plain, "generator")
    assert not found.problems and any("gives samples, not means" in text for text in found.remarks)


@pytest.mark.parametrize("steps", [1, 2])
def test_it_improves_itself_without_a_sampler_to_be_sought(generator: Model, steps: int, tmp_path: Path) -> None:
    sampler = replace(generator.sampler, steps=steps, sigma_min=None if steps == 1 else 0.8)
    replace(generator, sampler=sampler).save(tmp_path / "model")
    words = ["--model", tmp_path / "model", "--methods", "base,sims,neon,distilled"]
    job = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *map(str, words), "--data.limit", "300")
    while "--sampler.steps" in job:
        at = job.index("--sampler.steps")
        del job[at : at + 2]
    assert main(job) == 0
    result = read_result(tmp_path / "run", ImproveResult)
    rows = {row.label: row for row in result.rows}
    assert set(rows) == {"base", "sims", "neon", "distilled"} <= {*METHODS}  # no cached variant, and no fast one
    assert [rows[name].nfe for name in ("base", "sims", "neon", "distilled")] == [steps, 2 * steps, steps, steps]
    assert nfe(load(tmp_path / "run" / "distilled"), sampler) == steps
    assert load(tmp_path / "run" / "neon").sampler == sampler
