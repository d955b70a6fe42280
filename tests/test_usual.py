"""The network that follows from the data and the machine: one table, every row of which makes a network."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from sims.cli import main, parse
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.base_model import base_work
from sims.experiments.cost import rates
from sims.experiments.improve.search import SearchOptions
from sims.experiments.job_sizes import said, sized_base, sized_for_data
from sims.experiments.options import BaseOptions, ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.guidance import knows_no_class
from sims.methods import AuxiliarySettings, DistilledOptions
from sims.model import load, make_network
from sims.networks import usual as table
from sims.networks.options import NetworkOptions
from sims.networks.usual import LATENTS, MLP, PIXELS, TINY, Machine, attended, usual
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.runs.work import Training
from sims.sampling import SamplerOptions
from sims.scoring.options import EvaluationOptions
from sims.training import base
from sims.training.base import new_model
from sims.training.options import TrainOptions

MACHINES: tuple[Machine, ...] = ("cpu", "small GPU", "large GPU")


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("side", [14, 16, 28, 30, 32, 50, 64, 100, 128, 256])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_row_makes_a_network(machine: Machine, side: int, channels: int) -> None:
    row = usual((channels, side, side), machine=machine)
    sizes = {name: getattr(row, name) for name in ("type", "width", "blocks", "channel_mult")}
    sizes["attention"] = attended((channels, side, side), row.channel_mult, row.attention)
    network, precond = NetworkOptions(**sizes).tables(0.5)
    with torch.device("meta"):
        denoiser = make_network((channels, side, side), 10, network, precond)
    attending = [name for name, _ in denoiser.named_modules() if name.endswith(("qkv", "attn_qkv"))]
    assert row in PIXELS and row.source and row.images >= 200_000 and max(sizes["attention"]) <= max(row.attention)
    assert attending, "no level of it attends"


@pytest.mark.parametrize("machine", MACHINES)
def test_latents_have_networks_of_their_own(machine: Machine) -> None:
    row = usual((4, 32, 32), latent=True, machine=machine)
    assert row in LATENTS
    network, precond = NetworkOptions(type=row.type, width=row.width, blocks=row.blocks,  # type: ignore[arg-type]
                                      channel_mult=row.channel_mult, attention=row.attention).tables(0.5)  # fmt: skip
    with torch.device("meta"):
        make_network((4, 32, 32), 0, network, precond)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_default_makes_an_mlp_of_pictures(machine: Machine) -> None:
    for side in (TINY + 1, 14, 16, 20, 28, 33, 100, 1024, 9000):
        assert usual((3, side, 8), machine=machine).type != "mlp" != usual((1, 8, side), machine=machine).type
    for shape in ((2,), (1, 8, 8), (3, TINY, TINY), (1, 4, TINY)):
        assert usual(shape, machine=machine) == MLP


def test_what_is_given_stays() -> None:
    settled = NetworkOptions(width=64, attention=(4,)).settled((3, 32, 32))
    assert (settled.width, settled.attention) == (64, (4,)) and settled.type == usual((3, 32, 32)).type != "mlp"
    assert settled.settled((3, 32, 32)) == settled and f"width {settled.width}" in settled.said()
    mlp = NetworkOptions(type="mlp").settled((3, 32, 32))  # whoever asks for one gets one
    assert (mlp.type, mlp.width, mlp.blocks) == ("mlp", 256, 3)
    assert NetworkOptions(type="edm2", blocks=1).settled((3, 64, 64)).channel_mult == usual((3, 64, 64)).channel_mult
    dit = NetworkOptions(type="dit").settled((1, 8, 8))
    assert (dit.type, dit.patch) == ("dit", 2) and "patches of 2" in dit.said()
    unet = NetworkOptions(patch=4, channel_mult=(1, 2)).settled((3, 32, 32))
    assert unet.patch == 4 and unet.attention == (8,) and unet.tables(0.5)[0]["patch_size"] == 4
    assert NetworkOptions(channel_mult=(1, 2)).settled((3, 32, 32)).patch == 1
    assert BaseOptions(images=7).length((3, 64, 64)) == 7
    assert BaseOptions().length((1, 8, 8)) == 1_280_000 != BaseOptions().length((3, 64, 64))


def test_budgets_follow_from_the_length_of_the_bases_training() -> None:
    digits = ImproveOptions().settled((1, 8, 8))
    assert digits.auxiliary.budgets == (64_000, 128_000, 256_000, 512_000) and digits.distilled.images == 128_000
    short = ImproveOptions(base=BaseOptions(images=1_000)).settled((3, 64, 64))
    assert short.auxiliary.budgets == (50, 100, 200, 400) and short.distilled.images == 100
    tiny_ = ImproveOptions(base=BaseOptions(images=3)).settled((1, 8, 8))
    assert tiny_.auxiliary.budgets == (1,) and tiny_.distilled.images == 1
    foreign = ImproveOptions(model=Path("model")).settled((3, 256, 256))
    assert foreign.auxiliary.budgets == digits.auxiliary.budgets and foreign.distilled.images == 128_000
    own = ImproveOptions(auxiliary=AuxiliarySettings(budgets=(7,)), distilled=DistilledOptions(images=9))
    assert own.settled((3, 64, 64)) == own
    with pytest.raises(UserError, match=r"auxiliary.budgets is \[0\]"):
        AuxiliarySettings(budgets=(0,))


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 14, 14), (3, 32, 32), (3, 48, 64), (3, 100, 90), (1, 256, 256)])
@pytest.mark.parametrize("latent", [False, True])
def test_sizes_follow_from_the_data_and_the_machine(
    machine: Machine, shape: tuple[int, ...], latent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row makes options that can be run, all of them said, and what is given stays."""
    monkeypatch.setattr(table, "this_machine", lambda: machine)
    row, plain = usual(shape, latent), ImproveOptions()
    sized = sized_for_data(plain, shape, latent, 50_000)
    assert sized.network == plain.network.settled(shape, latent) and sized.base.images == row.images
    train, budgets = sized.base.train, sized.auxiliary.budgets
    assert (train.batch, train.lr) == (row.sizes.batch, row.sizes.lr)
    assert train.warmup == (25_600 if row.sizes.batch == 256 else 100 * row.sizes.batch)
    assert (train.decay == "sqrt") == (row.sizes.decay_batches is not None)
    assert sized.auxiliary.train.batch == sized.distilled.train.batch == train.batch
    assert sized.auxiliary.train.ema_rampup == 0.5 and sized.auxiliary.train.lr is None
    assert sized.settled(shape, latent).auxiliary.budgets == tuple(round(row.images * s) for s in row.sizes.budgets)
    assert not budgets or max(budgets) <= row.images / 2
    assert (sized.sampler.solver, sized.sampler.steps) == (row.sizes.solver, row.sizes.steps)
    assert sized.distilled.images == round(row.images * row.sizes.distilled)
    assert f"batch {train.batch}" in said(sized.settled(shape, latent))
    assert sized_for_data(sized, shape, latent, 50_000) == sized
    few = sized_for_data(plain, shape, latent, 200)
    assert few.base.images == min(row.images, 200_000)
    chosen = replace(
        plain, batch_size=7, base=BaseOptions(images=9, train=TrainOptions(batch=3, lr=0.5, warmup=11)),
        auxiliary=AuxiliarySettings(samples=5, budgets=(4,)), sampler=SamplerOptions(steps=5),
        search=SearchOptions(rungs=(2,), limit=3), evaluation=EvaluationOptions(samples=6, draws=2),
    )  # fmt: skip
    kept = sized_for_data(chosen, shape, latent, 50_000)
    for name in ("batch_size", "base", "sampler", "search", "evaluation"):
        assert getattr(kept, name) == getattr(chosen, name), name
    assert (kept.auxiliary.samples, kept.auxiliary.budgets) == (5, (4,))
    words = "--batch-size 500 --sampler.steps 18 --base.train.batch 256 --search.rungs 400,1000,2500"
    same = parse("improve", ["--data.path", "mine", *words.split()])
    told = sized_for_data(same, shape, latent, 50_000)  # a default that is given is given
    assert (told.batch_size, told.sampler, told.base.train.batch) == (500, SamplerOptions(), 256)
    assert told.search.rungs == (400, 1_000, 2_500) and told.search.limit == row.sizes.limit
    given = ImproveOptions(model=Path("model"))
    assert sized_for_data(given, shape, latent, 50_000) is given


def test_a_job_on_a_cpu_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer samples as pictures grow; the digits have what they had."""
    monkeypatch.setattr(table, "this_machine", lambda: "cpu")
    shorter = ImproveOptions(base=BaseOptions(images=9, train=TrainOptions(batch=128)))
    assert sized_for_data(shorter, (1, 8, 8)).base == shorter.base
    digits = sized_for_data(ImproveOptions(), (1, 8, 8), False, 1_437)
    others = {"network": NetworkOptions(), "base": BaseOptions(), "distilled": DistilledOptions()}
    assert replace(digits, **others) == replace(ImproveOptions().settled((1, 8, 8)), **others)
    assert (digits.base.images, digits.distilled.images) == (1_280_000, 128_000)
    jobs = [sized_for_data(ImproveOptions(), (3, side, side), False, 5_000) for side in (28, 64, 128)]
    for of in (lambda job: job.auxiliary.samples, lambda job: job.evaluation.samples, lambda job: job.batch_size):
        assert sorted({of(job) for job in jobs}, reverse=True) == [of(job) for job in jobs]
    assert [job.evaluation.samples * job.evaluation.draws for job in jobs] == [10_000, 3_000, 1_500]


def test_a_run_keeps_the_sizes_it_began_with(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: tiny.Say
) -> None:
    """On whatever machine it goes on; the report shows them all."""
    sizes = "--network.width 8 --network.channel-mult 1,1 --network.blocks 1 --network.attention 0 --data.limit 60"
    sizes += " --data.source.size 16"
    words = f"{sizes} --base.images 64 --auxiliary.samples 16 --auxiliary.budgets 32 --batch-size 16 --search.rungs 8"
    words += " --evaluation.samples 16 --evaluation.draws 2 --evaluation.manifold-samples 10 --methods base"
    given = ["improve", "--run", tmp_path / "run", "--data.path", photos, *tiny.PCA, *words.split()]
    status, _, err = say(*given)
    assert status == 0, err
    kept = json.loads((tmp_path / "run" / "sizes.json").read_text())
    assert kept["base"]["train"]["batch"] == 128 and kept["sampler"]["solver"] == "unipc" and "batch_size" not in kept
    assert "sizes: batch 128" in err and "round 1: nothing beside the base was asked for" in err
    monkeypatch.setattr(table, "this_machine", lambda: "large GPU")
    (tmp_path / "run" / "summary.json").unlink()
    status, _, err = say(*given)
    assert status == 0 and "sizes: batch 128" in err
    result = read_result(tmp_path / "run", ImproveResult)
    assert 'solver = "unipc"' in result.reproduction.config_toml and "width = 8" in result.reproduction.config_toml


def test_the_digits_have_what_they_had(plain: Dataset) -> None:
    made = new_model(plain, NetworkOptions(), SamplerOptions(), 0)
    asked = NetworkOptions(type="mlp", width=256, blocks=3, embedding=64)
    assert made.hash == new_model(plain, asked, SamplerOptions(), 0).hash


def test_a_network_that_memory_cannot_hold_is_refused_before_it_is_made(
    plain: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        UserError, match=r"million parameters takes .* GB to (train|hold), and .* GB of memory are free"
    ):
        new_model(plain, NetworkOptions(type="mlp", width=400_000), SamplerOptions(), 0)
    count = sum(weight.numel() for weight in tiny.model(plain).denoiser.parameters())  # type: ignore[attr-defined]
    monkeypatch.setattr(base, "free_memory", lambda: 4 * count - 1)
    with pytest.raises(UserError, match=r"give a smaller option 'network\.width'"):
        new_model(plain, tiny.NETWORK, SamplerOptions(), 0)
    monkeypatch.setattr(base, "free_memory", lambda: base.TRAINED * count)
    assert new_model(plain, tiny.NETWORK, SamplerOptions(), 0).data_shape == plain.data_shape


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "SECONDS", 0.3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 pictures of 64 × 64: coloured ellipses."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    y, x = np.mgrid[:64, :64]
    for number in range(300):
        middle, axes = rng.uniform(16, 48, 2), rng.uniform(6, 20, 2)
        inside = ((y - middle[0]) / axes[0]) ** 2 + ((x - middle[1]) / axes[1]) ** 2 < 1
        picture = np.where(inside[..., None], rng.integers(100, 255, 3), rng.integers(0, 90, 3)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{number:03d}.png")
    return folder


def test_photographs_are_planned_with_a_unet(photos: Path, tmp_path: Path, say: tiny.Say) -> None:
    words = ["--run", tmp_path / "run", "--data.path", photos, "--dry-run"]
    status, out, err = say("improve", *words)
    assert status == 0, err
    row = usual((3, 64, 64))
    assert f"network   {row.type}, width {row.width}" in out and "mlp" not in out
    assert row.length(270) == 270_000 and "270,000" in out and "unipc, 16 steps" in out
    assert "sizes     batch 128, learning rate 0.001, warm-up 12,800 images; 5,000 own samples" in out
    assert "total" in out and not (tmp_path / "run").exists()


def test_photographs_run_end_to_end(photos: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sizes = "--network.width 8 --network.channel-mult 1,1,1,1 --network.blocks 1 --data.limit 60"
    short = "--base.images 64 --base.train.batch 16 --auxiliary.samples 16 --auxiliary.budgets 32,64 --batch-size 16"
    judged = "--auxiliary.train.batch 16 --search.rungs 8,16 --evaluation.samples 16 --evaluation.draws 2"
    more = "--evaluation.manifold-samples 10 --methods base,sims --guidance.cache-cost 0 --sampler.steps 1"
    words = f"{sizes} {short} {judged} {more}".split()
    assert main(["improve", "--run", str(run), "--data.path", str(photos), *tiny.PCA, *words]) == 0
    log = (run / "log").read_text()
    assert "network: ddpmpp, width 8" in log and "trained on 64 images" in log
    model = load(run / "improved")
    assert model.data_shape == (3, 64, 64) and model.images(range(2)).shape == (2, 3, 64, 64)


def test_a_plan_of_more_than_a_day_says_what_takes_less(photos: Path, tmp_path: Path, say: tiny.Say) -> None:
    words = ["--run", tmp_path / "run", "--data.path", photos, "--dry-run", "--base.images", "2000000000"]
    status, out, _ = say("improve", *words)
    assert (
        status == 0
        and "days of it for 'train the base': a smaller --base.images" in out
        and "--data.source.size" in out
    )
    status, out, _ = say(*tiny.improve_arguments(tmp_path / "run", *tiny.PCA, "--dry-run"))
    assert status == 0 and "more than a day" not in out


@pytest.mark.parametrize("kind", ["mlp", "ddpmpp", "adm", "edm2", "dit"])
def test_labels_are_dropped_so_that_no_class_is_known(kind: str, digits: Dataset) -> None:
    """In training, and never while sampling; class -1 is what then counts as none."""
    options = NetworkOptions(type=kind, width=64, blocks=1, channel_mult=(1,), attention=(8,), label_dropout=0.5)  # type: ignore[arg-type]
    torch.manual_seed(0)
    model = new_model(digits, options, SamplerOptions(), 0)
    network: Any = model.denoiser.network  # type: ignore[attr-defined]
    assert knows_no_class(model.denoiser) and not knows_no_class(
        new_model(digits, replace(options, label_dropout=0.0), SamplerOptions(), 0).denoiser
    )
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn(weight.shape), alpha=0.1)
        x, c_noise, labels = torch.randn(1, 1, 8, 8).expand(64, -1, -1, -1), torch.zeros(64), torch.full((64,), 3)
        told, untold = (network.eval()(x[:1], c_noise[:1], torch.tensor([label])) for label in (3, -1))
        assert torch.allclose(network(x, c_noise, labels), told.expand(64, -1, -1, -1), atol=1e-4)
        seen = network.train()(x, c_noise, labels)
    like = torch.stack([(seen - one).flatten(1).norm(dim=1) for one in (told, untold)])
    assert float(like.min(dim=0).values.max()) < 1e-2 < float((told - untold).norm())
    assert 15 < int((like[1] < like[0]).sum()) < 49
    with pytest.raises(UserError, match="label_dropout"):
        NetworkOptions(label_dropout=1.0)


def test_every_experiment_trains_its_base_as_is_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "this_machine", lambda: "cpu")
    for options in (ShiftOptions(), ImproveOptions()):
        sized = sized_base(options, (3, 32, 32), False, 500)
        train = sized.base.train
        assert (train.batch, train.warmup, sized.base.images) == (128, 12_800, 500_000)
        assert base_work(sized, (3, 32, 32)).training == Training("base", train)
        given = replace(options, base=BaseOptions(train=TrainOptions(batch=256)))
        train = sized_base(given, (3, 32, 32), False, 500).base.train
        assert (train.batch, train.warmup) == (256, 25_600)
