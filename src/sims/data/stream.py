"""Samples read a part at a time, for measuring sets that need not fit into memory."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from torch import Tensor

from sims.data.codec import Codec, finite
from sims.data.dataset import Dataset, classes_of
from sims.data.pictures import HEAD, SourceOptions, Unreadable, decode_image, format_of
from sims.data.readers import Pictures, mismatch
from sims.errors import UserError
from sims.files import canonical_json

AS_THEY_ARE = SourceOptions()
UNCHANGED = "as they are"  # what was done to the values
_LOOKED_AT = 1_000  # files whose first bytes tell the formats of all
_THREADS = 4  # decoders that work at once


@dataclass(frozen=True)
class Part:
    """Some samples: x (n, *data_shape) in model space, and the pictures among them that could not be read.

    positions (n,) int64 are those in the stream, as are those in unreadable, each with the reason; labels (n,) int64
    are there where only sampling tells them. ``diverged`` of the samples had values that were not finite.
    """

    x: Tensor
    positions: np.ndarray
    unreadable: tuple[tuple[int, str], ...] = ()
    labels: Tensor | None = None
    diverged: int = 0


@dataclass(frozen=True)
class Stream:
    """A set of samples that can be read in parts, in any order.

    digest   SHA-256 (hex) of what a part is made of; needs no decoding
    read     a part, decoded; pictures that cannot be read are named, not raised
    format   how the samples are stored ("png", "jpeg", "npz", "memory", ...); dtype, of which type their values are
    labels   (count,) int64, -1 = no class, or None; seeds (count,) int64 where the samples have them, else None
    names    of the pictures, where they are files
    images   what was done to the values, in words, where that is more than a change of scale
    at_once  how many to read at once, where that touches the values: samples that a model makes
    notes    what is to be said of how the source was read
    """

    name: str
    count: int
    data_shape: tuple[int, ...]
    format: str
    dtype: str
    digest: Callable[[range], str]
    read: Callable[[range], Part]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    seeds: np.ndarray | None = None
    names: Sequence[str] = ()
    images: str = UNCHANGED
    at_once: int | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 = unlabelled."""
        return len(self.class_names)


def of_dataset(data: Dataset, options: SourceOptions = AS_THEY_ARE) -> Stream:
    """Samples that lie in memory (or in a memory map); ``options`` are those that they were loaded with."""

    def digest(part: range) -> str:
        sha = hashlib.sha256(canonical_json([list(data.data_shape), data.codec.to_json()]))
        sha.update(np.ascontiguousarray(data.raw[part.start : part.stop]).tobytes())
        return sha.hexdigest()

    def read(part: range) -> Part:
        return Part(data.codec.encode(data.raw[part.start : part.stop]), np.arange(part.start, part.stop))

    seeds = data.columns.get("seed")
    return Stream(
        data.name,
        len(data),
        data.data_shape,
        "memory",
        str(data.raw.dtype),
        digest,
        read,
        data.labels,
        data.class_names,
        None if seeds is None else np.asarray(seeds, np.int64),
        images=_in_words(options, data.codec),
        notes=data.notes,
    )


def _in_words(options: SourceOptions, codec: Codec) -> str:
    """What was done to pictures on load, and how floating-point values of an unusual range, found in them, are read."""
    words = [options.in_words] if options.in_words else []
    words += ["made grey"] if options.grayscale else []
    if codec.kind == "pixels" and not codec.integer and (codec.low, codec.high) not in ((0.0, 1.0), (-1.0, 1.0)):
        words.append(f"values from {codec.low:.4g} (black) to {codec.high:.4g} (white)")
    return ", ".join(words) or UNCHANGED


def of_pictures(found: Pictures, options: SourceOptions = AS_THEY_ARE) -> Stream:
    """Encoded pictures, decoded part by part; all must have one size, number of channels and depth.

    Raises UserError where no picture can be read; later where one differs from the first that can.
    """
    first, shape, dtype = _first(found, options)
    if dtype.kind not in "u":
        raise UserError(
            f"{found.names[first]} in {found.name} holds floating-point values, whose range is not known beforehand: "
            "give the samples as npz"
        )
    codec = Codec("pixels", 0.0, float(np.iinfo(dtype).max), dtype.name)

    def digest(part: range) -> str:
        sha = hashlib.sha256(canonical_json([options.grayscale, options.size, list(shape), dtype.name]))
        for i in part:
            data = _bytes(found, i)
            sha.update(len(data).to_bytes(8, "big"))
            sha.update(data)
        return sha.hexdigest()

    def decode(i: int) -> np.ndarray | str:
        try:
            pixels = _decode(found, i, options)
        except (Unreadable, OSError) as error:
            return str(error)
        if pixels.shape != shape or pixels.dtype != dtype:
            raise UserError(mismatch(found, (first, shape, dtype), (i, pixels.shape, pixels.dtype)))
        return pixels

    def read(part: range) -> Part:
        with ThreadPoolExecutor(_THREADS) as pool:
            decoded = list(pool.map(decode, part))
        kept = [(i, pixels) for i, pixels in zip(part, decoded) if not isinstance(pixels, str)]
        raw = np.stack([pixels for _, pixels in kept]) if kept else np.empty((0, *shape), dtype)
        unreadable = tuple((i, reason) for i, reason in zip(part, decoded) if isinstance(reason, str))
        return Part(codec.encode(raw), np.array([i for i, _ in kept], np.int64), unreadable)

    labels: np.ndarray | None = None
    names: tuple[str, ...] = ()
    if found.labels is not None:
        labels, names = classes_of(found.labels, len(found.names), found.class_names, "labels")
    return Stream(
        found.name,
        len(found.names),
        shape,
        _format(found),
        dtype.name,
        digest,
        read,
        labels,
        names,
        seeds_in_names(found),
        found.names,
        _in_words(options, codec),
        notes=found.notes,
    )


def _decode(found: Pictures, i: int, options: SourceOptions) -> np.ndarray:
    """Picture i, (C, H, W); raises Unreadable or OSError, and UserError naming it where the options do not fit."""
    try:
        return decode_image(found.read(i), options)
    except UserError as error:
        raise UserError(f"{found.names[i]} in {found.name}: {error}") from error


def _bytes(found: Pictures, i: int) -> bytes:
    try:
        return found.read(i)
    except (Unreadable, OSError):  # reported where it is decoded
        return b"unreadable"


def _first(found: Pictures, options: SourceOptions) -> tuple[int, tuple[int, ...], np.dtype]:
    """Index, shape and type of the first picture that can be read."""
    reason = "no pictures"
    for i in range(len(found.names)):
        try:
            pixels = _decode(found, i, options)
            return i, pixels.shape, pixels.dtype
        except (Unreadable, OSError) as error:
            reason = f"{found.names[i]}: {error}"
    raise UserError(f"none of the {len(found.names)} pictures in {found.name} can be read ({reason}): check the files")


def _format(found: Pictures) -> str:
    """The formats of the files, by their first bytes ("png", or "jpeg and png"); the kind of the source if unknown.

    Of very many, evenly spaced ones are looked at.
    """
    looked_at = range(0, len(found.names), -(-len(found.names) // _LOOKED_AT))
    formats = {format_of(_bytes(found, i)[:HEAD]) for i in looked_at}
    return " and ".join(sorted(name for name in formats if name)) or found.kind


def seeds_in_names(found: Pictures) -> np.ndarray | None:
    """The seeds that a folder's names give, as in 000123.png (what `sims sample` and EDM's generate.py write)."""
    stems = [PurePosixPath(name).stem for name in found.names]
    if not all(len(stem) >= 6 and stem.isdecimal() for stem in stems):
        return None
    seeds = np.array([int(stem) for stem in stems], np.int64)
    return seeds if len(np.unique(seeds)) == len(seeds) else None


def of_samples(
    name: str,
    sample: Callable[[Sequence[int]], tuple[Tensor, Tensor | None]],
    codec: Codec,
    seeds: range,
    data_shape: tuple[int, ...],
    key: str,
    classes: tuple[str, ...] = (),
    at_once: int = 500,
    shown: Callable[[Tensor], Tensor] | None = None,
) -> Stream:
    """Samples that a model makes when they are asked for, ``at_once`` of them, rounded to the data's own format.

    ``sample`` maps seeds to x in model space, ``shown`` that to what is looked at (n, *data_shape), such as pixels;
    ``key`` identifies the model and how it is sampled. Samples that diverge are counted, as bad samples.
    """

    def digest(part: range) -> str:
        chosen = seeds[part.start : part.stop]
        return hashlib.sha256(canonical_json([key, chosen.start, chosen.stop])).hexdigest()

    def read(part: range) -> Part:
        x, labels = sample(seeds[part.start : part.stop])
        x, bad = finite(x)
        x = shown(x) if shown else x
        return Part(codec.encode(codec.decode(x)), np.arange(part.start, part.stop), (), labels, int(bad.sum()))

    numbers = np.arange(seeds.start, seeds.stop, dtype=np.int64)
    return Stream(
        name,
        len(seeds),
        data_shape,
        "memory",
        codec.dtype,
        digest,
        read,
        class_names=classes,
        seeds=numbers,
        images=_in_words(AS_THEY_ARE, codec),
        at_once=at_once,
    )
