"""Folders, archives and tables as they are: nothing left out without a word, nothing mistaken for something else."""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import struct
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sims.data import pictures
from sims.data.check import check
from sims.data.division import PARTS, divide, divide_files
from sims.data.listing import mended
from sims.data.pictures import SourceOptions, Unreadable, decode_image, decoded, encode_png
from sims.data.sources import load, load_pair
from sims.errors import UserError

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def raw(count: int, seed: int = 0, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, 6, 5), dtype=np.uint8)


def write(folder: Path, pixels: np.ndarray, suffix: str = ".png") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for i, picture in enumerate(pixels):
        (folder / f"{i:03d}{suffix}").write_bytes(encode_png(picture))
    return folder


# -- parts -------------------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["train", "test", "val", "car", "bus"]), min_size=1, max_size=5, unique=True))
def test_nothing_is_lost_by_dividing(tops: list[str]) -> None:
    names = [f"data/{top}/{i}.png" for top in tops for i in range(2)]
    try:
        divided = divide(names, "x", "auto")
    except UserError as error:
        assert "source.division" in str(error)
        return
    told = sorted([*(name for names_ in divided.parts.values() for name in names_), *divided.left_out])
    assert told == sorted(names)
    if set(divided.parts) == {"train", "test"}:
        assert all("/train/" in name for name in divided.parts["train"])


def test_a_class_called_train_is_a_question(tmp_path: Path) -> None:
    for i, name in enumerate(("car", "bus", "train")):
        write(tmp_path / name, raw(3, i))
    with pytest.raises(UserError, match=r"bus, car beside train.*source\.division"):
        load(tmp_path)
    assert load(tmp_path, options=SourceOptions(division="none")).class_names == ("bus", "car", "train")
    report = check(tmp_path, SourceOptions(division="parts"))
    assert report.count == 3 and len(report.passed_over) == 6
    whole = divide_files(["cars-0.parquet", "steam-train-0.parquet"], "x", "auto")
    assert whole.parts == {"all": ["cars-0.parquet", "steam-train-0.parquet"]} and "cars-0" in whole.remarks[0]
    with pytest.raises(UserError, match="beside files of the parts"):
        divide_files(["a-train.parquet", "a-test.parquet", "more.parquet"], "x", "auto")


# -- what is left out is said ------------------------------------------------------------------------------------------


def test_everything_below_a_path_is_read_or_named(tmp_path: Path) -> None:
    write(tmp_path / "a", raw(4))
    write(tmp_path / "b", raw(4, 1), suffix="")  # no suffix: the first bytes tell
    (tmp_path / "b" / "x.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "a" / "more.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "notes.docx").write_bytes(b"words")
    os.mkfifo(tmp_path / "a" / "pipe")
    os.symlink("/dev/zero", tmp_path / "b" / "zero.png")
    os.symlink("nowhere", tmp_path / "b" / "lost.png")
    for junk in (".DS_Store", "Thumbs.db", "README.txt", "LICENSE"):
        (tmp_path / junk).write_bytes(b"x")
    report = check(tmp_path)
    assert report.ok and report.count == 8 and report.labels == {"a": 4, "b": 4}
    assert sorted(report.passed_over) == ["a/more.zip", "a/pipe", "b/lost.png", "b/x.heic", "b/zero.png", "notes.docx"]
    assert json.loads(json.dumps(report.to_json()))["passed_over"]["a/pipe"] == "no regular file"
    assert "HEIC" in "\n".join(report.lines())
    data = load(tmp_path)
    assert len(data) == 8 and any("HEIC" in note for note in data.notes)


@pytest.mark.parametrize("packed", [False, True])
def test_classes_and_pictures_may_be_called_as_papers_are(packed: bool, tmp_path: Path) -> None:
    """Documents: notices and licences as classes, a picture of a readme."""
    for i, name in enumerate(("invoice", "license", "notice", "cat.md")):
        write(tmp_path / "data" / name, raw(2, i))
    (tmp_path / "data" / "license" / "readme.png").write_bytes(encode_png(raw(1, 9)[0]))
    (tmp_path / "data" / "license" / "copying").write_bytes(encode_png(raw(1, 10)[0]))
    (tmp_path / "data" / "license" / "LICENSE").write_bytes(b"words")
    path = tmp_path / "data"
    if packed:
        path = tmp_path / "data.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted((tmp_path / "data").rglob("*")):
                if file.is_file():
                    archive.write(file, file.relative_to(tmp_path / "data"))
    report = check(path)
    assert report.labels == {"cat.md": 2, "invoice": 2, "license": 4, "notice": 2} and not report.passed_over


def test_two_folders_of_one_part_are_a_question(tmp_path: Path) -> None:
    for i, name in enumerate(("Train/a", "train/b", "test/a")):
        write(tmp_path / name, raw(2, i))
    with pytest.raises(UserError, match=r"holds Train, train, which all name the part train.*source\.division"):
        load_pair(tmp_path)
    (tmp_path / "Train").rename(tmp_path / "Training")
    with pytest.raises(UserError, match="Training, train, which all name the part train"):
        load_pair(tmp_path)
    assert load(tmp_path, options=SourceOptions(division="none")).class_names == ("Training", "test", "train")


def test_a_file_is_its_inode_and_counts_once(tmp_path: Path) -> None:
    write(tmp_path / "a", raw(4))
    write(tmp_path / "b", raw(4, 1))
    os.symlink("..", tmp_path / "a" / "all")
    os.link(tmp_path / "b" / "000.png", tmp_path / "b" / "again.png")
    data = load(tmp_path)
    assert len(data) == 8 and data.labels is not None and np.bincount(data.labels).tolist() == [4, 4]
    write(tmp_path / "elsewhere", raw(2, 2))
    (tmp_path / "linked").mkdir()
    os.symlink("../elsewhere", tmp_path / "linked" / "c")
    write(tmp_path / "linked" / "d", raw(2, 3))
    assert load(tmp_path / "linked").class_names == ("c", "d")


def test_revisions_of_the_hub_are_a_question(tmp_path: Path) -> None:
    for revision in ("one", "two"):
        write(tmp_path / "snapshots" / revision, raw(2, len(revision)))
    write(tmp_path / "snapshots" / "two", raw(3, 9))
    (tmp_path / "blobs").mkdir()
    with pytest.raises(UserError, match="2 revisions"):
        load(tmp_path)
    (tmp_path / "refs").mkdir()
    (tmp_path / "refs" / "main").write_text("two")
    assert len(load(tmp_path)) == 3


@given(st.text(alphabet="ab./\\", max_size=12))
def test_names_in_archives_stay_inside(name: str) -> None:
    parts_ = mended(name).split("/")
    assert ".." not in parts_ and "." not in parts_ and "\\" not in mended(name) and not mended(name).startswith("/")


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("dataset.json", json.dumps([["000.png", 0], ["001.png", 3], ["002.png", 3]])),
        ("dataset.json", json.dumps({"labels": [["000.png", 0], ["001.png", 3], ["002.png", 3]]})),
        ("metadata.csv", "file_name,label\n000.png,0\n001.png,3\n002.png,3\n"),
        (
            "metadata.jsonl",
            "\n".join(json.dumps({"file_name": f"00{i}.png", "label": n}) for i, n in enumerate((0, 3, 3))),
        ),
    ],
)
def test_lists_of_labels_and_gaps_in_their_numbers(file: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, raw(3))
    (tmp_path / file).write_text(text)
    data = load(tmp_path)
    assert data.class_names == ("0", "3") and data.labels is not None and data.labels.tolist() == [0, 1, 1]
    assert check(tmp_path).class_names == ["0", "3"]


@pytest.mark.parametrize("file", ["metadata.csv", "metadata.jsonl", "dataset.json"])
@pytest.mark.parametrize("label", [0, 1])
def test_a_picture_has_one_label(file: str, label: int, tmp_path: Path) -> None:
    """Twice the same is no matter, two are."""
    write(tmp_path, raw(2))
    pairs = [("000.png", 0), ("001.png", 1), ("000.png", label)]
    if file.endswith("csv"):
        text = "\n".join(["file_name,label", *(f"{name},{number}" for name, number in pairs)])
    elif file.endswith("jsonl"):
        text = "\n".join(json.dumps({"file_name": name, "label": number}) for name, number in pairs)
    else:
        text = json.dumps({"labels": pairs})
    (tmp_path / file).write_text(text)
    if label == 0:
        assert load(tmp_path).labels.tolist() == [0, 1]  # type: ignore[union-attr]
        return
    with pytest.raises(UserError, match=r"gives 000\.png the labels 0 and 1"):
        load(tmp_path)


def test_a_list_that_is_not_understood_is_named(tmp_path: Path) -> None:
    write(tmp_path, raw(6))
    (tmp_path / "metadata.csv").write_text("file_name,caption\n000.png,dark\n")
    report = check(tmp_path)
    assert report.ok and any("metadata.csv" in remark for remark in report.remarks)
    (tmp_path / "metadata.csv").write_text("file_name,label\n000.png,dark\n")
    with pytest.raises(UserError, match=r"metadata\.csv in .* has no class for 001\.png"):
        load(tmp_path)


@pytest.mark.parametrize(
    "labels",
    [
        pa.array(["x", "y"] * 3).dictionary_encode(),
        pa.array([0.0, 1.0] * 3),
        pa.array([False, True] * 3),
        pa.array(["x", "y"] * 3, pa.string_view()),
    ],
)
def test_labels_of_every_type(labels: pa.Array, tmp_path: Path) -> None:
    cells = pa.array([{"bytes": encode_png(p), "path": None} for p in raw(6)], CELL)
    pq.write_table(pa.table({"image": cells, "label": labels}), tmp_path / "x.parquet")
    data = load(tmp_path / "x.parquet")
    assert data.num_classes == 2 and data.labels is not None and data.labels.tolist() == [0, 1] * 3


def test_columns_are_known_by_name_or_asked_for(tmp_path: Path) -> None:
    one, other = (pa.array([{"bytes": encode_png(p), "path": None} for p in raw(4, i)], CELL) for i in (0, 1))
    pq.write_table(pa.table({"mask": other, "image": one, "fine_label": [0, 1, 0, 1]}), tmp_path / "mask.parquet")
    report = check(tmp_path / "mask.parquet")
    assert np.array_equal(load(tmp_path / "mask.parquet").raw, raw(4))
    assert any("mask" in remark for remark in report.remarks) and any("fine_label" in r for r in report.remarks)
    chosen = load(tmp_path / "mask.parquet", options=SourceOptions(image_column="mask", label_column="fine_label"))
    assert np.array_equal(chosen.raw, raw(4, 1)) and chosen.num_classes == 2
    pq.write_table(pa.table({"left": one, "right": other}), tmp_path / "pair.parquet")
    with pytest.raises(UserError, match=r"left, right.*source\.image_column"):
        load(tmp_path / "pair.parquet")
    with pytest.raises(UserError, match="can hold samples are left, right"):
        load(tmp_path / "pair.parquet", options=SourceOptions(image_column="middle"))
    lists = pa.array([[{"bytes": encode_png(p), "path": None}] for p in raw(2)], pa.list_(CELL))
    pq.write_table(pa.table({"images": lists}), tmp_path / "lists.parquet")
    with pytest.raises(UserError, match="lists of pictures"):
        load(tmp_path / "lists.parquet")


# -- values ------------------------------------------------------------------------------------------------------------


def png16(values: np.ndarray, filters: list[int]) -> bytes:
    """A 16-bit PNG of (H, W, C) uint16, a filter a line, written by the formulas of the specification."""
    height, width, channels = values.shape
    step, above, lines = channels * 2, bytes(width * channels * 2), []
    for y in range(height):
        line = values[y].astype(">u2").tobytes()
        out = bytearray([filters[y % len(filters)]])
        for i, byte in enumerate(line):
            a = line[i - step] if i >= step else 0
            b, c = above[i], above[i - step] if i >= step else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((byte - (0, a, b, (a + b) // 2, paeth)[out[0]]) & 255)
        lines.append(bytes(out))
        above = line

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("channels", [1, 3, 4])
@settings(max_examples=15)
@given(seed=st.integers(0, 99), filters=st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_sixteen_bits_of_colour_are_not_cut(channels: int, seed: int, filters: list[int]) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << 16, (5, 4, channels)).astype(np.uint16)
    assert np.array_equal(decode_image(png16(values, filters)), values.transpose(2, 0, 1))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_pictures_of_every_depth_are_set_upright(turn: int, channels: int) -> None:
    """As Pillow turns the upper halves of their values."""
    values = np.random.default_rng(turn).integers(0, 1 << 16, (5, 4, channels)).astype(np.uint16)
    exif = Image.Exif()
    exif[0x0112] = turn
    data, chunk = exif.tobytes()[6:], png16(values, [0])
    where = chunk.index(b"IDAT") - 4
    told = struct.pack(">I", len(data)) + b"eXIf" + data + struct.pack(">I", zlib.crc32(b"eXIf" + data))
    found = decode_image(chunk[:where] + told + chunk[where:])
    buffer = io.BytesIO()
    Image.fromarray((values >> 8).astype(np.uint8).squeeze()).save(buffer, "PNG", exif=exif)
    assert found.dtype == np.uint16 and np.array_equal(found >> 8, decode_image(buffer.getvalue()))


def test_frames_beyond_the_first_are_said(tmp_path: Path) -> None:
    frames = [Image.fromarray(raw(1, i)[0].transpose(1, 2, 0)) for i in range(4)]
    frames[0].save(tmp_path / "x.tif", save_all=True, append_images=frames[1:])
    report = check(tmp_path)
    assert report.count == 1 and any("several frames" in remark for remark in report.remarks)
    assert any("several frames" in note for note in load(tmp_path).notes)


def test_ranges_are_said_where_the_type_does_not_tell(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(20, 201, (9, 6, 6, 3)).astype(np.uint8)
    np.savez(tmp_path / "u8.npz", images=images)
    plain = load(tmp_path / "u8.npz")
    for dtype in ("float32", "float64", "int64"):
        np.savez(tmp_path / "x.npz", images=images.astype(dtype))
        assert np.allclose(load(tmp_path / "x.npz").all()[0], plain.all()[0], atol=1e-6)
    np.savez(tmp_path / "u16.npz", images=images.astype(np.uint16))
    assert "8-bit values" in load(tmp_path / "u16.npz").notes[0]
    stated = load(tmp_path / "u16.npz", options=SourceOptions(value_range=(0.0, 255.0)))
    assert np.allclose(stated.all()[0], plain.all()[0], atol=1e-6) and not stated.notes
    np.savez(tmp_path / "odd.npz", images=images / 7.3)
    assert "own extremes" in load(tmp_path / "odd.npz").notes[0]
    with pytest.raises(UserError, match=r"beyond \[0\.0, 100\.0\]"):
        load(tmp_path / "u16.npz", options=SourceOptions(value_range=(0.0, 100.0)))
    write(tmp_path / "black", np.zeros((3, 1, 4, 4), np.uint8))
    assert not check(tmp_path / "black").ok


RANGES = {
    "[0, 1]": lambda x: (x / 255).astype(np.float32),
    "[-1, 1]": lambda x: (x / 127.5 - 1).astype(np.float32),
    "[0, 255]": lambda x: x.astype(np.float32),
    "[0, 255] of uint8": lambda x: x,
    "[0, 1] of bool": lambda x: x > 127,
}


@pytest.mark.parametrize("ours", RANGES)
@pytest.mark.parametrize("theirs", RANGES)
def test_training_and_test_data_lie_in_one_range(ours: str, theirs: str, tmp_path: Path) -> None:
    for name, file in ((ours, "train"), (theirs, "test")):
        np.savez(tmp_path / f"{file}.npz", images=RANGES[name](raw(40, len(file))))
    if ours == theirs:
        pair = load_pair(tmp_path / "train.npz", tmp_path / "test.npz")
        assert all(data.all()[0].abs().max() <= 1 for data in pair)
        return
    with pytest.raises(UserError, match=r"give both in one"):
        load_pair(tmp_path / "train.npz", tmp_path / "test.npz")


def test_values_beyond_float32_are_refused(tmp_path: Path) -> None:
    for name, values in (("images", raw(4) * 1e300), ("images", -raw(4) * 1e39)):
        np.savez(tmp_path / "x.npz", **{name: values})
        with pytest.raises(UserError, match="beyond float32: scale them down"):
            load(tmp_path / "x.npz")


def test_the_values_own_extremes_need_not_be_the_same(tmp_path: Path) -> None:
    for file, (scale, shift) in {"train": (2.5, -0.3), "test": (2.4, -0.35), "beyond": (1.0, 0.2)}.items():
        np.savez(tmp_path / f"{file}.npz", images=(scale * raw(9) / 255 + shift).astype(np.float32))
    train, test = load_pair(tmp_path / "train.npz", tmp_path / "test.npz")
    assert test.codec == train.codec
    np.savez(tmp_path / "unit.npz", images=(raw(9) / 255).astype(np.float32))
    with pytest.raises(UserError, match=r"lie in \[0, 1\].*in \[0\.2, 1\.2\]"):
        load_pair(tmp_path / "unit.npz", tmp_path / "beyond.npz")
    stated = SourceOptions(value_range=(0.0, 2.0))
    train, test = load_pair(tmp_path / "unit.npz", tmp_path / "beyond.npz", options=stated)
    assert train.codec == test.codec and float(test.all()[0].max()) == pytest.approx(0.2, abs=0.01)


def test_packed_idx_files_with_long_heads(tmp_path: Path) -> None:
    """What is packed may show itself late: behind a file's name, and tables that unpack it. One part alone is all."""
    pixels = np.random.default_rng(0).binomial(255, 0.3, (300, 6, 5)).astype(np.uint8)
    with gzip.GzipFile("n" * 500, "wb", fileobj=open(tmp_path / "t10k-images-idx3-ubyte.gz", "wb")) as file:
        file.write(b"\0\0\x08\x03" + struct.pack(">3I", *pixels.shape) + pixels.tobytes())
    labels = b"\0\0\x08\x01" + struct.pack(">I", 300) + bytes(i % 3 for i in range(300))
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    data = load(tmp_path)
    assert np.array_equal(data.raw[:, 0], pixels)
    assert np.array_equal(data.labels, np.arange(300) % 3)


def test_idx_files(tmp_path: Path) -> None:
    data = {"train": (raw(7, channels=1), np.arange(7) % 3), "t10k": (raw(4, 1, 1), np.arange(4) % 3)}
    for part, (pixels, labels) in data.items():
        images = b"\0\0\x08\x03" + struct.pack(">III", len(pixels), 6, 5) + pixels.tobytes()
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(
            b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + labels.astype(np.uint8).tobytes()
        )
    train, test = load_pair(tmp_path)
    assert np.array_equal(train.raw, data["train"][0]) and np.array_equal(test.raw, data["t10k"][0])
    assert train.labels is not None and train.labels.tolist() == data["train"][1].tolist()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03" + b"\xff" * 12))
    with pytest.raises(UserError, match=r"declares .* GB in 26 bytes"):
        load(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_first_bytes_tell_whether_idx_is_packed(packed: bool, suffix: str, tmp_path: Path) -> None:
    data = b"\0\0\x08\x03" + struct.pack(">III", 7, 6, 5) + raw(7, channels=1).tobytes()
    (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(gzip.compress(data) if packed else data)
    assert np.array_equal(load(tmp_path).raw, raw(7, channels=1))


@pytest.mark.parametrize(("code", "dtype"), [(8, ">u1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_of_every_type(code: int, dtype: str, tmp_path: Path) -> None:
    values, labels = raw(7, channels=1)[:, 0].astype(dtype), np.arange(7).astype(">i4") % 3
    (tmp_path / "images").write_bytes(bytes([0, 0, code, 3]) + struct.pack(">III", 7, 6, 5) + values.tobytes())
    (tmp_path / "labels").write_bytes(b"\0\0\x0c\x01" + struct.pack(">I", 7) + labels.tobytes())
    data = load(tmp_path)
    assert data.labels is not None and data.labels.tolist() == labels.tolist()
    np.savez(tmp_path / "plain.npz", images=raw(7, channels=1))
    torch.testing.assert_close(data.all()[0], load(tmp_path / "plain.npz").all()[0])


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (b"\0\0\x08\x03\0\0", r"images cannot be read as IDX \(it is cut short within its header"),
        (b"\0\0\x08\x03" + struct.pack(">III", 7, 6, 5) + bytes(209), r"holds 209 of 210 bytes"),
        (b"\0\0\x08\x03" + struct.pack(">III", 7, 6, 5) + bytes(211), r"holds more of 210 bytes"),
        (b"\0\0\x08\x02" + struct.pack(">II", 7, 30) + bytes(210), r"images \(7, 30\), labels \(7,\): one IDX file"),
    ],
)
def test_an_idx_file_that_cannot_be_read_is_named(images: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "images").write_bytes(images)
    (tmp_path / "labels").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 7) + bytes(7))
    with pytest.raises(UserError, match=says):
        load(tmp_path)


# -- pictures that mean harm -------------------------------------------------------------------------------------------


def test_no_picture_starts_another_program(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="eps, which is not read"):
        decode_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_declared_size_is_not_believed() -> None:
    buffer = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(buffer, "PNG", compress_level=9)
    small = buffer.getvalue()
    header = small[:16] + struct.pack(">II", 13_000, 13_000) + small[24:29]
    bomb = header + struct.pack(">I", zlib.crc32(header[12:29])) + small[33:4_000]
    with pytest.raises(Unreadable, match="declares 13000x13000"):
        decode_image(bomb)
    honest = Image.fromarray(np.random.default_rng(0).integers(0, 255, (900, 1_000, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    honest.save(buffer, "PNG")
    assert decoded(buffer.getvalue(), SourceOptions(size=30)).pixels.shape == (3, 30, 30)


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 100 megapixels takes a gigabyte, and there may be as many threads as cores."""
    at_once: list[int] = []
    inside = threading.Semaphore(8)
    plain = pictures.transform

    def transform(pixels: np.ndarray, options: SourceOptions) -> np.ndarray:
        with inside:
            at_once.append(8 - inside._value)
            time.sleep(0.01)
            return plain(pixels, options)

    monkeypatch.setattr(pictures, "transform", transform)
    monkeypatch.setattr(pictures, "_ROOM", 29)
    encoded = [encode_png(p) for p in raw(8)]
    with ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(decoded, encoded))) == 8
    assert at_once == [1] * 8


def test_the_page_names_every_part_format_and_option_there_is() -> None:
    text = (Path(__file__).parents[1] / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in text for name in PARTS)
    words = {re.sub(r"\W", "", word).lower() for word in text.replace("JPEG 2000", "JPEG2000").split()}
    assert {name.lower() for name in pictures.FORMATS} <= words
    named = set(re.findall(r"`data\.source\.(\w+)`", text))
    assert named and named <= {entry.name for entry in fields(SourceOptions)}
