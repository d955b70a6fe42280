"""Reference statistics: what samples are compared with, in one safetensors file with a JSON header."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from sims.errors import UserError
from sims.files import digest, write_atomic
from sims.metrics.arrays import Array
from sims.metrics.frechet import Moments

FORMAT = 1


@dataclass(frozen=True)
class Reference:
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

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.dataset_name

    @property
    def hash(self) -> str:
        """16 hex digits that identify the moments, the extractor and the data set."""
        identity = [self.extractor_name, self.extractor_hash, self.dataset_name, self.dataset_fingerprint, self.resize]
        moments = (np.ascontiguousarray(self.moments.mean), np.ascontiguousarray(self.moments.covariance))
        return digest([*identity, self.moments.count], *(array.tobytes() for array in moments))[:16]

    def require_features(self) -> Array:
        """The features (N, D); UserError where only moments are stored."""
        if self.features is None:
            raise UserError(f"Reference {self.name!r} holds moments only; make it again with features.")
        return self.features


def save_statistics(
    path: Path | str,
    moments: Moments,
    *,
    extractor_name: str,
    extractor_hash: str,
    dataset_name: str,
    dataset_fingerprint: str,
    resize: str = "none",
    features: Array | None = None,
    labels: Array | None = None,
    extra: dict[str, str | int | float] | None = None,
) -> Reference:
    """Write reference statistics atomically and return them as a Reference; the arguments are its fields."""
    if labels is not None and (features is None or len(labels) != len(features)):
        raise UserError("Labels of reference features need the features, one label each.")
    identity = (extractor_name, extractor_hash, dataset_name, dataset_fingerprint, resize)
    reference = Reference(moments, *identity, features, labels, extra or {})
    tensors = {"mean": torch.tensor(moments.mean), "covariance": torch.tensor(moments.covariance)}
    if features is not None:
        tensors["features"] = torch.tensor(np.asarray(features, np.float32))
    if labels is not None:
        tensors["labels"] = torch.tensor(np.asarray(labels, np.int64))
    header = {
        "kind": "reference",
        "format": FORMAT,
        "count": moments.count,
        "extractor_name": extractor_name,
        "extractor_hash": extractor_hash,
        "dataset_name": dataset_name,
        "dataset_fingerprint": dataset_fingerprint,
        "resize": resize,
        "extra": reference.extra,
    }
    write_atomic(Path(path), save(tensors, metadata={"sims": json.dumps(header, sort_keys=True)}))
    return reference


def load_statistics(path: Path | str) -> Reference:
    """Read what `save_statistics` wrote; UserError where the file is missing, truncated, of another kind or newer."""
    tensors, header = read_tensors(path)
    if header.get("kind") != "reference":
        raise UserError(f"{path} holds {header.get('kind')!r} and not reference statistics; give the right file.")
    if header.get("format") != FORMAT:
        raise UserError(f"{path} has format {header.get('format')}; this version reads {FORMAT}: make it again.")
    features, labels = tensors.get("features"), tensors.get("labels")
    return Reference(
        Moments(tensors["mean"].numpy(), tensors["covariance"].numpy(), int(header["count"])),
        header["extractor_name"],
        header["extractor_hash"],
        header["dataset_name"],
        header["dataset_fingerprint"],
        header["resize"],
        None if features is None else features.numpy(),
        None if labels is None else labels.numpy(),
        header["extra"],
    )


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
