"""A short pilot of the judge: what extractors, references, features and scores cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from sims.experiments.cost.described import SOME, DataSize
from sims.experiments.cost.rates import timed
from sims.experiments.improve.search import half_width
from sims.metrics.copies import nearest_distances
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract
from sims.metrics.frechet import Moments
from sims.metrics.pretrained import get_extractor
from sims.scoring.extractor_fitting import fitted_kind
from sims.scoring.features import FeatureSet, Neighbours
from sims.scoring.judge import MODEL_SPACE, Draw, Judge
from sims.scoring.options import EvaluationOptions
from sims.scoring.reference import Reference, check_of
from sims.training.classifier import default_steps, train_classifier

MOST = 5_000  # features of the pilot, where there are many dimensions
MEASURED = 256  # samples that are measured
CPU = torch.device("cpu")  # what is read back from there includes the device's work


@dataclass(frozen=True)
class JudgeRates:
    """Seconds: of the references in all; of a sample in a search and in a draw; of a draw's scores; of a search's cell.

    ``width`` is the number of features, of all extractors together.
    """

    references: float = 0.0
    features: float = 0.0
    measured: float = 0.0
    scores: float = 0.0
    cell: float = 0.0
    width: int = 0


def measure_judge(data: DataSize, options: EvaluationOptions, rung: int, device: torch.device) -> JudgeRates:
    """Judge some of the real images. UserError where the extractor's weights are not at hand."""
    assert data.some is not None
    x, labels = data.some.batch(slice(0, SOME))
    extractors, seconds = _extractors(x, labels, data, options)
    samples, codec = x[:MEASURED], data.some.codec
    shown = samples.to(device)
    for extractor in extractors:
        extract(extractor, shown[:8])  # warm up
    each = [timed(lambda: extract(e, shown), CPU) / len(shown) for e in extractors]  # noqa: B023 (called at once)
    seconds += sum(each) * (data.num_train + data.num_test)
    near = timed(lambda: nearest_distances(samples, x), CPU) / len(samples) / len(x)  # of a pair
    seconds += near * data.num_train * data.num_test
    first, *others = (_judge(e, data, x, options, device) for e in extractors)
    judge = replace(first, second=others[0] if others else None)
    measured = timed(lambda: judge.measure(samples, None), CPU) / len(samples) + near * (data.num_train - len(x))
    rounded = timed(lambda: codec.encode(codec.decode(samples)), CPU) / len(samples)
    count = options.samples if extractors[0].num_features <= 256 else min(options.samples, MOST)
    features = [_random(count, e.num_features) for e in extractors]
    draw = Draw(features[0], np.ones(count), features[1] if others else None)
    cell = features[0][:rung]
    return JudgeRates(
        seconds,
        each[0] + rounded,
        measured + rounded,
        timed(lambda: judge.scored(draw), CPU),
        timed(lambda: (judge.frechet(cell), half_width([cell], judge.frechet)), CPU),
        sum(e.num_features for e in extractors),
    )


def _extractors(
    x: Tensor, labels: Tensor | None, data: DataSize, options: EvaluationOptions
) -> tuple[list[Extractor], float]:
    """The extractor of the job, then the one that only scores; and the seconds that all of their training takes."""
    assert data.some is not None
    extractors: list[Extractor] = []
    seconds = 0.0
    for name, variant in zip((options.extractor, check_of(options, labels)), "ab", strict=True):
        if name is None:
            continue
        kind = fitted_kind(name, labels, data.some.name)
        if kind is None:
            extractors.append(get_extractor(name, download=False, data_shape=tuple(x.shape[1:])))
        elif kind == "pca":
            fit = partial(PCAExtractor.fit, x)
            extractors.append(fit())
            seconds += timed(fit, CPU) * data.num_train / len(x)
        elif labels is not None:
            classifier, more = _classifier(x, labels, data, variant)
            extractors, seconds = [*extractors, classifier], seconds + more
    return extractors, seconds


def _classifier(x: Tensor, labels: Tensor, data: DataSize, variant: str) -> tuple[ClassifierExtractor, float]:
    """A classifier of a few steps, and what all of its training takes."""
    assert data.some is not None
    few, num_classes = slice(0, MEASURED), data.some.num_classes

    def train(steps: int) -> ClassifierExtractor:
        held_out = x[few], labels[few]
        return train_classifier(x, labels, *held_out, num_classes=num_classes, variant=variant, steps=steps)[0]

    classifier = train(1)
    short, long = timed(lambda: train(5), CPU), timed(lambda: train(25), CPU)
    return classifier, max(long - short, 0.0) / 20 * default_steps(data.num_train)


def _random(count: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)


def _judge(extractor: Extractor, data: DataSize, x: Tensor, options: EvaluationOptions, device: torch.device) -> Judge:
    """A judge as large as the job's, with made-up features of the real images."""
    most = MOST if extractor.num_features > 256 else 20_000

    def features(count: int) -> FeatureSet:
        found = _random(max(2, min(count, most)), extractor.num_features)
        return FeatureSet("pilot", "pilot", Moments.of(found), found)

    test = None
    if data.num_test:
        test = replace(features(data.num_test), neighbours=Neighbours(np.ones(data.num_test), MODEL_SPACE))
    return Judge(Reference(extractor, features(data.num_train), test), x, options.manifold_samples, device)
