"""Captioned pictures for the text-to-image toy: folders with metadata.jsonl, as Hugging Face's imagefolder reads them.

Clothes are those of Fashion-MNIST, where there is a folder with its IDX files, padded from 28 to 32 pixels; digits are
the 1,797 that scikit-learn brings along, enlarged from 8 to 32 pixels. A caption names the class and what was measured:
brightness, the mean of all pixels that are not background, in thirds (dark, no word, bright), and size, the share of
these pixels, in halves (small, large). Both are relative to the training pictures of the same class, so that every
class has every caption equally often, and the class tells nothing of the attributes.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from sims.files import write_atomic, write_json

SIDE = 32
BACKGROUND = 25  # of 255: what is darker belongs to no thing
CLOTHES = (
    "t-shirt", "pair of trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = (*CLOTHES, *(f"digit {word}" for word in NUMBERS))
IDX_UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class Pictures:
    """Grey pictures (n, 32, 32) of bytes, and the class of each."""

    grey: np.ndarray
    labels: np.ndarray

    def and_also(self, other: Pictures) -> Pictures:
        return Pictures(np.concatenate([self.grey, other.grey]), np.concatenate([self.labels, other.labels]))

    def some(self, which: np.ndarray) -> Pictures:
        return Pictures(self.grey[which], self.labels[which])


@dataclass(frozen=True)
class Captioned:
    """What a folder holds: pictures (n, 3, 32, 32) of bytes, their captions and classes."""

    pixels: Tensor
    texts: list[str]
    labels: Tensor

    def batch(self, rows: Tensor) -> Tensor:
        """Pictures in [-1, 1], as an autoencoder takes them."""
        return (self.pixels[rows].float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """An array of bytes in the format of MNIST, packed or not."""
    plain = folder / name
    data = plain.read_bytes() if plain.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    if data[:2] != b"\0\0" or data[2] != IDX_UNSIGNED_BYTE:
        raise ValueError(f"{plain} is no IDX file of bytes")
    shape = np.frombuffer(data, ">i4", count=data[3], offset=4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(shape)


def clothes(folder: Path, part: str, count: int) -> Pictures:
    """The first pictures of Fashion-MNIST's part (train or t10k), with a black border."""
    grey = read_idx(folder, f"{part}-images-idx3-ubyte")[:count]
    labels = read_idx(folder, f"{part}-labels-idx1-ubyte")[:count]
    border = (SIDE - grey.shape[1]) // 2
    return Pictures(np.pad(grey, ((0, 0), (border, border), (border, border))), labels.astype(np.int64))


def digits(count: int) -> Pictures:
    """The digits of scikit-learn in a fixed random order, enlarged."""
    found = load_digits()
    order = np.random.default_rng(0).permutation(len(found.images))[:count]
    bytes_ = np.clip(found.images[order] * (255 / 16), 0, 255).astype(np.uint8)
    large = [np.asarray(Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for grey in bytes_]
    return Pictures(np.stack(large), found.target[order].astype(np.int64) + len(CLOTHES))


def measured(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Brightness (0 to 255) and size (share of the picture) of the things in pictures."""
    thing = grey > BACKGROUND
    area = thing.sum((1, 2))
    return (grey * thing).sum((1, 2)) / np.maximum(area, 1), area / (SIDE * SIDE)


def limits_of(training: Pictures) -> dict[str, dict[str, float]]:
    """By class: the thirds of brightness and the half of size."""
    limits = {}
    for k in sorted(set(training.labels.tolist())):
        brightness, size = measured(training.grey[training.labels == k])
        dark, bright = np.quantile(brightness, [1 / 3, 2 / 3])
        limits[CLASSES[k]] = {"dark": float(dark), "bright": float(bright), "large": float(np.median(size))}
    return limits


def captions(pictures: Pictures, limits: dict[str, dict[str, float]]) -> list[str]:
    """One sentence a picture."""
    texts = []
    for k, brightness, size in zip(pictures.labels.tolist(), *measured(pictures.grey)):
        limit = limits[CLASSES[k]]
        shade = "dark " if brightness < limit["dark"] else "bright " if brightness > limit["bright"] else ""
        texts.append(f"a {'large' if size > limit['large'] else 'small'} {shade}{CLASSES[k]}")
    return texts


def write_folder(folder: Path, pictures: Pictures, texts: list[str]) -> None:
    """PNG files and what is known of them; the list comes last, and its presence says that all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i, (grey, label, text) in enumerate(zip(pictures.grey, pictures.labels.tolist(), texts)):
        name = f"{i:06d}.png"
        Image.fromarray(grey).convert("RGB").save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": text, "label": label}) + "\n")
    write_atomic(folder / "metadata.jsonl", "".join(lines).encode())


def make_data(out: Path, fashion: Path | None, most: int) -> None:
    """Write train, test and classes.json. At most ``most`` training pictures of clothes, a tenth of it for testing."""
    if (out / "classes.json").is_file():
        return
    all_digits = digits(most)
    held_out = np.arange(len(all_digits.labels)) % 10 == 0
    train, test = all_digits.some(~held_out), all_digits.some(held_out)
    if fashion is not None:
        train = clothes(fashion, "train", most).and_also(train)
        test = clothes(fashion, "t10k", most // 10).and_also(test)
    limits = limits_of(train)
    test = test.some(np.isin(test.labels, train.labels))
    write_folder(out / "train", train, captions(train, limits))
    write_folder(out / "test", test, captions(test, limits))
    write_json(out / "limits.json", limits)
    write_json(out / "classes.json", list(CLASSES))


def read_folder(folder: Path) -> Captioned:
    """The pictures of a folder in the order of its list."""
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    pixels = np.empty((len(rows), 3, SIDE, SIDE), np.uint8)
    for i, row in enumerate(rows):
        with Image.open(folder / row["file_name"]) as picture:
            pixels[i] = np.asarray(picture).transpose(2, 0, 1)
    texts = [row["text"] for row in rows]
    return Captioned(torch.from_numpy(pixels), texts, torch.tensor([row["label"] for row in rows]))


def prompts_of(data: Captioned) -> list[str]:
    """Every caption once, by class and then by letters."""
    pairs = sorted(set(zip(data.labels.tolist(), data.texts)))
    return [text for _, text in pairs]
