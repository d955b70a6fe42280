"""Real against real: the sets whose figures no samples can be told to be better than."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.matrices import Array
from sims.scoring.features import FeatureSet


@dataclass(frozen=True)
class FloorSets:
    """Real images in the samples' place, and what they are measured against."""

    samples: FeatureSet
    reference: FeatureSet
    words: str


def floor_sets(reference: FeatureSet, held_out: FeatureSet | None, count: int) -> FloorSets | None:
    """Real against real with ``count`` images in the samples' place, or as many as there are.

    Held-out images against the reference, where there are any; else a random part of the reference (at most half)
    against the rest of it. None where only moments are known.
    """
    if held_out is not None and held_out.kept is not None:
        part = held_out
        if held_out.count > count:
            part = _rows(held_out, np.sort(np.random.default_rng(1).permutation(len(held_out.kept))[:count]))
        return FloorSets(part, reference, f"{part.count:,} held-out images against the reference")
    if reference.kept is None or len(reference.kept) < 8:
        return None
    order = np.random.default_rng(2).permutation(len(reference.kept))
    size = min(count, len(order) // 2)
    part, rest = _rows(reference, np.sort(order[:size])), _rows(reference, np.sort(order[size:]))
    rest = replace(rest, moments=_without(reference.moments, part.moments))
    return FloorSets(part, rest, f"{size:,} images of the reference against its other {rest.count:,}")


def _rows(found: FeatureSet, rows: Array) -> FeatureSet:
    """Some of what was kept of a set, as a set of its own."""
    assert found.kept is not None
    labels = None if found.labels is None else found.labels[rows]
    kept = found.kept[rows]
    return FeatureSet(found.name, found.hash, Moments.of(kept), kept, labels=labels, class_names=found.class_names)


def _without(total: Moments, part: Moments) -> Moments:
    """The moments of what remains when some samples are taken out."""
    count = total.count - part.count
    if count < 2:
        raise UserError(f"{total.count} reference images are too few to be divided: give held-out images")
    mean = (total.count * total.mean - part.count * part.mean) / count
    scatter = (total.count - 1) * total.covariance - (part.count - 1) * part.covariance
    shift = part.mean - mean
    scatter = scatter - np.outer(shift, shift) * (count * part.count / total.count)
    return Moments(mean, scatter / (count - 1), count)
