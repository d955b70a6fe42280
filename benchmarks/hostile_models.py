# ruff: noqa: E501, E731
"""Hostile and broken models, stores, statistics, runs, recipes, label files and extractors for every entrance."""

from __future__ import annotations

import hashlib
import json
import pickle
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

import hostile_files as files
from hostile_files import BROKEN_JSON, BROKEN_TOML, SPECIAL, STRINGS, WRONG, npy, npy_header, npz_of, stored, with_value
from hostile_inputs import CANARY, TRAIN, Base, Trial, Words, pictures, put, special

PIPES = ("FIFO", "link to /dev/zero", "folder")
Edit = Callable[[Path], Any]  # spoils a copy of an honest folder


def spoilt(entrances: dict[str, Callable[[Path, Path], Words]], base: Base, folder: str, kind: int, name: str,
           edit: Edit, only: tuple[str, ...] = ()) -> Iterator[Trial]:  # fmt: skip
    """A copy of an honest folder, spoilt, at each entrance."""
    for entrance in only or tuple(entrances):

        def make(place: Path, entrance: str = entrance) -> Words:
            there = base.copy(folder, place)
            edit(there)
            return entrances[entrance](there, place)

        yield Trial(entrance, kind, name, make)


def told(path: Path) -> Any:
    return json.loads(path.read_text())


def edits_of_json(
    base: Base, folder: str, file: str, keys: list[str], wrong: dict[str, Any] = WRONG
) -> Iterator[tuple[int, str, Edit]]:
    """Every way to spoil a JSON file: broken, of the wrong kind in one place, or no regular file."""
    for name, data in BROKEN_JSON.items():
        yield 13, f"{file}: {name}", lambda f, data=data: put(f / file, data)  # type: ignore[misc]
    for key in keys:
        for name, value in wrong.items():
            yield 13, f"{file}: {key} is {name}", lambda f, key=key, value=value: put(  # type: ignore[misc]
                f / file, with_value(told(f / file), key, value))  # fmt: skip
    for name in PIPES:
        yield 14, f"{file} is a {name}", lambda f, name=name: special(f / file, name)  # type: ignore[misc]


FEW = {name: WRONG[name] for name in ("10^18", "1e999", "a list", "a table", "null", "a surrogate")}

THREE = {name: WRONG[name] for name in ("10^18", "a list", "a surrogate")}

# -- models ------------------------------------------------------------------------------------------------------------

MODEL: dict[str, Callable[[Path, Path], Words]] = {
    "sample": lambda model, place: [
        "sample",
        str(model),
        "--out",
        str(place / "s"),
        "--seeds",
        "0-1",
        "--batch-size",
        "2",
    ],
    "inspect model": lambda model, place: ["inspect", str(model)],
}


def model_trials(base: Base) -> Iterator[Trial]:
    yield from spoilt(MODEL, base, "run/model", 0, "as it was", lambda f: None)
    keys = ["format", "kind", "network", "network.width", "network.blocks", "preconditioning.sigma_data", "data_shape",
            "num_classes", "codec", "sampler.steps", "sampler.rho", "class_names", "provenance"]  # fmt: skip
    for kind, name, edit in edits_of_json(base, "run/model", "model.json", keys, FEW):
        yield from spoilt(MODEL, base, "run/model", kind, name, edit, ("inspect model",) if kind == 13 else ())
    sizes: dict[str, tuple[str, Any]] = {
        "a width of 10^9": ("network.width", 10**9),
        "10^9 blocks": ("network.blocks", 10**9),
        "an embedding of 10^12": ("network.embedding", 10**12),
        "10^9 classes": ("num_classes", 10**9),
        "10^6 x 10^6 pixels": ("data_shape", [3, 10**6, 10**6]),
        "10^7 steps": ("sampler.steps", 10**7),
        "10^5 shapes": ("data_shape", [1] * 100_000),
        "10^6 class names": ("class_names", ["x"] * 10**6),
    }
    for name, (key, value) in sizes.items():
        yield from spoilt(MODEL, base, "run/model", 12, f"model.json: {name}", lambda f, key=key, value=value: put(  # type: ignore[misc]
            f / "model.json", with_value(told(f / "model.json"), key, value)))  # fmt: skip
    weights: dict[str, tuple[int, bytes | None]] = {
        "declare 1 TB": (
            12,
            files.safetensors({"x": {"dtype": "F32", "shape": [1 << 38], "data_offsets": [0, 1 << 40]}}),
        ),
        "declare 2^62": (
            12,
            files.safetensors({"x": {"dtype": "F32", "shape": [1 << 60], "data_offsets": [0, 1 << 62]}}),
        ),
        "a header of 2^62": (12, files.safetensors({}, length=1 << 62)),
        "a header of 99 MB": (12, files.safetensors(b"[" * 99_000_000)),
        "nested": (13, files.safetensors(b"[" * 100_000)),
        "a pickle": (13, None),
        "nothing": (13, b""),
    }
    for name, (kind, data) in weights.items():

        def heavy(folder: Path, data: bytes | None = data) -> None:
            content = files.payload(folder.parent / CANARY) if data is None else data
            put(folder / "model.safetensors", content)
            digest = hashlib.sha256(content).hexdigest()
            put(folder / "model.json", with_value(told(folder / "model.json"), "weights_sha256", digest))

        yield from spoilt(MODEL, base, "run/model", kind, f"weights: {name}", heavy)
    for name in SPECIAL:
        edit = lambda f, name=name: special(f / "model.safetensors", name)
        yield from spoilt(MODEL, base, "run/model", 14, f"weights are a {name}", edit)
    for name, text in STRINGS.items():
        for key, value in {
            "class_names": [text] * 10,
            "provenance": {text: text, "data": {text: text}},
            "kind": text,
            "network.type": text,
            "sampler": {text: 1},
            "codec.kind": text,
        }.items():
            edit = lambda f, key=key, value=value: put(f / "model.json", with_value(told(f / "model.json"), key, value))
            yield from spoilt(MODEL, base, "run/model", 16, f"{name} in {key}", edit)


# -- stores ------------------------------------------------------------------------------------------------------------

STORE: dict[str, Callable[[Path, Path], Words]] = {
    "inspect store": lambda store, place: ["inspect", str(store)],
    "data check store": lambda store, place: ["data", "check", str(store)],
    "train on a store": lambda store, place: ["train", "--data.path", str(store), "--out", str(place / "o"), *TRAIN],
    "evaluate store": lambda store, place: [
        "evaluate", str(store), "--reference", "digits", "--extractor", "pca", "--cache", str(place / "c"),
    ],
}  # fmt: skip


def store_trials(base: Base) -> Iterator[Trial]:
    yield from spoilt(STORE, base, "store", 0, "as it was", lambda f: None)

    def both(folder: Path, key: str, value: Any) -> None:
        for file in ("header.json", "manifest.json"):
            put(folder / file, with_value(told(folder / file), key, value))

    sizes: dict[str, tuple[str, Any]] = {
        "10^12 samples": ("total", 10**12),
        "2^62 samples": ("total", 2**62),
        "10^12 samples in shards of 1": ("total", 10**12),
        "10^9 classes": ("num_classes", 10**9),
        "10^6 x 10^6 pixels": ("data_shape", [1, 10**6, 10**6]),
        "10^5 axes": ("data_shape", [1] * 10**5),
        "shards of 10^18": ("shard_size", 10**18),
        "dtype of 2^30 bytes": ("codec.dtype", "V1073741824"),
        "dtype of objects": ("codec.dtype", "O"),
        "10^6 class names": ("class_names", ["x"] * 10**6),
    }
    for name, (key, value) in sizes.items():

        def large(folder: Path, key: str = key, value: Any = value, name: str = name) -> None:
            both(folder, key, value)
            if "shards of 1" in name:
                both(folder, "shard_size", 1)
            if name == "10^9 classes":
                both(folder, "class_names", [])

        yield from spoilt(STORE, base, "store", 12, name, large)
    wrong = {**THREE, "null": None}
    for file in ("header.json", "manifest.json"):
        keys = ["format", "space", "data_shape", "codec", "total", "class_names"]
        keys += ["shards"] if file == "manifest.json" else ["provenance"]
        for kind, name, edit in edits_of_json(base, "store", file, keys, wrong):
            only = ("inspect store", "data check store") if kind == 14 else ("data check store",)
            yield from spoilt(STORE, base, "store", kind, name, edit, only)

    def shard(folder: Path, make: Callable[[Path], Any]) -> None:
        file = folder / "part-00000.parquet"
        file.unlink()
        make(file)
        if file.is_file():
            manifest = told(folder / "manifest.json")
            manifest["shards"][0]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
            put(folder / "manifest.json", manifest)

    padded = files.picture(0) + bytes(20 << 20)
    cells = [files.picture(i) for i in range(60)]
    shards: dict[str, tuple[int, Callable[[Path], Any]]] = {
        "one value of 20 MB": (12, lambda p: files.folded(10_000, padded, p)),
        "10^8 rows": (12, lambda p: files.folded(100_000_000, files.picture(0), p)),
        "no column": (13, lambda p: pq.write_table(pa.table({"x": [1] * 60}), p)),
        "no label": (13, lambda p: files.table(p, cells)),
        "labels 2^62": (12, lambda p: files.table(p, cells, label=[2**62] * 60)),
        "labels are texts": (13, lambda p: files.table(p, cells, label=["x"] * 60)),
        "noise": (13, lambda p: put(p, b"PAR1" + bytes(1000))),
        "EPS": (15, lambda p: files.table(p, [files.EPS] * 60, label=[0] * 60)),
        "pictures of 13,000 x 13,000": (12, lambda p: files.table(p, [files.blank_png(13_000)] * 60, label=[0] * 60)),
        "nulls": (13, lambda p: files.table(p, [None] * 60, label=[0] * 60)),  # type: ignore[list-item]
        **{f"a {name}": (14, lambda p, name=name: special(p, name)) for name in SPECIAL},  # type: ignore[misc]
    }
    for name, (kind, make) in shards.items():
        edit = lambda f, make=make: shard(f, make)
        yield from spoilt(STORE, base, "store", kind, f"shard: {name}", edit)
    for name, text in STRINGS.items():
        for key, value in {
            "class_names": [text] * 10,
            "provenance": {text: text},
            "space": text,
            "codec.kind": text,
        }.items():
            edit = lambda f, key=key, value=value: both(f, key, value)
            yield from spoilt(STORE, base, "store", 16, f"{name} in {key}", edit)


# -- statistics, rows, extractors --------------------------------------------------------------------------------------


def statistics_trials(base: Base) -> Iterator[Trial]:
    def against(place: Path, path: Path) -> Words:
        return ["evaluate", str(pictures(place / "honest", 60)), "--reference", str(path), "--extractor", "auto",
                "--cache", str(place / "cache")]  # fmt: skip

    def own(place: Path, path: Path) -> Words:
        return ["evaluate", str(path), "--reference", str(pictures(place / "honest", 60)), "--extractor", "pca",
                "--cache", str(place / "cache")]  # fmt: skip

    mean, big = npy(np.zeros(64)), npy(np.eye(64))
    payloads: dict[str, tuple[int, str, Callable[[Path], bytes]]] = {
        "npz as it was": (13, "x.npz", lambda _: npz_of(mu=mean, sigma=big)),
        "npz of 10^6 x 10^6": (12, "x.npz", lambda _: npz_of(mu=mean, sigma=npy_header((10**6, 10**6), "<f8"))),
        "npz of 9 GB": (12, "x.npz", lambda _: files.zip_of(
            [stored("mu.npy", mean), files.bomb("sigma.npy", npy_header((34_000, 34_000), "<f8"))])),
        "npz of 2^62": (12, "x.npz", lambda _: npz_of(mu=npy_header((2**59,), "<f8"), sigma=big)),
        "npz whose sizes lie": (12, "x.npz", lambda _: files.zip_of(
            [stored("mu.npy", mean), files.bomb("sigma.npy", npy_header((34_000, 34_000), "<f8"), declared=99)])),
        "npz of objects": (15, "x.npz", lambda p: npz_of(mu=npy_header((1,), "|O") + files.payload(p / CANARY), sigma=big)),
        "npz of NaN": (13, "x.npz", lambda _: npz_of(mu=npy(np.full(64, np.nan)), sigma=big)),
        "npz of zeros": (13, "x.npz", lambda _: npz_of(mu=mean, sigma=npy(np.zeros((64, 64))))),
        "npz of -I": (13, "x.npz", lambda _: npz_of(mu=mean, sigma=npy(-np.eye(64)))),
        "npz of another size": (13, "x.npz", lambda _: npz_of(mu=mean, sigma=npy(np.eye(5)))),
        "pkl that runs": (15, "x.pkl", lambda p: files.payload(p / CANARY)),
        "pkl that runs, protocol 0": (15, "x.pkl", lambda p: files.payload(p / CANARY, 0)),
        "pkl that runs, protocol 5": (15, "x.pkl", lambda p: files.payload(p / CANARY, 5)),
        "pkl of a bytearray of 2^62": (12, "x.pkl", lambda _: b"\x80\x05\x96" + (2**62).to_bytes(8, "little")),
        "pkl of bytes of 2^62": (12, "x.pkl", lambda _: b"\x80\x05\x8e" + (2**62).to_bytes(8, "little")),
        "pkl of a frame of 2^62": (12, "x.pkl", lambda _: b"\x80\x05\x95" + (2**62).to_bytes(8, "little")),
        "pkl of 10^5 tuples": (13, "x.pkl", lambda _: b"\x80\x02)" + b"\x85" * 100_000 + b"."),
        "pkl of 2^60 by doubling": (12, "x.pkl", lambda _: b"\x80\x02)" + b"2\x86" * 60 + b"."),
        "pkl of a number of 10^6 digits": (12, "x.pkl", lambda _: b"I" + b"9" * 1_000_000 + b"\n."),
        "pkl of a text": (13, "x.pkl", lambda _: pickle.dumps("x")),
        "pkl of mu and sigma of 0": (13, "x.pkl", lambda _: pickle.dumps({"fid": {"mu": np.zeros(0), "sigma": np.zeros((0, 0))}})),
        "pkl of escape codes": (16, "x.pkl", lambda _: pickle.dumps({files.ESCAPES: 1})),
        "pkl that names escape codes": (16, "x.pkl", lambda _: b"\x80\x02cos\n" + files.ESCAPES.encode() + b"\n."),
        "pkl of noise": (13, "x.pkl", lambda _: np.random.default_rng(0).bytes(1000)),
        "safetensors of 1 TB": (12, "x.safetensors", lambda _: files.safetensors(
            {"mean": {"dtype": "F64", "shape": [1 << 37], "data_offsets": [0, 1 << 40]}})),
        "safetensors without a header": (13, "x.safetensors", lambda _: files.safetensors({})),
        "safetensors of noise": (13, "x.safetensors", lambda _: b"noise" * 100),
    }  # fmt: skip
    for name, (kind, file, content) in payloads.items():
        for entrance, words in (("statistics", against), ("evaluate statistics", own)):
            yield Trial(entrance, kind, name, lambda place, file=file, content=content, words=words: words(  # type: ignore[misc]
                place, put(place / file, content(place))))  # fmt: skip
    for name in PIPES:
        for file in ("x.npz", "x.pkl", "x.safetensors", "x.jsonl"):
            yield Trial("statistics", 14, f"{file} is a {name}", lambda place, file=file, name=name: own(  # type: ignore[misc]
                place, special(place / file, name)))  # fmt: skip
    about = {"kind": "reference", "format": 1, "count": 60, "extractor_name": "pca", "extractor_hash": "x" * 16,
             "dataset_name": "data", "dataset_fingerprint": "x" * 64, "resize": "none", "extra": {"data_shape": "1 8 8"}}  # fmt: skip
    for key in about:
        for name, value in {**THREE, "escape codes": files.ESCAPES}.items():
            yield Trial("statistics", 16 if "codes" in name else 13, f"header: {key} is {name}",
                        lambda place, key=key, value=value: against(place, statistics(place, {**about, key: value})))  # type: ignore[misc]  # fmt: skip
    for name, data in BROKEN_JSON.items():
        yield Trial(
            "rows", 13, f"jsonl: {name}", lambda place, data=data: ["evaluate", str(put(place / "x.jsonl", data))]
        )  # type: ignore[misc]
    row = base.root / "rows.jsonl"
    for key in ("metric", "value", "samples", "extractor", "num_samples", "settings"):
        for name, value in {**THREE, **STRINGS}.items():
            yield Trial("rows", 16 if name in STRINGS else 13, f"jsonl: {key} is {name}", lambda place, key=key, value=value: (  # type: ignore[misc]
                ["evaluate", str(put(place / "x.jsonl", with_value(json.loads(row.read_text().splitlines()[0]), key, value)))]))  # fmt: skip


def statistics(place: Path, header: dict[str, Any]) -> Path:
    from safetensors.torch import save

    tensors = {"mean": torch.zeros(8, dtype=torch.float64), "covariance": torch.eye(8, dtype=torch.float64)}
    return put(place / "x.safetensors", save(tensors, metadata={"sims": json.dumps(header)}))


def extractor_trials(base: Base) -> Iterator[Trial]:
    def with_script(place: Path, content: bytes) -> Words:
        file = put(place / "x.pt", content)
        return ["evaluate", str(pictures(place / "honest", 60)), "--reference", str(pictures(place / "more", 60)),
                "--extractor", f"torchscript:{file}", "--cache", str(place / "cache")]  # fmt: skip

    honest = (base.root / "extractor.pt").read_bytes()
    contents: dict[str, tuple[int, Callable[[Path], bytes]]] = {
        "as it was": (0, lambda _: honest),
        "cut short": (13, lambda _: honest[:-100]),
        "noise": (13, lambda _: b"noise" * 100),
        "nothing": (13, lambda _: b""),
        "a pickle": (15, lambda p: files.payload(p / CANARY)),
        "a zip with a pickle": (15, lambda p: files.zip_of([stored("x/data.pkl", files.payload(p / CANARY)),
                                                            stored("x/constants.pkl", files.payload(p / CANARY)),
                                                            stored("x/version", b"3\n")])),
        "a constant of 9 GB": (12, lambda _: files.zip_of([files.bomb("x/constants/0")])),
        "code of 9 GB": (12, lambda _: files.zip_of([files.bomb("x/code/__torch__.py"), stored("x/version", b"3\n")])),
        "escape codes": (16, lambda _: files.zip_of([stored(f"{files.ESCAPES}/data.pkl", b"x")])),
    }  # fmt: skip
    for name, (kind, content) in contents.items():
        yield Trial("extractor", kind, name, lambda place, content=content: with_script(place, content(place)))  # type: ignore[misc]
    for name in SPECIAL:
        yield Trial("extractor", 14, name, lambda place, name=name: (special(place / "x.pt", name), [  # type: ignore[misc]
            "evaluate", str(pictures(place / "honest", 60)), "--reference", str(pictures(place / "more", 60)),
            "--extractor", f"torchscript:{place / 'x.pt'}", "--cache", str(place / "cache")])[1])  # fmt: skip


# -- recipes, targets, labels of an experiment -------------------------------------------------------------------------


def experiment_trials(base: Base) -> Iterator[Trial]:
    def recipe(place: Path, path: Path) -> Words:
        return ["train", "--recipe", str(path), "--data.path", str(pictures(place / "honest", 60)), "--out",
                str(place / "out"), *TRAIN]  # fmt: skip

    yield Trial("recipe", 0, "as it was", lambda place: recipe(place, put(place / "x.toml", "seed = 1\n")))
    for name, data in BROKEN_TOML.items():
        yield Trial("recipe", 13, name, lambda place, data=data: recipe(place, put(place / "x.toml", data)))  # type: ignore[misc]
    for name, line in {"a width": "network.width = 1000000000", "blocks": "network.blocks = 1000000000",
                       "a size": "data.source.size = 1000000000", "steps": "sampler.steps = 1000000000"}.items():  # fmt: skip
        yield Trial("recipe", 12, f"{name} of 10^9 and more", lambda place, line=line: (  # type: ignore[misc]
            ["train", "--recipe", str(put(place / "x.toml", line)), "--data.path", str(pictures(place / "honest", 60)),
             "--out", str(place / "out")]))  # fmt: skip
    for name in SPECIAL:
        yield Trial("recipe", 14, name, lambda place, name=name: recipe(place, special(place / "x.toml", name)))  # type: ignore[misc]

    def shift(place: Path, *more: str) -> Words:
        return [
            "shift",
            "--run",
            str(place / "run"),
            "--data.path",
            str(pictures(place / "data", 60, classes=True)),
            *more,
        ]

    yield Trial("target", 0, "as it was", lambda place: shift(
        place, "--target", str(put(place / "t.json", {"target": {"a": 0.3, "b": 0.7}}))))  # fmt: skip
    for suffix, broken in (("json", BROKEN_JSON), ("toml", BROKEN_TOML)):
        for name, data in broken.items():
            yield Trial("target", 13, f"{suffix}: {name}", lambda place, suffix=suffix, data=data: shift(  # type: ignore[misc]
                place, "--target", str(put(place / f"t.{suffix}", data))))  # fmt: skip
        for name in PIPES:
            yield Trial("target", 14, f"{suffix}: {name}", lambda place, suffix=suffix, name=name: shift(  # type: ignore[misc]
                place, "--target", str(special(place / f"t.{suffix}", name))))  # fmt: skip
    for name, value in {**WRONG, "10^300": 10**300}.items():
        yield Trial("target", 13, f"a share is {name}", lambda place, value=value: shift(  # type: ignore[misc]
            place, "--target", str(put(place / "t.json", json.dumps({"target": {"a": value, "b": 0.5}})))))  # fmt: skip
    for name, text in STRINGS.items():
        yield Trial("target", 16, f"{name} as a value", lambda place, text=text: shift(  # type: ignore[misc]
            place, "--target", str(put(place / "t.json", {"target": {text: 0.5, "b": 0.5}}))))  # fmt: skip
        yield Trial("labels", 16, f"{name} as an attribute", lambda place, text=text: shift(  # type: ignore[misc]
            place, "--attributes", "x", "--labels", str(put(place / "l.json", {"attributes": {text: [1] * 60}}))))  # fmt: skip
    texts: dict[str, tuple[int, str, Any]] = {
        "csv, a line of 300 MB": (12, "l.csv", lambda: b"x\n" + b"y" * (300 << 20)),
        "csv, 10^8 fields": (12, "l.csv", lambda: b"x\n" + b"," * 100_000_000),
        "csv, 10^7 columns": (12, "l.csv", lambda: b"x" + b",x" * 10_000_000 + b"\n"),
        "csv, 10^8 lines": (12, "l.csv", lambda: b"x\n" * 100_000_000),
        "csv, zeros": (13, "l.csv", bytes(1000)),
        "csv, an open quote": (13, "l.csv", b'x\n"' + b"y\n" * 100_000),
        "csv, a field of 1 MB": (12, "l.csv", b"x\n" + b"y" * (1 << 20)),
        "json, 60 million lists": (12, "l.json", lambda: b'{"attributes": {"x": [' + b"[]," * 60_000_000 + b"[]]}}"),
        "json, values are lists": (13, "l.json", {"attributes": {"x": [[[]]] * 60}}),
        "json, a fingerprint of lists": (13, "l.json", {"data": [], "attributes": {"x": ["a", "b"] * 30}}),
        "json, values of 10^9 and one": (12, "l.json", {"attributes": {"x": list(range(60))}}),
        **{f"json, {name}": (13, "l.json", data) for name, data in BROKEN_JSON.items()},
    }
    for name, (kind, file, content) in texts.items():
        yield Trial("labels", kind, name, lambda place, file=file, content=content: shift(  # type: ignore[misc]
            place, "--attributes", "x", "--labels", str(put(place / file, content))))  # fmt: skip
    for name in PIPES:
        for file in ("l.csv", "l.json"):
            yield Trial("labels", 14, f"{file} is a {name}", lambda place, file=file, name=name: shift(  # type: ignore[misc]
                place, "--attributes", "x", "--labels", str(special(place / file, name))))  # fmt: skip


# -- run directories, reports ------------------------------------------------------------------------------------------


def run_trials(base: Base) -> Iterator[Trial]:
    run: dict[str, Callable[[Path, Path], Words]] = {
        "inspect run": lambda there, place: ["inspect", str(there)],
        "continue": lambda there, place: [
            "train", "--out", str(there), "--data.path", str(base.root / "pictures"), *TRAIN,
        ],
    }  # fmt: skip
    yield from spoilt(run, base, "run", 0, "as it was", lambda f: None)
    for kind, name, edit in edits_of_json(
        base, "run", "config.json", ["format", "command", "data", "data.path", "seed"], FEW
    ):
        yield from spoilt(run, base, "run", kind, name, edit)
    for file in ("training/done.json", "training/state.safetensors", "model/model.json", "log", "lock"):
        for name in PIPES:

            def edit(folder: Path, file: str = file, name: str = name) -> None:
                special(folder / file, name)
                if ("done" in file and name != "folder") or "state" in file:
                    (folder / "model" / "model.json").unlink()
                    (folder / "training" / "done.json").unlink(missing_ok="state" in file)

            yield from spoilt(run, base, "run", 14, f"{file} is a {name}", edit)
    for name, data in {
        **BROKEN_JSON,
        "images of a text": b'{"images": "x"}',
        "images of 10^4000": b'{"images": 1' + b"0" * 4000 + b"}",
    }.items():
        edit = lambda f, data=data: put(f / "training" / "done.json", data)
        yield from spoilt(run, base, "run", 13, f"done.json: {name}", edit, ("inspect run",))
        edit = lambda f, data=data: put(f / "seconds.json", data)
        yield from spoilt(run, base, "run", 13, f"seconds.json: {name}", edit, ("inspect run",))
    for name, text in STRINGS.items():
        for key, value in {"command": text, "data.path": text, "data": {text: text}}.items():
            edit = lambda f, key=key, value=value: put(
                f / "config.json", with_value(told(f / "config.json"), key, value)
            )
            yield from spoilt(run, base, "run", 16, f"config.json: {name} in {key}", edit)
    report: dict[str, Callable[[Path, Path], Words]] = {
        "report": lambda there, place: ["report", str(there)],
        "inspect improved": lambda there, place: ["inspect", str(there)],
    }
    yield from spoilt(report, base, "improved", 0, "as it was", lambda f: None)
    summary = told(base.root / "improved" / "summary.json")
    for kind, name, edit in edits_of_json(base, "improved", "summary.json", list(summary)[::2], THREE):
        yield from spoilt(report, base, "improved", kind, name, edit, () if kind == 14 else ("report",))
    for name, text in STRINGS.items():
        edit = lambda f, text=text: put(f / "summary.json", every_text(told(f / "summary.json"), text))
        yield from spoilt(report, base, "improved", 16, f"{name} in every text", edit)
    grids: dict[str, tuple[int, Callable[[Path], Any]]] = {
        "of 9 GB": (12, lambda p: put(p, files.zip_of([files.bomb("base.npy", npy_header((9 << 20, 32, 32, 1)))]))),
        "of 1 TB": (12, lambda p: put(p, npz_of(base=npy_header((1 << 30, 32, 32, 1))))),
        "of 10,000 x 10,000": (12, lambda p: put(p, compressed_npz("base.npy", npy(np.zeros((1, 10_000, 10_000, 1), np.uint8))))),
        "of 60,000 strips": (12, lambda p: put(p, npz_of(**{f"b{i}": npy(np.zeros((1, 2, 2, 1), np.uint8)) for i in range(60_000)}))),
        "of escape codes": (16, lambda p: put(p, npz_of(**{files.MARKUP.replace("/", "|"): npy(np.zeros((1, 8, 8, 1), np.uint8))}))),
        "of seeds of text": (13, lambda p: put(p, npz_of(seeds=npy(np.array(["x"]))))),
        "of floats": (13, lambda p: put(p, npz_of(base=npy(np.zeros((1, 8, 8, 1)))))),
        "of width 0": (13, lambda p: put(p, npz_of(base=npy(np.zeros((1, 0, 0, 1), np.uint8))))),
        **{f"is a {name}": (14, lambda p, name=name: special(p, name)) for name in SPECIAL},  # type: ignore[misc]
    }  # fmt: skip
    for name, (kind, make) in grids.items():
        edit = lambda f, make=make: make(f / "grids.npz")
        yield from spoilt(report, base, "improved", kind, f"grids {name}", edit, ("report",))


def compressed_npz(name: str, data: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return files.zip_of([(name.encode(), packer.compress(data) + packer.flush(), 8, zlib.crc32(data), len(data))])


def every_text(value: Any, text: str) -> Any:
    """The same JSON with a text after every text that says nothing of how it is to be read."""
    if isinstance(value, dict):
        keep = ("experiment", "better", "method", "kind", "label", "colour", "light", "dark", "told_by")
        return {key: inner if key in keep else every_text(inner, text) for key, inner in value.items()}
    if isinstance(value, list):
        return [every_text(inner, text) for inner in value]
    return f"{value}{text}" if isinstance(value, str) and value else value


# -- checkpoints of others ---------------------------------------------------------------------------------------------


def import_trials(base: Base) -> Iterator[Trial]:
    def pkl(place: Path, content: bytes) -> Words:
        return ["import", str(put(place / "x.pkl", content)), str(place / "out")]

    snapshot = (base.root / "snapshot.pkl").read_bytes()
    contents: dict[str, tuple[int, Callable[[Path], bytes]]] = {
        "as it was": (0, lambda _: snapshot),
        "cut short": (13, lambda _: snapshot[:-1000]),
        "that runs": (15, lambda p: files.payload(p / CANARY)),
        "that runs, protocol 0": (15, lambda p: files.payload(p / CANARY, 0)),
        "that runs after all": (15, lambda p: snapshot[:-1] + files.payload(p / CANARY)[2:]),
        "channels of 10^9": (12, lambda _: edited(snapshot, b"model_channels", 10**9)),
        "blocks of 10^9": (12, lambda _: edited(snapshot, b"num_blocks", 10**9)),
        "a side of 10^9": (12, lambda _: edited(snapshot, b"img_resolution", 2**31 - 1)),
        "classes of 10^9": (12, lambda _: edited(snapshot, b"label_dim", 10**9)),
        "of 2^60 by doubling": (12, lambda _: b"\x80\x02)" + b"2\x86" * 60 + b"."),
        "of a long by digits": (12, lambda _: b"L" + b"9" * 1_000_000 + b"L\n."),
        "of memo 2^31": (12, lambda _: b"\x80\x02Nr\xff\xff\xff\x7f."),
        "of escape codes": (
            16,
            lambda _: b"\x80\x02c" + files.ESCAPES.encode() + b"\n" + files.RETURN.encode() + b"\n.",
        ),
    }
    for name, (kind, content) in contents.items():
        yield Trial("import pickle", kind, f"pkl {name}", lambda place, content=content: pkl(place, content(place)))  # type: ignore[misc]
        yield Trial("inspect pickle", kind, f"pkl {name}", lambda place, content=content: ["inspect", str(  # type: ignore[misc]
            put(place / "x.pkl", content(place)))])  # fmt: skip
    for name in SPECIAL:
        yield Trial("import pickle", 14, f"pkl is a {name}", lambda place, name=name: [  # type: ignore[misc]
            "import", str(special(place / "x.pkl", name)), str(place / "out")])  # fmt: skip
    folder: dict[str, Callable[[Path, Path], Words]] = {
        "import diffusers": lambda there, place: ["import", str(there), str(place / "out")],
        "inspect diffusers": lambda there, place: ["inspect", str(there)],
    }
    yield from spoilt(folder, base, "diffusers", 0, "as it was", lambda f: None)
    unet = {"block_out_channels": [10**9] * 2, "layers_per_block": 10**9, "in_channels": 10**9, "sample_size": 10**9,
            "norm_num_groups": 0, "down_block_types": ["x" * 1000] * 1000, "attention_head_dim": -1, "_class_name": files.ESCAPES}  # fmt: skip
    scheduler = {"num_train_timesteps": 10**9, "trained_betas": [0.1] * 10**6, "beta_start": "x", "beta_schedule": files.ESCAPES,
                 "prediction_type": files.REVERSED, "_class_name": "os.system", "timestep_spacing": []}  # fmt: skip
    for file, table in (("unet/config.json", unet), ("scheduler/scheduler_config.json", scheduler)):
        for key, value in table.items():
            edit = lambda f, file=file, key=key, value=value: put(f / file, with_value(told(f / file), key, value))
            kind = 16 if (isinstance(value, str) and "\x1b" in value) or value == files.REVERSED else 12
            yield from spoilt(folder, base, "diffusers", kind, f"{file}: {key}", edit)
        for kind, name, edit in edits_of_json(base, "diffusers", file, [], {}):
            yield from spoilt(folder, base, "diffusers", kind, name, edit, ("import diffusers",))
    for kind, name, edit in edits_of_json(
        base, "diffusers", "model_index.json", ["_class_name", "unet", "scheduler"], FEW
    ):
        yield from spoilt(folder, base, "diffusers", kind, name, edit, ("import diffusers",))
    weights = "unet/diffusion_pytorch_model.safetensors"
    for name in SPECIAL:
        yield from spoilt(
            folder, base, "diffusers", 14, f"weights are a {name}", lambda f, name=name: special(f / weights, name)
        )  # type: ignore[misc]
    yield from spoilt(folder, base, "diffusers", 15, "weights are a pickle", lambda f: (
        (f / weights).unlink(), put(f / "unet" / "diffusion_pytorch_model.bin", files.payload(f.parent / CANARY))))  # fmt: skip


def edited(snapshot: bytes, key: bytes, value: int) -> bytes:
    """A snapshot in which the number after a key is another one."""
    at = snapshot.rindex(key) + len(key)
    while snapshot[at : at + 1] not in (b"K", b"M", b"J"):
        at += 1
    width = {b"K": 1, b"M": 2, b"J": 4}[snapshot[at : at + 1]]
    return snapshot[:at] + b"\x8a\x08" + value.to_bytes(8, "little") + snapshot[at + 1 + width :]


def model_and_other_trials(base: Base) -> list[Trial]:
    """Every trial that needs honest files to spoil."""
    makers = (
        model_trials,
        store_trials,
        statistics_trials,
        extractor_trials,
        experiment_trials,
        run_trials,
        import_trials,
    )
    return [trial for maker in makers for trial in maker(base)]
