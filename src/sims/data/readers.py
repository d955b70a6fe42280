"""What lies at a path, before it is decoded: encoded pictures (folder, zip, parquet) or arrays (npz, parquet)."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sims.data import hf
from sims.data.images import SUFFIXES, Unreadable
from sims.data.store import flat_values, is_store
from sims.errors import UserError
from sims.files import read_json

_IMAGE_KEYS = ("images", "image", "x", "data", "latents", "arr_0")
_LABEL_KEYS = ("labels", "label", "y", "arr_1")
_LABELS_FILE = "dataset.json"  # EDM's and StyleGAN's convention


@dataclass(frozen=True)
class Pictures:
    """Pictures still encoded: `read(i)` gives the bytes of picture `names[i]`; labels as found, unchecked."""

    kind: str
    name: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Arrays:
    """Whole arrays: raw (N, C, H, W) or (N, 2), labels as found, unchecked; latents keep their values (identity)."""

    kind: str
    name: str
    raw: np.ndarray
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


# -- folders and zip files ---------------------------------------------------------------------------------------------


def _folder(root: Path) -> Pictures:
    files = [file.relative_to(root) for file in root.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    names = sorted(file.as_posix() for file in files if not _hidden(file.parts))
    if not names:
        raise UserError(
            f"{root} holds no pictures ({', '.join(SUFFIXES[:4])}, ...) and no parquet files: check the path"
        )
    listing = root / _LABELS_FILE
    found = read_json(listing) if listing.is_file() else None
    labels, class_names = _listed_labels(names, found, str(listing)) if found is not None else _class_folders(names)
    return Pictures("folder", root.name, names, lambda i: (root / names[i]).read_bytes(), labels, class_names)


def _zip(path: Path) -> Pictures:
    try:
        archive = zipfile.ZipFile(path)
        members = [name for name in archive.namelist() if not _hidden(PurePosixPath(name).parts)]
        names = sorted(name for name in members if PurePosixPath(name).suffix.lower() in SUFFIXES)
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
    return Pictures("zip", path.stem, names, read, labels, class_names)


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
    schema = _read(paths[0], lambda: pq.read_schema(paths[0]))
    features = hf.features_of(schema)
    column, is_image = _sample_column(schema, features, paths[0])
    label = _label_column(schema, features, column)
    wanted = [column] + ([label] if label else [])
    tables = []
    for path in paths:
        table = _read(path, lambda path=path: pq.read_table(path, columns=wanted, partitioning=None))  # type: ignore[misc]
        if missing := set(wanted) - set(table.column_names):
            raise UserError(f"{path} lacks the column {missing.pop()!r} that {paths[0].name} has: remove or remake it")
        tables.append(table)
    if not sum(len(table) for table in tables):
        raise UserError(f"{paths[0]} holds no rows: check the file")
    name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
    class_names = tuple(features.get(label, {}).get("names", ())) if label else ()
    labels = None
    if label:
        chunks = [chunk for table in tables for chunk in table[label].chunks]
        labels, class_names = _labels(pa.chunked_array(chunks, schema.field(label).type), class_names, paths[0])
    if not is_image:
        shape = features.get(column, {}).get("shape")
        raw = np.concatenate([_array_column(t[column], shape, path) for t, path in zip(tables, paths) if len(t)])
        return Arrays("parquet", name, _channels_first(raw, str(paths[0]), keep=shape is not None), labels, class_names)
    cells = [chunk for table in tables for chunk in table[column].chunks if len(chunk)]
    starts = np.cumsum([0] + [len(chunk) for chunk in cells])
    names = [f"{path.name} row {row}" for path, table in zip(paths, tables) for row in range(len(table))]

    def read(i: int) -> bytes:
        chunk = int(np.searchsorted(starts, i, side="right")) - 1
        cell = cells[chunk][i - int(starts[chunk])].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise Unreadable("no picture in this row")
        return data

    return Pictures("parquet", name, names, read, labels, class_names)


def _read(path: Path, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}): download or make it again") from error


def _sample_column(schema: pa.Schema, features: hf.Features, path: Path) -> tuple[str, bool]:
    """The column with the samples, and whether it holds encoded pictures."""
    marked = [name for name, feature in features.items() if feature.get("_type") == "Image" and name in schema.names]
    by_content = [field.name for field in schema if _holds_pictures(field.type)]
    lists = [f.name for f in schema if isinstance(f.type, pa.BaseExtensionType) or pa.types.is_nested(f.type)]
    lists = [name for name in lists if name not in by_content]
    if marked and marked[0] in by_content:
        return marked[0], True
    if by_content:
        return by_content[0], True
    if lists:
        return next((key for key in _IMAGE_KEYS if key in lists), lists[0]), False
    raise UserError(
        f"{path} has no column of pictures (columns: {', '.join(schema.names)}): it needs one of type binary or"
        " struct {bytes, path}, as Hugging Face `datasets` writes"
    )


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _label_column(schema: pa.Schema, features: hf.Features, samples: str) -> str | None:
    names = [name for name in schema.names if name != samples]
    marked = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    return next((key for key in _LABEL_KEYS if key in names), marked[0] if marked else None)


def _labels(column: pa.ChunkedArray, names: tuple[str, ...], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        words = column.to_pylist()
        names = names or tuple(sorted({word for word in words if word is not None}))
        number: dict[str | None, int] = {name: i for i, name in enumerate(names)} | {None: -1}
        if (unknown := next((word for word in words if word not in number), None)) is not None:
            raise UserError(f"{path}: label {unknown!r} is not one of the class names: correct the labels or the names")
        return np.array([number[word] for word in words], dtype=np.int64), names
    if not pa.types.is_integer(column.type):
        raise UserError(f"{path}: labels of type {column.type} are neither whole numbers nor names: convert them")
    return column.cast(pa.int64()).fill_null(-1).to_numpy(), names


def _array_column(column: pa.ChunkedArray, shape: Sequence[int] | None, path: Path) -> np.ndarray:
    shape = tuple(shape) if shape else np.shape(column[0].as_py())
    try:
        return flat_values(column).reshape(len(column), *shape)
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: rows differ in shape (the first has {shape}): make them equal") from error


# -- npz ---------------------------------------------------------------------------------------------------------------


def _npz(path: Path) -> Arrays:
    try:
        if path.suffix.lower() == ".npy":
            arrays = {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
        else:
            with np.load(path, allow_pickle=False) as archive:
                wanted = (*_IMAGE_KEYS, *_LABEL_KEYS, "class_names")
                keys, arrays = archive.files, {key: archive[key] for key in archive.files if key in wanted}
    except (zipfile.BadZipFile, OSError, EOFError, zlib.error, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as numpy arrays ({error}): make it again with np.savez") from error
    key = next((key for key in _IMAGE_KEYS if key in arrays), None)
    if key is None:
        raise UserError(f"{path} has no array named {', '.join(_IMAGE_KEYS)} (it has {', '.join(keys) or 'none'})")
    labels = next((arrays[name] for name in _LABEL_KEYS if name in arrays), None)
    names = tuple(str(name) for name in arrays.get("class_names", np.array([])).ravel())
    latents = key == "latents"
    return Arrays(
        "npz", path.stem, _channels_first(arrays[key], f"{path}, array {key!r}", keep=latents), labels, names, latents
    )


def _channels_first(raw: np.ndarray, where: str, keep: bool = False) -> np.ndarray:
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
