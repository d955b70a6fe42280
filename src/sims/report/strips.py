"""Sample images as PNG data URIs: strips of the same seeds, and each sample beside its nearest training image."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from sims.report.blocks import Images, Strip
from sims.report.numbers import strength
from sims.report.palette import Palette
from sims.report.record import VARIANTS, Record, look, number

if TYPE_CHECKING:
    import numpy as np

GAP = 4  # transparent pixels between images
TILE = 64  # the side of an image on the page, about
STRIP = 860  # the width of a strip, at most
MAX_STRIPS = 24


def sample_grids(record: Record, palette: Palette, names: dict[str, str]) -> Images | None:
    """One strip per method and strength, the same seeds in the same columns; None without grids."""
    if not record.grids:
        return None
    order = [look(row) for row in record.rows]
    keys = sorted(record.grids, key=lambda key: (_position(order, split_key(key)[0]), split_key(key)[1] or 0.0, key))
    strips = []
    for key in keys[:MAX_STRIPS]:
        method, w = split_key(key)
        label = names.get(method, method) + ("" if w is None or method == "base" else f", w\u00a0=\u00a0{strength(w)}")
        strips.append(make_strip(record.grids[key], label, f"Samples of {label}", palette[method].variable))
    if record.real is not None:
        strips.append(make_strip(record.real, "real", "Training images, not samples"))
    sizes = {array.shape[1:3] for array in record.grids.values()}
    height, width = next(iter(sizes))
    shown = min(_columns(height, width), max(len(array) for array in record.grids.values()))
    caption = "Each column starts from the same noise, so differences down a column are the method’s doing."
    if record.seeds:
        caption += f" Seeds {_runs(record.seeds[:shown])}, not selected."
    caption += _scale_text(height, width)
    if len(keys) > MAX_STRIPS:
        caption += f" {len(keys) - MAX_STRIPS} further grids are in grids.npz."
    if record.real is not None:
        caption += " The row “real” shows training images for comparison; its columns correspond to nothing."
    return Images(strips, caption)


def nearest_pairs(record: Record, palette: Palette, main: tuple[str, float | None], name: str) -> Images | None:
    """Samples of the main method above the training image nearest to each; None where the run kept none."""
    key = _grid_key(record, *main)
    if record.nearest is None or key is None or record.grids[key].shape[1:] != record.nearest.shape[1:]:
        return None
    samples, nearest = record.grids[key], record.nearest
    strips = [
        make_strip(samples, name, f"Samples of {name}", palette[main[0]].variable),
        make_strip(nearest, "nearest training image", f"The training image nearest to each sample of {name}"),
    ]
    return Images(strips, "Each sample above its nearest training image. A copied column would be memorization.")


def split_key(key: str) -> tuple[str, float | None]:
    """ "sims@1.5" → ("sims", 1.5), "sims (cached)@1.5" → ("cached", 1.5); without a number after the @, no strength."""
    method, _, tail = key.rpartition("@")
    if not method:
        return VARIANTS.get(key, key), None
    method = VARIANTS.get(method, method)
    try:
        return method, float(tail)
    except ValueError:
        return method, None


def _grid_key(record: Record, method: str, w: float | None) -> str | None:
    keys = [key for key in record.grids if split_key(key)[0] == method]
    exact = [key for key in keys if split_key(key)[1] == number(w)]
    return exact[0] if exact else keys[0] if len(keys) == 1 else None


def _position(order: list[str], method: str) -> int:
    return order.index(method) if method in order else len(order)


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
    import numpy as np
    from PIL import Image

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
    buffer = io.BytesIO()
    Image.fromarray(sheet, "RGBA").save(buffer, "PNG", optimize=sheet.size < 2**20)
    uri = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return Strip(label, uri, f"{alt}: {num} images in a row.", sheet.shape[1], height, swatch)


def _runs(seeds: list[int]) -> str:
    """0, 1, 2, 7 → "0–2, 7"."""
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][1] + 1:
            parts[-1][1] = seed
        else:
            parts.append([seed, seed])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)
