"""Arrays larger than memory: made once, block by block, kept in a file, and read from there as they are needed."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from sims.config import read_as
from sims.errors import UserError
from sims.files import FULL, digest, digest_file, write_json
from sims.screen import say

IN_MEMORY = 1 << 30  # bytes: larger arrays of decoded pictures are kept in a file
_EVERY = 10.0  # seconds between lines about the progress
_rehearsed: int | None = None  # bytes, while nothing is to be written


@contextmanager
def rehearsed(everything: bool = False) -> Iterator[None]:
    """Within it nothing is written here: rows of what would lie in a file are made where they are looked at.

    So are those of ``everything``, also of what would lie in memory.
    """
    global _rehearsed
    before, _rehearsed = _rehearsed, 0 if everything else IN_MEMORY
    try:
        yield
    finally:
        _rehearsed = before


def may_write() -> bool:
    """Whether files may be written here: not in a rehearsal."""
    return _rehearsed is None


def fits_memory(size: int) -> bool:
    """Whether an array of so many bytes is to be held in memory."""
    return size <= (IN_MEMORY if _rehearsed is None else _rehearsed)


class Asked:
    """An array (N, ...) whose rows are made, by ``make(range)``, each time they are asked for."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, make: Callable[[range], np.ndarray]) -> None:
        self.shape, self.dtype, self.ndim, self.make = shape, dtype, len(shape), make

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """A row, or those of an index (n,)."""
        if np.ndim(rows) == 0:
            return self.make(range(rows, rows + 1))[0]
        found, done = np.empty((len(rows), *self.shape[1:]), self.dtype), 0
        for part in np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else ():
            found[done : done + len(part)] = self.make(range(part[0], part[-1] + 1))
            done += len(part)
        return found


class Rows:
    """Some rows of an array that stays on disk, in some order: indexing reads them, as a copy.

    ``name`` gives a hash of the array's content, where it is known, so that nothing need be read to be hashed again.
    """

    def __init__(
        self, array: np.ndarray | Asked, index: np.ndarray | None = None, name: Callable[[], str] | None = None
    ) -> None:
        # A memory map's own indexing is slow.
        self.array = array if isinstance(array, Asked) else array.view(np.ndarray)
        self.index = np.arange(len(array)) if index is None else np.asarray(index, np.int64)
        self.name = name
        self.shape: tuple[int, ...] = (len(self.index), *array.shape[1:])
        self.dtype, self.ndim, self.size = array.dtype, array.ndim, math.prod(self.shape)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """The rows asked for, read into memory."""
        chosen = self.index[rows]
        if np.ndim(chosen) == 0:
            return np.array(self.array[chosen])
        order = np.argsort(chosen, kind="stable")  # in the order of the file, which disks prefer
        found = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        found[order] = self.array[chosen[order]]
        return found

    def __iter__(self) -> Iterator[np.ndarray]:
        return (np.array(self.array[i]) for i in self.index)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:] if dtype is None else self[:].astype(dtype)

    def subset(self, index: np.ndarray | slice) -> Rows:
        """Some of these rows."""
        return Rows(self.array, self.index[index], self.name)

    @property
    def identity(self) -> str | None:
        """A hash of these rows that needs no reading; None where none is known."""
        if self.name is None:
            return None
        return hashlib.sha256(self.name().encode() + self.index.astype("<i8").tobytes()).hexdigest()


def content(files: Sequence[Path], cache: Path) -> str:
    """A hash of what files hold; those that have neither been touched nor moved since are not read again."""
    stats = [(str(file.resolve()), stat.st_size, stat.st_mtime_ns) for file in files for stat in (file.stat(),)]
    known = cache / f"content-{digest(stats)[:24]}.json"
    if known.is_file():
        return read_as(known, dict[str, str]).get("content", "")
    found = digest([digest_file(file) for file in files])
    if _rehearsed is None:
        write_json(known, {"content": found})
    return found


def mapped(
    folder: Path,
    name: Callable[[], str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    make: Callable[[range], np.ndarray],
    *,
    block: int,
    what: str,
    log: Callable[[str], None] = say,
) -> Rows:
    """The array (N, ...) in a file (.npy) of ``folder``, made by ``make`` in blocks of rows where it is not there yet.

    The file's ``name`` must be a hash of all that the content depends on. What was made before an interruption is kept
    and not made again; another process that wants the same file waits. The size is said before anything is written,
    and too little space is a UserError then; a disk that fills up meanwhile is one too, and the work done remains.
    """
    if _rehearsed is not None:
        return Rows(Asked(shape, np.dtype(dtype), make), name=name)
    file = folder / f"{name()}.npy"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        with _alone(file.with_name(f".{file.stem}.lock")):
            if not file.is_file():
                _write(file, shape, np.dtype(dtype), make, block, what, log)
    return Rows(_open(file, shape, np.dtype(dtype)), name=lambda: file.stem)


def _open(file: Path, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    try:
        found = np.load(file, mmap_mode="r", allow_pickle=False)
        if found.shape == shape and found.dtype == dtype:
            return found
    except (OSError, ValueError, EOFError):
        pass
    raise UserError(f"{file} is damaged: remove it, and the same command makes it again")


def require_space(what: str, size: int, folder: Path) -> None:
    """UserError where fewer bytes than these are free in a folder of the cache."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{what} needs {size / 1e9:.2f} GB in {folder}, and {free / 1e9:.2f} GB are free: free some space, or "
            "choose another folder with option 'source.cache'"
        )


def _write(
    file: Path,
    shape: tuple[int, ...],
    dtype: np.dtype,
    make: Callable[[range], np.ndarray],
    block: int,
    what: str,
    log: Callable[[str], None],
) -> None:
    """Write blocks into a hidden file, note which are safe on disk, and give the file its name at the end."""
    part, notes = file.with_name(f".{file.stem}.part"), file.with_name(f".{file.stem}.json")
    size, row = math.prod(shape) * dtype.itemsize, math.prod(shape[1:]) * dtype.itemsize
    there = read_as(notes, dict[str, int]).get("rows", 0) if notes.is_file() and part.is_file() else 0
    done = min(max(there, 0), shape[0])
    log(f"{what}: {size / 1e9:.2f} GB in {file.parent}" + (f", {done:,} are there already" if done else ""))
    require_space(what, size - done * row, file.parent)
    begin = last = time.monotonic()
    try:
        with open(part, "r+b" if done else "w+b") as out:
            np.lib.format.write_array_header_1_0(
                out, {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
            )
            start, first = out.tell(), done
            while done < shape[0]:
                rows = range(done, min(done + block, shape[0]))
                made = np.ascontiguousarray(make(rows), dtype)
                assert made.shape == (len(rows), *shape[1:]), made.shape
                out.seek(start + done * row)
                out.write(made.tobytes())
                done = rows.stop
                if time.monotonic() - last > _EVERY or done == shape[0]:
                    last = time.monotonic()
                    out.flush()
                    os.fsync(out.fileno())
                    write_json(notes, {"rows": done})
                    if done < shape[0]:
                        eta = (shape[0] - done) * (last - begin) / (done - first)
                        log(f"  {done:,} of {shape[0]:,}, ETA {eta:.0f} s")
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise UserError(
            f"no space left on the device while {what}: free some space and run the same command again"
        ) from error
    os.replace(part, file)
    notes.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Held by one process at a time; others wait."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    lock.unlink(missing_ok=True)
