"""Real and synthetic samples as one data set that knows where each comes from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sims.data.dataset import Dataset
from sims.errors import UserError

REAL = -1  # the origin of real samples; of synthetic ones it is the generation that made them
ORIGIN = "origin"  # the column


def chosen(data: Dataset, count: int, seed: int, *, first: int = 0) -> Dataset:
    """``count`` samples of a data set, at ``first`` and behind in an order that the seed alone decides.

    A smaller number is part of a larger one, and ranges of positions that do not meet share no sample. All samples,
    asked for at once, stay in their own order. UserError where there are fewer.
    """
    if count < 0 or first < 0 or first + count > len(data):
        raise UserError(
            f"{count:,} samples from position {first:,} are needed, and {data.name} has {len(data):,}: ask for fewer"
        )
    if count == len(data):
        return data
    return data.subset(np.sort(np.random.default_rng(seed).permutation(len(data))[first : first + count]))


def mixture(parts: Sequence[tuple[int, Dataset]], name: str = "mixture") -> Dataset:
    """The samples of all parts, one after the other, with the column ``origin``: REAL (-1), or a generation's number.

    Other columns are left out. UserError where there is no part, or where shapes, codecs or classes differ.
    """
    if not parts:
        raise UserError(f"{name} has no parts: give real samples, synthetic ones, or both")
    first = parts[0][1]
    for origin, data in parts:
        if origin < REAL:
            raise UserError(f"origin {origin} of {data.name} is below {REAL} (real): give a generation's number from 0")
        if difference := _difference(first, data):
            raise UserError(f"{first.name} and {data.name} cannot be mixed: {difference}")
    origins = np.concatenate([np.full(len(data), origin, np.int64) for origin, data in parts])
    labels = None if first.labels is None else np.concatenate([data.labels for _, data in parts])  # type: ignore[misc]
    raw = first.raw if len(parts) == 1 else np.concatenate([data.raw for _, data in parts])
    return Dataset(raw, labels, first.codec, first.class_names, name, {ORIGIN: origins})


def _difference(a: Dataset, b: Dataset) -> str | None:
    """Why the samples of two data sets do not go together; None if they do."""
    if a.data_shape != b.data_shape:
        return f"their shapes are {a.data_shape} and {b.data_shape}; give samples of one shape"
    if a.codec != b.codec:
        return f"their values are coded as {_codec(a)} and {_codec(b)}; give samples in one format"
    if a.class_names != b.class_names:
        return (
            f"they have the classes {', '.join(a.class_names) or 'none'} and {', '.join(b.class_names) or 'none'}; "
            "give samples with the same classes, or both without"
        )
    return None


def _codec(data: Dataset) -> str:
    codec = data.codec
    return f"{codec.kind} {codec.dtype} [{codec.low:g}, {codec.high:g}]"


def accounting(data: Dataset) -> dict[str, int]:
    """How many samples of a mixture are of each origin: ``real``, then generations by number."""
    if ORIGIN not in data.columns:
        raise UserError(f"{data.name} has no column {ORIGIN!r}: it does not say which of its samples are real")
    origins, numbers = np.unique(data.columns[ORIGIN], return_counts=True)
    return {"real" if o == REAL else str(o): int(n) for o, n in zip(origins.tolist(), numbers.tolist())}
