"""What lies at a path, before it is decoded: encoded pictures (folder, zip, parquet) or arrays (npz, parquet, IDX)."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from sims.arrays import array_names, read_arrays
from sims.data.division import Divided, divide, divide_files
from sims.data.labels import labels_of
from sims.data.listing import GZIP, IDX_TYPES, Listing, list_path, passed_over
from sims.data.mapped import IN_MEMORY, Rows
from sims.data.parquet import IMAGE_KEYS, LABEL_KEYS, Cells, Table, has_samples
from sims.data.pictures import SourceOptions
from sims.errors import UserError
from sims.files import regular
from sims.limits import afford

_AS_IT_IS = SourceOptions()


@dataclass(frozen=True)
class Pictures:
    """Pictures still encoded: `read(i)` gives the bytes of picture `names[i]`; labels as found, unchecked.

    `files` are the files that hold them. Pictures stored as .npy are read like others, latents among them.
    """

    kind: str
    name: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    files: Sequence[Path] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrays:
    """Whole arrays: raw (N, C, H, W) or (N, 2), labels as found, unchecked; latents keep their values (identity)."""

    kind: str
    name: str
    raw: np.ndarray | Rows
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    latents: bool = False


@dataclass(frozen=True)
class Source:
    """What a path holds: its parts, "train" and "test" or "all" undivided; what is not read and why; remarks."""

    parts: dict[str, Pictures | Arrays]
    passed_over: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def train(self) -> Pictures | Arrays:
        """The part to train on: all of an undivided source."""
        return self.parts.get("train") or self.parts["all"]

    @property
    def held_out(self) -> Pictures | Arrays | None:
        """The part that is held out, where the source is divided."""
        return self.parts.get("test")

    @property
    def notes(self) -> list[str]:
        """All that is to be said, in sentences."""
        return [*passed_over(self.passed_over), *self.remarks]


def open_source(path: Path, options: SourceOptions = _AS_IT_IS) -> Source:
    """Open what lies at a path; raises UserError naming the file for anything missing, empty, broken or ambiguous.

    Every file below it is read, is the usual junk, or stands in ``passed_over``.
    """
    path = _hub_revision(path)
    if not path.is_dir():
        regular(path)
    if path.is_dir() or path.suffix.lower() == ".zip":
        return _listed(path, options)
    if path.suffix.lower() == ".parquet":
        table, remarks = _parquet([path], options)
        return Source({"all": table}, remarks=remarks)
    if path.suffix.lower() in (".npz", ".npy"):
        return Source({"all": _npz(path)})
    if "idx" in path.name.lower() and path.is_file():
        return Source({"all": _idx([path], path.stem)})
    raise UserError(
        f"{path} is of no known kind: give a folder, .zip, .parquet, .npz, IDX, or a store of synthetic samples"
    )


Facts = tuple[int, Sequence[int], np.dtype]  # of a picture: its number, shape (C, H, W) and type


def mismatch(found: Pictures, one: Facts, other: Facts) -> str:
    """The sentence about two pictures that do not fit into one array."""
    a, b = found.names[one[0]], found.names[other[0]]
    (channels_a, *size_a), (channels_b, *size_b) = one[1], other[1]
    if size_a != size_b:
        what = f"size ({a} is {size_a[1]}x{size_a[0]}, {b} is {size_b[1]}x{size_b[0]})"
        remedy = "resize them all in one way first, or give option 'source.size'"
    elif channels_a != channels_b:
        what = f"channels ({a} has {channels_a}, {b} has {channels_b})"
        remedy = "convert them, or give option 'source.grayscale'"
    else:
        what, remedy = f"depth ({a} is {one[2]}, {b} is {other[2]})", "convert them"
    return f"pictures in {found.name} differ in {what}: {remedy} (`sims data check` lists them all)"


def _hub_revision(path: Path) -> Path:
    """The revision of a data set in the hub's cache; UserError, a question, where there are several."""
    snapshots = path / "snapshots"
    if not (path.is_dir() and snapshots.is_dir() and (path / "blobs").is_dir()):
        return path
    revisions = sorted(child for child in snapshots.iterdir() if child.is_dir())
    main = path / "refs" / "main"
    if main.is_file() and (chosen := snapshots / main.read_text(encoding="utf-8").strip()).is_dir():
        return chosen
    if len(revisions) == 1 or len({frozenset(_targets(revision)) for revision in revisions}) == 1:
        return revisions[0]
    names = ", ".join(revision.name for revision in revisions[:3])
    raise UserError(f"{path} holds {len(revisions)} revisions of a data set ({names}): give one, {snapshots}/REVISION")


def _targets(revision: Path) -> list[tuple[int, int]]:
    return [(s.st_dev, s.st_ino) for f in revision.rglob("*") if f.is_file() for s in (f.stat(),)]


def _listed(path: Path, options: SourceOptions) -> Source:
    """A folder or a zip: pictures, or tables, or arrays, or IDX files."""
    listing = list_path(path)
    left = listing.passed_over
    tables: list[str] = []
    about: list[str] = []
    for name in listing.of("table"):
        (tables if not listing.packed and has_samples(path / name) else about).append(name)
    left |= dict.fromkeys(about, "a table within an archive" if listing.packed else "a table without pictures")
    pictures = listing.of("picture", "array")
    groups = {"pictures": pictures, "tables": tables, "arrays": [] if listing.packed else listing.of("arrays"),
              "IDX files": [] if listing.packed else listing.of("idx")}  # fmt: skip
    if pictures and tables:
        raise UserError(
            f"{path} holds {len(pictures):,} pictures ({pictures[0]}) and {len(tables)} tables of pictures "
            f"({tables[0]}): give one of them"
        )
    kind = next((kind for kind, names in groups.items() if names), None)
    if kind is None:
        reasons = "; ".join(passed_over(left)[:3])
        raise UserError(
            f"{path} holds no pictures{f' ({reasons})' if reasons else ''}: give a folder or archive of png, jpg, "
            "webp, ..., parquet or npz files"
        )
    left |= {name: f"beside {kind}" for other, names in groups.items() if other != kind for name in names}
    if kind == "pictures":
        return _pictures(listing, pictures, options)
    whole = divide_files(groups[kind], str(path), options.division)
    parts: dict[str, Pictures | Arrays] = {}
    remarks = [*listing.remarks, *whole.remarks]
    for part, names in whole.parts.items():
        files = [path / name for name in names]
        if kind == "tables":
            parts[part], more = _parquet(files, options)
            remarks += [text for text in more if text not in remarks]
        else:
            parts[part] = _idx(files, path.name) if kind == "IDX files" else _joined([_npz(file) for file in files])
    left |= dict.fromkeys(listing.listings, f"beside {kind}") | whole.left_out
    return Source(parts, left, tuple(remarks))


# -- pictures in folders and zip files ---------------------------------------------------------------------------------


def _pictures(listing: Listing, names: list[str], options: SourceOptions) -> Source:
    root = listing.source
    divided: Divided = divide(names, str(root), options.division)
    left, remarks = listing.passed_over | divided.left_out, [*listing.remarks, *divided.remarks]
    parts: dict[str, Pictures | Arrays] = {}
    read_listings: set[str] = set()
    for part, members in divided.parts.items():
        labels, class_names, used, more = labels_of(listing, members)
        read_listings |= {used} if used else set()
        remarks += more
        files = [root] if listing.packed else [root / name for name in members]
        parts[part] = Pictures(
            "zip" if listing.packed else "folder", root.stem if listing.packed else root.name, members,
            partial(_read_member, listing, members), labels, class_names, files,
        )  # fmt: skip
    left |= {name: "not needed for the labels" for name in listing.listings if name not in read_listings and not any(
        name in text for text in remarks)}  # fmt: skip
    return Source(parts, left, tuple(remarks))


def _read_member(listing: Listing, members: Sequence[str], i: int) -> bytes:
    return listing.read(members[i])


# -- parquet -----------------------------------------------------------------------------------------------------------


def _parquet(paths: list[Path], options: SourceOptions) -> tuple[Pictures | Arrays, tuple[str, ...]]:
    table = Table(paths, options.image_column, options.label_column)
    labels, class_names = table.labels()
    if table.is_image:
        cells = Cells(table)
        found = Pictures("parquet", table.name, cells.names, cells.read, labels, class_names, tuple(paths))
        return found, table.remarks
    raw, shape = table.arrays()
    raw = channels_first(raw, str(paths[0]), keep=shape is not None)
    return Arrays("parquet", table.name, raw, labels, class_names), table.remarks


# -- IDX (MNIST) -------------------------------------------------------------------------------------------------------


def _idx(paths: list[Path], name: str) -> Arrays:
    """Images (N, H, W) or (N, H, W, C) of an IDX file, and the labels of the one beside it."""
    arrays = [_idx_array(path) for path in sorted(paths)]
    images = [array for array in arrays if array.ndim in (3, 4)]
    labels = [array for array in arrays if array.ndim == 1]
    if len(images) + len(labels) < len(arrays) or len(images) != 1 or len(labels) > 1 or (
        labels and len(labels[0]) != len(images[0])
    ):  # fmt: skip
        shapes = ", ".join(f"{path.name} {array.shape}" for path, array in zip(sorted(paths), arrays))
        raise UserError(
            f"{paths[0].parent} holds {shapes}: one IDX file of images (N, H, W) and at most one of labels (N,) make "
            "a set"
        )
    if labels and labels[0].dtype.kind not in "iu":
        raise UserError(f"{paths[0].parent} holds IDX labels of {labels[0].dtype}: labels are whole numbers")
    raw = channels_first(images[0], str(paths[0]))
    return Arrays("idx", name, raw, labels[0].astype(np.int64) if labels else None)


def _idx_array(path: Path) -> np.ndarray:
    try:
        with path.open("rb") as plain, gzip.open(plain) if plain.peek(2)[:2] == GZIP else plain as file:
            zero, code, ndim = file.read(2), file.read(1), file.read(1)
            if zero != b"\0\0" or code not in IDX_TYPES or not ndim or not 1 <= ndim[0] <= 4:
                raise ValueError("no IDX file")
            dtype, sides = np.dtype(IDX_TYPES[code]), file.read(4 * ndim[0])
            if len(sides) < 4 * ndim[0]:
                raise ValueError("it is cut short within its header")
            shape = tuple(np.frombuffer(sides, ">u4").tolist())
            count = math.prod(shape) * dtype.itemsize
            afford(str(path), count, regular(path))
            data = file.read(count + 1)
        if len(data) != count:
            raise ValueError(f"it holds {'more' if len(data) > count else f'{len(data):,}'} of {count:,} bytes")
        return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
    except (OSError, EOFError, zlib.error, ValueError, IndexError) as error:
        raise UserError(f"{path} cannot be read as IDX ({error}): download it again") from error


# -- npz ---------------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Arrays:
    arrays = read_arrays(path, (*IMAGE_KEYS, *LABEL_KEYS, "class_names"), map_above=IN_MEMORY)
    key = next((key for key in IMAGE_KEYS if key in arrays), None)
    if key is None:
        keys = ", ".join(array_names(path)[:20]) or "none"
        raise UserError(f"{path} has no array named {', '.join(IMAGE_KEYS)} (it has {keys})")
    labels = next((arrays[name] for name in LABEL_KEYS if name in arrays), None)
    names = tuple(str(name) for name in arrays.get("class_names", np.array([])).ravel())
    latents = key == "latents"
    return Arrays(
        "npz", path.stem, channels_first(arrays[key], f"{path}, array {key!r}", keep=latents), labels, names, latents
    )


def _joined(found: list[Arrays]) -> Arrays:
    """The arrays of several files as one; UserError where they differ in shape, type or classes."""
    first = found[0]
    for other in found[1:]:
        if (other.raw.shape[1:], other.raw.dtype, other.class_names, other.labels is None) != (
            first.raw.shape[1:], first.raw.dtype, first.class_names, first.labels is None
        ):  # fmt: skip
            raise UserError(f"{other.name} and {first.name} differ in shape, type or labels: give one of them")
    if len(found) == 1:
        return first
    labels = None if first.labels is None else np.concatenate([arrays.labels for arrays in found])  # type: ignore[misc]
    return replace(first, raw=np.concatenate([np.asarray(arrays.raw) for arrays in found]), labels=labels)


MOST_CHANNELS = 4_096  # of a picture; more is an array of something else


def channels_first(raw: np.ndarray, where: str, keep: bool = False) -> np.ndarray:
    """(N, H, W), (N, H, W, C) or (N, C, H, W) to (N, C, H, W); (N, 2) stays. `keep`: four axes are as they should be.

    The channel axis is the one that leaves square pictures, else the one of length 1, 3 or 4, else the shorter.
    """
    if raw.size == 0:
        raise UserError(f"{where} is empty (shape {raw.shape}): check the file")
    if raw.ndim == 2 and raw.shape[1] == 2:
        return raw
    if raw.ndim == 3:
        return raw[:, None]
    if raw.ndim != 4:
        raise UserError(f"{where} has shape {raw.shape}: it must be (N, C, H, W), (N, H, W, C), (N, H, W) or (N, 2)")
    _, first, second, last = raw.shape
    if (second == last) != (first == second):
        fits = second == last
    elif (first in (1, 3, 4)) != (last in (1, 3, 4)):
        fits = first in (1, 3, 4)
    else:
        fits = first <= last
    raw = raw if keep or fits else raw.transpose(0, 3, 1, 2)
    if raw.shape[1] > MOST_CHANNELS:
        raise UserError(f"{where} has {raw.shape[1]:,} channels (shape {raw.shape}): at most {MOST_CHANNELS:,} fit")
    return raw
