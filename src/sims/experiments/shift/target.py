"""Targets and attributes as users write them: flags, files, "uniform", "like:DATA"."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from sims.config import nearest
from sims.data.dataset import ROW, Dataset
from sims.errors import UserError
from sims.experiments.shift.attributes import Attribute, LabelFile, Labelled, classes, derived
from sims.files import read_json, read_toml

Array = np.ndarray
REST = "*"
LIKE = "like:"
_ENTRY = re.compile(r"\s*([^=]+?)\s*=\s*([^=,;\s]+)\s*(?:[,;]|$)")
SUM_TOLERANCE = 1e-3  # proportions as people write them: 0.333 three times


def target_of(text: str, attribute: Attribute, like: Callable[[str], Array]) -> Array:
    """Wanted proportions (K,) that sum to one; ``like`` gives those of another data set.

    UserError for values that there are not, shares outside 0 ... 1, and shares that do not sum to one.
    """
    if text == "uniform":
        return np.full(len(attribute.values), 1 / len(attribute.values))
    if text.startswith(LIKE):
        return like(text.removeprefix(LIKE))
    return _checked(_from_file(Path(text)) if text.endswith((".toml", ".json")) else _from_flag(text), attribute)


_TARGETS = "uniform, VALUE=SHARE,VALUE=SHARE, a TOML or JSON file, or like:DATA"
_CUTS = "CLASS=SHARE,CLASS=SHARE, such as 0=0.02"


def _from_flag(text: str, what: str = "target", forms: str = _TARGETS) -> dict[str, float | str]:
    """VALUE=SHARE,VALUE=SHARE; a value may itself hold commas, since every entry ends with a number."""
    table: dict[str, float | str] = {}
    position = 0
    while position < len(text):
        entry = _ENTRY.match(text, position)
        if entry is None:
            raise UserError(f"{what} {text!r} is not understood at {text[position:]!r}: write {forms}")
        if entry[1] in table:
            raise UserError(f"{what} {text!r} names {entry[1]!r} twice: give each value one share")
        table[entry[1]] = _number(entry[2])
        position = entry.end()
    return table


def _number(text: str) -> float | str:
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return text


def _from_file(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        raise UserError(f"no target file {path}: check the path")
    values = read_toml(path) if path.suffix == ".toml" else read_json(path)
    table: object = values.get("target", values) if isinstance(values, dict) else values
    if not isinstance(table, dict):
        raise UserError(f'target file {path} holds no table of shares: write [target] and lines such as "0" = 0.3')
    return table


def _checked(table: Mapping[str, object], attribute: Attribute) -> Array:
    shares = np.zeros(len(attribute.values))
    for name, value in table.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"the target's share of {name!r} is {value!r}: give a number from 0 to 1, or such as 30%")
        if not 0 <= value <= 1:
            raise UserError(f"the target's share of {name!r} is {value:g}: shares lie between 0 and 1 (30 % is 0.3)")
        if name != REST:
            shares[attribute.index(name)] = value
        elif others := [k for k, other in enumerate(attribute.values) if other not in table]:
            shares[others] = value / len(others)
        else:
            raise UserError('the target gives a share to "*", the values not named, but all are named: leave it out')
    if abs(shares.sum() - 1) > SUM_TOLERANCE:
        missing = ", ".join(name for name in attribute.values if name not in table)
        hint = f'; not named: {missing} (give them shares, or "*" = the rest)' if missing else ""
        raise UserError(f"the target's shares sum to {shares.sum():.4g} and must sum to 1{hint}")
    return shares / shares.sum()


def mapping_of(text: str) -> tuple[str, dict[str, str]]:
    """NAME:VALUE=CLASS+CLASS/VALUE=CLASS+... -> the name, and the value of every class."""
    name, _, rest = text.partition(":")
    found: dict[str, str] = {}
    for group in rest.split("/"):
        value, equals, members = group.partition("=")
        if not equals or not value.strip() or not members.strip():
            raise UserError(
                f"attribute {text!r} is not understood at {group!r}: write NAME:VALUE=CLASS+CLASS/VALUE=CLASS+..., "
                "such as parity:even=0+2+4+6+8/odd=1+3+5+7+9"
            )
        for member in members.split("+"):
            if member.strip() in found:
                raise UserError(f"attribute {name!r} gives class {member.strip()!r} two values: name each class once")
            found[member.strip()] = value.strip()
    return name.strip(), found


def parts_of(attributes: tuple[str, ...], data: Dataset, labels: Path | None) -> list[Labelled]:
    """Each attribute, and its value of every sample of a data set (-1 = unknown), from its classes or a label file."""
    file = None if labels is None else LabelFile.read(labels)
    found: list[Labelled] = []
    for text in attributes:
        if file is not None and text in file.columns:
            found.append(file.labelled(text, data))
            continue
        if file is not None and ":" not in text and (text != "class" or data.labels is None):
            raise UserError(f"{labels} has no column {text!r}{nearest(text, file.columns)}")
        if data.labels is None:
            raise UserError(f"attribute {text!r} follows from classes, and {data.name} has none: give labels")
        if text == "class":
            found.append(classes(data))
        elif ":" in text:
            found.append(derived(data, *mapping_of(text)))
        else:
            raise UserError(
                f"unknown attribute {text!r}: write class, NAME:VALUE=CLASS+CLASS/VALUE=..., or a column of labels"
            )
    return found


def split_parts(
    attributes: tuple[str, ...], train: Dataset, test: Dataset, labels: Path | None, whole: Callable[[], Dataset]
) -> tuple[list[Labelled], list[Labelled] | None]:
    """``parts_of`` training and held-out data; None for the latter where nothing is known of them.

    A label file has a row for each sample of the source as it lies there, which ``whole`` opens: where both are parts
    of it, the rows of each are found. It may also have a row for each training sample.
    """
    if labels is None:
        return parts_of(attributes, train, None), None if test.labels is None else parts_of(attributes, test, None)
    if ROW not in train.columns:
        return parts_of(attributes, train, labels), None
    try:
        found = parts_of(attributes, whole(), labels)
    except UserError as error:
        try:
            return parts_of(attributes, train, labels), None
        except UserError:
            raise error from None

    def rows(data: Dataset) -> list[Labelled]:
        return [(attribute, values[data.columns[ROW]]) for attribute, values in found]

    return rows(train), rows(test) if ROW in test.columns else None


def shares_of(labels: Array, count: int) -> Array:
    """Shares (K,) among labelled samples; labels (n,), -1 = unknown."""
    known = labels[labels >= 0]
    return np.bincount(known, minlength=count) / max(1, len(known))


def check_support(target: Array, labels: Array, attribute: Attribute, what: str) -> None:
    """UserError where the target wants a value that none of some labelled samples has."""
    shares = shares_of(labels, len(attribute.values))
    missing = [name for name, share, wanted in zip(attribute.values, shares, target) if wanted > 0 and share == 0]
    if missing:
        raise UserError(
            f"the target wants {', '.join(map(repr, missing))} of {attribute.name}, and {what} has no sample of it: "
            "a value without support cannot be created; set its share to 0, or give data that has it"
        )


def cut(data: Dataset, text: str, seed: int) -> Dataset:
    """A data set in which some classes are cut to a share of its whole: "0=0.02" leaves zeros 2 % of all samples."""
    if data.labels is None:
        raise UserError(f"an imbalance is planted by class, and {data.name} has none: give labelled data")
    named: dict[int, float] = {}
    for name, share in _from_flag(text, "imbalance", _CUTS).items():
        if name not in data.class_names:
            raise UserError(f"unknown class {name!r} in imbalance {text!r}{nearest(name, data.class_names)}")
        if not isinstance(share, float) or not 0 < share < 1:
            raise UserError(f"imbalance {text!r}: the share of {name!r} must lie between 0 and 1")
        named[data.class_names.index(name)] = share
    if sum(named.values()) >= 1:
        raise UserError(
            f"imbalance {text!r}: the shares sum to {sum(named.values()):.4g}, and must leave some for others"
        )
    keep = np.ones(len(data), bool)
    order = np.random.default_rng(seed).permutation(len(data))
    rest = int((~np.isin(data.labels, list(named))).sum())
    total = rest / (1 - sum(named.values()))
    for label, share in named.items():
        members = order[data.labels[order] == label]
        wanted = max(1, round(share * total))
        if total == 0 or wanted > len(members):
            raise UserError(
                f"imbalance {text!r} would need {wanted:,} samples of {data.class_names[label]!r}, and there are "
                f"{len(members):,}: shares are only cut, choose lower ones"
            )
        keep[members[wanted:]] = False
    return data.subset(np.flatnonzero(keep))
