"""Measure real data once: the extractors and the statistics that models are judged by."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims.data.dataset import Dataset, View, at_once
from sims.errors import UserError
from sims.files import write_json
from sims.interop.latents import Autoencoder
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract
from sims.metrics.frechet import Moments
from sims.metrics.pretrained import FITTED, get_extractor
from sims.metrics.statistics import save_statistics
from sims.scoring.judge import FILES, EvaluationOptions
from sims.training.classifier import train_classifier

FIT_VALUES = 1 << 29  # pixels that an extractor is fitted to at most: 2 GiB
FIT_IMAGES = 100_000  # and images, evenly spaced where there are more


def make_references(
    folder: Path,
    train: Dataset,
    test: Dataset | None,
    options: EvaluationOptions,
    decoder: Autoencoder | None = None,
) -> None:
    """The extractors and references of a data set, made once and kept in ``folder``.

    ``train`` and ``test`` carry labels where the data has them, whether or not the model is conditional. They are
    latents where there is a ``decoder``, and it is their pixels that are measured.
    """
    if (folder / "judge.json").is_file():
        return
    ready_made = options.extractor not in ("auto", *FITTED)
    classifier = options.extractor != "pca" and (options.extractor == "classifier" or train.labels is not None)
    if classifier and train.labels is None:
        raise UserError(
            f"extractor 'classifier' needs labels, and {train.name} has none: use --evaluation.extractor pca"
        )
    through = decoder.pixels if decoder else None
    seen: tuple[View, View | None] = View(train, through), View(test, through) if test is not None else None
    if classifier and options.check:
        _make(folder / "check", *seen, *_classifier(*seen, options.extractor_seed + 1, "b"))
    if ready_made:
        shape = seen[0].shape[1:]
        made = get_extractor(options.extractor, download=options.download, data_shape=shape)
        about = {"ready_made": options.extractor, "data_shape": list(shape)}
        return _make(folder, *seen, made, None, about)
    if classifier:
        return _make(folder, *seen, *_classifier(*seen, options.extractor_seed, "a"))
    _make(folder, *seen, PCAExtractor.fit(_some(seen[0], FIT_IMAGES)), None)  # type: ignore[arg-type]


def _some(view: View, count: int) -> View:
    """At most ``count`` samples of a set, evenly spaced."""
    step = -(-len(view) // max(1, count))
    return view if step == 1 else View(view.data.subset(np.arange(0, len(view), step)), view.through)


def _fitted_to(view: View) -> tuple[Tensor, Tensor]:
    """Images and labels that a classifier is trained on."""
    view = _some(view, FIT_VALUES // math.prod(view.shape[1:]))
    size = at_once(view.shape[1:])
    labels = view.data.labels
    assert labels is not None
    return torch.cat([view[first : first + size] for first in range(0, len(view), size)]), torch.from_numpy(labels)


def _classifier(train: View, test: View | None, seed: int, variant: str) -> tuple[ClassifierExtractor, float]:
    """A classifier and its accuracy on held-out data (on the training data where there are none)."""
    held_out = test if test is not None and test.data.labels is not None else train
    x, labels = _fitted_to(train)
    classes = train.data.num_classes
    return train_classifier(x, labels, *_fitted_to(held_out), num_classes=classes, seed=seed, variant=variant)


def _make(
    folder: Path,
    train: View,
    test: View | None,
    extractor: Extractor,
    accuracy: float | None,
    about: dict[str, Any] | None = None,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if isinstance(extractor, ClassifierExtractor | PCAExtractor):
        extractor.save(folder / FILES["extractor"])
    for key, view in (("train", train), ("test", test)):
        if view is not None:
            data, features = view.data, extract(extractor, view, at_once(view.shape[1:]))  # type: ignore[arg-type]
            save_statistics(
                folder / FILES[key],
                Moments.of(features),
                extractor_name=extractor.name,
                extractor_hash=extractor.hash,
                dataset_name=f"{data.name} ({key})",
                dataset_fingerprint=data.fingerprint,
                resize=extractor.resize,
                features=features,
                labels=data.labels,
            )
    write_json(folder / "judge.json", {"accuracy": accuracy, **(about or {})})
