"""Data larger than memory: decoded once into a file, read from there; arrays that are mapped; the Hugging Face hub."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import tiny
from sims.data import hf, hub, mapped, readers
from sims.data.check import check
from sims.data.codec import EDM2_LATENTS, UINT8, Codec
from sims.data.dataset import Dataset, View
from sims.data.mapped import Rows
from sims.data.pictures import SourceOptions, encode_png
from sims.data.sources import load, load_pair
from sims.errors import UserError
from sims.training.trainer import Trainer, TrainOptions

PIXELS = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything above 1000 bytes is large."""
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    monkeypatch.setattr(readers, "IN_MEMORY", 1000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Sixty pictures of three classes."""
    for i, pixels in enumerate(PIXELS):
        file = tmp_path / "pictures" / "abc"[i % 3] / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels))
    return tmp_path / "pictures"


def cached(tmp_path: Path) -> SourceOptions:
    return SourceOptions(cache=tmp_path / "cache")


# -- decoded once ------------------------------------------------------------------------------------------------------


def test_decoded_once_and_the_same(small: None, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    data = load(folder, options=cached(tmp_path))
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("decoding 60 samples of pictures: 0.00 GB in ")
    order = [3 * i + k for k in range(3) for i in range(20)]  # as the class folders have them
    assert isinstance(data.raw, Rows) and np.array_equal(data.raw, PIXELS[order]) and data.codec == UINT8
    for picture in folder.rglob("*.png"):  # touched: found again by content
        os.utime(picture)
    again = load(folder, options=cached(tmp_path))
    assert again.fingerprint == data.fingerprint and not capsys.readouterr().err
    for options, limit in ((SourceOptions(size=4, cache=tmp_path / "cache"), None), (cached(tmp_path), 30)):
        other = load(folder, options=options, limit=limit)
        assert isinstance(other.raw, Rows) and other.fingerprint != data.fingerprint and capsys.readouterr().err
    next(iter(folder.rglob("*.png"))).write_bytes(encode_png(255 - PIXELS[0]))
    assert load(folder, options=cached(tmp_path)).fingerprint != data.fingerprint
    assert not list((tmp_path / "cache").rglob(".*"))  # no lock, no part, no notes


def test_a_set_on_disk_behaves_like_one_in_memory(small: None, folder: Path, tmp_path: Path) -> None:
    data = load(folder, options=cached(tmp_path))
    there = Dataset(np.array(data.raw), data.labels, data.codec, data.class_names)
    for pair in (data.split(0.2, 1), there.split(0.2, 1)), (data.subset([5, 1, 1]), there.subset([5, 1, 1])):
        for a, b in zip(*pair) if isinstance(pair[0], tuple) else [pair]:
            assert isinstance(a.raw, Rows) and not isinstance(b.raw, Rows)
            assert torch.equal(a.all()[0], b.all()[0]) and np.array_equal(a.labels, b.labels) and a.std() == b.std()
            assert all(np.array_equal(x, y) for x, y in zip(a.raw, b.raw))
    index = np.array([7, 3, 3, 59])
    assert torch.equal(data.batch(index)[0], there.batch(index)[0])
    assert np.array_equal(data.raw[4], there.raw[4]) and data.batch([])[0].shape == (0, 3, 8, 8)
    view = View(data.subset(index), lambda x: x[:, :1])
    assert view.shape == (4, 1, 8, 8) and torch.equal(view[1:3], there.batch([3, 3])[0][:, :1])
    assert data.subset([1, 2]).fingerprint != data.subset([2, 1]).fingerprint


def test_training_reads_it_and_gives_the_same_bits(small: None, folder: Path, tmp_path: Path) -> None:
    data = load(folder, options=cached(tmp_path)).without_labels()
    weights = []
    for name, one in (("disk", data), ("memory", Dataset(np.array(data.raw), None, data.codec))):
        start = tiny.model(Dataset(PIXELS, None, UINT8))
        trained = Trainer(start, one, TrainOptions(batch=16), tmp_path / name, images=160, seed=1).run()
        weights.append((trained.last / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


def test_a_killed_decoding_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, made = tmp_path / "x-abc.npy", []

    def make(rows: range, stop: int = 1000) -> np.ndarray:
        if rows.stop > stop:
            raise KeyboardInterrupt
        made.extend(rows)
        return PIXELS[rows.start : rows.stop]

    monkeypatch.setattr(mapped, "_EVERY", 0.0)
    said: list[str] = []
    how: dict[str, Any] = {"block": 8, "what": "decoding", "log": said.append}
    with pytest.raises(KeyboardInterrupt):
        mapped.mapped(tmp_path, lambda: file.stem, PIXELS.shape, PIXELS.dtype, lambda rows: make(rows, 30), **how)
    assert not file.exists() and made == list(range(24))
    found = mapped.mapped(tmp_path, lambda: file.stem, PIXELS.shape, PIXELS.dtype, make, **how)
    assert np.array_equal(found, PIXELS) and made == list(range(60))
    assert any("24 are there already" in text for text in said) and any("ETA" in text for text in said)
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="is damaged: remove it"):
        mapped.mapped(tmp_path, lambda: file.stem, PIXELS.shape, PIXELS.dtype, make, **how)


def test_two_that_want_the_same_make_it_once(tmp_path: Path) -> None:
    made: list[range] = []
    ready = threading.Barrier(2)

    def make(rows: range) -> np.ndarray:
        made.append(rows)
        return PIXELS[rows.start : rows.stop]

    def work() -> None:
        ready.wait()
        how: dict[str, Any] = {"block": 10, "what": "decoding", "log": lambda text: None}
        assert np.array_equal(mapped.mapped(tmp_path, lambda: "x-1", PIXELS.shape, PIXELS.dtype, make, **how), PIXELS)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 6


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_full_disk_is_one_sentence(
    when: str, small: None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = mapped.shutil.disk_usage
    if when == "before":
        monkeypatch.setattr(mapped.shutil, "disk_usage", lambda path: usage(path)._replace(free=10))
        message = r"needs 0\.00 GB in .* and 0\.00 GB are free.*option 'source\.cache'"
    else:
        load(folder, options=cached(tmp_path), limit=59)  # the content is known from here on
        for made in (tmp_path / "cache").rglob("decoded-*"):
            made.unlink()
        monkeypatch.setattr(mapped.os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
        message = "no space left on the device while decoding 60 samples.*same command again"
    with pytest.raises(UserError, match=message):
        load(folder, options=cached(tmp_path))
    assert not list((tmp_path / "cache").rglob("decoded-*"))
    monkeypatch.undo()
    monkeypatch.setattr(mapped, "IN_MEMORY", 1000)
    assert np.array_equal(
        np.sort(np.array(load(folder, options=cached(tmp_path)).raw).ravel()), np.sort(PIXELS.ravel())
    )


def test_a_broken_picture_is_named(small: None, folder: Path, tmp_path: Path) -> None:
    (folder / "b" / "031.png").write_bytes(b"junk")
    with pytest.raises(UserError, match=r"b/031\.png in pictures cannot be read"):
        load(folder, options=cached(tmp_path))


def test_memory_stays_small(tmp_path: Path) -> None:
    """A set of 154 MB is split and read in batches by a process that may hold far less."""
    code = f"""
import numpy as np, sklearn.model_selection, torch
from sims.data.sources import load_pair
from sims.training.training_noise import DataOrder
file = {str(tmp_path / "big.npy")!r}
np.lib.format.open_memmap(file, "w+", np.uint8, (50_000, 3, 32, 32)).flush()
with open("/proc/self/status") as status:
    before = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
train, test = load_pair(file)
order = DataOrder(0, len(train))
for step in range(20):
    x, _ = train.batch(order.indices(256 * step, 256))
train.fingerprint
with open("/proc/self/status") as status:
    after = next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))
print((after - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 70, done.stdout  # MiB


# -- files of arrays ---------------------------------------------------------------------------------------------------


def test_a_large_npz_is_mapped(small: None, tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(size=(40, 4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", latents=latents, labels=np.arange(40) % 3)
    data = load(tmp_path / "x.npz")
    assert isinstance(data.raw, np.memmap) and np.array_equal(data.raw, latents) and data.num_classes == 3
    assert isinstance(load_pair(tmp_path / "x.npz")[0].raw, Rows)
    np.savez_compressed(tmp_path / "y.npz", latents=latents, labels=np.arange(40) % 3)
    read = load(tmp_path / "y.npz")
    assert not isinstance(read.raw, np.memmap) and read.fingerprint == data.fingerprint
    np.savez(tmp_path / "z.npz", latents=np.asfortranarray(latents))
    assert np.array_equal(load(tmp_path / "z.npz").raw, latents)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_latents_as_edm2_keeps_them(kind: str, tmp_path: Path) -> None:
    """Mean and deviation of the posterior, (8, h, w) float32, an .npy for each picture, labels in dataset.json."""
    moments = np.random.default_rng(0).normal(size=(6, 8, 4, 4)).astype(np.float32)
    names = [f"0000{i // 3}/img-mean-std-{i:08d}.npy" for i in range(6)]
    files = {}
    for name, values in zip(names, moments):
        buffer = io.BytesIO()
        np.save(buffer, values)
        files[name] = buffer.getvalue()
    files["dataset.json"] = json.dumps({"labels": [[name, i % 2] for i, name in enumerate(names)]}).encode()
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for name, content in files.items():
                archive.writestr(f"set/{name}", content)
    else:
        for name, content in files.items():
            (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "x" / name).write_bytes(content)
    path = tmp_path / ("x.zip" if kind == "zip" else "x")
    data = load(path)
    assert data.codec == Codec("latents", -1.5, 1.5, "float32", EDM2_LATENTS) and data.labels is not None
    mean, std = (np.array(v)[:, None, None] for v in ([5.81, 3.25, 0.12, -2.15], [4.17, 4.62, 3.71, 3.28]))
    assert np.allclose(data.raw, (moments[:, :4] - mean) / std * 0.5, atol=1e-6)
    assert data.labels.tolist() == [0, 1] * 3 and check(path).count == 6
    with pytest.raises(UserError, match="holds latents, no pictures"):
        load(path, options=SourceOptions(size=2))


def test_arrays_of_pixels_in_a_folder(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", PIXELS[i])
    assert np.array_equal(load(tmp_path).raw, PIXELS[:3]) and load(tmp_path).codec == UINT8
    np.save(tmp_path / "3.npy", np.zeros(4))
    with pytest.raises(UserError, match=r"3\.npy in .* cannot be read as a picture \(an array of shape \(4,\)"):
        load(tmp_path)
    (tmp_path / "3.npy").write_bytes((tmp_path / "2.npy").read_bytes()[:-5])
    with pytest.raises(UserError, match=r"3\.npy in .* cannot be read"):
        load(tmp_path)


def table(raw: np.ndarray, **metadata: Any) -> pa.Table:
    cells = pa.array([{"bytes": encode_png(pixels), "path": None} for pixels in raw], hf.IMAGE)
    return pa.table({"image": cells, "label": pa.array(np.arange(len(raw)) % 3)})


def test_parquet_keeps_few_row_groups_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    original = pq.ParquetFile.read_row_group

    def counted(self: Any, number: int, **options: Any) -> Any:
        read.append(number)
        return original(self, number, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    for i in range(2):
        pq.write_table(table(PIXELS[30 * i : 30 * i + 30]), tmp_path / f"{i}.parquet", row_group_size=5)
    found = readers.open_source(tmp_path).train
    assert isinstance(found, readers.Pictures) and len(found.names) == 60 and not read
    assert found.names[31] == "1.parquet row 1" and found.names[29:31] == ["0.parquet row 29", "1.parquet row 0"]
    with pytest.raises(IndexError):
        found.names[60]
    data = load(tmp_path)
    assert np.array_equal(data.raw, PIXELS) and {*read} == {*range(6)}
    assert len(read) <= 18  # each of the 12 once, but for what a thread that fell behind needs again
    cells: Any = found.read.__self__  # type: ignore[attr-defined]
    for i in range(0, 60, 5):
        found.read(i)
    assert len(cells._kept) <= 8


# -- the hub -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package datasets, whose hub is a folder: owner/name is streamed from its parquet files."""
    datasets = pytest.importorskip("datasets", reason="needs the package datasets")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "theirs"))
    origin = tmp_path / "origin"
    origin.mkdir()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])})
    for part, raw in (("train", PIXELS[:48]), ("test", PIXELS[48:])):
        metadata = features.arrow_schema.metadata
        pq.write_table(table(raw).replace_schema_metadata(metadata), origin / f"{part}-0.parquet", row_group_size=7)
    files = {part: str(origin / f"{part}-0.parquet") for part in ("train", "test")}
    original = datasets.load_dataset

    def load_dataset(name: str, *, split: str, streaming: bool) -> Any:
        assert name == "owner/name" and streaming
        return original("parquet", data_files=files, split=split, streaming=True)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: Builder())
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda name: ["train", "test"])
    return datasets


class Builder:
    class info:
        splits = None


def test_the_hub_is_asked_only_when_told_to(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = cached(tmp_path)
    for act in (load, load_pair, check):
        with pytest.raises(UserError, match=r"hf:owner/name is not on this machine: give option 'source\.download'"):
            act("hf:owner/name", options=options)
    allowed = SourceOptions(cache=tmp_path / "cache", download=True)
    monkeypatch.setattr(hub, "_FILE", 3000)  # several files
    train, test = load_pair("hf:owner/name", options=allowed)
    assert np.array_equal(train.raw, PIXELS[:48]) and np.array_equal(test.raw, PIXELS[48:])
    assert train.class_names == ("ant", "bee", "cat") and train.labels is not None and train.labels[1] == 1
    assert len(list((tmp_path / "cache").rglob("train/part-*.parquet"))) > 3
    monkeypatch.setattr(hub, "_fetch", lambda *args: pytest.fail("asked again"))
    assert np.array_equal(load("hf:owner/name", options=options).raw, PIXELS[:48])
    assert len(load("hf:owner/name:test", options=options)) == 12
    found = library.Dataset.from_parquet(str(next((tmp_path / "cache").rglob("train/part-*.parquet"))))
    assert found.features["label"].names == ["ant", "bee", "cat"] and found[0]["image"].size == (8, 8)


def test_an_interrupted_download_continues(library: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = SourceOptions(cache=tmp_path / "cache", download=True)
    monkeypatch.setattr(hub, "_FILE", 3000)
    original, written = pq.write_table, []

    def failing(table: Any, where: Any, **options: Any) -> None:
        if len(written) == 2:
            raise ConnectionError("reset by peer")
        written.append(len(table))
        original(table, where, **options)

    monkeypatch.setattr(pq, "write_table", failing)
    with pytest.raises(UserError, match=r"hf:owner/name:train cannot be fetched \(ConnectionError: reset by peer\)"):
        load("hf:owner/name:train", options=allowed)
    monkeypatch.setattr(pq, "write_table", original)
    said: list[str] = []
    hub.local("hf:owner/name:train", allowed, said.append)
    assert f"  {sum(written):,} rows are there already" in said
    assert np.array_equal(load("hf:owner/name:train", options=allowed).raw, PIXELS[:48])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("hf:", "names no data set of the hub"),
        ("hf:a/b/c", "names no data set of the hub"),
        ("hf:../x", "names no data set of the hub"),
        ("hf:owner/name:dev", "has the parts train, test: choose one, as in hf:owner/name:train"),
    ],
)
def test_wrong_names(source: str, message: str, library: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load(source, options=SourceOptions(cache=tmp_path / "cache", download=True))


def test_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    code = f"""
from sims.data.pictures import SourceOptions
from sims.data.sources import load
from sims.errors import UserError
from pathlib import Path
try:
    load("hf:owner/name", options=SourceOptions(cache=Path({str(tmp_path)!r}), download=True))
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1 and "hf:owner/name cannot be fetched (" in done.stdout


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="need the package datasets"):
        load("hf:owner/name", options=SourceOptions(cache=tmp_path, download=True))
