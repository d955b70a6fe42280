"""What is measured of samples: features, and the attribute as the steering and as the judging classifier see it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sims.data.codec import Codec
from sims.errors import UserError
from sims.experiments.shift.attributes import Classifier
from sims.files import atomic_path, digest
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.manifold import manifolds
from sims.metrics.proportions import kl_interval, proportions, tv_interval, weighted_moments, weights_to
from sims.metrics.statistics import read_tensors
from sims.runs.directory import Run
from sims.scoring.features import FeatureSet
from sims.scoring.judge import Judge, some

Array = np.ndarray
Sample = Callable[[range], Tensor]  # seeds -> samples (n, C, H, W) in model space
NEIGHBOURS = 3  # of precision and recall (Kynkäänniemi et al. 2019)


@dataclass(frozen=True)
class Seen:
    """What is kept of samples: features (n, D), those of the second extractor, and the two classifiers' values (n,)."""

    features: Array
    steering: Array
    judged: Array
    checked: Array | None = None

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice | Array) -> Seen:
        checked = None if self.checked is None else self.checked[rows]
        return Seen(self.features[rows], self.steering[rows], self.judged[rows], checked)

    def save(self, file: Path) -> None:
        arrays = {name: value for name, value in vars(self).items() if value is not None}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        with atomic_path(file) as temporary:
            save_file(tensors, temporary, metadata={"sims": json.dumps({"kind": "seen"})})

    @classmethod
    def load(cls, file: Path) -> Seen:
        return cls(**{name: value.numpy() for name, value in read_tensors(file)[0].items()})

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """The samples of all parts, one after the other."""
        checked = [part.checked for part in parts if part.checked is not None]
        arrays = [
            np.concatenate([getattr(part, name) for part in parts]) for name in ("features", "steering", "judged")
        ]
        features, steering, judged = arrays
        return cls(features, steering, judged, np.concatenate(checked) if checked else None)


@dataclass(frozen=True)
class Real:
    """Real data as a reference in the target's proportions: features with the attribute's values (n,), -1 = unknown."""

    reference: FeatureSet
    labels: Array

    def reweighted(self, target: Array, names: Sequence[str]) -> Moments:
        """Moments of the data, weighted so that the attribute has the target's proportions."""
        return weighted_moments(self.reference.require_features(), weights_to(target, self.labels, names))


class Meter:
    """Measures samples, a file per compute batch, and makes figures of what it measured.

    ``steering`` and ``judging`` are two classifiers of one attribute; the first takes part in choosing, the second only
    measures what was chosen.
    """

    def __init__(
        self, run: Run, judge: Judge, steering: Classifier, judging: Classifier, target: Array, batch_size: int
    ) -> None:
        self.run, self.judge, self.target, self.batch_size = run, judge, target, batch_size
        self.steering, self.judging = steering, judging
        self.names = steering.attribute.values
        self.train: Real | None = None
        self.references: dict[str, Moments] = {}
        self.groups: dict[str, Real] = {}

    def refer_to(self, train: Array, test: Array | None) -> None:
        """Use the judge's real data, with the attribute's values of each image, as references."""
        judge, second = self.judge, self.judge.second
        self.train = Real(judge.train, train)
        self.references["fd_target"] = self.train.reweighted(self.target, self.names)
        if test is not None and judge.test is not None and self._covers(test):
            self.references["fd_held_out_target"] = Real(judge.test, test).reweighted(self.target, self.names)
        if second is not None:
            self.references["check_fd_target"] = Real(second.train, train).reweighted(self.target, self.names)

    def _covers(self, labels: Array) -> bool:
        """Whether there are real samples of all that the target asks for."""
        counts = np.bincount(labels[labels >= 0], minlength=len(self.target))
        return bool((counts[self.target > 0] > 0).all()) and int(counts[self.target > 0].sum()) >= 2

    def measure(self, key: Sequence[Any], sample: Sample, codec: Codec, seeds: range, name: str) -> Seen:
        """Samples of these seeds, measured; ``key`` names all that they depend on."""
        run, size = self.run, self.batch_size
        parts = [seeds[first : first + size] for first in range(0, len(seeds), size)]
        own = digest(*key, self.judge.key, self.steering.hash, self.judging.hash, size)[:12]
        folder = run.path / "draws" / own

        def file(part: range) -> Path:
            return folder / f"{part.start}-{part.stop}.safetensors"

        def work(part: range) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            self._seen(sample(part), codec).save(file(part))
            advance(len(part) * run.num_processes)

        with run.progress(f"measure {name}", len(seeds)) as advance:
            run.spread(parts, file, work)
        return Seen.joined([Seen.load(file(part)) for part in parts])

    def _seen(self, x: Tensor, codec: Codec) -> Seen:
        # What diverges is a bad sample, not an error; samples are rounded to the values that the data can have.
        x = codec.encode(codec.decode(x.nan_to_num(0.0, 1e3, -1e3)))
        second = self.judge.second
        checked = None if second is None else second.features(x)
        device = self.judge.device
        return Seen(self.judge.features(x), self.steering(x.to(device)), self.judging(x.to(device)), checked)

    def shares(self, predicted: Array, *, judged: bool, level: float = 0.95) -> dict[str, Any]:
        """Proportions of the attribute with intervals, corrected for the classifier's errors; TV and KL."""
        classifier = self.judging if judged else self.steering
        found = proportions(predicted, classifier.confusion, level, names=self.names)
        result: dict[str, Any] = {name: getattr(found, name).tolist() for name in ("values", "low", "high", "raw")} | {
            "n": found.n
        }
        for name, measure in (("tv", tv_interval), ("kl", kl_interval)):
            value, low, high = measure(predicted, classifier.confusion, self.target, names=self.names)
            result[name] = {"value": finite(value), "low": finite(low), "high": finite(high)}
        return result

    def distances(self, seen: Seen) -> dict[str, float]:
        """Fréchet distances to the real data in the target's proportions; ``check_``: on the second extractor."""
        found = {}
        for name, reference in self.references.items():
            features = seen.checked if name.startswith("check_") else seen.features
            if features is not None:
                found[name] = frechet_distance(Moments.of(features), reference)
        return found

    def group(self, seen: Seen, value: int, limit: int) -> dict[str, Any]:
        """Quality within one group, the samples that the judge gives this value: the first ``limit`` of them."""
        assert self.train is not None
        ours = seen.features[seen.judged == value][:limit]
        real = self.train.reference.require_features()[self.train.labels == value]
        fd = precision = recall = None
        if min(len(ours), len(real)) >= 2:
            fd = frechet_distance(Moments.of(ours), Moments.of(real))
        if min(len(ours), len(real)) > NEIGHBOURS:
            pair = manifolds(some(real, self.judge.manifold_samples), some(ours, self.judge.manifold_samples))
            precision, recall = pair[NEIGHBOURS].precision, pair[NEIGHBOURS].recall
        counts = {"n": len(ours), "real": len(real)}
        return {"value": self.names[value], **counts, "fd": fd, "precision": precision, "recall": recall}


def check_accuracy(classifier: Classifier, least: float, role: str) -> None:
    """UserError for a classifier that gets less than ``least`` right, by the mean over values."""
    rates = np.diagonal(classifier.confusion) / classifier.confusion.sum(axis=1)
    if rates.mean() < least:
        worst = int(rates.argmin())
        raise UserError(
            f"the {role} classifier of {classifier.attribute.name} gets {rates.mean():.1%} of held-out images right "
            f"(mean over values; worst: {rates[worst]:.1%} of {classifier.attribute.values[worst]!r}), and "
            f"--min-accuracy is {least:.1%}: label more images, or give a better classifier"
        )


def finite(value: float) -> float | None:
    """None, as JSON has it, for what is not finite."""
    return value if math.isfinite(value) else None
