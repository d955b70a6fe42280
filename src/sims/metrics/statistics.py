"""Reference statistics: what samples are compared with, in one safetensors file with a JSON header."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sims.config import JSON
from sims.errors import UserError
from sims.files import write_atomic
from sims.metrics.arrays import Array
from sims.metrics.frechet import Moments

FORMAT = 1


@dataclass(frozen=True)
class SavedStatistics:
    """Moments of a data set's features, optionally the features themselves, and what they were measured with.

    features (N, D) float32 are needed for precision, recall and the kernel distance; labels (N,) int64 for figures per
    class. `dataset_fingerprint` identifies the images, `resize` says how they came to their size.
    """

    moments: Moments
    extractor_name: str
    extractor_hash: str
    dataset_name: str
    dataset_fingerprint: str
    resize: str = "none"
    features: Array | None = None
    labels: Array | None = None
    extra: dict[str, str | int | float] = field(default_factory=dict)

    def save(self, path: Path | str) -> None:
        """Write them atomically; UserError unless there is a label for each of the features."""
        arrays = {"mean": self.moments.mean, "covariance": self.moments.covariance}
        if self.features is not None:
            arrays["features"] = np.asarray(self.features, np.float32)
        if self.labels is not None:
            if self.features is None or len(self.labels) != len(self.features):
                raise UserError("Labels of reference features need the features, one label each.")
            arrays["labels"] = np.asarray(self.labels, np.int64)
        words = {name: getattr(self, name) for name in WORDS}
        header = {"kind": "reference", "format": FORMAT, "count": self.moments.count, **words, "extra": self.extra}
        write_tensors(Path(path), arrays, header)

    @classmethod
    def load(cls, path: Path | str) -> SavedStatistics:
        """Read what `save` wrote; UserError where the file is missing, truncated, of another kind or newer."""
        tensors, header = read_tensors(path)
        if header.get("kind") != "reference":
            raise UserError(f"{path} holds {header.get('kind')!r}: give samples, a model directory or statistics")
        if header.get("format") != FORMAT:
            raise UserError(f"{path} has format {header.get('format')}; this version reads {FORMAT}: make it again.")
        features, labels = (tensors[name].numpy() if name in tensors else None for name in ("features", "labels"))
        moments = Moments(tensors["mean"].numpy(), tensors["covariance"].numpy(), int(header["count"]))
        words = {name: header[name] for name in WORDS}
        return cls(moments, **words, features=features, labels=labels, extra=header["extra"])


WORDS = ("extractor_name", "extractor_hash", "dataset_name", "dataset_fingerprint", "resize")


def write_tensors(path: Path, arrays: Mapping[str, Array], header: Mapping[str, JSON]) -> None:
    """Write arrays and a JSON header to a safetensors file, atomically; ``read_tensors`` reads it."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
    write_atomic(path, save(tensors, metadata={"sims": json.dumps(header, sort_keys=True)}))


def read_tensors(path: Path | str) -> tuple[dict[str, Tensor], dict]:
    """The tensors and the JSON header of one of this package's safetensors files; UserError where it is damaged."""
    if not Path(path).is_file():
        raise UserError(f"{path} does not exist; make it first or give another path.")
    try:
        with safe_open(str(path), framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("sims", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}); make it again.") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} was not written by sims (no header); give the right file.")
    return tensors, header
