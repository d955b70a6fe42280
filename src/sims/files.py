"""Files that are never half-written, and content hashes that stay the same across machines and runs."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims.errors import UserError

if TYPE_CHECKING:
    import numpy as np

_FULL = "no space left on device"
LEFTOVERS = ".*.tmp-*"
_CHUNK = 1 << 20  # bytes
_ESCAPED = "backslashreplace"  # file names that are not UTF-8 become valid JSON escapes


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
    return code in (errno.ENOSPC, errno.EDQUOT) or _FULL in str(error).lower()


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


def read_json(path: str | Path) -> Any:
    """Read a JSON file; raises UserError naming the file where it is missing, unreadable or broken."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"no file {path}: check the path") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise UserError(f"{path} is not valid JSON ({error}): restore the file or remove it") from error


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
    try:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                sha.update(chunk)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return sha.hexdigest()
