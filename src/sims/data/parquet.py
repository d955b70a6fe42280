"""Encoded pictures and arrays in Hugging Face parquet files, a row group in memory at a time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sims.data import hf
from sims.data.pictures import Unreadable
from sims.data.store import flat_values
from sims.errors import UserError

IMAGE_KEYS = ("images", "image", "x", "data", "latents", "arr_0")
LABEL_KEYS = ("labels", "label", "y", "arr_1")
_GROUPS = 4  # row groups kept in memory


class Table:
    """The columns with samples and labels of parquet files of one schema.

    ``is_image``: the samples are encoded pictures. Raises UserError naming the file for anything missing or broken.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)
        self.name = paths[0].stem if len(paths) == 1 else paths[0].parent.name
        schema = _read(paths[0], lambda: pq.read_schema(paths[0]))
        self.features = hf.features_of(schema)
        self.column, self.is_image = _sample_column(schema, self.features, paths[0])
        self.label = _label_column(schema, self.features, self.column)
        wanted = {self.column} | ({self.label} if self.label else set())
        self.counts: list[list[int]] = []  # rows of every row group of every file
        for path in paths:
            found = _read(path, lambda path=path: pq.ParquetFile(path))  # type: ignore[misc]
            if missing := wanted - set(found.schema_arrow.names):
                first = paths[0].name
                raise UserError(f"{path} lacks the column {missing.pop()!r} that {first} has: remove or remake it")
            self.counts.append([found.metadata.row_group(i).num_rows for i in range(found.num_row_groups)])
            found.close()
        if not sum(map(sum, self.counts)):
            raise UserError(f"{paths[0]} holds no rows: check the file")

    def labels(self) -> tuple[np.ndarray | None, tuple[str, ...]]:
        """Labels as found, and the names of the classes."""
        if self.label is None:
            return None, ()
        names = hf.class_names(self.features.get(self.label, {}))
        chunks = [chunk for path in self.paths for chunk in self._whole(path, self.label).chunks]
        return _labels(pa.chunked_array(chunks, chunks[0].type), names, self.paths[0])

    def arrays(self) -> tuple[np.ndarray, tuple[int, ...] | None]:
        """The samples of a column of arrays, and the shape that its features state."""
        shape = hf.array_shape(self.features.get(self.column, {}))
        parts = [(path, self._whole(path, self.column)) for path in self.paths]
        raw = np.concatenate([_array_column(column, shape, path) for path, column in parts if len(column)])
        return raw, shape or None

    def _whole(self, path: Path, column: str) -> pa.ChunkedArray:
        return _read(path, lambda: pq.read_table(path, columns=[column], partitioning=None))[column]


class Cells:
    """The bytes of pictures, by row: a row group is read when one of its rows is, and the last few are kept."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.groups = [(file, group) for file, counts in enumerate(table.counts) for group in range(len(counts))]
        self.starts = np.cumsum([0, *[count for counts in table.counts for count in counts]])
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self.starts[-1])

    def read(self, i: int) -> bytes:
        """The bytes of row i; raises Unreadable where there are none."""
        group = int(np.searchsorted(self.starts, i, side="right")) - 1
        cell = self._group(group)[i - int(self.starts[group])].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if data is None:
            raise Unreadable("no picture in this row")
        return data

    def _group(self, group: int) -> pa.ChunkedArray:
        with self._lock:
            if group not in self._kept:
                file, number = self.groups[group]
                path, column = self.table.paths[file], self.table.column
                try:
                    with pq.ParquetFile(path) as found:
                        self._kept[group] = found.read_row_group(number, columns=[column])[column]
                except (pa.ArrowException, OSError) as error:
                    raise Unreadable(f"{path.name} is damaged there: {error}") from error
                if len(self._kept) > _GROUPS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(group)
            return self._kept[group]

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
        return next((key for key in IMAGE_KEYS if key in lists), lists[0]), False
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
    return next((key for key in LABEL_KEYS if key in names), marked[0] if marked else None)


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
