"""One picture at a time: encoded bytes to arrays and back, and the transforms applied on load."""

from __future__ import annotations

import io
import math
import struct
import threading
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from sims.arrays import read_array
from sims.errors import UserError

#: What is decoded, as Pillow names it: nothing that starts another program (EPS does), no pages of text.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
LOSSY = ("jpeg", "webp", "avif", "jp2")  # formats that may have changed the pixels
HEAD = 4096  # bytes that tell what a file is, also where it is packed: a page, which costs no more than less
MOST_PIXELS = 178_000_000  # of one picture
_ROOM = 64 << 20  # bytes that a picture may unfold to in any case
_ONE_LARGE = threading.Lock()  # of the pictures that unfold to more than that
_RATIO = 1_100  # and beyond that so many times its file's size: what deflate reaches at most
_PNG = b"\x89PNG\r\n\x1a\n"
_NUMPY_MAGIC = b"\x93NUMPY"
_MAGIC = (  # first bytes, kind
    (_PNG, "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"), (b"II*\0", "tiff"), (b"MM\0*", "tiff"),
    (b"\0\0\0\x0cjP  ", "jp2"), (b"\xff\x4f\xff\x51", "jp2"), (_NUMPY_MAGIC, "npy"), (b"PAR1", "parquet"),
    (b"PK\x03\x04", "zip"), (b"\x1f\x8b", "gzip"), (b"%!PS", "eps"), (b"\xc5\xd0\xd3\xc6", "eps"), (b"%PDF", "pdf"),
)  # fmt: skip
_HEIC = (b"heic", b"heix", b"hevc", b"mif1")
_KINDS = {"npy": "array", "parquet": "table", "zip": "archive"}
_PNG_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601-2, as Pillow's convert("L")


@dataclass(frozen=True)
class SourceOptions:
    """How a source is read: which of it, how pictures are changed on load, and where they are kept."""

    grayscale: bool = False
    """One channel (ITU-R 601 luma) instead of three or four."""
    size: int | tuple[int, int] | None = None
    """Average the middle square of each picture down (box filter) to this many pixels a side; HEIGHT,WIDTH makes the largest middle part of that shape this size."""  # noqa: E501

    cache: Path | None = None
    """Folder for what is decoded, encoded or downloaded once (runs/cache if not given); sets above 1 GiB are read from there."""  # noqa: E501
    value_range: tuple[float, ...] = ()
    """Values of black and white, such as 0,255, where the type of the values does not tell."""
    image_column: str | None = None
    """Column of a table that holds the pictures, where several could."""
    label_column: str | None = None
    """Column of a table that holds the labels, where several could."""
    division: Literal["auto", "parts", "none"] = "auto"
    """Folders or files called train, test, validation: parts (what lies beside them is left out), or none (they are classes like others); auto asks where it is not clear."""  # noqa: E501
    download: bool = False
    """Allow fetching a data set of the Hugging Face hub (hf:owner/name); it is kept in the cache."""

    @property
    def folder(self) -> Path:
        """The cache."""
        return self.cache or Path("runs/cache")

    @property
    def sides(self) -> tuple[int, int] | None:
        """Height and width that pictures are brought to; None where they keep theirs."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def in_words(self) -> str:
        """What ``size`` does to pictures; "" where nothing."""
        if isinstance(self.size, tuple):
            return f"the middle averaged down to {self.size[0]}x{self.size[1]} pixels (height, width)"
        return f"averaged down to {self.size} pixels a side" if self.size else ""

    @property
    def unchanged(self) -> bool:
        """Whether pictures stay as they are."""
        return not self.grayscale and self.size is None

    def __post_init__(self) -> None:
        if self.value_range and not (len(self.value_range) == 2 and self.value_range[0] < self.value_range[1]):
            raise UserError(
                f"value_range is {list(self.value_range)}: give the values of black and white, such as 0,255"
            )
        if self.sides is None:
            return
        if isinstance(self.size, list):  # as Python may give it
            object.__setattr__(self, "size", tuple(self.size))
        if len(self.sides) != 2 or min(self.sides) < 1:
            written = ",".join(map(str, self.size)) if isinstance(self.size, tuple) else str(self.size)
            wrong = "is below 1" if len(self.sides) == 2 else "is neither one number nor two"
            raise UserError(
                f"size {written} {wrong}: give the number of pixels on a side, such as 32, or height and width, such "
                "as 48,64"
            )
        if self.sides[0] == self.sides[1]:
            object.__setattr__(self, "size", self.sides[0])  # one way to say it, in hashes too


def parse_size(text: str) -> int | tuple[int, int] | None:
    """``option 'source.size'`` as a text: 32, or 48,64 (height, width), or none; UserError for anything else."""
    numbers = [part.strip() for part in text.split(",")]
    if text.strip().lower() == "none":
        return None
    if len(numbers) > 2 or not all(number.isascii() and number.isdecimal() and len(number) < 10 for number in numbers):
        raise UserError(
            f"option 'source.size' is {text[:40]!r}: give the number of pixels on a side, such as 32, or height and "
            "width with a comma between, such as 48,64"
        )
    return int(numbers[0]) if len(numbers) == 1 else (int(numbers[0]), int(numbers[1]))


class Unreadable(Exception):
    """A picture that cannot be decoded; the message says why, the caller knows which."""


def format_of(head: bytes) -> str | None:
    """What a file is, by its first bytes (``HEAD`` of them are enough), such as "png"; None for what is not known."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp" if head[12:16] != b"VP8L" else "webp, lossless"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        return "avif" if brand in (b"avif", b"avis") else "heic" if brand in _HEIC else None
    if len(head) > 2 and head[:1] == b"P" and head[1:2] in b"123456" and head[2:3].isspace():
        return "ppm"
    return None


def kind_of(head: bytes) -> str | None:
    """ "picture", "array", "table" or "archive", else what the file is, by its first bytes; None: not known."""
    found = format_of(head)
    pictures = ("png", "jpeg", "gif", "bmp", "tiff", "jp2", "webp", "webp, lossless", "avif", "ppm")
    return "picture" if found in pictures else _KINDS.get(found or "", found)


class Decoded(NamedTuple):
    """A picture (C, H, W), what its file is, and what its file holds beyond it, in words ("" = nothing).

    ``cropped``: whether the options left its borders out.
    """

    pixels: np.ndarray
    format: str
    remark: str = ""
    cropped: bool = False


def decode_image(data: bytes, options: SourceOptions = SourceOptions()) -> np.ndarray:
    """An encoded picture to (C, H, W), uint8, or uint16 for 16-bit values, or float32 for floating-point TIFF.

    Palettes become RGB(A), turned photographs are set upright; an .npy array stays as it is. Raises Unreadable for
    broken data, and for anything but pictures of ``FORMATS``.
    """
    return decoded(data, options).pixels


def decoded(data: bytes, options: SourceOptions = SourceOptions()) -> Decoded:
    """``decode_image``, with what there is to say of the file."""
    found = format_of(data) or "unknown"
    if found == "npy":
        array = _array(data)
        return Decoded(transform(array, options), found, cropped=cropped(array.shape[1:], options))
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if _is_large(image, len(data)):
                with _ONE_LARGE:
                    return _opened(image, data, found, options)
            return _opened(image, data, found, options)
    except UserError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever broken data lead them to
        reason = "not a picture" if isinstance(error, Image.UnidentifiedImageError) else str(error)
        if isinstance(error, Image.UnidentifiedImageError) and found in ("eps", "pdf", "heic"):
            reason = f"{found}, which is not read as a picture"
        raise Unreadable(reason or type(error).__name__) from error


def _opened(image: Image.Image, data: bytes, found: str, options: SourceOptions) -> Decoded:
    pixels = _deep_png(data) if found == "png" else None
    remark = _beyond(image, pixels is not None)
    if pixels is None:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)  # which spares a copy
        pixels = _to_array(_plain(image))
    elif (turn := image.getexif().get(ExifTags.Base.Orientation, 1)) in _TURNED:
        pixels = np.ascontiguousarray(_TURNED[turn](pixels))
    return Decoded(transform(pixels, options), found, remark, cropped(pixels.shape[1:], options))


#: What sets an array (C, H, W) upright, by EXIF's orientation.
_TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda x: x[:, :, ::-1],
    3: lambda x: x[:, ::-1, ::-1],
    4: lambda x: x[:, ::-1],
    5: lambda x: x.transpose(0, 2, 1),
    6: lambda x: np.rot90(x, -1, (1, 2)),
    7: lambda x: x[:, ::-1, ::-1].transpose(0, 2, 1),
    8: lambda x: np.rot90(x, 1, (1, 2)),
}


def _is_large(image: Image.Image, size: int) -> bool:
    """Whether it is to be decoded alone. Unreadable where a file declares more than a limit, or than its size can hold.

    That is looked at before it is paid for.
    """
    count = image.width * image.height
    unfolded = count * len(image.getbands()) * (4 if image.mode in ("I", "F") else 1)
    if count > MOST_PIXELS or unfolded > max(_ROOM, _RATIO * size):
        raise Unreadable(
            f"declares {image.width}x{image.height} pixels in {size:,} bytes: more than a picture of that size holds "
            f"(at most {MOST_PIXELS // 10**6} million)"
        )
    return unfolded > _ROOM


def _beyond(image: Image.Image, deep: bool) -> str:
    """What a file holds that is not read."""
    if image.format != "MPO" and _goes_on(image):
        return "several frames or pages: the first of each is read"
    bits = getattr(image, "tag_v2", {}).get(258, (8,)) if image.format == "TIFF" else (8,)
    if not deep and image.mode in ("RGB", "RGBA") and max(bits) > 8:
        return "16-bit colour, of which the upper 8 bits are read"
    return ""


def _goes_on(image: Image.Image) -> bool:
    """Whether there is a second frame; counting all of them reads the whole file."""
    if image.format not in ("GIF", "TIFF"):
        return getattr(image, "n_frames", 1) > 1
    try:
        image.seek(1)
    except EOFError:
        return False
    image.seek(0)
    return True


def _deep_png(data: bytes) -> np.ndarray | None:
    """A PNG with 16 bits a channel in colour, uint16 (C, H, W), which Pillow would cut to 8; None for any other.

    Specification: W3C, Portable Network Graphics, sections 7.2 and 9.2. Interlaced ones are refused.
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", data[16:29])
    channels = {2: 3, 4: 2, 6: 4}.get(colour)
    if depth != 16 or channels is None:
        return None
    if interlaced:
        raise Unreadable("an interlaced PNG of 16-bit colour: save it without interlacing")
    stride, step, packed, at = width * channels * 2, channels * 2, [], 8
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"IDAT":
            packed.append(data[at + 8 : at + 8 + length])
        at += 12 + length
    raw = zlib.decompressobj().decompress(b"".join(packed), height * (stride + 1))
    if len(raw) < height * (stride + 1):
        raise Unreadable("image file is truncated")
    lines = np.frombuffer(raw, np.uint8).reshape(height, stride + 1)
    above = np.zeros(stride, np.uint8)
    rows = np.empty((height, stride), np.uint8)
    for y in range(height):
        above = rows[y] = _unfiltered(int(lines[y, 0]), lines[y, 1:], above, step)
    values = rows.reshape(height, width, channels, 2).view(">u2")[..., 0].astype(np.uint16)  # (H, W, C)
    if colour == 4:  # grey with transparency: the transparency goes, as grey needs none
        values = values[..., :1]
    return values.transpose(2, 0, 1)


def _unfiltered(kind: int, line: np.ndarray, above: np.ndarray, step: int) -> np.ndarray:
    """One line of a PNG as it was before filtering; ``step`` bytes a pixel."""
    if kind == 0:
        return line
    if kind == 1:  # from the left: sums modulo 256
        return np.cumsum(line.reshape(-1, step), axis=0, dtype=np.uint64).astype(np.uint8).reshape(-1)
    if kind == 2:
        return line + above
    out = [0] * step + line.tolist()
    up = [0] * step + above.tolist()
    for i in range(step, len(out)):
        a, b, c = out[i - step], up[i], up[i - step]
        if kind == 3:
            guess = (a + b) // 2
        else:
            pa, pb, pc = abs(b - c), abs(a - c), abs(a + b - 2 * c)
            guess = a if pa <= pb and pa <= pc else b if pb <= pc else c
        out[i] = (out[i] + guess) & 255
    return np.array(out[step:], np.uint8)


def _array(data: bytes) -> np.ndarray:
    try:
        array = read_array(data)
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
    if options.sides is not None:
        pixels = _resize(pixels, options.sides)
    return pixels


def cropped(sides: Sequence[int], options: SourceOptions) -> bool:
    """Whether ``options`` leave the borders of a picture of this height and width out."""
    return options.sides is not None and _middle(sides, options.sides) != tuple(sides)


def crop_note(count: int, of: int, options: SourceOptions) -> tuple[str, ...]:
    """What is said of ``count`` pictures that were cropped, of so many; nothing where none was."""
    if not count or options.sides is None:
        return ()
    height, width = options.sides
    part = "middle square" if height == width else f"middle part of the shape {height}:{width} (height:width)"
    return (f"{count} of {of} pictures are cropped to their largest {part} before they are averaged down",)


def _middle(sides: Sequence[int], wanted: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width within these sides that have the shape of those wanted, as nearly as pixels can."""
    (height, width), (h, w) = sides, wanted
    if height * w <= width * h:
        return height, (2 * height * w + h) // (2 * h)
    return (2 * width * h + w) // (2 * w), width


def _grayscale(pixels: np.ndarray) -> np.ndarray:
    if pixels.dtype == np.uint8:
        image = Image.fromarray(np.ascontiguousarray(pixels[:3].transpose(1, 2, 0)))
        return np.asarray(image.convert("L"))[None]
    grey = np.tensordot(_LUMA, pixels[:3].astype(np.float64), axes=1)[None]
    return _cast(grey, pixels.dtype)


def _resize(pixels: np.ndarray, wanted: tuple[int, int]) -> np.ndarray:
    """The largest middle part of this shape, averaged down to this height and width."""
    height, width = pixels.shape[1:]
    if height < wanted[0] or width < wanted[1]:
        square, least = wanted[0] == wanted[1], min(height, width)
        asked = str(wanted[0]) if square else f"{wanted[0]},{wanted[1]}"
        remedy = f"{least} or less" if square else f"at most {height},{width} (height,width)"
        raise UserError(
            f"size {asked} is larger than a picture of {width}x{height}: choose a size of {remedy},"
            " or remove the small pictures (`sims data check` lists the sizes)"
        )
    rows, columns = _middle((height, width), wanted)
    top, left = (height - rows) // 2, (width - columns) // 2
    pixels = pixels[:, top : top + rows, left : left + columns]
    if (rows, columns) == wanted:
        return pixels
    size = wanted[1], wanted[0]  # as Pillow has it
    if pixels.dtype == np.uint8 and len(pixels) in _PNG_MODES:
        return _to_array(as_picture(pixels).resize(size, Image.Resampling.BOX))
    planes = [Image.fromarray(plane.astype(np.float32)) for plane in pixels]
    boxed = np.stack([np.asarray(plane.resize(size, Image.Resampling.BOX)) for plane in planes])
    return _cast(boxed, pixels.dtype)


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.round(values).astype(dtype) if dtype.kind in "iu" else values.astype(dtype)


def as_picture(pixels: np.ndarray) -> Image.Image:
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
    as_picture(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


TILE = 64  # pixels that a small image is enlarged to on a contact sheet
GAP = 2


def contact_sheet(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Images (n, H, W, C) uint8 as one picture (C, rows, columns), nearly square or so many side by side.

    Small ones are enlarged; what lies between them is white.
    """
    factor = max(1, round(TILE / max(images.shape[1:3])))
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, channels = images.shape
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + GAP), i % columns * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet.transpose(2, 0, 1)
