"""Look through a data set without stopping at the first bad file: what is there, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sims.config import JSON, to_dict
from sims.data.pictures import SourceOptions, Unreadable, decode_image, transform
from sims.data.readers import Arrays, Pictures, find_parts, open_paths
from sims.data.sources import BUILT_IN, load, resolve
from sims.data.store import is_store
from sims.errors import UserError

_SHOWN = 5  # examples of each kind in the terminal
_IMBALANCE = 20  # largest class to smallest
_NONE = SourceOptions()


@dataclass
class Report:
    """What `check` found. Problems keep the data from being loaded; remarks do not."""

    source: str
    kind: str = "unknown"
    count: int = 0
    sizes: Counter[str] = field(default_factory=Counter)  # "WxH" -> pictures
    channels: Counter[int] = field(default_factory=Counter)  # channels -> pictures
    dtypes: Counter[str] = field(default_factory=Counter)
    value_range: tuple[float, float] | None = None
    class_names: list[str] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)  # class name -> samples; "none" for -1
    unreadable: list[tuple[str, str]] = field(default_factory=list)  # file, reason
    duplicates: list[tuple[str, str]] = field(default_factory=list)  # first file, its copy
    problems: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether the data can be loaded as they are."""
        return not self.problems

    def to_json(self) -> dict[str, JSON]:
        """A JSON-able form of everything found."""
        return {**to_dict(self), "ok": self.ok}

    def lines(self) -> list[str]:
        """The report for the terminal."""
        out = [f"{self.source}: {self.kind}, {self.count} samples"]
        for title, table in (("size", self.sizes), ("channels", self.channels), ("type", self.dtypes)):
            if table:
                out.append(f"  {title}: " + _table(table))
        if self.value_range:
            out.append(f"  values: {self.value_range[0]:g} to {self.value_range[1]:g}")
        if self.labels:
            out.append(f"  labels ({len(self.class_names)} classes): " + _table(self.labels, 20))
        else:
            out.append("  labels: none")
        out += [f"  problem: {problem}" for problem in self.problems]
        out += [f"    {name}: {reason}" for name, reason in self.unreadable[:_SHOWN]]
        if len(self.unreadable) > _SHOWN:
            out.append(f"    ... and {len(self.unreadable) - _SHOWN} more")
        out += [f"  remark: {remark}" for remark in self.remarks]
        return [*out, "ready to use" if self.ok else "not ready: correct the problems first"]


def check(path: str | Path, options: SourceOptions = _NONE) -> Report:
    """Look at every sample of a source; raises UserError only where nothing lies at `path`.

    Of a folder divided into train and test, both parts are looked at.
    """
    report = Report(str(path))
    try:
        if str(path) in BUILT_IN or is_store(resolve(path, options)):
            _built(report, path, options)
            return report
    except UserError as error:
        if str(path) not in BUILT_IN:
            resolve(path, options)  # nothing there: the one error to raise
        report.problems.append(str(error))
        return report
    seen: dict[bytes, str] = {}
    for paths in find_parts(resolve(path, options)).values():
        try:
            found = open_paths(paths)
        except UserError as error:
            report.problems.append(str(error))
            continue
        report.kind = found.kind
        if isinstance(found, Pictures):
            _pictures(report, found, options, seen)
        else:
            _arrays(report, found, seen)
        _labels(report, found.labels, found.class_names)
    _conclude(report, options)
    return report


def _built(report: Report, path: str | Path, options: SourceOptions) -> None:
    """Look at a store of synthetic samples or a built-in set, which check themselves when loaded."""
    report.kind = "built in" if str(path) in BUILT_IN else "store of synthetic samples"
    data = load(path, options=options)
    _arrays(report, Arrays(report.kind, data.name, data.raw, data.labels, data.class_names), {})
    _labels(report, data.labels, data.class_names)
    _conclude(report, options)


def _pictures(report: Report, found: Pictures, options: SourceOptions, seen: dict[bytes, str]) -> None:
    for i, name in enumerate(found.names):
        report.count += 1
        try:
            pixels = decode_image(found.read(i))
            _look(report, pixels, name, seen)
            changed = transform(pixels, options)
        except (Unreadable, OSError, UserError) as error:
            report.unreadable.append((name, str(error)))
            continue
        report.channels[len(changed)] += 1
        report.dtypes[str(changed.dtype)] += 1


def _arrays(report: Report, found: Arrays, seen: dict[bytes, str]) -> None:
    raw = found.raw
    report.count += len(raw)
    if raw.dtype.kind not in "fiub":
        report.problems.append(f"values of type {raw.dtype} are not numbers: convert them to uint8 or float32")
        return
    if raw.ndim == 4:
        report.channels[raw.shape[1]] += len(raw)
    report.dtypes[str(raw.dtype)] += len(raw)
    for i, sample in enumerate(raw):
        _look(report, sample, f"{found.name} sample {i}", seen)


def _look(report: Report, sample: np.ndarray, name: str, seen: dict[bytes, str]) -> None:
    """Size, values and copies of one sample, as it is stored."""
    if sample.ndim == 3:
        report.sizes[f"{sample.shape[2]}x{sample.shape[1]}"] += 1
    _values(report, sample, name)
    _duplicate(report, sample, name, seen)


def _values(report: Report, sample: np.ndarray, name: str) -> None:
    """Widen the value range; a sample that is not finite is a problem."""
    if sample.dtype.kind == "f" and not np.isfinite(sample).all():
        report.unreadable.append((name, "values that are not finite"))
        return
    low, high = float(sample.min()), float(sample.max())
    before = report.value_range or (low, high)
    report.value_range = min(before[0], low), max(before[1], high)


def _duplicate(report: Report, sample: np.ndarray, name: str, seen: dict[bytes, str]) -> None:
    content = repr((sample.shape, sample.dtype)).encode() + np.ascontiguousarray(sample).tobytes()
    key = hashlib.sha256(content).digest()
    if key in seen:
        report.duplicates.append((seen[key], name))
    else:
        seen[key] = name


def _labels(report: Report, labels: np.ndarray | None, class_names: tuple[str, ...]) -> None:
    if labels is None:
        return
    if labels.ndim != 1 or labels.dtype.kind not in "iuf":
        report.problems.append(f"labels of shape {labels.shape}, {labels.dtype}: give one class number for each sample")
        return
    values, counts = np.unique(labels, return_counts=True)
    names = class_names or tuple(str(i) for i in range(int(max(values[np.isfinite(values)], default=-1)) + 1))
    report.class_names = list(names)
    for value, number in zip(values.tolist(), counts.tolist()):
        valid = value == int(value) and 0 <= value < len(names) if np.isfinite(value) else False
        key = names[int(value)] if valid else "none" if value == -1 else f"{value} (outside)"
        report.labels[key] += number
        if not valid and value != -1:
            allowed = f"0 to {len(names) - 1}, or -1 for none" if names else "-1 for none"
            report.problems.append(f"{number} samples have label {value}, outside the classes ({allowed})")


def _conclude(report: Report, options: SourceOptions) -> None:
    """Turn what was counted into problems and remarks."""
    if report.unreadable:
        report.problems.append(f"{len(report.unreadable)} samples cannot be used: replace or remove them")
    if len(report.sizes) > 1 and options.size is None:
        report.problems.append(f"{len(report.sizes)} different sizes: give option 'source.size' to make them one")
    if len(report.channels) > 1:
        report.problems.append("different numbers of channels: give option 'source.grayscale', or convert the pictures")
    if len(report.dtypes) > 1:
        report.problems.append("different types of values: convert the pictures to one depth")
    total = sum(report.labels.values())
    if report.labels and total != report.count:
        report.problems.append(f"{total} labels for {report.count} samples: give exactly one label for each sample")
    if report.duplicates:
        pairs = ", ".join(f"{copy} = {first}" for first, copy in report.duplicates[:_SHOWN])
        more = ", ..." if len(report.duplicates) > _SHOWN else ""
        report.remarks.append(f"{len(report.duplicates)} exact duplicates ({pairs}{more})")
    sizes = [report.labels[name] for name in report.class_names]
    if sizes and min(sizes) == 0:
        report.remarks.append(f"{sizes.count(0)} classes have no samples")
    present = [size for size in sizes if size]
    if present and max(present) > _IMBALANCE * min(present):
        report.remarks.append(
            f"classes are unequal: the largest has {max(present)} samples, the smallest {min(present)}"
        )


def _table(table: Counter[Any], shown: int = _SHOWN) -> str:
    rows = table.most_common()
    text = ", ".join(str(key) if len(rows) == 1 else f"{key} ({number})" for key, number in rows[:shown])
    return text + (f", ... ({len(rows)} in all)" if len(rows) > shown else "")
