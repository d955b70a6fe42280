"""What samples are compared with: the options, the extractor, and the reference measured with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from sims.config import nearest
from sims.data.dataset import Dataset
from sims.data.pictures import SourceOptions
from sims.data.stream import Stream
from sims.errors import UserError
from sims.files import digest
from sims.metrics.classifier import shrink
from sims.metrics.extractors import PCA_LARGEST, ClassifierExtractor, Extractor, PCAExtractor, load_extractor
from sims.metrics.identity import IdentityExtractor
from sims.metrics.pretrained import NAMES, get_extractor
from sims.metrics.statistics import save_statistics
from sims.scoring.features import FeatureSet, extract_features, is_whole, unreadable_pictures
from sims.scoring.figures import METRICS
from sims.scoring.judge import judge_extractor
from sims.scoring.subjects import Sampling, Statistics, is_statistics, open_reference, read_statistics
from sims.training.classifier import train_classifier

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
AnyExtractor = Extractor | Callable[[torch.Tensor], torch.Tensor]
FITTED = (ClassifierExtractor, PCAExtractor, IdentityExtractor)  # made for the reference's own shape
FIT_BATCH = 128  # images read at once to fit an extractor
FIT_VALUES = 1 << 29  # pixels that it is fitted to at most: 2 GiB


@dataclass(frozen=True)
class ScoreOptions:
    """How samples are scored."""

    extractor: str = "auto"
    """Features: inception, dinov2, clip, efficientnet-lite0, torchscript:PATH, classifier (trained on the reference's labels), pca, or the file of one of these two; auto: what the reference was measured with, else classifier where it has labels, else pca."""  # noqa: E501
    metrics: tuple[str, ...] = tuple(METRICS)
    """Groups of figures: fd, fd_infinity, kid, manifold (precision, recall, density, coverage), inception_score, two_sample, memorization, points."""  # noqa: E501
    draws: int | None = None
    """Independent draws: of a model 5 unless stated; of a set of samples 1, or disjoint parts of --samples each."""
    samples: int = 5_000
    """Samples per draw of a model."""
    limit: int | None = None
    """At most this many samples of a set, drawn with a fixed seed."""
    neighbours: int = 5_000
    """At most this many samples (and real images) where all pairs are looked at: KID, neighbours, memorization."""
    resamples: int = 20
    """Subsets from which the intervals of a single draw are made."""
    precision: str = "fp32"
    """Arithmetic of a ready-made extractor: fp32 or bf16 (part of its name: never mixed silently)."""
    download: bool = False
    """Allow fetching published weights (checked against their hash) into the cache."""
    skip_unreadable: bool = False
    """Score the other pictures where some cannot be read; every row says how many were left out."""
    vae: Path | None = None
    """Folder of the autoencoder that makes images of what a latent model samples; its own if it has one."""
    force: bool = False
    """Compare although the scores differ in what they were measured with."""
    seed: int = 0
    """Shifts the seeds that a model is sampled with."""
    batch_size: int = 100
    """Images per pass through the extractor."""
    sample_batch: int = 500
    """Samples that a model computes at once."""
    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        for name in self.metrics or ("",):
            if name not in METRICS:
                raise UserError(f"unknown metric {name!r}{nearest(name, METRICS)}")
        least_of = {"samples": 2, "neighbours": 10, "resamples": 2, "batch_size": 1, "sample_batch": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: at least {least} is needed")
        if self.draws is not None and self.draws < 1:
            raise UserError(f"draws is {self.draws}: at least 1 is needed (5 for useful intervals)")

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.draws, self.samples, self.seed, self.sample_batch, self.limit, self.source, self.vae)


@dataclass(frozen=True)
class Bench:
    """Where features are made: with these options and processes, kept in ``cache``; ``given`` is an extractor."""

    options: ScoreOptions
    cache: Path
    accelerator: Accelerator
    progress: Progress
    given: AnyExtractor | None = None

    def features(self, stream: Stream, extractor: Extractor, what: str, probabilities: bool = False) -> FeatureSet:
        """Features of all samples of a stream; ``what`` they are, for the progress bar."""
        options = self.options
        with self.progress(f"{what}: {stream.name}", stream.count) as advance:
            return extract_features(
                stream,
                extractor,
                self.cache,
                self.accelerator,
                batch_size=options.batch_size,
                keep=2 * options.neighbours,
                with_probabilities=probabilities,
                skip_unreadable=options.skip_unreadable,
                advance=advance,
            )


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, measured with one extractor.

    measured_with: another extractor that the reference was measured with, where comparing was forced.
    """

    extractor: Extractor
    train: FeatureSet
    held_out: FeatureSet | None
    notes: tuple[str, ...] = ()
    measured_with: str | None = None

    def save(self, file: Path) -> None:
        """Write the statistics of the train part, and beside them the extractor where it was fitted to images."""
        if file.suffix != ".safetensors" or file.is_dir():
            raise UserError(f"--statistics is {file}: give a file that ends in .safetensors")
        train, e = self.train, self.extractor
        if isinstance(e, ClassifierExtractor | PCAExtractor):
            e.save(extractor_file(file))
        save_statistics(
            file,
            train.moments,
            extractor_name=e.name,
            extractor_hash=e.hash,
            dataset_name=train.name,
            dataset_fingerprint=train.hash,
            resize=e.resize,
            features=train.kept,
            labels=train.labels,
            extra={"data_shape": " ".join(map(str, train.data_shape))},
        )


def extractor_file(statistics: Path) -> Path:
    """Where the extractor lies that was fitted to the images of a statistics file."""
    return statistics.with_suffix(".extractor.safetensors")


def measure_reference(bench: Bench, given: str | Path | Dataset, held_out: str | Path | Dataset | None) -> Reference:
    """Read or measure the reference; UserError where it was measured with another extractor, unless forced."""
    if not isinstance(given, Dataset):
        path = Path(given)
        for folder in (path, path / "references"):
            if (folder / "judge.json").is_file():
                return _of_run(bench, folder, held_out)
        if is_statistics(path):
            found = read_statistics(path, getattr(bench.given, "name", bench.options.extractor))
            return _of_statistics(bench, found, _matching(bench, found, extractor_file(path)), held_out)
    train, own = open_reference(given, bench.options.sampling)
    aside = open_reference(held_out, bench.options.sampling)[0] if held_out is not None else own
    extractor = _extractor(bench, train)
    sets = [bench.features(part, extractor, "reference") for part in (train, aside) if part is not None]
    return Reference(extractor, sets[0], sets[1] if len(sets) > 1 else None)


def _of_run(bench: Bench, folder: Path, held_out: str | Path | Dataset | None) -> Reference:
    """The ``references`` folder of a run: its extractor, training and held-out statistics."""
    if bench.options.extractor != "auto" or bench.given is not None:
        raise UserError(
            f"{folder} was measured with its own extractor: leave --extractor at auto, or give the images instead"
        )
    extractor, test = judge_extractor(folder, bench.options.download), folder / "test.safetensors"
    aside = read_statistics(test).features if held_out is None and test.is_file() else None
    return _of_statistics(bench, read_statistics(folder / "train.safetensors"), extractor, held_out, aside)


def _of_statistics(
    bench: Bench,
    found: Statistics,
    extractor: Extractor,
    held_out: str | Path | Dataset | None,
    aside: FeatureSet | None = None,
) -> Reference:
    notes: tuple[str, ...] = ()
    other: str | None = None
    if not found.measured_with(extractor):
        other = f"{found.extractor_name} ({found.extractor_hash or 'hash unknown'})"
        text = (
            f"the reference {found.features.name} was measured with {other}, "
            f"the samples with {extractor.name} ({extractor.hash})"
        )
        if not bench.options.force:
            raise UserError(f"{text}: give the extractor of the reference, or force it with --force")
        notes = (f"FORCED: {text}",)
    if found.features.kept is None:
        notes += ("the reference holds moments only: figures that need its features are left out",)
    if held_out is not None:
        opened = open_reference(held_out, bench.options.sampling)[0]
        aside = bench.features(opened, extractor, "held-out images")
    return Reference(extractor, found.features, aside, notes, other)


def _matching(bench: Bench, found: Statistics, beside: Path) -> Extractor:
    """The extractor asked for, else the one that statistics were measured with."""
    name, shape = bench.options.extractor, found.features.data_shape
    if bench.given is not None or name != "auto":
        return _ready(bench, bench.given or name, shape)
    name = found.extractor_name
    if name == "points" and shape:
        return IdentityExtractor(shape)
    if beside.is_file():
        return load_extractor(beside)
    if name.partition(":")[0] not in NAMES:
        raise UserError(
            f"the reference was measured with {name!r}, which is no ready-made extractor: give the file that holds it "
            "with --extractor"
        )
    return _ready(bench, name, shape)


def _extractor(bench: Bench, train: Stream) -> Extractor:
    """The extractor asked for, trained or fitted where need be."""
    name, shape = bench.options.extractor, tuple(train.data_shape)
    if bench.given is not None:
        return _ready(bench, bench.given, shape)
    if len(shape) != 3:
        if name not in ("auto", "points"):
            raise UserError(f"{train.name} holds points of shape {shape}: leave --extractor at auto")
        return IdentityExtractor(shape)
    if name == "auto":
        name = "classifier" if train.labels is not None else "pca"
    return _fitted(bench, name, train) if name in ("classifier", "pca") else _ready(bench, name, shape)


def _ready(bench: Bench, spec: str | AnyExtractor, shape: tuple[int, ...]) -> Extractor:
    """An extractor that need not be fitted.

    One that does not say how many channels it takes is tried with the reference's, and with RGB where these are grey.
    """
    if isinstance(spec, str) and spec.endswith(".safetensors"):
        return load_extractor(spec)
    stated = getattr(spec, "channels", None)
    shapes = [(stated, *shape[1:]) if stated and len(shape) == 3 else shape]
    if shape[:1] == (1,) and not stated:
        shapes.append((3, *shape[1:]))
    errors: list[Exception] = []
    for tried in shapes:
        how = {"precision": bench.options.precision, "download": bench.options.download, "data_shape": tried or None}
        try:
            found = get_extractor(spec, **how)  # type: ignore[arg-type]
        except (UserError, RuntimeError) as error:
            errors.append(error)
            continue
        if found is not spec and found.channels is None and len(tried) == 3:
            found.channels = tried[0]
        return found
    raise errors[0]


def _fitted(bench: Bench, kind: str, train: Stream) -> Extractor:
    """A small classifier trained on the reference's labels, or principal components; kept in the cache."""
    if kind == "classifier" and train.labels is None:
        raise UserError(f"extractor 'classifier' needs labels, and {train.name} has none: use --extractor pca")
    parts = [range(first, min(first + FIT_BATCH, train.count)) for first in range(0, train.count, FIT_BATCH)]
    labels = None if train.labels is None else digest(train.labels.tobytes())
    key = digest(kind, [train.digest(part) for part in parts], labels, train.num_classes)[:16]
    file = bench.cache / "extractors" / f"{kind}-{key}.safetensors"
    there = is_whole(file)
    bench.accelerator.wait_for_everyone()
    if not there and bench.accelerator.is_main_process:
        if kind == "pca":
            x, _ = _images(bench, train, lambda x: shrink(x, PCA_LARGEST))  # as the components see them
            pca = PCAExtractor.fit(x)
            PCAExtractor(tuple(train.data_shape), pca.mean, pca.components).save(file)
        else:
            with bench.progress("train the classifier of the features", train.count):
                x, y = _images(bench, train)
                assert y is not None
                found = train_classifier(x, y, x[:1], y[:1], num_classes=train.num_classes)[0]  # no accuracy is needed
                found.save(file)
    bench.accelerator.wait_for_everyone()
    return load_extractor(file)


def _images(
    bench: Bench, stream: Stream, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The images of a stream that can be read, and their labels; evenly spaced blocks of them where all are too many.

    UserError where some cannot be read, unless skipped.
    """
    size = reduce(torch.zeros(1, *stream.data_shape)).numel()
    blocks = [range(first, min(first + FIT_BATCH, stream.count)) for first in range(0, stream.count, FIT_BATCH)]
    most = max(1, FIT_VALUES // (FIT_BATCH * size))
    x, positions = [], []
    unreadable: list[tuple[int, str]] = []
    for block in blocks[:: -(-len(blocks) // most)]:
        part = stream.read(block)
        x.append(reduce(part.x))
        positions.append(part.positions)
        unreadable += part.unreadable
    if unreadable and not bench.options.skip_unreadable:
        raise UserError(unreadable_pictures(stream, unreadable))
    labels = None if stream.labels is None else torch.as_tensor(stream.labels[np.concatenate(positions)])
    return torch.cat(x), labels
