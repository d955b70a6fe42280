"""Score: every figure of samples against a reference, with its interval and with what real images score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from scipy import special

from sims.errors import UserError
from sims.metrics.bootstrap import frechet_interval, subsample_interval
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.inception_score import InceptionAccumulator, consecutive_splits
from sims.metrics.infinity import PARTS, frechet_infinity
from sims.metrics.intervals import Interval, error_interval, share_interval, t_interval
from sims.metrics.kernel import kernel_distance
from sims.metrics.manifold import manifolds
from sims.metrics.memorization import Nearest, copying, nearest
from sims.metrics.points import gaussian_mmd, mode_coverage, sliced_wasserstein, wasserstein
from sims.metrics.two_sample import two_sample_test
from sims.scoring.features import FeatureSet

Array = np.ndarray
K_PAIR, K_COVER = 3, 5  # Kynkäänniemi et al. for precision and recall, Naeem et al. for density and coverage
MANIFOLD = ("precision", "recall", "density", "coverage")
SUBSAMPLE = 1_000  # samples in a subset from which the interval of a neighbour figure is made
POINTS = 2_000  # points a side for exact optimal transport


@dataclass(frozen=True)
class Settings:
    """How figures are computed.

    neighbours: at most this many samples (and real images) where all pairs are looked at; resamples: subsets from which
    intervals are made where there is one draw; feature_scale: what features are divided by before the cubic kernel of
    KID, 1 for ready-made extractors, as in the literature.
    """

    neighbours: int = 5_000
    resamples: int = 20
    seed: int = 0
    device: torch.device | str = "cpu"
    feature_scale: float = 1.0


@dataclass(frozen=True)
class Figure:
    """One figure: its value, its 95 % limits and where they come from, and what it depends on."""

    value: float
    limits: Interval | None = None
    interval: str = "none"
    count: int = 0
    settings: dict[str, Any] = field(default_factory=dict)


Figures = dict[str, Figure]
Metric = Callable[[FeatureSet, FeatureSet, FeatureSet | None, Settings, bool], Figures]


def some_features(found: FeatureSet, count: int) -> Array:
    """At most ``count`` of the features that were kept, drawn with a fixed seed."""
    assert found.kept is not None
    chosen = np.sort(np.random.default_rng(1).permutation(len(found.kept))[:count])
    return found.kept[chosen]


def _fd(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    result = {}
    for name, against in (("fd", r), ("fd_held_out", held_out)):
        if against is None:
            continue
        value = frechet_distance(s.moments, against.moments, device=how.device)
        found = None
        if limits and s.kept is not None and len(s.kept) >= 8:
            near = frechet_interval(
                s.kept, against.moments, num_resamples=how.resamples, seed=how.seed, device=how.device
            )
            found = around(value, (near.high - near.low) / 2 * (len(s.kept) / s.count) ** 0.5)  # of all samples
        result[name] = Figure(value, found, "subsampling" if found else "none", s.count)
    return result


def _fd_infinity(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    if s.kept is None or len(s.kept) < 2 * max(PARTS):
        return {}
    found = frechet_infinity(s.kept, r.moments, seed=how.seed, device=how.device)
    about = {"parts": list(PARTS)}
    return {"fd_infinity": Figure(found.intercept.mean, found.intercept, "line in 1/n", len(s.kept), about)}


def _kid(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    result = {}
    for name, against in (("kid", r), ("kid_held_out", held_out)):
        if s.kept is None or against is None or against.kept is None or min(len(s.kept), len(against.kept)) < 4:
            continue
        x, y = (some_features(found, how.neighbours) / how.feature_scale for found in (s, against))
        found = kernel_distance(x, y, how.device)
        about = {"pairs": "all", "reference_used": len(y), "feature_scale": how.feature_scale}
        result[name] = Figure(found.value, found.interval(), "std. error", len(x), about)
    return result


def _manifold(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    if s.kept is None or r.kept is None or min(len(s.kept), len(r.kept)) <= K_COVER:
        return {}
    x, y = some_features(r, how.neighbours), some_features(s, how.neighbours)
    values = manifold_values(x, y, how)
    halves = {}
    if limits:
        halves = subset_halves(lambda real, rows: manifold_values(real, y[rows], how), x, len(y), how)
    return {
        name: Figure(
            values[name],
            around(values[name], halves[name]) if halves else None,
            "subsampling" if halves else "none",
            len(y),
            {"k": K_PAIR if name in MANIFOLD[:2] else K_COVER, "reference_used": len(x)},
        )
        for name in MANIFOLD
    }


def manifold_values(real: Array, samples: Array, how: Settings) -> dict[str, float]:
    """Precision, recall, density and coverage of samples' features, each with its own number of neighbours."""
    found = manifolds(real, samples, (K_PAIR, K_COVER), device=how.device)
    return {name: getattr(found[K_PAIR if name in MANIFOLD[:2] else K_COVER], name) for name in MANIFOLD}


def subset_halves(
    statistics: Callable[[Array, Array], dict[str, float]], real: Array, count: int, how: Settings
) -> dict[str, float]:
    """Half the 95 % intervals of figures of ``count`` samples, from subsets of them against equally many real images.

    ``statistics`` maps real features and the samples' rows to figures. See metrics/bootstrap for the scale; {} where
    there are too few.
    """
    size = min(count // 2, SUBSAMPLE)
    if min(size, len(real)) <= K_COVER:
        return {}
    rng = np.random.default_rng(how.seed)
    some = real[np.sort(rng.choice(len(real), min(size, len(real)), replace=False))]
    found = [statistics(some, np.sort(rng.choice(count, size, replace=False))) for _ in range(how.resamples)]
    factor = np.sqrt(size / (count - size)) * special.stdtrit(how.resamples - 1, 0.975)
    return {name: float(factor * np.std([values[name] for values in found], ddof=1)) for name in found[0]}


def around(value: float, half: float) -> Interval:
    """The 95 % interval of a value with known half width."""
    return Interval(value, float(value - half), float(value + half))


def _inception_score(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    splits = 10
    if not s.has_probabilities or s.count < 2 * splits:
        return {}
    of = np.empty(s.count, np.int64)
    of[np.random.default_rng(1).permutation(s.count)] = consecutive_splits(s.count, splits)  # not in a folder's order
    accumulator = InceptionAccumulator(of)
    for part in s.probabilities():
        accumulator.update(part)
    found = accumulator.score()
    error = found.std / np.sqrt(splits - 1)
    about = {"splits": splits}
    limit = error_interval(found.mean, error, freedom=splits - 1)
    return {"inception_score": Figure(found.mean, limit, "splits", s.count, about)}


def _two_sample(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    if s.kept is None or r.kept is None or min(len(s.kept), len(r.kept)) < 20:
        return {}
    found = two_sample_test(r.kept, s.kept, limit=how.neighbours, seed=how.seed)
    about = {"classifier": found.classifier, "p_value": found.p_value}
    count = (found.num_train + found.num_test) // 2
    return {"two_sample": Figure(found.accuracy.mean, found.accuracy, "binomial", count, about)}


def nearest_of(queries: Array, found: FeatureSet, device: torch.device | str) -> Nearest:
    """The nearest of all features of a set for each query, in one pass over its files."""
    best: Nearest | None = None
    start = 0
    for part in found.parts():
        if not len(part):
            continue
        near = nearest(queries, part, device=device)
        near = Nearest(near.distances, near.indices + start)
        if best is not None:
            closer = near.distances < best.distances
            near = Nearest(
                np.where(closer, near.distances, best.distances), np.where(closer, near.indices, best.indices)
            )
        best, start = near, start + len(part)
    assert best is not None
    return best


def _memorization(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    complete = r.kept is not None and (r.files or len(r.kept) == r.count)
    if s.kept is None or held_out is None or held_out.kept is None or not complete:
        return {}
    x, honest = some_features(s, how.neighbours), some_features(held_out, how.neighbours)
    to_train = nearest_of(x, r, how.device)
    honest_to_train = nearest_of(honest, r, how.device)
    found = copying(to_train, nearest(x, honest, device=how.device), honest_to_train.distances, r.count)
    about = {"held_out": held_out.hash, "held_out_used": len(honest), "space": "features"}
    close = {**about, "quantile": found.quantile}
    excess, q = found.excess_close, found.quantile  # its interval has the error of the threshold in it, too
    share = Interval(found.share_close, q + (1 - q) * excess.low, q + (1 - q) * excess.high)
    return {
        "copied": Figure(found.excess_nearer.mean, found.excess_nearer, "binomial", len(x), about),
        "closer_than_real": Figure(found.share_close, share, "binomial", len(x), close),
        "nearest_ratio": Figure(found.median_ratio, None, "none", len(x), about),
    }


def _points(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings, limits: bool) -> Figures:
    """Distances of low-dimensional points, which are their own features."""
    if s.kept is None or r.kept is None or s.kept.shape[1] > 3:
        return {}
    x, y = some_features(s, how.neighbours), some_features(r, how.neighbours)
    a, b = x[:POINTS], y[:POINTS]
    chosen: dict[str, tuple[Callable[[Array], float], int]] = {
        "wasserstein": (lambda rows: wasserstein(a[rows], b), len(a)),
        "sliced_wasserstein": (lambda rows: sliced_wasserstein(x[rows], y), len(x)),
        "mmd": (lambda rows: gaussian_mmd(x[rows], y), len(x)),
    }
    result = {}
    for name, (statistic, count) in chosen.items():
        if limits and count >= 8:
            resamples = min(how.resamples, 10) if name == "wasserstein" else how.resamples
            found = subsample_interval(statistic, count, num_resamples=resamples, seed=how.seed)
            result[name] = Figure(found.mean, found, "subsampling", count)
        else:
            result[name] = Figure(statistic(np.arange(count)), None, "none", count)
    return result | _modes(x, r)


def _modes(x: Array, r: FeatureSet) -> Figures:
    """How many of the reference's components the samples reach; each is where its points' mean lies."""
    if r.labels is None or r.kept is None:
        return {}
    groups = [r.kept[r.labels == label] for label in np.unique(r.labels[r.labels >= 0])]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return {}
    centres = np.stack([group.mean(axis=0) for group in groups])
    spread = np.array([float(np.sqrt(group.var(axis=0, ddof=1).mean())) for group in groups])
    found = mode_coverage(x, centres, spread)
    about = {"modes": len(groups), "radius": 3.0}
    quality = share_interval(found.high_quality, len(x))
    return {
        "modes_hit": Figure(found.hit, None, "none", len(x), about),
        "high_quality": Figure(found.high_quality, quality, "binomial", len(x), about),
    }


METRICS: dict[str, Metric] = {
    "fd": _fd,
    "fd_infinity": _fd_infinity,
    "kid": _kid,
    "manifold": _manifold,
    "inception_score": _inception_score,
    "two_sample": _two_sample,
    "memorization": _memorization,
    "points": _points,
}


def figures(
    samples: FeatureSet,
    reference: FeatureSet,
    held_out: FeatureSet | None,
    metrics: Sequence[str],
    how: Settings,
    limits: bool = True,
) -> Figures:
    """All figures of one draw; those that need what is not there (features, held-out images) are left out.

    So is a ratio without a value, where samples lie on held-out images.
    """
    result: Figures = {}
    for name in metrics:
        result |= METRICS[name](samples, reference, held_out, how, limits)
    return {name: figure for name, figure in result.items() if np.isfinite(figure.value)}


def over_draws(draws: Sequence[Figures]) -> Figures:
    """The mean of every figure over independent draws, with Student's t-interval; one draw keeps its own interval."""
    if len(draws) == 1:
        return draws[0]
    result = {}
    for name, first in draws[0].items():
        if any(name not in draw for draw in draws):
            continue
        found = t_interval([draw[name].value for draw in draws])
        result[name] = replace(first, value=found.mean, limits=found, interval=f"{len(draws)} draws")
    return result


@dataclass(frozen=True)
class Floor:
    """Real images in the samples' place, and what they are measured against."""

    samples: FeatureSet
    reference: FeatureSet
    words: str


def floor_sets(reference: FeatureSet, held_out: FeatureSet | None, count: int) -> Floor | None:
    """Real against real with ``count`` images in the samples' place, or as many as there are.

    Held-out images against the reference, where there are any; else a random part of the reference (at most half)
    against the rest of it. None where only moments are known.
    """
    if held_out is not None and held_out.kept is not None:
        part = held_out
        if held_out.count > count:
            part = _rows(held_out, np.sort(np.random.default_rng(1).permutation(len(held_out.kept))[:count]))
        return Floor(part, reference, f"{part.count:,} held-out images against the reference")
    if reference.kept is None or len(reference.kept) < 8:
        return None
    order = np.random.default_rng(2).permutation(len(reference.kept))
    size = min(count, len(order) // 2)
    part, rest = _rows(reference, np.sort(order[:size])), _rows(reference, np.sort(order[size:]))
    rest = replace(rest, moments=_without(reference.moments, part.moments))
    return Floor(part, rest, f"{size:,} images of the reference against its other {rest.count:,}")


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
