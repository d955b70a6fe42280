"""Evaluate: how far samples are from real data, with what it was measured with."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sims.config import nearest
from sims.data.dataset import Dataset, View, at_once
from sims.errors import UserError
from sims.files import atomic_path, digest, read_json
from sims.interop.latents import Autoencoder
from sims.metrics.comparison import ScoreRow
from sims.metrics.extractors import ClassifierExtractor, Extractor, extract, load_extractor
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.intervals import t_interval
from sims.metrics.kernel import mmd_squared
from sims.metrics.manifold import manifold
from sims.metrics.memorization import memorization, nearest_distances
from sims.metrics.per_class import class_agreement, class_shares, per_class_frechet
from sims.metrics.pretrained import FITTED, NAMES, get_extractor
from sims.metrics.statistics import Reference, load_statistics, read_tensors
from sims.model import Model
from sims.sampling import SamplerOptions

Array = np.ndarray
LIMITED = ("kid_held_out", "precision", "recall")  # figures of at most ``manifold_samples`` samples


@dataclass(frozen=True)
class EvaluationOptions:
    """How models are judged."""

    draws: int = 5
    """Independent draws of samples; their spread gives the intervals."""
    samples: int = 5_000
    """Samples per draw."""
    extractor: str = "auto"
    """Features: classifier (small, trained on the real labels), pca (of the pixels), or inception, dinov2, clip, efficientnet-lite0, torchscript:PATH; auto: classifier where there are labels, else pca."""  # noqa: E501
    download: bool = False
    """Allow fetching the published weights of the extractor (checked against their hash)."""
    extractor_seed: int = 0
    """Seed of the classifier's training."""
    check: bool = True
    """Score a second time, on a classifier of another architecture and seed that no choice was made with."""
    manifold_samples: int = 2_000
    """Samples (and real images) per draw that precision, recall and KID look at."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"evaluation.samples is {self.samples}: at least 2 samples are needed for a covariance")
        if self.draws < 1:
            raise UserError(f"evaluation.draws is {self.draws}: at least 1 is needed (5 for useful intervals)")
        kind = self.extractor.partition(":")[0]
        if kind not in ("auto", *FITTED, *NAMES):
            raise UserError(f"unknown extractor {kind!r}{nearest(kind, ('auto', *FITTED, *NAMES))}")
        if self.manifold_samples < 10:
            raise UserError(f"evaluation.manifold_samples is {self.manifold_samples}: at least 10 are needed")


@dataclass(frozen=True)
class Draw:
    """What is kept of one draw of samples: features (n, D), distance to the nearest training image (n,), classes.

    ``checked`` are the features of the second extractor, which no choice was made with; ``scores`` what
    ``Judge.scores`` made of all this, where it was asked for.
    """

    features: Array
    nearest: Array
    checked: Array | None = None
    labels: Array | None = None
    predicted: Array | None = None
    seconds: float = 0.0
    scores: dict[str, float] = field(default_factory=dict)
    diverged: int = 0

    def save(self, file: Path) -> None:
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}
        header = {"kind": "draw", "seconds": self.seconds, "scores": self.scores, "diverged": self.diverged}
        with atomic_path(file) as temporary:
            save_file(tensors, temporary, metadata={"sims": json.dumps(header)})

    @classmethod
    def load(cls, file: Path) -> Draw:
        tensors, header = read_tensors(file)
        arrays = {name: value.numpy() for name, value in tensors.items()}
        return cls(**arrays, seconds=header["seconds"], scores=header["scores"], diverged=header["diverged"])


@dataclass(frozen=True)
class Judge:
    """An extractor and the references it measured: real training data and real held-out data.

    Of a latent model, features are those of the pixels that ``decoder`` makes of the latents (where it is known), and
    nearest neighbours are sought among latents.
    """

    extractor: Extractor
    train: Reference
    test: Reference | None
    train_x: View | Tensor | None
    test_nearest: Array | None
    accuracy: float | None = None
    manifold_samples: int = 2_000
    device: torch.device | str = "cpu"
    second: Judge | None = None
    decoder: Autoencoder | None = None

    @property
    def key(self) -> list[Any]:
        """All that the scores of given samples depend on."""
        nearest = None if self.test_nearest is None else digest(self.test_nearest.tobytes())
        own = [self.extractor.hash, self.train.hash, self.test and self.test.hash, nearest, self.manifold_samples]
        own += [self.decoder.hash] if self.decoder else []
        return [*own, self.second.key if self.second else None]

    def about(self) -> dict[str, Any]:
        """What it measures with, for reports."""
        e = self.extractor
        return {"name": e.name, "hash": e.hash, "num_features": e.num_features, "accuracy": self.accuracy}

    @functools.cached_property
    def floor(self) -> float | None:
        """Fréchet distance of the training set to the test set: what a perfect copy of the training set would score."""
        return None if self.test is None else frechet_distance(self.train.moments, self.test.moments)

    def perfect(self, count: int) -> float:
        """What ``count`` samples of a perfect model would score against the training set.

        The Fréchet distance of finite samples a, b of one distribution is about c (1/a + 1/b); c is measured between
        two halves of the training set. A score below it tells of memorization, not of quality. 0 where the reference
        has no features.
        """
        features = self.train.features
        if features is None:
            return 0.0
        size = len(features)
        order = np.random.default_rng(0).permutation(size)
        halves = [Moments.of(features[part]) for part in (order[: size // 2], order[size // 2 :])]
        return frechet_distance(*halves) * size / 4 * (1 / size + 1 / count)

    def features(self, x: Tensor) -> Array:
        """Features (n, D) of samples x (n, C, H, W) in model space."""
        return np.concatenate([extract(self.extractor, part) for part in self._seen(x)])

    def _seen(self, x: Tensor) -> Iterator[Tensor]:
        """Samples as the extractor sees them, some at a time."""
        if self.decoder is None:
            yield x.to(self.device)
            return
        size = at_once(self.decoder.pixel_shape(x.shape[1:]))
        for part in x.split(size):
            yield self.decoder.pixels(part).to(self.device)

    def frechet(self, features: Array) -> float:
        """Fréchet distance to the training reference: what selection minimizes."""
        return frechet_distance(Moments.of(features), self.train.moments)

    def measure(self, x: Tensor, labels: Tensor | None) -> Draw:
        """Everything about samples x (n, C, H, W) in model space that the scores need."""
        bad = int((~torch.isfinite(x.flatten(1)).all(dim=1)).sum())
        if bad:
            raise UserError(f"{bad} of {len(x)} samples are not finite: the model diverges at this strength, lower w")
        nearest = np.zeros(0) if self.train_x is None else nearest_distances(x, self.train_x)  # type: ignore[arg-type]
        e, second = self.extractor, self.second
        found: dict[str, list[Array]] = {"features": [], "checked": [], "predicted": []}
        for part in self._seen(x):
            found["features"].append(extract(e, part))
            if second:
                found["checked"].append(extract(second.extractor, part))
            if isinstance(e, ClassifierExtractor):
                found["predicted"].append(e.predict(part))
        features, checked, predicted = (np.concatenate(parts) if parts else None for parts in found.values())
        assert features is not None
        return Draw(features, nearest, checked, None if labels is None else labels.numpy(), predicted)

    def only_features(self, x: Tensor) -> Draw:
        """Features alone, for a search."""
        return Draw(self.features(x), np.zeros(0))

    def scores(self, draw: Draw) -> dict[str, float]:
        """All figures of one draw; those that need held-out data are left out without it.

        Figures on the second extractor have the prefix ``check_``.
        """
        result = self._distances(draw.features)
        if self.test_nearest is not None and len(draw.nearest):
            found = memorization(draw.nearest, self.test_nearest)
            result["memorized"] = found.share_1
            if np.isfinite(found.median_ratio):  # not where most held-out images are training images
                result["distance_ratio"] = found.median_ratio
        if self.second is not None and draw.checked is not None:
            result |= {f"check_{name}": value for name, value in self.second._distances(draw.checked).items()}
        return result

    def _distances(self, features: Array) -> dict[str, float]:
        moments, count = Moments.of(features), self.manifold_samples
        result = {"fd": frechet_distance(moments, self.train.moments)}
        if self.train.features is not None:
            pair = manifold(some(self.train.features, count), features[:count])
            result |= {"precision": pair.precision, "recall": pair.recall}
        if self.test is not None:
            result["fd_held_out"] = frechet_distance(moments, self.test.moments)
            # The cubic kernel expects features of about unit variance: both sides are scaled by the training set's.
            scale = float(np.sqrt(np.trace(self.train.moments.covariance) / features.shape[1]))
            real = some(self.test.require_features(), count)
            result["kid_held_out"] = mmd_squared(features[:count] / scale, real / scale)
        return result

    def rows(self, measured: Draw, seeds: range, **about: Any) -> list[dict[str, Any]]:
        """One self-describing row per figure of a draw, for ``metrics.jsonl``."""
        rows = []
        for name, value in (measured.scores or self.scores(measured)).items():
            judge = self.second if name.startswith("check_") and self.second else self
            reference = judge.test if name.endswith("_held_out") and judge.test else judge.train
            count = len(measured.features)
            row = ScoreRow(
                metric=name,
                value=value,
                extractor_name=judge.extractor.name,
                extractor_hash=judge.extractor.hash,
                reference_name=reference.name,
                reference_hash=reference.hash,
                num_samples=min(count, judge.manifold_samples) if name.endswith(LIMITED) else count,
                seeds=(seeds.start, seeds.stop),
                resize=judge.extractor.resize,
                dtype=f"decoded by autoencoder {self.decoder.hash}" if self.decoder else "as the data",
            )
            rows.append({**about, **row.to_json()})
        return rows

    def per_class(self, draws: Sequence[Draw], names: Sequence[str]) -> list[dict[str, Any]]:
        """Shares, agreement of intended and recognized class, and FD per class; [] without a classifier."""
        if draws[0].predicted is None:
            return []
        predicted = np.concatenate([d.predicted for d in draws if d.predicted is not None])
        shares = class_shares(predicted, len(names))
        agreement: Sequence[float | None] = [None] * len(names)
        distances: Sequence[float | None] = [None] * len(names)
        if draws[0].labels is not None:
            labels = np.concatenate([d.labels for d in draws if d.labels is not None])
            agreement = class_agreement(predicted, labels, len(names)).per_class
            if self.train.features is not None and self.train.labels is not None:
                features = np.concatenate([d.features for d in draws])
                known = (self.train.features, self.train.labels)
                distances = per_class_frechet(features, labels, *known, len(names))
        return [
            {"class": name, "share": float(shares[i]), "agreement": agreement[i], "fd": distances[i]}
            for i, name in enumerate(names)
        ]


def some(features: Array, count: int) -> Array:
    """At most ``count`` of some images' features, drawn with a fixed seed: folders are often sorted by class."""
    return features[np.random.default_rng(0).permutation(len(features))[:count]]


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and lowest value over independent draws, and the mean's 95 % interval; of a single draw its value.

    Published FIDs are the lowest of three draws.
    """
    if len(values) < 2:
        return {"mean": float(values[0]), "low": None, "high": None}
    found = t_interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "min": float(min(values))}


_TEST_PART = 16_384  # held-out images whose nearest neighbours are sought at once
FILES = {"extractor": "extractor.safetensors", "train": "train.safetensors", "test": "test.safetensors"}


def load_judge(
    folder: Path,
    train: Dataset | None,
    test: Dataset | None,
    options: EvaluationOptions,
    device: torch.device | str = "cpu",
    decoder: Autoencoder | None = None,
) -> Judge:
    """The extractors and references that ``make_references`` left in ``folder``.

    The statistics suffice to choose and to judge; nearest neighbours need the images ``train`` and ``test`` as well.
    Samples, and these, are latents where there is a ``decoder``.
    """
    if not (folder / "judge.json").is_file():
        raise UserError(f"no reference statistics at {folder}: give the 'references' folder of a run, or --data.path")
    train_x = None if train is None else View(train)
    nearest = None
    if train_x is not None and test is not None:
        parts = [View(test)[first : first + _TEST_PART] for first in range(0, len(test), _TEST_PART)]
        nearest = np.concatenate([nearest_distances(part, train_x) for part in parts])  # type: ignore[arg-type]
    checked = options.check and (folder / "check").is_dir()
    second = _load(folder / "check", None, None, options, device) if checked else None
    return replace(_load(folder, train_x, nearest, options, device), second=second, decoder=decoder)


def _load(
    folder: Path, train_x: View | None, nearest: Array | None, options: EvaluationOptions, device: torch.device | str
) -> Judge:
    has_test, about = (folder / FILES["test"]).is_file(), read_json(folder / "judge.json")
    train = load_statistics(folder / FILES["train"])
    extractor = judge_extractor(folder, options.download)
    if extractor.hash != train.extractor_hash:
        raise UserError(
            f"{folder} was measured with {train.extractor_name} ({train.extractor_hash}), and what is installed as "
            f"{about.get('ready_made')} is {extractor.hash}: restore the earlier weights, or measure anew"
        )
    test = load_statistics(folder / FILES["test"]) if has_test else None
    return Judge(extractor, train, test, train_x, nearest, about["accuracy"], options.manifold_samples, device)


def judge_extractor(folder: Path, download: bool = False) -> Extractor:
    """The extractor of a ``references`` folder: its own, or the ready-made one that it names."""
    about = read_json(folder / "judge.json")
    if "ready_made" not in about:
        return load_extractor(folder / FILES["extractor"])
    return get_extractor(about["ready_made"], download=download, data_shape=tuple(about["data_shape"]))


def draw_samples(
    model: Model, seeds: Sequence[int], judge: Judge, sampler: SamplerOptions | None = None, batch_size: int = 500
) -> Draw:
    """Sample (timed), round to the data's own format, and measure."""
    begin = time.monotonic()
    x, labels = model.sample_labelled(seeds, sampler=sampler, batch_size=batch_size)
    seconds = time.monotonic() - begin
    if torch.isfinite(x).all():
        x = model.codec.encode(model.codec.decode(x))
    return replace(judge.measure(x, labels), seconds=seconds)
