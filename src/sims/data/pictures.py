"""One picture at a time: encoded bytes to arrays and back, and the transforms applied on load."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from sims.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
NUMPY = ".npy"  # arrays, a file for each sample, as EDM2 keeps latents
_NUMPY_MAGIC = b"\x93NUMPY"
_PNG_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow's convert("L")


@dataclass(frozen=True)
class SourceOptions:
    """How pictures are changed on load, and where they are kept."""

    grayscale: bool = False
    """One channel (ITU-R 601 luma) instead of three or four."""
    size: int | None = None
    """Average the middle square of each picture down (box filter) to this many pixels a side."""

    cache: Path | None = None
    """Folder for what is decoded, encoded or downloaded once (runs/cache if not given); sets above 1 GiB are read from there."""  # noqa: E501
    download: bool = False
    """Allow fetching a data set of the Hugging Face hub (hf:owner/name); it is kept in the cache."""

    @property
    def folder(self) -> Path:
        """The cache."""
        return self.cache or Path("runs/cache")

    @property
    def unchanged(self) -> bool:
        """Whether pictures stay as they are."""
        return not self.grayscale and self.size is None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise UserError(f"size {self.size} is below 1: give the number of pixels on a side, such as 32")


class Unreadable(Exception):
    """A picture that cannot be decoded; the message says why, the caller knows which."""


def decode_image(data: bytes, options: SourceOptions = SourceOptions()) -> np.ndarray:
    """An encoded picture to (C, H, W), uint8, or uint16 for 16-bit grey, or float32 for floating-point TIFF.

    Palettes become RGB(A), turned photographs are set upright; an .npy array stays as it is. Raises Unreadable for
    broken data.
    """
    if data[:6] == _NUMPY_MAGIC:
        return transform(_array(data), options)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            pixels = _to_array(_plain(ImageOps.exif_transpose(image)))
    except Exception as error:  # Pillow's decoders raise whatever broken data lead them to
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        raise Unreadable(reason or type(error).__name__) from error
    return transform(pixels, options)


def _array(data: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise Unreadable(str(error)) from error
    if array.ndim not in (2, 3) or array.size == 0 or array.dtype.kind not in "fiub":
        raise Unreadable(f"an array of shape {array.shape}, {array.dtype}, is no picture: it must be (C, H, W)")
    return array[None] if array.ndim == 2 else array


def _plain(image: Image.Image) -> Image.Image:
    """The picture in one of the modes L, RGB, RGBA, I;16, F."""
    if image.mode in ("L", "RGB", "RGBA", "I;16", "F"):
        return image
    if image.mode.startswith("I"):
        return image.convert("I")
    if image.mode == "1":
        return image.convert("L")
    has_alpha = image.mode in ("LA", "PA", "La", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if has_alpha else "RGB")


def _to_array(image: Image.Image) -> np.ndarray:
    array = np.asarray(image)
    if image.mode == "I":
        if array.min() < 0 or array.max() > 65535:
            raise Unreadable(f"integer values {array.min()} to {array.max()} do not fit 16 bits")
        array = array.astype(np.uint16)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)  # (C, H, W)


def transform(pixels: np.ndarray, options: SourceOptions) -> np.ndarray:
    """Apply `options` to one picture (C, H, W) of any dtype; raises UserError where it is smaller than `size`."""
    if options.grayscale and len(pixels) in (3, 4):
        pixels = _grayscale(pixels)
    if options.size is not None:
        pixels = _resize(pixels, options.size)
    return pixels


def _grayscale(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
        return np.asarray(image.convert("L"))[None]
    grey = np.tensordot(_LUMA, pixels[:3].astype(np.float64), axes=1)[None]
    return _cast(grey, pixels.dtype)


def _resize(pixels: np.ndarray, size: int) -> np.ndarray:
    height, width = pixels.shape[1:]
    side = min(height, width)
    if side < size:
        raise UserError(
            f"size {size} is larger than a picture of {width}x{height}: choose a size of {side} or less,"
            " or remove the small pictures (`sims data check` lists the sizes)"
        )
    top, left = (height - side) // 2, (width - side) // 2
    pixels = pixels[:, top : top + side, left : left + side]
    if side == size:
        return pixels
    if pixels.dtype == np.uint8 and len(pixels) in _PNG_MODES:
        return _to_array(_to_image(pixels).resize((size, size), Image.Resampling.BOX))
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels]
    boxed = np.stack([np.asarray(plane.resize((size, size), Image.Resampling.BOX)) for plane in planes])
    return _cast(boxed, pixels.dtype)


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.round(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


def _to_image(pixels: np.ndarray) -> Image.Image:
    """uint8 (1 | 3 | 4, H, W) or uint16 (1, H, W) to a Pillow picture."""
    if len(pixels) == 1:
        return Image.fromarray(np.ascontiguousarray(pixels[0]))
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def fits_png(dtype: np.dtype | str, shape: tuple[int, ...]) -> bool:
    """Whether samples of this dtype and shape survive PNG exactly, as an ordinary picture."""
    return np.dtype(dtype) == np.uint8 and len(shape) == 3 and shape[0] in _PNG_MODES


def encode_png(pixels: np.ndarray) -> bytes:
    """uint8 (1 | 3 | 4, H, W) or uint16 (1, H, W) to PNG bytes; lossless."""
    buffer = io.BytesIO()
    _to_image(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
