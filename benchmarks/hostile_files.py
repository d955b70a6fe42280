# ruff: noqa: E501
"""Bytes of files that lie, unfold, never end, or name programs: what `hostile_inputs` puts into every entrance."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

ESCAPES = "\x1b]0;owned\x07\x1b[2J"  # a terminal's title and an empty screen
REVERSED = "a\u202egnp.exe"
RETURN = "bad\rsims: all is well\x08\x08"
MARKUP = "<script>alert(1)</script>[bold red]&amp;"
STRINGS = {"escape codes": ESCAPES, "reversed": REVERSED, "carriage return": RETURN, "HTML": MARKUP}
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
GB = 1 << 30


# -- what is no regular file -------------------------------------------------------------------------------------------


def fifo(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    here = os.open(path.parent, os.O_RDONLY)  # the name of a socket may have 107 bytes
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{here}/{path.name}")
    os.close(here)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "FIFO": fifo,
    "socket": unix_socket,
    "link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "link to a FIFO": lambda path: (os.mkfifo(path.parent / ".pipe"), path.symlink_to(path.parent / ".pipe"))[1],
    "folder": lambda path: path.mkdir(),
    "link to itself": lambda path: path.symlink_to(path.name),
}


# -- zip files, with headers that may lie ------------------------------------------------------------------------------


@cache
def zeros(gigabytes: int) -> tuple[bytes, int]:
    """So many GB of zeros as a deflate stream of a thousandth of it, and their CRC-32."""
    block = bytes(1 << 20)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(block) + packer.flush(zlib.Z_FULL_FLUSH)
    crc = 0
    for _ in range(gigabytes << 10):
        crc = zlib.crc32(block, crc)
    return packed * (gigabytes << 10) + packer.flush(), crc


def deflated(head: bytes, gigabytes: int) -> tuple[bytes, int, int]:
    """``head`` and then zeros: the stream, the CRC (not computed: 0) and the size."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    return first + zeros(gigabytes)[0], 0, len(head) + gigabytes * GB


def zip_of(members: Iterable[tuple[bytes, bytes, int, int, int]]) -> bytes:
    """A zip of (name, data, method, CRC, declared size), whatever is declared."""
    out, central, count = io.BytesIO(), b"", 0
    for name, data, method, crc, size in members:
        start = out.tell()
        sizes = struct.pack("<III", crc, len(data), min(size, 0xFFFFFFFF))
        extra = struct.pack("<HHQQ", 1, 16, size, len(data)) if size > 0xFFFFFFFE else b""
        if extra:
            sizes = struct.pack("<III", crc, 0xFFFFFFFF, 0xFFFFFFFF)
        fixed = struct.pack("<HHHHH", 45, 0, method, 0, 0x21) + sizes + struct.pack("<HH", len(name), len(extra))
        out.write(b"PK\3\4" + fixed + name + extra + data)
        about = struct.pack("<HHHII", 0, 0, 0, 0, start)
        central += b"PK\1\2" + struct.pack("<H", 45) + fixed + about + name + extra
        count += 1
    start = out.tell()
    end = struct.pack("<HHHHIIH", 0, 0, count, count, len(central), start, 0)
    return out.getvalue() + central + b"PK\5\6" + end


def stored(name: str, data: bytes) -> tuple[bytes, bytes, int, int, int]:
    return name.encode(), data, 0, zlib.crc32(data), len(data)


def bomb(
    name: str, head: bytes = b"", gigabytes: int = 9, declared: int | None = None
) -> tuple[bytes, bytes, int, int, int]:
    """A member of that many GB of zeros after ``head``, which may declare another size."""
    data, crc, size = deflated(head, gigabytes)
    return name.encode(), data, 8, crc, size if declared is None else declared


# -- arrays ------------------------------------------------------------------------------------------------------------


def npy_header(shape: tuple[int, ...] | str, descr: str = "|u1", fortran: bool = False) -> bytes:
    """The start of a .npy file that declares whatever it likes."""
    text = f"{{'descr': {descr!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def npy(array: np.ndarray, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


def npz_of(**members: bytes) -> bytes:
    return zip_of(stored(f"{name}.npy", data) for name, data in members.items())


def images(count: int = 40) -> np.ndarray:
    """(n, 1, 8, 8) uint8."""
    return np.random.default_rng(count).integers(0, 256, (count, 1, 8, 8), dtype=np.uint8)


class Payload:
    """A pickle that makes a file where it is run."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def payload(canary: Path, protocol: int = 2) -> bytes:
    return pickle.dumps(Payload(canary), protocol)


# -- pictures ----------------------------------------------------------------------------------------------------------


def chunk(name: bytes, data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    return struct.pack(">I", size) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int = 8, colour: int = 0, data: bytes = b"", extra: bytes = b"") -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + extra + chunk(b"IDAT", zlib.compress(data, 9)) + chunk(b"IEND", b"")


def blank_png(side: int, depth: int = 1, colour: int = 0) -> bytes:
    """A true PNG of one colour, a thousandth of what it unfolds to."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    palette = chunk(b"PLTE", bytes(6)) if colour == 3 else b""
    return png(side, side, depth, colour, bytes(side * (1 + (side * depth * channels + 7) // 8)), palette)


def picture(number: int = 0, side: int = 8, form: str = "PNG", **more: Any) -> bytes:
    rng = np.random.default_rng(number)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).save(out, form, **more)
    return out.getvalue()


def gif_frames(count: int) -> bytes:
    head = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    return head + frame * count + b";"


def apng_frames(declared: int) -> bytes:
    return png(8, 8, data=bytes(72), extra=chunk(b"acTL", struct.pack(">II", declared, 0)))


def tiff(entries: Iterable[tuple[int, int, int, int]], after: bytes = b"", following: int = 0) -> bytes:
    """One directory of (tag, type, count, value)."""
    listed = sorted(entries)
    body = b"".join(struct.pack("<HHII", *entry) for entry in listed)
    return b"II*\0" + struct.pack("<IH", 8, len(listed)) + body + struct.pack("<I", following) + after


def plain_tiff(width: int, height: int, strips: int, size: int, following: int = 0, counts: int = 1) -> bytes:
    tags = ((256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (277, 3, 1, 1))
    return tiff((*tags, (273, 4, strips, 8), (278, 4, 1, height), (279, 4, counts, size)), bytes(64), following)


def tiff_pages(count: int) -> bytes:
    """As many pages as directories of a few bytes."""
    tags = ((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 0),
            (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64))  # fmt: skip
    size = 2 + 12 * len(tags) + 4
    out = b"II*\0" + struct.pack("<I", 8)
    for page in range(count):
        body = b"".join(struct.pack("<HHII", *tag) for tag in tags)
        following = 8 + size * (page + 1) if page + 1 < count else 0
        out += struct.pack("<H", len(tags)) + body + struct.pack("<I", following)
    return out + bytes(64)


def bmp(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info


def jpeg(width: int, height: int) -> bytes:
    data = bytearray(picture(0, 16, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp(width: int, height: int) -> bytes:
    data = bytearray(picture(0, 16, "WEBP", lossless=True))
    bits = (width - 1) | (height - 1) << 14
    data[21:25] = struct.pack("<I", bits)
    return bytes(data)


def jp2(width: int, height: int) -> bytes:
    data = bytearray(picture(0, 16, "JPEG2000"))
    at = data.index(b"ihdr")
    data[at + 4 : at + 12] = struct.pack(">II", height, width)
    at = data.index(b"\xff\x51")
    data[at + 6 : at + 14] = struct.pack(">II", width, height)
    return bytes(data)


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"
WMF = b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhHIH", 0, 0, 8, 8, 96, 0, 0) + b"\1\0\x09\0\0\3" + bytes(12)


def strange_pictures() -> dict[str, bytes]:
    """Formats that are not read: some start programs, some load other files, some are merely old."""
    found = {form: picture(0, 8, form) for form in ("PCX", "TGA", "SGI", "IM", "ICO", "DDS", "MSP", "XBM", "SPIDER", "PDF")
             if form not in ("MSP", "XBM")}  # fmt: skip
    return {
        **found,
        "EPS": EPS,
        "EPS with a preview": b"\xc5\xd0\xd3\xc6" + struct.pack("<IIIIIIH", 30, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS,
        "WMF": WMF,
        "EMF": struct.pack("<IIiiiiiiii", 1, 88, 0, 0, 8, 8, 0, 0, 200, 200) + b" EMF" + bytes(44),
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>',
        "XPM": b'/* XPM */\nstatic char *x[] = {"8 8 1 1", "a c #000000"};',
        "PSD": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 30000, 30000, 8, 3) + bytes(14),
        "FITS": (b"SIMPLE  = T".ljust(80) + b"BITPIX  = 8".ljust(80) + b"NAXIS   = 2".ljust(80)).ljust(2880),
        "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(100),
        "FLI": struct.pack("<IHHHHHH", 200, 0xAF12, 2, 8, 8, 8, 3) + bytes(200),
        "Photo CD": bytes(2048) + b"PCD_IPI" + bytes(2000),
        "MPEG": b"\x00\x00\x01\xb3\x00\x80\x08" + bytes(50),
    }


def huge_pictures() -> dict[str, bytes]:
    """Pictures that declare, or truly unfold to, far more than their bytes, and files of endlessly many frames."""
    text = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(100 << 20), 9))
    profile = chunk(b"iCCP", b"k\0\0" + zlib.compress(bytes(100 << 20), 9))
    return {
        "PNG of 13,000 x 13,000, 1 bit": blank_png(13_000),
        "PNG of 13,000 x 13,000, 8 bits": blank_png(13_000, 8),
        "PNG of 13,000 x 13,000, palette": blank_png(13_000, 8, 3),
        "PNG of 9,000 x 9,000, RGBA": blank_png(9_000, 8, 6),
        "PNG of 13,000 x 13,000, 16 bits RGB, empty": png(13_000, 13_000, 16, 2),
        "PNG of 60,000 x 60,000, empty": png(60_000, 60_000),
        "PNG of 2^31 - 1 x 1": png(2**31 - 1, 1),
        "PNG of 1 x 2^31 - 1": png(1, 2**31 - 1, data=bytes(1000)),
        "PNG whose chunk lies": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", bytes(13), 2**31 - 1),
        "PNG whose data go on": png(8, 8, data=bytes(300 << 20)),
        "PNG of 16 bits whose data go on": png(8, 8, 16, 2, bytes(300 << 20)),
        "PNG with a text of 100 MB": png(8, 8, data=bytes(72), extra=text),
        "PNG with a profile of 100 MB": png(8, 8, data=bytes(72), extra=profile),
        "PNG of size 0": png(0, 0),
        "APNG of 2^31 - 1 frames": apng_frames(2**31 - 1),
        "GIF of 60,000 frames": gif_frames(60_000),
        "GIF of 60,000 x 60,000": b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + gif_frames(1)[13:],
        "TIFF of 5,000 pages": tiff_pages(5_000),
        "TIFF whose pages are a ring": plain_tiff(8, 8, 1, 64, following=8),
        "TIFF of 2^31 strips": plain_tiff(8, 8, 2**31, 64),
        "TIFF with a strip of 4 GB": plain_tiff(8, 8, 1, 2**32 - 1),
        "TIFF of 100,000 x 100,000": plain_tiff(100_000, 100_000, 1, 64),
        "TIFF of 2^30 counts": plain_tiff(8, 8, 1, 64, counts=2**30),
        "BMP of 2^31 - 1 x 2^31 - 1": bmp(2**31 - 1, 2**31 - 1),
        "BMP of 12,000 x 12,000, empty": bmp(12_000, 12_000),
        "PPM of 10^5 x 10^5": b"P6 100000 100000 255\n" + bytes(100),
        "PPM of 10^400": b"P6 1" + b"0" * 400 + b" 1 255\n",
        "PPM in text without end": b"P2 8 8 255\n" + b"1" * (8 << 20),
        "PPM, plain comments": b"P2 8 8 255\n" + b"#" * (8 << 20),
        "JPEG of 65,500 x 65,500": jpeg(65_500, 65_500),
        "JPEG of 12,000 x 12,000": jpeg(12_000, 12_000),
        "JPEG of a million markers": b"\xff\xd8" + b"\xff\xfe\x00\x02" * 1_000_000 + picture(0, 8, "JPEG")[2:],
        "WebP of 16,383 x 16,383": webp(16_383, 16_383),
        "JPEG 2000 of 60,000 x 60,000": jp2(60_000, 60_000),
        "JPEG 2000 of 12,000 x 12,000": jp2(12_000, 12_000),
        "npy of 2^40 values": npy_header((1, 2**20, 2**20)),
        "npy of 2^62 values": npy_header((1, 2**31, 2**31)),
        "npy of objects": npy_header((1, 8, 8), "|O") + b"\x80\x02N.",
        "npy of shape -1": npy_header((1, -8, -8)) + bytes(64),
        "npy of no shape": npy_header("None"),
        "npy with a long header": b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31 - 1) + b"{" * 1000,
        "nothing": b"",
        "noise": np.random.default_rng(0).bytes(1000),
    }


# -- tables and others -------------------------------------------------------------------------------------------------


def folded(rows: int, value: bytes, path: Path, name: str = "image") -> None:
    """A parquet file of one value that every row repeats."""
    indices = pa.array(np.zeros(rows, np.int32))
    repeated = pa.DictionaryArray.from_arrays(indices, pa.array([value], pa.binary()))
    table = pa.table({name: pa.StructArray.from_arrays([repeated, pa.nulls(rows, pa.string())], ["bytes", "path"])})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=GB, row_group_size=rows)


def table(path: Path, cells: list[bytes], features: Any = None, **columns: Any) -> None:
    found = pa.table({"image": pa.array([{"bytes": cell, "path": None} for cell in cells], CELL), **columns})
    if features is not None:
        found = found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(found, path)


def idx(shape: tuple[int, ...], data: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", size) for size in shape) + data


def gzip_zeros(head: bytes, gigabytes: int) -> bytes:
    stream, _, size = deflated(head, gigabytes)
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + stream + struct.pack("<II", 0, size & 0xFFFFFFFF)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


# -- text that is no table, or too much of one -------------------------------------------------------------------------

BROKEN_JSON: dict[str, bytes] = {
    "nested": b"[" * 200_000 + b"]" * 200_000,
    "nested tables": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "empty": b"",
    "a list": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "a number of 10,000 digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "not UTF-8": b'{"format": "\xff\xfe"}',
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "cut short": b'{"format": 1, "kind": "net',
    "zeros": bytes(1000),
}
WRONG: dict[str, Any] = {
    "10^18": 10**18, "-1": -1, "1e999": float("inf"), "NaN": float("nan"), "a list": [], "a table": {}, "null": None,
    "a text": "x", "a surrogate": "\ud800", "escape codes": ESCAPES, "a long list": [1] * 100_000, "true": True,
}  # fmt: skip
BROKEN_TOML: dict[str, bytes] = {
    "nested": b"a = " + b"[" * 100_000 + b"]" * 100_000,
    "nested tables": b"[" + b"a." * 20_000 + b"b]\n",
    "a number of 10,000 digits": b"seed = " + b"9" * 10_000,
    "not UTF-8": b'run = "\xff\xfe"',
    "escape codes": b'"' + ESCAPES.replace("\x1b", "\\u001B").replace("\x07", "\\u0007").encode() + b'" = 1',
    "NaN": b"seed = nan",
    "a list": b"base = [1, 2]",
    "huge": b"batch_size = 1000000000000000000",
    "zeros": bytes(1000),
}


def with_value(honest: Any, key: str, value: Any) -> bytes:
    """A JSON table with one entry replaced; ``key`` may be a path of dots."""
    made = json.loads(json.dumps(honest))
    inner, parts = made, key.split(".")
    for part in parts[:-1]:
        inner = inner[part]
    inner[parts[-1]] = value
    return json.dumps(made).encode()
