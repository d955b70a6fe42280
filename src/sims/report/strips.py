"""Pictures of a run, as PNG data URIs: strips of the same seeds, and each sample beside its nearest training image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sims.errors import UserError
from sims.report.blocks import Images, Strip
from sims.report.numbers import strength
from sims.report.palette import Palette

if TYPE_CHECKING:
    import numpy as np

GAP = 4  # transparent pixels between images
TILE = 64  # the side of an image on the page, about
STRIP = 860  # the width of a strip, at most
MAX_STRIPS = 24


@dataclass(frozen=True)
class Pictures:
    """What ``grids.npz`` holds: images uint8 (n, H, W, C) or points (n, 2) by key, of the same seeds each.

    A key is ``label@w``, ``arm@generation``, ``arm@level``, or ``label#k`` of samples of the k-th value. ``real`` are
    training images, ``nearest`` those nearest to each sample of the leading method, ``truth`` points of the truth.
    """

    images: dict[str, np.ndarray] = field(default_factory=dict)
    points: dict[str, np.ndarray] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    real: np.ndarray | None = None
    nearest: np.ndarray | None = None
    truth: np.ndarray | None = None


def read_pictures(run_dir: Path) -> Pictures:
    """The pictures of a run, none where it has no ``grids.npz``; UserError for a torn file."""
    path = Path(run_dir) / "grids.npz"
    if not path.is_file():
        return Pictures()
    from sims.arrays import read_arrays  # here: a page without pictures needs no numpy

    try:
        arrays = read_arrays(path)
    except UserError as error:
        raise UserError(f"{path} cannot be read ({error}): delete it to get the report without images") from error
    seeds = tuple(int(seed) for seed in arrays.pop("seeds", ()) if seed.dtype.kind in "iu")
    images = {name: x for name, x in arrays.items() if x.ndim == 4 and x.size and x.shape[-1] in (1, 3)}
    points = {name: x for name, x in arrays.items() if x.ndim == 2}
    real, nearest, truth = images.pop("real", None), images.pop("nearest", None), points.pop("truth", None)
    return Pictures(images, points, seeds, real, nearest, truth)


def sample_grids(pictures: Pictures, palette: Palette, labels: Sequence[str]) -> Images | None:
    """One strip per label and strength, in the order of ``labels``, the same seeds in the same columns."""
    if not pictures.images:
        return None
    order = {label: place for place, label in enumerate(labels)}

    def place(key: str) -> tuple[float, float, str]:
        label, w = split_key(key)
        return order.get(label, len(order)), w or 0.0, key

    keys = sorted(pictures.images, key=place)
    strips = []
    for key in keys[:MAX_STRIPS]:
        label, w = split_key(key)
        name = palette.name(label) + (f", w\u00a0=\u00a0{strength(w)}" if w else "")
        strips.append(make_strip(pictures.images[key], name, f"Samples of {name}", palette[label].variable))
    if pictures.real is not None:
        strips.append(make_strip(pictures.real, "real", "Training images, not samples"))
    height, width = pictures.images[keys[0]].shape[1:3]
    shown = min(_columns(height, width), max(len(array) for array in pictures.images.values()))
    caption = "Each column starts from the same noise, so differences down a column are the method’s doing."
    if pictures.seeds:
        caption += f" Seeds {_runs(pictures.seeds[:shown])}, not selected."
    caption += _scale_text(height, width)
    if len(keys) > MAX_STRIPS:
        caption += f" {len(keys) - MAX_STRIPS} further grids are in grids.npz."
    if pictures.real is not None:
        caption += " The row “real” shows training images for comparison; its columns correspond to nothing."
    return Images(strips, caption)


def nearest_pairs(pictures: Pictures, palette: Palette, label: str, w: float | None) -> Images | None:
    """Samples of the leading method above the training image nearest to each; None where the run kept none."""
    samples = next((array for key, array in pictures.images.items() if split_key(key) == (label, w)), None)
    if pictures.nearest is None or samples is None:
        return None
    name = palette.name(label)
    strips = [
        make_strip(samples, name, f"Samples of {name}", palette[label].variable),
        make_strip(pictures.nearest, "nearest training image", f"The training image nearest to each sample of {name}"),
    ]
    return Images(strips, "Each sample above its nearest training image. A copied column would be memorization.")


def split_key(key: str) -> tuple[str, float | None]:
    """ "sims@1.5" → ("sims", 1.5); without an @, no strength."""
    label, _, number = key.rpartition("@")
    try:
        return (label, float(number)) if label else (key, None)
    except ValueError:
        return key, None


def _factor(height: int, width: int) -> tuple[int, int]:
    """(enlarge, reduce): integers that bring an image nearest to TILE; one of them is 1. Up to 2·TILE is left alone."""
    side = max(height, width)
    return max(1, round(TILE / side)), max(1, -(-side // (2 * TILE)))


def _columns(height: int, width: int) -> int:
    enlarge, reduce = _factor(height, width)
    return max(1, (STRIP + GAP) // (width * enlarge // reduce + GAP))


def _scale_text(height: int, width: int) -> str:
    enlarge, reduce = _factor(height, width)
    if reduce > 1:
        return f" Images of {height}×{width}, reduced {reduce} times by averaging."
    return f" Images of {height}×{width}" + (f", enlarged {enlarge} times without smoothing." if enlarge > 1 else ".")


def make_strip(images: np.ndarray, label: str, alt: str, swatch: str = "") -> Strip:
    """The first images (n, H, W, C) side by side; the gaps are transparent."""
    sheet = side_by_side(images)
    height, width, _ = sheet.shape
    pitch = _shown(*images.shape[1:3])[1] + GAP
    num = (width + GAP) // pitch
    uri = "data:image/png;base64," + base64.b64encode(as_png(sheet)).decode("ascii")
    return Strip(label, uri, f"{alt}: {num} images in a row.", width, height, swatch, pitch)


def _shown(height: int, width: int) -> tuple[int, int]:
    """The size that an image has in a strip."""
    enlarge, reduce = _factor(height, width)
    return height // reduce * enlarge, width // reduce * enlarge


def as_png(sheet: np.ndarray) -> bytes:
    """RGBA uint8 (H, W, 4) as a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(sheet, "RGBA").save(buffer, "PNG", optimize=sheet.size < 2**20)
    return buffer.getvalue()


def side_by_side(images: np.ndarray) -> np.ndarray:
    """The first images uint8 (n, H, W, C) in a row, RGBA (H, W, 4), enlarged or reduced; the gaps are transparent."""
    import numpy as np

    height, width = images.shape[1:3]
    enlarge, reduce = _factor(height, width)
    images = images[: _columns(height, width)]
    images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images  # grey → RGB
    if reduce > 1:
        rows, cols = height // reduce, width // reduce
        cut = images[:, : rows * reduce, : cols * reduce].reshape(len(images), rows, reduce, cols, reduce, 3)
        images = cut.mean(axis=(2, 4)).round().astype(np.uint8)  # (n, rows, cols, 3)
    images = images.repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    num, height, width, _ = images.shape
    sheet = np.zeros((height, num * (width + GAP) - GAP, 4), np.uint8)
    for index, image in enumerate(images):
        left = index * (width + GAP)
        sheet[:, left : left + width, :3], sheet[:, left : left + width, 3] = image, 255
    return sheet


def _runs(seeds: Sequence[int]) -> str:
    """0, 1, 2, 7 → "0–2, 7"."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)
