"""Classifier-free guidance: against an exact mixture, along trajectories, stored, and as a method of the main job."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sims
import tiny
from sims.cli import main
from sims.denoiser import expand
from sims.errors import UserError
from sims.experiments.improve.sampler_search import cached_model
from sims.experiments.options import GuidanceOptions
from sims.gaussians import GaussianMixture
from sims.guidance import CacheRule, ClassifierFree, knows_no_class
from sims.interop.wrapping import wrap
from sims.model import Model, load
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.directory import Run
from sims.sampling import SamplerOptions, nfe, sample

SPREAD = 0.3
MEANS = torch.tensor([[-0.5, 0.2], [0.6, 0.1], [0.0, -0.7]], dtype=torch.float64)
MIXTURE = GaussianMixture(torch.ones(3), MEANS, SPREAD**2 * torch.eye(2).expand(3, 2, 2), [0, 1, 2])


class Exact(nn.Module):
    """What the mixture's classes are, and 3 for all of them."""

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        return MIXTURE(x, sigma, torch.where(y == 3, -1, y))


@pytest.fixture(scope="module")
def model() -> Model:
    schedule = sims.interpolants.edm(told="sigma")
    sampler = SamplerOptions(steps=6)
    return wrap(
        Exact(), data_shape=(2,), prediction="x0", schedule=schedule, num_classes=3, null_class=3, sampler=sampler
    )


def test_it_is_the_formula_at_every_level(model: Model) -> None:
    """Sample by sample, each at its own level and with its own class, also where it has none."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 1, 2, -1] * 8)
    sigma = torch.logspace(-2, 1.5, 32, dtype=torch.float64)
    x = MEANS[labels.clamp(min=0)] + expand(sigma, MEANS) * torch.randn(32, 2, generator=generator, dtype=torch.float64)
    of_class, of_all = MIXTURE(x, sigma, labels), MIXTURE(x, sigma, None)
    guided = ClassifierFree(model.denoiser, w=1.5)
    torch.testing.assert_close(guided(x, sigma, labels), of_class + 1.5 * (of_class - of_all))
    torch.testing.assert_close(guided(x, sigma, labels)[labels < 0], of_all[labels < 0])
    some = ClassifierFree(model.denoiser, w=1.5, interval=(0.1, 1.0))(x, sigma, labels)
    inside = (sigma > 0.1) & (sigma <= 1.0)
    torch.testing.assert_close(some[inside], guided(x, sigma, labels)[inside])
    torch.testing.assert_close(some[~inside], of_class[~inside])
    assert torch.equal(guided.with_strength(0)(x, sigma, labels), model(x, sigma, labels))


def test_a_trajectory_is_the_same_and_costs_two_evaluations(model: Model) -> None:
    options = SamplerOptions(steps=6)
    guided = ClassifierFree(model.denoiser, w=0.7)
    labels = torch.tensor([0, 1, 2, 2, -1])
    x, _ = sims.sample_seeds(guided, range(5), options, labels)
    by_hand = sims.as_denoiser(
        lambda x, sigma, labels: MIXTURE(x, sigma, labels) + 0.7 * (MIXTURE(x, sigma, labels) - MIXTURE(x, sigma)),
        (2,), num_classes=3, sigma_min=guided.sigma_min, sigma_max=guided.sigma_max,
    )  # fmt: skip
    torch.testing.assert_close(x, sims.sample_seeds(by_hand, range(5), options, labels)[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(x[3:], sims.sample_seeds(guided, range(3, 5), options, labels[3:])[0])
    assert nfe(guided, options) == 2 * nfe(model, options) == 22
    assert nfe(guided.with_strength(0), options) == 11


@pytest.mark.parametrize("cached", [False, True])
def test_small_batches_take_one_pass_for_both(model: Model, cached: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass over both where that is faster, two where it is not: the same samples, and the same to pay."""
    calls: list[tuple[int, ...]] = []
    forward = Exact.forward

    def counted(self: Exact, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        calls.append((len(x), len(sigma), int((y == 3).sum())))
        return forward(self, x, sigma, y)

    monkeypatch.setattr(Exact, "forward", counted)
    options, labels = SamplerOptions(solver="euler", steps=6), torch.tensor([0, 1, 2, 2])
    guided = ClassifierFree(model.denoiser, w=0.7)
    if cached:
        guided = guided.with_cache(CacheRule.from_pilot(guided, range(64), options, refreshes=3))
        calls.clear()
    few, _ = sims.sample_seeds(guided, range(4), options, labels)
    joined = list(calls)
    assert joined.count((8, 8, 4)) == (3 if cached else 6) and len(joined) == 6
    calls.clear()
    many, _ = sims.sample_seeds(guided, range(8), options, labels.repeat(2))
    assert {size for size, _, _ in calls} == {8} and len(calls) == (9 if cached else 12)
    torch.testing.assert_close(few, many[:4], atol=1e-6, rtol=1e-6)


def test_strength_moves_samples_away_from_the_other_classes(model: Model) -> None:
    labels = torch.zeros(400, dtype=torch.int64)
    others = (MEANS[1] + MEANS[2]) / 2
    far = []
    for w in (0.0, 0.5, 1.0):
        x, _ = sims.sample_seeds(ClassifierFree(model.denoiser, w=w), range(400), SamplerOptions(steps=12), labels)
        far.append(float((x - others).norm(dim=1).mean()))
    assert far[0] < far[1] < far[2], far


def test_its_correction_is_cached(model: Model) -> None:
    options = SamplerOptions(steps=12)
    guided = ClassifierFree(model.denoiser, w=0.7)
    rule = CacheRule.from_pilot(guided, range(64), options, refreshes=8)
    cached = guided.with_cache(rule)
    assert nfe(model, options) < nfe(cached, options) <= nfe(model, options) + 8
    labels = torch.arange(60) % 3
    full, near, base = (sims.sample_seeds(one, range(60), options, labels)[0] for one in (guided, cached, model))
    assert (near - full).norm() < 0.2 * (base - full).norm()


@pytest.mark.parametrize("allowed", [1.1, 1.25, 1.5])
def test_a_correction_of_two_passes_is_cached_at_the_cost_that_is_allowed(
    model: Model, allowed: float, tmp_path: Path
) -> None:
    """Guided away from a guided auxiliary, a correction takes two evaluations, as its base does."""
    base = ClassifierFree(model.denoiser, w=0.7)
    guided = model.with_denoiser(sims.Extrapolate(base, ClassifierFree(model.denoiser, w=0.2), 0.5))
    guided = dataclasses.replace(guided, sampler=SamplerOptions(steps=18))
    run = Run(tmp_path / "run", {}, quiet=True)
    cached = cached_model(run, guided, GuidanceOptions(cache_cost=allowed, pilot=8), 0)
    most = allowed * nfe(base, guided.sampler)
    assert cached is not None and most - 2 < nfe(cached, guided.sampler) <= most


def test_it_needs_a_network_that_knows_no_class(model: Model) -> None:
    other = wrap(nn.Linear(2, 2), data_shape=(2,), prediction="x0", schedule="edm", num_classes=3,
                 call=lambda net, x, t, y: net(x))  # fmt: skip
    guided = model.guided(model, 1.0).denoiser
    assert knows_no_class(model.denoiser) and knows_no_class(guided) and not knows_no_class(other.denoiser)
    for bad in (other.denoiser, MIXTURE):
        with pytest.raises(UserError, match="label_dropout, or with a null_class"):
            ClassifierFree(bad, 1.0)
    guided = ClassifierFree(model.denoiser, w=1.0)
    with pytest.raises(UserError, match="give labels"):
        sample(guided, torch.zeros(2, 2), torch.tensor([1.0, 0.0]))
    with pytest.raises(UserError, match="finite"):
        dataclasses.replace(guided, w=math.nan)


CODE = """
import torch
import sims


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(11, 64)
        self.mix = torch.nn.Linear(64, 64)

    def forward(self, x, t, y):
        return (self.mix(x.flatten(1)) + self.table(y)).reshape(x.shape)


def make():
    torch.manual_seed(0)
    return sims.wrap(Net(), data_shape=(1, 8, 8), prediction="x0", schedule="cosine", num_classes=10, null_class=10,
                     sampler=sims.SamplerOptions(steps=4))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cfg")
    (folder / "mine.py").write_text(CODE)
    words = ["--model", f"{folder / 'mine.py'}:make", "--methods", "base,sims,cfg", "--data.limit", "200"]
    assert main(tiny.improve_arguments(folder / "run", *tiny.PCA, *words, "--guidance.cache-cost", "0")) == 0
    return folder / "run"


def test_the_main_job_searches_and_judges_it(run: Path) -> None:
    result = read_result(run, ImproveResult)
    row, base = result.row("cfg"), result.row("base")
    assert (
        row is not None and base is not None and row.nfe == 2 * base.nfe and row.budget is None and row.cost.images == 0
    )
    assert result.search is not None and result.search.chosen["cfg"].w == row.w > 0
    tried = [cell for cell in result.search.cells if cell.method == "cfg"]
    assert row.cost.evaluations == result.search.chosen["cfg"].evaluations > 0
    assert {cell.budget for cell in tried} == {0} and len({cell.w for cell in tried}) >= 3
    assert "Classifier-free guidance" in (run / "report.html").read_text()


def test_it_is_left_out_and_named_without_a_class_for_none(tmp_path: Path, say: tiny.Say) -> None:
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, "--methods", "base,cfg,sims", "--dry-run")
    status, out, _ = say(*words)
    assert status == 0 and "cfg" not in out
    words = tiny.improve_arguments(tmp_path / "run", *tiny.PCA, "--methods", "base,cfg", "--base.images", "256")
    assert main(words) == 0
    assert "cfg is left out: it needs a base with classes" in (tmp_path / "run" / "log").read_text()


def test_it_is_stored_by_its_kind(run: Path, tmp_path: Path) -> None:
    base = load(run / "improved" / "base") if (run / "improved" / "base").is_dir() else load(run / "improved")
    guided = base.with_denoiser(ClassifierFree(base.denoiser, w=0.5, interval=(0.0, 2.0)))
    guided.save(tmp_path / "model")
    entry = json.loads((tmp_path / "model" / "model.json").read_text())
    assert entry["kind"] == "classifier-free" and [*entry["children"]] == ["base"]
    again = load(tmp_path / "model")
    assert again.hash == guided.hash != base.hash
    assert torch.equal(again.sample(range(3)), guided.sample(range(3)))
    with pytest.raises(UserError, match="does not describe a model"):
        (tmp_path / "model" / "model.json").write_text(json.dumps({**entry, "w": "much"}))
        load(tmp_path / "model")
