"""Direct discriminative optimization: its loss by hand, its way on a Gaussian, and as a method of the main job."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

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
from sims.methods import METHODS
from sims.methods.ddo import DDO
from sims.model import Model, load
from sims.preconditioning import EDMPrecond
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import SamplerOptions, nfe
from sims.training.discrimination import DirectLoss, RealAndOwn
from sims.training.loss import denoising_loss
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

SPREAD, DATA_SIGMA = 0.4, 0.5
REAL = torch.tensor([0.3, -0.2])


class Shift(nn.Module):
    """A raw network that makes ``EDMPrecond`` the exact denoiser of a Gaussian around a mean that can be learned."""

    def __init__(self, mean: Tensor) -> None:
        super().__init__()
        self.mean = nn.Parameter(mean.clone())
        self.config: dict[str, object] = {}

    def forward(self, x: Tensor, c_noise: Tensor, labels: Tensor | None = None) -> Tensor:
        sigma = (4 * c_noise).exp()
        total = sigma**2 + DATA_SIGMA**2
        x = x * expand(total.sqrt(), x)
        share = expand(SPREAD**2 / (SPREAD**2 + sigma**2), x)
        denoised = self.mean + share * (x - self.mean)
        skipped = expand(DATA_SIGMA**2 / total, x) * x
        return (denoised - skipped) / expand(sigma * DATA_SIGMA * total.rsqrt(), x)


def shifted(mean: Tensor) -> EDMPrecond:
    return EDMPrecond(Shift(mean), (2,), sigma_data=DATA_SIGMA)


def gaussian(mean: Tensor, count: int, seed: int) -> Dataset:
    mixture = GaussianMixture([1.0], mean[None], SPREAD**2 * torch.eye(2)[None])
    x = mixture.sample(count, torch.Generator().manual_seed(seed)).float().numpy()
    return Dataset(x, None, Codec("identity", -2.0, 2.0, "float32"), name="points")


def test_the_gradient_is_that_of_the_formula() -> None:
    """Written out for a shift of the mean: D = m (1 - s) + s x, so that delta is a parabola in m."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(8, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    sigma = torch.logspace(-1, 0.5, 8, dtype=torch.float64)
    labels = torch.tensor([[-1, 1], [-1, 0]] * 4)
    frozen_mean, mean = torch.zeros(2, dtype=torch.float64), torch.tensor([0.1, -0.3], dtype=torch.float64)
    frozen, network = shifted(frozen_mean).double(), shifted(mean).double()
    alpha, beta = 3.0, 0.2
    loss = DirectLoss(alpha, beta)(network, clean, labels, noise, sigma, frozen)
    (found,) = torch.autograd.grad(loss, [network.network.mean])  # type: ignore[list-item]

    share = (SPREAD**2 / (SPREAD**2 + sigma**2))[:, None]
    weight = ((sigma**2 + DATA_SIGMA**2) / (sigma * DATA_SIGMA) ** 2)[:, None]
    noisy = clean + sigma[:, None] * noise
    error, before = ((1 - share) * m + share * noisy - clean for m in (mean, frozen_mean))
    delta = (weight * (before**2 - error**2)).sum(1) / 2**0.5
    slope = -2 * weight * error * (1 - share) / 2**0.5  # of delta in the mean, (B, 2)
    sign = torch.where(labels[:, 1] > 0, -torch.sigmoid(-beta * delta), alpha * torch.sigmoid(beta * delta))
    torch.testing.assert_close(found, (beta * sign[:, None] * slope).mean(0))
    value = torch.where(
        labels[:, 1] > 0, -torch.sigmoid(beta * delta).log(), -alpha * torch.sigmoid(-beta * delta).log()
    )
    torch.testing.assert_close(loss, value.mean())


def test_at_its_start_it_learns_the_data_and_unlearns_own_samples() -> None:
    """There delta is 0: half of the slope of the denoising loss on data, less alpha times that on own samples."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(6, 2, generator=generator) for _ in range(2))
    sigma, labels = torch.linspace(0.2, 2, 6), torch.tensor([[-1, 1]] * 3 + [[-1, 0]] * 3)
    frozen, network = shifted(REAL), shifted(REAL)
    loss = DirectLoss(2.0, 0.5)(network, clean, labels, noise, sigma, frozen)
    assert float(loss.detach()) == pytest.approx((1 + 2.0) / 2 * math.log(2), rel=1e-6)
    (found,) = torch.autograd.grad(loss, [network.network.mean])  # type: ignore[list-item]
    slopes = []
    for half in (slice(0, 3), slice(3, 6)):
        plain = 2 * denoising_loss(network, clean[half], None, noise[half], sigma[half])  # mean of 2 values -> sum
        slopes += torch.autograd.grad(plain, [network.network.mean])  # type: ignore[list-item]
    torch.testing.assert_close(found, 0.5 / 2 * (slopes[0] - 2.0 * slopes[1]) / 2 / 2**0.5)


def test_it_moves_a_shifted_gaussian_to_the_data(tmp_path: Path) -> None:
    """Own samples are of a mean that is off; the data say where it should be."""
    off = torch.tensor([-0.2, 0.3])
    real, own = gaussian(REAL, 2000, 0), gaussian(off, 2000, 1)
    base = Model(shifted(off), real.codec, SamplerOptions(steps=6))
    options = TrainOptions(batch=128, lr=0.01, warmup=0, ema_rampup=0.2, checkpoint_seconds=1e9)
    how = {"images": 25_600, "seed": 0, "teacher": base.denoiser, "accelerator": None}
    trainer = Trainer(base, RealAndOwn(real, own), options, tmp_path, objective=DirectLoss(1.0, 0.7), **how)  # type: ignore[arg-type]
    mean = trainer.averaged().network.mean.detach()  # type: ignore[union-attr]
    assert float((mean - REAL).norm()) < 0.2 * float((off - REAL).norm()), mean
    assert torch.equal(base.denoiser.network.mean, off)  # type: ignore[attr-defined]


def test_both_kinds_are_seen_alike_and_told_apart(digits: Dataset) -> None:
    few, many = digits.subset(range(30)), digits.subset(range(100, 170)).without_labels()
    both = RealAndOwn(few, many)
    clean, labels = both.batch(range(len(both)))
    assert labels is not None and len(both) == 140 and labels[:, 1].tolist() == [1] * 70 + [0] * 70
    assert torch.equal(clean[:30], few.all()[0]) and torch.equal(clean[60:70], few.all()[0][:10])
    assert torch.equal(clean[70:], many.all()[0])
    assert (
        few.labels is not None and labels[:30, 0].tolist() == few.labels.tolist() and bool((labels[70:, 0] == -1).all())
    )
    mixed, told = both.batch([139, 0, 70])
    assert torch.equal(mixed, clean[[139, 0, 70]]) and told is not None and torch.equal(told, labels[[139, 0, 70]])


# ---- as a method


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = tmp_path_factory.mktemp("ddo") / "run"
    assert main(words(run)) == 0
    yield run


def words(run: Path, *more: str) -> list[str]:
    chosen = ["--methods", "base,sims,ddo", "--guidance.cache-cost", "0"]
    return tiny.improve_arguments(run, *tiny.PCA, *chosen, *more)


def test_the_job_runs_it(run: Path) -> None:
    result = read_result(run, ImproveResult)
    row, base = result.row("ddo"), result.row("base")
    assert row is not None and base is not None and row.nfe == base.nfe and row.w == 1.0 and row.diverged == 0
    assert row.cost.images == 5120 and row.cost.evaluations == 200 * base.nfe + 5120
    assert len(list((run / "artefacts").glob("synthetic-*"))) == 1  # both methods learn from the same samples
    assert "prepare ddo" in {stage.name for stage in result.reproduction.stages}
    assert DDO.look.title in (run / "report.html").read_text()
    assert result.looks["ddo"] == DDO.look


def test_it_is_saved_as_one_network(run: Path) -> None:
    model, base = load(run / "ddo"), load(next((run / "base" / "snapshots").glob("*12800")))
    assert isinstance(model.denoiser, EDMPrecond) and model.hash != base.hash
    assert nfe(model, model.sampler) == nfe(base, base.sampler)  # type: ignore[arg-type]
    x = model.sample(range(4))
    assert torch.equal(load(model.save(run.parent / "again")).sample(range(4)), x)
    torch.testing.assert_close(model.sample(range(2, 4)), x[2:], rtol=1e-4, atol=1e-4)


def test_the_dry_run_names_it_and_counts_what_it_does(
    tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    status, out, _ = say(*words(tmp_path / "run", "--dry-run"))
    assert status == 0 and not (tmp_path / "run").exists()
    lines = {line[:30].strip() for line in out.splitlines()}
    assert {"prepare ddo", "evaluate ddo"} <= lines and "search ddo" not in lines


def test_without_real_data_it_says_so() -> None:
    assert DDO.lacks(real=False, snapshots=True, judged=True, base=None) == "it needs the real training data"
    with pytest.raises(UserError, match="method 'ddo' needs the real training data"):
        DDO.prepare(None, None, None, None)  # type: ignore[arg-type]
    assert METHODS["ddo"] is DDO and not DDO.default and not DDO.feeds_loops
