"""The recipes of published results: they say what they should, can be planned, and run when they are shrunk."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from sims import config
from sims.cli import main, parse
from sims.config import RECIPES, from_dict, load_recipe, override, to_dict, to_toml
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments import estimate as planning
from sims.experiments import probe as probing
from sims.experiments.bounds import cheapest_bound, search_bound
from sims.experiments.improve import improve
from sims.experiments.options import ImproveOptions
from sims.experiments.search import Search, SearchOptions
from sims.experiments.stages import Setting, fewest
from sims.gaussians import GaussianMixture
from sims.sampling import SOLVERS, SamplerOptions, nfe
from sims.training.loop import TrainOptions

PUBLISHED = ("cifar10-edm", "ffhq64-edm", "imagenet64-edm2-s", "imagenet512-edm2-s")
IMAGES = ("cifar10-20min", *PUBLISHED)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(probing, "SECONDS", 0.5)
    yield


def shrunk(name: str) -> dict[str, Any]:
    """The options of a recipe, about 10,000 times less of everything: widths, images, samples, steps; PCA features."""
    options = to_dict(from_dict(ImproveOptions, load_recipe(name)))

    def few(images: int) -> int:
        return max(32, images // 10_000_000)

    channels = options["data"]["shape"][0]
    options["data"] |= {"shape": [channels, 8, 8]}
    if options["data"]["conditional"]:
        options["data"]["classes"] = 3
    levels = len(options["network"]["channel_mult"])
    options["network"] |= {"width": 32, "channel_mult": [1] * min(levels, 2), "blocks": 1, "attention": [4]}
    for part in ("base", "auxiliary", "distilled"):
        train = options[part]["train"]
        train |= {"batch": 16, "warmup": train["warmup"] // 100_000, "ema_halflife": 50, "precision": "fp32"}
        train["decay_batches"] = train["decay_batches"] and 2
    options["base"]["images"] = few(options["base"]["images"])
    options["auxiliary"] |= {"samples": 16, "budgets": [32, 64][: len(options["auxiliary"]["budgets"])]}
    options["distilled"] |= {"samples": 16, "images": 32}
    options["search"] |= {"rungs": [16, 20][: len(options["search"]["rungs"])], "limit": 60, "max_w": 2.0}
    options["sampler"]["steps"] = 3
    options["evaluation"] |= {"extractor": "pca", "samples": 20, "draws": 2, "manifold_samples": 10, "check": False}
    return {**options, "batch_size": 20}


def written(options: dict[str, Any], folder: Path) -> Path:
    """The recipe as a file, and data of its shape where it looks for them."""
    shape, classes = options["data"]["shape"], options["data"]["classes"] or 0
    rng = np.random.default_rng(0)
    name = "images" if shape[0] == 3 else "latents"
    raw = rng.integers(0, 256, (60, *shape)).astype(np.uint8) if shape[0] == 3 else rng.normal(0, 0.5, (60, *shape))
    labels = {"labels": np.arange(60) % classes} if classes else {}
    np.savez(folder / "data.npz", **{name: raw if shape[0] == 3 else raw.astype(np.float32)}, **labels)
    options["data"]["path"] = str(folder / "data.npz")
    file = folder / "recipe.toml"
    file.write_text(to_toml(options))
    return file


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
    known = planning.Known(options.data.shape or (), options.data.classes or 0, 1, "stated")
    denoiser = planning._network(options, known, "meta")
    sampling = [planning.nfe(d, options.sampler) for d in (denoiser, planning._guided(options, denoiser))]
    batch, lr, millions, dropout, augment, mean, std, channels, base, guided, parameters = TABLE[name]
    assert (train.batch, train.lr, options.base.images) == (batch, lr, round(millions * 1e6))
    assert (network.dropout, train.augment, train.p_mean, train.p_std) == (dropout, augment, mean, std)
    assert (network.width, network.channel_mult) == channels and sampling == [base, guided]
    assert train.warmup == 10_000_000 and network.sigma_data == 0.5
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
    assert "PUBLISHED" in head and "OURS" in head and "Cannot be expressed yet" in head
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
def test_a_shrunk_recipe_is_planned_and_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    recipe, run = written(shrunk(name), tmp_path), tmp_path / "run"
    before = files(tmp_path)
    values = {**load_recipe(str(recipe)), "run": str(run), "dry_run": True}
    planned = improve(override(ImproveOptions(), values))
    out, err = capsys.readouterr()
    assert not err and files(tmp_path) == before
    assert "read from" in out and "total" in out and "dry run: nothing was run or written" in out

    assert main(["improve", "--recipe", str(recipe), "--run", str(run)]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert {row["label"] for row in summary["rows"]} >= set(load_recipe(name)["methods"])
    work = {entry["stage"]: entry for entry in planned["work"]}
    nfe = {row["label"]: row["nfe"] for row in summary["rows"]}
    assert (planned["nfe"], planned["guided_nfe"]) == (nfe["base"], nfe["sims"])
    assert work["synthesize"]["evaluations"] == summary["costs"]["synthesized"] * planned["nfe"]
    searched = summary["search"]["samples_by_method"]
    for method, samples in searched.items():
        cost = planned["guided_nfe"] if method in planning.GUIDED else planned["nfe"]
        assert samples * cost <= work[f"search {method}"]["evaluations"]
    if "distilled" in work:
        assert work["distil"]["images"] == summary["costs"]["distillation_images"]
    assert planned["parameters"] == sum(p.numel() for p in tiny_parameters(run))
    disk = sum(file.stat().st_size for file in run.rglob("*") if file.suffix == ".safetensors")
    estimated = sum(count for _, count in planned["disk"])
    assert 0.4 * estimated < disk < 1.3 * estimated + 1e6


def tiny_parameters(run: Path) -> list[torch.nn.Parameter]:
    from sims.model import load as load_model

    folder = next(iter(sorted((run / "base" / "snapshots").iterdir())))
    return list(load_model(folder).denoiser.parameters())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_data_the_stated_shape_counts(name: str, tmp_path: Path, say: tiny.Say, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    options = shrunk(name)
    (tmp_path / "recipe.toml").write_text(to_toml(options))
    status, out, err = say("improve", "--recipe", "recipe.toml", "--dry-run")
    assert (status, err) == (0, "") and "stated; no data at" in out
    assert ("3 classes" in out) == options["data"]["conditional"]
    assert files(tmp_path) == {"recipe.toml"}


def test_without_data_and_shape_one_sentence_says_what_to_give(tmp_path: Path, say: tiny.Say) -> None:
    words = ["improve", "--data.path", str(tmp_path / "none.npz"), "--run", str(tmp_path / "run"), "--dry-run"]
    status, _, err = say(*words)
    assert status == 2 and "--data.shape" in err and len(err.splitlines()) == 1
    status, _, err = say(*words, "--data.shape", "3,8,8", "--data.conditional")
    assert status == 2 and "--data.classes" in err and len(err.splitlines()) == 1
    status, out, _ = say(*words, "--data.shape", "3,8,8", "--data.conditional", "--data.classes", "7")
    assert status == 0 and "3x8x8, 7 classes" in out and not files(tmp_path)


def test_a_dry_run_in_a_finished_run_changes_nothing(finished: Path, say: tiny.Say) -> None:
    before = {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    status, out, _ = say(*tiny.improve_arguments(finished, *tiny.PCA, "--dry-run"))
    assert status == 0 and "train the placebo" in out
    assert before == {file: file.stat().st_mtime_ns for file in finished.rglob("*")}
    assert "dry_run" not in json.loads((finished / "config.json").read_text())


def test_a_given_model_is_planned_without_a_base(model: Path, say: tiny.Say) -> None:
    status, out, _ = say("improve", "--model", model, "--data.path", "none", "--dry-run")
    assert status == 0 and "of the model" in out and "train the auxiliary" in out
    assert not re.search("train the base|placebo|autoguidance|search|evaluate", out)


def test_data_of_another_shape_than_the_recipe_states(tmp_path: Path, say: tiny.Say) -> None:
    status, _, err = say("improve", "--data.path", "digits", "--data.shape", "3,32,32", "--run", tmp_path / "run")
    assert status == 2 and "[3, 32, 32]" in err and "[1, 8, 8]" in err


@pytest.mark.parametrize("shape", ["3", "3,0,8", "1,2,3,4"])
def test_shapes_that_are_none(shape: str, say: tiny.Say) -> None:
    status, _, err = say("improve", "--data.shape", shape, "--dry-run")
    assert status == 2 and "data.shape" in err


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budgets", [1, 2, 5])
@pytest.mark.parametrize("options", [{}, {"w": 1.0}, {"limit": 500}, {"rungs": (50,)}, {"max_w": 1.0}])
def test_no_search_exceeds_its_bound(budgets: int, options: dict[str, Any]) -> None:
    settings = SearchOptions(**{"rungs": (20, 50, 100), "limit": 1_500, **options})
    bound = search_bound(settings, budgets, (0.5, 1.0, 2.0))
    for slope in (-1.0, 1.0, 0.0):
        for seed in range(5):
            rng = np.random.default_rng(seed)

            def features(budget: int, w: float, first: int, last: int, rng: Any = rng) -> np.ndarray:
                return np.full((last - first, 1), slope * w + rng.normal())  # noqa: B023

            search = Search(features, lambda x: float(x.mean()), range(budgets), (0.5, 1.0, 2.0), settings)
            assert 0 < search.run().samples <= bound


def test_the_cheapest_sampler_has_a_bound() -> None:
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    bound = cheapest_bound(exact, SamplerOptions())
    for share in (0.0, 0.02, 0.05, 0.2, 1.0):  # chance that a setting keeps too little
        spent = 0
        rng = np.random.default_rng(0)

        def retained(setting: Setting) -> float:
            nonlocal spent
            own = nfe(exact, SamplerOptions(setting.solver, setting.steps))
            if own > 35:
                return math.nan
            spent += own + setting.refreshes
            return float(rng.random() >= share)  # noqa: B023

        for _ in range(20):
            spent = 0
            for solver in SOLVERS:
                fewest(retained, solver, 18)
            assert 0 < spent <= bound
    assert bound < 1200


def test_what_a_step_keeps_for_its_backward_pass_grows_with_the_batch() -> None:
    data = load("digits", limit=20).without_labels()
    denoiser = tiny.model(data, width=64).denoiser
    cost = probing.probe(denoiser, TrainOptions(precision="fp32"), 64, 32, CPU)
    step = probing._Step(denoiser, TrainOptions(precision="fp32"), CPU)
    denoiser.train().requires_grad_(True)  # type: ignore[attr-defined]
    assert step.kept(10)[0] == pytest.approx(cost.activations_fixed + 10 * cost.activations, rel=0.05)
    assert min(cost.train, cost.update, cost.evaluation) > 0
    assert cost.train_batch <= 64 and cost.evaluation_batch <= 32


def test_the_recipes_are_listed_on_their_page() -> None:
    page = (Path(__file__).parent.parent / "docs" / "recipes.md").read_text()
    assert all(f"`{path.stem}`" in page for path in config.RECIPES.glob("*.toml"))
