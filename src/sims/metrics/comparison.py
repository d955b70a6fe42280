"""Which scores may stand beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from sims.config import JSON
from sims.errors import UserError
from sims.results.scores import ScoreRow

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


def differences(rows: Sequence[ScoreRow], ignore: Sequence[str] = ()) -> dict[str, list[JSON]]:
    """The fields that forbid comparing scores, each with its distinct values in order of appearance."""
    unknown = set(ignore) - set(COMPARED)
    if unknown:
        raise UserError(f"Cannot ignore {', '.join(sorted(unknown))}; the compared fields are {', '.join(COMPARED)}.")
    found: dict[str, list[JSON]] = {name: [] for name in COMPARED if name not in ignore}
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
