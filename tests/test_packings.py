"""The same pictures with the same labels and the same division are the same data, however they are packed."""

from __future__ import annotations

import csv
import gzip
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.data.check import check
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.data.pictures import SourceOptions, encode_png
from sims.data.sources import load, load_pair
from sims.data.store import Store, StoreHeader

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
NAMES = ("0", "1", "2")
Part = tuple[np.ndarray, np.ndarray]  # pixels (n, C, H, W), labels (n,)
SIDES = (6, 5)


def parts(seed: int, channels: int, divided: bool) -> dict[str, Part]:
    """60 pictures sorted by class: 48 to train on and 12 held out, or all in one ("")."""
    rng = np.random.default_rng(seed)
    return {
        part: (rng.integers(0, 256, (count, channels, *SIDES), dtype=np.uint8), np.sort(np.arange(count) % 3))
        for part, count in ({"train": 48, "test": 12} if divided else {"": 60}).items()
    }


def words(labels: np.ndarray) -> list[str]:
    return [NAMES[label] for label in labels]


# -- one part each -----------------------------------------------------------------------------------------------------


def class_folders(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    for i, (picture, name) in enumerate(zip(pixels, words(labels))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{i:03d}.png").write_bytes(encode_png(picture))


def flat(folder: Path, pixels: np.ndarray, suffix: str = ".png") -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}{suffix}" for i in range(len(pixels))]
    for name, picture in zip(names, pixels):
        (folder / name).write_bytes(encode_png(picture))
    return names


def dataset_json(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    pairs = [[name, int(label)] for name, label in zip(flat(folder, pixels), labels)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))


def metadata(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    rows = zip(flat(folder, pixels, suffix=""), words(labels))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "label"), *rows])


def arrays(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    for i, (picture, name) in enumerate(zip(pixels, words(labels))):
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / name / f"{i:03d}.npy", picture)


def store(folder: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    codec = Codec("pixels", 0.0, 255.0, "uint8")
    header = StoreHeader("pixels", pixels.shape[1:], codec, len(pixels), len(NAMES), NAMES, {}, 25)
    opened = Store.open(folder, header)
    for shard in opened.missing():
        rows = np.array(header.indices(shard))
        opened.write(shard, pixels[rows], rows, labels[rows], model="m", method="base", w=0.0)
    opened.finish()


# -- files with many samples -------------------------------------------------------------------------------------------


def npz(file: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    np.savez(file, images=pixels.transpose(0, 2, 3, 1), labels=labels)


def parquet(file: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    cells = pa.array([{"bytes": encode_png(picture), "path": None} for picture in pixels], CELL)
    table = pa.table({"image": cells, "label": pa.array(words(labels)).dictionary_encode()})
    pq.write_table(table, file, row_group_size=7)


def table_of_arrays(file: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    lists = pa.array(pixels.transpose(0, 2, 3, 1).tolist(), pa.list_(pa.list_(pa.list_(pa.uint8()))))
    pq.write_table(pa.table({"image": lists, "label": labels}), file)


def idx(folder: Path, prefix: str, pixels: np.ndarray, labels: np.ndarray, packed: bool) -> None:
    shape = (len(pixels), *SIDES, *([] if pixels.shape[1] == 1 else [pixels.shape[1]]))
    for name, values in (("images", pixels.transpose(0, 2, 3, 1).reshape(shape)), ("labels", labels.astype(np.uint8))):
        head = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
        data = head + values.tobytes()
        file = folder / f"{prefix}{name}-idx{values.ndim}-ubyte{'.gz' if packed else ''}"
        file.write_bytes(gzip.compress(data) if packed else data)


# -- packings ----------------------------------------------------------------------------------------------------------

TITLES = {"": "", "train": "train", "test": "test"}
PART_FOLDERS = {
    "class folders": (class_folders, TITLES),
    "class folders, other spelling": (class_folders, {"": "", "train": "Training", "test": "TEST"}),
    "class folders, validation": (class_folders, {"": "", "train": "TRAIN", "test": "val"}),
    "class folders, one deeper": (class_folders, {"": "my data", "train": "my data/train", "test": "my data/test"}),
    "dataset.json": (dataset_json, TITLES),
    "metadata.csv": (metadata, TITLES),
    "npy files": (arrays, TITLES),
    "store": (store, TITLES),
}
FILES: dict[str, tuple[Callable[..., None], str]] = {
    "npz": (npz, ".npz"),
    "parquet": (parquet, ".parquet"),
    "parquet of arrays": (table_of_arrays, ".parquet"),
}


def zipped(folder: Path, separator: str, top: str) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            archive.writestr(separator.join([top, *file.relative_to(folder).parts]).lstrip("/"), file.read_bytes())
    return path


def packed(kind: str, root: Path, data: dict[str, Part]) -> Path:
    out = root / "set"
    if kind in PART_FOLDERS:
        write, titles = PART_FOLDERS[kind]
        for part, (pixels, labels) in data.items():
            write(out / titles[part], pixels, labels)
    elif kind.startswith("zip of "):
        inner, separator, top = ZIPS[kind]
        return zipped(packed(inner, root, data), separator, top)
    else:
        out.mkdir()
        for part, (pixels, labels) in data.items():
            name = part or "all"
            if kind in FILES:
                write, suffix = FILES[kind]
                write(out / f"{name}-00000-of-00001{suffix}", pixels, labels)
            elif kind.startswith("idx"):
                idx(out, {"train": "train-", "test": "t10k-", "": ""}[part], pixels, labels, kind.endswith("gz"))
            else:
                (out / "blobs").mkdir(exist_ok=True)
                parquet(out / "blobs" / name, pixels, labels)
                for revision in ("one", "two"):
                    (out / "snapshots" / revision / "data").mkdir(parents=True, exist_ok=True)
                    link = out / "snapshots" / revision / "data" / f"{name}-0.parquet"
                    os.symlink(f"../../../blobs/{name}", link)
    return out


ZIPS = {
    "zip of class folders": ("class folders", "/", ""),
    "zip of class folders, \\": ("class folders", "\\", "data"),
    "zip of class folders, ./": ("class folders", "/", "."),
    "zip of dataset.json": ("dataset.json", "/", "data"),
    "zip of metadata.csv": ("metadata.csv", "/", "data"),
}
PACKINGS = (*PART_FOLDERS, *FILES, *ZIPS, "idx", "idx.gz", "hub cache")
OPTIONS = (SourceOptions(), SourceOptions(grayscale=True), SourceOptions(size=4), SourceOptions(size=(3, 5)))


def same(ours: Dataset, theirs: Dataset) -> None:
    assert np.array_equal(ours.raw, theirs.raw) and ours.class_names == theirs.class_names == NAMES
    assert ours.labels is not None and theirs.labels is not None and np.array_equal(ours.labels, theirs.labels)
    assert ours.fingerprint == theirs.fingerprint


@pytest.mark.parametrize("kind", PACKINGS)
@settings(max_examples=4, deadline=None)
@given(
    st.integers(0, 2**20), st.sampled_from((1, 3)), st.booleans(), st.sampled_from(OPTIONS), st.sampled_from((None, 20))
)
def test_the_same_pictures_are_the_same_data(
    kind: str, seed: int, channels: int, divided: bool, options: SourceOptions, limit: int | None
) -> None:
    data = parts(seed, channels, divided)
    with TemporaryDirectory() as place:
        path = packed(kind, Path(place), data)
        found = load_pair(path, seed=seed, options=options, limit=limit)
        plain = Path(place) / "plain.npz"
        expected: list[Dataset] = []
        for pixels, labels in data.values():
            npz(plain, pixels, labels)
            if divided:
                expected.append(load(plain, options=options, limit=limit if not expected else None))
            else:
                expected += load_pair(plain, seed=seed, options=options, limit=limit)
        for ours, theirs in zip(found, expected, strict=True):
            same(ours, theirs)
        report = check(path, options)
        assert report.ok and report.count == 60 and not report.passed_over, report.lines()


def test_of_three_stores_the_test_part_is_held_out(tmp_path: Path) -> None:
    data = {**parts(1, 3, True), "val": parts(2, 3, True)["test"]}
    for part, (pixels, labels) in data.items():
        store(tmp_path / part, pixels, labels)
    assert np.array_equal(load_pair(tmp_path)[1].raw, data["test"][0])
    report = check(tmp_path)
    assert report.parts == {"train": 48, "test": 12} and report.passed_over == {"val": "beside the stores"}


def test_images_packed_by_gzip_are_known_whatever_they_hold(tmp_path: Path) -> None:
    """Where a file's values differ much in how often they occur, its first block begins with a long table."""
    values = np.random.default_rng(0).geometric(0.02, (60, 1, *SIDES)).clip(0, 255).astype(np.uint8)
    values = np.where(np.random.default_rng(1).random(values.shape) < 0.5, 0, values).astype(np.uint8)
    idx(tmp_path, "", values.repeat(40, axis=0), np.arange(2400) % 3, packed=True)
    assert sum(len(part) for part in load_pair(tmp_path)) == 2400


@pytest.mark.parametrize("divided", [True, False])
def test_what_is_expected_is_what_was_packed(divided: bool, tmp_path: Path) -> None:
    """The comparison above rests on npz files: they hold the pictures themselves."""
    data = parts(1, 3, divided)
    train, test = load_pair(packed("npz", tmp_path, data))
    if divided:
        for found, (pixels, labels) in zip((train, test), data.values()):
            assert np.array_equal(found.raw, pixels) and found.labels is not None
            assert np.array_equal(found.labels, labels)
    else:
        pixels, labels = data[""]
        rows = np.concatenate([part.columns["row"] for part in (train, test)])
        assert sorted(rows.tolist()) == list(range(60)) and len(test) == 6
        assert np.array_equal(np.concatenate([train.raw, test.raw]), pixels[rows])
        assert all(np.array_equal(part.labels, labels[part.columns["row"]]) for part in (train, test))
