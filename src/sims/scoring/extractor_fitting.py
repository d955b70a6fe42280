"""Extractors that are fitted to the reference's own images: a small classifier, or principal components."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sims.data.stream import Stream
from sims.errors import UserError
from sims.metrics.extractors import PCA_LARGEST, ClassifierExtractor, PCAExtractor
from sims.metrics.pretrained import FITTED
from sims.metrics.small_classifier import shrink
from sims.scoring.features import unreadable_pictures
from sims.training.classifier import train_classifier

FIT_VALUES = 1 << 29  # pixels that an extractor is fitted to at most: 2 GiB
FIT_IMAGES = 100_000  # images that components of a run are fitted to at most
FIT_BATCH = 128  # images read at once


def fitted_kind(name: str, labels: object, data: str) -> str | None:
    """The kind of an extractor that has to be fitted ("auto": a classifier where there are labels), else None.

    UserError where a classifier was asked for and there are no labels.
    """
    if name not in ("auto", *FITTED):
        return None
    if name == "classifier" and labels is None:
        raise UserError(f"extractor 'classifier' needs labels, and {data} has none: use option 'extractor' with pca")
    return "pca" if name == "pca" or labels is None else "classifier"


def fit_components(stream: Stream, most: int | None = None, *, skip_unreadable: bool = False) -> PCAExtractor:
    """Principal components of a stream's images, of at most ``most`` of them where it is given."""
    x, _ = _images(stream, most, skip_unreadable, lambda x: shrink(x, PCA_LARGEST))  # as the components see them
    pca = PCAExtractor.fit(x)
    return PCAExtractor(tuple(stream.data_shape), pca.mean, pca.components)


def fit_classifier(stream: Stream, held_out: Stream, *, seed: int, variant: str) -> tuple[ClassifierExtractor, float]:
    """A classifier of a labelled stream, and its accuracy on a held-out one; evenly spaced images of both."""
    x, labels = _images(stream, max(1, FIT_VALUES // math.prod(stream.data_shape)))
    shape, classes = math.prod(held_out.data_shape), stream.num_classes
    judged = (x, labels) if held_out is stream else _images(held_out, max(1, FIT_VALUES // shape))
    assert labels is not None and judged[1] is not None
    return train_classifier(x, labels, *judged, num_classes=classes, seed=seed, variant=variant)  # type: ignore[arg-type]


def fit_quickly(stream: Stream, *, skip_unreadable: bool = False) -> ClassifierExtractor:
    """A classifier of a labelled stream, whose accuracy nobody asks for; blocks of images are quicker to read."""
    x, labels = _images(stream, None, skip_unreadable)
    assert labels is not None
    return train_classifier(x, labels, x[:1], labels[:1], num_classes=stream.num_classes)[0]


def _images(
    stream: Stream,
    most: int | None,
    skip_unreadable: bool = False,
    reduce: Callable[[Tensor], Tensor] = lambda x: x,
) -> tuple[Tensor, Tensor | None]:
    """The images of a stream that can be read, and their labels.

    Where there are more than ``most``, evenly spaced ones; by default, where they have more than FIT_VALUES pixels,
    evenly spaced blocks. UserError where some cannot be read, unless skipped.
    """
    block = FIT_BATCH if most is None or stream.count <= most else 1
    limit = FIT_VALUES // reduce(torch.zeros(1, *stream.data_shape)).numel() if most is None else most
    blocks = [range(first, min(first + block, stream.count)) for first in range(0, stream.count, block)]
    step = 1 if stream.count <= limit else -(-len(blocks) // max(1, limit // block))
    x, positions = [], []
    unreadable: list[tuple[int, str]] = []
    for rows in blocks[::step]:
        part = stream.read(rows)
        x.append(reduce(part.x))
        positions.append(part.positions)
        unreadable += part.unreadable
    if unreadable and not skip_unreadable:
        raise UserError(unreadable_pictures(stream, unreadable))
    labels = None if stream.labels is None else torch.as_tensor(stream.labels[np.concatenate(positions)])
    return torch.cat(x), labels
