"""Latent models: pictures to latents and back, and the whole job with an autoencoder, without one, with a wrong one."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from sims.cli import main
from sims.data.codec import EDM2_LATENTS, UINT8, Codec, Latents
from sims.data.dataset import Dataset
from sims.data.pictures import encode_png
from sims.data.sources import load, load_pair
from sims.data.store import Store
from sims.errors import UserError
from sims.experiments.cost import rates
from sims.interop import latents as module
from sims.interop.latents import Autoencoder, latent_codec, latent_shape, open_vae, to_images, with_vae
from sims.model import Model
from sims.model import load as load_model

diffusers = pytest.importorskip("diffusers", reason="needs the package diffusers: pip install '.[diffusers]'")

SIDE = 16
JOB = [
    *tiny.JOB,
    "--base.images",
    "1280",
    "--methods",
    "base,sims",
    "--sampler.steps",
    "3",
    "--guidance.cache-cost",
    "0",
]
JOB += [
    "--auxiliary.samples",
    "64",
    "--auxiliary.budgets",
    "640",
    "--auxiliary.train.batch",
    "64",
    "--search.rungs",
    "20",
]
JOB += ["--search.limit", "100", "--evaluation.samples", "40", "--evaluation.manifold-samples", "20"]


def autoencoder(folder: Path, **config: Any) -> Path:
    """A tiny AutoencoderKL with drawn weights: pictures of 16 x 16 become latents of 4 x 8 x 8."""
    settings = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "scaling_factor": 0.5,
        "shift_factor": 0.1,
        **config,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        diffusers.AutoencoderKL(**settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return autoencoder(tmp_path_factory.mktemp("vae"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 digits as RGB pictures of 16 x 16, a file each."""
    folder = tmp_path_factory.mktemp("pictures")
    raw = load("digits", limit=120).raw[:].repeat(2, axis=2).repeat(2, axis=3).repeat(3, axis=1) * 15
    for i, pixels in enumerate(raw):
        (folder / f"{i:04d}.png").write_bytes(encode_png(pixels))
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, vae: Path) -> Path:
    """A freshly drawn EDM2 network of latents, as EDM2's own: it knows how they are scaled, but no autoencoder."""
    raw = np.random.default_rng(0).normal(0, 0.5, (4, 4, 8, 8)).astype(np.float32)
    data = Dataset(raw, None, Codec("latents", -1.5, 1.5, "float32", EDM2_LATENTS))
    model = tiny.model(data, type="edm2", width=8, blocks=1, channel_mult=(1, 1), attention=(), sigma_data=0.5)
    return model.save(tmp_path_factory.mktemp("network"))


def images(count: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, SIDE, SIDE), dtype=np.uint8)


# -- the autoencoder ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [None, EDM2_LATENTS])
def test_there_and_back(vae: Path, scaled: Latents | None) -> None:
    codec = latent_codec(vae, scaled)
    one, raw = open_vae(codec), images()
    latents = one.encode(raw)
    theirs: Any = diffusers.AutoencoderKL.from_pretrained(vae)
    x = torch.from_numpy(raw).float() / 255
    with torch.no_grad():
        mean = theirs.encode(x if scaled else 2 * x - 1).latent_dist.mean
        decoded = theirs.decode(mean).sample
    if scaled:  # what EDM2 is trained on: each channel standardized, times 0.5
        shift, std = (torch.tensor(v)[:, None, None] for v in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]))
        torch.testing.assert_close(latents, (mean - shift) / std * 0.5)
    else:
        torch.testing.assert_close(latents, (mean - 0.1) * 0.5)
    expected = decoded.clamp(0, 1) * 255 if scaled else (decoded.clamp(-1, 1) + 1) * 127.5
    assert np.abs(one.decode(latents).astype(float) - expected.numpy()).max() <= 0.51
    assert to_images(codec, latents).shape == (5, SIDE, SIDE, 3)
    small = Autoencoder(one.vae, codec.latents, batch_size=2)
    torch.testing.assert_close(small.encode(raw), latents)
    assert torch.equal(UINT8.encode(one.decode(latents)), one.pixels(latents))
    assert one.pixel_shape((4, 8, 8)) == (3, SIDE, SIDE) and latent_shape(codec, (3, SIDE, SIDE)) == (4, 8, 8)


def test_statistics_of_each_channel(tmp_path: Path) -> None:
    mean, std = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 4.0, 8.0]
    folder = autoencoder(tmp_path / "vae", latents_mean=mean, latents_std=std, scaling_factor=1.0)
    found = latent_codec(folder).latents
    assert found is not None and found.shift == tuple(mean) and found.scale == (1.0, 0.5, 0.25, 0.125)


def test_latents_are_made_once(vae: Path, tmp_path: Path) -> None:
    codec, raw = latent_codec(vae), images()
    data = Dataset(raw, np.array([0, 1, 2, 0, 1]), UINT8)
    said: list[str] = []
    one = open_vae(codec)
    made = one.dataset(data, codec, tmp_path, said.append)
    assert len(said) == 1 and "0.00 GB" in said[0] and torch.equal(made.batch(slice(None))[0], one.encode(raw))
    again = Autoencoder(one.vae, codec.latents)
    again.encode = None  # type: ignore[method-assign,assignment]  # not called again
    found = again.dataset(data, codec, tmp_path, said.append)
    assert len(said) == 1 and found.num_classes == 3 and found.data_shape == (4, 8, 8)
    assert found.fingerprint == made.fingerprint and np.array_equal(found.raw, made.raw)
    other = Dataset(raw[::-1].copy(), data.labels, UINT8)
    assert one.dataset(other, codec, tmp_path, said.append).fingerprint != made.fingerprint and len(said) == 2


def test_a_codec_survives_and_its_place_is_no_content(vae: Path, tmp_path: Path) -> None:
    codec = latent_codec(vae)
    assert Codec.from_json(json.loads(json.dumps(codec.to_json()))) == codec
    moved = latent_codec(shutil.copytree(vae, tmp_path / "moved"))
    assert moved != codec and moved.identity == codec.identity
    raw = np.zeros((2, 4, 8, 8), np.float32)
    assert Dataset(raw, None, codec).fingerprint == Dataset(raw, None, moved).fingerprint
    assert Dataset(raw, None, codec).fingerprint != Dataset(raw, None, latent_codec(vae, EDM2_LATENTS)).fingerprint
    assert with_vae(codec, tmp_path / "moved", (4, 8, 8)) == moved
    with pytest.raises(UserError, match="they go together"):
        Codec("latents", -1.0, 1.0, "float32")
    with pytest.raises(UserError, match="no scale of 0"):
        Latents(scale=(0.0,))


# -- the whole job -----------------------------------------------------------------------------------------------------


def test_improve_a_latent_model(
    network: Path, pictures: Path, vae: Path, tmp_path: Path, say: tiny.Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, cache = tmp_path / "run", tmp_path / "cache"
    words = ["improve", "--run", run, *JOB, *tiny.PCA, "--methods", "base,sims,neon"]
    words += ["--model", network, "--vae", vae]
    words += ["--data.path", pictures, "--data.source.cache", cache]
    monkeypatch.setattr(rates, "SECONDS", 0.1)
    status, out, err = say(*words, "--dry-run")
    assert status == 0 and "4x8x8" in out and not cache.exists() and not run.exists(), err
    status, out, err = say(*words)
    assert status == 0, err
    improved = load_model(run / "improved")
    assert improved.data_shape == (4, 8, 8) and improved.codec.latents is not None
    assert improved.codec.latents.shift == EDM2_LATENTS.shift and improved.codec.latents.vae == str(vae.resolve())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {row["method"] for row in rows} == {"base", "sims", "neon"}
    near = ("memorized", "distance_ratio")  # measured among latents
    assert all(row["dtype"].startswith("decoded by autoencoder") for row in rows if row["metric"] not in near)
    store = Store.read(next((run / "artefacts").glob("synthetic-*")))
    assert store.data_shape == (4, 8, 8) and store.codec.kind == "latents"  # the auxiliary's data
    with np.load(run / "grids.npz") as grids:
        assert all(grids[name].shape[1:] == (SIDE, SIDE, 3) for name in grids.files if name != "seeds")
    encoded = sorted(cache.rglob("latents-*.npy"))
    assert len(encoded) == 2  # training and held-out pictures
    (run / "summary.json").unlink()  # as if killed at the end: nothing is computed again
    written = {file: file.stat().st_mtime_ns for folder in (cache, run / "draws", run / "search", run / "artefacts")
               for file in folder.rglob("*") if file.is_file()}  # fmt: skip
    assert say(*words)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in written} == written
    status, out, err = say("sample", run / "improved", "--seeds", "0-2", "--out", tmp_path / "samples")
    assert status == 0 and "one PNG per seed" in out, err
    assert load(tmp_path / "samples", limit=1).data_shape == (3, SIDE, SIDE)
    words = ["evaluate", run / "improved", "--reference", pictures, "--samples", 30, "--draws", 1, "--extractor", "pca"]
    status, out, err = say(*words, "--metrics", "fd", "--cache", cache, "--json")
    assert status == 0 and json.loads(out)["metrics"]["fd"]["mean"] > 0, err


def test_a_base_of_latents_is_trained_first(pictures: Path, vae: Path, tmp_path: Path) -> None:
    words = ["improve", "--run", str(tmp_path / "run"), *JOB, *tiny.PCA, "--vae", str(vae)]
    words += ["--data.path", str(pictures), "--data.source.cache", str(tmp_path / "cache")]
    assert main(words) == 0
    model = load_model(tmp_path / "run" / "improved")
    assert model.data_shape == (4, 8, 8) and model.codec == latent_codec(vae)


def test_without_an_autoencoder_all_but_pixels(network: Path, tmp_path: Path, say: tiny.Say) -> None:
    file = tmp_path / "latents.npz"
    np.savez(file, latents=np.random.default_rng(0).normal(0, 0.5, (120, 4, 8, 8)).astype(np.float32))
    words = ["improve", "--run", tmp_path / "run", *JOB, "--model", network, "--data.path", file]
    status, _, err = say(*words, *tiny.PCA)
    assert status == 0, err
    assert load_model(tmp_path / "run" / "improved").codec.latents == EDM2_LATENTS
    assert "samples.npz with latents" in say("sample", network, "--seeds", "0-1", "--out", tmp_path / "samples")[1]


# -- one sentence each, before anything is computed --------------------------------------------------------------------


def test_bad_input(network: Path, pictures: Path, vae: Path, tmp_path: Path, say: tiny.Say) -> None:
    wide = autoencoder(tmp_path / "wide", latent_channels=8)
    deep = autoencoder(
        tmp_path / "deep",
        block_out_channels=(8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    other = autoencoder(tmp_path / "other", shift_factor=0.2)
    weightless = shutil.copytree(vae, tmp_path / "weightless", ignore=shutil.ignore_patterns("*.safetensors"))
    known = Model(**vars(load_model(network)))
    known = Model(known.denoiser, with_vae(known.codec, vae, known.data_shape), known.sampler).save(tmp_path / "known")
    data = ["--data.path", pictures]
    for words, message in (
        ([*data], "makes latents, and .* holds pictures: give the folder of the autoencoder with --vae"),
        ([*data, "--vae", wide], "latents of 8 channels, and the model makes 4"),
        ([*data, "--vae", deep], r"become latents of shape \(4, 4, 4\), and .* makes \(4, 8, 8\)"),
        ([*data, "--vae", vae, "--data.source.size", 15], "multiples of 2; resize"),
        ([*data, "--vae", vae, "--data.source.grayscale"], "takes 3 channels"),
        ([*data, "--vae", tmp_path / "nothing"], "no autoencoder at .*/nothing"),
        ([*data, "--vae", weightless], "has no weights as safetensors"),
        ([*data, "--vae", network], "no autoencoder at"),
        ([*data, "--vae", other, "--model", known], "another one than the model was made with"),
        (["--data.path", "none", "--evaluation.extractor", "inception"], "inception looks at pixels"),
    ):
        run = tmp_path / "run"
        status, _, err = say("improve", "--run", run, *JOB, "--model", network, *words)
        assert status == 2 and len(err.strip().splitlines()) == 1, (words, err)
        assert re.search(message, err), err
        assert say("improve", "--run", run, *JOB, "--model", network, *words, "--dry-run")[::2] == (2, err)
        assert not (run / "artefacts").exists() and not (run / "references").exists()
    status, _, err = say("improve", "--run", tmp_path / "run", *JOB, "--vae", wide, "--model", tiny_pixels(tmp_path))
    assert status == 2 and "leave out --vae" in err
    status, _, err = say("sample", network, "--vae", wide, "--out", tmp_path / "out")
    assert status == 2 and "latents of 8 channels" in err and not (tmp_path / "out").exists()


def tiny_pixels(folder: Path) -> Path:
    return tiny.model(load_pair("digits", limit=20)[0].without_labels()).save(folder / "pixels")


def test_pixels_need_an_autoencoder_and_the_same_one(vae: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no autoencoder that decodes them is known: give the folder"):
        open_vae(Codec("latents", -1.5, 1.5, "float32", EDM2_LATENTS))
    copied = shutil.copytree(vae, tmp_path / "vae")
    codec = latent_codec(copied)
    module._open.cache_clear()
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**config, "scaling_factor": 0.7}))
    with pytest.raises(UserError, match="has changed since it was named"):
        open_vae(codec)
    (copied / "config.json").write_text(json.dumps({**config, "_class_name": "VQModel"}))
    with pytest.raises(UserError, match="holds a 'VQModel', and no AutoencoderKL"):
        latent_codec(copied)
