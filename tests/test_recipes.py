"""The recipes of published results: they say what they should, can be planned, and run when they are shrunk."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from sims import config
from sims.cli import parse
from sims.config import RECIPES, from_dict, load_recipe, override, to_dict
from sims.data.codec import Codec
from sims.errors import UserError
from sims.experiments.cost import estimate as cost
from sims.experiments.cost import rates
from sims.experiments.cost.described import DataSize
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.job import improve
from sims.experiments.improve.sampler_search import (
    SEARCHED,
    Setting,
    best_within,
    cheapest_bound,
    cheapest_expected,
    cost_of,
    evaluations,
    fewest,
)
from sims.experiments.improve.search import Arm, Search, SearchOptions, search_bound
from sims.experiments.options import ImproveOptions
from sims.guidance import Extrapolate
from sims.methods import METHODS, Continuous
from sims.metrics import weights
from sims.results.common import Row
from sims.results.improve import ImproveResult
from sims.runs.work import Leaves, Sampling, Training, Work, training_work
from sims.sampling import nfe
from sims.training.base import new_model
from sims.training.trainer import TrainOptions
from test_pretrained import ToyInception

PUBLISHED = ("cifar10-edm", "ffhq64-edm", "imagenet64-edm2-s", "imagenet512-edm2-s")
IMAGES = ("cifar10-20min", *PUBLISHED)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(rates, "SECONDS", 0.5)
    yield


#: About 10,000 times less of everything: widths, images, samples, steps.
SHRUNK = shlex.split(
    "--network.width 32 --network.channel-mult 1,1 --network.blocks 1 --network.attention 4 --base.images 40 "
    "--auxiliary.samples 16 --auxiliary.budgets 32,64 --distilled.samples 16 --distilled.images 32 "
    "--search.rungs 16,20 --search.limit 60 --search.max-w 2 --sampler.steps 3 --batch-size 20 "
    "--evaluation.samples 20 --evaluation.manifold-samples 10"
)


def shrunk(name: str) -> list[str]:
    """A recipe and the flags that make it a job of seconds; nothing else of it changes."""
    options = from_dict(ImproveOptions, load_recipe(name))
    words = ["--recipe", name, *SHRUNK, "--data.shape", f"{(options.data.shape or (3,))[0]},8,8"]
    words += ["--data.classes", "3"] if options.data.conditional else []
    for part in ("base", "auxiliary", "distilled"):
        warmup = getattr(options, part).train.warmup // 100_000
        words += [f"--{part}.train.batch", "16", f"--{part}.train.warmup", str(warmup)]
        words += [f"--{part}.train.ema-halflife", "50", f"--{part}.train.precision", "fp32"]
    words += ["--base.train.decay-batches", "2"] if options.base.train.decay_batches else []
    latents = (options.data.shape or (3,))[0] == 4  # no autoencoder here, and so no pictures for inception
    return words + (["--evaluation.extractor", "pca"] if latents else [])


def written(name: str, folder: Path) -> list[str]:
    """Data of the recipe's channels and classes in a file, and the flag that names it."""
    data = from_dict(ImproveOptions, load_recipe(name)).data
    channels, rng = (data.shape or (3,))[0], np.random.default_rng(0)
    labels: dict[str, Any] = {"labels": np.arange(60) % 3} if data.conditional else {}
    if channels == 3:
        np.savez(folder / "data.npz", images=rng.integers(0, 256, (60, 3, 8, 8)).astype(np.uint8), **labels)
    else:
        np.savez(folder / "data.npz", latents=rng.normal(0, 0.5, (60, channels, 8, 8)).astype(np.float32), **labels)
    return ["--data.path", str(folder / "data.npz")]


@pytest.fixture
def inception(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy of eight features in the place of the published Inception network."""
    cache = tmp_path_factory.mktemp("cache")
    torch.manual_seed(0)
    torch.jit.script(ToyInception().eval()).save(str(cache / "inception.pt"))
    data = (cache / "inception.pt").read_bytes()
    file = weights.WeightFile("inception.pt", "", hashlib.sha256(data).hexdigest(), len(data))
    monkeypatch.setitem(weights.WEIGHTS, "inception", (file,))
    monkeypatch.setenv("SIMS_CACHE", str(cache))


def files(folder: Path) -> set[str]:
    return {str(file.relative_to(folder)) for file in folder.rglob("*")}


# -- what they say -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(path.stem for path in RECIPES.glob("*.toml")))
def test_every_recipe_resolves_for_both_commands(name: str) -> None:
    options = parse("improve", ["--recipe", name])
    assert to_dict(options) == to_dict(from_dict(ImproveOptions, load_recipe(name)))
    assert to_dict(parse("train", ["--recipe", name]).base) == to_dict(options.base)
    assert all(len(line) <= 130 for line in (RECIPES / f"{name}.toml").read_text().splitlines())


#: Karras et al. 2022 and 2024, tables of hyperparameters: batch, lr, images (millions), dropout, augmentation,
#: P_mean, P_std, channels, evaluations of base and guided pair, parameters where they are published (millions)
TABLE = {
    "cifar10-edm": (512, 1e-3, 200, 0.13, 0.12, -1.2, 1.2, (128, (2, 2, 2)), 35, 70, 55.7),
    "ffhq64-edm": (256, 2e-4, 200, 0.05, 0.15, -1.2, 1.2, (128, (1, 2, 2, 2)), 79, 158, None),
    "imagenet64-edm2-s": (2048, 1e-2, 1073.7, 0, 0, -0.8, 1.6, (192, (1, 2, 3, 4)), 63, 126, None),
    "imagenet512-edm2-s": (2048, 1e-2, 2147.5, 0, 0, -0.4, 1.0, (192, (1, 2, 3, 4)), 63, 126, None),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values(name: str) -> None:
    options = from_dict(ImproveOptions, load_recipe(name))
    train, network = options.base.train, options.network
    codec = Codec("pixels", 0.0, 255.0, "uint8")
    data = DataSize(options.data.shape or (), options.data.classes or 0, codec, "stated").stand_in()
    with torch.device("meta"):
        denoiser = new_model(data, network, options.sampler, 0, train).denoiser
    sampling = [nfe(d, options.sampler) for d in (denoiser, Extrapolate(denoiser, denoiser, 1.0))]
    batch, lr, millions, dropout, augment, mean, std, channels, base, guided, parameters = TABLE[name]
    assert (train.batch, train.lr, options.base.images) == (batch, lr, round(millions * 1e6))
    assert (network.dropout, train.augment, train.p_mean, train.p_std) == (dropout, augment, mean, std)
    assert (network.width, network.channel_mult) == channels and sampling == [base, guided]
    assert train.warmup == 10_000_000 and network.sigma_data == 0.5
    assert train.beta2 == options.auxiliary.train.beta2 == (0.99 if "edm2" in name else 0.999)
    if parameters:
        assert round(sum(p.numel() for p in denoiser.parameters()) / 1e6, 1) == parameters
    judge = options.evaluation
    assert (judge.draws, judge.samples, judge.extractor) == (3, 50_000, "inception")


def test_the_priors_are_those_of_neon() -> None:
    for name, samples, lr, batch, step, last in (
        ("cifar10-edm", 6_000, 1e-4, 512, 500_000, 6_000_000),
        ("ffhq64-edm", 18_000, 4e-6, 256, 250_000, 3_000_000),
    ):
        auxiliary = from_dict(ImproveOptions, load_recipe(name)).auxiliary
        assert (auxiliary.samples, auxiliary.train.lr, auxiliary.train.batch) == (samples, lr, batch)
        assert auxiliary.budgets == tuple(range(step, last + 1, step))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_figure_stands_beside_it(name: str) -> None:
    text = (RECIPES / f"{name}.toml").read_text()
    figures = {"cifar10-edm": (1.97, 1.33, 1.38), "ffhq64-edm": (2.39, 1.04, 1.12)}
    figures |= {"imagenet64-edm2-s": (1.58, 0.92, 1.01), "imagenet512-edm2-s": (2.56, 1.73, 1.34)}  # type: ignore[dict-item]
    head = text.split("\nrun = ")[0]
    assert "PUBLISHED" in head and "OURS" in head
    assert all(re.search(rf"\b{figure:.2f}\b", head) for figure in figures[name])


# -- the inverse square root -------------------------------------------------------------------------------------------


def test_the_rate_of_edm2() -> None:
    train = from_dict(ImproveOptions, load_recipe("imagenet64-edm2-s")).base.train
    reference = 35_000 * 2048
    assert train.rate(5e6, 1e9) == pytest.approx(0.5e-2) and train.rate(reference, 1e9) == 1e-2
    assert train.rate(4 * reference, 1e9) == pytest.approx(0.5e-2)  # 1 / sqrt(4)
    assert train.rate(1_073_700_000, 1e9) == pytest.approx(2.58e-3, rel=1e-2)
    assert train.rate(4 * reference, 1e9) == train.rate(4 * reference, 2e9)  # whatever the length of the run


@pytest.mark.parametrize("wrong", [{"decay": "sqrt"}, {"decay_batches": 5}, {"decay": "sqrt", "decay_batches": 0}])
def test_the_square_root_needs_its_batches(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="decay_batches"):
        TrainOptions(**wrong)


# -- dry runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IMAGES)
def test_a_shrunk_recipe_is_planned_and_runs(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, inception: None
) -> None:
    run = tmp_path / "run"
    words = [*shrunk(name), *written(name, tmp_path), "--run", str(run)]
    before = files(tmp_path)
    estimate = improve(override(parse("improve", words), {"dry_run": True}))
    assert isinstance(estimate, Estimate) and capsys.readouterr() == ("", "") and files(tmp_path) == before
    text = str(estimate)
    assert "read from" in text and "total" in text and "dry run: nothing was run or written" in text

    result = improve(parse("improve", words), quiet=True)
    assert isinstance(result, ImproveResult) and result.spent and result.search and result.extractor
    rows = {row.label: row for row in result.rows}
    assert {*rows} >= {*load_recipe(name)["methods"]}
    extractor = "pca" if "512" in name else load_recipe(name)["evaluation"].get("extractor", "pca")
    assert result.extractor.name.startswith(extractor)
    _the_protocol_is_kept(run, rows)
    work = {stage.stage: stage for stage in estimate.work}
    assert (estimate.nfe, estimate.guided_nfe) == (rows["base"].nfe, rows["sims"].nfe)
    assert work["prepare auxiliary"].evaluations == result.spent.synthesized * estimate.nfe
    for method, chosen in result.search.chosen.items():
        most = work[f"search {method}"].most
        assert most is not None and chosen.evaluations <= most
        assert chosen.evaluations == chosen.samples * METHODS[method].networks * estimate.nfe
        assert 0 < work[f"search {method}"].evaluations <= most
    if "prepare distilled" in work:
        assert work["prepare distilled"].images == result.spent.distillation_images
    assert {stage.name for stage in result.reproduction.stages} <= {*work}
    assert estimate.parameters == sum(p.numel() for p in tiny_parameters(run))
    disk = sum(file.stat().st_size for file in run.rglob("*") if file.suffix == ".safetensors")
    estimated = sum(estimate.disk.values())
    assert 0.4 * estimated < disk < 1.3 * estimated + 1e6


def _the_protocol_is_kept(run: Path, rows: dict[str, Row]) -> None:
    """Three draws of fresh seeds, each with a row of its own; mean and minimum of the same three figures."""
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for label, row in rows.items():
        found = [e for e in entries if e["label"] == label and e["metric"] == "fd"]
        values, seeds = [e["value"] for e in found], [range(*e["seeds"]) for e in found]
        assert len(values) == 3 and all(e["num_samples"] == len(s) == 20 for e, s in zip(found, seeds))
        assert len({*seeds[0], *seeds[1], *seeds[2]}) == 60
        assert row.figures["fd"].mean == pytest.approx(np.mean(values)) and row.figures["fd"].lowest == min(values)


def tiny_parameters(run: Path) -> list[torch.nn.Parameter]:
    from sims.model import load as load_model

    folder = next(iter(sorted((run / "base" / "snapshots").iterdir())))
    return list(load_model(folder).denoiser.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_data_the_stated_shape_counts(name: str, tmp_path: Path, say: tiny.Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = say("improve", *shrunk(name), "--dry-run")
    assert (status, err) == (0, "") and "stated; no data at" in out
    assert ("3 classes" in out) == from_dict(ImproveOptions, load_recipe(name)).data.conditional
    assert not files(tmp_path)


def test_without_data_and_shape_one_sentence_says_what_to_give(tmp_path: Path, say: tiny.Say) -> None:
    words = ["improve", "--data.path", str(tmp_path / "none.npz"), "--run", str(tmp_path / "run"), "--dry-run"]
    status, _, err = say(*words)
    assert status == 2 and "data.shape" in err and len(err.splitlines()) == 1
    status, _, err = say(*words, "--data.shape", "3,8,8", "--data.conditional")
    assert status == 2 and "data.classes" in err and len(err.splitlines()) == 1
    status, out, _ = say(*words, "--data.shape", "3,8,8", "--data.conditional", "--data.classes", "7")
    assert status == 0 and "3x8x8, 7 classes" in out and not files(tmp_path)


def test_a_dry_run_in_a_finished_run_changes_nothing(finished: Path, say: tiny.Say) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    status, out, _ = say(*tiny.improve_arguments(finished, *tiny.PCA, "--dry-run"))
    assert status == 0 and "prepare continued" in out
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    assert "dry_run" not in json.loads((finished / "config.json").read_text())


def test_a_given_model_is_planned_without_a_base(model: Path, say: tiny.Say) -> None:
    status, out, _ = say("improve", "--model", model, "--data.path", "none", "--dry-run")
    assert status == 0 and "of the model" in out and "prepare auxiliary" in out
    assert not re.search("train the base|placebo|autoguidance|search|evaluate", out)


def test_data_of_another_shape_than_the_recipe_states(tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say("improve", "--data.path", "digits", "--data.shape", "3,32,32", "--run", tmp_path / "run")
    assert status == 2 and "[3, 32, 32]" in err and "[1, 8, 8]" in err


@pytest.mark.parametrize("shape", ["3", "3,0,8", "1,2,3,4"])
def test_shapes_that_are_none(shape: str, say: tiny.Say) -> None:
    status, _, err = say("improve", "--data.shape", shape, "--dry-run")
    assert status == 2 and "data.shape" in err


def test_whatever_a_stage_trains_and_leaves_is_in_the_estimate() -> None:
    toy = Training("toy", TrainOptions(batch=32, precision="fp32"), taught=True)
    options = from_dict(ImproveOptions, {"evaluation": {"extractor": "pca"}, "network": {"width": 32, "blocks": 1}})

    def plan(sampling: Sampling) -> list[Work]:
        drawn = Work("draw", evaluations=10 * sampling.nfe, samples=10, leaves=(Leaves("samples", samples=10),))
        return [drawn, training_work("train a toy", toy, 1000, leaves="toys", snapshots=2, times=3)]

    data = DataSize((1, 8, 8), 0, Codec("pixels", 0.0, 16.0, "uint8"), "stated")
    estimate = cost.estimate(options, data, None, plan, CPU)
    stages = {stage.stage: stage for stage in estimate.work}
    assert [*stages] == ["start", "read the data", "references", "draw", "train a toy", "report"]
    assert (stages["train a toy"].images, stages["train a toy"].steps) == (3000, 96)
    assert estimate.disk == {"samples": 10 * 64, "toys": 3 * 6 * 4 * estimate.parameters}  # 2, the state's 3, average
    assert [*estimate.memory] == ["references", "train a toy", "sample"]
    assert estimate.seconds(stages["train a toy"]) >= 3000 * estimate.rates.training[toy].image > 0
    text = str(estimate)
    assert re.search(r"train a toy +3,000 +- ", text) and re.search(r"toys +[\d.]+ [kM]B", text)


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"w": 1.0}, {"limit": 500}, {"rungs": (50,)}, {"max_w": 1.0}])
def test_no_search_exceeds_its_bound(budgets: int, options: dict[str, Any]) -> None:
    settings = SearchOptions(**{"rungs": (20, 50, 100), "limit": 1_500, **options})
    strengths, arms = Continuous(), [Arm(number) for number in range(budgets)]
    bound = search_bound(settings, budgets, strengths)
    for slope in (-1.0, 1.0, 0.0):
        for seed in range(5):
            rng = np.random.default_rng(seed)

            def features(arm: Arm, w: float, first: int, last: int, rng: Any = rng) -> np.ndarray:
                return np.full((last - first, 1), slope * w + rng.normal())  # noqa: B023

            search = Search(features, lambda x: float(x.mean()), arms, strengths, settings)
            assert 0 < search.run().samples <= bound


@pytest.mark.parametrize("own", [11, 16, 35, 79])
def test_the_cheapest_sampler_has_a_bound(own: int) -> None:
    bound = cheapest_bound(own, own)
    for share in (0.0, 0.02, 0.05, 0.2, 1.0):  # chance that a setting keeps too little
        rng = np.random.default_rng(0)
        for _ in range(20):
            spent = 0

            def retained(setting: Setting) -> float:
                nonlocal spent
                if evaluations(setting) > own:
                    return math.nan
                spent += cost_of(setting)
                return float(rng.random() >= share)  # noqa: B023

            found = [fewest(retained, solver) for solver in SEARCHED]
            if all(setting is None or cost_of(setting) > own for setting in found):
                best_within(retained, cost_of, own)
            assert 0 < spent <= bound
    usual, settings, _ = cheapest_expected(own, own)
    assert 2 <= settings < usual <= bound < 40 * own


def test_the_recipes_are_listed_on_their_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    assert all(f"`{path.stem}`" in page for path in config.RECIPES.glob("*.toml"))
