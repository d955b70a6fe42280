"""Hostile and broken files: refused or passed over in a sentence, before anything of the declared size is made."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import tiny
from sims import limits
from sims.arrays import read_array, read_arrays
from sims.data import pictures
from sims.data.check import check
from sims.data.pictures import SourceOptions, Unreadable, decoded, encode_png
from sims.data.sources import load
from sims.data.store import Store, StoreHeader
from sims.errors import UserError
from sims.experiments.shift.attributes import LabelFile
from sims.files import parse_csv, read_bytes, read_json, regular
from sims.metrics.custom import load_script
from sims.metrics.foreign import read_foreign_statistics
from sims.report.strips import read_pictures, split_key
from sims.results.common import Look
from sims.safe_pickle import load as load_pickle
from sims.screen import Screen, printable

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import hostile_files as files
from hostile_inputs import honest_members, put
from hostile_inputs import pictures as write_pictures

TRACED = 400 << 20  # bytes that no refusal may take


@pytest.fixture
def frugal() -> Iterator[None]:
    """Fails a test that allocates what a file only declares."""
    import resource

    if not Path("/proc/self/statm").exists():
        pytest.skip("the system does not tell the address space of a process")
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + TRACED, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


# -- what is declared --------------------------------------------------------------------------------------------------

HONEST = files.npy_header((9 << 24, 1, 8, 8))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (files.zip_of([files.bomb("images.npy", HONEST, 3)]), "holds"),
        (files.zip_of([files.bomb("images.npy", files.npy_header((3 << 24, 1, 8, 8)), 3)]), "declares 3.22 GB"),
        (files.npz_of(images=files.npy_header((1 << 34, 1, 8, 8))), "declares values"),
        (files.npz_of(images=files.npy_header((1 << 56, 1, 8, 8))), "declares values"),
        (files.npz_of(images=files.npy_header((-1, 1, 8, 8))), "declares values"),
        (files.npz_of(images=files.npy_header((1,), "|O") + b"\x80\x02N."), "objects"),
        (files.npz_of(images=files.npy(np.zeros((2, 8_192, 2, 2), np.uint8))), "8,192 channels"),
    ],
)
def test_an_npz_is_believed_as_far_as_its_bytes_reach(
    content: bytes, sentence: str, tmp_path: Path, frugal: None
) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path / "x.npz")


@pytest.mark.parametrize("shape", [(1 << 20, 1 << 20), (1 << 31, 1 << 31), (-8, -8)])
def test_a_picture_as_an_array_is_believed_as_far_as_its_bytes_reach(shape: tuple[int, ...], frugal: None) -> None:
    with pytest.raises(ValueError, match="declares values"):
        read_array(files.npy_header((1, *shape)) + bytes(64))
    honest = np.arange(64).reshape(1, 8, 8)
    assert np.array_equal(read_array(files.npy(honest)), honest)


def test_what_is_stored_uncompressed_is_never_too_large(tmp_path: Path) -> None:
    with open(tmp_path / "x.npy", "wb") as file:  # 3 GB, of which the disk holds one block
        file.write(files.npy_header((3 << 24, 1, 8, 8)))
        file.truncate(file.tell() + (3 << 30))
    assert read_arrays(tmp_path / "x.npy")["data"].shape == (3 << 24, 1, 8, 8)
    np.savez(tmp_path / "x.npz", images=files.images(), other=np.zeros(3))
    found = read_arrays(tmp_path / "x.npz", ("images",), map_above=100)
    assert isinstance(found["images"], np.memmap) and np.array_equal(found["images"], files.images())


def test_a_ratio_of_honest_samples_passes_and_memory_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    limits.afford("x", limits.ROOM, 1)
    limits.afford("x", 10**9, 10**7)
    with pytest.raises(UserError, match="save it without compression"):
        limits.afford("x", 10**10, 10**7)
    monkeypatch.setattr(limits, "free_memory", lambda: 10**8)
    with pytest.raises(UserError, match=r"takes 1 GB of memory, and 0\.1 GB are free"):
        limits.afford("x", 10**9, 10**8)


def test_members_of_a_zip_end_where_they_say(tmp_path: Path, frugal: None) -> None:
    members = [files.bomb("q.png", files.picture(1), 3), files.bomb("r.png", files.picture(1), 3, declared=100)]
    (tmp_path / "x.zip").write_bytes(files.zip_of([*honest_members(), *members]))
    report = check(tmp_path / "x.zip")
    assert report.count == 13 and "3.2 GB" in report.passed_over["q.png"]
    assert [name for name, _ in report.unreadable] == ["r.png"]


def test_a_packed_idx_file_is_believed_as_far_as_its_bytes_reach(tmp_path: Path, frugal: None) -> None:
    put(tmp_path / "x-idx3-ubyte.gz", files.gzip_zeros(files.idx((2047, 1 << 10, 1 << 10), b""), 2))
    with pytest.raises(UserError, match=r"declares 2\.15 GB"):
        load(tmp_path)


def test_a_value_that_many_rows_repeat_is_kept_once(tmp_path: Path, frugal: None) -> None:
    files.folded(500, files.picture(0) + bytes(100_000), tmp_path / "x.parquet")
    assert len(load(tmp_path / "x.parquet")) == 500
    files.folded(5_000, files.picture(0) + bytes(1 << 20), tmp_path / "y.parquet")
    with pytest.raises(UserError, match=r"unfolds to 5.24 GB, one value in many rows"):
        load(tmp_path / "y.parquet")
    files.folded(3_000_000, files.picture(0), tmp_path / "z.parquet")
    with pytest.raises(UserError, match="declares 3,000,000 rows"):
        load(tmp_path / "z.parquet")


def test_label_texts_are_read_once_each(tmp_path: Path, frugal: None) -> None:
    word = "x" * (4 << 20)
    labels = pa.DictionaryArray.from_arrays(pa.array([1, 0, None] * 100), [word, "a"])
    files.table(tmp_path / "x.parquet", [files.picture(i) for i in range(300)], label=labels)
    data = load(tmp_path / "x.parquet")
    assert data.class_names == ("a", word) and data.labels is not None and data.labels[:3].tolist() == [0, 1, -1]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("PNG of 60,000 x 60,000, empty", "exceeds limit"),
        ("GIF of 60,000 x 60,000", "exceeds limit"),
        ("BMP of 12,000 x 12,000, empty", "declares 12000x12000"),
        ("JPEG of 12,000 x 12,000", "declares 12000x12000"),
        ("TIFF of 100,000 x 100,000", "declares|exceeds"),
        ("npy of 2^62 values", "declares values"),
    ],
)
def test_a_picture_is_no_larger_than_its_bytes_can_make_it(name: str, reason: str, frugal: None) -> None:
    with pytest.raises(Unreadable, match=reason):
        decoded(QUICK[name]())


QUICK = {
    "PNG of 60,000 x 60,000, empty": lambda: files.png(60_000, 60_000),
    "GIF of 60,000 x 60,000": lambda: b"GIF89a" + (60_000).to_bytes(2, "little") * 2 + files.gif_frames(1)[10:],
    "BMP of 12,000 x 12,000, empty": lambda: files.bmp(12_000, 12_000),
    "JPEG of 12,000 x 12,000": lambda: files.jpeg(12_000, 12_000),
    "TIFF of 100,000 x 100,000": lambda: files.plain_tiff(100_000, 100_000, 1, 64),
    "npy of 2^62 values": lambda: files.npy_header((1, 1 << 31, 1 << 31)),
}


def test_frames_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    for plugin in (Image.core and __import__("PIL.GifImagePlugin", fromlist=["x"]).GifImageFile,):
        seek = plugin.seek
        monkeypatch.setattr(plugin, "seek", lambda self, frame, seek=seek: (asked.append(frame), seek(self, frame))[1])
    found = decoded(files.gif_frames(5_000))
    assert found.remark.startswith("several frames") and max(asked) == 1
    assert decoded(files.gif_frames(1)).remark == ""
    assert decoded(files.tiff_pages(3)).remark.startswith("several frames")


def test_large_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "_ROOM", 100)
    monkeypatch.setattr(pictures, "_ONE_LARGE", lock := _Counting())
    data = [encode_png(np.random.default_rng(i).integers(0, 256, (3, 64, 64), np.uint8)) for i in range(8)]
    threads = [threading.Thread(target=decoded, args=(one, SourceOptions(size=8))) for one in data]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lock.entered == 8 and lock.most == 1


class _Counting:
    def __init__(self) -> None:
        self.lock, self.inside, self.most, self.entered = threading.Lock(), 0, 0, 0

    def __enter__(self) -> None:
        self.lock.acquire()
        self.inside += 1
        self.entered += 1
        self.most = max(self.most, self.inside)

    def __exit__(self, *_: object) -> None:
        self.inside -= 1
        self.lock.release()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"total": 10**12}, r"\d+ shards"),
        ({"total": 10**12, "shard_size": 10**9}, "declares 6.4e"),
        ({"num_classes": 10**9, "class_names": []}, "1,000,000,000 classes"),
        ({"data_shape": [1, 10**6, 10**6]}, "declares .* GB"),
        ({"data_shape": [1] * 10**4}, "samples of shape"),
        ({"codec": {"kind": "pixels", "low": 0.0, "high": 255.0, "dtype": "V1073741824"}}, "dtype"),
    ],
)
def test_a_store_is_believed_as_far_as_its_bytes_reach(
    change: dict[str, object], sentence: str, tmp_path: Path, frugal: None
) -> None:
    _store(tmp_path / "s")
    for name in ("header.json", "manifest.json"):
        told = json.loads((tmp_path / "s" / name).read_text())
        put(tmp_path / "s" / name, {**told, **change})
    with pytest.raises(UserError, match=sentence):
        Store.read(tmp_path / "s")


def _store(folder: Path) -> Path:
    from sims.data.codec import UINT8

    raw = files.images(12)
    header = StoreHeader("pixels", raw.shape[1:], UINT8, len(raw), 2, ("a", "b"), {}, len(raw))
    store = Store.open(folder, header)
    store.write(0, raw, np.arange(12), np.arange(12) % 2, model="m", method="base", w=0.0)
    store.finish()
    return folder


def test_tables_of_text_have_an_end(tmp_path: Path, frugal: None) -> None:
    with pytest.raises(UserError, match="about 20,000,001 values"):
        parse_csv(b"x\n" + b"," * 20_000_000, "x.csv")
    with open(tmp_path / "l.csv", "wb") as file:
        file.truncate(300 << 20)
    with pytest.raises(UserError, match="has 314,572,800 bytes"):
        LabelFile.read(tmp_path / "l.csv")
    folder = write_pictures(tmp_path / "data")
    (tmp_path / "l.csv").rename(folder / "dataset.json")
    with pytest.raises(UserError, match="has 314,572,800 bytes"):
        load(folder)
    assert parse_csv("\ufeffa,b\n1,\n".encode(), "x") == [["a", "b"], ["1", ""]]


# -- only regular files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", list(files.SPECIAL))
def test_only_regular_files_are_opened(which: str, tmp_path: Path) -> None:
    place = tmp_path / "x"
    files.SPECIAL[which](place)
    readers = (regular, read_bytes, read_json, load_pickle, load_script, read_foreign_statistics)
    for reader in readers:
        with pytest.raises(UserError, match=r"cannot read .*(device or a pipe|folder|symbolic links)"):
            reader(place)
    if which != "folder":
        with pytest.raises(UserError, match=r"cannot read|no data at"):
            load(place)
    folder = write_pictures(tmp_path / "data")
    files.SPECIAL[which](folder / "p50.png")
    report = check(folder)
    assert report.count == 12 and report.ok
    assert which == "folder" or set(report.passed_over) == {"p50.png"}


@pytest.mark.parametrize("name", ["manifest.json", "part-00000.parquet", "header.json"])
def test_within_a_store_too(name: str, tmp_path: Path) -> None:
    folder = _store(tmp_path / "s")
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=r"device or a pipe|lacks part-00000|is no store"):
        Store.read(folder)


@pytest.mark.parametrize("name", ["lock", "log", "config.json"])
def test_and_within_a_run(name: str, tmp_path: Path, say: tiny.Say) -> None:
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    (tmp_path / "run" / "data.json").write_text("{}")
    status, _, err = say("train", "--out", tmp_path / "run", *tiny.TRAIN)
    assert status == 2 and "device or a pipe" in err


# -- formats of pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["EPS", "EPS with a preview", "WMF", "EMF", "SVG", "PDF", "PCX", "ICO", "PSD"])
def test_no_picture_starts_a_program(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = {"PCX": lambda: files.picture(0, 8, "PCX"), "ICO": lambda: files.picture(0, 8, "ICO")}.get(name)
    data = content() if content else STRANGE[name]
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail(f"{name} started {a}"))
    with pytest.raises(Unreadable):
        decoded(data)
    report = check(put(write_pictures(tmp_path / "data") / "q.png", data).parent)
    assert [file for file, _ in report.unreadable] == ["q.png"] and report.count == 13


STRANGE = {
    "EPS": files.EPS,
    "EPS with a preview": b"\xc5\xd0\xd3\xc6" + (30).to_bytes(4, "little") + bytes(22) + files.EPS,
    "WMF": files.WMF,
    "EMF": b"\1\0\0\0\x58\0\0\0" + bytes(32) + b" EMF" + bytes(44),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "PDF": b"%PDF-1.4\n" + bytes(100),
    "PSD": b"8BPS\0\1" + bytes(40),
}

# -- strings -----------------------------------------------------------------------------------------------------------


def test_steering_characters_are_written_out() -> None:
    assert printable("a\x1b[2J\r\x9b\u202eb\n\tc é 漢") == "a\\x1b[2J\\r\\x9b\\u202eb\n\tc é 漢"
    out = io.StringIO()
    screen = Screen(file=out, force_terminal=True, width=60, color_system=None)
    screen.print(f"[bold]{files.ESCAPES}:smile:[/x]")
    assert out.getvalue() == "[bold]\\x1b]0;owned\\x1b[2J:smile:[/x]\n"  # rich drops the bell itself


@pytest.mark.parametrize("text", [files.ESCAPES, files.REVERSED, files.RETURN, "[/red]"])
def test_names_do_not_steer_the_terminal(text: str, tmp_path: Path, say: tiny.Say) -> None:
    plain = text.replace("/", "|")
    data = write_pictures(tmp_path / "data", 12, classes=True)
    (data / "a").rename(data / plain)
    put(data / "b" / f"{plain}.png", b"no picture")
    store = _store(tmp_path / "s")
    for name in ("header.json", "manifest.json"):
        told = json.loads((store / name).read_text())
        put(store / name, {**told, "class_names": [text, "b"], "provenance": {text: text}})
    cells = [files.picture(i) for i in range(12)]
    files.table(tmp_path / "x.parquet", cells, **{f"label {text}": [0] * 12})
    given = [["data", "check", data], ["data", "check", data, "--json"], ["inspect", store], ["data", "check", store],
             ["data", "check", tmp_path / "x.parquet"], ["train", "--data.path", data, "--out", tmp_path / plain],
             ["train", "--data.path", tmp_path / text, "--out", tmp_path / "o"]]  # fmt: skip
    for words in given:
        _, out, err = say(*words)
        steering = [c for c in out + err if printable(c) != c]
        assert not steering and "Traceback" not in err, words
        assert text.isascii() or printable(text) in out + err or "\\u202e" in out + err


def test_a_page_draws_with_colours_and_markers_alone() -> None:
    assert Look("x", "#0b8496", "#45C6d8", "s").marker == "s"
    with pytest.raises(UserError, match="colour 'red;"):
        Look("x", "red;}</style>", "#45c6d8", "s")
    with pytest.raises(UserError, match="marker"):
        Look("x", "#0b8496", "#45c6d8", "$\\frac$")


def test_strips_of_nothing_are_left_out(tmp_path: Path) -> None:
    none, text = files.npy(np.zeros((1, 0, 0, 1), np.uint8)), files.npy(np.array(["x"]))
    put(tmp_path / "grids.npz", files.npz_of(**{"base": none, "seeds": text, "a@b": files.npy(np.ones((1, 8, 8, 1)))}))
    found = read_pictures(tmp_path)
    assert list(found.images) == ["a@b"] and found.seeds == () and split_key("a@b") == ("a@b", None)


@pytest.mark.parametrize("head", [b"\x80\x05\x96", b"\x80\x05\x8e", b"\x80\x05\x95", b"\x80\x05\x8d"])
def test_a_pickle_is_believed_as_far_as_its_bytes_reach(head: bytes) -> None:
    with pytest.raises(UserError, match="damaged") as caught:
        load_pickle(head + (1 << 62).to_bytes(8, "little") + b"x" * 10)
    assert "MemoryError" not in str(caught.value)


def test_a_folder_in_the_way_is_named(tmp_path: Path, say: tiny.Say, home: Path) -> None:
    shutil.copytree(home / "run", tmp_path / "run")
    for name in ("model/model.json", "training/done.json", "training/state.safetensors"):
        (tmp_path / "run" / name).unlink()
    (tmp_path / "run" / "model" / "model.json").mkdir()
    status, _, err = say("train", "--out", tmp_path / "run", *tiny.TRAIN)
    assert status == 2 and "model.json" in err and "move what is in the way" in err


def test_nothing_prints_past_the_screen() -> None:
    source = Path(limits.__file__).parent
    bare = [
        f"{file.name}:{number}"
        for file in source.rglob("*.py")
        for number, line in enumerate(file.read_text().splitlines(), 1)
        if line.lstrip().startswith("print(") and file.name not in ("screen.py", "processes.py")
    ]
    assert not bare, "foreign names are printed by sims.screen"


def test_pickles_in_arrays_do_not_run(tmp_path: Path) -> None:
    content = files.npz_of(images=files.npy_header((1,), "|O") + files.payload(tmp_path / "canary"))
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(UserError, match="objects"):
        load(tmp_path / "x.npz")
    with contextlib.suppress(UserError):
        load_pickle(files.payload(tmp_path / "canary"))
    assert not (tmp_path / "canary").exists()


def test_the_inputs_of_the_benchmark_are_what_they_say() -> None:
    data, _, size = files.deflated(b"head", 1)
    assert len(zlib.decompressobj(-15).decompress(data, 100)) == 100 and size == 4 + (1 << 30)
    assert pq.read_table(pa.BufferReader(_bytes(lambda p: files.folded(3, b"x", p)))).num_rows == 3


def _bytes(make: object) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "x")  # type: ignore[operator]
        return (Path(folder) / "x").read_bytes()
