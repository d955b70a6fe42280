"""A score compares mixtures: classes are drawn as often as the training data have them; what differs is said."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sims
import tiny
from sims.data.codec import UINT8
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.data import in_classes_of
from sims.experiments.facts import class_warnings, drawn_shares
from sims.files import read_json, write_json
from sims.guidance import Extrapolate
from sims.metrics.per_class import beyond_chance, class_distance
from sims.sampling.noise import SeededNoise

SHAPE = (1, 8, 8)


def data(counts: list[int], names: tuple[str, ...] = ()) -> Dataset:
    """Noise with so many pictures of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    raw = np.random.default_rng(0).integers(0, 256, (len(labels), *SHAPE), dtype=np.uint8)
    return Dataset(raw, labels, UINT8, names or tuple(map(str, range(len(counts)))))


def saved(folder: Path, counts: list[int]) -> Path:
    """A folder of pictures, and a model that was trained on it in name."""
    from PIL import Image

    source = data(counts)
    for i, (picture, label) in enumerate(zip(source.raw, source.labels)):
        (folder / f"c{label}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture[0]).save(folder / f"c{label}" / f"{i}.png")
    return folder


# -- how labels are drawn ----------------------------------------------------------------------------------------------


def test_even_shares_are_the_draws_that_there_always_were() -> None:
    seeds = range(500)
    expected = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.empty(SHAPE).normal_(generator=generator)
        expected.append(int(torch.randint(7, (), generator=generator)))
    for shares in ((), (1.0,), (3.0,) * 7):
        assert SeededNoise(seeds, SHAPE, 7, shares).labels().tolist() == expected


def test_shares_change_no_noise() -> None:
    even, uneven = (SeededNoise(range(8), SHAPE, 3, shares) for shares in ((), (8, 1, 1)))
    assert torch.equal(even.initial(), uneven.initial())
    assert torch.equal(even.step(), uneven.step())


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=12).filter(lambda w: sum(w) > 1e-3), st.integers(0, 2**31))
def test_classes_come_in_their_shares(weights: list[float], first: int) -> None:
    """Every class within six standard deviations of its share, and none whose share is 0."""
    n, shares = 2_000, np.array(weights) / sum(weights)
    counts = np.bincount(
        SeededNoise(range(first, first + n), (1,), len(weights), weights).labels(), minlength=len(shares)
    )
    assert len(counts) == len(shares)
    assert (np.abs(counts - n * shares) <= 6 * np.sqrt(n * shares * (1 - shares)) + 1e-6 * n).all()
    assert not counts[shares == 0].any()


@pytest.mark.parametrize("weights", [(1, 2), (1, -1, 1), (0, 0, 0), (1, float("nan"), 1), (1, float("inf"), 1)])
def test_weights_that_are_no_shares(weights: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="class"):
        SeededNoise(range(2), SHAPE, 3, weights)


# -- what a model knows ------------------------------------------------------------------------------------------------


def test_a_model_draws_what_its_training_data_had(tmp_path: Path) -> None:
    """Names without a picture are never drawn; what guides the model, and what is read back, draws the same."""
    model = tiny.model(data([0, 30, 0, 10]))
    assert model.class_shares == (0, 0.75, 0, 0.25)
    _, labels = model.sample_labelled(range(400))
    counts = Counter(labels.tolist())
    assert set(counts) == {1, 3}
    assert abs(counts[1] / 400 - 0.75) < 0.1
    again = sims.load(model.save(tmp_path / "model"))
    assert again.class_shares == model.class_shares
    assert again.hash == model.hash
    for same in (again, model.with_denoiser(Extrapolate(model.denoiser, model.denoiser, 0.5))):
        assert torch.equal(same.sample_labelled(range(400))[1], labels)
    store = sims.synthesize(model, tmp_path / "own", count=40, quiet=True)
    assert set(store.labels.tolist()) == {1, 3}


def test_told_otherwise(tmp_path: Path) -> None:
    model = tiny.model(data([90, 10]))
    even = replace(model, sampler=replace(model.sampler, class_shares=(1,)))
    assert even.sample_labelled(range(50))[1].tolist() == SeededNoise(range(50), SHAPE, 2).labels().tolist()
    assert set(model.sample_labelled(range(20), labels=1)[1].tolist()) == {1}
    for weights in ((0, 0), (1, -2), (float("nan"), 1)):
        with pytest.raises(UserError, match="class shares"):
            sims.SamplerOptions(class_shares=weights)
    with pytest.raises(UserError, match="3 class shares for 2 classes"):
        replace(model, sampler=replace(model.sampler, class_shares=(1, 1, 1))).sample(range(2))


def test_the_hash_covers_shares_that_change_samples() -> None:
    even, uneven, unknown = (tiny.model(data(counts)) for counts in ([20, 20], [30, 10], [5, 5]))
    unknown.denoiser.class_shares = ()
    assert even.hash == unknown.hash != uneven.hash


def test_an_older_model_draws_evenly(tmp_path: Path) -> None:
    model = tiny.model(data([20, 20]))
    entry = read_json(model.save(tmp_path / "m") / "model.json")
    del entry["class_shares"]
    write_json(tmp_path / "m" / "model.json", entry)
    again = sims.load(tmp_path / "m")
    assert again.class_shares == ()
    assert torch.equal(again.sample_labelled(range(30))[1], model.sample_labelled(range(30))[1])


def test_labels_that_are_missing_have_no_share() -> None:
    part = replace(data([6, 2]), labels=np.array([-1, -1, 0, 0, 0, 0, 1, 1]))
    assert part.class_shares == (4 / 6, 2 / 6)
    assert part.without_labels().class_shares == ()


def test_classes_of_a_model_and_of_data_are_matched_by_name() -> None:
    """A part of the model's classes, in any order; other names are taken in order, where there are as many."""
    model = tiny.model(data([2, 2, 2], ("cat", "dog", "eel")))
    part = in_classes_of(model, "m", replace(data([1, 2]), class_names=("eel", "cat")), "d")
    assert part.labels.tolist() == [2, 0, 0]
    assert part.class_names == model.class_names
    assert part.class_shares == pytest.approx((2 / 3, 0, 1 / 3))
    assert in_classes_of(model, "m", data([1, 1, 1]), "d").labels.tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="has 3 classes, but d has 2"):
        in_classes_of(model, "m", data([1, 1]), "d")


def test_labels_with_gaps_keep_their_numbers_in_files(tmp_path: Path) -> None:
    """Classes 1 and 3 are two classes here; a store says 1 and 3, and is read back as it was."""
    gaps = replace(data([4, 4]), labels=np.array([1] * 30 + [3] * 10), raw=data([40]).raw, class_names=())
    assert gaps.class_names == ("1", "3")
    model = tiny.model(gaps)
    store = sims.synthesize(model, tmp_path / "own", count=60, quiet=True)
    found = np.concatenate([pq.read_table(file)["label"].to_numpy() for file in (tmp_path / "own").glob("*.parquet")])
    assert set(found.tolist()) == {1, 3}
    assert np.array_equal(np.array([1, 3])[store.labels], found)
    assert np.array_equal(store.labels, model.sample_labelled(range(60))[1].numpy())
    assert store.class_names == ("1", "3")


# -- what scores say ---------------------------------------------------------------------------------------------------


def test_mixtures_by_hand() -> None:
    """chi-squared of a 2 x 2 table: n (ad - bc)^2 / (the product of its margins); 10.83 is its 0.1 % point."""
    assert class_distance(np.array([50, 50]), np.array([90, 10])) == pytest.approx(0.4)
    for a, b in ((60, 74), (60, 80), (60, 84), (60, 86)):
        ours, theirs = np.array([a, 100 - a]), np.array([b, 100 - b])
        statistic = 200 * (a * (100 - b) - b * (100 - a)) ** 2 / (100 * 100 * (a + b) * (200 - a - b))
        assert beyond_chance(ours, theirs) == (statistic > 10.828)
    assert not beyond_chance(np.array([10, 0]), np.array([3, 0]))


def test_chance_gives_no_warning() -> None:
    """Of 300 pairs drawn in the same shares hardly any is called different."""
    rng = np.random.default_rng(0)
    pairs = [(rng.multinomial(300, [0.6, 0.3, 0.1]), rng.multinomial(200, [0.6, 0.3, 0.1])) for _ in range(300)]
    assert sum(beyond_chance(*pair) for pair in pairs) <= 3


def test_warnings_of_runs() -> None:
    real = data([90, 10], ("cat", "dog"))
    assert class_warnings(real.class_names, drawn_shares(2, real.class_shares), real.labels, 1000) == []
    (text,) = class_warnings(real.class_names, drawn_shares(2, (1,)), real.labels, 1000)
    assert "'cat' 50.0 % against 90.0 %" in text
    assert "sampler.class_shares" in text
    assert drawn_shares(0, ()) == () == drawn_shares(0, (1, 2))
    assert class_warnings((), (), real.labels, 1000) == []


def test_evaluate_says_both_shares(tmp_path: Path, say: tiny.Say) -> None:
    source = saved(tmp_path / "data", [54, 6])
    model = tiny.model(sims.load_data(source)).save(tmp_path / "model")
    words = ("evaluate", model, "--reference", source, "--extractor", "pca", "--samples", 60, "--draws", 2, "--cache")
    status, out, _ = say(*map(str, words), str(tmp_path / "cache"))
    assert status == 0
    assert "class shares" not in out
    more = ("--class-shares", "1", "--json", "--out", tmp_path / "rows.jsonl")
    status, out, _ = say(*map(str, (*words, tmp_path / "cache", *more)))
    (note,) = [note for note in json.loads(out)["notes"] if "class shares" in note]
    assert note.startswith("WARNING")
    assert "against 90.0 %" in note
    assert "option 'class_shares'" in note
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert all(0.2 < row["class_distance"] < 0.6 for row in rows)


def test_evaluate_says_where_it_cannot_tell(tmp_path: Path, say: tiny.Say) -> None:
    model = tiny.model(sims.load_data(saved(tmp_path / "data", [10, 10]))).save(tmp_path / "model")
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((tmp_path / "data").rglob("*.png"))):
        file.rename(flat / f"{i}.png")
    words = ("evaluate", model, "--reference", flat, "--extractor", "pca", "--samples", 30, "--draws", 1, "--json")
    status, out, _ = say(*map(str, words), "--cache", str(tmp_path / "cache"))
    assert status == 0
    assert any("is not known: it has no labels" in note for note in json.loads(out)["notes"])


@pytest.mark.parametrize("told", [False, True])
def test_a_run_on_unequal_classes(tmp_path: Path, say: tiny.Say, told: bool) -> None:
    """The base is compared at the data's proportions; told to draw evenly, the run warns."""
    source = saved(tmp_path / "data", [180, 20])
    more = ("--data.path", str(source), "--data.conditional", "--methods", "base,sims", *tiny.PCA)
    status, _, err = say(*tiny.improve_arguments(tmp_path / "run", *more, *(["--sampler.class-shares", "1"] * told)))
    assert status == 0, err
    found = read_json(tmp_path / "run" / "summary.json")
    assert [text for text in found["warnings"] if "class shares" in text] != [] if told else True
    assert not (told is False and any("class shares" in text for text in found["warnings"]))
    assert found["data"]["class_shares"] == pytest.approx([0.9, 0.1])
    assert found["data"]["drawn_shares"] == pytest.approx([0.5, 0.5] if told else [0.9, 0.1])
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    distances = {row["class_distance"] for row in rows}
    assert all(distance > 0.25 if told else distance < 0.12 for distance in distances)
    assert "<th" in (page := (tmp_path / "run" / "report.html").read_text())
    assert "drawn" in page


def test_a_given_model_that_does_not_know_takes_the_shares_of_the_data(tmp_path: Path, say: tiny.Say) -> None:
    source = saved(tmp_path / "data", [90, 10])
    model = tiny.model(sims.load_data(source))
    model.denoiser.class_shares = ()
    model.save(tmp_path / "model")
    more = ("--model", str(tmp_path / "model"), "--data.path", str(source), "--methods", "base", *tiny.PCA)
    status, _, err = say(*tiny.improve_arguments(tmp_path / "run", *more))
    assert status == 0, err
    assert "does not say how often it saw each class" in (tmp_path / "run" / "log").read_text()
    found = read_json(tmp_path / "run" / "summary.json")
    assert found["data"]["drawn_shares"] == pytest.approx([0.9, 0.1])


def test_commands_take_weights(tmp_path: Path, say: tiny.Say) -> None:
    model = tiny.model(data([90, 10])).save(tmp_path / "model")
    status, _, err = say(
        "synthesize", str(model), "--count", "60", "--class-shares", "0,1", "--out", str(tmp_path / "s")
    )
    assert status == 0, err
    assert set(sims.load_data(tmp_path / "s").labels.tolist()) == {1}
    status, _, err = say(
        "sample", str(model), "--seeds", "0-3", "--class-shares", "1,2,3", "--out", str(tmp_path / "p")
    )
    assert status == 2
    assert "3 class shares for 2 classes" in err
    status, out, _ = say("inspect", str(model))
    assert "90 %, 10 %" in out
