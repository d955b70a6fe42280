"""Scores, by command and by function, and the other functions that the package offers."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sims
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.metrics.comparison import ScoreRow, require_comparable
from sims.metrics.frechet import Moments, frechet_distance
from sims.model import load
from sims.sampling import SamplerOptions
from sims.verbs.evaluate import load_judge
from tiny import Say

JUDGED = shlex.split("--evaluation.extractor pca --evaluation.samples 60 --evaluation.draws 2 --data.limit 300")


@pytest.fixture(scope="module")
def scored(home: Path, model: Path) -> dict[str, Any]:
    """What `sims evaluate --json` says of the model."""
    return sims.evaluate(
        model,
        data={"limit": 300},
        evaluation={"extractor": "pca", "samples": 60, "draws": 2},
        cache=home / "cache",
        quiet=True,
    )


# -- evaluate ----------------------------------------------------------------------------------------------------------


def test_the_rows_describe_themselves(scored: dict[str, Any], model: Path) -> None:
    rows = [ScoreRow.from_json(row) for row in scored["rows"]]
    metrics = scored["metrics"]
    assert set(metrics) == {
        "fd_train", "fd_test", "kid_test", "precision", "recall", "memorized", "nearest_ratio"
    }  # fmt: skip
    assert len(rows) == 2 * len(metrics)
    assert {(row["draw"], *row["seeds"]) for row in scored["rows"]} == {(0, 0, 60), (1, 60, 120)}
    assert {row["model"] for row in scored["rows"]} == {load(model).hash}
    require_comparable([row for row in rows if row.metric == "fd_test"], ignore=["seeds"])
    for metric, found in metrics.items():
        values = [row.value for row in rows if row.metric == metric]
        assert found["mean"] == pytest.approx(np.mean(values)) and found["low"] <= found["mean"] <= found["high"]


def test_the_command_prints_the_same_json_from_the_cache(
    scored: dict[str, Any], home: Path, model: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = (home / "cache").iterdir()
    monkeypatch.setattr("sims.verbs.evaluate.extract", None)  # nothing is to be measured again but samples
    monkeypatch.setattr("sims.verbs.evaluate.PCAExtractor.fit", None)
    monkeypatch.setattr("sims.verbs.evaluate.Judge.features", lambda self, x: _features(self, x))
    status, out, _ = say("evaluate", model, *JUDGED, "--cache", home / "cache", "--json")
    assert status == 0
    assert {**json.loads(out), "samples": ""} == {**json.loads(json.dumps(scored)), "samples": ""}
    assert list((home / "cache").iterdir()) == [folder]


def _features(judge: Any, x: torch.Tensor) -> np.ndarray:
    return judge.extractor(x).numpy()


def test_another_extractor_or_other_data_get_their_own_references(home: Path, store: Path, say: Say) -> None:
    before = len(list((home / "cache").iterdir())) if (home / "cache").exists() else 0
    for words in (["--data.limit", "200"], ["--data.limit", "200", "--evaluation.extractor-seed", "1"]):
        status, _, _ = say("evaluate", store, "--evaluation.extractor", "pca", *words, "--cache", home / "cache")
        assert status == 0
    assert len(list((home / "cache").iterdir())) == before + 2


def test_the_floor_is_real_against_real(scored: dict[str, Any], home: Path) -> None:
    train, test = load_pair("digits", limit=300)
    flat = [data.all()[0].flatten(1).double().numpy() for data in (train, test)]
    expected = frechet_distance(*[Moments.of(part) for part in flat])  # 64 components of 64 pixels: a rotation
    assert scored["floor"]["fd_train"] == pytest.approx(expected, rel=1e-2)
    assert scored["floor"]["fd_test"] == pytest.approx(scored["floor"]["fd_train"])
    assert scored["floor"]["nearest_ratio"] == pytest.approx(1)
    assert scored["floor"]["precision"] > scored["metrics"]["precision"]["mean"]
    assert scored["reference"]["train"]["count"] == 300 and scored["reference"]["test"]["count"] == 360


def test_a_store_scores_as_the_draw_with_its_seeds(scored: dict[str, Any], store: Path, home: Path, say: Say) -> None:
    status, out, _ = say("evaluate", store, *JUDGED, "--cache", home / "cache", "--json")
    found = json.loads(out)
    assert status == 0 and found["draws"] == 1 and found["samples_per_draw"] == 60
    for row in scored["rows"]:
        if row["draw"] == 0:
            assert found["metrics"][row["metric"]]["mean"] == pytest.approx(row["value"], rel=1e-2, abs=1e-2)
    assert all(value["low"] is None and value["high"] is None for value in found["metrics"].values())
    assert {tuple(row["seeds"]) for row in found["rows"]} == {(0, 60)}


def test_the_order_of_samples_does_not_matter(home: Path) -> None:
    data = load_pair("digits")[0]
    assert data.labels is not None
    orders = np.argsort(data.labels, kind="stable"), np.arange(len(data))
    how = {"extractor": "pca", "samples": 60, "manifold_samples": 100}
    results = [
        sims.evaluate(data.subset(order), data={"limit": 300}, evaluation=how, cache=home / "cache", quiet=True)
        for order in orders
    ]
    by_class, mixed = (found["metrics"]["recall"]["mean"] for found in results)
    assert by_class > 0.8 * mixed > 0.3
    assert {row["num_samples"] for row in results[0]["rows"] if row["metric"] == "recall"} == {100}


def test_the_table(home: Path, store: Path, model: Path, say: Say) -> None:
    _, one, _ = say("evaluate", store, *JUDGED, "--cache", home / "cache")
    assert "± –" in one and "one draw of 60 samples, so there are no intervals" in one
    assert "real against real" in one and "300 training images and 360 held-out" in one and "pca" in one
    _, two, _ = say("evaluate", model, *JUDGED, "--cache", home / "cache")
    assert "± –" not in two and "2 draws of 60 samples" in two and "FD to held-out data" in two


def test_real_data_score_better_than_samples(scored: dict[str, Any], home: Path, say: Say) -> None:
    _, out, _ = say("evaluate", "digits", *JUDGED, "--cache", home / "cache", "--json")
    real = json.loads(out)["metrics"]
    assert real["fd_test"]["mean"] < 0.5 * scored["metrics"]["fd_test"]["mean"]
    assert 300 / 1797 <= real["memorized"]["mean"] < 0.2, "the 300 training digits are among the 1797"


def test_the_pictures_of_sample_can_be_scored(home: Path, model: Path, tmp_path: Path, say: Say) -> None:
    assert say("sample", model, "--seeds", "0-59", "--out", tmp_path / "p")[0] == 0
    status, out, err = say("evaluate", tmp_path / "p", *JUDGED, "--cache", home / "cache", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["samples_per_draw"] == 60, "the contact sheet is no sample"
    first = sims.evaluate(model, data={"limit": 300}, evaluation={"extractor": "pca", "samples": 60, "draws": 1},
                          cache=home / "cache", quiet=True)  # fmt: skip
    assert found["metrics"]["fd_train"]["mean"] == pytest.approx(first["metrics"]["fd_train"]["mean"], rel=0.02)


def test_references_of_a_run_suffice(scored: dict[str, Any], home: Path, model: Path, say: Say) -> None:
    (folder,) = [path for path in (home / "cache").iterdir() if _counts(path) == 300][:1]
    status, out, _ = say("evaluate", model, *JUDGED, "--reference", folder, "--json")
    found = json.loads(out)
    assert status == 0 and found["metrics"]["fd_test"] == scored["metrics"]["fd_test"]
    assert "memorized" not in found["metrics"], "that needs the images"
    status, _, err = say("evaluate", "toy:moons", "--reference", folder)
    assert status == 2 and "shape (2,)" in err


def _counts(folder: Path) -> int:
    return load_judge(folder, None, None, ImproveOptions().evaluation).train.moments.count


def test_evaluate_refuses(home: Path, store: Path, model: Path, tmp_path: Path, say: Say) -> None:
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 1, 8, 8), np.uint8))
    np.savez(tmp_path / "wide.npz", images=np.zeros((20, 3, 8, 8), np.uint8))
    (tmp_path / "empty").mkdir()
    cases = [
        ([tmp_path / "one.npz"], "has 1 sample(s): at least"),
        ([tmp_path / "wide.npz"], "the samples have shape (3, 8, 8), the reference digits (1, 8, 8)"),
        ([model, "--reference", "toy:moons"], "only images"),
        ([home / "run"], f"is a run directory: give one of its models: {model}"),
        ([tmp_path / "nothing"], "no data at"),
        ([tmp_path / "empty"], "holds no pictures"),
        ([store, "--reference", tmp_path / "nothing"], "no data at"),
        ([model, "--batch-size", "0"], "batch_size is 0"),
    ]
    for words, said in cases:
        status, out, err = say("evaluate", *words, "--cache", tmp_path / "cache")
        assert status == 2 and said in err and out == "", (words, err)


# -- as functions ------------------------------------------------------------------------------------------------------


def test_the_package_offers_what_it_lists() -> None:
    for name in sims.__all__:
        assert getattr(sims, name) is not None and name in dir(sims)
    with pytest.raises(AttributeError, match="improvee"):
        sims.improvee  # type: ignore[attr-defined]  # noqa: B018


def test_train_as_a_function_is_the_command(home: Path) -> None:
    made = sims.train(
        home / "run",
        {"limit": 300, "conditional": True},
        network={"width": 32, "blocks": 1, "embedding": 16},
        base={"images": 12800, "train": {"batch": 128}},
        sampler=sims.SamplerOptions(steps=5),
        quiet=True,
    )
    assert made.hash == sims.load(home / "run" / "model").hash
    assert made.sample(seeds=range(4)).shape == (4, 1, 8, 8)


def test_synthesize_and_evaluate_take_what_is_in_memory(home: Path, model: Path, store: Path) -> None:
    data = sims.synthesize(sims.load(model), store, 60, batch_size=30, quiet=True)
    assert data.fingerprint == sims.load_data(store).fingerprint
    how: dict[str, Any] = {"evaluation": {"extractor": "pca"}, "data": {"limit": 300}, "cache": home / "cache"}
    found = sims.evaluate(data, quiet=True, **how)
    assert found["metrics"] == sims.evaluate(store, quiet=True, **how)["metrics"]


def test_improve_takes_tables_as_a_recipe_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[ImproveOptions] = []
    monkeypatch.setattr("sims.api.run_improve", lambda options, quiet: given.append(options) or {"quiet": quiet})
    (tmp_path / "mine.toml").write_text("seed = 3\nrounds = 3\n")
    summary = sims.improve(
        recipe=str(tmp_path / "mine.toml"),
        run="runs/mine",
        data=tmp_path,
        rounds=2,
        methods=["base", "sims", "distilled"],
        sampler=SamplerOptions(steps=9),
        search={"rungs": [10, 20]},
        quiet=True,
    )
    options = given[0]
    assert summary == {"quiet": True}
    assert (options.run, options.data.path, options.rounds, options.seed) == (Path("runs/mine"), str(tmp_path), 2, 3)
    assert options.methods == ("base", "sims", "distilled") and options.search.rungs == (10, 20)
    assert options.sampler == SamplerOptions(steps=9)
    sims.improve(options)
    assert given[1] == options
    for wrong in ({"round": 2}, {"sampler": {"step": 3}}, {"data": {"pth": "x"}}):
        with pytest.raises(UserError, match="did you mean"):
            sims.improve(**wrong)
    assert len(given) == 2
