"""Arrays in files (.npy, .npz), read as far as they can be true: no object, no more than the file holds."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from sims.errors import UserError
from sims.files import regular
from sims.limits import afford

Declared = tuple[tuple[int, ...], bool, np.dtype]


def read_array(data: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file; ValueError where there is none, or less than it declares."""
    file = io.BytesIO(data)
    _declared(file, len(data))
    file.seek(0)
    return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(path: Path, names: Iterable[str] | None = None, map_above: int | None = None) -> dict[str, np.ndarray]:
    """Some arrays of a .npz file, or all; those that are not compressed, and above so many bytes, as memory maps.

    UserError where the file is damaged, or declares more than it holds or memory does. One array, "data", is in a .npy.
    """
    size = regular(path)
    try:
        if path.suffix.lower() == ".npy":
            return {"data": np.load(path, mmap_mode="r", allow_pickle=False)}
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            wanted = members.keys() if names is None else [name for name in names if name in members]
            return {name: _member(path, archive, members[name], size, map_above) for name in wanted}
    except UserError:
        raise
    except Exception as error:  # zipfile, zlib and numpy raise a dozen kinds for what is damaged or foreign
        raise UserError(f"{path} cannot be read as numpy arrays ({error}): make it again with np.savez") from error


def array_names(path: Path) -> list[str]:
    """The names of the arrays in a .npz file."""
    with zipfile.ZipFile(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]


def _declared(file: IO[bytes], size: int) -> Declared:
    """Shape, order and type at the start of a .npy file of ``size`` bytes; ValueError where it cannot be true."""
    version = np.lib.format.read_magic(file)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in read:
        raise ValueError(f"format {version} of .npy files is not read")
    try:
        shape, fortran, dtype = read[version](file)
    except (RecursionError, MemoryError, SyntaxError, TypeError, OverflowError) as error:
        raise ValueError("its header cannot be read") from error
    if dtype.hasobject:
        raise ValueError("it holds objects, not numbers")
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f"it declares values {str(shape)[:80]} of {dtype}, and holds {size:,} bytes")
    return shape, fortran, dtype


def _member(
    path: Path, archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int, map_above: int | None
) -> np.ndarray:
    with archive.open(info) as file:
        shape, fortran, dtype = _declared(file, info.file_size)
        start = file.tell()
    whole = map_above is None or info.compress_type != zipfile.ZIP_STORED or info.file_size <= map_above
    if not whole and not fortran:
        with open(path, "rb") as raw:
            raw.seek(info.header_offset)
            header = raw.read(30)  # of the member: the lengths of its name and extra fields end it
            raw.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), os.SEEK_CUR)
            return np.memmap(path, dtype, "r", raw.tell() + start, shape)
    afford(f"{info.filename} in {path}", info.file_size, size)
    with archive.open(info) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
