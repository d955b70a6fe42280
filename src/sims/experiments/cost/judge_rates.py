"""A short pilot of the judge: what extractors, references, features and scores cost."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sims.data.codec import Codec
from sims.errors import UserError
from sims.experiments.cost.rates import timed
from sims.experiments.improve.search import half_width
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract
from sims.metrics.frechet import Moments
from sims.metrics.memorization import nearest_distances
from sims.metrics.pretrained import FITTED, get_extractor
from sims.scoring.features import FeatureSet, Neighbours
from sims.scoring.judge import MODEL_SPACE, Draw, Judge
from sims.scoring.options import EvaluationOptions
from sims.scoring.reference import Reference
from sims.training.classifier import default_steps, train_classifier

MOST = 5_000  # features of the pilot, where there are many dimensions
PICTURES = 256  # samples that are measured
CPU = torch.device("cpu")  # what is read back from there includes the device's work


@dataclass(frozen=True)
class JudgeCost:
    """Seconds: of the references in all; of a sample in a search and in a draw; of a draw's scores; of a search's cell.

    ``width`` is the number of features, of all extractors together.
    """

    references: float = 0.0
    features: float = 0.0
    measured: float = 0.0
    scores: float = 0.0
    cell: float = 0.0
    width: int = 0


@dataclass(frozen=True)
class Pictures:
    """Some of the real images x (n, C, H, W) with their labels, how they are stored, and how many there are."""

    x: Tensor
    labels: Tensor | None
    codec: Codec
    classes: int
    train: int
    test: int


def probe_judge(real: Pictures, options: EvaluationOptions, rung: int, device: torch.device) -> JudgeCost:
    """Measure it with some real images. UserError where the extractor's weights are not at hand."""
    extractors, seconds = _extractors(real, options)
    x, samples = real.x, real.x[:PICTURES]
    shown = samples.to(device)
    for extractor in extractors:
        extract(extractor, shown[:8])  # warm up
    each = [timed(lambda: extract(e, shown), CPU) / len(shown) for e in extractors]  # noqa: B023 (called at once)
    seconds += sum(each) * (real.train + real.test)
    near = timed(lambda: nearest_distances(samples, x), CPU) / len(samples) / len(x)  # of a pair
    seconds += near * real.train * real.test
    first, *others = (_judge(e, real, x, options, device) for e in extractors)
    judge = replace(first, second=others[0] if others else None)
    measured = timed(lambda: judge.measure(samples, None), CPU) / len(samples) + near * (real.train - len(x))
    rounded = timed(lambda: real.codec.encode(real.codec.decode(samples)), CPU) / len(samples)
    count = options.samples if extractors[0].num_features <= 256 else min(options.samples, MOST)
    features = [_random(count, e.num_features) for e in extractors]
    draw = Draw(features[0], np.ones(count), features[1] if others else None)
    cell = features[0][:rung]
    return JudgeCost(
        seconds,
        each[0] + rounded,
        measured + rounded,
        timed(lambda: judge.scored(draw), CPU),
        timed(lambda: (judge.frechet(cell), half_width([cell], judge.frechet)), CPU),
        sum(e.num_features for e in extractors),
    )


def _extractors(real: Pictures, options: EvaluationOptions) -> tuple[list[Extractor], float]:
    """The extractor of the job, then the one that only scores; and the seconds that all of their training takes."""
    ready_made = options.extractor not in ("auto", *FITTED)
    labelled = real.labels is not None and options.extractor != "pca"
    found: list[Extractor] = []
    seconds = 0.0
    if ready_made:
        shape = tuple(real.x.shape[1:])
        found.append(get_extractor(options.extractor, download=False, data_shape=shape))
    elif labelled:
        classifier, seconds = _classifier(real, "a")
        found.append(classifier)
    else:
        seconds = timed(lambda: found.append(PCAExtractor.fit(real.x)), CPU) * real.train / len(real.x)
    if labelled and options.check:
        classifier, more = _classifier(real, "b")
        found, seconds = [*found, classifier], seconds + more
    return found, seconds


def _classifier(real: Pictures, variant: str) -> tuple[ClassifierExtractor, float]:
    """A classifier of a few steps, and what all of its training takes."""
    if real.labels is None:
        raise UserError("the extractor classifier needs labels, and the data has none: use --evaluation.extractor pca")
    few = slice(0, PICTURES)
    trained: list[ClassifierExtractor] = []

    def train(steps: int) -> None:
        found, _ = train_classifier(
            real.x, real.labels, real.x[few], real.labels[few],  # type: ignore[arg-type, index]
            num_classes=real.classes, variant=variant, steps=steps,
        )  # fmt: skip
        trained.append(found)

    train(1)
    short, long = timed(lambda: train(5), CPU), timed(lambda: train(25), CPU)
    return trained[-1], max(long - short, 0.0) / 20 * default_steps(real.train)


def _random(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)


def _judge(extractor: Extractor, real: Pictures, x: Tensor, options: EvaluationOptions, device: torch.device) -> Judge:
    """A judge as large as the job's, with made-up features of the real images."""
    most = MOST if extractor.num_features > 256 else 20_000

    def features(count: int) -> FeatureSet:
        found = _random(max(2, min(count, most)), extractor.num_features)
        return FeatureSet("pilot", "pilot", Moments.of(found), found)

    test = None
    if real.test:
        test = replace(features(real.test), neighbours=Neighbours(np.ones(real.test), MODEL_SPACE))
    return Judge(Reference(extractor, features(real.train), test), x, options.manifold_samples, device)
