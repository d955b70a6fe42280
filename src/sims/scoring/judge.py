"""Judge: measures the samples of a run in memory, with the figures, references and rows of `sims evaluate`."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sims.config import JSON
from sims.data.dataset import Dataset, View, at_once
from sims.errors import UserError
from sims.files import digest
from sims.interop.latents import Autoencoder
from sims.metrics.copies import nearest_distances
from sims.metrics.extractors import ClassifierExtractor, Extractor, extract
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.per_class import class_agreement, class_shares, per_class_table
from sims.metrics.saved import read_tensors, write_tensors
from sims.results.common import ClassFigures, ExtractorFacts
from sims.results.scores import ScoreRow, Space
from sims.scoring.features import FeatureSet, Neighbours
from sims.scoring.fidelity import Asked
from sims.scoring.figures import K_COVER, K_PAIR, Settings, run_metrics
from sims.scoring.options import EvaluationOptions
from sims.scoring.reference import Reference, read_references

Array = np.ndarray
MODEL_SPACE = Space("model space", "unknown", "as the data")  # where the data that defines it is not at hand
_TEST_PART = 16_384  # held-out images whose nearest neighbours are sought at once


@dataclass(frozen=True)
class Draw:
    """What is kept of one draw of samples: features (n, D), distance to the nearest training image (n,), classes.

    ``fidelity`` (n,) says how well each shows what its prompt asks for, by the first extractor, and by the second.

    ``checked`` are the features of the second extractor, which no choice was made with; ``diverged`` samples had values
    that were not finite; ``rows`` are its figures, where ``Judge.scored`` made them.
    """

    features: Array
    nearest: Array
    checked: Array | None = None
    labels: Array | None = None
    predicted: Array | None = None
    fidelity: Array | None = None
    check_fidelity: Array | None = None
    diverged: int = 0
    rows: tuple[ScoreRow, ...] = ()

    @property
    def scores(self) -> dict[str, float]:
        """Every figure's value."""
        return {row.metric: row.value for row in self.rows}

    def described(self, seeds: range, **about: JSON) -> list[dict[str, JSON]]:
        """One self-describing row per figure, with the seeds and more ``about`` the samples: for ``metrics.jsonl``."""
        return [{**about, **replace(row, seeds=(seeds.start, seeds.stop)).to_json()} for row in self.rows]

    def save(self, file: Path) -> None:
        """Write it to one safetensors file."""
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        rows: list[JSON] = [row.to_json() for row in self.rows]
        write_tensors(file, arrays, {"kind": "draw", "diverged": self.diverged, "rows": rows})

    @classmethod
    def load(cls, file: Path) -> Draw:
        """Read what ``save`` wrote."""
        tensors, header = read_tensors(file)
        arrays = {name: value.numpy() for name, value in tensors.items()}
        rows = tuple(ScoreRow.from_json(row) for row in header["rows"])
        return cls(**arrays, diverged=header["diverged"], rows=rows)


@dataclass(frozen=True)
class Judge:
    """A reference of real data, with its images ``train_x`` where nearest neighbours are to be sought among them.

    Figures of pairs look at ``manifold_samples`` samples and images. Of a latent model, features are those of the
    pixels that ``decoder`` makes of the latents (where it is known), and nearest neighbours are sought among latents.
    ``second`` measures in other features, which no choice was made with. ``asked`` says what the labels of a
    text-to-image model ask for.
    """

    reference: Reference
    train_x: View | Tensor | None = None
    manifold_samples: int = 2_000
    device: torch.device | str = "cpu"
    second: Judge | None = None
    decoder: Autoencoder | None = None
    space: Space = MODEL_SPACE
    asked: Asked | None = None

    def for_prompts(self, asked: Asked | None) -> Judge:
        """The judge that looks at what prompts ask for, too: the second one as far as it is a classifier."""
        if asked is None or self.second is None:
            return replace(self, asked=asked)
        seen = isinstance(self.second.extractor, ClassifierExtractor) and asked.classes is not None
        second = replace(self.second, asked=replace(asked, embedded=None) if seen else None)
        return replace(self, asked=asked, second=second)

    @property
    def extractor(self) -> Extractor:
        return self.reference.extractor

    @property
    def train(self) -> FeatureSet:
        return self.reference.train

    @property
    def test(self) -> FeatureSet | None:
        return self.reference.held_out

    @property
    def key(self) -> list[JSON]:
        """All that the scores of given samples depend on."""
        near = self.test.neighbours if self.test else None
        found: list[JSON] = [self.extractor.hash, self.train.hash, self.test.hash if self.test else None]
        found += [digest(near.distances.tobytes()) if near else None, self.decoder.hash if self.decoder else None]
        found += [*run_metrics(), K_PAIR, K_COVER, self.manifold_samples]
        return [*found, self.second.key if self.second else None, *([self.asked.key] if self.asked else [])]

    def about(self) -> ExtractorFacts:
        """What it measures with."""
        return self.reference.facts()

    def about_second(self) -> ExtractorFacts | None:
        """What it measures a second time with."""
        return self.second.about() if self.second else None

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
        features = self.train.kept
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

    def measure(self, x: Tensor, labels: Tensor | None = None, diverged: int = 0) -> Draw:
        """All that the scores need of samples x (n, *data_shape), finite and rounded as the data are, in model space.

        ``diverged`` of them had values that were not finite; they are bad samples like others.
        """
        near = np.zeros(0) if self.train_x is None else nearest_distances(x, self.train_x)  # type: ignore[arg-type]
        e, second = self.extractor, self.second
        features, checked, predicted, check_predicted = [], [], [], []
        for part in self._seen(x):
            features.append(extract(e, part))
            if second:
                checked.append(extract(second.extractor, part))
                if second.asked is not None and isinstance(second.extractor, ClassifierExtractor):
                    check_predicted.append(second.extractor.predict(part))
            if isinstance(e, ClassifierExtractor):
                predicted.append(e.predict(part))
        others = [np.concatenate(parts) if parts else None for parts in (checked, predicted, check_predicted)]
        told, seen = None if labels is None else labels.numpy(), np.concatenate(features)
        draw = Draw(seen, near, others[0], told, others[1], diverged=diverged)
        if self.asked is None or told is None:
            return draw
        check = None
        if second is not None and second.asked is not None:
            check = second.asked.fidelity(told, seen, others[2])
        fidelity = self.asked.fidelity(told, seen, others[1])
        return replace(draw, labels=self.asked.intended(told), fidelity=fidelity, check_fidelity=check)

    def only_features(self, x: Tensor, labels: Tensor | None = None) -> Draw:
        """Features alone, for a search; and where prompts ask for something, how well samples of ``labels`` show it."""
        features = self.features(x)
        if self.asked is None or labels is None:
            return Draw(features, np.zeros(0))
        predicted = None
        if isinstance(self.extractor, ClassifierExtractor) and self.asked.embedded is None:
            predicted = np.concatenate([self.extractor.predict(part) for part in self._seen(x)])
        return Draw(features, np.zeros(0), fidelity=self.asked.fidelity(labels.numpy(), features, predicted))

    def scored(self, draw: Draw) -> Draw:
        """A draw with all figures; those that need held-out data are left out without it.

        Figures on the second extractor have the prefix ``check_``.
        """
        rows = self._rows(draw.features, draw)
        if self.second is not None and draw.checked is not None:
            others = self.second._rows(draw.checked, replace(draw, nearest=np.zeros(0), fidelity=draw.check_fidelity))
            rows += tuple(replace(row, metric=f"check_{row.metric}") for row in others)
        return replace(draw, rows=rows)

    def _rows(self, features: Array, draw: Draw) -> tuple[ScoreRow, ...]:
        samples = FeatureSet(
            "",
            "",
            Moments.of(features),
            features,
            order=np.arange(len(features)),
            neighbours=Neighbours(draw.nearest, self.space) if len(draw.nearest) else None,
            format="memory",
            dtype=f"decoded by autoencoder {self.decoder.hash}" if self.decoder else self.space.dtype,
            diverged=draw.diverged,
            labels=draw.labels,
            fidelity=draw.fidelity,
            measured_as="" if self.asked is None else self.asked.figure,
        )
        how = Settings(self.manifold_samples, feature_scale=self.reference.scale, limits=False)
        return self.reference.rows(self.reference.figures(samples, run_metrics(), how), samples)

    def per_class(self, draws: Sequence[Draw], names: Sequence[str]) -> tuple[ClassFigures, ...]:
        """Shares, agreement of intended and recognized class, and FD per class; () without a classifier."""
        if draws[0].predicted is None:
            return ()
        predicted = np.concatenate([d.predicted for d in draws if d.predicted is not None])
        shares = class_shares(predicted, len(names))
        agreement: Sequence[float | None] = [None] * len(names)
        distances: Sequence[float | None] = [None] * len(names)
        if draws[0].labels is not None:
            labels = np.concatenate([d.labels for d in draws if d.labels is not None])
            agreement = class_agreement(predicted, labels, len(names))
            if self.train.kept is not None and self.train.labels is not None:
                features = np.concatenate([d.features for d in draws])
                table = per_class_table(features, labels, self.train.kept, self.train.labels, len(names), k=None)
                distances = [row.frechet for row in table]
        return tuple(map(ClassFigures, names, shares.tolist(), agreement, distances))


def load_judge(
    folder: Path,
    train: Dataset | None,
    test: Dataset | None,
    options: EvaluationOptions,
    device: torch.device | str = "cpu",
    decoder: Autoencoder | None = None,
) -> Judge:
    """The judge with the extractors and references that ``make_references`` left in ``folder``.

    The statistics suffice to choose and to judge; nearest neighbours need the images ``train`` and ``test`` as well.
    Samples, and these, are latents where there is a ``decoder``.
    """
    if not (folder / "judge.json").is_file():
        raise UserError(f"no reference statistics at {folder}: give the 'references' folder of a run, or data.path")
    space = MODEL_SPACE
    if train is not None:
        space = Space(space.name, digest(train.codec.identity)[:16], train.codec.dtype)
    judge = replace(_judge(folder, options, device), decoder=decoder, space=space)
    if options.check and (folder / "check").is_dir():
        second = replace(_judge(folder / "check", options, device), decoder=decoder, space=space)
        judge = replace(judge, second=second)
    if train is None:
        return judge
    train_x = View(train)
    judge = replace(judge, train_x=train_x)
    if test is None or judge.test is None:
        return judge
    parts = [View(test)[first : first + _TEST_PART] for first in range(0, len(test), _TEST_PART)]
    near = np.concatenate([nearest_distances(part, train_x) for part in parts])  # type: ignore[arg-type]
    held_out = replace(judge.test, neighbours=Neighbours(near, space))
    return replace(judge, reference=replace(judge.reference, held_out=held_out))


def _judge(folder: Path, options: EvaluationOptions, device: torch.device | str) -> Judge:
    reference = read_references(folder, options.download)
    if reference.measured_with:
        e = reference.extractor
        raise UserError(
            f"{folder} was measured with {reference.measured_with}, and what is installed as {e.name} is {e.hash}: "
            "restore the earlier weights, or measure anew"
        )

    def in_order(found: FeatureSet) -> FeatureSet:
        """Figures of pairs take its images in an order of chance: folders are often sorted by class."""
        order = None if found.kept is None else np.random.default_rng(0).permutation(len(found.kept))
        return replace(found, order=order)

    held_out = None if reference.held_out is None else in_order(reference.held_out)
    ordered = replace(reference, train=in_order(reference.train), held_out=held_out)
    return Judge(ordered, None, options.manifold_samples, device)
