"""Real data from wherever they lie: folders, zip, parquet, npz, stores, bundled digits, and 2-D toys."""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sims.data import hub, mapped
from sims.data.codec import EDM2_LATENTS, Codec
from sims.data.dataset import ROW, Dataset, at_once, check_labels, classes_of
from sims.data.division import PARTS
from sims.data.mapped import Rows, content
from sims.data.pictures import Decoded, SourceOptions, Unreadable, crop_note, cropped, decoded, transform
from sims.data.readers import Arrays, Pictures, Source, mismatch, open_source
from sims.data.store import Store, is_store
from sims.errors import UserError
from sims.files import digest
from sims.screen import say

__all__ = ["BUILT_IN", "SourceOptions", "load", "load_pair"]

TOY_POINTS = 10_000
BUILT_IN = ("digits", "toy:gaussian", "toy:grid25", "toy:moons")
_KINDS = ("folder", "zip", "parquet", "npz", "store")
_DIGITS_TEST = 360  # of 1797: a fifth
_NONE = SourceOptions()
_AT_ONCE = 8  # pictures that one task decodes


def load(source: str | Path, *, options: SourceOptions = _NONE, limit: int | None = None) -> Dataset:
    """Load a data set.

    source   digits | toy:gaussian | toy:grid25 | toy:moons | a folder of pictures, zip, parquet file or folder, npz,
             hf:owner/name[:split] of the Hugging Face hub, or store of synthetic samples. Of a source divided into
             train and test, the train part.
    limit    at most this many samples, drawn with a fixed seed

    Raises UserError, one sentence naming the file, for anything missing, broken or inconsistent.
    """
    if str(source) in BUILT_IN:
        data = limited(transformed(_built_in(str(source)), options), limit)
        return replace(data, notes=shadowed(str(source)))
    path = resolve(source, options)
    if is_store(path):
        return limited(transformed(Store.read(path), options), limit)
    stores = divided_stores(path)
    if stores:
        return limited(transformed(Store.read(stores["train"]), options), limit)
    return _told(open_source(path, options), options, limit)


def load_pair(
    source: str | Path,
    test: str | Path | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    *,
    options: SourceOptions = _NONE,
    limit: int | None = None,
) -> tuple[Dataset, Dataset]:
    """Load a training set and a test set of the same shape, value range and classes.

    The test set is, in this order: `test` where given; the test part of a folder that has one; for `digits` a fixed
    stratified split (1437 train, 360 test; scikit-learn's with random_state 0); else `test_fraction` of the source,
    drawn with `seed`, stratified. `limit` bounds the training set alone.
    """
    if test is not None:
        return _matched(load(source, options=options, limit=limit), load(test, options=options))
    if str(source) == "digits":
        train, held_out = load(source, options=options).numbered().split(_DIGITS_TEST / 1797, seed=0)
        return limited(train, limit), held_out
    if str(source) not in BUILT_IN:
        path = resolve(source, options)
        if stores := divided_stores(path):
            both = (transformed(Store.read(stores[part]), options) for part in ("train", "test"))
            return _matched(limited(next(both), limit), next(both))
        opened = None if is_store(path) else open_source(path, options)
        if opened is not None and opened.held_out is not None:
            train = _told(opened, options, limit)
            return _matched(train, dataset_of(opened.held_out, options))
    train, held_out = load(source, options=options).numbered().split(test_fraction, seed)
    return limited(train, limit), held_out


def shadowed(name: str) -> tuple[str, ...]:
    """A note where a built-in set is taken, and a file or folder of its name lies here."""
    return (f"{name} is the built-in set; what lies here under that name is ./{name}",) if Path(name).exists() else ()


def divided_stores(path: Path) -> dict[str, Path]:
    """The stores of a folder that holds two of them, ``train`` and ``test``; {} for anything else."""
    if not path.is_dir():
        return {}
    named = sorted(name for name in os.listdir(path) if name.lower() in PARTS)
    found = {PARTS[name.lower()]: path / name for name in named if is_store(path / name)}
    held_out = found.get("test") or found.get("validation")
    return {"train": found["train"], "test": held_out} if "train" in found and held_out else {}


def open_path(source: str | Path, options: SourceOptions = _NONE) -> Source | None:
    """What lies at a path, undecoded; None for two stores, train and test."""
    path = resolve(source, options)
    return None if divided_stores(path) else open_source(path, options)


def _told(opened: Source, options: SourceOptions, limit: int | None) -> Dataset:
    """The data to train on; what is to be said of the source is said."""
    data = dataset_of(opened.train, options, limit)
    notes = [*opened.notes, *data.notes]
    for note in notes:
        say(f"{data.name}: {note}")
    return replace(data, notes=tuple(notes))


def resolve(source: str | Path, options: SourceOptions = _NONE) -> Path:
    """The path of a source, `kind:` before it removed; raises UserError with suggestions where nothing lies there.

    A data set of the hub (hf:owner/name) is fetched where ``options`` allow it, else found in the cache.
    """
    text = str(source)
    if text.startswith(hub.PREFIX):
        return hub.local(text, options)
    kind, colon, rest = text.partition(":")
    if not text.strip():
        raise UserError("the path of the data is empty: give a path, or a built-in name such as digits")
    path = Path(rest if colon and kind in _KINDS else text).expanduser()
    if path.exists():
        return path
    beside = [child.name for child in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(text, BUILT_IN, n=1) or difflib.get_close_matches(path.name, beside, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"give a path that exists, or one of {', '.join(BUILT_IN)}"
    raise UserError(f"no data at {text!r}: {hint}")


def dataset_of(found: Pictures | Arrays, options: SourceOptions = _NONE, limit: int | None = None) -> Dataset:
    """Decode what a path holds, check it, and find its value range."""
    if isinstance(found, Arrays):
        if found.labels is not None:
            check_labels(found.labels, len(found.raw), found.class_names, found.name)
        raw, codec, notes = coded(found.raw, found.name, found.latents, options.value_range)
        data = Dataset(raw, found.labels, codec, found.class_names, found.name, notes=notes)
        return limited(transformed(data, options), limit)
    count = len(found.names)
    index = _drawn(count, limit)
    labels, class_names = found.labels, found.class_names
    if labels is not None:
        labels, class_names = classes_of(labels, count, class_names, found.name)
        labels = None if labels is None else labels[index]
    remarks: Counter[str] = Counter()
    values, latents = _decode(found, index, options, remarks)
    raw, codec, notes = (values, latents, ()) if latents else coded(values, found.name, False, options.value_range)
    notes += tuple(f"{number} of {len(index)} files hold {what}" for what, number in sorted(remarks.items()))
    columns = {} if limit is None else {ROW: np.asarray(index)}
    return Dataset(raw, labels, codec, class_names, found.name, columns, notes)


def read_picture(found: Pictures, i: int, options: SourceOptions = _NONE) -> Decoded:
    """Picture i; raises UserError naming the file where it cannot be read."""
    try:
        return decoded(found.read(i), options)
    except (Unreadable, OSError) as error:
        raise UserError(
            f"{found.names[i]} in {found.name} cannot be read as a picture ({error}): replace or remove it"
            " (`sims data check` lists all such files)"
        ) from error
    except UserError as error:
        raise UserError(f"{found.names[i]} in {found.name}: {error}") from error


def _decode(
    found: Pictures, index: np.ndarray, options: SourceOptions, remarks: Counter[str]
) -> tuple[np.ndarray | Rows, Codec | None]:
    """All pictures of ``index``; on disk, in the cache, where they are large. A codec where the samples are latents.

    ``remarks`` count what files hold that is not read.
    """
    first = read_picture(found, int(index[0]), options).pixels
    moments = found.names[int(index[0])].lower().endswith(".npy") and first.dtype.kind == "f" and first.shape[0] == 8
    shape, dtype = first.shape, first.dtype
    if moments:
        if not options.unchanged:
            raise UserError(f"{found.name} holds latents, no pictures: leave out grayscale and size")
        shape, dtype = (4, *shape[1:]), np.dtype("float32")

    def one(i: int) -> np.ndarray:
        picture = read_picture(found, i, options)
        pixels = picture.pixels
        if picture.remark:
            remarks[picture.remark] += 1
        if picture.cropped:
            crops.append(i)
        if pixels.shape != first.shape or pixels.dtype != first.dtype:
            one, other = (int(index[0]), first.shape, first.dtype), (i, pixels.shape, pixels.dtype)
            raise UserError(mismatch(found, one, other))
        return _standardized(pixels) if moments else pixels

    def block(rows: range) -> np.ndarray:
        chosen = [int(index[row]) for row in rows]
        if threads == 1 or len(chosen) == 1:
            return np.stack([one(i) for i in chosen])
        # A task costs as much as a thumbnail, and threads that are far apart would need many row groups at once.
        parts = [chosen[first : first + _AT_ONCE] for first in range(0, len(chosen), _AT_ONCE)]
        with ThreadPoolExecutor(threads) as pool:
            return np.stack([x for part in pool.map(lambda part: [one(i) for i in part], parts) for x in part])

    def name() -> str:
        key = digest(content(found.files, folder), index.astype("<i8").tobytes(), list(shape), dtype.name)
        return f"decoded-{digest(options.grayscale, options.size, moments, key)[:24]}"

    crops: list[int] = []  # of the pictures whose borders are left out
    codec = Codec("latents", -1.5, 1.5, "float32", EDM2_LATENTS) if moments else None
    whole, folder = (len(index), *shape), options.folder / "decoded"
    threads = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    if not mapped.fits_memory(math.prod(whole) * dtype.itemsize):
        what = f"decoding {len(index):,} samples of {found.name}"
        raw: np.ndarray | Rows = mapped.mapped(folder, name, whole, dtype, block, block=1024, what=what)
    else:
        raw = np.empty(whole, dtype)
        for start in range(0, len(index), 1024):
            rows = range(start, min(start + 1024, len(index)))
            raw[rows.start : rows.stop] = block(rows)
    _say_crops(found.name, len(crops), len(index), options)
    return raw, codec


def _say_crops(name: str, count: int, of: int, options: SourceOptions) -> None:
    for note in crop_note(count, of, options):
        say(f"{name}: {note}")


def _standardized(moments: np.ndarray) -> np.ndarray:
    """Mean and deviation (8, h, w) of an autoencoder's posterior to latents (4, h, w) as EDM2's networks take them.

    EDM2 draws from the posterior anew each time; here it is the mean, since the deviations are small beside the
    latents' own. Other projects write files of this form too, of pixels in another range: their latents are not these.
    """
    shift, scale = (np.array(values, np.float32)[:, None, None] for values in (EDM2_LATENTS.shift, EDM2_LATENTS.scale))
    return (moments[:4].astype(np.float32) - shift) * scale


def coded(
    raw: Any, name: str, latents: bool = False, value_range: tuple[float, ...] = ()
) -> tuple[Any, Codec, tuple[str, ...]]:
    """Values in a dtype that a codec takes, their codec, and notes; UserError for what is not finite or no number.

    ``value_range`` (low, high) says what is black and white. Without it, uint8 is [0, 255], uint16 [0, 65535]; other
    whole numbers become one of the two where they fit. Floats are [0, 1] or [-1, 1] where they lie within, [0, 255]
    where all are whole numbers of that range, else their own minimum to maximum. Points and latents keep their values.
    """
    kind = raw.dtype.kind
    if kind not in "fiub":
        raise UserError(f"{name}: values of type {raw.dtype} are not numbers: convert them to uint8 or float32")
    step = at_once(raw.shape[1:])
    if kind == "f" and not all(np.isfinite(raw[i : i + step]).all() for i in range(0, len(raw), step)):
        first = next(i for i in range(len(raw)) if not np.isfinite(raw[i]).all())
        raise UserError(f"{name}: sample {first} holds values that are not finite: remove or correct it")
    identity = latents or raw.ndim == 2
    whole = raw.dtype in (np.uint8, np.uint16) and not identity
    if raw.dtype == np.uint8 and whole and not value_range:
        return raw, Codec("pixels", 0.0, 255.0, "uint8"), ()
    ends = [(float(part.min()), float(part.max())) for i in range(0, len(raw), step) for part in (raw[i : i + step],)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    if max(-low, high) > np.finfo(np.float32).max:
        raise UserError(f"{name}: values go from {low:.3g} to {high:.3g}, beyond float32: scale them down")
    if value_range and not identity:
        return _stated(raw, name, low, high, value_range)
    if kind == "b":
        return raw.astype(np.uint8), Codec("pixels", 0.0, 1.0, "uint8"), ()
    if whole:
        return raw, Codec("pixels", 0.0, 65535.0, "uint16"), _narrow(high)
    if kind in "iu" and not identity and low >= 0 and high <= 65535:
        return coded(raw.astype(np.uint8 if high <= 255 else np.uint16), name)
    if raw.dtype not in (np.float16, np.float32, np.float64):
        raw = raw.astype(np.float32)
    notes: tuple[str, ...] = ()
    if low == high:
        low, high = low - 1, high + 1
    elif not identity and low >= -1 and high <= 1:
        low, high = (0.0, 1.0) if low >= 0 else (-1.0, 1.0)
    elif not identity and low >= 0 and high <= 255 and _whole(raw, step):
        notes = (f"whole numbers from {low:g} to {high:g} in {raw.dtype}: black is taken to be 0 and white 255",)
        low, high = 0.0, 255.0
    elif not identity:
        notes = (f"black is taken to be {low:.4g} and white {high:.4g}, the values' own extremes: state them with "
                 "option 'source.value_range'",)  # fmt: skip
    return raw, Codec("identity" if identity else "pixels", low, high, raw.dtype.name), notes


def _whole(raw: Any, step: int) -> bool:
    """Whether all values are whole numbers."""
    return all((part == np.round(part)).all() for i in range(0, len(raw), step) for part in (raw[i : i + step],))


def _narrow(high: float) -> tuple[str, ...]:
    """A note on 16-bit values that use no more than 8 bits."""
    if not 0 < high <= 255:
        return ()
    return (f"16-bit values go up to {high:g} of 65,535, as 8-bit values in a larger type do: convert them, or state "
            "option 'source.value_range'",)  # fmt: skip


def _stated(
    raw: Any, name: str, low: float, high: float, value_range: tuple[float, ...]
) -> tuple[Any, Codec, tuple[str, ...]]:
    """Values of a range that the user states."""
    if low < value_range[0] or high > value_range[1]:
        raise UserError(
            f"{name}: values go from {low:g} to {high:g}, beyond {list(value_range)}: give their range with "
            "option 'source.value_range'"
        )
    if raw.dtype.kind in "iub" and raw.dtype not in (np.uint8, np.uint16):
        raw = raw.astype(np.uint8 if high <= 255 and low >= 0 else np.float32)
    return raw, Codec("pixels", float(value_range[0]), float(value_range[1]), raw.dtype.name), ()


def transformed(data: Dataset, options: SourceOptions) -> Dataset:
    """The same samples with `options` applied."""
    if options.unchanged:
        return data
    if len(data.data_shape) != 3 or data.codec.kind != "pixels":
        raise UserError(f"{data.name} holds no pictures (shape {data.data_shape}): leave out grayscale and size")
    raw = np.stack([transform(pixels, options) for pixels in data.raw])
    _say_crops(data.name, len(data) * cropped(data.data_shape[1:], options), len(data), options)
    return replace(data, raw=raw)


def _drawn(count: int, limit: int | None) -> np.ndarray:
    """At most `limit` indices in order, drawn with a fixed seed, so that every class keeps about its share.

    A smaller limit draws from what a larger one draws. UserError where it is below 1.
    """
    if limit is not None and limit < 1:
        raise UserError(f"limit {limit} is below 1: give the number of samples to load, or leave it out")
    return np.arange(count) if limit is None else np.sort(np.random.default_rng(0).permutation(count)[:limit])


def limited(data: Dataset, limit: int | None) -> Dataset:
    return data if limit is None or limit >= len(data) else data.numbered().subset(_drawn(len(data), limit))


def _matched(train: Dataset, test: Dataset) -> tuple[Dataset, Dataset]:
    """Train and test with one codec and one list of classes; raises UserError where they cannot be compared."""
    if train.data_shape != test.data_shape or train.codec.kind != test.codec.kind:
        raise UserError(
            f"training data {train.name} have shape {train.data_shape}, test data {test.name} {test.data_shape}:"
            " give test data of the same shape, or option 'source.size' for both"
        )
    if train.codec.dtype != test.codec.dtype:
        raise UserError(
            f"training data {train.name} are {train.codec.dtype}, test data {test.name} {test.codec.dtype}:"
            " give both in one type"
        )
    _require_one_range(train, test)
    test = replace(test, codec=train.codec)  # a range read from the data is that of the training data
    if train.labels is None or test.labels is None or train.class_names == test.class_names:
        return train, test
    table = class_numbers(train.class_names, test.class_names, train.name, test.name)
    return train, replace(test, labels=table[test.labels], class_names=train.class_names)


_USUAL_RANGES = ((0.0, 1.0), (-1.0, 1.0), (0.0, 255.0), (0.0, 65535.0))


def _require_one_range(train: Dataset, test: Dataset) -> None:
    """UserError where pixels of the two were taken to lie in ranges that cannot both be meant."""
    ours, theirs = ((data.codec.low, data.codec.high) for data in (train, test))
    beyond = theirs[0] < ours[0] or theirs[1] > ours[1]
    differ = theirs in _USUAL_RANGES or beyond  # else they are the values' own extremes, within the training data's
    if train.codec.kind == "pixels" and ours in _USUAL_RANGES and theirs != ours and differ:
        raise UserError(
            f"training data {train.name} are taken to lie in [{ours[0]:g}, {ours[1]:g}], test data {test.name} in "
            f"[{theirs[0]:.6g}, {theirs[1]:.6g}]: give both in one range, or state it with option 'source.value_range'"
        )


def class_numbers(train: Sequence[str], test: Sequence[str], name: str, other: str) -> np.ndarray:
    """Test class -> training class (K + 1,), the last -1 for -1; UserError for a class that only the test data have."""
    number = {title: i for i, title in enumerate(train)}
    if unknown := [title for title in test if title not in number]:
        raise UserError(f"class {unknown[0]!r} of the test data {other} is not in the training data {name}")
    return np.array([number[title] for title in test] + [-1])


def _built_in(name: str) -> Dataset:
    if name == "digits":
        from sklearn.datasets import load_digits  # here, because importing it takes a second

        images, labels = load_digits(return_X_y=True)
        raw = images.reshape(-1, 1, 8, 8).astype(np.uint8)  # (1797, 1, 8, 8), values 0..16
        return Dataset(raw, labels, Codec("pixels", 0.0, 16.0, "uint8"), tuple("0123456789"), "digits")
    points, labels = _toy(name)
    codec = Codec("identity", float(points.min()), float(points.max()), "float32")
    return Dataset(points, labels, codec, name=name)


def _toy(name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """10,000 points (N, 2) float32, always the same, and their components.

    gaussian  mean 0, covariance [[2, 1], [1, 2]]
    grid25    25 Gaussians of standard deviation 0.05 at {-4, -2, 0, 2, 4}²
    moons     two half circles with noise of standard deviation 0.1
    """
    rng = np.random.Generator(np.random.PCG64(0))
    noise = rng.standard_normal((TOY_POINTS, 2))
    if name == "toy:gaussian":
        factor = np.linalg.cholesky(np.array([[2.0, 1.0], [1.0, 2.0]]))
        return (noise @ factor.T).astype(np.float32), None
    if name == "toy:grid25":
        component = np.arange(TOY_POINTS) % 25
        centres = np.stack([component // 5, component % 5], axis=1) * 2.0 - 4.0
        return (centres + 0.05 * noise).astype(np.float32), component
    half = np.arange(TOY_POINTS) % 2
    angle = rng.uniform(0.0, np.pi, TOY_POINTS)
    arcs = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    moved = np.stack([1 - arcs[:, 0], 0.5 - arcs[:, 1]], axis=1)
    return (np.where(half[:, None] == 0, arcs, moved) + 0.1 * noise).astype(np.float32), half
