"""Look through a data set without stopping at the first bad file: what is there, and what is wrong with it."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sims.config import JSON, to_dict
from sims.data.dataset import classes_of
from sims.data.listing import passed_over
from sims.data.mapped import rehearsed
from sims.data.pictures import SourceOptions, Unreadable, crop_note, cropped, decoded, transform
from sims.data.readers import Arrays, Pictures, open_source
from sims.data.sources import BUILT_IN, coded, divided_stores, load, load_pair, resolve
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
    parts: dict[str, int] = field(default_factory=dict)  # "train" and "test" -> samples, of a divided source
    passed_over: dict[str, str] = field(default_factory=dict)  # file -> why it is not read
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
        divided = ", ".join(f"{count} {part}" for part, count in self.parts.items())
        out = [f"{self.source}: {self.kind}, {self.count} samples" + (f" ({divided})" if divided else "")]
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
        if str(path) in BUILT_IN or is_store(resolve(path, options)) or divided_stores(resolve(path, options)):
            _built(report, path, options)
            _try(report, path, options)
            return report
    except UserError as error:
        if str(path) not in BUILT_IN:
            resolve(path, options)  # nothing there: the one error to raise
        report.problems.append(str(error))
        return report
    try:
        source = open_source(resolve(path, options), options)
    except UserError as error:
        report.problems.append(str(error))
        return report
    report.passed_over = dict(sorted(source.passed_over.items()))
    report.remarks += source.notes
    seen: dict[bytes, str] = {}
    for part, found in source.parts.items():
        report.kind, before = found.kind, report.count
        if isinstance(found, Pictures):
            _pictures(report, found, options, seen)
        else:
            _arrays(report, found, seen)
            report.remarks += _range_notes(found, options)
            if found.raw.ndim == 4 and cropped(found.raw.shape[2:], options):
                report.remarks += crop_note(len(found.raw), len(found.raw), options)
        _labels(report, found.labels, found.class_names, report.count - before)
        if part != "all":
            report.parts[part] = report.count - before
    _conclude(report, options)
    _try(report, path, options)
    return report


def _try(report: Report, path: str | Path, options: SourceOptions) -> None:
    """Open what seems to be in order as training does; what that refuses is a problem."""
    if report.ok:
        try:
            with rehearsed(everything=True), redirect_stderr(io.StringIO()):  # the remarks stand in the report
                train, _ = load_pair(path, options=options)
                train.require_varied()
        except UserError as error:
            report.problems.append(str(error))


def _range_notes(found: Arrays, options: SourceOptions) -> list[str]:
    """What there is to say of the range of values, by the code that loads them."""
    try:
        return list(coded(found.raw, found.name, found.latents, options.value_range)[2])
    except UserError:  # said otherwise
        return []


def _built(report: Report, path: str | Path, options: SourceOptions) -> None:
    """Look at a store of synthetic samples or a built-in set, which check themselves when loaded."""
    report.kind = "built in" if str(path) in BUILT_IN else "store of synthetic samples"
    stores = {} if str(path) in BUILT_IN else divided_stores(resolve(path, options))
    seen: dict[bytes, str] = {}
    places: dict[str, str | Path] = {**stores} if stores else {"all": path}
    for part, place in places.items():
        data = load(place, options=options)
        report.remarks += data.notes
        _arrays(report, Arrays(report.kind, data.name, data.raw, data.labels, data.class_names), seen)
        _labels(report, data.labels, data.class_names, len(data))
        if part != "all":
            report.parts[part] = len(data)
    for child in sorted(resolve(path, options).iterdir()) if stores else ():
        if child not in stores.values() and not child.name.startswith("."):
            report.passed_over[child.name] = "beside the stores"
    report.remarks += passed_over(report.passed_over)
    _conclude(report, options)


def _pictures(report: Report, found: Pictures, options: SourceOptions, seen: dict[bytes, str]) -> None:
    beyond: Counter[str] = Counter()
    crops = 0
    for i, name in enumerate(found.names):
        report.count += 1
        try:
            picture = decoded(found.read(i))
            beyond[picture.remark] += 1
            _look(report, picture.pixels, name, seen)
            changed = transform(picture.pixels, options)
        except (Unreadable, OSError, UserError) as error:
            report.unreadable.append((name, str(error)))
            continue
        crops += cropped(picture.pixels.shape[1:], options)
        report.channels[len(changed)] += 1
        report.dtypes[str(changed.dtype)] += 1
    report.remarks += [f"{number} files hold {what}" for what, number in sorted(beyond.items()) if what]
    report.remarks += crop_note(crops, len(found.names), options)


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


def _labels(report: Report, labels: np.ndarray | None, class_names: tuple[str, ...], count: int) -> None:
    """Count labels, by the code that loads them."""
    if labels is None:
        return
    try:
        numbers, names = classes_of(labels, count, class_names, report.source)
    except UserError as error:
        report.problems.append(str(error))
        return
    report.class_names += [name for name in names if name not in report.class_names]
    numbers = np.full(count, -1) if numbers is None else numbers
    for value, number in zip(*np.unique(numbers, return_counts=True)):
        key = names[value] if value >= 0 else "none"
        report.labels[key] += int(number)


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
