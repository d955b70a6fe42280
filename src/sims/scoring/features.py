"""Extract: a stream of samples to features, part by part, kept on disk under what they were made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import safe_open
from torch import Tensor

from sims.config import JSON
from sims.data.stream import UNCHANGED, Stream
from sims.errors import UserError
from sims.files import digest, remove_leftovers
from sims.metrics.accumulate import MomentAccumulator, Reservoir
from sims.metrics.extractors import ClassifierExtractor, Extractor
from sims.metrics.frechet import Moments
from sims.metrics.per_class import class_distance
from sims.metrics.saved import read_tensors, write_tensors
from sims.processes import agree
from sims.results.scores import Space

Array = np.ndarray
PART = 1024  # samples whose features share a file
NAMED = 3  # unreadable pictures named in a message


@dataclass(frozen=True)
class Neighbours:
    """Distances (n,) of a set's samples to the nearest training sample, in model space."""

    distances: Array
    space: Space


@dataclass(frozen=True)
class FeatureSet:
    """The features of one set of samples.

    moments       of all of them
    kept          (k, D) float32, a uniform subset of bounded size, and its positions (k,) in the set; None where only
                  moments are known
    files         every feature (and every class probability, where there are any), in order, for what needs a pass over
                  all of them
    labels        (k,) classes of what is kept, as the samples come with them; predicted (k,), as a classifier sees them
    images        what was done to the images on their way to the extractor, in words
    hash          identifies the samples, not the extractor; data_shape is that of one of them, () where not known
    order         rows of what is kept, in the order in which figures of pairs take them; None: a random subset
    diverged      samples with values that were not finite, and that count as bad samples
    fidelity      (k,) how well each shows what its prompt asks for, NaN = unknown; ``measured_as`` names the figure
    """

    name: str
    hash: str
    moments: Moments
    kept: Array | None = None
    positions: Array | None = None
    labels: Array | None = None
    predicted: Array | None = None
    seeds: Array | None = None
    has_probabilities: bool = False
    files: tuple[Path, ...] = ()
    format: str = "unknown"
    dtype: str = "unknown"
    images: str = UNCHANGED
    unreadable: int = 0
    class_names: tuple[str, ...] = ()
    data_shape: tuple[int, ...] = ()
    order: Array | None = None
    neighbours: Neighbours | None = None
    diverged: int = 0
    fidelity: Array | None = None
    measured_as: str = ""
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        """The number of samples; 0 where a foreign statistics file does not say."""
        return self.moments.count

    @property
    def classes(self) -> Array | None:
        """The classes (k,) that samples were meant to have, else those that a classifier recognizes."""
        return self.predicted if self.labels is None else self.labels

    def class_counts(self, other: FeatureSet) -> tuple[Array, Array] | None:
        """The numbers (K,) of each class here and in another set; None where labels lack or are of another kind."""
        if self.labels is None or other.labels is None:
            return None
        if self.class_names and other.class_names and self.class_names != other.class_names:
            return None
        found = [labels[labels >= 0] for labels in (self.labels, other.labels)]
        most = 1 + max((int(labels.max()) for labels in found if len(labels)), default=0)
        counts = [np.bincount(labels, minlength=max(most, len(self.class_names))) for labels in found]
        return (counts[0], counts[1]) if all(map(len, found)) else None

    def class_distance(self, other: FeatureSet) -> float | None:
        """Total variation distance between the classes' shares of two sets; None as for ``class_counts``."""
        counts = self.class_counts(other)
        return None if counts is None else class_distance(*counts)

    def require_features(self) -> Array:
        """The features (k, D) that were kept; UserError where only moments are known."""
        if self.kept is None:
            raise UserError(f"{self.name} holds moments only: give the samples themselves")
        return self.kept

    def parts(self) -> Iterator[Array]:
        """All features (n, D) in order, a file at a time; what is kept, where there are no files."""
        if not self.files:
            yield self.require_features()
        yield from self._column("features")

    def probabilities(self) -> Iterator[Array]:
        """All class probabilities (n, K) in order, a file at a time; nothing where there are none."""
        if self.has_probabilities:
            yield from self._column("probabilities")

    def _column(self, name: str) -> Iterator[Array]:
        for file in self.files:
            with safe_open(str(file), framework="np") as found:
                if name in found.keys():  # noqa: SIM118 (no mapping)
                    yield found.get_tensor(name)


def extract_features(
    stream: Stream,
    extractor: Extractor,
    cache: Path,
    accelerator: Accelerator,
    *,
    batch_size: int = 100,
    keep: int = 10_000,
    with_probabilities: bool = False,
    skip_unreadable: bool = False,
    advance: Callable[[int], None] = lambda count: None,
) -> FeatureSet:
    """Features of all samples, shared out over the processes; parts that are in ``cache`` are not computed again.

    A part's file is named by a hash of the samples' content and the extractor, so the result does not depend on the
    number of processes or on an interruption. Errors: UserError for fewer than 2 samples, for features that are not
    finite, and for unreadable pictures, named and counted, unless ``skip_unreadable``.
    """
    ranges = [range(first, min(first + PART, stream.count)) for first in range(0, stream.count, PART)]
    folder = cache / "features" / f"{extractor.name.replace('/', '-').replace(':', '-')[:40]}-{extractor.hash}"
    with_probabilities = with_probabilities and hasattr(extractor, "probabilities")
    work = _Work(stream, extractor, folder, accelerator.device, batch_size, with_probabilities)
    work.check()
    keys = [stream.digest(part) for part in ranges]
    files = [work.file(key) for key in keys]
    missing = agree([index for index, file in enumerate(files) if not is_whole(file)])
    if accelerator.is_main_process:
        remove_leftovers(folder)
    accelerator.wait_for_everyone()  # before any process writes what another would find
    advance(stream.count - sum(len(ranges[index]) for index in missing))
    for index in missing[accelerator.process_index :: accelerator.num_processes]:
        work.make(ranges[index], files[index], lambda count: advance(count * accelerator.num_processes))
    accelerator.wait_for_everyone()
    return _collect(stream, ranges, files, digest(*keys)[:16], keep, skip_unreadable, work.images)


def is_whole(file: Path) -> bool:
    """Whether a file of features is there and as it was written; what lies in a cache is made again if not."""
    try:
        return bool(read_tensors(file)[0])
    except UserError:
        return False


@dataclass
class _Work:
    """How one part becomes one file."""

    stream: Stream
    extractor: Extractor
    folder: Path
    device: torch.device
    batch_size: int
    probabilities: bool

    @property
    def converts(self) -> bool:
        """Whether grey images are repeated to the three channels that the extractor wants."""
        shape = self.stream.data_shape
        return self.extractor.channels == 3 and len(shape) == 3 and shape[0] == 1

    @property
    def images(self) -> str:
        done = (self.stream.images, "grey repeated to RGB" if self.converts else UNCHANGED)
        return ", ".join(words for words in done if words != UNCHANGED) or UNCHANGED

    def check(self) -> None:
        """UserError where the extractor cannot take these images."""
        e, shape = self.extractor, tuple(self.stream.data_shape)
        if e.channels is not None and (len(shape) != 3 or shape[0] not in (1, e.channels)):
            raise UserError(
                f"{self.stream.name} has samples of shape {shape}, and {e.name} takes images of "
                f"{e.channels} channels (grey ones are converted): convert them, or choose another extractor"
            )
        wanted = tuple(getattr(e, "data_shape", shape))  # of one that was fitted to images of one shape
        if shape != wanted:
            raise UserError(
                f"{self.stream.name} has samples of shape {shape}, and the extractor {e.name} is made for {wanted}: "
                "give samples and a reference of one shape, or the options source.size and source.grayscale"
            )

    def file(self, key: str) -> Path:
        return self.folder / f"{digest(key, self.probabilities, self.converts)[:24]}.safetensors"

    def make(self, part: range, file: Path, advance: Callable[[int], None]) -> None:
        """Read, extract and write one part, reading the next batch while one is computed."""
        size = self.stream.at_once or self.batch_size
        batches = [part[first : first + size] for first in range(0, len(part), size)]
        found: dict[str, list[Tensor]] = {"features": [torch.empty(0, self.extractor.num_features)], "positions": []}
        unreadable: list[tuple[int, str]] = []
        diverged = 0
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self.stream.read, batches[0])
            for index, numbers in enumerate(batches):
                batch = coming.result()
                if index + 1 < len(batches):
                    coming = pool.submit(self.stream.read, batches[index + 1])
                found["positions"].append(torch.from_numpy(batch.positions - part.start))
                unreadable += [(position - part.start, reason) for position, reason in batch.unreadable]
                diverged += batch.diverged
                if batch.labels is not None:
                    found.setdefault("labels", []).append(batch.labels.long().cpu())
                for first in range(0, len(batch.x), self.batch_size):
                    rows = slice(first, first + self.batch_size)
                    for name, values in self._features(batch.x[rows], batch.positions[rows]).items():
                        found.setdefault(name, []).append(values)
                advance(len(numbers))
        tensors = {name: torch.cat(values) for name, values in found.items()}
        named: list[JSON] = [list(pair) for pair in unreadable]
        write_tensors(file, tensors, {"kind": "features", "unreadable": named, "diverged": diverged})

    @torch.no_grad()
    def _features(self, x: Tensor, positions: Array) -> dict[str, Tensor]:
        x = x.to(self.device)
        x = x.expand(-1, 3, -1, -1) if self.converts else x
        features = self.extractor(x).float().cpu()
        bad = np.flatnonzero(~features.isfinite().all(dim=1).numpy())
        if len(bad):
            first = self.stream.names[positions[bad[0]]] if self.stream.names else f"number {positions[bad[0]]}"
            raise UserError(
                f"{len(bad)} of {len(features)} samples of {self.stream.name} (first: {first}) have features of "
                f"{self.extractor.name} that are NaN or infinite: check these samples and the extractor"
            )
        result = {"features": features.contiguous()}
        if isinstance(self.extractor, ClassifierExtractor):
            result["predicted"] = torch.from_numpy(self.extractor.predict(x))
        if self.probabilities:
            result["probabilities"] = self._probabilities(x, features).float().cpu().contiguous()
        return result

    def _probabilities(self, x: Tensor, features: Tensor) -> Tensor:
        """From the features where the extractor shows its last layer, else by a second pass."""
        if hasattr(self.extractor, "probabilities_of"):
            with suppress(UserError):
                return self.extractor.probabilities_of(features)
        return self.extractor.probabilities(x)  # type: ignore[attr-defined]


def _collect(
    stream: Stream, ranges: list[range], files: list[Path], key: str, keep: int, skip: bool, images: str
) -> FeatureSet:
    """One pass over the files: moments of all, a subset of bounded size."""
    accumulator, reservoir = None, Reservoir(keep)
    unreadable: list[tuple[int, str]] = []
    probable, diverged = False, 0
    columns: dict[str, list[Array]] = {"positions": [], "labels": [], "predicted": []}
    for part, file in zip(ranges, files):
        tensors, header = read_tensors(file)
        unreadable += [(position + part.start, reason) for position, reason in header["unreadable"]]
        diverged += header.get("diverged", 0)  # not in a cache of earlier versions, which kept no such samples
        features = tensors["features"]
        accumulator = accumulator or MomentAccumulator(features.shape[1])
        accumulator.update(features)
        tensors["positions"] += part.start
        if len(features):
            reservoir.update(tensors["positions"].numpy(), features)
            probable |= "probabilities" in tensors
            for name in columns.keys() & tensors.keys():
                columns[name].append(tensors[name].numpy())
    if unreadable and not skip:
        raise UserError(unreadable_pictures(stream, unreadable))
    assert accumulator is not None
    if accumulator.count < 2:
        raise UserError(f"{stream.name} has {accumulator.count} sample(s): at least 2 are needed, thousands are useful")
    found = {name: np.concatenate(values) for name, values in columns.items() if values}
    positions = reservoir.indices
    rows = np.searchsorted(found["positions"], positions)  # of the columns
    labels = found["labels"][rows] if "labels" in found else None
    return FeatureSet(
        stream.name,
        key,
        accumulator.moments(),
        reservoir.rows,
        positions,
        labels if stream.labels is None else stream.labels[positions],
        found["predicted"][rows] if "predicted" in found else None,
        stream.seeds,
        probable,
        tuple(files),
        stream.format,
        stream.dtype,
        images,
        len(unreadable),
        stream.class_names,
        tuple(stream.data_shape),
        notes=stream.notes,
        diverged=diverged,
    )


def unreadable_pictures(stream: Stream, found: Sequence[tuple[int, str]]) -> str:
    """The sentence about pictures of a stream that cannot be read."""
    named = "; ".join(f"{stream.names[position]} ({reason})" for position, reason in found[:NAMED])
    more = f" and {len(found) - NAMED} more" if len(found) > NAMED else ""
    return (
        f"{len(found)} of {stream.count:,} pictures in {stream.name} cannot be read: {named}{more}: "
        f"replace or remove them, or score the other {stream.count - len(found):,} with option 'skip_unreadable'"
    )
