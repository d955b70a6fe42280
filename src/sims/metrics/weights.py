"""Published weights of feature networks: where they lie, where they come from, and what they must hash to."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sims.config import nearest
from sims.errors import UserError
from sims.files import atomic_path, digest_file
from sims.measured import cache_folder
from sims.screen import Screen

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 60.0  # seconds without a byte


@dataclass(frozen=True)
class WeightFile:
    """One published file: its name below the cache folder, address, SHA-256 (hex) and size in bytes."""

    name: str
    url: str
    sha256: str
    size: int


def _hub(repository: str, revision: str, file: str, sha256: str, size: int) -> WeightFile:
    name = f"{repository.split('/')[1]}/{file}"
    return WeightFile(name, f"https://huggingface.co/{repository}/resolve/{revision}/{file}", sha256, size)


_DINOV2 = ("facebook/dinov2-large", "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c")
_CLIP = ("openai/clip-vit-large-patch14-336", "ce19dc912ca5cd21c8a653c79e251e808ccabcd1")

# The hashes are those that several independent projects state for these files (k-diffusion for inception, say).
# A name with several files is a folder in the layout of the Hugging Face hub, at a fixed revision.
WEIGHTS: dict[str, tuple[WeightFile, ...]] = {
    "inception": (
        WeightFile(
            "inception-2015-12-05.pt",
            "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
            "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
            95_607_719,
        ),
    ),
    "dinov2": (
        _hub(*_DINOV2, "config.json", "12df51c069a2dc1305e34ba71ef58bc2407ea553b75f4722a1715c1bce3bbed0", 549),
        _hub(
            *_DINOV2,
            "model.safetensors",
            "399fba97a95f22c36834418bc69373364a99af3a1153da1c0fb31db567c92e23",
            1_217_522_888,
        ),
    ),
    "clip": (
        _hub(*_CLIP, "config.json", "51b1c14aabcdf639c4a0370eeda1010b773bbe1df78319c7d0f5882c22ac0ac0", 4_757),
        _hub(
            *_CLIP,
            "pytorch_model.bin",
            "c6032c2e0caae3dc2d4fba35535fa6307dbb49df59c7e182b1bc4b3329b81801",
            1_711_974_081,
        ),
    ),
}


def locate(name: str, download: bool = False) -> Path:
    """The checked file of published weights in the cache, or its folder where it needs several.

    Downloads only when asked to. UserError names the file, the folder, the address and the hash where a file is
    missing, and what differs where a file has another hash.
    """
    if name not in WEIGHTS:
        raise UserError(f"no published weights {name!r}{nearest(name, WEIGHTS)}")
    files = {cache_folder() / file.name: file for file in WEIGHTS[name]}
    missing = {path: file for path, file in files.items() if not path.is_file()}
    if missing and not download:
        what = " and ".join(f"{path.name} ({_size(file.size)})" for path, file in missing.items())
        where = " and ".join(f"{file.url} (SHA-256 {file.sha256})" for file in missing.values())
        folder = next(iter(missing)).parent
        raise UserError(
            f"{name} needs {what} in {folder}: run again with option 'evaluation.download', or put there {where}"
        )
    for path, file in files.items():
        if path in missing:
            _download(file, path)
        else:
            check(path, file.sha256, file.url, file.size)
    first = next(iter(files))
    return first if len(files) == 1 else first.parent


def file_hash(path: Path | str) -> str:
    """SHA-256 (hex) of a file, computed once per version of the file; UserError where it cannot be read."""
    path = Path(path)
    try:
        state = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error
    return _file_hash(path.resolve(), state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _file_hash(path: Path, size: int, modified: int) -> str:
    return digest_file(path)


def check(path: Path | str, sha256: str, source: str, size: int | None = None) -> str:
    """The SHA-256 of a file; UserError that names both hashes where it is not the expected one.

    `source` says where to get the right file, `size` (bytes) lets the message tell a broken-off download.
    """
    found = file_hash(path)
    if found == sha256.lower():
        return found
    bytes_found = Path(path).stat().st_size
    short = size is not None and bytes_found < size
    why = f"only {bytes_found:,} of {size:,} bytes" if short else "damaged, or another file"
    raise UserError(f"{path} has SHA-256 {found} and not {sha256} ({why}): remove it and get it again from {source}")


def _size(size: int) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e6 else f"{size:,} bytes"


def _download(file: WeightFile, path: Path) -> None:
    """Fetch a file under a temporary name and move it in place once its hash is right."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    progress = Progress(*columns, console=Screen(stderr=True), transient=True)
    with atomic_path(path) as temporary:
        with open(temporary, "wb") as target, progress:
            task = progress.add_task(file.name, total=file.size)
            for chunk in _fetch(file, path.parent):
                target.write(chunk)
                progress.advance(task, len(chunk))
        if (found := digest_file(temporary)) != file.sha256:
            raise UserError(
                f"{file.url} sent {temporary.stat().st_size:,} bytes with SHA-256 {found}, not the {file.size:,} bytes "
                f"with {file.sha256}: try again; if it stays so, what is published there has changed"
            )


def _fetch(file: WeightFile, folder: Path) -> Iterator[bytes]:
    """The file's bytes in pieces; UserError where the network fails."""
    try:
        with urllib.request.urlopen(file.url, timeout=_TIMEOUT) as response:
            while chunk := response.read(_CHUNK):
                yield chunk
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise UserError(
            f"cannot download {file.url} ({getattr(error, 'reason', None) or error}): check the network, or put the "
            f"file into {folder} by hand (SHA-256 {file.sha256})"
        ) from error
