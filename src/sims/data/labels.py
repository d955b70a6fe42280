"""Labels of pictures: from class folders, EDM's dataset.json, or the metadata files of the hub's image folders."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from sims.data.listing import Listing, common_folders
from sims.data.pictures import Unreadable
from sims.errors import UserError
from sims.files import parse_csv, parse_json

Labels = tuple[np.ndarray | None, tuple[str, ...]]
_NAME_KEYS, _LABEL_KEYS = ("file_name", "filename", "image", "path"), ("label", "labels", "class", "class_name")


def labels_of(
    listing: Listing, names: Sequence[str]
) -> tuple[np.ndarray | None, tuple[str, ...], str | None, list[str]]:
    """Labels (n,) of pictures, the names of the classes, the file that lists them, and remarks.

    A listing counts that lies above the pictures or in their first folder; where several do, the nearest to the top,
    dataset.json first. Without one, the first folder in which names differ is the class; -1 for those beside it.
    """
    depth = common_folders(names)
    top = PurePosixPath(*PurePosixPath(names[0]).parts[:depth])
    near = [file for file in listing.listings if PurePosixPath(file).parent in (top, *top.parents)]
    order = sorted(near, key=lambda file: (not file.endswith(".json"), len(PurePosixPath(file).parts)))
    remarks = []
    for file in order:
        where = f"{file} in {listing.source}"
        found = _table(listing, file, where)
        if found is None:
            remarks.append(f"{file} is not read: it lists no labels in a form that is understood")
            continue
        if not found:
            return None, (), file, remarks
        labels, class_names = _looked_up(names, found, where, str(PurePosixPath(file).parent))
        return labels, class_names, file, remarks
    return *_class_folders(names, depth), None, remarks


def _class_folders(names: Sequence[str], depth: int) -> Labels:
    folders = [parts[depth] if len(parts := name.split("/")[:-1]) > depth else None for name in names]
    class_names = tuple(sorted({folder for folder in folders if folder is not None}))
    if not class_names:
        return None, ()
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([-1 if folder is None else number[folder] for folder in folders], dtype=np.int64), class_names


def _table(listing: Listing, file: str, where: str) -> dict[str, Any] | None:
    """Name -> label of a listing; {} where it says that there are no labels; None where it is not understood."""
    try:
        data = listing.read(file)
        if file.endswith(".csv"):
            header, *rows = [row for row in parse_csv(data, where) if row] or [[]]
            return _of_rows([dict(zip(header, row)) for row in rows], where)
        if file.endswith(".jsonl"):
            return _of_rows(parse_json(data, where, lines=True), where)
        found = parse_json(data, where)
    except (ValueError, OSError, Unreadable) as error:
        raise UserError(f"{where} cannot be read ({error}): correct the file, or remove it") from error
    if isinstance(found, dict) and "labels" in found:
        found = found["labels"]
        if found is None:
            return {}
    elif not isinstance(found, list):
        return None
    if not isinstance(found, list) or any(not isinstance(pair, list) or len(pair) != 2 for pair in found):
        raise UserError(f'{where}: "labels" is not a list of [name, label] pairs: correct the file')
    return _once([(name, label) for name, label in found], where)


def _once(pairs: Iterable[tuple[Any, Any]], where: str) -> dict[str, Any]:
    """Name -> label; UserError for a name that has two."""
    found: dict[str, Any] = {}
    for name, label in pairs:
        key = str(name).replace("\\", "/")
        if found.setdefault(key, label) != label:
            raise UserError(f"{where} gives {key} the labels {found[key]!r} and {label!r}: keep one of them")
    return found


def _of_rows(rows: Sequence[Any], where: str) -> dict[str, Any] | None:
    """Name -> label of rows with a column of file names and one of labels; None where there are no such columns."""
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        return None
    name = next((key for key in _NAME_KEYS if key in rows[0]), None)
    label = next((key for key in _LABEL_KEYS if key in rows[0]), None)
    if name is None or label is None:
        return None
    return _once(((row.get(name), _number(row.get(label))) for row in rows), where)


def _number(text: Any) -> Any:
    """A class number where text is one."""
    return int(text) if isinstance(text, str) and text.strip().lstrip("-").isdecimal() else text


def _looked_up(names: Sequence[str], table: Mapping[str, Any], where: str, below: str) -> Labels:
    """The label of every name: whole numbers, or names of classes."""
    found = [table.get(name.removeprefix(f"{below}/"), table.get(name)) for name in names]
    words = any(isinstance(label, str) and label for label in found)
    for name, label in zip(names, found):
        if words and not (isinstance(label, str) and label):
            raise UserError(f"{where} has no class for {name}: give one for every picture, or class folders")
        if not words and (isinstance(label, bool) or not isinstance(label, int) or abs(label) >= 2**62):
            what = "no label" if label is None else f"label {str(label)[:40]!r}, which is not a whole number,"
            raise UserError(f"{where} has {what} for {name}: give a class number for every picture, or null for none")
    if not words:
        return np.array(found, dtype=np.int64), ()
    class_names = tuple(sorted(set(found)))
    number = {name: i for i, name in enumerate(class_names)}
    return np.array([number[label] for label in found], dtype=np.int64), class_names
