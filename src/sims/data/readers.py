"""What lies at a path, before it is decoded: encoded pictures (folder, zip, parquet) or arrays (npz, parquet)."""

from __future__ import annotations

import json
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from sims.data.mapped import IN_MEMORY, Rows
from sims.data.parquet import IMAGE_KEYS, LABEL_KEYS, Cells, Table
from sims.data.pictures import NUMPY, SUFFIXES, Unreadable
from sims.data.store import is_store
from sims.errors import UserError
from sims.files import read_json

_LABELS_FILE = "dataset.json"  # EDM's and StyleGAN's convention


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


@dataclass(frozen=True)
class Arrays:
    """Whole arrays: raw (N, C, H, W) or (N, 2), labels as found, unchecked; latents keep their values (identity)."""

    kind: str
    name: str
    raw: np.ndarray | Rows
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()
    latents: bool = False


def find_parts(path: Path) -> dict[str, list[Path]]:
    """The paths that make up each part of a source: {"train": ..., "test": ...}, or {"all": ...} undivided.

    A folder is divided by subfolders `train` and `test`, or by those words in the names of its parquet files.
    """
    if not path.is_dir() or is_store(path):
        return {"all": [path]}
    files = [file for file in sorted(path.rglob("*.parquet")) if not _hidden(file.relative_to(path).parts)]
    if not files:
        parts = {part: [path / part] for part in ("train", "test") if (path / part).is_dir()}
        return parts if "train" in parts else {"all": [path]}
    parts = {part: [file for file in files if _mentions(file.relative_to(path), part)] for part in ("train", "test")}
    if parts["train"]:
        return {part: found for part, found in parts.items() if found}
    return {"all": files}


def _mentions(path: Path, word: str) -> bool:
    """Whether a path holds `word` as a word of its own: test-0.parquet does, latest.parquet does not."""
    return re.search(rf"(^|[^a-z]){word}([^a-z]|$)", path.as_posix().lower()) is not None


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def open_paths(paths: list[Path]) -> Pictures | Arrays:
    """Open one part of a source; raises UserError naming the file for anything missing, empty or broken."""
    path = paths[0]
    if path.suffix.lower() == ".parquet":
        return _parquet(paths)
    if path.is_dir():
        return _folder(path)
    if path.suffix.lower() == ".zip":
        return _zip(path)
    if path.suffix.lower() in (".npz", ".npy"):
        return _npz(path)
    raise UserError(f"{path} is of no known kind: give a folder, .zip, .parquet, .npz, or a store of synthetic samples")


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


# -- folders and zip files ---------------------------------------------------------------------------------------------


def _folder(root: Path) -> Pictures:
    names = _pictures(path for path in _walk(root) if not _hidden(PurePosixPath(path).parts))
    if not names:
        raise UserError(
            f"{root} holds no pictures ({', '.join(SUFFIXES[:4])}, ...) and no parquet files: check the path"
        )
    listing = root / _LABELS_FILE
    found = read_json(listing) if listing.is_file() else None
    labels, class_names = _listed_labels(names, found, str(listing)) if found is not None else _class_folders(names)
    files = [root / name for name in names]
    return Pictures("folder", root.name, names, lambda i: files[i].read_bytes(), labels, class_names, files)


def _walk(root: Path) -> Iterator[str]:
    """The files below a folder, as paths from there."""
    for folder, _, names in os.walk(root, followlinks=True):
        below = Path(folder).relative_to(root).as_posix()
        yield from names if below == "." else (f"{below}/{name}" for name in names)


def _pictures(names: Iterable[str]) -> list[str]:
    """The names of pictures, sorted; of arrays (.npy), as EDM2 keeps latents, where there are none."""
    found: dict[bool, list[str]] = {False: [], True: []}
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in SUFFIXES or suffix == NUMPY:
            found[suffix == NUMPY].append(name)
    return sorted(found[False] or found[True])


def _zip(path: Path) -> Pictures:
    try:
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if not _hidden(PurePosixPath(name).parts)]
        names = _pictures(members)
        listings = [name for name in members if PurePosixPath(name).name == _LABELS_FILE]
        listing = min(listings, key=len) if listings else None
        found = json.loads(archive.read(listing)) if listing else None
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a zip file ({error}): download or make it again") from error
    if not names:
        raise UserError(f"{path} holds no pictures ({', '.join(SUFFIXES[:4])}, ...): check the file")

    def read(i: int) -> bytes:
        try:
            return archive.read(names[i])
        except (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError) as error:
            raise Unreadable(str(error)) from error

    if listing:
        below = str(PurePosixPath(listing).parent)
        labels, class_names = _listed_labels(names, found, f"{listing} in {path}", below)
    else:
        labels, class_names = _class_folders(names)
    return Pictures("zip", path.stem, names, read, labels, class_names, (path,))


def _class_folders(names: Sequence[str]) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Classes from the first folder in which names differ; pictures beside the class folders have no class (-1)."""
    paths = [PurePosixPath(name).parts[:-1] for name in names]
    depth = 0  # folders that hold everything are no classes
    while all(len(parts) > depth for parts in paths) and len({parts[depth] for parts in paths}) == 1:
        depth += 1
    folders = [parts[depth] if len(parts) > depth else None for parts in paths]
    class_names = tuple(sorted({folder for folder in folders if folder is not None}))
    if not class_names:
        return None, ()
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([-1 if folder is None else number[folder] for folder in folders], dtype=np.int64), class_names


def _listed_labels(
    names: Sequence[str], found: Any, where: str, below: str = "."
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels from EDM's dataset.json: {"labels": [[name, label], ...]}, or null for none."""
    entries = found.get("labels") if isinstance(found, dict) else None
    if entries is None:
        return None, ()
    try:
        table = {str(name).replace("\\", "/"): label for name, label in entries}
    except (TypeError, ValueError) as error:
        raise UserError(f'{where}: "labels" is not a list of [name, label] pairs: correct the file') from error
    labels = np.empty(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        label = table.get(name.removeprefix(f"{below}/"), table.get(name))
        if isinstance(label, bool) or not isinstance(label, int):
            what = "no label" if label is None else f"label {label!r}, which is not a whole number,"
            raise UserError(f"{where} has {what} for {name}: give a class number for every picture, or null for none")
        labels[i] = label
    return labels, ()


# -- parquet -----------------------------------------------------------------------------------------------------------


def _parquet(paths: list[Path]) -> Pictures | Arrays:
    table = Table(paths)
    labels, class_names = table.labels()
    if table.is_image:
        cells = Cells(table)
        return Pictures("parquet", table.name, cells.names, cells.read, labels, class_names, tuple(paths))
    raw, shape = table.arrays()
    raw = channels_first(raw, str(paths[0]), keep=shape is not None)
    return Arrays("parquet", table.name, raw, labels, class_names)


# -- npz ---------------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Arrays:
    try:
        if path.suffix.lower() == ".npy":
            arrays = {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as archive:
                wanted = (*IMAGE_KEYS, *LABEL_KEYS, "class_names")
                keys = archive.files
                arrays = {key: _array(path, archive, key) for key in keys if key in wanted}
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as numpy arrays ({error}): make it again with np.savez") from error
    key = next((key for key in IMAGE_KEYS if key in arrays), None)
    if key is None:
        raise UserError(f"{path} has no array named {', '.join(IMAGE_KEYS)} (it has {', '.join(keys) or 'none'})")
    labels = next((arrays[name] for name in LABEL_KEYS if name in arrays), None)
    names = tuple(str(name) for name in arrays.get("class_names", np.array([])).ravel())
    latents = key == "latents"
    return Arrays(
        "npz", path.stem, channels_first(arrays[key], f"{path}, array {key!r}", keep=latents), labels, names, latents
    )


def _array(path: Path, archive: Any, key: str) -> np.ndarray:
    """An array of an npz file: a memory map of what is large and not compressed, else read."""
    info = archive.zip.getinfo(f"{key}.npy")
    if info.compress_type != zipfile.ZIP_STORED or info.file_size <= IN_MEMORY:
        return archive[key]
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)  # of the member: the lengths of its name and extra fields end it
        file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            return archive[key]
        shape, fortran, dtype = read[version](file)
        start = file.tell()
    if fortran or dtype.hasobject:
        return archive[key]
    return np.memmap(path, dtype, "r", start, shape)


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
    return raw if keep or fits else raw.transpose(0, 3, 1, 2)
