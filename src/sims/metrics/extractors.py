"""Feature extractors: images in model space -> feature vectors, each with a name and a hash of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sims.config import fitted
from sims.errors import UserError
from sims.files import digest
from sims.metrics.matrices import Array
from sims.metrics.saved import read_tensors, write_tensors
from sims.metrics.small_classifier import NUM_FEATURES, ConvClassifier, shrink

PCA_LARGEST = 16  # pixels a side
PCA_COMPONENTS = 64


@runtime_checkable
class Extractor(Protocol):
    """Images in model space to features; two extractors agree exactly when their hashes do.

    `channels` is the number it needs (None: it takes what it is given), `resize` says how images come to the size that
    it sees. One that tells classes apart may have `probabilities(x)` -> (B, classes).
    """

    name: str
    hash: str
    num_features: int
    channels: int | None
    resize: str

    def __call__(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) float32 in [-1, 1], on any device -> features (B, num_features) float32."""
        ...


def extract(extractor: Extractor, x: Tensor | Array, batch_size: int = 1024) -> Array:
    """Features (N, num_features) float32 of images x (N, C, H, W), computed batch by batch without gradients."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    features = np.empty((len(x), extractor.num_features), np.float32)
    with torch.no_grad():
        for start in range(0, len(x), batch_size):
            batch = torch.as_tensor(x[start : start + batch_size]).float()
            if extractor.channels == 3 and batch.shape[1] == 1:
                batch = batch.expand(-1, 3, -1, -1)  # grey as RGB
            features[start : start + len(batch)] = extractor(batch).float().cpu().numpy()
    return features


def hash_tensors(tensors: dict[str, Tensor], config: dict[str, object]) -> str:
    """16 hex digits over a configuration and tensors (names, dtypes, shapes, bytes)."""
    parts: list[object] = [config]
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().contiguous().numpy()
        parts += [[name, str(array.dtype), list(array.shape)], array.tobytes()]
    return digest(*parts)[:16]


def _write(path: Path | str, tensors: dict[str, Tensor], config: dict[str, object]) -> None:
    write_tensors(path, {name: tensor.detach().cpu() for name, tensor in tensors.items()}, config)  # type: ignore[arg-type]


class PCAExtractor:
    """Leading principal components of the reference's own pixels: needs neither labels nor a download.

    Sides above 16 pixels are area-averaged down to 16 first; then the mean is taken off and the pixels are projected.
    Limits: linear, so it sees means and covariances of (coarse) pixels and nothing of finer texture or of meaning;
    at most 64 directions; distances scale with the square of the pixel range. For folders without labels only.
    """

    channels: int | None = None
    resize = f"sides above {PCA_LARGEST} area-averaged to {PCA_LARGEST}"

    def __init__(self, data_shape: tuple[int, ...], mean: Tensor, components: Tensor) -> None:
        """data_shape (C, H, W) before shrinking; mean (D,); components (D, num_features), orthonormal columns."""
        self.data_shape = tuple(data_shape)
        self.mean, self.components = mean.float(), components.float()
        self.name, self.num_features = "pca", components.shape[1]
        self.hash = hash_tensors({"mean": self.mean, "components": self.components}, self._config())

    def _config(self) -> dict[str, object]:
        return {"kind": "pca", "data_shape": list(self.data_shape)}

    @classmethod
    def fit(cls, x: Tensor | Array, num_components: int = PCA_COMPONENTS) -> PCAExtractor:
        """Fit min(num_components, D, N - 1) components to reference images x (N, C, H, W) in [-1, 1]."""
        if len(x) < 2 or x.ndim != 4:
            raise UserError(f"Images of shape {tuple(x.shape)}; the PCA extractor needs (N, C, H, W) with N >= 2.")
        batches = (torch.as_tensor(x[start : start + 1024]).float().cpu() for start in range(0, len(x), 1024))
        pixels = torch.cat([shrink(batch, PCA_LARGEST).flatten(1) for batch in batches]).double()  # (N, D)
        if not bool(pixels.isfinite().all()):
            raise UserError("The reference images hold NaN or infinity; remove them.")
        mean = pixels.mean(dim=0)
        pixels -= mean
        count = min(num_components, pixels.shape[1], len(x) - 1)
        _, vectors = np.linalg.eigh((pixels.T @ pixels).numpy())
        components = vectors[:, ::-1][:, :count]  # eigh sorts upwards
        largest = components[np.abs(components).argmax(axis=0), np.arange(count)]
        components = components * np.where(largest < 0, -1.0, 1.0)  # the sign is arbitrary: fix it
        return cls(tuple(x.shape[1:]), mean, torch.from_numpy(components.copy()))

    def __call__(self, x: Tensor) -> Tensor:
        if tuple(x.shape[1:]) != self.data_shape:
            raise UserError(f"Images of shape {tuple(x.shape[1:])} for an extractor of {self.data_shape}.")
        pixels = shrink(x.float(), PCA_LARGEST).flatten(1)
        return (pixels - self.mean.to(x.device)) @ self.components.to(x.device)

    def save(self, path: Path | str) -> None:
        """Write one safetensors file with a JSON header."""
        _write(path, {"mean": self.mean, "components": self.components}, self._config())

    @classmethod
    def load(cls, path: Path | str) -> PCAExtractor:
        """Read what `save` wrote; UserError where the file is missing, truncated or of another kind."""
        tensors, config = _read(path, "pca")
        return cls(fitted(config["data_shape"], tuple[int, ...], str(path)), tensors["mean"], tensors["components"])


@dataclass(frozen=True)
class _Stored:
    """What a classifier's file says of its network."""

    data_shape: tuple[int, ...]
    num_classes: int
    width: int
    variant: str


class ClassifierExtractor:
    """The penultimate activations (B, 64) of a trained classifier, and its class predictions."""

    num_features = NUM_FEATURES
    channels: int | None = None

    def __init__(self, network: ConvClassifier) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = f"classifier-{network.variant}"
        self.resize = f"sides above {network.largest} area-averaged to {network.largest}"
        self.hash = hash_tensors(network.state_dict(), self._config())

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape (C, H, W) of the images it takes."""
        return self.network.data_shape

    @property
    def num_classes(self) -> int:
        """The number of classes it tells apart."""
        return self.network.num_classes

    def _config(self) -> dict[str, object]:
        net = self.network
        return {
            "kind": "classifier",
            "data_shape": list(net.data_shape),
            "num_classes": net.num_classes,
            "width": net.width,
            "variant": net.variant,
        }

    def _to(self, x: Tensor) -> Tensor:
        if next(self.network.parameters()).device != x.device:
            self.network.to(x.device)
        return x.float()

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.network.features(self._to(x))

    @torch.no_grad()
    def predict(self, x: Tensor | Array, batch_size: int = 1024) -> Array:
        """The most likely class (N,) int64 of each image (N, C, H, W) in [-1, 1]."""
        classes = np.empty(len(x), np.int64)
        for start in range(0, len(x), batch_size):
            batch = torch.as_tensor(x[start : start + batch_size])
            classes[start : start + len(batch)] = self.network(self._to(batch)).argmax(dim=1).cpu().numpy()
        return classes

    def save(self, path: Path | str, about: dict[str, object] | None = None) -> None:
        """Write one safetensors file with a JSON header, which may say more about it."""
        _write(path, self.network.state_dict(), self._config() | (about or {}))

    @classmethod
    def load(cls, path: Path | str) -> ClassifierExtractor:
        """Read what `save` wrote; UserError where the file is missing, truncated or of another kind."""
        tensors, config = _read(path, "classifier")
        told: _Stored = fitted(config, _Stored, str(path), rest=True)
        try:
            with torch.device("meta"):  # what the file says it needs is not made before its tensors fit
                network = ConvClassifier(told.data_shape, told.num_classes, told.width, told.variant)
            network.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
        except RuntimeError as error:  # another version's layout
            raise UserError(f"{path} does not fit this version's classifier ({error}); train it again.") from error
        return cls(network)


def _read(path: Path | str, kind: str | None = None) -> tuple[dict[str, Tensor], dict]:
    tensors, config = read_tensors(path)
    if kind is not None and config.get("kind") != kind:
        raise UserError(f"{path} holds {config.get('kind')!r} and not the extractor {kind!r}; give the right file.")
    return tensors, config


def load_extractor(path: Path | str) -> PCAExtractor | ClassifierExtractor:
    """Read an extractor of either kind; UserError where the file is missing, truncated or none."""
    kind = _read(path)[1].get("kind")
    if kind == "pca":
        return PCAExtractor.load(path)
    if kind == "classifier":
        return ClassifierExtractor.load(path)
    raise UserError(f"{path} holds {kind!r}; an extractor is 'pca' or 'classifier'.")
