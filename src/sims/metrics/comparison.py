"""A score that carries what it was measured with, and the check that scores may stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import scipy
import torch

from sims.errors import UserError


def _sims_version() -> str:
    try:
        return version("sims-diffusion")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


@dataclass(frozen=True)
class ScoreRow:
    """One measured figure that describes itself.

    seeds: the half-open range [first, after the last] of the samples' seeds, (0, 0) where seeds do not apply;
    resize: how images came to the size they were measured at; images: what else was done to them ("grey repeated to
    RGB"); format: how samples were stored ("memory", "png", ...); dtype: what the samples were rounded to before
    measuring ("float32", "uint8"); unreadable: pictures that were left out because they could not be read;
    low, high: 95 % limits, and interval: where they come from; floor: the same figure of real images against real ones,
    of which floor_samples took the samples' place; num_reference: reference images, 0 where a file does not say;
    settings: what else the figure depends on.
    """

    metric: str
    value: float
    extractor_name: str
    extractor_hash: str
    reference_name: str
    reference_hash: str
    num_samples: int
    seeds: tuple[int, int]
    resize: str = "none"
    format: str = "memory"
    dtype: str = "float32"
    samples: str = ""
    samples_hash: str = ""
    images: str = "as they are"
    unreadable: int = 0
    low: float | None = None
    high: float | None = None
    interval: str = "none"
    floor: float | None = None
    floor_samples: int = 0
    num_reference: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    sims_version: str = field(default_factory=_sims_version)
    torch_version: str = field(default_factory=lambda: str(torch.__version__))
    numpy_version: str = field(default_factory=lambda: str(np.__version__))
    scipy_version: str = field(default_factory=lambda: str(scipy.__version__))

    def to_json(self) -> dict[str, Any]:
        """The fields as a dictionary that json can write."""
        return {**asdict(self), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> ScoreRow:
        """The inverse of to_json; a row may hold further keys. UserError where a field is missing."""
        names = [entry.name for entry in fields(cls) if entry.name in row]
        missing = [name for name in REQUIRED if name not in row]
        if missing:
            raise UserError(f"A score lacks {', '.join(missing)}; it was not written by sims: measure it again.")
        if not isinstance(row["value"], int | float):
            raise UserError(f"A score of {row['metric']} has the value {row['value']!r}: measure it again.")
        first, last = row["seeds"]
        return cls(**{**{name: row[name] for name in names}, "seeds": (int(first), int(last))})


REQUIRED = tuple(
    entry.name for entry in fields(ScoreRow) if entry.default is MISSING and entry.default_factory is MISSING
)
COMPARED = (
    "metric",
    "extractor_name",
    "extractor_hash",
    "reference_name",
    "reference_hash",
    "num_samples",
    "seeds",
    "resize",
    "format",
    "dtype",
    "images",
    "settings",
)


def differences(rows: Sequence[ScoreRow], ignore: Sequence[str] = ()) -> dict[str, list[Any]]:
    """The fields that forbid comparing scores, each with its distinct values in order of appearance."""
    unknown = set(ignore) - set(COMPARED)
    if unknown:
        raise UserError(f"Cannot ignore {', '.join(sorted(unknown))}; the compared fields are {', '.join(COMPARED)}.")
    found: dict[str, list[Any]] = {name: [] for name in COMPARED if name not in ignore}
    for name, values in found.items():
        for row in rows:
            if (value := getattr(row, name)) not in values:
                values.append(value)
    return {name: values for name, values in found.items() if len(values) > 1}


def require_comparable(rows: Sequence[ScoreRow], force: bool = False, ignore: Sequence[str] = ()) -> None:
    """Raise UserError naming the fields in which scores differ, unless forced.

    `ignore` lets named fields differ on purpose, for example ("seeds",) for repeats of one measurement.
    """
    different = differences(rows, ignore)
    if different and not force:
        text = "; ".join(f"{name}: {' / '.join(str(v) for v in values)}" for name, values in different.items())
        raise UserError(f"These scores cannot be compared, they differ in {text}. Measure them alike, or force it.")
