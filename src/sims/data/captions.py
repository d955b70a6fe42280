"""Captions: what pictures show in words, from the metadata of image folders or a column of a table; prompts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from sims.data.listing import list_path
from sims.data.pictures import SourceOptions
from sims.data.readers import Pictures
from sims.data.sources import open_path
from sims.errors import UserError
from sims.files import digest, parse_csv, parse_json, read_bytes

COLUMNS = ("text", "caption", "prompt", "captions", "prompts", "description")
_NAMES = ("file_name", "filename", "image", "path")
_LONGEST = 10_000  # characters of a prompt
_REMEDY = "give a file of prompts, one a line, with option 'prompts'"


@dataclass(frozen=True)
class Captions:
    """The captions of training pictures (n,), in their order, and their labels (n,), -1 = none, where they have some.

    ``distinct`` are the captions without repetitions, in the order of their first appearance.
    """

    texts: tuple[str, ...]
    labels: np.ndarray | None = None
    class_names: tuple[str, ...] = ()

    @property
    def distinct(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(self.texts))

    def shares(self, prompts: Sequence[str]) -> tuple[float, ...]:
        """How often each prompt is a caption, of all captions that are prompts; () where none is."""
        counts = Counter(self.texts)
        found = [counts[prompt] for prompt in prompts]
        return tuple(count / sum(found) for count in found) if any(found) else ()

    def classes(self, prompts: Sequence[str]) -> np.ndarray:
        """The class (P,) of every prompt: that of the pictures that bear it as a caption, -1 where they differ."""
        found: dict[str, int] = {}
        if self.labels is not None:
            for text, label in zip(self.texts, self.labels.tolist()):
                found[text] = label if found.get(text, label) == label else -1
        return np.array([found.get(prompt, -1) for prompt in prompts], dtype=np.int64)


def read_prompts(file: Path) -> tuple[str, ...]:
    """The prompts in a text file, one a line, each once, without empty lines. UserError where there are none."""
    try:
        lines = read_bytes(file).decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is no text in UTF-8 ({error.reason}): save it as such, one prompt a line") from None
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise UserError(f"{file} holds no prompts: give at least one, one a line")
    if (longest := max(map(len, prompts))) > _LONGEST:
        raise UserError(f"{file} has a line of {longest:,} characters: a prompt has at most {_LONGEST:,}")
    return prompts


def held_out(prompts: Sequence[str], share: float) -> np.ndarray:
    """Which of the prompts (P,) are kept back, so large a share of them: by their texts alone, whatever the order.

    Errors: UserError where that is none, or all.
    """
    count, size = round(share * len(prompts)), len(prompts)
    if share and not 0 < count < size:
        raise UserError(
            f"text.held_out is {share:g}, which is {count:,} of {size:,} prompts: at least one must be kept back and "
            "one left, give another share or more prompts"
        )
    order = sorted(range(size), key=lambda index: digest(prompts[index]))
    found = np.zeros(size, dtype=bool)
    found[order[:count]] = True
    return found


def captions_of(source: str, options: SourceOptions, column: str | None = None) -> Captions:
    """The captions of the pictures to train on, from metadata.jsonl, metadata.csv or a table's column.

    Errors: UserError where there are none, or not for every picture.
    """
    opened = open_path(source, options)
    train = None if opened is None else opened.train
    if not isinstance(train, Pictures):
        raise UserError(f"{source} has no captions: {_REMEDY}")
    texts = _of_tables(train.files, column) if train.kind == "parquet" else _of_folder(source, train, column)
    if (empty := sum(not text for text in texts)) or not texts:
        raise UserError(f"{empty:,} of the {len(texts):,} pictures in {source} have no caption: add them, or {_REMEDY}")
    labels = None if train.labels is None else np.asarray(train.labels)
    return Captions(tuple(texts), labels, tuple(train.class_names))


def _chosen(columns: Sequence[str], asked: str | None, where: str) -> str | None:
    if asked is not None and asked not in columns:
        raise UserError(f"{where} has no column {asked!r}: it has {', '.join(columns)[:200]}")
    return asked or next((name for name in COLUMNS if name in columns), None)


def _of_tables(files: Sequence[Path], asked: str | None) -> list[str]:
    texts: list[str] = []
    for file in files:
        column = _chosen(pq.read_schema(file).names, asked, str(file))
        if column is None:
            raise UserError(f"{file} has no column of captions ({', '.join(COLUMNS)}): name it, or {_REMEDY}")
        texts += [_text(value) for value in pq.read_table(file, columns=[column])[column].to_pylist()]
    return texts


def _of_folder(source: str, train: Pictures, asked: str | None) -> list[str]:
    listing = list_path(Path(source))
    found: dict[str, str] = {}
    for file in listing.listings:
        where, data = f"{file} in {source}", listing.read(file)
        if file.endswith(".csv"):
            header, *lines = [row for row in parse_csv(data, where) if row] or [[]]
            rows: Any = [dict(zip(header, line)) for line in lines]
        else:
            rows = parse_json(data, where, lines=file.endswith(".jsonl"))
        if not isinstance(rows, list) or not rows or not all(isinstance(row, Mapping) for row in rows):
            continue
        name = next((key for key in _NAMES if key in rows[0]), None)
        column = _chosen(list(rows[0]), asked, where)
        if name is not None and column is not None:
            below = PurePosixPath(file).parent
            found |= {str(below / str(row.get(name)).replace("\\", "/")): _text(row.get(column)) for row in rows}
    if not found:
        raise UserError(
            f"{source} has no metadata.jsonl or metadata.csv with captions ({', '.join(COLUMNS)}): {_REMEDY}"
        )
    return [found.get(name, "") for name in train.names]


def _text(value: Any) -> str:
    """A caption; the first of several."""
    if isinstance(value, list):
        value = value[0] if value else ""
    return " ".join(value.split()) if isinstance(value, str) else ""
