"""The store of synthetic samples: a folder of parquet shards with their provenance, resumable after a kill.

    header.json         what the store is to hold; written first, and compared when the store is opened again
    part-00000.parquet  `shard_size` samples with seed, label, model, method, w; each written atomically
    manifest.json       the header and the SHA-256 of every shard; written last

The shards are ordinary Hugging Face parquet files.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sims.config import JSON, convert, differences, to_dict
from sims.data import hf
from sims.data.codec import Codec
from sims.data.dataset import Dataset, check_labels
from sims.data.pictures import Unreadable, decode_image, encode_png, fits_png
from sims.errors import UserError
from sims.files import atomic_path, digest_file, read_json, remove_leftovers, write_json
from sims.limits import afford

FORMAT = 1
MOST_CLASSES, MOST_SHARDS = 1_000_000, 100_000
SPACES = ("pixels", "latents")
_HEADER, _MANIFEST = "header.json", "manifest.json"
_OWN_COLUMNS = ("image", "data", "seed", "label", "model", "method", "w")


@dataclass(frozen=True)
class StoreHeader:
    """What a store holds: the space and shape of its samples, how to read their values, and where they come from."""

    space: str  # "pixels" | "latents"
    data_shape: tuple[int, ...]
    codec: Codec  # with dtype and value range of the raw values
    total: int  # samples, over all shards
    num_classes: int = 0
    class_names: tuple[str, ...] = ()
    provenance: dict[str, JSON] = field(default_factory=dict)
    shard_size: int = 1024

    def __post_init__(self) -> None:
        object.__setattr__(self, "data_shape", tuple(self.data_shape))
        if len(self.data_shape) not in (1, 3) or min(self.data_shape) < 1:
            raise UserError(f"samples of shape {str(self.data_shape)[:80]}: they must be (C, H, W) or (2,)")
        if not 0 <= self.num_classes <= MOST_CLASSES:
            raise UserError(f"{self.num_classes:,} classes: there can be none, and {MOST_CLASSES:,} at most")
        names = tuple(self.class_names) or tuple(str(i) for i in range(self.num_classes))
        object.__setattr__(self, "class_names", names)
        if self.space not in SPACES:
            raise UserError(f"space {self.space!r} is unknown: use one of {', '.join(SPACES)}")
        if self.total < 1 or self.shard_size < 1:
            raise UserError(f"{self.total} samples in shards of {self.shard_size}: both must be at least 1")
        if self.num_shards > MOST_SHARDS:
            raise UserError(f"{self.num_shards:,} shards: there can be {MOST_SHARDS:,} at most, of more samples each")
        if len(names) != self.num_classes:
            raise UserError(f"{len(names)} class names for {self.num_classes} classes: give one name for each class")

    @property
    def numbers(self) -> np.ndarray:
        """The number (num_classes,) of each class in the files: its name, where all are whole numbers in order.

        Labels that had gaps keep their numbers so.
        """
        numbers = np.array([int(name) if name.isdecimal() and len(name) < 19 else -1 for name in self.class_names])
        return numbers if (numbers >= 0).all() and (np.diff(numbers) > 0).all() else np.arange(self.num_classes)

    @property
    def num_shards(self) -> int:
        """Number of shards; the last may be shorter."""
        return -(-self.total // self.shard_size)

    def indices(self, shard: int) -> range:
        """The sample numbers that belong to a shard."""
        return range(shard * self.shard_size, min((shard + 1) * self.shard_size, self.total))

    def to_json(self) -> dict[str, JSON]:
        """A JSON-able description; `from_json` reads it back."""
        codec = self.codec  # its type and range are told twice, for those who read the store with other programs
        told: dict[str, JSON] = {"dtype": codec.dtype, "value_range": [codec.low, codec.high]}
        return {"format": FORMAT, **to_dict(self), "codec": codec.to_json(), **told}

    @classmethod
    def from_json(cls, obj: JSON, path: str | Path = "the store") -> StoreHeader:
        """The header that `to_json` described; raises UserError for anything else."""
        if not isinstance(obj, dict) or obj.get("format") != FORMAT:
            held = obj.get("format") if isinstance(obj, dict) else None
            raise UserError(
                f"{path} has store format {held}, this version reads {FORMAT}: update sims or make it again"
            )
        names = {entry.name for entry in fields(cls)}
        try:
            return convert({key: obj[key] for key in obj if key in names}, cls, "header", what="entry")  # type: ignore[no-any-return]
        except UserError as error:
            raise UserError(f"{path} describes no store ({error}): restore the file or remove the store") from error


class Store:
    """A store being written. Several processes may write different shards; one of them finishes."""

    def __init__(self, path: Path, header: StoreHeader) -> None:
        self.path, self.header = path, header
        self._valid: dict[int, bool] = {}  # shards already looked at

    @staticmethod
    def open(path: str | Path, header: StoreHeader) -> Store:
        """Create a store, or continue one; raises UserError naming the difference where it holds something else."""
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file, not a folder: choose another place for the store")
        if (path / _HEADER).exists():
            _compare(path, header)
        elif path.is_dir() and any(not child.name.startswith(".") for child in path.iterdir()):
            raise UserError(f"{path} holds other files and no store: choose a new or empty folder")
        else:
            write_json(path / _HEADER, header.to_json())
        remove_leftovers(path)
        return Store(path, header)

    @staticmethod
    def read(path: str | Path) -> Dataset:
        """All samples of a finished store, in order, with their columns; raises UserError where anything is amiss."""
        return _read(Path(path))

    def shard_path(self, shard: int) -> Path:
        """Where a shard lies."""
        return self.path / f"part-{shard:05d}.parquet"

    def missing(self) -> list[int]:
        """Shards still to be written: absent, truncated, or damaged."""
        return [shard for shard in range(self.header.num_shards) if not self._is_valid(shard)]

    @property
    def complete(self) -> bool:
        """Whether the store is finished and every shard is sound."""
        return (self.path / _MANIFEST).exists() and not self.missing()

    def _is_valid(self, shard: int) -> bool:
        if not self._valid.get(shard):
            self._valid[shard] = self._check(shard)
        return self._valid[shard]

    def _check(self, shard: int) -> bool:
        path = self.shard_path(shard)
        if not path.is_file():
            return False
        if (self.path / _MANIFEST).exists():
            return digest_file(path) == _shard_hashes(self.path).get(path.name)
        try:  # no hash yet: the page checksums tell a damaged file
            table = pq.read_table(path, partitioning=None, page_checksum_verification=True)
        except (pa.ArrowException, OSError):
            return False
        return table.num_rows == len(self.header.indices(shard)) and table.schema.names[0] == _column(self.header)

    def write(
        self,
        shard: int,
        raw: np.ndarray,
        seeds: np.ndarray,
        labels: np.ndarray | None = None,
        *,
        model: str,
        method: str,
        w: float,
        attributes: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Write one shard: raw (n, *data_shape) in the codec's dtype, seeds (n,), labels (n,) with -1 = none.

        n is the length of `header.indices(shard)`. Attributes are further columns, the same in every shard.
        """
        if not 0 <= shard < self.header.num_shards:
            raise UserError(f"shard {shard} of {self.path} does not exist: the last is {self.header.num_shards - 1}")
        columns = {
            "seed": np.asarray(seeds, dtype=np.int64),
            "label": np.full(len(raw), -1) if labels is None else labels,
            "model": np.full(len(raw), model),
            "method": np.full(len(raw), method),
            "w": np.full(len(raw), w, dtype=np.float64),
        }
        table = _table(self.header, shard, raw, columns, dict(attributes or {}), str(self.path))
        (self.path / _MANIFEST).unlink(missing_ok=True)  # from here until finish() the store is not complete
        with atomic_path(self.shard_path(shard)) as temporary:
            pq.write_table(table, temporary, write_page_checksum=True)
        self._valid[shard] = True

    def finish(self) -> None:
        """Write the manifest; raises UserError while shards are missing."""
        self._valid.clear()  # look again: other processes may have written
        if missing := self.missing():
            raise UserError(
                f"{self.path} lacks {len(missing)} of {self.header.num_shards} shards (first: {missing[0]}):"
                " run the same command again to write them"
            )
        remove_leftovers(self.path, older_than=0.0)
        names = [self.shard_path(shard).name for shard in range(self.header.num_shards)]
        shards = [{"file": name, "sha256": digest_file(self.path / name)} for name in names]
        write_json(self.path / _MANIFEST, {**self.header.to_json(), "shards": shards})


def is_store(path: str | Path) -> bool:
    """Whether a folder is a store, finished or not."""
    return (Path(path) / _HEADER).is_file()


def _compare(path: Path, header: StoreHeader) -> None:
    """Raise UserError where the store at `path` was made for another header."""
    try:
        there = StoreHeader.from_json(read_json(path / _HEADER), path / _HEADER)
    except UserError as error:
        raise UserError(f"{error}, or remove {path} to make it anew") from None
    different = [
        f"{name} is {old!r}, asked for {new!r}"
        for name, old, new in differences(there.to_json(), header.to_json())
        if name != "codec.latents.vae"  # where the autoencoder lies changes no sample
    ]
    if different:
        shown = "; ".join(different[:3])
        raise UserError(f"{path} already holds a different store ({shown}): choose another folder, or remove that one")


def _column(header: StoreHeader) -> str:
    """The name of the column with the samples."""
    return "image" if fits_png(header.codec.dtype, header.data_shape) and header.space == "pixels" else "data"


def _table(
    header: StoreHeader,
    shard: int,
    raw: np.ndarray,
    columns: dict[str, np.ndarray],
    attributes: dict[str, np.ndarray],
    name: str,
) -> pa.Table:
    """One shard as a table with Hugging Face features; raises UserError for anything that does not fit the header."""
    count = len(header.indices(shard))
    if raw.shape != (count, *header.data_shape) or raw.dtype != np.dtype(header.codec.dtype):
        raise UserError(
            f"shard {shard} of {name} needs {count} samples of shape {header.data_shape}, {header.codec.dtype};"
            f" got shape {raw.shape}, {raw.dtype}"
        )
    if raw.dtype.kind == "f" and not np.isfinite(raw).all():
        raise UserError(f"shard {shard} of {name}: the samples hold values that are not finite; nothing was written")
    columns["label"] = check_labels(columns["label"], count, header.class_names, name)
    if header.num_classes == 0 and (columns["label"] != -1).any():
        raise UserError(f"shard {shard} of {name}: labels given, but the store has no classes: set num_classes")
    labels = columns["label"]
    columns["label"] = np.where(labels < 0, -1, header.numbers[labels]) if header.num_classes else labels
    if taken := set(attributes) & set(_OWN_COLUMNS):
        raise UserError(f"attribute names {sorted(taken)} are taken: choose other names")
    features: dict[str, hf.Feature] = {}
    arrays: dict[str, pa.Array] = {}
    if _column(header) == "image":
        features["image"] = {"_type": "Image"}
        arrays["image"] = pa.array([{"bytes": encode_png(pixels), "path": None} for pixels in raw], hf.IMAGE)
    else:
        features["data"] = hf.array_feature(header.data_shape, header.codec.dtype)
        arrays["data"] = _nested(raw)
    for key, values in (columns | attributes).items():
        if len(values) != count:
            raise UserError(f"shard {shard} of {name}: {len(values)} values of {key} for {count} samples")
        arrays[key] = pa.array(np.asarray(values).tolist() if np.asarray(values).dtype.kind == "U" else values)
        features[key] = hf.value(str(arrays[key].type).replace("double", "float64"))
    if (numbers := header.numbers).size and numbers[-1] == header.num_classes - 1:
        features["label"] = hf.class_label(header.class_names)
    fields = [pa.field(key, array.type) for key, array in arrays.items()]
    if "data" in arrays:
        fields[0] = hf.array_field("data", arrays["data"], header.data_shape, header.codec.dtype)
    return pa.Table.from_arrays(list(arrays.values()), schema=hf.with_features(pa.schema(fields), features))


def _nested(raw: np.ndarray) -> pa.Array:
    """(n, *shape) to a nested list array, without a Python object per value."""
    array = pa.array(np.ascontiguousarray(raw).reshape(-1))
    for axis, length in reversed(list(enumerate(raw.shape))[1:]):
        if raw.ndim == 2:
            return pa.FixedSizeListArray.from_arrays(array, length)
        count = int(np.prod(raw.shape[:axis]))
        array = pa.ListArray.from_arrays(np.arange(count + 1, dtype=np.int32) * length, array)
    return array


def _shard_hashes(path: Path) -> dict[str, str]:
    try:
        return {shard["file"]: str(shard["sha256"]) for shard in read_json(path / _MANIFEST)["shards"]}
    except (KeyError, TypeError) as error:
        raise UserError(f"{path / _MANIFEST} lists no shards: run the command that made the store again") from error


def _read(path: Path) -> Dataset:
    remedy = "run the command that made it again, and it will complete the store"
    if not is_store(path):
        raise UserError(f"{path} is no store of synthetic samples: give the folder that `sims synthesize` wrote")
    if not (path / _MANIFEST).exists():
        raise UserError(f"the store {path} is unfinished: {remedy}")
    header = StoreHeader.from_json(read_json(path / _MANIFEST), path / _MANIFEST)
    hashes = _shard_hashes(path)
    store = Store(path, header)
    held = sum(file.stat().st_size for file in path.glob("part-*.parquet") if file.is_file())
    dtype = np.dtype(header.codec.dtype)
    afford(f"the store {path}", header.total * math.prod(header.data_shape) * dtype.itemsize, held)
    raw = np.empty((header.total, *header.data_shape), dtype)
    parts: list[dict[str, np.ndarray]] = []
    folded = ["image.bytes"] if _column(header) == "image" else None  # its values once, not for every row
    for shard in range(header.num_shards):
        file, index = store.shard_path(shard), header.indices(shard)
        if not file.is_file():
            raise UserError(f"the store {path} lacks {file.name}: {remedy}")
        data = file.read_bytes()
        if hashlib.sha256(data).hexdigest() != hashes.get(file.name):
            raise UserError(f"{file} is truncated or damaged (its hash is not the one in {_MANIFEST}): {remedy}")
        try:
            found = pq.ParquetFile(pa.BufferReader(data), read_dictionary=folded)
            if found.metadata.num_rows != len(index):
                raise ValueError(f"{found.metadata.num_rows:,} rows, not {len(index):,}")
            table = found.read()
            read_samples(table, raw[index.start : index.stop])
            parts.append(
                {key: _column_values(table[key]) for key in table.column_names if key not in ("image", "data")}
            )
        except (pa.ArrowException, OSError, ValueError, Unreadable) as error:
            raise UserError(f"{file} cannot be read ({error}): {remedy}") from error
        except KeyError as error:
            raise UserError(f"{file} has no column of samples: {remedy}") from error
        if parts[-1].keys() != parts[0].keys():
            raise UserError(f"{file} has columns {list(parts[-1])}, the first shard {list(parts[0])}: {remedy}")
    columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    labels = columns.pop("label") if header.num_classes else None
    if labels is not None:
        labels = np.where(labels < 0, -1, np.searchsorted(header.numbers, labels))
    name = os.path.basename(os.path.abspath(path))
    return Dataset(raw, labels, header.codec, header.class_names if header.num_classes else (), name, columns)


def _column_values(column: pa.ChunkedArray) -> np.ndarray:
    values = column.to_numpy()
    return values.astype(str) if values.dtype == object and pa.types.is_string(column.type) else values


def read_samples(table: pa.Table, out: np.ndarray) -> None:
    """Write the samples of a shard, from its `image` or `data` column, to ``out`` (n, *shape)."""
    if "image" not in table.column_names:
        out[:] = flat_values(table["data"]).reshape(out.shape)
        return
    for i, cell in enumerate(cell for chunk in table["image"].chunks for cell in chunk.field("bytes")):
        pixels = decode_image(cell.as_py() or b"")
        if pixels.shape != out.shape[1:]:
            raise ValueError(f"sample {i} has shape {pixels.shape}, not {out.shape[1:]}")
        out[i] = pixels


def flat_values(column: pa.ChunkedArray) -> np.ndarray:
    """All numbers of a column of (nested) lists, in order."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks)
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    while pa.types.is_nested(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)
