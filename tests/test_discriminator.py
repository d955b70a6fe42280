"""Discriminator guidance: exact between Gaussians, learned close to it, stored, and a method of the main job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tiny
from sims.cli import main
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.denoiser import expand
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.gaussians import GaussianMixture
from sims.guidance import CacheRule, CorrectionGuide
from sims.guidance.density_ratio import DensityRatio
from sims.methods import METHODS
from sims.methods.discriminator import DISCRIMINATOR, new_discriminator
from sims.model import Model, load
from sims.preconditioning import EDMPrecond, RatioPrecond
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import SamplerOptions, nfe
from sims.training.discrimination import RealAndOwn, discriminator_loss
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

DATA_SIGMA = 0.5
REAL, OWN = (
    GaussianMixture([1.0], torch.tensor([mean]), spread**2 * torch.eye(2)[None])
    for mean, spread in (([0.3, -0.2], 0.4), ([-0.1, 0.1], 0.6))
)


def log_density(mixture: GaussianMixture, x: Tensor, sigma: Tensor) -> Tensor:
    """Of one isotropic Gaussian with noise added: (B,)."""
    variance = mixture.covariances[0, 0, 0] + sigma.double() ** 2
    return -((x - mixture.means[0]) ** 2).sum(1) / (2 * variance) - variance.log()


def best_logit(x: Tensor, sigma: Tensor) -> Tensor:
    """Of the discriminator that nothing can better, (B,)."""
    return log_density(REAL, x, sigma) - log_density(OWN, x, sigma)


class Best(nn.Module):
    """A raw network that makes the best discriminator of ``RatioPrecond``: its logit, undone what is done to it."""

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise).exp()
        c_in = (sigma**2 + DATA_SIGMA**2).rsqrt()
        logit = best_logit(x / expand(c_in, x), sigma) / (DATA_SIGMA * c_in)
        return expand(logit, x) / (1 + x) / 2**0.5


def points(seed: int = 0, count: int = 64) -> tuple[Tensor, Tensor]:
    """Noisy points, each at a level of its own, float64."""
    generator = torch.Generator().manual_seed(seed)
    sigma = torch.logspace(-2, 1.5, count, dtype=torch.float64)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return REAL.sample(count, generator) + expand(sigma, noise) * noise, sigma


BEST = RatioPrecond(Best(), (2,), sigma_data=DATA_SIGMA)


def test_the_best_discriminator_makes_the_base_the_data() -> None:
    x, sigma = points()
    torch.testing.assert_close(BEST(x, sigma, logit=True), best_logit(x, sigma))
    torch.testing.assert_close(DensityRatio(OWN, BEST, 1.0)(x, sigma), REAL(x, sigma))
    half = DensityRatio(OWN, BEST, 0.5)(x, sigma)
    torch.testing.assert_close(half, (REAL(x, sigma) + OWN(x, sigma)) / 2)
    with torch.no_grad():  # as samplers call it
        torch.testing.assert_close(DensityRatio(OWN, BEST, 1.0)(x, sigma), REAL(x, sigma))


def test_what_it_costs() -> None:
    sigmas = torch.tensor([3.0, 1.0, 0.3])
    guide = DensityRatio(OWN, BEST, 1.0)
    assert guide.evaluations(sigmas) == 3 + 2 * 3 == DISCRIMINATOR.networks * 3
    assert guide.with_strength(0.0).evaluations(sigmas) == 3
    assert guide.limited((0.5, 2.0)).evaluations(sigmas) == 3 + 2


def data(mixture: GaussianMixture, count: int, seed: int) -> Dataset:
    x = mixture.sample(count, torch.Generator().manual_seed(seed)).float().numpy()
    return Dataset(x, None, Codec("identity", -2.0, 2.0, "float32"), name="points")


def test_a_trained_one_comes_close_to_the_best(tmp_path: Path) -> None:
    """Its slopes, which guide, have most of what the best one's have at the levels that it was trained at."""
    real, own = data(REAL, 4000, 0), data(OWN, 4000, 1)
    base = Model(OWN, real.codec)
    start = new_discriminator(base, real, 0)
    options = TrainOptions(batch=256, ema_rampup=0.5, checkpoint_seconds=1e9)
    trained = Trainer(
        start, RealAndOwn(real, own), options, tmp_path / "trained", images=51_200, seed=0, objective=discriminator_loss
    ).run(log=lambda text: None)
    x, sigma = points(5, 2048)
    usual = (sigma > 0.1) & (sigma < 3)
    x, sigma = x[usual].float(), sigma[usual].float()
    learned = load(trained.last).denoiser
    logit = learned(x, sigma, logit=True) - best_logit(x, sigma)
    assert float(logit.square().mean()) < 0.1 * float(best_logit(x, sigma).square().mean())
    errors = {w: (DensityRatio(OWN, learned, w)(x, sigma) - REAL(x, sigma)).square().mean() for w in (0.0, 1.0)}
    assert float(errors[1.0]) < 0.15 * float(errors[0.0]), errors


# ---- with networks


@pytest.fixture(scope="module", params=["classes", "plain", "convolutional"])
def guided(request: pytest.FixtureRequest, digits: Dataset) -> Model:
    """A base and a discriminator whose weights do something."""
    plain = digits.without_labels()
    real = {"classes": digits, "plain": plain}.get(request.param)
    if real is None:
        real = Dataset(np.repeat(np.repeat(plain.raw[:20], 2, 2), 2, 3), None, plain.codec, name="larger")
    base = tiny.model(real)
    ratio = new_discriminator(base, real, 1)
    assert type(ratio.denoiser.network).__name__ == ("SongUNet" if request.param == "convolutional" else "MLP")  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(0)
    for network in (*base.networks, *ratio.networks):
        network.eval()
        for weight in network.parameters():
            weight.requires_grad_(False).add_(0.05 * torch.randn(weight.shape, generator=generator))
    return base.with_denoiser(DensityRatio(base.denoiser, ratio.denoiser, 0.7))


def test_zero_is_the_base_and_a_sample_depends_on_its_seed_alone(guided: Model) -> None:
    rule = guided.denoiser
    assert isinstance(rule, DensityRatio) and isinstance(rule.base, EDMPrecond)
    base, off = guided.with_denoiser(rule.base), guided.with_denoiser(rule.with_strength(0.0))
    x = guided.sample(range(6))
    assert torch.equal(off.sample(range(6)), base.sample(range(6))) and not torch.equal(x, base.sample(range(6)))
    torch.testing.assert_close(guided.sample(range(3, 6)), x[3:], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(guided.sample(range(6), batch_size=1), x, rtol=1e-4, atol=1e-4)
    assert nfe(guided, guided.sampler) == 3 * nfe(base, guided.sampler)  # type: ignore[arg-type]


def test_it_is_saved_loaded_and_cached(guided: Model, tmp_path: Path, say: tiny.Say) -> None:
    guided.save(tmp_path / "model")
    again = load(tmp_path / "model")
    assert again.hash == guided.hash and torch.equal(again.sample(range(4)), guided.sample(range(4)))
    assert (tmp_path / "model" / "ratio" / "model.safetensors").is_file()
    entry = json.loads((tmp_path / "model" / "ratio" / "model.json").read_text())
    assert entry["preconditioning"]["type"] == "ratio" and entry["network"]["type"] in ("mlp", "song_unet")
    rule, options = guided.denoiser, SamplerOptions(steps=7)
    assert isinstance(rule, CorrectionGuide)
    cached = guided.with_denoiser(rule.with_cache(CacheRule.from_pilot(rule, range(16), options, refreshes=3)))
    assert nfe(cached, options) == nfe(rule.base, options) + 2 * 3  # type: ignore[arg-type]
    assert torch.isfinite(cached.sample(range(4), sampler=options)).all()
    status, out, _ = say("inspect", tmp_path / "model")
    assert status == 0 and "density ratio: D = D_base + w sigma^2" in out


# ---- as a method


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rates, "SECONDS", 0.1)
        run = tmp_path_factory.mktemp("discriminator") / "run"
        assert main(words(run)) == 0
        yield run


def words(run: Path, *more: str) -> list[str]:
    return tiny.improve_arguments(run, *tiny.PCA, "--methods", "base,discriminator", *more)


def test_the_job_runs_it(run: Path, say: tiny.Say) -> None:
    result = read_result(run, ImproveResult)
    row, base = result.row("discriminator"), result.row("base")
    assert row is not None and base is not None and row.nfe == 3 * base.nfe and row.diverged == 0
    assert result.search is not None and result.search.chosen["discriminator"].w == row.w
    assert row.budget in (2560, 5120) and row.cost.images == 5120
    searched = result.search.chosen["discriminator"].samples * 3 * base.nfe
    assert row.cost.evaluations == 200 * base.nfe + searched
    stages = {stage.name for stage in result.reproduction.stages}
    assert {"prepare discriminator", "search discriminator"} <= stages
    assert DISCRIMINATOR.look.title in (run / "report.html").read_text()
    files = tiny.snapshot(run / "artefacts")
    assert say(*words(run))[0] == 0 and tiny.snapshot(run / "artefacts") == files  # nothing is trained again


def test_the_dry_run_and_the_help_name_it(tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    status, out, _ = say(*words(tmp_path / "run", "--dry-run"))
    assert status == 0 and not (tmp_path / "run").exists()
    lines = {line[:30].strip() for line in out.splitlines()}
    assert {"prepare discriminator", "search discriminator", "evaluate discriminator"} <= lines
    assert "own samples" in out and not DISCRIMINATOR.default
    assert METHODS["discriminator"] is DISCRIMINATOR and not DISCRIMINATOR.feeds_loops


def test_without_real_data_it_says_so(run: Path) -> None:
    assert DISCRIMINATOR.lacks(real=False, snapshots=True, judged=True, base=None) == "it needs the real training data"
    with pytest.raises(UserError, match="method 'discriminator' needs the real training data"):
        DISCRIMINATOR.prepare(None, None, None, None)  # type: ignore[arg-type]


def test_interrupted_training_leaves_the_same_discriminator(tmp_path: Path) -> None:
    real, own = data(REAL, 60, 0), data(OWN, 90, 1)
    start = new_discriminator(Model(OWN, real.codec), real, 0)
    options = TrainOptions(batch=32, warmup=64, checkpoint_seconds=0.0)
    how = {"images": 320, "seed": 0, "objective": discriminator_loss}
    whole = Trainer(start, RealAndOwn(real, own), options, tmp_path / "a", **how).run(log=lambda text: None)  # type: ignore[arg-type]

    class Stopped(Exception):
        pass

    def stop(count: int) -> None:
        nonlocal seen
        seen += count
        if seen >= 160:
            raise Stopped

    seen = 0
    trainer = Trainer(start, RealAndOwn(real, own), options, tmp_path / "b", **how)  # type: ignore[arg-type]
    with pytest.raises(Stopped):
        trainer.run(stop, log=lambda text: None)
    parts = Trainer(start, RealAndOwn(real, own), options, tmp_path / "b", **how).run(log=lambda text: None)  # type: ignore[arg-type]
    assert load(parts.last).hash == load(whole.last).hash and parts.losses == whole.losses
