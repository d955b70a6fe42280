"""Statistics measured earlier: moments, perhaps with features, and what they were measured with."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sims.config import JSON, fitted
from sims.errors import UserError
from sims.metrics.extractors import Extractor
from sims.metrics.foreign import EXTRACTORS, checked_moments, read_foreign_statistics
from sims.metrics.frechet import Moments
from sims.metrics.saved import read_tensors, write_tensors
from sims.scoring.features import FeatureSet

FORMAT = 1


@dataclass(frozen=True)
class Statistics:
    """Moments (perhaps features) measured earlier, and the extractor they were measured with."""

    features: FeatureSet
    extractor_name: str
    extractor_hash: str | None  # None: a foreign file, which does not say

    @property
    def extractor(self) -> str:
        """What they were measured with, in words."""
        return f"{self.extractor_name} ({self.extractor_hash or 'hash unknown'})"

    def measured_with(self, extractor: Extractor) -> bool:
        """Whether this is the extractor, as far as the file says."""
        if self.extractor_hash is None:
            return self.extractor_name == extractor.name
        return self.extractor_hash == extractor.hash


@dataclass(frozen=True)
class _Header:
    """What counts of a statistics file's header."""

    count: int
    extractor_name: str
    extractor_hash: str
    dataset_name: str
    dataset_fingerprint: str
    extra: dict[str, str] = field(default_factory=dict)


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics rather than samples."""
    if path.suffix in (".safetensors", ".pkl"):
        return path.is_file()
    if path.suffix != ".npz" or not path.is_file() or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())


def read_statistics(path: Path, extractor: str = "auto") -> Statistics:
    """A statistics file of this project, of EDM (npz with mu and sigma) or of EDM2 (pkl; nothing in it is executed).

    The name of an extractor picks among those that a pkl has. UserError where a file of this project is missing,
    truncated, of another kind or newer.
    """
    if path.suffix != ".safetensors":
        metrics = [metric for metric, name in EXTRACTORS.items() if extractor.startswith(name)]
        found = read_foreign_statistics(path, metrics[0] if metrics else None)
        return Statistics(FeatureSet(path.name, found.hash, found.moments, format="statistics"), found.extractor, None)
    tensors, header = read_tensors(path)
    if header.get("kind") != "reference":
        raise UserError(f"{path} holds {header.get('kind')!r}: give samples, a model directory or statistics")
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has format {header.get('format')}; this version reads {FORMAT}: make it again.")
    about: _Header = fitted(header, _Header, str(path), rest=True)
    kept, labels = (tensors[name].numpy() if name in tensors else None for name in ("features", "labels"))
    mean, covariance = checked_moments(str(path), tensors["mean"].numpy(), tensors["covariance"].numpy())
    count = None if kept is None else len(kept)
    if (kept is not None and kept.shape[1:] != mean.shape) or (labels is not None and labels.shape != (count,)):
        raise UserError(f"{path} has features or labels of another shape than its mean: make it again")
    features = FeatureSet(
        about.dataset_name,
        about.dataset_fingerprint[:16],
        Moments(mean, covariance, about.count),
        kept,
        None if kept is None else np.arange(len(kept)),
        labels,
        format="statistics",
        data_shape=tuple(int(size) for size in about.extra.get("data_shape", "").split() if size.isdecimal()),
    )
    return Statistics(features, about.extractor_name, about.extractor_hash)


def save_statistics(path: Path, features: FeatureSet, extractor: Extractor) -> None:
    """Write moments, and features and labels where they were kept, to a safetensors file."""
    moments = features.moments
    arrays = {"mean": moments.mean, "covariance": moments.covariance}
    if features.kept is not None:
        arrays["features"] = np.asarray(features.kept, np.float32)
        if features.labels is not None:
            arrays["labels"] = np.asarray(features.labels, np.int64)
    header: dict[str, JSON] = {
        "kind": "reference",
        "format": FORMAT,
        "count": moments.count,
        "extractor_name": extractor.name,
        "extractor_hash": extractor.hash,
        "dataset_name": features.name,
        "dataset_fingerprint": features.hash,
        "resize": extractor.resize,
        "extra": {"data_shape": " ".join(map(str, features.data_shape))},
    }
    write_tensors(path, arrays, header)
