"""What samples are compared with: the reference, its files, and the extractor that it was measured with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from sims.config import JSON, read_as
from sims.data.dataset import Dataset, at_once
from sims.data.stream import Stream, of_dataset
from sims.errors import UserError
from sims.files import digest, write_json
from sims.interop.latents import Autoencoder
from sims.metrics.extractors import ClassifierExtractor, Extractor, PCAExtractor, extract, load_extractor
from sims.metrics.frechet import Moments
from sims.metrics.identity import IdentityExtractor
from sims.metrics.pretrained import NAMES, get_extractor
from sims.results.common import ExtractorFacts
from sims.results.scores import ScoreFigures, ScoreRow
from sims.scoring.extractor_fitting import (
    FIT_BATCH,
    FIT_IMAGES,
    fit_classifier,
    fit_components,
    fit_quickly,
    fitted_kind,
)
from sims.scoring.features import FeatureSet, extract_features, is_whole
from sims.scoring.figures import Settings, figures
from sims.scoring.options import EvaluationOptions, ScoreOptions
from sims.scoring.statistics import Statistics, is_statistics, read_statistics, save_statistics
from sims.scoring.subjects import decoded, open_reference
from sims.training.classifier import require_classes

Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
AnyExtractor = Extractor | Callable[[torch.Tensor], torch.Tensor]
Given = str | Path | Dataset
STORED = ClassifierExtractor, PCAExtractor  # fitted to images, so kept in a file of their own
OWN_SCALE = (*STORED, IdentityExtractor)  # their features have the scale of the reference


@dataclass(frozen=True)
class Reference:
    """What samples are compared with, measured with one extractor, whose ``accuracy`` is known of a run's classifier.

    measured_with: another extractor that the reference was measured with, where comparing was forced.
    """

    extractor: Extractor
    train: FeatureSet
    held_out: FeatureSet | None = None
    notes: tuple[str, ...] = ()
    measured_with: str | None = None
    accuracy: float | None = None

    def facts(self) -> ExtractorFacts:
        """What it was measured with."""
        return ExtractorFacts(self.extractor.name, self.extractor.hash, self.extractor.num_features, self.accuracy)

    @functools.cached_property
    def scale(self) -> float:
        """The features' root mean variance over the reference."""
        return float(np.sqrt(np.trace(self.train.moments.covariance) / self.extractor.num_features)) or 1.0

    def figures(self, samples: FeatureSet, metrics: Sequence[str], how: Settings) -> ScoreFigures:
        """Figures of samples against this."""
        return figures(samples, self.train, self.held_out, metrics, how)

    def rows(
        self, found: ScoreFigures, samples: FeatureSet, floors: ScoreFigures | None = None, floor_samples: int = 0
    ) -> tuple[ScoreRow, ...]:
        """One self-describing row per figure of one draw; ``floors`` are those of real images."""
        forced: dict[str, JSON] = {"reference_extractor": self.measured_with} if self.measured_with else {}
        rows, distances = [], [samples.class_distance(part) if part else None for part in (self.train, self.held_out)]
        for name, figure in found.items():
            against = self.held_out if name.endswith("_held_out") and self.held_out else self.train
            space, floor = figure.space or self.extractor, (floors or {}).get(name)
            rows.append(
                ScoreRow(
                    metric=name,
                    value=figure.mean,
                    extractor_name=space.name,
                    extractor_hash=space.hash,
                    reference_name=against.name,
                    reference_hash=against.hash,
                    num_samples=figure.samples,
                    seeds=_range_of(samples.seeds),
                    resize=space.resize,
                    format=samples.format,
                    dtype=figure.space.dtype if figure.space else samples.dtype,
                    samples=samples.name,
                    samples_hash=samples.hash,
                    images=samples.images,
                    unreadable=samples.unreadable,
                    diverged=samples.diverged,
                    class_distance=distances[against is self.held_out],
                    low=figure.low,
                    high=figure.high,
                    interval=figure.interval,
                    floor=floor.mean if floor else None,
                    floor_samples=floor_samples if floor else 0,
                    num_reference=against.count,
                    settings=figure.settings | forced,
                )
            )
        return tuple(rows)

    def save(self, file: Path) -> None:
        """Write the statistics of the train part, and beside them the extractor where it was fitted to images."""
        if file.suffix != ".safetensors" or file.is_dir():
            raise UserError(f"option 'statistics' is {file}: give a file that ends in .safetensors")
        if isinstance(self.extractor, STORED):
            self.extractor.save(extractor_file(file))
        save_statistics(file, self.train, self.extractor)


def _range_of(seeds: np.ndarray | None) -> tuple[int, int]:
    """The half-open range of seeds that follow one another; (0, 0) for others."""
    if seeds is None:
        return (0, 0)
    first, last = int(seeds.min()), int(seeds.max()) + 1
    return (first, last) if last - first == len(seeds) else (0, 0)


# -- the ``references`` folder of a run --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measure:
    """An extractor that a run measures with: a ready one by its ``name``, or a ``kind`` that is fitted to the data."""

    name: str
    kind: str | None
    ready: Extractor | None

    @classmethod
    def of(cls, name: str, labels: object, data: str, shape: tuple[int, ...], download: bool) -> _Measure:
        kind = fitted_kind(name, labels, data)
        return cls(name, kind, get_extractor(name, download=download, data_shape=shape) if kind is None else None)


def check_of(options: EvaluationOptions, labels: object) -> str | None:
    """The second extractor of data with these labels, by its name; None where nothing is scored a second time."""
    name = options.check_extractor
    if not options.check or (name == "auto" and (labels is None or options.extractor == "pca")):
        return None
    if name == "classifier" and labels is None:
        raise UserError(
            "option 'check_extractor' is classifier, which needs labels, and the data have none: leave it at auto, or "
            "give a ready-made one such as efficientnet-lite0"
        )
    return "classifier" if name == "auto" else name


def _begun(
    train: Dataset, test: Dataset | None, options: EvaluationOptions, decoder: Autoencoder | None
) -> tuple[Stream, Stream | None, list[_Measure]]:
    """What is seen of training and held-out data; the extractor that chooses, and the second one where there is one."""
    streams = [of_dataset(data) if data is not None else None for data in (train, test)]
    if decoder:
        streams = [decoded(stream, decoder) if stream else None for stream in streams]
    seen, held_out = streams
    assert seen is not None
    for stream, what in ((seen, "training"), (held_out, "held-out")):
        if stream is not None and stream.count < 2:
            raise UserError(f"{stream.name} has a single {what} image, and scores need two: give more of them")
    names = [options.extractor, *filter(None, [check_of(options, train.labels)])]
    shape = tuple(seen.data_shape)
    measures = [_Measure.of(name, train.labels, train.name, shape, options.download) for name in names]
    if train.labels is not None and any(measure.kind == "classifier" for measure in measures):
        require_classes(train.labels, "training")
        if held_out is not None and held_out.labels is not None:
            require_classes(held_out.labels, "test")
    return seen, held_out, measures


def make_references(
    folder: Path,
    train: Dataset,
    test: Dataset | None,
    options: EvaluationOptions,
    decoder: Autoencoder | None = None,
    progress: Progress = lambda what, total: nullcontext(lambda done: None),
) -> None:
    """The extractors and references of a run's data, made once and kept in ``folder`` (and ``folder/check``).

    ``train`` and ``test`` carry labels where the data has them, whether or not the model is conditional. They are
    latents where there is a ``decoder``, and it is their pixels that are measured. ``progress`` shows how far it is.
    """
    if (folder / "judge.json").is_file():
        return
    seen, held_out, measures = _begun(train, test, options, decoder)
    judged = held_out if held_out is not None and held_out.labels is not None else seen

    def make(place: Path, extractor: Extractor, about: dict[str, JSON]) -> None:
        place.mkdir(parents=True, exist_ok=True)
        if isinstance(extractor, STORED):
            extractor.save(place / "extractor.safetensors")
        for name, stream, data in (("train", seen, train), ("test", held_out, test)):
            if stream is not None and data is not None:
                with progress(f"{extractor.name}: {data.name} ({name})", stream.count) as advance:
                    features = _features(extractor, stream, advance)
                named = f"{data.name} ({name})"
                found = FeatureSet(named, data.fingerprint, Moments.of(features), features, labels=data.labels)
                save_statistics(place / f"{name}.safetensors", found, extractor)
        write_json(place / "judge.json", about)

    for number, measure in reversed([*enumerate(measures)]):  # what chooses is written last: then all is there
        place = folder / "check" if number else folder
        if measure.ready is not None:
            shape: list[JSON] = list(seen.data_shape)
            make(place, measure.ready, {"accuracy": None, "ready_made": measure.name, "data_shape": shape})
        elif measure.kind == "classifier":
            seed, variant = options.extractor_seed + number, "ab"[number]
            made, accuracy = fit_classifier(seen, judged, seed=seed, variant=variant)
            make(place, made, {"accuracy": accuracy})
        else:
            make(place, fit_components(seen, FIT_IMAGES), {"accuracy": None})


def try_references(
    train: Dataset, test: Dataset | None, options: EvaluationOptions, decoder: Autoencoder | None = None
) -> None:
    """UserError for an extractor that ``make_references`` could not use: features of a few images are made."""
    try:
        seen, _, measures = _begun(train, test, replace(options, download=False), decoder)
    except UserError:
        if options.download:  # what is missing here is fetched by the job
            return
        raise
    for ready in filter(None, (measure.ready for measure in measures)):
        extract(ready, seen.read(range(min(2, seen.count))).x)


def _features(extractor: Extractor, stream: Stream, advance: Callable[[int], None]) -> np.ndarray:
    """Features (N, D) of a stream, as many images at a time as are looked at together."""
    size, found = at_once(stream.data_shape), []
    for first in range(0, stream.count, size):
        part = range(first, min(first + size, stream.count))
        found.append(extract(extractor, stream.read(part).x, size))
        advance(len(part))
    return np.concatenate(found)


@dataclass(frozen=True)
class JudgeFacts:
    """``judge.json``: how well a classifier does on held-out images, or which ready-made extractor measured."""

    accuracy: float | None
    ready_made: str | None = None
    data_shape: tuple[int, ...] = ()


def read_references(folder: Path, download: bool = False) -> Reference:
    """The extractor of a ``references`` folder (its own, or the ready-made one that it names) and what it measured.

    ``measured_with`` says where the ready-made one that is installed is another now.
    """
    about = read_as(folder / "judge.json", JudgeFacts)
    if about.ready_made is not None:
        extractor: Extractor = get_extractor(about.ready_made, download=download, data_shape=about.data_shape)
    else:
        extractor = load_extractor(folder / "extractor.safetensors")
    train, test = (folder / f"{name}.safetensors" for name in ("train", "test"))
    saved = read_statistics(train)
    held_out = read_statistics(test).features if test.is_file() else None
    other = None if saved.measured_with(extractor) else saved.extractor
    return Reference(extractor, saved.features, held_out, measured_with=other, accuracy=about.accuracy)


# -- the reference of `sims evaluate` ----------------------------------------------------------------------------------


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


def extractor_file(statistics: Path) -> Path:
    """Where the extractor lies that was fitted to the images of a statistics file."""
    return statistics.with_suffix(".extractor.safetensors")


def measure_reference(bench: Bench, given: Given, held_out: Given | None) -> Reference:
    """Read or measure the reference; UserError where it was measured with another extractor, unless forced."""
    if not isinstance(given, Dataset):
        path = Path(given)
        for folder in (path, path / "references"):
            if (folder / "judge.json").is_file():
                if bench.options.extractor != "auto" or bench.given is not None:
                    raise UserError(
                        f"{folder} was measured with its own extractor: leave option 'extractor' at auto, or give the "
                        "images instead"
                    )
                return _checked(bench, read_references(folder, bench.options.download), held_out)
        if is_statistics(path):
            found = read_statistics(path, getattr(bench.given, "name", bench.options.extractor))
            extractor = _matching(bench, found, extractor_file(path))
            other = None if found.measured_with(extractor) else found.extractor
            return _checked(bench, Reference(extractor, found.features, measured_with=other), held_out)
    train, own = open_reference(given, bench.options)
    aside = open_reference(held_out, bench.options)[0] if held_out is not None else own
    extractor = _extractor(bench, train)
    sets = [bench.features(part, extractor, "reference") for part in (train, aside) if part is not None]
    return Reference(extractor, sets[0], sets[1] if len(sets) > 1 else None)


def _checked(bench: Bench, found: Reference, held_out: Given | None) -> Reference:
    """A reference that was read, with the held-out images given; UserError where its extractor is another."""
    notes: tuple[str, ...] = ()
    if found.measured_with:
        text = (
            f"the reference {found.train.name} was measured with {found.measured_with}, "
            f"the samples with {found.extractor.name} ({found.extractor.hash})"
        )
        if not bench.options.force:
            raise UserError(f"{text}: give the extractor of the reference, or compare all the same with option 'force'")
        notes = (f"FORCED: {text}",)
    if found.train.kept is None:
        notes += ("the reference holds moments only: figures that need its features are left out",)
    if held_out is not None:
        opened = open_reference(held_out, bench.options)[0]
        found = replace(found, held_out=bench.features(opened, found.extractor, "held-out images"))
    return replace(found, notes=notes)


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
            "as option 'extractor'"
        )
    return _ready(bench, name, shape)


def _extractor(bench: Bench, train: Stream) -> Extractor:
    """The extractor asked for, trained or fitted where need be."""
    name, shape = bench.options.extractor, tuple(train.data_shape)
    if bench.given is not None:
        return _ready(bench, bench.given, shape)
    if len(shape) != 3:
        if name not in ("auto", "points"):
            raise UserError(f"{train.name} holds points of shape {shape}: leave option 'extractor' at auto")
        return IdentityExtractor(shape)
    kind = fitted_kind(name, train.labels, train.name)
    return _fitted(bench, kind, train) if kind else _ready(bench, name, shape)


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
    parts = [range(first, min(first + FIT_BATCH, train.count)) for first in range(0, train.count, FIT_BATCH)]
    labels = None if train.labels is None else digest(train.labels.tobytes())
    key = digest(kind, [train.digest(part) for part in parts], labels, train.num_classes)[:16]
    file = bench.cache / "extractors" / f"{kind}-{key}.safetensors"
    there, skip = is_whole(file), bench.options.skip_unreadable
    bench.accelerator.wait_for_everyone()
    if not there and bench.accelerator.is_main_process:
        if kind == "pca":
            fit_components(train, skip_unreadable=skip).save(file)
        else:
            with bench.progress("train the classifier of the features", train.count):
                fit_quickly(train, skip_unreadable=skip).save(file)
    bench.accelerator.wait_for_everyone()
    return load_extractor(file)
