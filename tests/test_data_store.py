"""The store of synthetic samples: exact round trips, kills, damage, and what Hugging Face `datasets` sees."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from sims.data.check import check
from sims.data.codec import UINT8, Codec
from sims.data.sources import SourceOptions, load
from sims.data.store import Store, StoreHeader
from sims.errors import UserError

TOTAL = 10
DIGITS = Codec("pixels", 0, 16, "uint8")
CASES = {
    "rgb": StoreHeader("pixels", (3, 5, 4), UINT8, TOTAL, 3, ("a", "b", "c"), {"w": 0.0}, 4),
    "grey": StoreHeader("pixels", (1, 8, 8), DIGITS, TOTAL, 10, shard_size=4),
    "rgba": StoreHeader("pixels", (4, 3, 3), UINT8, TOTAL, shard_size=4),
    "channels": StoreHeader("pixels", (5, 3, 3), UINT8, TOTAL, shard_size=4),
    "16 bit": StoreHeader("pixels", (1, 3, 4), Codec("pixels", 0, 65535, "uint16"), TOTAL, shard_size=4),
    "latents": StoreHeader("latents", (4, 3, 2), Codec("identity", -4, 4, "float32"), TOTAL, 2, shard_size=4),
    "half": StoreHeader("latents", (4, 2, 2), Codec("identity", -4, 4, "float16"), TOTAL, shard_size=4),
    "points": StoreHeader("pixels", (2,), Codec("identity", -4, 4, "float64"), TOTAL, shard_size=4),
}


def samples(header: StoreHeader) -> np.ndarray:
    rng, codec = np.random.default_rng(0), header.codec
    shape = (header.total, *header.data_shape)
    raw = rng.integers(0, int(codec.high) + 1, shape) if codec.integer else rng.normal(size=shape)
    return raw.astype(codec.dtype)


def write(store: Store, shard: int, **changes: Any) -> None:
    header = store.header
    index = np.array(header.indices(shard), dtype=int)
    labels = index % header.num_classes if header.num_classes else None
    given = {"raw": samples(header)[index], "seeds": 100 + index, "labels": labels, "model": "abc", "method": "base"}
    store.write(shard, **{**given, "w": 0.5, "attributes": {"smile": index * 0.1}, **changes})


def made(path: Path, header: StoreHeader) -> Store:
    store = Store.open(path, header)
    for shard in store.missing():
        write(store, shard)
    store.finish()
    return store


@pytest.mark.parametrize("case", CASES)
def test_round_trip_is_exact_and_in_order(case: str, tmp_path: Path) -> None:
    header = CASES[case]
    assert made(tmp_path / "s", header).complete
    data = Store.read(tmp_path / "s")
    assert np.array_equal(data.raw, samples(header)) and data.raw.dtype == header.codec.dtype
    assert data.codec == header.codec and data.class_names == header.class_names
    assert data.num_classes == header.num_classes
    assert np.array_equal(data.columns["seed"], 100 + np.arange(TOTAL))
    assert np.array_equal(data.columns["smile"], np.arange(TOTAL) * 0.1)
    assert set(data.columns["model"]) == {"abc"} and set(data.columns["w"]) == {0.5}
    if header.num_classes:
        assert data.labels is not None and np.array_equal(data.labels, np.arange(TOTAL) % header.num_classes)
    assert load(tmp_path / "s").fingerprint == data.fingerprint
    assert data.subset([3, 1]).columns["seed"].tolist() == [103, 101]


@pytest.mark.parametrize("case", CASES)
def test_hugging_face_datasets_reads_it(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    datasets = pytest.importorskip("datasets")
    header = CASES[case]
    made(tmp_path / "s", header)
    files = sorted(str(file) for file in (tmp_path / "s").glob("*.parquet"))
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"), split="train")
    assert table["seed"] == list(range(100, 100 + TOTAL))
    raw = samples(header)
    if "image" in table.features:
        assert isinstance(table.features["image"], datasets.Image)
        assert np.array_equal(np.asarray(table[3]["image"]), raw[3].transpose(1, 2, 0).squeeze())
    else:
        kind = datasets.Array3D if len(header.data_shape) == 3 else type(table.features["data"])
        assert isinstance(table.features["data"], kind)
        assert np.array_equal(np.array(table[3]["data"], dtype=header.codec.dtype), raw[3])
    if header.class_names:
        assert table.features["label"].names == list(header.class_names)
    assert np.array_equal(Store.read(tmp_path / "s").raw, raw)  # with the extension types registered, too


def test_resume_after_a_kill(tmp_path: Path) -> None:
    header = CASES["rgb"]
    store = Store.open(tmp_path / "s", header)
    assert store.missing() == [0, 1, 2] and not store.complete
    write(store, 1)
    leftover = tmp_path / "s" / ".part-00002.tmp-1234.parquet"
    leftover.write_bytes(b"half")
    with pytest.raises(UserError, match="lacks 2 of 3 shards"):
        store.finish()
    with pytest.raises(UserError, match="unfinished"):
        Store.read(tmp_path / "s")
    again = Store.open(tmp_path / "s", header)
    assert again.missing() == [0, 2]
    for shard in again.missing():
        write(again, shard)
    again.finish()
    assert again.complete and not leftover.exists()
    assert Store.open(tmp_path / "s", header).complete
    assert np.array_equal(Store.read(tmp_path / "s").raw, samples(header))


def test_old_leftovers_go_when_the_store_is_opened(tmp_path: Path) -> None:
    Store.open(tmp_path, CASES["rgb"])
    leftover = tmp_path / ".part-00002.tmp-1234.parquet"
    leftover.write_bytes(b"half")
    os.utime(leftover, (0, 0))
    Store.open(tmp_path, CASES["rgb"])
    assert not leftover.exists()


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "gone", "other shard"])
def test_damaged_shards_are_missing_and_refused(tmp_path: Path, damage: str, finished: bool) -> None:
    header = CASES["latents"]
    store = made(tmp_path, header)
    file = store.shard_path(2)
    data = bytearray(file.read_bytes())
    if not finished:
        (tmp_path / "manifest.json").unlink()
    data[10] ^= 255  # within the first page
    if damage == "gone":
        file.unlink()
    elif damage == "other shard":
        file.write_bytes(store.shard_path(0).read_bytes())
    else:
        file.write_bytes({"truncated": data[: len(data) // 2], "flipped": data, "empty": b""}[damage])
    if finished:
        with pytest.raises(UserError, match=r"part-00002\.parquet.* run the command that made it again"):
            Store.read(tmp_path)
        assert not check(tmp_path).ok
    again = Store.open(tmp_path, header)
    assert again.missing() == [2] and not again.complete
    write(again, 2)
    again.finish()
    assert np.array_equal(Store.read(tmp_path).raw, samples(header))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"total": 11}, "total is 10, asked for 11"),
        ({"codec": DIGITS}, "codec.high is 255.0, asked for 16"),
        ({"provenance": {"w": 1.0}}, "provenance.w is 0.0, asked for 1.0"),
        ({"class_names": ("a", "b", "x")}, "class_names"),
        ({"shard_size": 5}, "shard_size is 4, asked for 5"),
        ({"data_shape": (3, 4, 4)}, "data_shape"),
    ],
)
def test_another_header_is_refused_by_name(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    Store.open(tmp_path, CASES["rgb"])
    with pytest.raises(UserError, match="already holds a different store") as caught:
        Store.open(tmp_path, replace(CASES["rgb"], **change))
    assert named in str(caught.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        Store.open(tmp_path, CASES["rgb"])
    with pytest.raises(UserError, match="is a file"):
        Store.open(tmp_path / "a.txt", CASES["rgb"])
    with pytest.raises(UserError, match="is no store"):
        Store.read(tmp_path)


def test_broken_manifests_are_sentences(tmp_path: Path) -> None:
    made(tmp_path, CASES["rgb"])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    for change, words in (
        ({"format": 99}, "store format 99"),
        ({"codec": None}, "header.codec': 'None' is not a valid Codec"),
        ({"total": None}, "describes no store"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=words):
            Store.read(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        Store.read(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"raw": np.zeros((3, 4, 3, 2), np.float32)}, "needs 4 samples"),
        ({"raw": np.zeros((4, 4, 3, 2), np.float64)}, "float64"),
        ({"raw": np.full((4, 4, 3, 2), np.nan, np.float32)}, "not finite"),
        ({"labels": np.array([0, 1, 2, 0])}, "label 2 of sample 2 is outside the classes"),
        ({"labels": np.array([0, 1])}, "2 labels for 4 samples"),
        ({"seeds": np.arange(3)}, "3 values of seed"),
        ({"attributes": {"w": np.zeros(4)}}, "taken"),
        ({"shard": 9}, "shard 9"),
    ],
)
def test_bad_writes_are_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    store = Store.open(tmp_path, CASES["latents"])
    with pytest.raises(UserError, match=words):
        write(store, **{"shard": 0, **change})
    assert store.missing() == [0, 1, 2]


@pytest.mark.parametrize("change", [{"space": "rgb"}, {"total": 0}, {"class_names": ("a",)}])
def test_bad_headers_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        replace(CASES["rgb"], **change)


def test_digits_keep_their_values_in_the_png(tmp_path: Path) -> None:
    made(tmp_path, CASES["grey"])
    assert Store.read(tmp_path).raw.max() == 16
    assert pq.read_schema(tmp_path / "part-00000.parquet").names[:3] == ["image", "seed", "label"]
    small = load(tmp_path, options=SourceOptions(size=4))
    assert small.data_shape == (1, 4, 4) and small.codec == DIGITS
    report = check(tmp_path)
    assert report.ok and report.count == TOTAL and report.kind == "store of synthetic samples"
