"""Sources of real data: what each kind loads to, and the sentence each kind of damage gets."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from sims.data.check import check
from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.data.pictures import decode_image, encode_png
from sims.data.sources import BUILT_IN, SourceOptions, load, load_pair
from sims.errors import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"


def pictures(count: int = 6, channels: int = 3, height: int = 5, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def save_folder(path: Path, raw: np.ndarray, folders: list[str] | None = None) -> Path:
    for i, pixels in enumerate(raw):
        file = path / (folders[i] if folders else ".") / f"{i:03d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode_png(pixels))
    return path


def save_zip(path: Path, raw: np.ndarray, listing: Any = None, prefix: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for i, pixels in enumerate(raw):
            archive.writestr(f"{prefix}{i:03d}.png", encode_png(pixels))
        if listing is not None:
            archive.writestr("dataset.json", listing if isinstance(listing, str) else json.dumps(listing))
    return path


def save_parquet(path: Path, raw: np.ndarray, labels: Any = None, names: list[str] | None = None) -> Path:
    features: dict[str, Any] = {"photo": {"_type": "Image"}}
    columns: dict[str, Any] = {"id": pa.array(range(len(raw)))}
    if labels is not None:
        columns["label"] = pa.array(labels)
        features["label"] = {"names": names, "_type": "ClassLabel"}
    columns["photo"] = pa.array([{"bytes": encode_png(p), "path": None} for p in raw])
    table = pa.table(columns)
    if names is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


# -- what each kind loads to -----------------------------------------------------------------------------------------


def test_digits_and_their_fixed_split() -> None:
    data = load("digits")
    assert data.data_shape == (1, 8, 8) and len(data) == 1797 and data.raw.dtype == np.uint8 and data.raw.max() == 16
    assert float(data.all()[0].max()) == 1.0 and data.class_names == tuple("0123456789")
    train, test = load_pair("digits", test_fraction=0.5, seed=7)
    assert (len(train), len(test)) == (1437, 360)
    assert test.fingerprint == load_pair("digits")[1].fingerprint
    assert test.raw[:2].sum(axis=(1, 2, 3)).tolist() == DIGITS_TEST_SUMS
    assert load("digits", options=SourceOptions(size=4)).data_shape == (1, 4, 4)


DIGITS_TEST_SUMS = [338, 259]  # of the first two held-out digits: pins the split


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name.startswith("toy")])
def test_toys_are_deterministic_points(name: str) -> None:
    data = load(name)
    assert data.data_shape == (2,) and len(data) == 10_000 and data.fingerprint == load(name).fingerprint
    assert torch.equal(data.all()[0], torch.from_numpy(data.raw))
    if data.labels is not None:  # a limit keeps the share of each class
        few = load(name, limit=1000)
        assert few.labels is not None
        assert np.bincount(few.labels, minlength=data.num_classes).min() > 0.4 * 1000 / data.num_classes
    with pytest.raises(UserError, match="no pictures"):
        load(name, options=SourceOptions(size=2))


def test_toy_gaussian_has_its_covariance() -> None:
    assert np.allclose(np.cov(load("toy:gaussian").raw.T), [[2, 1], [1, 2]], atol=0.1)


def test_folder_with_and_without_classes(tmp_path: Path) -> None:
    raw = pictures()
    flat = load(save_folder(tmp_path / "flat", raw))
    assert np.array_equal(flat.raw, raw) and flat.labels is None and flat.num_classes == 0
    save_folder(tmp_path / "classes", raw, ["dog", "cat", "dog", "ant", "cat", "."])
    (tmp_path / "classes" / "cat" / ".hidden.png").write_bytes(b"junk")
    (tmp_path / "classes" / ".git").mkdir()
    (tmp_path / "classes" / ".git" / "x.png").write_bytes(b"junk")
    (tmp_path / "classes" / "notes.txt").write_text("")
    data = load(tmp_path / "classes")
    assert data.class_names == ("ant", "cat", "dog") and data.labels is not None
    assert sorted(data.labels.tolist()) == [-1, 0, 1, 1, 2, 2]
    assert np.array_equal(np.sort(data.raw.sum(axis=(1, 2, 3))), np.sort(raw.sum(axis=(1, 2, 3))))
    assert load(f"folder:{tmp_path / 'classes'}", limit=2).num_classes == 3
    alone = load(save_folder(tmp_path / "nested", raw, ["all/photos"] * 6))
    assert alone.labels is None  # a folder that holds everything is no class


def test_folder_with_train_and_test(tmp_path: Path) -> None:
    save_folder(tmp_path / "train", pictures(4), ["a", "b", "c", "c"])
    save_folder(tmp_path / "test", pictures(2, seed=1), ["c", "b"])
    train, test = load_pair(tmp_path)
    assert (len(train), len(test)) == (4, 2) and test.class_names == ("a", "b", "c")
    assert test.labels is not None and sorted(test.labels.tolist()) == [1, 2]
    assert load(tmp_path).fingerprint == train.fingerprint
    assert len(load_pair(tmp_path, limit=2)[0]) == 2
    with pytest.raises(UserError, match="limit 0 is below 1"):
        load_pair(tmp_path, limit=0)
    assert check(tmp_path).count == 6


@pytest.mark.parametrize("prefix", ["", "00000/"])
def test_zip_with_edm_labels(tmp_path: Path, prefix: str) -> None:
    raw = pictures()
    listing = {"labels": [[f"{prefix}{i:03d}.png", i % 3] for i in range(6)]}
    data = load(save_zip(tmp_path / "x.zip", raw, listing, prefix))
    assert np.array_equal(data.raw, raw) and data.labels is not None and data.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert load(save_zip(tmp_path / "n.zip", raw, {"labels": None})).labels is None


def test_zip_with_class_folders(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, name in enumerate(("photos/cat/1.png", "photos/ant/1.png", "__MACOSX/photos/cat/._1.png")):
            archive.writestr(name, encode_png(pictures()[i]))
    data = load(tmp_path / "x.zip")
    assert data.class_names == ("ant", "cat") and data.labels is not None and data.labels.tolist() == [0, 1]


def test_parquet_with_and_without_metadata(tmp_path: Path) -> None:
    raw = pictures()
    data = load(save_parquet(tmp_path / "x.parquet", raw, [1, 0, None, 1, 1, 0], ["no", "yes"]))
    assert np.array_equal(data.raw, raw) and data.class_names == ("no", "yes")
    assert data.labels is not None and data.labels.tolist() == [1, 0, -1, 1, 1, 0]
    assert load(save_parquet(tmp_path / "y.parquet", raw)).labels is None
    words = load(save_parquet(tmp_path / "z.parquet", raw, ["b", "a", "b", "a", "b", "c"]))
    assert words.class_names == ("a", "b", "c") and words.labels is not None and words.labels.tolist()[:2] == [1, 0]


def test_parquet_folder_takes_train_files(tmp_path: Path) -> None:
    raw = pictures(8)
    save_parquet(tmp_path / "data" / "train-0.parquet", raw[:3], [0, 1, 0], ["a", "b"])
    save_parquet(tmp_path / "data" / "train-1.parquet", raw[3:6], [1, 1, 0], ["a", "b"])
    save_parquet(tmp_path / "data" / "test-0.parquet", raw[6:], [1, 0], ["a", "b"])
    assert np.array_equal(load(tmp_path).raw, raw[:6])
    assert np.array_equal(load_pair(tmp_path)[1].raw, raw[6:])
    save_parquet(tmp_path / "more" / "latest.parquet", raw)  # "latest" is not "test"
    assert len(load(tmp_path / "more")) == 8


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 8, 8), (1, 8, 8)),
        ((5, 8, 8, 3), (3, 8, 8)),
        ((5, 3, 8, 8), (3, 8, 8)),
        ((5, 6, 9, 1), (1, 6, 9)),
        ((5, 3, 6, 9), (3, 6, 9)),
        ((5, 7, 9, 9), (7, 9, 9)),
        ((5, 2), (2,)),
    ],
)
def test_npz_layouts(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    raw = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.savez(tmp_path / "x.npz", x=raw, y=np.arange(5) % 2)
    data = load(tmp_path / "x.npz")
    assert data.data_shape == expected and data.num_classes == 2
    if len(shape) == 4 and expected[0] == shape[-1] and expected[0] != shape[1]:
        assert np.array_equal(data.raw, raw.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("raw", "codec"),
    [
        (np.zeros((2, 3, 3), np.uint8), UINT8),
        (np.zeros((2, 3, 3), np.int64), UINT8),
        (np.full((2, 3, 3), 300, ">i4"), Codec("pixels", 0, 65535, "uint16")),
        (np.ones((2, 3, 3), bool), Codec("pixels", 0, 1, "uint8")),
        (np.linspace(0.2, 0.8, 18).reshape(2, 3, 3), Codec("pixels", 0, 1, "float64")),
        (np.linspace(-0.2, 0.8, 18, dtype=np.float32).reshape(2, 3, 3), Codec("pixels", -1, 1, "float32")),
        (np.linspace(-2, 6, 18, dtype=np.float16).reshape(2, 3, 3), Codec("pixels", -2, 6, "float16")),
        (np.arange(-9, 9).reshape(2, 3, 3), Codec("pixels", -9, 8, "float32")),
    ],
)
def test_npz_value_ranges(tmp_path: Path, raw: np.ndarray, codec: Codec) -> None:
    np.savez(tmp_path / "x.npz", raw)
    assert load(tmp_path / "x.npz").codec == codec
    np.save(tmp_path / "x.npy", raw)
    assert load(tmp_path / "x.npy").codec == codec


def test_npz_latents_keep_their_values(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(size=(3, 8, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", latents=raw)
    data = load(tmp_path / "x.npz")
    assert torch.equal(data.all()[0], torch.from_numpy(raw)) and data.codec.kind == "identity"


@pytest.mark.parametrize(
    ("mode", "shape", "dtype"),
    [
        ("1", (1, 6, 4), np.uint8),
        ("L", (1, 6, 4), np.uint8),
        ("P", (3, 6, 4), np.uint8),
        ("LA", (4, 6, 4), np.uint8),
        ("RGBA", (4, 6, 4), np.uint8),
        ("I;16", (1, 6, 4), np.uint16),
    ],
)
def test_picture_modes(mode: str, shape: tuple[int, ...], dtype: type) -> None:
    buffer = io.BytesIO()
    Image.new(mode, (4, 6)).save(buffer, format="PNG")
    pixels = decode_image(buffer.getvalue())
    assert pixels.shape == shape and pixels.dtype == dtype


def test_16_bit_png_keeps_its_values(tmp_path: Path) -> None:
    values = np.array([[0, 300], [40000, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "x.png")
    data = load(tmp_path)
    assert np.array_equal(data.raw[0, 0], values) and data.codec == Codec("pixels", 0, 65535, "uint16")
    assert load(tmp_path, options=SourceOptions(size=1)).raw.item() == round(values.mean())


def test_turned_photographs_are_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (4, 6)).save(tmp_path / "x.jpg", exif=exif)
    assert load(tmp_path).data_shape == (3, 4, 6)


def test_grayscale_and_size_are_pillows(tmp_path: Path) -> None:
    raw = pictures(3, 3, 8, 8)
    options = SourceOptions(grayscale=True, size=4)
    folder = load(save_folder(tmp_path / "f", raw), options=options)
    for pixels, got in zip(raw, folder.raw):
        grey = Image.fromarray(pixels.transpose(1, 2, 0)).convert("L").resize((4, 4), Image.Resampling.BOX)
        assert np.array_equal(got[0], np.asarray(grey))
    np.savez(tmp_path / "x.npz", images=raw)
    assert np.array_equal(load(tmp_path / "x.npz", options=options).raw, folder.raw)
    np.savez(tmp_path / "y.npz", images=raw / 255.0)
    floats = load(tmp_path / "y.npz", options=options)
    assert np.abs(floats.raw * 255 - folder.raw).max() < 1.5
    wide = load(save_folder(tmp_path / "wide", pictures(2, 3, 4, 10)), options=SourceOptions(size=2))
    assert wide.data_shape == (3, 2, 2)


def test_mixed_sizes_become_one_with_size(tmp_path: Path) -> None:
    save_folder(tmp_path / "a", pictures(3, 3, 8, 8))
    save_folder(tmp_path / "b", pictures(3, 3, 4, 6))
    assert load(tmp_path, options=SourceOptions(size=4)).data_shape == (3, 4, 4)
    assert check(tmp_path, SourceOptions(size=4)).ok


def test_pair_from_one_source_and_from_two(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).normal(size=(20, 1, 4, 4)) * 5
    np.savez(tmp_path / "a.npz", images=raw)
    np.savez(tmp_path / "b.npz", images=raw / 3)
    train, test = load_pair(tmp_path / "a.npz", test_fraction=0.25, seed=1)
    assert (len(train), len(test)) == (15, 5) and len(load_pair(tmp_path / "a.npz", limit=3)[0]) == 3
    train, test = load_pair(tmp_path / "a.npz", tmp_path / "b.npz")
    assert test.codec == train.codec  # one value range for both


@pytest.mark.skipif(not SHARED.is_dir(), reason="CIFAR-10 is not beside the project (../shared/data)")
def test_cifar10() -> None:
    data = load(SHARED / "cifar10-jpeg-test.parquet", options=SourceOptions(grayscale=True, size=8))
    assert len(data) == 10_000 and data.data_shape == (1, 8, 8) and data.class_names[0] == "airplane"
    few, _ = load_pair(SHARED / "cifar10-jpeg-test.parquet", SHARED / "cifar10-jpeg-test.parquet", limit=50)
    assert len(few) == 50 and few.data_shape == (3, 32, 32) and 0.4 < few.std() < 0.6


# -- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words"),
    [("digts", "did you mean 'digits'"), ("toy:moon", "did you mean 'toy:moons'"), ("/no/such", "give a path that")],
)
def test_unknown_names_get_a_suggestion(name: str, words: str) -> None:
    for act in (load, load_pair, check):
        with pytest.raises(UserError, match=words):
            act(name)


def test_missing_paths_suggest_a_neighbour(tmp_path: Path) -> None:
    save_folder(tmp_path / "photos", pictures(1))
    with pytest.raises(UserError, match="did you mean 'photos'"):
        load(tmp_path / "phtos")


def test_empty_and_unknown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no pictures"):
        load(tmp_path)
    assert not check(tmp_path).ok
    (tmp_path / "x.csv").write_text("")
    with pytest.raises(UserError, match=r"x\.csv is of no known kind"):
        load(tmp_path / "x.csv")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a.txt", "")
    with pytest.raises(UserError, match=r"x\.zip holds no pictures"):
        load(tmp_path / "x.zip")
    for number in (0, -1):
        with pytest.raises(UserError, match="below 1"):
            load("digits", limit=number)
        with pytest.raises(UserError, match="below 1"):
            SourceOptions(size=number)


@pytest.mark.parametrize("kind", ["zip", "parquet", "npz"])
@pytest.mark.parametrize("content", ["truncated", "junk", "empty"])
def test_broken_containers_are_named(tmp_path: Path, kind: str, content: str) -> None:
    path = tmp_path / f"x.{kind}"
    if kind == "npz":
        np.savez(path, images=pictures(20))
    else:
        {"zip": save_zip, "parquet": save_parquet}[kind](path, pictures(20))
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "junk": b"junk" * 9, "empty": b""}[content])
    with pytest.raises(UserError, match=rf"x\.{kind} cannot be read"):
        load(path)
    report = check(path)
    assert not report.ok and "cannot be read" in "\n".join(report.lines())


@pytest.mark.parametrize("content", [b"", b"junk", encode_png(pictures()[0])[:60]])
def test_broken_pictures_are_named(tmp_path: Path, content: bytes) -> None:
    save_folder(tmp_path / "f", pictures(3))
    (tmp_path / "f" / "bad.png").write_bytes(content)
    with pytest.raises(UserError, match=r"bad\.png in f cannot be read as a picture"):
        load(tmp_path / "f")
    report = check(tmp_path / "f")
    assert [name for name, _ in report.unreadable] == ["bad.png"] and report.count == 4 and report.sizes == {"4x5": 3}


def test_damage_within_a_zip_is_named(tmp_path: Path) -> None:
    path = save_zip(tmp_path / "x.zip", pictures(2))
    data = bytearray(path.read_bytes())
    data[60] ^= 255  # within the first picture
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"000\.png in x cannot be read"):
        load(path)


def test_parquet_rows_without_pictures_are_named(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": pa.array([None, b"junk"], pa.binary())}), tmp_path / "x.parquet")
    with pytest.raises(UserError, match=r"x\.parquet row 0 in x cannot be read"):
        load(tmp_path / "x.parquet")
    assert len(check(tmp_path / "x.parquet").unreadable) == 2
    pq.write_table(pa.table({"a": [1]}), tmp_path / "y.parquet")
    with pytest.raises(UserError, match="no column of pictures"):
        load(tmp_path / "y.parquet")
    with pytest.raises(UserError, match="label '' is not one of the class names"):
        load(save_parquet(tmp_path / "w.parquet", pictures(2), ["a", ""], ["a", "b"]))
    with pytest.raises(UserError, match="label 7 of sample 1 is outside"):
        load(save_parquet(tmp_path / "z.parquet", pictures(2), [0, 7], ["a", "b"]))


def test_mixed_sizes_channels_and_depths(tmp_path: Path) -> None:
    save_folder(tmp_path / "sizes" / "a", pictures(1, 3, 5, 4))
    save_folder(tmp_path / "sizes" / "b", pictures(1, 3, 6, 7))
    with pytest.raises(
        UserError, match=r"a/000\.png is 4x5, b/000\.png is 7x6.*option 'source\.size'.*sims data check"
    ):
        load(tmp_path / "sizes")
    assert check(tmp_path / "sizes").sizes == {"4x5": 1, "7x6": 1}
    save_folder(tmp_path / "channels" / "a", pictures(1, 3))
    save_folder(tmp_path / "channels" / "b", pictures(1, 1))
    with pytest.raises(UserError, match=r"a/000\.png has 3, b/000\.png has 1.*option 'source\.grayscale'"):
        load(tmp_path / "channels")
    assert not check(tmp_path / "channels").ok
    assert load(tmp_path / "channels", options=SourceOptions(grayscale=True)).data_shape == (1, 5, 4)
    save_folder(tmp_path / "depth", pictures(1, 1))
    Image.fromarray(np.zeros((5, 4), np.uint16)).save(tmp_path / "depth" / "z.png")
    with pytest.raises(UserError, match="differ in depth"):
        load(tmp_path / "depth")
    with pytest.raises(UserError, match=r"size 5 is larger than a picture of 4x5"):
        load(tmp_path / "sizes", options=SourceOptions(size=5))
    assert not check(tmp_path / "sizes", SourceOptions(size=5)).ok


def test_values_that_are_not_finite_or_no_numbers(tmp_path: Path) -> None:
    raw = np.zeros((3, 1, 4, 4))
    raw[1, 0, 2, 2] = np.nan
    np.savez(tmp_path / "x.npz", images=raw)
    with pytest.raises(UserError, match="sample 1 holds values that are not finite"):
        load(tmp_path / "x.npz")
    assert check(tmp_path / "x.npz").unreadable == [("x sample 1", "values that are not finite")]
    np.savez(tmp_path / "y.npz", images=np.full((2, 3, 3), "a"))
    with pytest.raises(UserError, match="not numbers"):
        load(tmp_path / "y.npz")
    for name, arrays, words in (
        ("a", {"foo": raw}, "no array named"),
        ("b", {"x": np.zeros((2, 7))}, "shape \\(2, 7\\)"),
        ("c", {"x": np.zeros((0, 3, 3))}, "is empty"),
        ("d", {"x": np.array([{}], dtype=object)}, "cannot be read"),
    ):
        np.savez(tmp_path / f"{name}.npz", **arrays)
        with pytest.raises(UserError, match=words):
            load(tmp_path / f"{name}.npz")
        assert not check(tmp_path / f"{name}.npz").ok


@pytest.mark.parametrize(
    ("listing", "words"),
    [
        ({"labels": [["000.png", 0]]}, r"no label for 001\.png"),
        ({"labels": [["000.png", 0], ["001.png", [1, 0]]]}, "not a whole number"),
        ({"labels": 3}, "not a list"),
        ({"labels": [["000.png", 0], ["001.png", -2]]}, "label -2"),
        ("{", r"dataset\.json in .*x\.zip is not valid JSON"),
    ],
)
def test_bad_label_lists(tmp_path: Path, listing: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        load(save_zip(tmp_path / "x.zip", pictures(2), listing))


def test_pairs_that_do_not_match(tmp_path: Path) -> None:
    a = save_folder(tmp_path / "a", pictures(2), ["x", "y"])
    b = save_folder(tmp_path / "b", pictures(2), ["x", "z"])
    with pytest.raises(UserError, match="class 'z'"):
        load_pair(a, b)
    with pytest.raises(UserError, match="same shape"):
        load_pair(a, "digits")
    np.savez(tmp_path / "x.npz", images=pictures(2).astype(np.float32))
    with pytest.raises(UserError, match="in one type"):
        load_pair(a, tmp_path / "x.npz")


def test_check_reports_everything_at_once(tmp_path: Path) -> None:
    raw = pictures(30)
    raw[7] = raw[3]
    save_folder(tmp_path, raw, ["rare"] + ["common"] * 29)
    (tmp_path / "rare" / "bad.png").write_bytes(b"junk")
    report = check(tmp_path)
    assert report.kind == "folder" and report.count == 31 and not report.ok
    assert report.labels == {"common": 29, "rare": 2} and report.channels == {3: 30} and report.dtypes == {"uint8": 30}
    assert report.duplicates == [("common/003.png", "common/007.png")]
    text = "\n".join(report.lines())
    assert "rare/bad.png: not a picture" in text and "1 exact duplicates" in text
    assert json.loads(json.dumps(report.to_json()))["ok"] is False
    (tmp_path / "rare" / "bad.png").unlink()
    again = check(tmp_path)
    assert again.ok and "unequal: the largest has 29 samples, the smallest 1" in "\n".join(again.lines())


@pytest.mark.parametrize(
    ("labels", "names", "words"),
    [
        ([0, 1, -2], (), "label -2 of sample 2 is outside the classes"),
        ([0, 1, 2], ("a", "b"), "label 2 of sample 2 is outside the classes \\(0 to 1, or -1 for none\\)"),
        ([0, 1], (), "2 labels for 3 samples"),
        ([0, 0.5, 1], (), "not whole numbers"),
        ([0, np.nan, 1], (), "not whole numbers"),
    ],
)
def test_bad_labels_are_refused_everywhere(
    labels: list[float], names: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    raw = pictures(3)
    with pytest.raises(UserError, match=words):
        Dataset(raw, np.array(labels), UINT8, names)
    np.savez(tmp_path / "x.npz", images=raw, labels=labels, class_names=np.array(names, dtype=str))
    with pytest.raises(UserError, match=words):
        load(tmp_path / "x.npz")
    assert not check(tmp_path / "x.npz").ok
