"""Files that are never half-written, and content hashes that stay the same across machines and runs."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import re
import secrets
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims.errors import UserError

if TYPE_CHECKING:
    import numpy as np

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room: on the device, of a quota, or of a limit on file size
_FULL = ("no space left on device", "file too large")
LEFTOVERS = ".*.tmp-*"
_CHUNK = 1 << 20  # bytes
_ESCAPED = "backslashreplace"  # file names that are not UTF-8 become valid JSON escapes
LARGEST, _LARGEST_TOML = 128 << 20, 1 << 20  # bytes of a file of settings, rows or labels
MOST = 6_000_000  # values in one: a label and a name for each of two million pictures, about 1 GB of memory
_MOST_CELLS = 16_000_000  # values in a CSV: 40 attributes of 400,000 pictures
DEEPEST = 100  # tables and lists within each other
_DEEP = f"more than {DEEPEST} tables or lists within each other"
_HUGE = 10**300  # whole numbers that no float holds
_HALF = "[\ud800-\udc7f\udd00-\udfff]"  # halves of characters, but for those that stand for bytes of file names


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path`, moved onto it when the block ends, removed when the block fails.

    The temporary name is hidden and keeps the suffix, because some writers choose or add one.
    Missing parent folders are created. Raises UserError when the device is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.tmp-{secrets.token_hex(4)}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except Exception as error:
        if _device_full(error):
            raise UserError(
                f"no space left on the device while writing {path}: free some space and run the same command again"
            ) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def _device_full(error: Exception) -> bool:
    """Whether a write failed for lack of space; libraries often keep only the words of the OSError."""
    code = error.errno if isinstance(error, OSError) else None
    return code in FULL or any(words in str(error).lower() for words in _FULL)


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write bytes to `path` so that a reader sees the old file or the new one, never a part of it."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def remove_leftovers(folder: str | Path, older_than: float = 3600.0) -> list[Path]:
    """Remove temporary files that killed processes left in `folder`; returns what was removed.

    `older_than` (seconds) spares the files that other processes are writing just now.
    """
    removed = []
    for path in sorted(Path(folder).glob(LEFTOVERS)):
        try:
            if time.time() - path.stat().st_mtime >= older_than:
                path.unlink()
                removed.append(path)
        except FileNotFoundError:  # its writer finished meanwhile
            continue
    return removed


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to a compressed npz file, atomically."""
    import numpy as np  # here: most files hold none

    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as readable JSON, atomically."""
    write_atomic(path, (json.dumps(obj, indent=2, ensure_ascii=False) + "\n").encode("utf-8", _ESCAPED))


def regular(path: str | Path) -> int:
    """The bytes of a regular file; UserError where it is missing or anything else: nothing else is ever opened."""
    try:
        found = os.stat(path)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: check the path") from error
    except (OSError, ValueError) as error:  # ValueError: a zero byte in a name
        reason = getattr(error, "strerror", error)
        raise UserError(f"cannot read {path} ({reason}): check the path and its permissions") from error
    if not stat.S_ISREG(found.st_mode):
        what = "a folder" if stat.S_ISDIR(found.st_mode) else "a device or a pipe"  # which may have no end
        raise UserError(f"cannot read {path}: it is {what}; give the right file")
    return found.st_size


def read_bytes(path: str | Path, most: int = LARGEST) -> bytes:
    """A small file's content; UserError as ``regular``, and where it is unreadable or of more bytes."""
    if (size := regular(path)) > most:
        raise UserError(
            f"cannot read {path}: it has {size:,} bytes, and such a file has at most {most:,}; give the right file"
        )
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def read_json(path: str | Path) -> Any:
    """The plain value in a JSON file, as ``parse_json``; UserError too where it is missing or unreadable."""
    return parse_json(read_bytes(path), str(path))


def read_json_lines(path: str | Path) -> list[Any]:
    """The plain values in a file with one in every line that is not empty; errors as ``read_json``."""
    return parse_json(read_bytes(path), str(path), lines=True)


def parse_json(text: bytes | str, where: str, lines: bool = False) -> Any:
    """The plain value in a JSON text (with ``lines``, a list of one for each line that is not empty).

    UserError naming ``where`` for what is broken, not UTF-8, longer or deeper than any honest file, names a key twice,
    or holds numbers or characters that nothing else could hold.
    """

    def parse(text: str) -> Any:
        if lines:
            return [_JSON.decode(line) for line in text.split("\n") if line.strip()]
        return _JSON.decode(text)

    return _plain(text, where, "JSON", parse)


def parse_csv(data: bytes, where: str) -> list[list[str]]:
    """The rows of a CSV table, empty ones too; UserError naming ``where`` for what is none, or longer than any."""
    import csv  # here: most programs read none

    try:
        if (cells := data.count(b",") + data.count(b"\n")) > _MOST_CELLS:
            raise ValueError(f"about {cells:,} values, and at most {_MOST_CELLS:,} can be read")
        return list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (ValueError, csv.Error) as error:
        raise UserError(f"{where} is not valid CSV ({error}): correct or restore the file") from error


def read_toml(path: str | Path) -> Any:
    """The plain values in a TOML file; UserError as ``read_json``, and where it holds dates or times."""
    import tomllib  # here: most programs read none

    return _plain(read_bytes(path, _LARGEST_TOML), str(path), "TOML", tomllib.loads)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A table, which has each key once: readers differ in which of two values they take."""
    table = dict(pairs)
    if len(table) < len(pairs):
        raise ValueError(f"the key {Counter(key for key, _ in pairs).most_common(1)[0][0]!a} stands there twice")
    return table


_JSON = json.JSONDecoder(object_pairs_hook=_once)


def _plain(text: bytes | str, where: str, kind: str, parse: Callable[[str], Any]) -> Any:
    """What a text says, of plain values that are neither too many, too deep, too long nor half."""
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        if (values := sum(map(text.count, ",[{\n" if kind == "TOML" else ",[{"))) > MOST:
            raise ValueError(f"about {values:,} values, and at most {MOST:,} can be read")
        value = parse(text)
        _check_plain(value)
        if re.search(r"\\u[dD][89a-fA-F]", text) and re.search(_HALF, json.dumps(value, ensure_ascii=False)):
            raise ValueError("half a character: a \\u escape of UTF-16 without the one that belongs to it")
    except RecursionError:
        raise UserError(f"{where} is not valid {kind} ({_DEEP}): correct or restore the file") from None
    except ValueError as error:  # JSONDecodeError, TOMLDecodeError and UnicodeDecodeError too
        reason = ascii(str(error).partition(";")[0][:200])[1:-1]
        raise UserError(f"{where} is not valid {kind} ({reason}): correct or restore the file") from error
    return value


def _check_plain(value: Any) -> None:
    """ValueError for what no other reader of the value could take."""
    level: list[Any] = [[value]]
    for _ in range(DEEPEST + 1):
        items = [item for held in level for item in (held.values() if isinstance(held, dict) else held)]
        kinds = {type(item) for item in items}
        if other := kinds - {dict, list, str, int, float, bool, type(None)}:
            raise ValueError(f"a value of type {other.pop().__name__}")
        if int in kinds and any(abs(item) >= _HUGE for item in items if type(item) is int):
            raise ValueError("a whole number of hundreds of digits")
        level = [item for item in items if type(item) is dict or type(item) is list]
        if not level:
            return
    raise ValueError(_DEEP)


def canonical_json(obj: Any) -> bytes:
    """The one spelling of a JSON-able object: keys sorted, no blanks, UTF-8."""
    return json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", _ESCAPED)


def digest(*parts: Any) -> str:
    """SHA-256 (hex) of the parts in order, each bytes or a JSON-able object; independent of key order.

    Every part is hashed with its kind and length, so that ("ab", "c") and ("a", "bc") differ.
    """
    sha = hashlib.sha256()
    for part in parts:
        raw = isinstance(part, (bytes, bytearray, memoryview))
        data = bytes(part) if raw else canonical_json(part)
        sha.update(f"{'bytes' if raw else 'json'} {len(data)}\n".encode())
        sha.update(data)
    return sha.hexdigest()


def digest_file(path: str | Path) -> str:
    """SHA-256 (hex) of a file's content; raises UserError naming the file where it cannot be read."""
    sha = hashlib.sha256()
    regular(path)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return sha.hexdigest()
