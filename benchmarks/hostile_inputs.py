# ruff: noqa: E501
"""Hostile and broken inputs for every entrance: each is a maker of files and the command that is to read them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import hostile_files as files
from hostile_files import (
    BROKEN_JSON,
    BROKEN_TOML,
    SPECIAL,
    STRINGS,
    WRONG,
    bomb,
    npy,
    npy_header,
    npz_of,
    stored,
    with_value,
    zip_of,
)

Words = list[str]
Make = Callable[[Path], Words]
KINDS = {12: "declared sizes", 13: "tables", 14: "no regular file", 15: "formats", 16: "strings", 0: "honest"}
CANARY = "canary"
TRAIN = [
    "--network.width",
    "8",
    "--network.blocks",
    "1",
    "--network.embedding",
    "8",
    "--base.images",
    "512",
    "--base.train.batch",
    "64",
]
TRAIN += ["--base.snapshots", ",", "--sampler.steps", "2"]


@dataclass(frozen=True)
class Trial:
    """One input. ``make`` writes it into a folder of its own and returns the words after ``sims``."""

    entrance: str
    kind: int
    name: str
    make: Make


@dataclass(frozen=True)
class Base:
    """Honest files, made once: a trained run, its model, a store, an improved run, a folder of diffusers, snapshots."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "run" / "model"

    def copy(self, name: str, place: Path) -> Path:
        """An honest folder, copied to where it may be spoilt."""
        to = place / Path(name).name
        shutil.copytree(self.root / name, to)
        return to


def pictures(folder: Path, count: int = 12, classes: bool = False) -> Path:
    """Grey pictures of 8 x 8, as files."""
    for i in range(count):
        file = folder / ("ab"[i % 2] if classes else "") / f"p{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(files.picture(i))
    return folder


def put(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    content = content() if callable(content) else content
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", errors="surrogatepass")
    else:
        path.write_text(json.dumps(content))
    return path


def special(path: Path, which: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        path.unlink()
    SPECIAL[which](path)
    return path


# -- entrances that take data ------------------------------------------------------------------------------------------

DATA: dict[str, Callable[[Path, Path], Words]] = {
    "data check": lambda data, place: ["data", "check", str(data)],
    "train": lambda data, place: ["train", "--data.path", str(data), "--out", str(place / "out"), *TRAIN],
    "evaluate samples": lambda data, place: [
        "evaluate", str(data), "--reference", str(place / "honest"), "--extractor", "pca", "--cache", str(place / "cache")
    ],
    "evaluate reference": lambda data, place: [
        "evaluate", str(place / "honest"), "--reference", str(data), "--extractor", "pca", "--cache", str(place / "cache")
    ],
}  # fmt: skip


def of_data(kind: int, name: str, make: Callable[[Path], Path], only: tuple[str, ...] = tuple(DATA)) -> Iterator[Trial]:
    """A source of data at every entrance that takes one; ``make`` writes it and returns its path."""
    for entrance in only:

        def run(place: Path, entrance: str = entrance) -> Words:
            if entrance.startswith("evaluate"):
                pictures(place / "honest", 60)
            data = make(place)
            more = ["--source.size", "8"] if "by size" in name and entrance != "data check" else []
            more = ["--size", "8"] if "by size" in name and entrance == "data check" else more
            if more and entrance == "train":
                more[0] = "--data.source.size"
            return [*DATA[entrance](data, place), *more]

        yield Trial(entrance, kind, name, run)


TWO = ("data check", "evaluate samples")


@cache
def huge() -> dict[str, bytes]:
    return files.huge_pictures()


@cache
def strange() -> dict[str, bytes]:
    return files.strange_pictures()


def among(content: Callable[[], bytes], name: str = "p50.png", times: int = 1) -> Callable[[Path], Path]:
    def make(place: Path) -> Path:
        folder = pictures(place / "data")
        for i in range(times):
            put(folder / (name if times == 1 else f"q{i}.png"), content())
        return folder

    return make


def picture_trials() -> Iterator[Trial]:
    for name in huge_names():
        only = tuple(DATA) if ("13,000" in name or "frames" in name) else TWO
        yield from of_data(12, name, among(lambda name=name: huge()[name]), only)  # type: ignore[misc]
    large = "PNG of 13,000 x 13,000, 8 bits"
    yield from of_data(12, f"four {large}, by size", among(lambda: huge()[large], times=4))
    for name in strange_names():
        yield from of_data(15, f"{name} called png", among(lambda name=name: strange()[name]), TWO)  # type: ignore[misc]
        suffix = name.split()[0].lower()
        yield from of_data(15, f"{name}, its own suffix", among(lambda name=name: strange()[name], f"x.{suffix}"),  # type: ignore[misc]
                           ("data check",))  # fmt: skip
    for name in ("EPS", "PDF", "WMF"):
        yield from of_data(15, f"{name} in a zip", lambda place, name=name: zipped(place, strange()[name]))  # type: ignore[misc]
        yield from of_data(15, f"{name} in parquet", lambda place, name=name: in_parquet(place, strange()[name]))  # type: ignore[misc]
        yield from of_data(15, f"nothing but {name}", lambda place, name=name: alone(place, strange()[name]), TWO)  # type: ignore[misc]
    for name in SPECIAL:
        for file in ("p50.png", "more.parquet", "x.npz", "dataset.json", "metadata.csv"):
            yield from of_data(14, f"{name} as {file} among pictures", lambda place, name=name, file=file: (  # type: ignore[misc]
                special(pictures(place / "data") / file, name).parent), tuple(DATA) if file == "p50.png" else ("data check",))  # fmt: skip
        for file in ("x.zip", "x.npz", "x.npy", "x.parquet", "train-idx3-ubyte"):
            yield from of_data(14, f"{name} as {file}", lambda place, name=name, file=file: special(place / file, name),  # type: ignore[misc]
                               ("data check",) if name != "FIFO" else tuple(DATA))  # fmt: skip


def huge_names() -> list[str]:
    return list(huge())


def strange_names() -> list[str]:
    return list(strange())


def alone(place: Path, content: bytes) -> Path:
    for i in range(12):
        put(place / "data" / f"{i}.png", content)
    return place / "data"


def zipped(place: Path, content: bytes, name: str = "q.png") -> Path:
    members = [stored(f"p{i}.png", files.picture(i)) for i in range(12)]
    return put(place / "data.zip", zip_of([*members, stored(name, content)]))


def in_parquet(place: Path, content: bytes) -> Path:
    files.table(place / "data.parquet", [*(files.picture(i) for i in range(12)), content])
    return place / "data.parquet"


# -- archives, arrays, tables ------------------------------------------------------------------------------------------


def archive_trials() -> Iterator[Trial]:
    honest = npy_header((9 << 24, 1, 8, 8))
    one: dict[str, Callable[[Path], bytes]] = {
        "npz of 9 GB": lambda _: zip_of([bomb("images.npy", honest)]),
        "npz of 9 GB of labels": lambda _: zip_of(
            [stored("images.npy", npy(files.images())), bomb("labels.npy", npy_header((9 << 27,), "<i8"))]
        ),
        "npz that declares 1 TB": lambda _: npz_of(images=npy_header((1 << 34, 1, 8, 8))),
        "npz that declares 2^62": lambda _: npz_of(images=npy_header((1 << 56, 1, 8, 8))),
        "npz that declares 3 GB": lambda _: npz_of(images=npy_header((3 << 24, 1, 8, 8)) + bytes(64)),
        "npz of objects": lambda place: npz_of(images=npy_header((1,), "|O") + files.payload(place / CANARY)),
        "npz whose sizes lie": lambda _: zip_of([bomb("images.npy", honest, declared=100)]),
        "npz of 10^5 arrays": lambda _: zip_of([stored(f"a{i}.npy", b"") for i in range(60_000)]),
        "npz of class names": lambda _: npz_of(
            images=npy(files.images()), labels=npy(np.zeros(40, np.int64)), class_names=npy_header((1 << 40,), "<U9")
        ),
        "npz of labels 2^62": lambda _: npz_of(images=npy(files.images()), labels=npy(np.full(40, 2**62))),
        "npz of labels 1e300": lambda _: npz_of(images=npy(files.images()), labels=npy(np.full(40, 1e300))),
        "npz of labels NaN": lambda _: npz_of(images=npy(files.images()), labels=npy(np.full(40, np.nan))),
        "npz of complex numbers": lambda _: npz_of(images=npy(files.images().astype(complex))),
        "npz of text": lambda _: npz_of(images=npy(np.full((40, 1, 8, 8), "x"))),
        "npz of seven axes": lambda _: npz_of(images=npy(np.zeros((2,) * 7))),
        "npz of no picture": lambda _: npz_of(images=npy(np.zeros((0, 1, 8, 8), np.uint8))),
        "npz of pictures 0 x 0": lambda _: npz_of(images=npy(np.zeros((40, 1, 0, 0), np.uint8))),
        "npz of 2^20 channels": lambda _: npz_of(images=npy(np.zeros((2, 1 << 20, 2, 2), np.uint8))),
    }
    for name, content in one.items():
        yield from of_data(12, name, lambda place, content=content: put(place / "x.npz", content(place)))  # type: ignore[misc]
    for name, data in {
        "npy of 1 TB": npy_header((1 << 34, 1, 8, 8)),
        "npy of 2^62": npy_header((1 << 56, 1, 8, 8)),
        "npy of -1": npy_header((-1, 1, 8, 8)),
        "npy of objects": npy_header((1,), "|O") + b"\x80\x02N.",
        "npy of structures": npy_header((1 << 30,), "|V1000000"),
        "npy, deep header": b"\x93NUMPY\x01\x00" + b"\x10\x27" + b"(" * 10_000,
    }.items():
        yield from of_data(12, name, lambda place, data=data: put(place / "x.npy", data), TWO)  # type: ignore[misc]
    zips: dict[str, Callable[[], bytes]] = {
        "zip of a png of 9 GB": lambda: zip_of([*honest_members(), bomb("q.png", files.picture(1))]),
        "zip of a png of 1 GB": lambda: zip_of([*honest_members(), bomb("q.png", files.picture(1), 1)]),
        "zip of eight npy of 1 GB": lambda: zip_of(
            [bomb(f"q{i}.npy", npy_header((1, 1 << 15, 1 << 15)), 1) for i in range(8)]
        ),
        "zip whose sizes lie": lambda: zip_of([*honest_members(), bomb("q.png", files.picture(1), declared=100)]),
        "zip of a listing of 9 GB": lambda: zip_of([*honest_members(), bomb("dataset.json", b'{"labels": [')]),
        "zip of a listing of 1 GB": lambda: zip_of([*honest_members(), bomb("metadata.csv", b"file_name,label\n", 1)]),
        "zip of a listing of lists": lambda: zip_of([*honest_members(), deflated_lists()]),
        "zip of 60,000 empty members": lambda: zip_of([stored(f"{i}.png", b"") for i in range(60_000)]),
        "zip in a zip in a zip": lambda: zip_of([stored("a.zip", zip_of([stored("b.zip", zip_of([]))]))]),
        "zip that leads out": lambda: zip_of([*honest_members(), stored("../../../canary.png", files.picture(1))]),
        "zip cut short": lambda: zip_of(honest_members())[:-30],
        "zip of an unknown method": lambda: zip_of([*honest_members(), (b"q.png", b"xx", 99, 0, 5)]),
        "zip of deflated noise": lambda: zip_of([*honest_members(), (b"q.png", bytes(range(200)), 8, 0, 500)]),
    }
    for name, making in zips.items():
        yield from of_data(12, name, lambda place, making=making: put(place / "x.zip", making()))  # type: ignore[misc]
    for name, data in {
        "IDX of 1 TB": files.idx((1 << 20, 1 << 10, 1 << 10), bytes(100)),
        "IDX of 2^31": files.idx((1 << 11, 1 << 10, 1 << 10), bytes(100)),
        "IDX of 0": files.idx((0, 8, 8), b""),
        "IDX of labels": files.idx((100,), bytes(100)),
        "IDX, more than declared": files.idx((2, 8, 8), bytes(1000)),
    }.items():
        yield from of_data(12, name, lambda place, data=data: put(place / "d" / "x-idx3-ubyte", data).parent, TWO)  # type: ignore[misc]
    packed = files.idx((2047, 1 << 10, 1 << 10), b"")
    yield from of_data(12, "IDX packed, 2 GB", lambda place: put(place / "d" / "x-idx3-ubyte.gz",
                                                                  files.gzip_zeros(packed, 2)).parent)  # fmt: skip
    yield from of_data(12, "IDX packed, 9 GB", lambda place: put(place / "d" / "x-idx3-ubyte.gz",
                                                                  files.gzip_zeros(files.idx((1, 8, 8), b""), 9)).parent)  # fmt: skip


def honest_members() -> list[tuple[bytes, bytes, int, int, int]]:
    return [stored(f"p{i}.png", files.picture(i)) for i in range(12)]


def deflated_lists() -> tuple[bytes, bytes, int, int, int]:
    import zlib

    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    text = b'{"labels": [' + b"[]," * 60_000_000 + b"[]]}"
    return b"dataset.json", packer.compress(text) + packer.flush(), 8, zlib.crc32(text), len(text)


def parquet_trials() -> Iterator[Trial]:
    def at(make: Callable[[Path], None]) -> Callable[[Path], Path]:
        return lambda place: (make(place / "x.parquet"), place / "x.parquet")[1]

    cells = [files.picture(i) for i in range(40)]
    padded = files.picture(0) + bytes(20 << 20)
    shape = {"data": {"shape": [1 << 20, 1 << 20, 1 << 10], "dtype": "uint8", "_type": "Array3D"}}
    lists = pa.array([[0] * 64] * 40, pa.list_(pa.uint8()))
    trials: dict[str, Callable[[Path], None]] = {
        "10^4 rows of one value of 20 MB": lambda p: files.folded(10_000, padded, p),
        "10^8 rows of one value": lambda p: files.folded(100_000_000, files.picture(0), p),
        "labels of 20 MB": lambda p: files.table(
            p, cells * 50, label=pa.DictionaryArray.from_arrays(pa.array([0] * 2000), ["x" * (20 << 20)])
        ),
        "labels of 2^62": lambda p: files.table(p, cells, label=[2**62] * 40),
        "labels below": lambda p: files.table(p, cells, label=[-(2**62)] * 40),
        "labels 1e300": lambda p: files.table(p, cells, label=[1e300] * 40),
        "10^6 class names": lambda p: files.table(
            p, cells, {"label": {"names": ["x"] * 10**6, "_type": "ClassLabel"}}, label=[0] * 40
        ),
        "features are a list": lambda p: files.table(p, cells, [1, 2], label=[0] * 40),
        "features are nested": lambda p: files.table(p, cells, {"label": {"names": [[[[]]]] * 40}}, label=[0] * 40),
        "a shape of 2^50": lambda p: pq.write_table(
            pa.table({"data": lists}).replace_schema_metadata(
                {"huggingface": json.dumps({"info": {"features": shape}})}
            ),
            p,
        ),
        "one row of 2^32 values": lambda p: pq.write_table(
            pa.table({"data": long_list(1 << 32)}), p, compression="zstd"
        ),
        "no rows": lambda p: files.table(p, []),
        "nulls": lambda p: files.table(p, [None] * 40),  # type: ignore[list-item]
        "empty cells": lambda p: files.table(p, [b""] * 40),
        "noise": lambda p: put(p, b"PAR1" + bytes(1000) + b"PAR1"),
        "a footer of 2 GB": lambda p: put(p, b"PAR1" + bytes(100) + (2**31 - 1).to_bytes(4, "little") + b"PAR1"),
    }
    for name, make in trials.items():
        yield from of_data(12, f"parquet: {name}", at(make))


def long_list(count: int) -> pa.Array:
    step = 1 << 28
    values = (
        pa.concat_arrays([pa.array(np.zeros(step, np.uint8))] * 1)
        if count <= step
        else pa.array(np.zeros(step, np.uint8))
    )
    return pa.LargeListArray.from_arrays(pa.array([0, min(count, step)]), values)


# -- labels and strings of data ----------------------------------------------------------------------------------------


def label_trials() -> Iterator[Trial]:
    good = [[f"p{i:02d}.png", i % 2] for i in range(12)]
    listings: dict[str, tuple[int, str, Any]] = {  # what is long is made when it is written
        "a label 2^62": (12, "dataset.json", {"labels": [*good[:-1], ["p11.png", 2**62]]}),
        "a label 10^300": (12, "dataset.json", {"labels": [*good[:-1], ["p11.png", 10**300]]}),
        "a label -5": (12, "dataset.json", {"labels": [*good[:-1], ["p11.png", -5]]}),
        "a million pairs": (12, "dataset.json", {"labels": good * 80_000}),
        "labels NaN": (13, "dataset.json", b'{"labels": [["p00.png", NaN]]}'),
        "labels are a table": (13, "dataset.json", {"labels": {"p00.png": 1}}),
        "pairs of three": (13, "dataset.json", {"labels": [[1, 2, 3]]}),
        "names are lists": (13, "dataset.json", {"labels": [[[], 1]] * 12}),
        "label of 200 MB": (12, "dataset.json", lambda: b'{"labels": "' + b"x" * (200 << 20) + b'"}'),
        "60 million lists": (12, "dataset.json", lambda: b'{"labels": [' + b"[]," * 60_000_000 + b"[]]}"),
        "a line of 300 MB": (12, "metadata.csv", lambda: b"file_name,label\n" + b"x" * (300 << 20)),
        "10^8 fields": (12, "metadata.csv", lambda: b"file_name,label\n" + b"," * 100_000_000),
        "10^7 columns": (12, "metadata.csv", lambda: b"file_name,label" + b",a" * 10_000_000 + b"\np00.png,1\n"),
        "a field of 1 MB": (12, "metadata.csv", b"file_name,label\np00.png," + b"x" * (1 << 20) + b"\n"),
        "zeros in CSV": (13, "metadata.csv", b"file_name,label\n\0\0\0\n"),
        "an open quote": (13, "metadata.csv", b'file_name,label\n"' + b"x\n" * 1000),
        "nested lines": (13, "metadata.jsonl", b"[" * 100_000 + b"\n"),
        "lines of lists": (13, "metadata.jsonl", b"[]\n" * 12),
    }
    for name, (kind, file, content) in listings.items():
        yield from of_data(kind, f"{file}: {name}", lambda place, file=file, content=content: put(  # type: ignore[misc]
            pictures(place / "data") / file, content).parent, TWO)  # fmt: skip
    for name, data in BROKEN_JSON.items():
        yield from of_data(13, f"dataset.json: {name}", lambda place, data=data: put(  # type: ignore[misc]
            pictures(place / "data") / "dataset.json", data).parent, ("data check", "train"))  # fmt: skip
    for name, text in STRINGS.items():
        yield from string_trials(name, text)


def string_trials(name: str, text: str) -> Iterator[Trial]:
    plain = text.replace("/", "|")
    cells = [files.picture(i) for i in range(40)]
    feature = {"label": {"names": [text, "b"], "_type": "ClassLabel"}}

    def folder(place: Path) -> Path:
        data = pictures(place / "data", 40, classes=True)
        (data / "a").rename(data / plain)
        return data

    def spoilt(place: Path) -> Path:
        put(pictures(place / "data") / f"{plain}.png", b"no picture")
        put(place / "data" / f"{plain}.xyz", b"no picture")
        return put(place / "data" / plain, files.picture(3, 9)).parent

    def listed(place: Path) -> Path:
        labels = {"labels": [[f"p{i:02d}.png", text if i % 2 else "b"] for i in range(12)]}
        return put(pictures(place / "data") / "dataset.json", labels).parent

    def table(place: Path) -> Path:
        files.table(place / "x.parquet", cells, feature, label=[i % 2 for i in range(40)])
        return place / "x.parquet"

    def columns(place: Path) -> Path:
        files.table(place / "x.parquet", cells, **{f"label {text}": [0] * 40, f"class {text}": [1] * 40})
        return place / "x.parquet"

    def arrays(place: Path) -> Path:
        names = npy(np.array([text, "b"]))
        labels = npy(np.arange(40) % 2)
        return put(place / "x.npz", npz_of(images=npy(files.images()), labels=labels, class_names=names))

    def foreign(place: Path) -> Path:
        return put(place / "x.npz", zip_of([stored(f"{plain}.npy", npy(files.images()))]))

    makers = {"class folders": folder, "file names": spoilt, "listed labels": listed, "class names in parquet": table,
              "columns": columns, "class names in npz": arrays, "keys of npz": foreign,
              "names in a zip": lambda place: zipped(place, b"no picture", f"{plain}/x.png"),
              "the name of the data": lambda place: pictures(place / plain, 12)}  # fmt: skip
    for where, make in makers.items():
        yield from of_data(16, f"{name} in {where}", make, TWO if name != "escape codes" else tuple(DATA))

        def as_json(place: Path, make: Callable[[Path], Path] = make) -> Words:
            return ["data", "check", str(make(place)), "--json"]

        yield Trial("data check", 16, f"{name} in {where}, --json", as_json)


def honest_trials() -> Iterator[Trial]:
    yield from of_data(0, "pictures", lambda place: pictures(place / "data", 60, classes=True))
    yield from of_data(0, "npz", lambda place: put(place / "x.npz", npz_of(images=npy(files.images()))))


def data_trials() -> list[Trial]:
    """Every trial of data."""
    makers = (honest_trials, picture_trials, archive_trials, parquet_trials, label_trials)
    return [trial for maker in makers for trial in maker()]


__all__ = ["BROKEN_JSON", "BROKEN_TOML", "WRONG", "Base", "Trial", "data_trials", "hashlib", "io", "os", "pickle",
           "special", "torch", "with_value"]  # fmt: skip
