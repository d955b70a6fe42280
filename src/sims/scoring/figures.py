"""Score: every figure of samples against a reference, with its interval and with what real images score.

A metric is a function in ``sims.metrics`` and a record here (``METRICS``); everything else follows from the record:
what runs measure, the rows, what `sims evaluate` prints and accepts, which way is better, what pages call it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import special

from sims.config import JSON
from sims.metrics.bootstrap import frechet_interval, paired_frechet_interval, subsample_interval
from sims.metrics.copies import QUANTILE, Nearest, copying, memorization, nearest
from sims.metrics.frechet import frechet_distance
from sims.metrics.inception import InceptionAccumulator, consecutive_splits
from sims.metrics.infinity import PARTS, frechet_infinity
from sims.metrics.intervals import Interval, error_interval, share_interval
from sims.metrics.kernel import kernel_distance
from sims.metrics.points import gaussian_mmd, mode_coverage, sliced_wasserstein, wasserstein
from sims.metrics.precision_recall import manifolds
from sims.metrics.two_sample import two_sample_test
from sims.results.common import Figure, FigureFacts
from sims.results.scores import ScoreFigure, ScoreFigures, Space
from sims.scoring.features import FeatureSet

Array = np.ndarray
K_PAIR, K_COVER = 3, 5  # Kynkäänniemi et al. for precision and recall, Naeem et al. for density and coverage
PAIR, COVER = ("precision", "recall"), ("density", "coverage")
SUBSAMPLE = 1_000  # samples in a subset from which the interval of a neighbour figure is made
POINTS = 2_000  # points a side for exact optimal transport


@dataclass(frozen=True)
class Settings:
    """How figures are computed.

    neighbours: at most this many samples (and real images) where all pairs are looked at; resamples: subsets from which
    intervals are made where there is one draw; feature_scale: what features are divided by before the cubic kernel of
    KID, 1 for ready-made extractors, as in the literature; limits: whether intervals that take resampling are made.
    """

    neighbours: int = 5_000
    resamples: int = 20
    seed: int = 0
    device: torch.device | str = "cpu"
    feature_scale: float = 1.0
    limits: bool = True


Measure = Callable[[FeatureSet, FeatureSet, FeatureSet | None, Settings], ScoreFigures]
Halves = Callable[[FeatureSet, FeatureSet, FeatureSet, FeatureSet | None, Settings], dict[str, float]]


@dataclass(frozen=True)
class Metric:
    """A group of figures that one function measures.

    measure        (samples, reference, held-out images, settings) -> figures; none where what they need is not there
    figures        name -> what the figure is called and which way is better, in the order of tables
    in_runs        every draw of a run is measured with it
    in_features    it looks at features; else at distances in model space, which only runs know
    needs          what it needs beyond the features: "held_out" images, class "probabilities", "prompts"
    paired_halves  half the 95 % intervals of differences of two sets (the first two arguments) of the same seeds
    """

    name: str
    measure: Measure
    figures: dict[str, FigureFacts]
    in_runs: bool = False
    in_features: bool = True
    needs: tuple[str, ...] = ()
    paired_halves: Halves | None = None


def some_features(found: FeatureSet, count: int) -> Array:
    """At most ``count`` of the features that were kept: the first of its ``order``, else drawn with a fixed seed."""
    assert found.kept is not None
    if found.order is not None:
        return found.kept[found.order[:count]]
    chosen = np.sort(np.random.default_rng(1).permutation(len(found.kept))[:count])
    return found.kept[chosen]


def _figure(
    value: float,
    samples: int,
    settings: dict[str, JSON] | None = None,
    limits: Interval | None = None,
    source: str = "none",
    space: Space | None = None,
) -> ScoreFigure:
    found = ScoreFigure(value, samples=samples, settings=settings or {}, space=space)
    return replace(found, low=limits.low, high=limits.high, interval=source) if limits else found


def _fd(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    result = {}
    for name, against in (("fd", r), ("fd_held_out", held_out)):
        if against is None:
            continue
        value = frechet_distance(s.moments, against.moments, device=how.device)
        limits = None
        if how.limits and s.kept is not None and len(s.kept) >= 8:
            near = frechet_interval(
                s.kept, against.moments, num_resamples=how.resamples, seed=how.seed, device=how.device
            )
            limits = around(value, (near.high - near.low) / 2 * (len(s.kept) / s.count) ** 0.5)  # of all samples
        result[name] = _figure(value, s.count, {}, limits, "subsampling")
    return result


def _fd_halves(
    a: FeatureSet, b: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings
) -> dict[str, float]:
    assert a.kept is not None and b.kept is not None
    halves = {}
    for name, against in (("fd", r), ("fd_held_out", held_out)):
        if against is not None and len(a.kept) >= 4:
            near = paired_frechet_interval(
                a.kept, b.kept, against.moments, num_resamples=how.resamples, device=how.device
            )
            halves[name] = (near.high - near.low) / 2 * (len(a.kept) / a.count) ** 0.5  # errors fall with the root
    return halves


def _fd_infinity(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    if s.kept is None or len(s.kept) < 2 * max(PARTS):
        return {}
    line = frechet_infinity(s.kept, r.moments, seed=how.seed, device=how.device).intercept
    return {"fd_infinity": _figure(line.mean, len(s.kept), {"parts": list(PARTS)}, line, "line in 1/n")}


def _kid(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    result = {}
    for name, against in (("kid", r), ("kid_held_out", held_out)):
        if s.kept is None or against is None or against.kept is None or min(len(s.kept), len(against.kept)) < 4:
            continue
        # The cubic kernel expects features of about unit variance.
        x, y = (some_features(side, how.neighbours) / how.feature_scale for side in (s, against))
        distance = kernel_distance(x, y, how.device)
        about: dict[str, JSON] = {"pairs": "all", "reference_used": len(y), "feature_scale": how.feature_scale}
        result[name] = _figure(distance.value, len(x), about, distance.interval(), "std. error")
    return result


def _manifold(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    if s.kept is None or r.kept is None or min(len(s.kept), len(r.kept)) <= K_COVER:
        return {}
    x, y = some_features(r, how.neighbours), some_features(s, how.neighbours)
    values = _manifold_values(x, y, how)
    halves = {}
    if how.limits:
        halves = subset_halves(lambda real, rows: _manifold_values(real, y[rows], how), x, len(y), how)
    limits = {name: around(values[name], half) for name, half in halves.items()}
    k = dict.fromkeys(PAIR, K_PAIR) | dict.fromkeys(COVER, K_COVER)
    return {
        name: _figure(value, len(y), {"k": k[name], "reference_used": len(x)}, limits.get(name), "subsampling")
        for name, value in values.items()
    }


def _manifold_values(real: Array, samples: Array, how: Settings) -> dict[str, float]:
    """Precision, recall, density and coverage of samples' features, each with its own number of neighbours."""
    found = manifolds(real, samples, (K_PAIR, K_COVER), device=how.device)
    pair, cover = found[K_PAIR], found[K_COVER]
    return {name: getattr(pair, name) for name in PAIR} | {name: getattr(cover, name) for name in COVER}


def _manifold_halves(
    a: FeatureSet, b: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings
) -> dict[str, float]:
    if r.kept is None:
        return {}
    left, right = (some_features(side, how.neighbours) for side in (a, b))

    def difference(real: Array, rows: Array) -> dict[str, float]:
        first, second = (_manifold_values(real, side[rows], how) for side in (left, right))
        return {name: first[name] - second[name] for name in first}

    return subset_halves(difference, r.kept, len(left), how)


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


def _inception_score(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    splits = 10
    if not s.has_probabilities or s.count < 2 * splits:
        return {}
    of = np.empty(s.count, np.int64)
    of[np.random.default_rng(1).permutation(s.count)] = consecutive_splits(s.count, splits)  # not in a folder's order
    accumulator = InceptionAccumulator(of)
    for part in s.probabilities():
        accumulator.update(part)
    score = accumulator.score()
    limits = error_interval(score.mean, score.std / np.sqrt(splits - 1), freedom=splits - 1)
    return {"inception_score": _figure(score.mean, s.count, {"splits": splits}, limits, "splits")}


def _two_sample(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    if s.kept is None or r.kept is None or min(len(s.kept), len(r.kept)) < 20:
        return {}
    test = two_sample_test(r.kept, s.kept, limit=how.neighbours, seed=how.seed)
    count = (test.num_train + test.num_test) // 2
    figure = _figure(test.accuracy.mean, count, {"classifier": test.classifier}, test.accuracy, "binomial")
    return {"two_sample": replace(figure, details={"p_value": test.p_value})}


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


def _memorization(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    complete = r.kept is not None and (r.files or len(r.kept) == r.count)
    if s.kept is None or held_out is None or held_out.kept is None or not complete:
        return {}
    x, honest = some_features(s, how.neighbours), some_features(held_out, how.neighbours)
    to_train = nearest_of(x, r, how.device)
    honest_to_train = nearest_of(honest, r, how.device)
    found = copying(to_train, nearest(x, honest, device=how.device), honest_to_train.distances, r.count)
    about: dict[str, JSON] = {"held_out": held_out.hash, "held_out_used": len(honest), "space": "features"}
    excess, q = found.excess_close, found.quantile  # its interval has the error of the threshold in it, too
    share = Interval(found.share_close, q + (1 - q) * excess.low, q + (1 - q) * excess.high)
    return {
        "copied": _figure(found.excess_nearer.mean, len(x), about, found.excess_nearer, "binomial"),
        "closer_than_real": _figure(found.share_close, len(x), {**about, "quantile": q}, share, "binomial"),
        "nearest_ratio": _figure(found.median_ratio, len(x), about),
    }


def _copies(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    """Nearest neighbours in model space, where these were sought."""
    if s.neighbours is None or held_out is None or held_out.neighbours is None:
        return {}
    found = memorization(s.neighbours.distances, held_out.neighbours.distances)
    about: dict[str, JSON] = {"held_out": held_out.hash, "held_out_used": len(held_out.neighbours.distances)}
    space, count = held_out.neighbours.space, len(s.neighbours.distances)
    return {
        "memorized": _figure(found.share_1, count, {**about, "quantile": QUANTILE}, space=space),
        "distance_ratio": _figure(found.median_ratio, count, about, space=space),
    }


def _prompts(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
    """How well samples show what their prompts ask for."""
    known = np.zeros(0) if s.fidelity is None else s.fidelity[np.isfinite(s.fidelity)]
    if len(known) < 2:
        return {}
    mean = float(known.mean())
    half = 1.96 * float(known.std(ddof=1)) / len(known) ** 0.5
    return {s.measured_as: _figure(mean, len(known), {}, around(mean, half), "std. error")}


def _points(s: FeatureSet, r: FeatureSet, held_out: FeatureSet | None, how: Settings) -> ScoreFigures:
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
        if how.limits and count >= 8:
            resamples = min(how.resamples, 10) if name == "wasserstein" else how.resamples
            found = subsample_interval(statistic, count, num_resamples=resamples, seed=how.seed)
            result[name] = _figure(found.mean, count, {}, found, "subsampling")
        else:
            result[name] = _figure(statistic(np.arange(count)), count)
    return result | _modes(x, r)


def _modes(x: Array, r: FeatureSet) -> ScoreFigures:
    """How many of the reference's components the samples reach; each is where its points' mean lies."""
    if r.labels is None or r.kept is None:
        return {}
    groups = [r.kept[r.labels == label] for label in np.unique(r.labels[r.labels >= 0])]
    if len(groups) < 2 or min(map(len, groups)) < 2:
        return {}
    centres = np.stack([group.mean(axis=0) for group in groups])
    spread = np.array([float(np.sqrt(group.var(axis=0, ddof=1).mean())) for group in groups])
    found = mode_coverage(x, centres, spread)
    about: dict[str, JSON] = {"modes": len(groups), "radius": 3.0}
    quality = share_interval(found.high_quality, len(x))
    return {
        "modes_hit": _figure(found.hit, len(x), about),
        "high_quality": _figure(found.high_quality, len(x), about, quality, "binomial"),
    }


def _distance(title: str) -> FigureFacts:
    return FigureFacts(title, "lower", "distance")


def _share(title: str) -> FigureFacts:
    return FigureFacts(title, "higher", "share")


# The best of some figures lies between: 0.5 of "told from real", 0 of the copied share.
_ALL = (
    Metric(
        "fd", _fd, {"fd": _distance("FD"), "fd_held_out": _distance("FD to held-out")},
        in_runs=True, paired_halves=_fd_halves,
    ),
    Metric("fd_infinity", _fd_infinity, {"fd_infinity": _distance("FD, n to infinity")}),
    Metric("kid", _kid, {"kid": _distance("KID"), "kid_held_out": _distance("KID to held-out")}, in_runs=True),
    Metric(
        "manifold", _manifold,
        {
            **{name: _share(f"{name} (k={K_PAIR})") for name in PAIR},
            "density": FigureFacts(f"density (k={K_COVER})", "higher"), "coverage": _share(f"coverage (k={K_COVER})"),
        },
        in_runs=True, paired_halves=_manifold_halves,
    ),
    Metric(
        "inception_score", _inception_score, {"inception_score": FigureFacts("Inception Score", "higher")},
        needs=("probabilities",),
    ),
    Metric("two_sample", _two_sample, {"two_sample": FigureFacts("told from real", kind="share")}),
    Metric(
        "memorization", _memorization,
        {
            "copied": FigureFacts("copied share", kind="share"),
            "closer_than_real": FigureFacts("closer than real", kind="share"),
            "nearest_ratio": FigureFacts("nearest ratio"),
        },
        needs=("held_out",),
    ),
    Metric(
        "copies", _copies,
        {"memorized": FigureFacts("memorized", kind="share"), "distance_ratio": FigureFacts("distance ratio")},
        in_runs=True, in_features=False, needs=("held_out",),
    ),
    Metric(
        "prompts", _prompts,
        {"prompt_agreement": _share("agreement with the prompt"), "clip_score": FigureFacts("CLIP score", "higher")},
        in_runs=True, needs=("prompts",),
    ),
    Metric(
        "points", _points,
        {
            "wasserstein": _distance("2-Wasserstein"), "sliced_wasserstein": _distance("sliced 2-Wass."),
            "mmd": _distance("MMD squared"), "modes_hit": FigureFacts("modes hit", "higher"),
            "high_quality": _share("high quality"),
        },
    ),
)  # fmt: skip
METRICS: dict[str, Metric] = {metric.name: metric for metric in _ALL}


def facts(names: Sequence[str] | None = None) -> dict[str, FigureFacts]:
    """What every figure of these metrics (all by default) is called, and which way is better."""
    return {name: fact for key in names or METRICS for name, fact in METRICS[key].figures.items()}


def run_metrics() -> list[str]:
    """The metrics that every draw of a run is measured with."""
    return [name for name, metric in METRICS.items() if metric.in_runs]


def run_figures() -> dict[str, FigureFacts]:
    """The figures of runs: those of features a second time, with ``check_``, in the second extractor's."""
    names = run_metrics()
    seen = facts([name for name in names if METRICS[name].in_features])
    return facts(names) | {
        f"check_{name}": replace(fact, title=f"{fact.title}, second extractor") for name, fact in seen.items()
    }


def figures(
    samples: FeatureSet,
    reference: FeatureSet,
    held_out: FeatureSet | None,
    metrics: Sequence[str],
    how: Settings,
) -> ScoreFigures:
    """All figures of one draw; those that need what is not there (features, held-out images) are left out.

    So is a ratio without a value, where samples lie on held-out images.
    """
    result: ScoreFigures = {}
    for name in metrics:
        result |= METRICS[name].measure(samples, reference, held_out, how)
    return {name: figure for name, figure in result.items() if np.isfinite(figure.mean)}


def over_draws(draws: Sequence[ScoreFigures]) -> ScoreFigures:
    """The mean of every figure over independent draws, with Student's t-interval; one draw keeps its own interval."""
    if len(draws) == 1:
        return draws[0]
    result = {}
    for name, first in draws[0].items():
        if all(name in draw for draw in draws):
            mean = Figure.of([draw[name].mean for draw in draws])
            result[name] = replace(first, **vars(mean), interval=f"{len(draws)} draws")
    return result
