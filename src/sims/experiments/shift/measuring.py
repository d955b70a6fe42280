"""What is measured of samples: features, and the attribute as the steering and as the judging classifier see it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor

from sims.config import JSON
from sims.data.codec import Codec
from sims.errors import UserError
from sims.experiments.shift.attributes import Classifier
from sims.files import digest
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.precision_recall import manifolds
from sims.metrics.proportions import distances_to, proportions, weighted_moments, weights_to
from sims.metrics.saved import read_tensors, write_tensors
from sims.processes import agree
from sims.results.common import FigureFacts
from sims.results.scores import ScoreFigure, ScoreRow
from sims.results.shift import Bounded, Group, Shares
from sims.runs.directory import Run
from sims.runs.measure import Samples, draw_and_measure, parts_of, rounded
from sims.scoring.features import FeatureSet
from sims.scoring.judge import Judge
from sims.scoring.reference import Reference

Array = np.ndarray
Sample = Callable[[range], Tensor]  # seeds -> samples (n, C, H, W) in model space
NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al. 2019)
TRAIN, HELD_OUT, CHECK = "fd_target", "fd_held_out_target", "check_fd_target"
FIGURES = {
    "tv": FigureFacts("TV to target", "lower"),
    "kl": FigureFacts("KL", "lower"),
    TRAIN: FigureFacts("FD to target", "lower", "distance"),
    HELD_OUT: FigureFacts("FD to held-out, target", "lower", "distance"),
    CHECK: FigureFacts("FD to target, second extractor", "lower", "distance"),
}


@dataclass(frozen=True)
class Seen:
    """What is kept of samples: features (n, D), those of the second extractor, the two classifiers' values (n,).

    ``bad`` (n,) are the samples that diverged.
    """

    features: Array
    steering: Array
    judged: Array
    bad: Array
    checked: Array | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Array) -> Seen:
        return Seen(**{name: array[rows] for name, array in self._arrays().items()})

    @property
    def diverged(self) -> int:
        """How many samples diverged."""
        return int(self.bad.sum())

    def _arrays(self) -> dict[str, Array]:
        return {name: array for name, array in vars(self).items() if array is not None}

    def save(self, file: Path) -> None:
        write_tensors(file, self._arrays(), {"kind": "seen"})

    @classmethod
    def load(cls, file: Path) -> Seen:
        return cls(**{name: value.numpy() for name, value in read_tensors(file)[0].items()})

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """The samples of all parts, one after the other."""
        arrays = [part._arrays() for part in parts]
        return cls(**{name: np.concatenate([each[name] for each in arrays]) for name in arrays[0]})


class Meter:
    """Measures samples, a file per compute batch, and makes figures of what it measured.

    ``steering`` and ``judging`` are two classifiers of one attribute; the first takes part in choosing, the second only
    measures what was chosen. ``train`` (n,) and ``test`` (m,) are the attribute's values of the judge's real images.
    """

    def __init__(
        self,
        run: Run,
        judge: Judge,
        steering: Classifier,
        judging: Classifier,
        target: Array,
        batch_size: int,
        train: Array,
        test: Array | None,
    ) -> None:
        self.run, self.judge, self.target, self.batch_size = run, judge, target, batch_size
        self.steering, self.judging = steering, judging
        self.names = steering.attribute.values
        self.target_hash = digest(target.tolist())[:16]
        self.real = judge.train.require_features(), train
        self.references = {TRAIN: self._in_proportions(judge, judge.train, train)}
        if test is not None and judge.test is not None and self._covers(test):
            self.references[HELD_OUT] = self._in_proportions(judge, judge.test, test)
        if judge.second is not None:
            self.references[CHECK] = self._in_proportions(judge.second, judge.second.train, train)

    def _covers(self, labels: Array) -> bool:
        """Whether there are real samples of all that the target asks for."""
        counts = np.bincount(labels[labels >= 0], minlength=len(self.target))[self.target > 0]
        return bool((counts > 0).all()) and int(counts.sum()) >= 2

    def _in_proportions(self, judge: Judge, real: FeatureSet, labels: Array) -> Reference:
        """Real data, weighted so that the attribute has the target's proportions."""
        weighted = weighted_moments(real.require_features(), weights_to(self.target, labels, self.names))
        name, hash_ = f"{real.name} in the target's proportions", digest(real.hash, self.target_hash)[:16]
        moments = replace(weighted, count=real.count)
        return Reference(judge.extractor, replace(real, name=name, hash=hash_, moments=moments))

    def measure(self, key: Sequence[JSON], sample: Sample, codec: Codec, seeds: range, name: str) -> Seen:
        """Samples of these seeds, measured; ``key`` names all that they depend on."""
        own = digest(*key, self.judge.key, self.steering.hash, self.judging.hash, self.batch_size)[:12]
        parts = parts_of(seeds, self.batch_size)

        def draw(part: range) -> Samples:
            return rounded(sample(part), codec)

        with self.run.progress(f"measure {name}", len(seeds)) as advance:
            folder = self.run.path / "draws" / own
            return Seen.joined(draw_and_measure(self.run, folder, parts, draw, self._seen, Seen, advance))

    def _seen(self, samples: Samples) -> Seen:
        x, judge = samples.x, self.judge
        checked = None if judge.second is None else judge.second.features(x)
        bad = np.zeros(len(x), bool) if samples.bad is None else samples.bad.cpu().numpy()
        features, x = judge.features(x), x.to(judge.device)
        return Seen(features, self.steering(x), self.judging(x), bad, checked)

    def shares(self, predicted: Array, *, judged: bool, level: float = 0.95) -> Shares:
        """Proportions of the attribute with intervals, corrected for the classifier's errors; TV and KL."""
        confusion, names = (self.judging if judged else self.steering).confusion, self.names
        found = proportions(predicted, confusion, level, names=names)
        tv, kl = (Bounded(*map(finite, each)) for each in distances_to(self.target, predicted, confusion, names=names))
        values, low, high, raw = (tuple(x.tolist()) for x in (found.values, found.low, found.high, found.raw))
        return Shares(values=values, low=low, high=high, raw=raw, n=found.n, tv=tv, kl=kl)

    def steered_tv(self, seen: Seen) -> float:
        """Total variation to the target, as the steering classifier sees it; the same in every process."""
        return agree(tv_of(self.shares(seen.steering, judged=False)))

    def distances(self, seen: Seen) -> dict[str, float]:
        """Fréchet distances to the real data in the target's proportions; ``check_``: on the second extractor."""
        first = Moments.of(seen.features)
        second = None if seen.checked is None else Moments.of(seen.checked)
        return {
            name: frechet_distance(moments, reference.train.moments)
            for name, reference in self.references.items()
            if (moments := second if name == CHECK else first) is not None
        }

    def rows(self, draw: Seen, distances: Mapping[str, float], seeds: range) -> list[ScoreRow]:
        """A self-describing row for every distance of a draw."""
        settings: dict[str, JSON] = {"target": self.target_hash}
        samples = FeatureSet(
            "", "", Moments.of(draw.features), seeds=np.asarray(seeds), format="memory", dtype=self.judge.space.dtype,
            diverged=draw.diverged,
        )  # fmt: skip
        rows: list[ScoreRow] = []
        for name, value in distances.items():
            figure = ScoreFigure(value, samples=len(draw), settings=settings)
            rows += self.references[name].rows({name: figure}, samples)
        return rows

    def rows_of_shares(self, seen: Seen, seeds: range) -> list[ScoreRow]:
        """A self-describing row for every share by the judging classifier, for TV and for KL."""
        shares = self.shares(seen.judged, judged=True)
        each = zip(self.names, shares.values, shares.low, shares.high)
        figures = {"tv": shares.tv, "kl": shares.kl} | {f"share[{name}]": Bounded(*share) for name, *share in each}
        about = ScoreRow(
            metric="",
            value=0.0,
            extractor_name=f"judge of {self.judging.attribute.name}",
            extractor_hash=self.judging.hash,
            reference_name="target",
            reference_hash=self.target_hash,
            num_samples=len(seen),
            seeds=(seeds.start, seeds.stop),
            dtype=self.judge.space.dtype,
            diverged=seen.diverged,
            interval="redrawn errors",
            settings={"target": self.target_hash, "confusion": digest(self.judging.confusion.tolist())[:16]},
        )
        return [
            replace(about, metric=name, value=share.value, low=share.low, high=share.high)
            for name, share in figures.items()
            if share.value is not None
        ]

    def group(self, seen: Seen, value: int, limit: int) -> Group:
        """Quality within one group, the samples that the judge gives this value: the first ``limit`` of them."""
        features, labels = self.real
        ours, real = seen.features[seen.judged == value][:limit], features[labels == value]
        fd = precision = recall = None
        if min(len(ours), len(real)) >= 2:
            fd = frechet_distance(Moments.of(ours), Moments.of(real))
        if min(len(ours), len(real)) > NEIGHBOURS:
            most = self.judge.manifold_samples
            pair = manifolds(_some(real, most), _some(ours, most))[NEIGHBOURS]
            precision, recall = pair.precision, pair.recall
        name = self.names[value]
        return Group(value=name, n=len(ours), real=len(real), fd=fd, precision=precision, recall=recall)


def _some(features: Array, count: int) -> Array:
    """At most ``count`` of some images' features, drawn with a fixed seed: folders are often sorted by class."""
    return features[np.random.default_rng(0).permutation(len(features))[:count]]


def check_accuracy(classifier: Classifier, least: float, role: str) -> None:
    """UserError for a classifier that gets less than ``least`` right, by the mean over values."""
    rates = np.diagonal(classifier.confusion) / classifier.confusion.sum(axis=1)
    if rates.mean() < least:
        worst = int(rates.argmin())
        raise UserError(
            f"the {role} classifier of {classifier.attribute.name} gets {rates.mean():.1%} of held-out images right "
            f"(mean over values; worst: {rates[worst]:.1%} of {classifier.attribute.values[worst]!r}), and "
            f"min_accuracy is {least:.1%}: label more images, or give a better classifier"
        )


def tv_of(shares: Shares) -> float:
    """The total variation to the target, which always is finite."""
    assert shares.tv.value is not None
    return shares.tv.value


def finite(value: float) -> float | None:
    """None, as JSON has it, for what is not finite."""
    return value if math.isfinite(value) else None
