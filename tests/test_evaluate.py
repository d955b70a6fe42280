"""Evaluation: figures that are right, the same in every way of asking, and never compared with their unlike."""

from __future__ import annotations

import json
import pickle
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

import sims
from scoring import EVERY, QUICK, WRITERS, Rgb, Toy, evaluate, means, write_folder, write_npz
from sims import api
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.data.pictures import encode_png
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.metrics.comparison import require_comparable
from sims.metrics.extractors import PCAExtractor, extract
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.kernel import kernel_distance
from sims.metrics.precision_recall import manifold
from sims.results.scores import ScoreRow
from sims.scoring.options import EvaluationOptions
from sims.scoring.reference import make_references
from sims.training.classifier import train_classifier
from tiny import Say

# -- the figures are those of the features -----------------------------------------------------------------------------


def test_figures_equal_those_computed_from_the_features(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = real
    samples = test.subset(range(200))
    found = evaluate(samples, train, tmp_path, extractor=Toy(), held_out=test)
    x, y, z = (extract(Toy(), data.all()[0]) for data in (samples, train, test))
    expected = {
        "fd": frechet_distance(Moments.of(x), Moments.of(y)),
        "fd_held_out": frechet_distance(Moments.of(x), Moments.of(z)),
        "kid": kernel_distance(x, y).value,
        "kid_held_out": kernel_distance(x, z).value,
        **vars(manifold(y, x)),
    }
    assert means(found) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert {row["num_samples"] for row in found["rows"]} == {200}
    per = {row["metric"]: (row["reference_hash"], row["num_reference"]) for row in found["rows"]}
    assert per["fd"] == per["kid"] == per["recall"] and per["fd"][1] == 1437
    assert per["fd_held_out"] == per["kid_held_out"] != per["fd"] and per["fd_held_out"][1] == 360


@given(order=st.permutations(range(60)))
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_samples_does_not_matter(order: list[int], real: tuple[Dataset, Dataset], cache: Path) -> None:
    samples = real[1].subset(range(60))
    a, b = (means(evaluate(one, real[0], cache, extractor=Toy())) for one in (samples, samples.subset(order)))
    assert a == pytest.approx(b, rel=1e-9, abs=1e-12)


def test_probabilities_in_any_order_give_one_score(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    """Folders are often sorted by class, and a split of one class alone would score 1."""

    class Answers(Toy):
        def probabilities(self, x: Tensor) -> Tensor:
            return (20 * self(x)[:, :3]).softmax(dim=1)

    samples = real[1].subset(range(300))
    by_answer = np.argsort(Answers().probabilities(samples.all()[0]).argmax(dim=1).numpy())
    scores = [
        evaluate(one, real[0], tmp_path, extractor=Answers(), metrics=["inception_score"])["metrics"]["inception_score"]
        for one in (samples, samples.subset(by_answer))
    ]
    assert scores[1]["mean"] == pytest.approx(scores[0]["mean"], rel=0.1) and scores[1]["mean"] > 1.5
    assert scores[0]["interval"] == "splits" and scores[0]["splits"] == 10


# -- samples and references in every form ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WRITERS)
def test_samples_in_any_form_score_alike(kind: str, real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path) -> None:
    samples = real[1].subset(range(100))
    path = WRITERS[kind](tmp_path / kind, samples.raw)
    found = evaluate(path, real[0], cache, held_out=real[1])
    expected = evaluate(samples, real[0], cache, held_out=real[1])
    assert found["metrics"] == expected["metrics"] and found["floor"] == expected["floor"]
    seeds = {tuple(row["seeds"]) for row in found["rows"]}
    assert seeds == ({(0, 100)} if kind in ("folder", "store") else {(0, 0)})
    assert {row["format"] for row in found["rows"]} == {
        {"folder": "png", "a.zip": "png", "a.parquet": "png"}.get(kind, "memory")
    }
    assert {row["samples"] for row in found["rows"]} == {str(path)}


@pytest.mark.parametrize("kind", WRITERS)
def test_references_in_any_form_score_alike(
    kind: str, real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path
) -> None:
    train, test = (data.subset(range(300)) for data in real)
    path = WRITERS[kind](tmp_path / kind, train.raw)
    found = evaluate(test, path, cache, extractor=Toy())
    assert means(found) == pytest.approx(means(evaluate(test, train, cache, extractor=Toy())), rel=1e-9)
    assert found["reference"]["train"]["count"] == 300


def test_the_samples_of_a_model_score_alike_however_they_are_kept(
    model: Path, store: Path, cache: Path, tmp_path: Path, say: Say
) -> None:
    assert say("sample", model, "--seeds", "0-59", "--out", tmp_path / "p")[0] == 0
    (tmp_path / "p" / ".hidden").touch()
    how: dict[str, Any] = {"extractor": Toy(), "samples": 60}
    drawn = evaluate(model, "digits", cache, draws=1, **how)
    assert drawn["draws"] == 1 and drawn["samples_per_draw"] == 60
    for given_, rel in ((store, 1e-4), (tmp_path / "p", 0.02), (sims.load(model), 1e-12)):
        found = evaluate(given_, "digits", cache, draws=1, **how)
        assert found["samples_per_draw"] == 60, "the contact sheet is no sample"
        assert means(found)["fd"] == pytest.approx(means(drawn)["fd"], rel=rel), given_
        assert {tuple(row["seeds"]) for row in found["rows"]} == {(0, 60)}


def test_draws_of_a_model_and_of_its_store_are_the_same(model: Path, store: Path, cache: Path) -> None:
    a, b = (evaluate(one, "digits", cache, extractor=Toy(), draws=2, samples=30) for one in (model, store))
    assert means(a) == pytest.approx(means(b), rel=1e-3, abs=1e-3)
    assert [row["seeds"] for row in b["rows"] if row["metric"] == "fd"] == [[0, 30], [30, 60]]
    with pytest.raises(UserError, match="3 draws of 30 need 90 samples, and store has 60: lower option 'draws' or"):
        evaluate(store, "digits", cache, extractor=Toy(), draws=3, samples=30)


def test_the_batches_that_a_model_is_sampled_in_are_its_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, sizes = sims.Model.sample_labelled, []

    def watched(self: Any, part: Sequence[int], **how: Any) -> Any:
        sizes.append(len(part))
        return sample(self, part, **how)

    monkeypatch.setattr(sims.Model, "sample_labelled", watched)
    for size in (7, 64):
        how: dict[str, Any] = {"draws": 1, "samples": 60, "sample_batch": 40}
        assert evaluate(model, "digits", tmp_path, extractor=Toy(), batch_size=size, **how)["samples_per_draw"] == 60
    assert sizes == [40, 20], "and the second time they are in the cache"


def test_statistics_stand_for_the_images(real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path, say: Say) -> None:
    train, test = (write_npz(tmp_path / f"{name}.npz", data.raw) for name, data in zip(("train", "test"), real))
    words = ["--metrics", ",".join(QUICK), "--cache", cache, "--json", "--held-out", test]
    status, out, err = say("evaluate", test, "--reference", train, "--statistics", tmp_path / "r.safetensors", *words)
    assert status == 0, err
    assert (tmp_path / "r.extractor.safetensors").is_file(), "statistics need the extractor that was fitted"
    shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
    words[3] = tmp_path / "elsewhere"
    status, again, err = say("evaluate", test, "--reference", tmp_path / "r.safetensors", *words)
    assert status == 0, err
    direct, kept = json.loads(out), json.loads(again)
    assert kept["metrics"] == direct["metrics"] and kept["floor"] == direct["floor"]
    pairs = zip(direct["rows"], kept["rows"])
    for rows in pairs:
        require_comparable([ScoreRow.from_json(row) for row in rows])
    scored = evaluate(tmp_path / "r.safetensors", train, cache)  # as samples: the moments suffice for fd
    assert scored["metrics"]["fd"]["mean"] == 0.0 and scored["samples_per_draw"] == 1437


def test_statistics_of_points_need_no_extractor(cache: Path, tmp_path: Path) -> None:
    how: dict[str, Any] = {"metrics": ["fd", "points"], "neighbours": 200}
    data = sims.load_data("toy:grid25", limit=400)
    options = {**how, "limit": 300}
    keep = tmp_path / "r.safetensors"
    api.compare(["toy:moons"], data, options=options, cache=cache, statistics=keep, quiet=True)
    direct, kept = (evaluate("toy:moons", one, cache, **options) for one in (data, keep))
    assert kept["metrics"] == direct["metrics"] and "modes_hit" in kept["metrics"]


def test_the_references_of_a_run_suffice(real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path, say: Say) -> None:
    train, test = real
    make_references(tmp_path / "run" / "references", train, test, EvaluationOptions(extractor="pca"))
    direct = evaluate(test.subset(range(100)), train, cache, held_out=test, metrics=EVERY)
    for given_ in (tmp_path / "run" / "references", tmp_path / "run"):
        found = evaluate(test.subset(range(100)), given_, cache, metrics=EVERY)
        assert means(found) == pytest.approx(means(direct), rel=1e-5, abs=1e-7) and "copied" in means(found)
        assert found["extractor"] == direct["extractor"] and found["reference"]["train"]["count"] == 1437
        assert found["floor_of"] == "100 held-out images against the reference"
    status, _, err = say("evaluate", "toy:moons", "--reference", tmp_path / "run", "--cache", cache)
    assert status == 2 and "toy:moons has samples of shape (2,), and the extractor pca is made for (1, 8, 8)" in err
    status, _, err = say("evaluate", "digits", "--reference", tmp_path / "run", "--extractor", "pca", "--cache", cache)
    assert status == 2 and "was measured with its own extractor: leave --extractor at auto" in err


class Named(Toy):
    """A stand-in for a network that others measured with."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name)


@pytest.fixture
def foreign(real: tuple[Dataset, Dataset], tmp_path: Path) -> dict[str, Path]:
    """Statistics as EDM (npz) and EDM2 (pkl) keep them, of the training digits."""
    moments = Moments.of(extract(Toy(), real[0].all()[0]))
    entry = {"mu": moments.mean, "sigma": moments.covariance}
    np.savez(tmp_path / "edm.npz", **entry)
    content = {"num_images": 1437, "fid": entry, "fd_dinov2": {"mu": entry["mu"] + 1, "sigma": entry["sigma"]}}
    (tmp_path / "edm2.pkl").write_bytes(pickle.dumps(content))
    return {"npz": tmp_path / "edm.npz", "pkl": tmp_path / "edm2.pkl"}


@pytest.mark.parametrize(("kind", "name", "count"), [("npz", "inception", 0), ("pkl", "inception", 1437)])
def test_statistics_of_others(
    kind: str, name: str, count: int, foreign: dict[str, Path], real: tuple[Dataset, Dataset], cache: Path
) -> None:
    found = evaluate(real[1], foreign[kind], cache, extractor=Named(name), metrics=EVERY)
    direct = evaluate(real[1], real[0], cache, extractor=Named(name))
    assert means(found)["fd"] == pytest.approx(means(direct)["fd"], rel=1e-5)
    assert set(found["metrics"]) == {"fd", "fd_infinity"}
    assert "the reference holds moments only: figures that need its features are left out" in found["notes"]
    assert found["floor"] == {} and found["floor_of"] is None
    assert {row["num_reference"] for row in found["rows"]} == {count}
    with_floor = evaluate(real[1], foreign[kind], cache, extractor=Named(name), held_out=real[1])
    assert with_floor["floor"]["fd"] == pytest.approx(means(direct)["fd"], rel=1e-5)


def test_the_extractor_picks_among_statistics(
    foreign: dict[str, Path], real: tuple[Dataset, Dataset], cache: Path
) -> None:
    a, b = (
        means(evaluate(real[1], foreign["pkl"], cache, extractor=Named(name), metrics=["fd"]))["fd"]
        for name in ("inception", "dinov2")
    )
    assert b > a + 5
    with pytest.raises(UserError, match="statistics for fid, fd_dinov2: say which"):
        evaluate(real[1], foreign["pkl"], cache)
    own = evaluate(foreign["pkl"], real[0], cache, extractor=Named("inception"), metrics=["fd"])
    assert means(own)["fd"] == pytest.approx(0, abs=1e-4) and own["metrics"]["fd"]["interval"] == "none"


def test_another_extractor_is_refused_unless_forced(
    foreign: dict[str, Path], real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"edm\.npz was measured with inception .*, the samples with toy .*with option 'force'"
    ):
        evaluate(real[1], foreign["npz"], cache, extractor=Toy())
    found = evaluate(real[1], foreign["npz"], cache, extractor=Toy(), force=True)
    assert found["notes"][0].startswith("FORCED: the reference edm.npz was measured with inception")
    assert found["rows"][0]["settings"]["reference_extractor"] == "inception (hash unknown)"
    file = tmp_path / "r.safetensors"
    api.compare([real[1]], real[0], extractor=Toy(), options={"metrics": ["fd"]}, cache=cache, statistics=file,
                     quiet=True)  # fmt: skip
    assert means(evaluate(real[1], file, cache, extractor=Toy(), metrics=["fd"]))["fd"] > 0
    for wrong in (Toy(width=5), Named("other")):
        with pytest.raises(UserError, match="give the extractor of the reference"):
            evaluate(real[1], file, cache, extractor=wrong)
    with pytest.raises(UserError, match="measured with 'toy', which is no ready-made extractor: give the file"):
        evaluate(real[1], file, cache)
    with pytest.raises(UserError, match=r"6 and of 5 features|5 and of 6 features"):
        evaluate(real[1], file, cache, extractor=Toy(width=5), force=True)
    with pytest.raises(UserError, match="was measured with toy, the reference with pca: give the samples"):
        evaluate(file, real[0], cache)


# -- what extractors want ----------------------------------------------------------------------------------------------


def in_colour(data: Dataset) -> Dataset:
    return replace(data, raw=data.raw.repeat(3, axis=1), name="colour")


class Scripted(nn.Module):
    """Takes RGB alone, but does not say so."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(dim=[2, 3])


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("script") / "toy.pt"
    torch.jit.trace(Scripted().eval(), torch.zeros(1, 3, 8, 8)).save(str(path))
    return f"torchscript:{path}"


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("kind", ["extractor", "callable", "script"])
def test_grey_images_become_colour_and_this_is_said(
    kind: str, script: str, real: tuple[Dataset, Dataset], cache: Path
) -> None:
    how: dict[str, Any] = {"extractor": Rgb()} if kind == "extractor" else {}
    if kind == "callable":
        how = {"extractor": Scripted()}
        how["extractor"].name, how["extractor"].channels = "module", 3
    train, test = (data.subset(range(100)) for data in real)
    options = {"options": {"metrics": QUICK, **({"extractor": script} if kind == "script" else {})}, "cache": cache}
    grey, mixed, colour = (
        sims.evaluate(*pair, **how, **options, quiet=True).to_json()
        for pair in ((test, train), (test, in_colour(train)), (in_colour(test), in_colour(train)))
    )
    assert means(grey) == means(mixed) == means(colour)
    assert {row["images"] for row in grey["rows"] + mixed["rows"]} == {"grey repeated to RGB"}
    assert {row["images"] for row in colour["rows"]} == {"as they are"} and colour["notes"][:-1] == []
    name = grey["extractor"]["name"]
    assert grey["notes"][:2] == [f"digits: grey repeated to RGB for {name}"] * 2
    assert mixed["notes"][:1] == [f"digits: grey repeated to RGB for {name}"]


def test_images_that_the_extractor_cannot_take(real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path) -> None:
    raw = real[1].raw
    four = Dataset(raw.repeat(4, axis=1), None, UINT8, name="four")
    with pytest.raises(UserError, match=r"four has samples of shape \(4, 8, 8\), and rgb takes images of 3 channels"):
        evaluate(four, real[0], cache, extractor=Rgb())
    with pytest.raises(UserError, match=r"toy:moons has samples of shape \(2,\), and rgb takes images"):
        evaluate("toy:moons", real[0], cache, extractor=Rgb())
    with pytest.raises(UserError, match=r"of shape \(1, 8, 7\), and the extractor pca is made for \(1, 8, 8\)"):
        evaluate(Dataset(raw[..., :7], None, UINT8), real[0], cache)
    with pytest.raises(UserError, match=r"holds points of shape .*: leave option 'extractor' at auto"):
        sims.evaluate("toy:moons", "toy:moons", options={"extractor": "pca"}, cache=cache, quiet=True)


def test_other_sizes_are_compared_with_a_warning(real: tuple[Dataset, Dataset], cache: Path) -> None:
    class Resized(Toy):
        resize = "box 4x4"

        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(nn.functional.interpolate(x, (8, 8)))

    large = Dataset(real[1].raw.repeat(2, axis=2).repeat(2, axis=3), None, UINT8, name="large")
    found = evaluate(large, real[0], cache, extractor=Resized(name="resized"))
    assert "WARNING: samples of 16x16 pixels against a reference of 8x8" in found["notes"][0]
    assert {row["resize"] for row in found["rows"]} == {"box 4x4"}


def test_a_range_that_was_guessed_shows_in_the_rows(real: tuple[Dataset, Dataset], cache: Path, tmp_path: Path) -> None:
    values = real[1].raw / 100 - 1.0
    found = evaluate(write_npz(tmp_path / "a.npz", values.astype(np.float32)), real[0], cache)
    assert {row["images"] for row in found["rows"]} == {"values from -1 (black) to 1.4 (white)"}
    assert {row["dtype"] for row in found["rows"]} == {"float32"} and any(
        "values from -1" in note for note in found["notes"]
    )


def test_a_large_reference_is_fitted_to_some_of_its_images(
    real: tuple[Dataset, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sims.scoring.extractor_fitting.FIT_VALUES", 300 * 64)
    fitted = []
    fit = PCAExtractor.fit
    monkeypatch.setattr(PCAExtractor, "fit", lambda x: fitted.append(len(x)) or fit(x))
    found = evaluate(real[1], real[0], tmp_path, metrics=["fd"])
    assert fitted == [256] and found["reference"]["train"]["count"] == 1437
    evaluate(real[1], real[0], tmp_path, metrics=["fd"])
    assert len(fitted) == 1, "it is kept"
    (file,) = (tmp_path / "extractors").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert evaluate(real[1], real[0], tmp_path, metrics=["fd"])["metrics"] == found["metrics"] and len(fitted) == 2


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(real: tuple[Dataset, Dataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with train.npz and test.npz; tests must not change it."""
    folder = tmp_path_factory.mktemp("files")
    for name, data in zip(("train", "test"), real):
        write_npz(folder / f"{name}.npz", data.raw)
    return folder


@pytest.fixture
def run(files: Path, cache: Path, say: Say) -> Callable[..., tuple[int, str, str]]:
    """`sims evaluate` with the quick figures against the training digits."""

    def start(*words: Any, **how: Any) -> tuple[int, str, str]:
        base = ["--reference", files / "train.npz", "--metrics", ",".join(QUICK), "--cache", cache]
        return say("evaluate", *words, *[word for i, word in enumerate(base) if base[i - i % 2] not in words])

    return start


Run = Callable[..., tuple[int, str, str]]


def damaged(kind: str, folder: Path, raw: np.ndarray) -> Path:
    """A set of pictures in which the fifth and the ninth cannot be read."""
    good = [encode_png(pixels) for pixels in raw]
    data = [content[: 30 if index in (4, 8) else None] for index, content in enumerate(good)]
    if kind == "folder":
        folder.mkdir()
        for index, content in enumerate(data):
            (folder / f"{index:02d}.png").write_bytes(content)
        return folder
    with zipfile.ZipFile(folder.with_suffix(".zip"), "w") as archive:
        for index, content in enumerate(data):
            archive.writestr(f"{index:02d}.png", content)
    return folder.with_suffix(".zip")


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_unreadable_pictures_are_named_or_skipped_and_counted(
    kind: str, real: tuple[Dataset, Dataset], run: Run, tmp_path: Path
) -> None:
    samples = real[1].raw[:40]
    path = damaged(kind, tmp_path / "p", samples)
    status, out, err = run(path)
    assert status == 2 and out == "" and "Traceback" not in err
    assert "2 of 40 pictures in p cannot be read: 04.png (" in err and "; 08.png (" in err
    assert err.strip().endswith("replace or remove them, or score the other 38 with --skip-unreadable")
    status, out, _ = run(path, "--skip-unreadable", "--json")
    found = json.loads(out)
    rest = np.delete(samples, [4, 8], axis=0)
    expected, _, _ = (json.loads(run(write_npz(tmp_path / "rest.npz", rest), "--json")[1]), 0, 0)
    assert status == 0 and found["metrics"] == expected["metrics"] and found["samples_per_draw"] == 38
    assert {row["unreadable"] for row in found["rows"]} == {2}
    assert "WARNING: 2 pictures could not be read and were left out" in found["notes"]


def test_a_copy_of_a_broken_folder_is_blamed_under_its_own_names(
    real: tuple[Dataset, Dataset], run: Run, tmp_path: Path
) -> None:
    path = damaged("folder", tmp_path / "p", real[1].raw[:40])
    assert "04.png" in run(path)[2]
    (path / "04.png").rename(path / "04b.png")
    assert "04b.png" in run(path)[2], "though the features were in the cache"


def test_mended_pictures_are_read_again(real: tuple[Dataset, Dataset], run: Run, tmp_path: Path) -> None:
    path = damaged("folder", tmp_path / "p", real[1].raw[:40])
    assert run(path)[0] == 2
    for index in (4, 8):
        (path / f"{index:02d}.png").write_bytes(encode_png(real[1].raw[index]))
    status, out, _ = run(path, "--json")
    assert status == 0 and json.loads(out)["samples_per_draw"] == 40


@pytest.mark.parametrize("extractor", ["classifier", "pca"])
def test_unreadable_pictures_of_the_reference(
    extractor: str,
    real: tuple[Dataset, Dataset],
    files: Path,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=2))
    labels = load_pair("digits")[0].labels
    assert labels is not None
    for index in range(60):
        content = encode_png(real[0].raw[index])
        file = tmp_path / "r" / str(labels[index] % 3) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content[:30] if index in (7, 9) else content)
    words = [files / "test.npz", "--reference", tmp_path / "r", "--extractor", extractor]
    status, _, err = run(*words)
    assert status == 2 and "2 of 60 pictures in r cannot be read: " in err and "/7.png" in err
    status, out, err = run(*words, "--skip-unreadable", "--json")
    assert status == 0, err
    found = json.loads(out)
    assert found["reference"]["train"]["count"] == 58
    assert "WARNING: 2 pictures could not be read and were left out" in found["notes"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with a classifier of the training digits, trained for less long than usual."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=100))
        cache = tmp_path_factory.mktemp("trained")
        evaluate("digits", "digits", cache, metrics=["fd"], limit=60)
    return cache


class Nan(Toy):
    def __call__(self, x: Tensor) -> Tensor:
        features = super().__call__(x)
        features[x.flatten(1)[:, 10] > 0.5] = float("nan")
        return features


def test_features_that_are_not_finite(real: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    dark = real[0].subset(np.flatnonzero(real[0].raw.reshape(-1, 64)[:, 10] < 150))
    bad = np.flatnonzero(real[1].raw[:100].reshape(-1, 64)[:, 10] > 191.25)
    assert len(bad) > 2
    folder = write_folder(tmp_path / "p", real[1].raw[:100])
    said = rf"{len(bad)} of 100 samples of p \(first: {bad[0]:06d}\.png\) have features of nan that are NaN"
    with pytest.raises(UserError, match=said):
        evaluate(folder, dark, tmp_path / "cache", extractor=Nan(name="nan"))
    (extracted_,) = (tmp_path / "cache" / "features").iterdir()
    kept = len(list(extracted_.iterdir()))
    assert kept == -(-len(dark) // 1024), "the reference alone"


def test_evaluate_refuses(
    run: Run, files: Path, home: Path, store: Path, model: Path, tmp_path: Path, real: tuple[Dataset, Dataset]
) -> None:
    np.savez(tmp_path / "one.npz", images=real[1].raw[:1])
    np.savez(tmp_path / "wide.npz", images=real[1].raw[:20].repeat(3, axis=1))
    sizes = write_folder(tmp_path / "sizes", real[1].raw[:20])
    (sizes / "000007.png").write_bytes(encode_png(real[1].raw[7][:, :6]))
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "a.safetensors").write_bytes(b"no tensors")
    (tmp_path / "rows.jsonl").write_text('{"metric": "fd"}\n')
    (tmp_path / "none.jsonl").write_text("\n")
    test = files / "test.npz"
    cases: list[tuple[list[Any], str]] = [
        ([tmp_path / "one.npz"], "one has 1 sample(s): at least 2"),
        ([tmp_path / "wide.npz"], "wide has samples of shape (3, 8, 8), and the extractor pca is made for (1, 8, 8)"),
        ([sizes], "differ in size (000000.png is 8x8, 000007.png is 8x6): resize them all in one way first"),
        ([model, "--reference", "toy:moons"], "has samples of shape (1, 8, 8), and the extractor points"),
        ([home / "run"], f"is a run directory: give one of its models: {model}"),
        ([tmp_path / "nothing"], "no data at"),
        ([tmp_path / "empty"], "holds no pictures"),
        ([tmp_path / "text.npz"], "cannot be read as numpy arrays"),
        ([tmp_path / "a.safetensors"], "is damaged or no safetensors file"),
        ([model / "model.safetensors"], "was not written by sims"),
        ([tmp_path / "rows.jsonl"], "rows.jsonl cannot be read as rows of scores (A score lacks value"),
        ([tmp_path / "none.jsonl"], "holds no rows"),
        ([tmp_path / "missing.jsonl"], "cannot be read as rows of scores"),
        ([store, "--reference", tmp_path / "nothing"], "no data at"),
        ([store, "--held-out", tmp_path / "nothing"], "no data at"),
        ([], "nothing to score"),
        ([test, "--batch-size", "0"], "batch_size is 0"),
        ([test, "--sample-batch", "0"], "sample_batch is 0"),
        ([test, "--limit", "1"], "limit is 1: at least 2"),
        ([test, "--draws", "0"], "draws is 0"),
        ([test, "--draws", "2", "--limit", "100"], "limit is 100 and draws 2: leave out one"),
        ([test, "--draws", "2", "--samples", "300"], "2 draws of 300 need 600 samples, and test has 360"),
        ([test, "--metrics", "fid"], "unknown metric 'fid'; did you mean 'fd'"),
        ([test, "--metrics", ","], "unknown metric ''"),
        ([test, "--extractor", "inceptoin"], "did you mean 'inception'"),
        (
            [test, "--extractor", "classifier"],
            "'classifier' needs labels, and train has none: use --extractor with pca",
        ),
        ([test, "--extractor", "torchscript:nowhere.pt"], "nowhere.pt"),
        ([test, "--paired"], "--paired compares two sets of samples, and 1 were given"),
        ([test, test, test, "--paired"], "--paired compares two sets of samples, and 3 were given"),
        ([test, "--out", tmp_path], "give a file that ends in .jsonl"),
        ([test, "--out", tmp_path / "rows.json"], "give a file that ends in .jsonl"),
        ([test, "--statistics", tmp_path / "r.npz"], "give a file that ends in .safetensors"),
        ([test, "--cache", test], "is a file: give a folder as --cache"),
    ]
    for words, said in cases:
        status, out, err = run(*words)
        assert status == 2 and said in err and out == "" and "Traceback" not in err, (words, err)
        lines = [line for line in err.strip().splitlines() if line.startswith("sims: ")]
        assert len(lines) <= 1, err


# -- rows, and what may stand side by side -----------------------------------------------------------------------------


def test_rows_describe_themselves(real: tuple[Dataset, Dataset], cache: Path) -> None:
    found = evaluate(real[1], real[0], cache, held_out=real[1], metrics=EVERY)
    rows = [ScoreRow.from_json(row) for row in json.loads(json.dumps(found["rows"]))]
    assert [row.to_json() for row in rows] == found["rows"]
    assert {row.metric for row in rows} == set(found["metrics"]) and len(rows) == len(found["metrics"])
    one = {row.metric: row for row in rows}["fd"]
    assert (one.extractor_name, one.extractor_hash) == ("pca", found["extractor"]["hash"])
    assert (one.reference_name, one.reference_hash) == ("digits", found["reference"]["train"]["hash"])
    assert (one.num_samples, one.num_reference, one.seeds) == (360, 1437, (0, 0))
    assert (one.format, one.dtype, one.images, one.samples) == ("memory", "uint8", "as they are", "digits")
    assert one.resize.startswith("sides above 16") and one.samples_hash and one.sims_version and one.torch_version
    assert (one.low, one.high, one.interval) == tuple(
        found["metrics"]["fd"][key] for key in ("low", "high", "interval")
    )
    assert (one.floor, one.floor_samples) == (found["floor"]["fd"], 360)
    assert {row.metric: row.settings for row in rows}["recall"] == {"k": 3, "reference_used": 1437}


DIFFERENT: dict[str, tuple[list[str], str]] = {
    "num_samples": (["--limit", "90"], "num_samples: 100 / 90"),
    "extractor": (["--extractor", "{script}"], "extractor_name: pca / torchscript-toy"),
    "reference": (["--reference", "{test}"], "reference_name: train / test"),
    "settings": (["--neighbours", "50"], "num_samples: 100 / 50; settings: "),
    "images": (["--source.grayscale"], "images: as they are / made grey"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("name", DIFFERENT)
def test_rows_that_differ_are_refused_unless_forced(
    name: str, script: str, real: tuple[Dataset, Dataset], files: Path, run: Run, tmp_path: Path
) -> None:
    samples = write_npz(tmp_path / "a.npz", real[1].raw[:100])
    words, said = DIFFERENT[name]
    words = [word.format(script=script, test=files / "test.npz") for word in words]
    assert run(samples, "--out", tmp_path / "rows.jsonl")[0] == 0
    status, out, err = run(samples, tmp_path / "rows.jsonl", *words)
    turned = said if said in err else " / ".join(reversed(said.split(": ")[-1].split(" / ")))
    assert status == 2 and out == "" and "These scores cannot be compared, they differ in" in err
    assert turned in err or name == "settings", err
    status, out, _ = run(samples, tmp_path / "rows.jsonl", *words, "--force")
    assert status == 0 and "side by side" in out
    assert run(samples, tmp_path / "rows.jsonl")[0] == 0


def test_jpeg_beside_png_is_refused_and_lossless_forms_are_not(
    real: tuple[Dataset, Dataset], run: Run, tmp_path: Path
) -> None:
    raw = real[1].raw[:50]
    png, npz = write_folder(tmp_path / "png", raw), write_npz(tmp_path / "a.npz", raw)
    (tmp_path / "jpeg").mkdir()
    for index, pixels in enumerate(raw):
        Image.fromarray(pixels[0]).save(tmp_path / "jpeg" / f"{index}.jpg", quality=95)
    assert run(png, npz)[0] == 0
    status, _, err = run(png, tmp_path / "jpeg")
    assert status == 2 and "differ in format: png / jpeg" in err
    assert (
        "WARNING: the samples are jpeg, the reference is memory: what lossy compression leaves"
        in run(tmp_path / "jpeg")[1]
    )
    np.savez(tmp_path / "b.npz", images=raw.astype(np.float32) / 255)
    status, _, err = run(npz, tmp_path / "b.npz")
    assert status == 2 and "differ in dtype: uint8 / float32" in err


def test_rows_are_kept_and_read_again(real: tuple[Dataset, Dataset], run: Run, tmp_path: Path, say: Say) -> None:
    a, b = (write_npz(tmp_path / f"{name}.npz", real[1].raw[part]) for name, part in
            (("a", slice(0, 100)), ("b", slice(100, 200))))  # fmt: skip
    file = tmp_path / "new" / "rows.jsonl"
    assert run(a, "--out", file)[0] == 0 and run(b, "--out", file)[0] == 0
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["samples"] for row in rows] == [str(a)] * 6 + [str(b)] * 6
    alone = say("evaluate", file, "--reference", "nowhere")[1]
    assert "side by side" in alone and alone.count("(rows.jsonl)") == 2
    assert all(f"{row['value']:.2f}" in alone for row in rows if row["metric"] == "fd")
    both = run(b, file)[1]
    assert both.split("side by side")[1].splitlines()[1].count("┳") == 3, "b now, and both as they were kept"
    assert len(file.read_text().splitlines()) == 12
    found = json.loads(run(a, b, "--json")[1])
    assert [score["samples"] for score in found["scores"]] == [str(a), str(b)] and found["differences"] == []


def test_the_table(model: Path, files: Path, run: Run, trained: Path, say: Say) -> None:
    _, one, _ = run(files / "test.npz")
    assert "one draw of 360 samples" in one and "± –" not in one and "subsampling" in one
    assert "real against real: 360 images of the reference against its other 1,077" in one
    assert "reference: train, 1,437 images (" in one and "features: pca (" in one
    how = ["--samples", "60", "--draws", "2", "--metrics", "fd,memorization", "--cache", trained]
    _, two, _ = say("evaluate", model, *how)
    assert "2 draws of 60 samples" in two and "FD to held-out" in two and "copied share" in two
    assert "per class (intended classes)" in two and "WARNING: 60 samples for 64 features" in two


def test_classes_are_intended_or_recognized(model: Path, trained: Path) -> None:
    cache, (digits, test) = trained, load_pair("digits")
    how: dict[str, Any] = {"draws": 1, "samples": 60, "metrics": ["fd"]}
    intended = sims.evaluate(model, digits, held_out=test, options=how, cache=cache, quiet=True).classes
    assert {row.told_by for row in intended} == {"intended"} and sum(row.count for row in intended) == 60
    seen = sims.evaluate(test.without_labels(), digits, held_out=test, options=how, cache=cache, quiet=True).classes
    assert {row.told_by for row in seen} == {"recognized"} and [row.name for row in seen] == list("0123456789")
    counts = np.bincount(test.labels, minlength=10)  # type: ignore[arg-type]
    assert [row.count for row in seen] == pytest.approx(counts.tolist(), abs=6)
