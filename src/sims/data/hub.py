"""Data sets of the Hugging Face hub, streamed into parquet files on this machine, and read from there ever after."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sims.data import hf
from sims.data.mapped import require_space
from sims.data.pictures import SourceOptions
from sims.errors import UserError
from sims.files import atomic_path, remove_leftovers, write_json
from sims.screen import say

PREFIX = "hf:"
_PARTS = ("train", "test")
_FILE = 256 << 20  # bytes of pictures in a file
_GROUP = 500  # rows that are read together later
_DONE = "done.json"


def local(source: str, options: SourceOptions, log: Callable[[str], None] = say) -> Path:
    """The folder of `hf:owner/name` (its parts train and test) or `hf:owner/name:split`, fetched if need be.

    Only a row group is in memory at a time, and an interrupted download continues. UserError, one sentence, where the
    data are not on this machine and may not be fetched, or cannot be.
    """
    name, split = _parse(source)
    folder = options.folder / "hub" / name.replace("/", "--")
    wanted = folder / split if split else folder
    if (wanted / _DONE).is_file():
        return wanted
    if not options.download:
        raise UserError(f"{source} is not on this machine: give option 'source.download' to fetch it into {folder}")
    library = _library()
    try:
        _fetch(library, name, split, folder, log)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise UserError(
            f"{source} cannot be fetched ({type(error).__name__}: {reason[:200]}): check the name and the connection, "
            "or give data on this machine"
        ) from error
    return wanted


def is_here(source: str, options: SourceOptions) -> bool:
    """Whether a data set of the hub, or a part of it, is on this machine."""
    return (options.folder / "hub" / _parse(source)[0].replace("/", "--")).is_dir()


def _parse(source: str) -> tuple[str, str | None]:
    name, _, split = source.removeprefix(PREFIX).partition(":")
    parts = name.split("/")
    if len(parts) > 2 or not all(part and set(part) - {"."} for part in parts) or "/" in split:
        raise UserError(f"{source!r} names no data set of the hub: write hf:owner/name or hf:owner/name:split")
    return name, split or None


def _library() -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError as error:
        raise UserError(
            f"data sets of the hub need the package datasets ({error}): pip install 'sims-diffusion[hub]'"
        ) from error


def _fetch(library: Any, name: str, split: str | None, folder: Path, log: Callable[[str], None]) -> None:
    """Every split that is wanted, then the mark that all are there."""
    builder = library.load_dataset_builder(name)
    known = builder.info.splits or {}
    there = list(known) or library.get_dataset_split_names(name)
    wanted = [split] if split else [part for part in _PARTS if part in there]
    if not wanted or any(part not in there for part in wanted):
        raise UserError(f"{name} has the parts {', '.join(there)}: choose one, as in hf:{name}:{there[0]}")
    for part in wanted:
        if not (folder / part / _DONE).is_file():
            rows = getattr(known.get(part), "num_examples", None)
            size = getattr(known.get(part), "num_bytes", None)
            _announce(name, part, rows, size, folder, log)
            _split(library, name, part, folder / part, log)
    if not split:
        write_json(folder / _DONE, {"parts": wanted})


def _announce(
    name: str, part: str, rows: int | None, size: int | None, folder: Path, log: Callable[[str], None]
) -> None:
    """Say how much there is to come; UserError where the disk cannot hold it."""
    folder.mkdir(parents=True, exist_ok=True)
    many = "some" if rows is None else f"{rows:,}"
    much = "" if size is None else f", {size / 1e9:.2f} GB"
    log(f"fetching {many} rows of {name} ({part}){much} into {folder}")
    require_space(f"{name} ({part})", size or 0, folder)


def _split(library: Any, name: str, part: str, folder: Path, log: Callable[[str], None]) -> None:
    """One split as parquet files; files that are there already are skipped, by the number of their rows."""
    stream = library.load_dataset(name, split=part, streaming=True)
    image, label = _columns(library, stream.features, name)
    stream = stream.select_columns([image] + ([label] if label else [])).cast_column(image, library.Image(decode=False))
    names = tuple(getattr(stream.features[label], "names", None) or ()) if label else ()
    remove_leftovers(folder, older_than=0.0)
    files = sorted(folder.glob("part-*.parquet"))
    done = sum(pq.read_metadata(file).num_rows for file in files)
    if done:
        log(f"  {done:,} rows are there already")
    for number, rows in enumerate(_files(stream.skip(done) if done else stream, image, name), start=len(files)):
        columns = {"image": pa.array([row[image] for row in rows], hf.IMAGE)}
        features: hf.Features = {"image": {"_type": "Image"}}
        if label:
            columns["label"] = pa.array([row[label] for row in rows])
            features["label"] = hf.class_label(names) if names else hf.value(str(columns["label"].type))
        table = pa.table(columns)
        with atomic_path(folder / f"part-{number:05d}.parquet") as temporary:
            pq.write_table(
                table.replace_schema_metadata(hf.with_features(table.schema, features).metadata),
                temporary,
                row_group_size=_GROUP,
            )
        done += len(rows)
        log(f"  {done:,} rows")
    if not done:
        raise UserError(f"{name} ({part}) has no rows: choose another part")
    write_json(folder / _DONE, {"name": name, "part": part, "rows": done})


def _files(stream: Any, image: str, name: str) -> Iterator[list[dict[str, object]]]:
    """The rows of one file after the other."""
    rows: list[dict[str, object]] = []
    size = 0
    for row in stream:
        cell = row[image]
        if not isinstance(cell, dict) or cell.get("bytes") is None:
            raise UserError(f"{name} keeps its pictures outside its tables: download it, and give the folder")
        rows.append({**row, image: {"bytes": cell["bytes"], "path": os.path.basename(cell.get("path") or "")}})
        size += len(cell["bytes"])
        if size >= _FILE:
            yield rows
            rows, size = [], 0
    if rows:
        yield rows


def _columns(library: Any, features: Any, name: str) -> tuple[str, str | None]:
    """The columns with pictures and with labels."""
    features = features or {}
    images = [key for key, feature in features.items() if isinstance(feature, library.Image)]
    if not images:
        raise UserError(f"{name} has no column of pictures (columns: {', '.join(features) or 'unknown'})")
    classes = [key for key, feature in features.items() if isinstance(feature, library.ClassLabel)]
    return images[0], next((key for key in ("label", "labels") if key in features), classes[0] if classes else None)
