"""Encoded pictures and arrays in Hugging Face parquet files, a row group in memory at a time."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sims.data import hf
from sims.data.pictures import Unreadable
from sims.data.store import flat_values
from sims.errors import UserError
from sims.limits import afford, most

IMAGE_KEYS = ("images", "image", "img", "x", "data", "latents", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "class", "arr_1")
_GROUPS = 8  # row groups kept in memory
_ROWS = 2_000_000  # of any file; beyond that, a row takes at least a byte
_REPEATED = 4 << 30  # bytes that values in many rows of any file may make; in memory they are there once


class Table:
    """The columns with samples and labels of parquet files of one schema.

    ``is_image``: the samples are encoded pictures; ``image`` and ``label`` name columns. ``remarks``
    say what was chosen where others could have been meant. Raises UserError naming the file for anything missing or
    broken, and, a question, where several columns could be meant.
    """

    def __init__(self, paths: Sequence[Path], image: str | None = None, label: str | None = None) -> None:
        self.paths = list(paths)
        self.name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
        schema = _read(paths[0], lambda: pq.read_schema(paths[0]))
        self.features = hf.features_of(schema)
        self.column, self.is_image, more = _sample_column(schema, self.features, paths[0], image)
        self.label, others = _label_column(schema, self.features, self.column, paths[0], label)
        self.remarks = tuple(text for text in (more, others) if text)
        wanted = {self.column} | ({self.label} if self.label else set())
        self.counts: list[list[int]] = []  # rows of every row group of every file
        self.folded: list[list[str] | None] = []  # of every file: its column where it can be read as a dictionary
        for path in paths:
            found = _read(path, lambda path=path: pq.ParquetFile(path))  # type: ignore[misc]
            if missing := wanted - set(found.schema_arrow.names):
                first = paths[0].name
                raise UserError(f"{path} lacks the column {missing.pop()!r} that {first} has: remove or remake it")
            kind, inner = found.schema_arrow.field(self.column).type, ""
            if not (_holds_pictures(kind) if self.is_image else _holds_arrays(kind)):
                raise UserError(
                    f"{path}: column {self.column!r} is of type {kind}, and not as in {paths[0].name}: make them alike"
                )
            if self.is_image and pa.types.is_struct(kind):
                kind, inner = kind.field("bytes").type, ".bytes"
            self.folded.append([f"{self.column}{inner}"] if _folds(kind) else None)
            self.counts.append(_rows(path, found.metadata, self.column))
            found.close()
        if not sum(map(sum, self.counts)):
            raise UserError(f"{paths[0]} holds no rows: check the file")

    def labels(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Labels as found, and the names of the classes."""
        if self.label is None:
            return None, ()
        found = []
        for path in self.paths:
            named = hf.class_names(hf.features_of(pq.read_schema(path)).get(self.label, {}))
            found.append((*_labels(self._whole(path, self.label), named, path), bool(named)))
        return _one_list(found, self.paths)

    def arrays(self) -> tuple[np.ndarray, tuple[int, ...] | None]:
        """The samples of a column of arrays, and the shape that its features state."""
        shape = hf.array_shape(self.features.get(self.column, {}))
        parts = [(path, self._whole(path, self.column)) for path in self.paths]
        raw = np.concatenate([_array_column(column, shape, path) for path, column in parts if len(column)])
        return raw, shape or None

    def _whole(self, path: Path, column: str) -> pa.ChunkedArray:
        def read() -> pa.ChunkedArray:
            with pq.ParquetFile(path) as found:
                folded = _folds(found.schema_arrow.field(column).type)
                if not folded:
                    return found.read(columns=[column])[column]
            with pq.ParquetFile(path, read_dictionary=[column]) as found:
                return found.read(columns=[column])[column]

        return _read(path, read)


class Cells:
    """The bytes of pictures, by row: a row group is read when one of its rows is, and the last few are kept."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.groups = [(file, group) for file, counts in enumerate(table.counts) for group in range(len(counts))]
        self.starts = np.cumsum([0, *[count for counts in table.counts for count in counts]])
        self._kept: OrderedDict[int, pa.ChunkedArray | UserError] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> bytes:
        """The bytes of row i; raises Unreadable where there are none."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        data = self._group(group)[i - int(self.starts[group])].as_py()
        if data is None:
            raise Unreadable("no picture in this row")
        return data

    def _group(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group not in self._kept:
                file, number = self.groups[group]
                path, column = self.table.paths[file], self.table.column
                try:
                    folded = self.table.folded[file]  # values once, not per row
                    with pq.ParquetFile(path, read_dictionary=folded) as found:
                        values = found.read_row_group(number, columns=[column])[column]
                    self._kept[group] = _unfolded(values, path)
                except (pa.ArrowException, OSError) as error:
                    raise Unreadable(f"{path.name} is damaged there: {error}") from error
                if len(self._kept) > _GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            if isinstance(kept := self._kept[group], UserError):
                raise kept
            return kept

    @property
    def names(self) -> Sequence[str]:
        """What to call each row."""
        return _Names([(path.name, sum(counts)) for path, counts in zip(self.table.paths, self.table.counts)])


class _Names(Sequence[str]):
    """'FILE row N' for every row, made when asked for: a list of a million of them is a hundred megabytes."""

    def __init__(self, files: list[tuple[str, int]]) -> None:
        self.files = files
        self.starts = np.cumsum([0, *[count for _, count in files]])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self[row] for row in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        row = i % len(self)
        file = int(np.searchsorted(self.starts, row, side="right")) - 1
        return f"{self.files[file][0]} row {row - int(self.starts[file])}"


def _read(path: Path, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} cannot be read as parquet ({error}): download or make it again") from error


def _rows(path: Path, told: pq.FileMetaData, column: str) -> list[int]:
    """Rows of every row group; UserError where they, or the values of a column, are more than the file holds."""
    size = path.stat().st_size
    groups = [told.row_group(i) for i in range(told.num_row_groups)]
    rows = [group.num_rows for group in groups]
    if min(rows, default=0) < 0 or sum(rows) > max(_ROWS, size):
        raise UserError(f"{path} declares {sum(rows):,} rows in {size:,} bytes: download or make it again")
    leaves = [(group.column(i).num_values, group.column(i).total_uncompressed_size)
              for group in groups for i in range(group.num_columns)
              if f"{group.column(i).path_in_schema}.".startswith(f"{column}.")]  # fmt: skip
    afford(str(path), max(sum(values) for values in zip(*leaves)) if leaves else 0, size)
    return rows


def _unfolded(column: pa.ChunkedArray, path: Path) -> pa.ChunkedArray | UserError:
    """The bytes of a column, or what is wrong where values that rows repeat make more than a file honestly holds."""
    if pa.types.is_struct(column.type):
        column = column.flatten()[column.type.get_field_index("bytes")]
    size = 0
    for values in column.chunks:
        if pa.types.is_dictionary(values.type):
            lengths = pc.binary_length(values.dictionary).fill_null(0)
            size += pc.sum(lengths.take(values.indices.drop_null()).cast(pa.int64())).as_py() or 0
    if size > max(_REPEATED, most(path.stat().st_size)):
        return UserError(f"{path} unfolds to {size / 1e9:.3g} GB, one value in many rows: make it again")
    return column


def _folds(kind: pa.DataType) -> bool:
    """Whether values can be read as numbers of a dictionary, each of them once."""
    return bool(_is_text(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def column_names(path: Path) -> list[str]:
    """The columns of a table; UserError where it is none."""
    return list(_read(path, lambda: pq.read_schema(path)).names)


def has_samples(path: Path) -> bool:
    """Whether a table has a column that could hold samples."""
    schema = _read(path, lambda: pq.read_schema(path))
    return any(_holds_pictures(field.type) or _holds_arrays(field.type) for field in schema)


def _sample_column(
    schema: pa.Schema, features: hf.Features, path: Path, asked: str | None
) -> tuple[str, bool, str | None]:
    """The column with the samples, whether it holds encoded pictures, and a remark on others that could."""
    pictures = [field.name for field in schema if _holds_pictures(field.type)]
    arrays = [field.name for field in schema if _holds_arrays(field.type) and field.name not in pictures]
    if asked is not None:
        if asked not in (*pictures, *arrays):
            raise UserError(
                f"{path}: option 'source.image_column' is {asked!r}, and the columns that can hold samples are "
                f"{', '.join([*pictures, *arrays]) or 'none'}"
            )
        return asked, asked in pictures, None
    candidates = pictures or arrays
    if not candidates:
        raise UserError(
            f"{path} has no column of pictures (columns: {', '.join(schema.names)}): it needs one of type binary or"
            " struct {bytes, path}, as Hugging Face `datasets` writes"
        )
    named = [key for key in IMAGE_KEYS if key in candidates]
    marked = [name for name in candidates if features.get(name, {}).get("_type") == "Image"]
    if not named and len(candidates) > 1 and len(marked) != 1:
        raise UserError(
            f"{path} has several columns that could hold the samples ({', '.join(candidates)}): say which with "
            "option 'source.image_column'"
        )
    chosen = (named or marked or candidates)[0]
    kind = schema.field(chosen).type
    if _is_list(kind) and _holds_pictures(kind.value_type):
        raise UserError(f"{path}: column {chosen!r} holds lists of pictures: write one picture in each row")
    others = [name for name in candidates if name != chosen]
    remark = f"samples are those of column {chosen!r}, not {', '.join(others)} (option 'source.image_column')"
    return chosen, chosen in pictures, remark if others and pictures else None


def _holds_pictures(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_arrays(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType) or pa.types.is_nested(kind)


def _label_column(
    schema: pa.Schema, features: hf.Features, samples: str, path: Path, asked: str | None
) -> tuple[str | None, str | None]:
    """The column with the labels, and a remark on others that could hold them."""
    names = [field.name for field in schema if field.name != samples and _could_be_labels(field.type)]
    if asked is not None:
        if asked not in names:
            raise UserError(
                f"{path}: option 'source.label_column' is {asked!r}, and the columns that can hold labels are "
                f"{', '.join(names) or 'none'}"
            )
        return asked, None
    marked = [name for name in names if features.get(name, {}).get("_type") == "ClassLabel"]
    chosen = next((key for key in LABEL_KEYS if key in names), marked[0] if len(marked) == 1 else None)
    likely = [name for name in names if name != chosen and ("label" in name or "class" in name or name in marked)]
    if not likely:
        return chosen, None
    taken = f"labels are those of column {chosen!r}" if chosen else "no labels are read"
    return chosen, f"{taken}; columns that could hold labels too: {', '.join(likely)} (option 'source.label_column')"


def _could_be_labels(kind: pa.DataType) -> bool:
    kinds = (
        pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_dictionary,
    )  # fmt: skip
    return _is_text(kind) or any(is_kind(kind) for is_kind in kinds)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _labels(column: pa.ChunkedArray, names: tuple[str, ...], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    if _is_text(column.type):
        column = column.dictionary_encode()
    if pa.types.is_dictionary(column.type) and _is_text(column.type.value_type):
        column = column.unify_dictionaries()
        words = column.chunk(0).dictionary.to_pylist()
        codes = pa.chunked_array([chunk.indices for chunk in column.chunks]).fill_null(-1).to_numpy().astype(np.int64)
        used = [words[code] for code in np.unique(codes[codes >= 0])]
        names = names or tuple(sorted(used))
        number = {name: i for i, name in enumerate(names)}
        if unknown := sorted({*used} - number.keys()):
            shown = unknown[0][:80]
            raise UserError(f"{path}: label {shown!r} is not one of the class names: correct the labels or the names")
        return np.array([*(number.get(word, -1) for word in words), -1])[codes], names
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8()).cast(pa.int64()).fill_null(-1).to_numpy(), names or ("false", "true")
    if pa.types.is_floating(column.type):
        values = column.cast(pa.float64()).fill_null(-1.0).to_numpy()
        if not np.isfinite(values).all() or (values != np.round(values)).any():
            raise UserError(f"{path}: labels of type {column.type} are not whole numbers: convert them")
        return values.astype(np.int64), names
    if pa.types.is_null(column.type):
        return np.full(len(column), -1, np.int64), names
    if not pa.types.is_integer(column.type):
        raise UserError(f"{path}: labels of type {column.type} are neither whole numbers nor names: convert them")
    try:
        return column.cast(pa.int64()).fill_null(-1).to_numpy(), names
    except pa.ArrowException as error:
        raise UserError(f"{path}: labels do not fit 64 bits ({error}): renumber them") from error


def _one_list(
    found: Sequence[tuple[np.ndarray, tuple[str, ...], bool]], paths: Sequence[Path]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The labels of several files, each with the names of its own classes and whether the file states them."""
    known = {names: None for _, names, _ in found if names}
    if not known:
        return np.concatenate([labels for labels, _, _ in found]), ()
    for path, (labels, names, _) in zip(paths, found):
        if not names and (labels >= 0).any():
            raise UserError(f"{path}: labels are numbers, and names in other files beside it: make them alike")
    union = dict.fromkeys(name for names in known for name in names)
    all_names = tuple(union) if all(stated for _, names, stated in found if names) else tuple(sorted(union))
    number = {name: i for i, name in enumerate(all_names)}
    joined = []
    for labels, names, _ in found:
        table = np.array([*(number[name] for name in names), -1])
        inside = (labels >= -1) & (labels < len(names))
        joined.append(np.where(inside, table[np.where(inside, labels, -1)], labels))
    return np.concatenate(joined), all_names


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _check_rows(column: pa.ChunkedArray, shape: Sequence[int], path: Path) -> None:
    """UserError for rows without values, or of another shape than the first."""
    for chunk in column.chunks:
        values, sides = chunk, list(shape)
        while True:
            values = values.storage if isinstance(values, pa.ExtensionArray) else values
            if values.null_count:
                raise UserError(f"{path}: {values.null_count} rows or values are empty (null): remove them")
            if not _is_list(values.type):
                break
            side = sides.pop(0) if _is_list(values.type.value_type) and sides else math.prod(sides)
            if len(values) and pc.any(pc.not_equal(pc.list_value_length(values), side)).as_py():
                raise UserError(f"{path}: rows differ in shape (the first has {tuple(shape)}): make them equal")
            values = pc.list_flatten(values)


def _array_column(column: pa.ChunkedArray, shape: Sequence[int] | None, path: Path) -> np.ndarray:
    try:
        shape = tuple(shape) if shape else np.shape(column[0].as_py())
        _check_rows(column, shape, path)
        return flat_values(column).reshape(len(column), *shape)
    except (ValueError, pa.ArrowException) as error:
        raise UserError(f"{path}: rows differ in shape (the first has {shape}): make them equal") from error
