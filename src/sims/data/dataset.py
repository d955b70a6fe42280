"""A data set in memory: raw values, labels, and the codec between raw values and model space."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sims.data.codec import Codec
from sims.data.mapped import Rows
from sims.errors import UserError
from sims.files import canonical_json
from sims.seeds import check_seed

_CHUNK = 4096  # samples handled at once when a whole data set is walked through
_AT_ONCE = 1 << 28  # values looked at together: 1 GiB
ROW = "row"  # column of a part of a source: where in the whole each sample stood

Indices = Sequence[int] | np.ndarray | Tensor | slice


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with optional labels.

    raw          (N, C, H, W) or (N, 2)   values as stored, in the codec's dtype; may lie on disk (a memory map, Rows)
    labels       (N,) int64 or None       -1 = no class
    class_names  one per class; its length is the number of classes, 0 where there are no labels
    columns      further columns, (N, ...) each, as a store of synthetic samples carries them
    notes        what is to be said of how the source was read
    """

    raw: np.ndarray | Rows
    labels: np.ndarray | None
    codec: Codec
    class_names: tuple[str, ...] = ()
    name: str = "data"
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.raw.ndim != 4 and not (self.raw.ndim == 2 and self.raw.shape[1] == 2):
            raise UserError(f"{self.name}: shape {self.raw.shape} is neither (N, C, H, W) nor (N, 2)")
        if self.raw.dtype != np.dtype(self.codec.dtype):
            raise UserError(f"{self.name}: values are {self.raw.dtype} but the codec says {self.codec.dtype}")
        if len(self.raw) == 0:
            raise UserError(f"{self.name} holds no samples: give at least one")
        labels: np.ndarray | None = None
        names: tuple[str, ...] = ()
        if self.labels is not None:
            labels, names = classes_of(self.labels, len(self.raw), self.class_names, self.name)
        object.__setattr__(self, "labels", labels)
        object.__setattr__(self, "class_names", names)

    def __len__(self) -> int:
        return len(self.raw)

    @property
    def data_shape(self) -> tuple[int, ...]:
        """The shape of one sample: (C, H, W) or (2,)."""
        return tuple(self.raw.shape[1:])

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 = unlabelled."""
        return len(self.class_names)

    @property
    def class_shares(self) -> tuple[float, ...]:
        """Each class's share of the labelled samples, (num_classes,); () where there are none."""
        labels = np.zeros(0, np.int64) if self.labels is None else self.labels[self.labels >= 0]
        return tuple((np.bincount(labels, minlength=self.num_classes) / len(labels)).tolist()) if len(labels) else ()

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor | None]:
        """The samples at `indices`: x (B, *data_shape) float32 in model space, labels (B,) int64 or None."""
        index = _numpy(indices)
        labels = None if self.labels is None else torch.from_numpy(np.array(self.labels[index]))
        return self.codec.encode(self.raw[index]), labels

    def all(self) -> tuple[Tensor, Tensor | None]:
        """All samples in model space, and their labels; only for data that fit in memory as float32."""
        return self.batch(slice(None))

    def subset(self, indices: Indices) -> Dataset:
        """The samples at `indices`, in that order, with the same classes and codec; what lies on disk stays there."""
        index = _numpy(indices)
        raw = self.raw if isinstance(self.raw, np.memmap | Rows) else self.raw[index]
        if isinstance(raw, np.memmap):
            raw = Rows(raw)
        if isinstance(raw, Rows):
            raw = raw.subset(index)
        labels = None if self.labels is None else self.labels[index]
        columns = {key: values[index] for key, values in self.columns.items()}
        return replace(self, raw=raw, labels=labels, columns=columns)

    def numbered(self) -> Dataset:
        """The same samples, with their row in a column that parts of them keep; as it is where they have one."""
        return self if ROW in self.columns else replace(self, columns={**self.columns, ROW: np.arange(len(self))})

    def split(self, test_fraction: float, seed: int) -> tuple[Dataset, Dataset]:
        """Disjoint train and test parts, the same for the same seed, in the original order.

        Stratified by class where every class has at least two samples and the parts are large enough.
        Raises UserError where a part would be empty.
        """
        if len(self) < 2:
            raise UserError(f"{self.name} holds a single sample: give more, some to train on and some to hold out")
        num_test = round(len(self) * test_fraction)
        if not 0 < num_test < len(self):
            raise UserError(
                f"a test fraction of {test_fraction} leaves {num_test} of {len(self)} samples of {self.name} for"
                " testing: choose one between 0 and 1 that leaves at least one sample on each side"
            )
        train, test = split_indices(len(self), num_test, seed, self.labels)
        return self.subset(train), self.subset(test)

    def in_classes(self, names: Sequence[str]) -> Dataset:
        """The same samples with the classes ``names``, where its own are among these; otherwise as it is."""
        if self.labels is None or not {*self.class_names} <= {*names} or self.class_names == tuple(names):
            return self
        numbers = np.array([*map(list(names).index, self.class_names), -1])
        return replace(self, labels=numbers[self.labels], class_names=tuple(names))

    def without_labels(self) -> Dataset:
        """The same samples, unlabelled."""
        return replace(self, labels=None, class_names=())

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the content: values, labels, number of classes and codec; not of name or place.

        Values on disk whose content has been hashed before are not read again.
        """
        sha = hashlib.sha256()
        sha.update(canonical_json([list(self.raw.shape), self.codec.identity, self.num_classes]))
        if isinstance(self.raw, Rows) and self.raw.identity:
            sha.update(self.raw.identity.encode())
        else:
            for chunk in self._chunks():
                sha.update(np.ascontiguousarray(chunk).tobytes())
        if self.labels is not None:
            sha.update(self.labels.astype("<i8").tobytes())
        return sha.hexdigest()

    def require_varied(self) -> None:
        """UserError where all values are the same; of others, only the first few samples are looked at."""
        first = self.raw[:1].reshape(-1)[0]
        if all((chunk == first).all() for chunk in self._chunks(64)):
            raise UserError(f"all samples of {self.name} are the same constant value: there is nothing to learn")

    def std(self) -> float:
        """Standard deviation of all values in model space, around their common mean: a choice for sigma_data."""
        return self._std

    @cached_property
    def _std(self) -> float:
        total, squares = 0.0, 0.0
        for chunk in self._chunks():
            x = self.codec.encode(chunk).double()
            total, squares = total + float(x.sum()), squares + float(x.square().sum())
        mean = total / self.raw.size
        return max(squares / self.raw.size - mean**2, 0.0) ** 0.5

    def _chunks(self, size: int = _CHUNK) -> Iterator[np.ndarray]:
        for start in range(0, len(self), size):
            yield self.raw[start : start + size]


class View:
    """A data set in model space, read where it is sliced: view[a:b] is (b - a, *data_shape) float32 on the CPU.

    ``through`` maps what is read, such as latents to pixels.
    """

    def __init__(self, data: Dataset, through: Callable[[Tensor], Tensor] | None = None) -> None:
        self.data, self.through = data, through
        shape = data.data_shape if through is None else tuple(self[:1].shape[1:])
        self.shape, self.ndim = (len(data), *shape), len(shape) + 1

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, rows: slice | np.ndarray) -> Tensor:
        x = self.data.batch(rows)[0]
        return x if self.through is None else self.through(x)


def at_once(shape: Sequence[int]) -> int:
    """How many samples of a shape are looked at together."""
    return max(1, min(1024, _AT_ONCE // math.prod(shape)))


def check_labels(labels: np.ndarray, count: int, class_names: Sequence[str], name: str) -> np.ndarray:
    """Labels as int64, checked: one per sample, -1 = no class, below the number of classes; raises UserError."""
    labels = np.asarray(labels)
    if labels.shape != (count,):
        found = f"{labels.size} labels" if labels.ndim == 1 else f"labels of shape {labels.shape}"
        raise UserError(f"{name}: {found} for {count} samples: give exactly one label for each sample, ({count},)")
    if labels.dtype.kind not in "iubf":
        raise UserError(
            f"{name}: labels of type {labels.dtype} are not whole numbers: give class numbers from 0, and their names "
            "apart (class_names)"
        )
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.round(labels)):
        raise UserError(f"{name}: labels of type {labels.dtype} are not whole numbers: give class numbers from 0")
    labels = labels.astype(np.int64)
    limit = len(class_names) or None
    bad = (labels < -1) | (labels >= limit) if limit else labels < -1
    if bad.any():
        first = int(np.argmax(bad))
        allowed = f"0 to {limit - 1}" if limit else "0 and above"
        raise UserError(
            f"{name}: label {labels[first]} of sample {first} is outside the classes ({allowed}, or -1 for none):"
            " correct the labels or the class names"
        )
    return labels


def classes_of(
    labels: np.ndarray, count: int, class_names: Sequence[str], name: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Checked labels (count,) int64, and the names of the classes: those given, else the numbers that occur.

    Numbers with gaps are renumbered, so that there is no class without a sample; their names keep what they were. None
    where every label is -1.
    """
    labels, names = check_labels(labels, count, class_names, name), tuple(class_names)
    if not names:  # named, so that a subset keeps the number of classes
        numbers = np.unique(labels[labels >= 0])
        names = tuple(map(str, numbers.tolist()))
        labels = np.where(labels < 0, -1, np.searchsorted(numbers, labels))
    return (labels, names) if names else (None, ())


def split_indices(count: int, num_test: int, seed: int, labels: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Sorted train and test indices; stratified by `labels` where that is possible."""
    from sklearn.model_selection import train_test_split  # here, because importing it takes a second

    stratify = None
    if labels is not None:
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() >= 2 and len(counts) <= min(num_test, count - num_test):
            stratify = labels
    check_seed(seed)
    train, test = train_test_split(np.arange(count), test_size=num_test, random_state=seed, stratify=stratify)
    return np.sort(train), np.sort(test)


def _numpy(indices: Indices) -> np.ndarray | slice:
    if isinstance(indices, slice):
        return indices
    if isinstance(indices, Tensor):
        indices = indices.detach().cpu().numpy()
    index = np.asarray(indices)
    return index.astype(np.int64) if index.size == 0 else index
