"""Attributes of images: from labels, from a user's classifier, or from a small one trained on what is labelled.

Two classifiers of one attribute play two parts. The *steering* one labels candidates and guides; the *judge* measures
the result and nothing else. ``trained`` makes both from one labelled set: architecture "a" learns from one half of it,
architecture "b" from the other, and each is tested on the half that it has not seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sims.config import fitted, nearest, to_dict
from sims.data.dataset import Dataset, at_once, split_indices
from sims.errors import UserError
from sims.files import digest, parse_csv, read_bytes, read_json
from sims.metrics.extractors import ClassifierExtractor
from sims.metrics.proportions import check_confusion, confusion
from sims.metrics.saved import read_tensors
from sims.seeds import derive_seed
from sims.training.classifier import train_classifier

Array = np.ndarray
Outputs = Callable[[Tensor], Tensor]  # images (B, C, H, W) in model space -> (B, K) log-probabilities, or (B,) values
Labelled = tuple["Attribute", Array]  # the attribute and its value (n,) int64 of every sample, -1 = unknown
LEAST = 4  # labelled samples of each value: two to learn from, two to test with
EPOCHS = 300.0  # of training where labels are few: proportions are no more exact than classifiers agree
_MOST_TRAINED = 50_000  # images that a classifier learns from


@dataclass(frozen=True)
class Attribute:
    """A property with at least two values, such as parity: even, odd."""

    name: str
    values: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise UserError(f"attribute {self.name!r} has the values {list(self.values)}: at least two are needed")
        if len({*self.values}) < len(self.values):
            twice = next(value for value in self.values if self.values.count(value) > 1)
            raise UserError(f"attribute {self.name!r} has the value {twice!r} twice: name each value once")

    def index(self, value: str) -> int:
        """The number of a value; UserError where there is none of that name."""
        if value not in self.values:
            raise UserError(f"unknown value {value!r} of {self.name}{nearest(value, self.values)}")
        return self.values.index(value)


@dataclass(frozen=True)
class Classifier:
    """Tells an attribute's values apart; ``confusion`` (K, K) are counts on data that it was not trained on.

    ``outputs`` are log-probabilities, or values where it gives no more; ``trained`` are the networks whose mean it is,
    where they are of this package.
    """

    attribute: Attribute
    hash: str
    confusion: Array
    outputs: Outputs
    trained: tuple[ClassifierExtractor, ...] = ()

    @property
    def accuracy(self) -> float:
        """Share of held-out samples that it gets right."""
        return float(np.trace(self.confusion) / self.confusion.sum())

    def __call__(self, x: Tensor) -> Array:
        """The most likely value (B,) int64 of images x (B, C, H, W) in model space, some at a time."""
        return _called(self.outputs, x)

    def log_probs(self, x: Tensor) -> Tensor | None:
        """Log-probabilities (B, K) of one batch, with gradient; None where the classifier gives none."""
        outputs = self.outputs(x)
        return outputs if outputs.ndim == 2 else None


# ---- attributes


def classes(data: Dataset) -> Labelled:
    """The class of labelled data as an attribute named "class"."""
    if data.labels is None:
        raise UserError(f"{data.name} has no classes: give labelled data, or a label file")
    return Attribute("class", data.class_names), data.labels


def derived(data: Dataset, name: str, mapping: Mapping[str, str]) -> Labelled:
    """An attribute that follows from the class: mapping {class name: value}, such as {"0": "even", "1": "odd", ...}.

    Values are numbered as they first appear. UserError for unknown classes and for a class without a value.
    """
    attribute, labels = classes(data)
    for given in mapping:
        if given not in attribute.values:
            raise UserError(f"attribute {name!r} names the class {given!r}{nearest(given, attribute.values)}")
    missing = [label for label in attribute.values if label not in mapping]
    if missing:
        raise UserError(f"attribute {name!r} has no value for the class {missing[0]!r}: give every class one")
    made = Attribute(name, tuple(dict.fromkeys(mapping.values())))
    table = np.array([*(made.index(mapping[label]) for label in attribute.values), -1])
    return made, table[labels]  # -1 is the last entry


def joint(parts: Sequence[Labelled]) -> Labelled:
    """Several attributes as one: name "parity,loop", values "even,loop", the last attribute's changing fastest.

    A sample's joint value is unknown where any of its values is.
    """
    if len({len(labels) for _, labels in parts}) != 1:
        raise UserError(
            f"attributes of {[len(labels) for _, labels in parts]} samples: give attributes of one data set"
        )
    attribute = _joint([part for part, _ in parts])
    value = np.zeros(len(parts[0][1]), np.int64)
    for part, labels in parts:
        value = value * len(part.values) + labels
    unknown = np.any([labels < 0 for _, labels in parts], axis=0)
    return attribute, np.where(unknown, -1, value)


def _joint(parts: Sequence[Attribute]) -> Attribute:
    if len(parts) == 1:
        return parts[0]
    values = tuple(",".join(each) for each in itertools.product(*(part.values for part in parts)))
    return Attribute(",".join(part.name for part in parts), values)


@dataclass(frozen=True)
class LabelFile:
    """A file that labels a data set: by attribute, the value of every sample, empty where it is unknown.

    CSV: a header of names, then one row per sample in the order of the data. JSON, where the path ends so:
    {"data": fingerprint (may be missing), "attributes": {name: [value or null, ...]}}.
    """

    path: Path
    columns: dict[str, list[str]]
    fingerprint: str | None = None

    @classmethod
    def read(cls, path: Path) -> LabelFile:
        if not path.is_file():
            raise UserError(f"no label file {path}: check the path")
        return _read_json(path) if path.suffix == ".json" else cls(path, _read_csv(path))

    def labelled(self, name: str, data: Dataset) -> Labelled:
        """An attribute of ``data``, its values sorted by name; UserError where the file belongs to another data set."""
        path, column = self.path, self.columns[name]
        if self.fingerprint not in (None, data.fingerprint):
            raise UserError(
                f"{path} labels another data set ({str(self.fingerprint)[:12]}) than {data.name} "
                f"({data.fingerprint[:12]}): give the label file of these data"
            )
        if len(column) != len(data):
            raise UserError(
                f"{path} has {len(column):,} values of {name!r}, and {data.name} has {len(data):,} samples: give the "
                "label file of these data, one value per sample (empty where unknown)"
            )
        attribute = Attribute(name, tuple(sorted({*column} - {""})))
        number = {value: index for index, value in enumerate(attribute.values)}
        return attribute, np.array([number.get(value, -1) for value in column], np.int64)


def _read_json(path: Path) -> LabelFile:
    content = read_json(path)
    columns = content.get("attributes") if isinstance(content, dict) else None
    if not isinstance(columns, dict) or not columns or not all(isinstance(each, list) for each in columns.values()):
        raise UserError(f'{path} holds no labels: write {{"attributes": {{NAME: [VALUE, ...]}}}}, one per sample')
    texts = {name: ["" if each is None else str(each) for each in column] for name, column in columns.items()}
    return LabelFile(path, texts, None if content.get("data") is None else str(content["data"]))


def _read_csv(path: Path) -> dict[str, list[str]]:
    if not (found := parse_csv(read_bytes(path), str(path))):
        raise UserError(f"{path} is no CSV with a header of attribute names: it is empty")
    names, *rows = found
    # The csv module gives [] for the empty line of an unknown value of a single attribute.
    full = [row or [""] * len(names) for row in rows]
    for number, row in enumerate(full):
        if len(row) != len(names):
            raise UserError(f"{path}: line {number + 2} has {len(row)} values for {len(names)} attributes: correct it")
    return {name.strip(): [row[k].strip() for row in full] for k, name in enumerate(names)}


# ---- classifiers


def trained(
    data: Dataset,
    labelled: Labelled,
    seed: int = 0,
    architecture: str = "a",
    device: torch.device | str = "cpu",
    steps: int | None = None,
    held_out: tuple[Dataset, Array] | None = None,
    members: int = 1,
) -> Classifier:
    """A small classifier that learns from one half of the labelled samples, tested on the other half.

    It is the mean of ``members`` networks of different seeds, which waver less over what lies between two values.
    Of any seeds, "a" and "b" learn from opposite halves. ``held_out``: further data with values (m,) to test with, on
    which no classifier of this attribute may have learned; the more there are, the narrower are corrected intervals.
    UserError where a value has too few labelled samples or cannot be told from another.
    """
    attribute, labels = labelled
    num, rows = len(attribute.values), np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[rows], minlength=num)
    if counts.min() < LEAST:
        one = "" if "," not in attribute.name else " (as one column, whose values are the combinations that there are)"
        raise UserError(
            f"{counts.min()} labelled images of {data.name} have the value {attribute.values[int(counts.argmin())]!r} "
            f"of {attribute.name}: a classifier needs at least {LEAST}; label more, or leave the value out{one}"
        )
    halves = split_indices(len(rows), len(rows) // 2, derive_seed("attribute halves"), labels[rows])
    mine, other = (rows[half] for half in (halves if architecture == "a" else halves[::-1]))
    order = np.random.default_rng(derive_seed("attribute order", seed)).permutation(len(mine))[:_MOST_TRAINED]
    mine = np.sort(mine[order])
    sample = other[:: -(-len(other) // 1000)]  # train_classifier wants a test set, and measures less with it
    networks = []
    for member in range(members):
        own = derive_seed("attribute classifier", seed, architecture, *([member] if member else []))
        learned = (data.batch(mine)[0], labels[mine], data.batch(sample)[0], labels[sample])
        network, _ = train_classifier(
            *learned, num_classes=num, seed=own, epochs=EPOCHS, steps=steps, variant=architecture, device=device
        )
        networks.append(network)
    unseen = np.full(len(labels), -1)
    unseen[other] = labels[other]
    tests = [(data, unseen), *([] if held_out is None else [held_out])]
    return measured(attribute, _key(networks, attribute), _of_networks(networks), tests, device, networks)


def measured(
    attribute: Attribute,
    key: str,
    outputs: Outputs,
    tests: Sequence[tuple[Dataset, Array]],
    device: torch.device | str,
    trained: Sequence[ClassifierExtractor] = (),
) -> Classifier:
    """A classifier, its errors counted on data sets with values (n,) of the attribute, -1 = unknown.

    UserError where it is no better than chance at telling two values apart.
    """
    counts = np.zeros((len(attribute.values),) * 2, np.int64)
    for data, labels in tests:
        rows, size = np.flatnonzero(labels >= 0), at_once(data.data_shape)
        for part in (rows[start : start + size] for start in range(0, len(rows), size)):
            called = _called(outputs, data.batch(part)[0].to(device))
            counts += confusion(labels[part], called, len(attribute.values))
    check_confusion(counts, attribute.values)
    return Classifier(attribute, key, counts, outputs, tuple(trained))


def product(
    parts: Sequence[Classifier], data: Dataset, labelled: Labelled, device: torch.device | str = "cpu"
) -> Classifier:
    """Classifiers of several attributes as one of their joint attribute, its errors measured on labelled data."""
    attribute = _joint([part.attribute for part in parts])
    if attribute != labelled[0]:
        raise UserError(f"classifiers of {attribute.name} do not fit labels of {labelled[0].name}: give them in order")

    def outputs(x: Tensor) -> Tensor:
        each = [part.outputs(x) for part in parts]
        if any(found.ndim == 1 for found in each):
            value = torch.zeros(len(x), dtype=torch.int64, device=x.device)
            for part, found in zip(parts, each):
                value = value * len(part.attribute.values) + most_likely(found)
            return value
        total = each[0]
        for found in each[1:]:
            total = (total[:, :, None] + found[:, None, :]).flatten(1)  # (B, K1, K2) -> (B, K1 * K2)
        return total

    key = digest("product", *[part.hash for part in parts])[:16]
    return measured(attribute, key, outputs, [(data, labelled[1])], device)


@dataclass(frozen=True)
class Saved:
    """What the header of a saved classifier says: its attribute, its errors, and the number of its networks."""

    attribute: Attribute
    confusion: list[list[int]]
    members: int


def save(classifier: Classifier, folder: Path) -> None:
    """Write a classifier that ``trained`` made: a safetensors file for each network, the first one last."""
    assert classifier.trained, "only a classifier that was trained here can be saved"
    about = Saved(classifier.attribute, classifier.confusion.tolist(), len(classifier.trained))
    folder.mkdir(parents=True, exist_ok=True)
    for member, network in reversed(list(enumerate(classifier.trained))):
        network.save(folder / f"{member}.safetensors", {**to_dict(about)})


def load(folder: Path, device: torch.device | str = "cpu") -> Classifier:
    """Read what ``save`` wrote; UserError where a file is missing or damaged."""
    about = fitted(read_tensors(folder / "0.safetensors")[1], Saved, str(folder / "0.safetensors"), rest=True)
    networks = tuple(ClassifierExtractor.load(folder / f"{member}.safetensors") for member in range(about.members))
    for network in networks:
        network.network.to(device)
    attribute, counts = about.attribute, np.array(about.confusion)
    return Classifier(attribute, _key(networks, attribute), counts, _of_networks(networks), networks)


def _key(networks: Sequence[ClassifierExtractor], attribute: Attribute) -> str:
    return digest(*[network.hash for network in networks], to_dict(attribute))[:16]


def _of_networks(extractors: Sequence[ClassifierExtractor]) -> Outputs:
    networks = [extractor.network.eval().requires_grad_(False) for extractor in extractors]

    def outputs(x: Tensor) -> Tensor:
        for network in networks:
            if next(network.parameters()).device != x.device:
                network.to(x.device)
        each = torch.stack([functional.log_softmax(network(x.float()), dim=1) for network in networks])
        return each.logsumexp(dim=0) - math.log(len(networks))

    return outputs


def most_likely(outputs: Tensor) -> Tensor:
    """The most likely value (B,) int64 of log-probabilities (B, K); of values (B,) themselves."""
    return outputs.argmax(dim=1) if outputs.ndim == 2 else outputs


@torch.no_grad()
def _called(outputs: Outputs, x: Tensor) -> Array:
    """The most likely value (B,) int64 of images x (B, C, H, W), some at a time."""
    values = [most_likely(outputs(part)) for part in x.split(at_once(x.shape[1:]))]
    return torch.cat(values).cpu().numpy()
