"""The commands end to end, in process, on a model that is trained in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from sims.commands import sample
from sims.commands.sample import parse_seeds
from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.data.pictures import contact_sheet
from sims.data.sources import load_pair
from sims.data.store import Store
from sims.errors import UserError
from sims.files import write_json
from sims.model import Model, load, reinitialized
from sims.networks.options import NetworkOptions
from sims.results.common import Data
from sims.results.loop import PollutionResult
from sims.results.summaries import to_json
from sims.sampling import SamplerOptions
from sims.training.base import new_model
from sims.training.trainer import Trainer
from tiny import TRAIN, Say


@pytest.fixture(scope="module")
def guided(home: Path, model: Path) -> Path:
    """The model steered away from random weights with w = 1."""
    base = load(model)
    return base.guided(reinitialized(base, 1), 1.0).save(home / "guided")


def untrained(data: Dataset) -> Model:
    """A model of data that PNG may or may not hold."""
    network = NetworkOptions(width=16, blocks=1, embedding=8, sigma_data=0.5)
    return new_model(data, network, SamplerOptions(steps=3), seed=0)


# -- train -------------------------------------------------------------------------------------------------------------


def test_train_leaves_a_model(home: Path, model: Path) -> None:
    made = load(model)
    assert made.data_shape == (1, 8, 8) and made.num_classes == 10 and made.sampler.steps == 5
    assert made.provenance["data"] == "digits" and made.provenance["images"] == 12800
    train, _ = load_pair("digits", limit=300)
    assert made.provenance["data_fingerprint"] == train.fingerprint, "the held-out part must stay unseen"
    fresh = reinitialized(made, 0)
    x, labels = train.all()
    noisy, sigma = x + 0.5 * torch.randn(x.shape, generator=torch.manual_seed(0)), torch.full((len(x),), 0.5)
    with torch.no_grad():
        errors = [float((one(noisy, sigma, labels) - x).square().mean()) for one in (made, fresh)]
    assert errors[0] < 0.8 * errors[1], errors


def test_train_says_finished_and_changes_nothing(home: Path, model: Path, say: Say) -> None:
    before = {file: file.stat().st_mtime_ns for file in model.iterdir()}
    status, _, err = say("train", "--out", home / "run", *TRAIN)
    assert status == 0 and "is finished" in err
    assert {file: file.stat().st_mtime_ns for file in model.iterdir()} == before


def test_train_refuses_another_configuration(home: Path, say: Say) -> None:
    status, _, err = say("train", "--out", home / "run", *TRAIN, "--network.width", "48")
    assert status == 2 and "network.width: 32 there, 48 now" in err
    assert "another run directory" in err and "--run" not in err


def test_an_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, model: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["train", "--out", tmp_path / "run", *TRAIN, "--base.train.checkpoint-seconds", "0"]
    update, steps = Trainer.update, [0]

    def interrupted(self: Trainer) -> Any:
        steps[0] += 1
        if steps[0] == 40:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "update", interrupted)
        assert say(*words)[0] == 130
    assert not (tmp_path / "run" / "model").exists()
    status, out, _ = say("inspect", tmp_path / "run")
    assert status == 0 and "no: run the same command again" in out
    monkeypatch.setattr(Trainer, "update", lambda self: steps.append(1) or update(self))
    assert say(*words)[0] == 0
    assert 0 < len(steps) - 1 < 100, "it began anew"
    assert load(tmp_path / "run" / "model").hash == load(model).hash


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data.path", "none"], "data.path is none"),
        (["--data.path", "toy:gaussian", "--data.conditional"], "needs labels"),
        (["--data.path", "nowhere"], "nowhere"),
        (["--base.images", "0"], "base.images is 0"),
    ],
)
def test_train_refuses_what_cannot_work(words: list[str], said: str, tmp_path: Path, say: Say) -> None:
    status, _, err = say("train", "--out", tmp_path / "run", *words)
    assert status == 2 and said in err


# -- synthesize --------------------------------------------------------------------------------------------------------


def test_a_store_holds_the_samples_of_the_seeds(store: Path, model: Path) -> None:
    data = Store.read(store)
    made = load(model)
    x, labels = made.sample_labelled(range(60), batch_size=30)
    assert np.array_equal(data.raw, made.codec.decode(x)) and np.array_equal(data.labels, labels)
    assert data.columns["seed"].tolist() == list(range(60))
    assert set(data.columns["model"]) == {made.hash} and set(data.columns["method"]) == {"base"}
    assert set(data.columns["w"]) == {0.0}


def test_a_guided_store_says_so(guided: Path, tmp_path: Path, say: Say) -> None:
    words = ["--out", tmp_path / "s", "--count", "4", "--first-seed", "7", "--label", "3"]
    status, out, _ = say("synthesize", guided, *words)
    data = Store.read(tmp_path / "s")
    assert status == 0 and "4 samples, seeds 7 to 10" in out
    assert set(data.columns["method"]) == {"guided"} and set(data.columns["w"]) == {1.0}
    assert data.columns["seed"].tolist() == [7, 8, 9, 10] and data.labels is not None and set(data.labels) == {3}


def test_a_store_is_continued_after_an_interruption(
    model: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--count", "1200", "--batch-size", "500"]
    write, written = Store.write, []

    def stop_at_the_second(self: Store, shard: int, *arguments: Any, **more: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(shard)
        write(self, shard, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", stop_at_the_second)
        assert say("synthesize", model, "--out", tmp_path / "s", *words)[0] == 130
    status, out, _ = say("inspect", tmp_path / "s")
    assert status == 0 and "1 of 2 complete" in out and "1,000 there" in out
    kept = (tmp_path / "s" / "part-00000.parquet").stat().st_mtime_ns
    assert say("synthesize", model, "--out", tmp_path / "s", *words)[0] == 0
    assert (tmp_path / "s" / "part-00000.parquet").stat().st_mtime_ns == kept
    assert say("synthesize", model, "--out", tmp_path / "whole", *words)[0] == 0
    assert Store.read(tmp_path / "s").fingerprint == Store.read(tmp_path / "whole").fingerprint


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--count", "50"], "already holds a different store"),
        (["--count", "0"], "count is 0"),
        (["--batch-size", "0"], "batch_size is 0"),
        (["--first-seed", "-1"], "first_seed is -1"),
        (["--first-seed", str(2**32 - 1)], "below 4,294,967,296"),
    ],
)
def test_synthesize_refuses(words: list[str], said: str, store: Path, model: Path, say: Say) -> None:
    before = {file.name: file.read_bytes() for file in store.iterdir()}
    status, _, err = say("synthesize", model, "--out", store, *words)
    assert status == 2 and said in err
    assert {file.name: file.read_bytes() for file in store.iterdir()} == before


def test_a_class_that_the_model_does_not_have(model: Path, tmp_path: Path, say: Say) -> None:
    for command in ("synthesize", "sample"):
        status, _, err = say(command, model, "--out", tmp_path / command, "--label", "10")
        assert status == 2 and "label 10 is outside the classes" in err and "0 to 9" in err


# -- sample ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seeds"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("7", [7]),
        ("5,1, 2 - 4", [5, 1, 2, 3, 4]),
        ("1-3,2,2", [1, 2, 3]),
        ("4294967295", [2**32 - 1]),
    ],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "neither a seed nor a range"),
        ("1,,2", "neither a seed nor a range"),
        ("a-b", "'a-b'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("5-1", "backwards: write 1-5"),
        ("4294967296", "4294967296 is too large"),
        ("0-4294967295", "4,294,967,296 seeds: at most 1,000,000"),
        ("0-999999,5", "1,000,001 seeds"),
    ],
)
def test_bad_seeds(text: str, said: str) -> None:
    with pytest.raises(UserError, match="seeds") as error:
        parse_seeds(text)
    assert said in str(error.value)


def test_one_picture_for_each_seed(model: Path, tmp_path: Path, say: Say) -> None:
    status, out, _ = say("sample", model, "--seeds", "3-9,1234567", "--out", tmp_path / "p", "--batch-size", "8")
    assert status == 0 and "8 samples" in out
    seeds = [*range(3, 10), 1234567]
    names = [f"{seed:06d}.png" for seed in seeds]
    assert {file.name for file in (tmp_path / "p").iterdir()} == {*names, "grid.png"}
    raw = load(model).images(seeds, batch_size=8)  # whole numbers from 0 to 16
    for name, expected in zip(names, raw):
        with Image.open(tmp_path / "p" / name) as image:
            assert image.mode == "L" and image.size == (8, 8)
            assert np.abs(np.asarray(image) / 255 * 16 - expected[0]).max() < 0.05
    with Image.open(tmp_path / "p" / "grid.png") as sheet:
        assert sheet.size == (3 * 64 + 2 * 2, 3 * 64 + 2 * 2)
        pixels = np.asarray(sheet)
    with Image.open(tmp_path / "p" / names[4]) as image:
        assert np.array_equal(pixels[66:130:8, 66:130:8], np.asarray(image)), "the middle one is the fifth"


def test_a_picture_depends_on_its_seed_alone(model: Path, tmp_path: Path, say: Say) -> None:
    for name, seeds, size in (("a", "0-9", "4"), ("b", "8,2", "64")):
        assert say("sample", model, "--seeds", seeds, "--out", tmp_path / name, "--batch-size", size)[0] == 0
    for name in ("000002.png", "000008.png"):
        a, b = (np.asarray(Image.open(tmp_path / folder / name)).astype(int) for folder in "ab")
        assert np.abs(a - b).max() <= 16, "at most one of 16 levels, where rounding tips over"
        assert (a != b).mean() < 0.05


def test_pictures_are_continued_after_an_interruption(
    model: Path, tmp_path: Path, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that are there stay as they are, in the end all are as without; other options begin anew."""
    words = ["--seeds", "0-199", "--batch-size", "20"]
    write, written = sample.write_atomic, []

    def stop_at_the_last_but_one(path: Path, data: bytes) -> None:
        if path.name == "000185.png" and not written:
            written.append(path)
            raise KeyboardInterrupt
        write(path, data)

    for name in ("p", "other"):
        with monkeypatch.context() as patch:
            patch.setattr(sample, "write_atomic", stop_at_the_last_but_one)
            assert say("sample", model, "--out", tmp_path / name, *words)[0] == 130
        written.clear()
    kept = {name: (tmp_path / "p" / name).stat().st_mtime_ns for name in ("000100.png", "000179.png")}
    assert say("sample", model, "--out", tmp_path / "p", *words)[0] == 0
    assert all((tmp_path / "p" / name).stat().st_mtime_ns == at for name, at in kept.items())
    for name, more in (("whole", []), ("other", ["--steps", "3"]), ("steps", ["--steps", "3"])):
        assert say("sample", model, "--out", tmp_path / name, *words, *more)[0] == 0
    assert tiny.snapshot(tmp_path / "p") == tiny.snapshot(tmp_path / "whole")
    assert tiny.snapshot(tmp_path / "other") == tiny.snapshot(tmp_path / "steps") != tiny.snapshot(tmp_path / "whole")


def drawn(folder: Path) -> np.ndarray:
    files = sorted(file for file in folder.iterdir() if file.name != "grid.png")
    return np.stack([np.asarray(Image.open(file)) for file in files])


def as_pngs(model: Model, seeds: range, **options: Any) -> np.ndarray:
    raw = model.images(seeds, batch_size=64, **options)
    return model.codec.to_images(model.codec.encode(raw))[..., 0]


def test_w_of_a_guided_model(model: Path, guided: Path, tmp_path: Path, say: Say) -> None:
    whole = load(guided)
    pair: Any = whole.denoiser
    stronger = Model(pair.base, whole.codec, whole.sampler).guided(pair.aux, 2.5)
    expected = {"0": load(model), "1": whole, "2.5": stronger}
    for w, made in expected.items():
        assert say("sample", guided, "--seeds", "0-5", "--out", tmp_path / w, "--w", w)[0] == 0
        assert np.array_equal(drawn(tmp_path / w), as_pngs(made, range(6)))
    assert say("sample", guided, "--seeds", "0-5", "--out", tmp_path / "own")[0] == 0
    assert np.array_equal(drawn(tmp_path / "own"), drawn(tmp_path / "1"))
    assert not np.array_equal(drawn(tmp_path / "0"), drawn(tmp_path / "2.5"))


@pytest.mark.parametrize(
    ("which", "w", "said"),
    [
        ("guided", "nan", "w is nan"),
        ("guided", "inf", "w is inf"),
        ("model", "nan", "w is nan"),
        ("model", "1.5", "w is 1.5, but the model is not guided"),
        ("guided", "1e30", "not finite"),
    ],
)
def test_w_that_cannot_be(
    which: str, w: str, said: str, tmp_path: Path, say: Say, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(which)
    status, _, err = say("sample", path, "--seeds", "0-2", "--out", tmp_path / "p", "--w", w)
    assert status == 2 and said in err
    assert not list(tmp_path.rglob("*.png"))


def test_w_0_is_the_model_itself(model: Path, tmp_path: Path, say: Say) -> None:
    assert say("sample", model, "--seeds", "0-2", "--out", tmp_path / "p", "--w", "0")[0] == 0
    assert np.array_equal(drawn(tmp_path / "p"), as_pngs(load(model), range(3)))


def test_label_solver_and_steps(model: Path, tmp_path: Path, say: Say) -> None:
    made = load(model)
    words = ["--label", "4", "--solver", "dpmpp2m", "--steps", "7"]
    assert say("sample", model, "--seeds", "0-5", "--out", tmp_path / "a", *words)[0] == 0
    sampler = replace(made.sampler, solver="dpmpp2m", steps=7)
    assert np.array_equal(drawn(tmp_path / "a"), as_pngs(made, range(6), labels=[4], sampler=sampler))
    churning = replace(made, sampler=replace(made.sampler, s_churn=2.0)).save(tmp_path / "churning")
    assert say("sample", churning, "--seeds", "0-5", "--out", tmp_path / "b", *words)[0] == 0
    assert np.array_equal(drawn(tmp_path / "b"), drawn(tmp_path / "a")), "a deterministic solver takes no churn"
    status, _, err = say("sample", model, "--out", tmp_path / "c", "--steps", "0")
    assert status == 2 and "0" in err


@pytest.mark.parametrize(
    ("shape", "dtype", "mode"),
    [
        ((3, 4, 6), "uint8", "RGB"),
        ((4, 4, 4), "uint8", "RGBA"),
        ((1, 4, 4), "uint16", "I;16"),
        ((3, 4, 4), "float32", "RGB"),
        ((5, 4, 4), "uint8", None),
        ((2,), "float32", None),
    ],
)
def test_the_data_decide_the_format(
    shape: tuple[int, ...], dtype: str, mode: str | None, tmp_path: Path, say: Say
) -> None:
    codec = {"uint8": UINT8, "uint16": Codec("pixels", 0, 65535, "uint16"), "float32": Codec("pixels", 0, 1, "float32")}
    points = Codec("identity", -4, 4, "float32")
    data = Dataset(np.zeros((8, *shape), dtype), None, codec[dtype] if len(shape) == 3 else points)
    made = untrained(data)
    made.save(tmp_path / "m")
    assert say("sample", tmp_path / "m", "--seeds", "5-7", "--out", tmp_path / "p", "--batch-size", "2")[0] == 0
    expected = made.images(range(5, 8), batch_size=2)
    if mode is None:
        assert [file.name for file in (tmp_path / "p").iterdir()] == ["samples.npz"]
        with np.load(tmp_path / "p" / "samples.npz") as arrays:
            assert arrays["data"].dtype == dtype and np.array_equal(arrays["data"], expected)
            assert arrays["seeds"].tolist() == [5, 6, 7] and "labels" not in arrays
        return
    with Image.open(tmp_path / "p" / "000006.png") as image:
        pixels = np.asarray(image)
        assert image.mode == mode
    channels_first = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    if dtype == "float32":
        assert np.abs(channels_first / 255 - expected[1]).max() < 0.005
    else:
        assert np.array_equal(channels_first, expected[1])


def test_the_contact_sheet_reduces_nothing_and_fills_rows() -> None:
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 100, 80, 3), np.uint8)
    sheet = contact_sheet(images)
    assert sheet.shape == (3, 2 * 100 + 2, 3 * 80 + 4)
    assert sheet[0, 102, 82] == 4 and sheet[0, 201, 243] == 255


def test_a_folder_that_is_a_file(model: Path, tmp_path: Path, say: Say) -> None:
    (tmp_path / "file").touch()
    status, _, err = say("sample", model, "--out", tmp_path / "file")
    assert status == 2 and "is a file" in err


# -- inspect -----------------------------------------------------------------------------------------------------------


def test_inspect_a_network(model: Path, say: Say) -> None:
    status, out, _ = say("inspect", model)
    made = load(model)
    count = sum(weight.numel() for weight in made.denoiser.parameters())  # type: ignore[attr-defined]
    assert status == 0
    for said in ("type mlp", "width 32", f"{count:,}", "1 × 8 × 8", "10: 0, 1", "values 0 to 16", "0.002 to 80",
                 "steps 5", "9 network evaluations", "data: digits", made.hash):  # fmt: skip
        assert said in out, said


def test_inspect_a_guided_pair(guided: Path, model: Path, say: Say) -> None:
    _, out, _ = say("inspect", guided)
    count = sum(weight.numel() for weight in load(model).denoiser.parameters())  # type: ignore[attr-defined]
    for said in ("extrapolation", f"{2 * count:,}", "18 network evaluations", "at all noise levels", load(guided).hash):
        assert said in out, said
    assert any(line.split()[:2] == ["w", "1,"] for line in out.splitlines())


def test_inspect_a_store(store: Path, model: Path, say: Say) -> None:
    status, out, _ = say("inspect", store)
    assert status == 0
    for said in ("60", "1 of 1 complete", "image, seed, label, model, method, w", f"model: {load(model).hash}"):
        assert said in out, said
    assert "run the same command again" not in out


def test_inspect_a_run(home: Path, say: Say) -> None:
    status, out, _ = say("inspect", home / "run")
    assert status == 0 and "(train)" in out and "12,800 images" in out and "limit = 300" in out
    assert [line.split() for line in out.splitlines() if line.startswith("finished")] == [["finished", "yes"]]


@pytest.mark.parametrize("command", ["improve", "loop", "pollution", "shift"])
def test_inspect_an_experiment(command: str, tmp_path: Path, say: Say) -> None:
    write_json(tmp_path / "config.json", {"format": 2, "command": command, "seed": 3})
    write_json(tmp_path / "seconds.json", {"train base": 1.5})
    _, out, _ = say("inspect", tmp_path)
    assert f"({command})" in out and "no: run the same command again" in out
    assert "train base: 1.5 s" in out and "seed = 3" in out


def test_inspect_a_finished_experiment(tmp_path: Path, say: Say) -> None:
    result = PollutionResult(title="digits", headline="FD 20 -> 10.", data=Data("digits"), levels=(0.0,), repeats=1)
    write_json(tmp_path / "config.json", {"format": 2, "command": "pollution"})
    write_json(tmp_path / "summary.json", to_json(result))
    _, out, _ = say("inspect", tmp_path)
    assert "FD 20 -> 10." in out and "yes" in out and "report.html" in out


def test_inspect_a_run_of_another_version(tmp_path: Path, say: Say) -> None:
    (tmp_path / "config.json").write_text('{"methods": ["base", "sims"], "seed": 3}')
    status, out, err = say("inspect", tmp_path)
    assert status == 2 and not out and "with the version that made it" in err


def test_inspect_something_else(tmp_path: Path, say: Say) -> None:
    for path, said in ((tmp_path, "is no model, store or run"), (tmp_path / "x", "does not exist")):
        status, out, err = say("inspect", path)
        assert status == 2 and said in err and out == ""
