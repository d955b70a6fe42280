"""Which of the names are for training, which are held out: one rule, however the data are packed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Literal

from sims.data.listing import common_folders
from sims.errors import UserError

Division = Literal["auto", "parts", "none"]
#: What parts are called -> which part that is.
PARTS = {
    "train": "train", "training": "train",
    "test": "test", "testing": "test", "t10k": "test",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
}  # fmt: skip
_SHOWN = 5


@dataclass(frozen=True)
class Divided:
    """Names by part: "train" and "test", or "all" undivided; what is left out, and what is to be said."""

    parts: dict[str, list[str]]
    left_out: dict[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


def divide(names: Sequence[str], source: str, division: Division) -> Divided:
    """Divide pictures by the folders at the top: ``train`` and ``test`` (or ``validation``), in any spelling.

    Errors: UserError, a question, where folders could be parts or classes.
    """
    depth = common_folders(names)
    tops: dict[str, list[str]] = {}
    for name in names:
        parts = name.split("/")
        tops.setdefault(parts[depth] if len(parts) > depth + 1 else "", []).append(name)
    part_of = {top: PARTS[top.lower()] for top in tops if top.lower() in PARTS}
    others = [top or f"{len(tops[''])} files without a folder" for top in tops if top not in part_of]
    if division == "none" or not part_of or (len(tops) == 1 and division == "auto"):
        return Divided({"all": list(names)})
    if others and division == "auto":
        raise UserError(
            f"{source} holds {_listed(others)} beside {_listed(part_of)}: classes, or parts to train on and to test "
            "with? Rename the folders, or say none (all are classes) or parts (the "
            "others are left out) with option 'source.division'"
        )
    for part in {*part_of.values()}:
        same = [top for top in part_of if part_of[top] == part]
        if len(same) > 1:
            raise UserError(
                f"{source} holds {_listed(same)}, which all name the part {part}: put them into one folder, or say "
                "none (they are classes) with option 'source.division'"
            )
    if "train" not in part_of.values():
        raise UserError(
            f"{source} looks divided ({_listed(part_of)}) and has no part to train on: add a folder train, or say "
            "none with option 'source.division' (these are classes)"
        )
    left = {name: "beside the parts" for top in tops if top not in part_of for name in tops[top]}
    return _by_part([(part_of[top], top, tops[top]) for top in part_of], left)


def divide_files(names: Sequence[str], source: str, division: Division) -> Divided:
    """Divide files that hold many samples each (parquet, npz) by the part that each one's name or folder mentions."""
    if division == "none":
        return Divided({"all": list(names)})
    mentioned = {name: _mention(name) for name in names}
    without = [name for name, part in mentioned.items() if part is None]
    parts = {part for part in mentioned.values() if part}
    if "train" in parts and not without:
        return _by_part([(part, name, [name]) for name, part in mentioned.items() if part], {})
    if "train" in parts and len(parts) > 1:
        if division == "auto":
            raise UserError(
                f"{source} holds {_listed(without)} beside files of the parts {_listed(sorted(parts))}: move them "
                "away, or say none (all is one set) or parts (they are left out) with option 'source.division'"
            )
        rest = dict.fromkeys(without, "beside the parts")
        return _by_part([(part, name, [name]) for name, part in mentioned.items() if part], rest)
    remarks: tuple[str, ...] = ()
    if parts and without:
        remarks = (f"read as one set: {_listed(without)} name no part",)
    elif len(parts) > 1:
        raise UserError(
            f"{source} looks divided ({_listed(sorted(parts))}) and has no part to train on: give one of its parts, or "
            "say none with option 'source.division' (all is one set)"
        )
    return Divided({"all": list(names)}, remarks=remarks)


def _mention(name: str) -> str | None:
    """The part that a path names with a word of its own: test-0.parquet does, latest.parquet does not."""
    for piece in reversed(PurePosixPath(name.lower()).parts):
        for word in re.split(r"[^a-z0-9]+", piece):
            if word in PARTS:
                return PARTS[word]
    return None


def _by_part(found: Sequence[tuple[str, str, list[str]]], left: dict[str, str]) -> Divided:
    """Parts from (part, what it is called, names): what is held out is the test part, else the validation part."""
    parts: dict[str, list[str]] = {}
    for part, _, names in found:
        parts.setdefault(part, []).extend(names)
    called: dict[str, list[str]] = {}
    for part, title, _ in found:
        called.setdefault(part, []).append(title)
    remarks = []
    if "validation" in parts:
        if "test" in parts:
            left = left | dict.fromkeys(parts.pop("validation"), "the validation part: the test part is held out")
        else:
            parts["test"] = parts.pop("validation")
            remarks.append(f"held out: {_listed(called['validation'])}")
    order: dict[str, list[str]] = {part: sorted(parts[part]) for part in ("train", "test") if part in parts}
    return Divided(order, left, tuple(remarks))


def _listed(names: Sequence[str] | dict[str, str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
