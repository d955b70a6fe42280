"""Models of the Hugging Face hub, by their names: found in its cache, and fetched into it where that is asked for."""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import re
import shutil
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sims.errors import UserError
from sims.files import digest_file
from sims.interop.diffusers import is_diffusers, network_config
from sims.interop.diffusers_folder import aux_component, find_layout
from sims.interop.diffusers_weights import UNSAFE, one_set
from sims.interop.recognize import holds_tensors
from sims.screen import say

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_FILE = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.(?:json|safetensors)")
_READ = re.compile(r"(?:(?:unet|transformer)(?:_ema|_aux)?|aux|vae|vqvae|scheduler)/[^/]+")  # of a folder of diffusers
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OURS = "model.json"  # of a model directory of this package: the last to come, so that it stands for the rest
_SAFE = ".safetensors"
_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without an answer


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What commands that take a model of others may do to get it."""

    download: bool = False
    """Allow fetching a model of the Hugging Face hub (owner/name); its files are checked against the hub's hashes."""


def local_copy(path: Path, download: bool = False) -> Path:
    """A path that is there, as it is; else the copy on this machine of the hub's model ``owner/name`` that it names.

    A folder, or the only file of tensors in it. Fetched only with ``download``, which also holds the weights of a copy
    that is there against the hashes that the hub gave. UserError where there is no copy, or it cannot be fetched.
    """
    name = str(path)
    if path.exists() or not _ID.fullmatch(name) or (path.parent.exists() and not download):
        return path
    copies = sorted((_place(name) / "snapshots").glob("*"), key=lambda one: one.stat().st_mtime)
    if download and not (copies and _is_whole(copies[-1])):
        return _opened(_fetch(name))
    if not copies:
        raise UserError(
            f"{name} does not exist, and {_cache()} has no copy of a model of the hub of this name: nothing is fetched "
            "by itself, so give a path, or option 'download' to fetch it"
        )
    if download:
        for file in copies[-1].rglob(f"*{_SAFE}"):
            kept = file.readlink().name if file.is_symlink() else ""  # the cache names large files by their hashes
            if re.fullmatch("[0-9a-f]{64}", kept):
                _require(file, digest_file(file), kept, "SHA-256")
    return _opened(copies[-1])


def _opened(folder: Path) -> Path:
    """What of a copy is to be opened."""
    files = [file for file in folder.iterdir() if holds_tensors(file)]
    whole = len(files) != 1 or (folder / _OURS).is_file() or is_diffusers(folder)
    return folder if whole else files[0]


def _cache() -> Path:
    """The folder that the programs of the hub keep its models in."""
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    home = Path(os.environ.get("HF_HOME") or usual)
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()


def _place(name: str) -> Path:
    return _cache() / f"models--{name.replace('/', '--')}"


def _is_whole(folder: Path) -> bool:
    """Whether all of a model is there: the weights of its network are the last that is fetched."""
    names = [file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()]
    try:
        return _opened(folder).is_file() or bool(_weights(folder, names, folder.name))
    except UserError:
        return False


# -- what to fetch -----------------------------------------------------------------------------------------------------


def _settings(folder: Path, names: Collection[str], model: str) -> list[str]:
    """The files of settings that are read of a model, of the names of all its files."""
    names = [name for name in names if _FILE.fullmatch(name) and name.endswith(".json") and name != _OURS]
    return sorted(name for name in names if "/" not in name or _READ.fullmatch(name))


def _weights(folder: Path, names: Collection[str], model: str) -> list[str]:
    """The files of weights that are read of a model, those of its network last; its settings lie in the folder.

    UserError where it is none that can be read, before anything large is fetched.
    """
    readable = sorted(name for name in names if _FILE.fullmatch(name))
    safe = [name for name in readable if name.endswith(_SAFE)]
    if _OURS in readable:
        return [*(name for name in readable if name != _OURS), _OURS]
    if not is_diffusers(folder):
        top = [name for name in safe if "/" not in name]
        if len(top) != 1:
            found = f"has {len(top)} files of weights ({', '.join(top[:3])})" if top else "has no weights at its top"
            raise UserError(
                f"{model} is no folder of diffusers and {found}: get the file that you want with `hf download`, and "
                "give its path"
            )
        return top
    layout = find_layout(folder)
    network_config(layout.network)
    chosen: list[str] = []
    for part in ("vae", aux_component(layout.component), layout.component):
        start = f"{part}/" if part else ""
        there = [name.removeprefix(start) for name in safe if name.startswith(start)]
        there = [name for name in there if "/" not in name]
        if part == layout.component and not there:
            _require_safe(model, [name for name in names if name.startswith(start)])
        if there or part == layout.component:
            chosen += [start + name for name in one_set(f"{model}/{part}".rstrip("/"), there)]
    return chosen


def _require_safe(name: str, offered: Collection[str]) -> None:
    """UserError where a model has no weights that run no code."""
    if any(file.endswith(_SAFE) for file in offered):
        return
    endings = tuple(pattern.removeprefix("*") for pattern in UNSAFE)
    unsafe = next((file for file in sorted(offered) if file.endswith(endings)), None)
    if unsafe is None:
        raise UserError(f"{name} has no weights on the hub that can be read (safetensors): choose another model")
    raise UserError(
        f"{name} has its weights on the hub only as {unsafe}, a format that can run code, and such files are not "
        "fetched: where you trust it, get it yourself, and write it again as safetensors"
    )


# -- fetching ----------------------------------------------------------------------------------------------------------


def _fetch(name: str) -> Path:
    """The files of a model that are read, in the hub's cache, at the commit that is the newest now."""
    library = _library()
    with _in_a_sentence(name), _quiet(library):
        about = library.HfApi().model_info(name, files_metadata=True, timeout=_TIMEOUT)
        if not _COMMIT.fullmatch(about.sha or ""):
            raise UserError(f"the hub names no commit of {name}: try again later")
        files = {file.rfilename: file for file in about.siblings or ()}
        _require_safe(name, files)
        folder = _place(name) / "snapshots" / about.sha
        for choose in (_settings, _weights):
            chosen = [files[file] for file in choose(folder, files, name)]
            _require_space(name, sum(entry.size or 0 for entry in chosen if not (folder / entry.rfilename).is_file()))
            for entry in chosen:
                _get(library, name, folder, entry)
    return folder


def _get(library: Any, name: str, folder: Path, entry: Any) -> None:
    """One file, and whether it is what the hub lists; UserError, and the file is removed, where it is not."""
    if not (folder / entry.rfilename).is_file():
        size = entry.size or 0
        say(f"fetching {entry.rfilename} of {name} ({f'{size / 1e6:,.0f} MB' if size >= 1e6 else f'{size:,} bytes'})")
    file = Path(library.hf_hub_download(name, entry.rfilename, revision=folder.name, cache_dir=_cache()))
    if entry.lfs is not None:
        kind, wanted, found = "SHA-256", entry.lfs.sha256, digest_file(file)
    else:
        kind, wanted, found = "git's SHA-1", entry.blob_id, _blob_id(file)
    _require(file, f"{file.stat().st_size:,} bytes with {found}", f"{entry.size or 0:,} bytes with {wanted}", kind)


def _require(file: Path, found: str, wanted: str, kind: str) -> None:
    """UserError where a file's hash is another than the hub's, and the file is removed."""
    if found != wanted:
        _remove(file)
        raise UserError(
            f"{file} has {kind} {found} and not {wanted}, as the hub says: it is removed, so run the same command again"
        )


def _remove(file: Path) -> None:
    """A file of the cache, and what it is a link to."""
    while file.is_symlink():
        there = file.parent / file.readlink()
        file.unlink()
        file = there
    file.unlink(missing_ok=True)


def _blob_id(file: Path) -> str:
    """The name that git has for a file's content."""
    sha = hashlib.sha1(b"blob %d\0" % file.stat().st_size, usedforsecurity=False)
    with open(file, "rb") as opened:
        while chunk := opened.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def _require_space(name: str, size: int) -> None:
    """UserError where the disk cannot hold what is still to come."""
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if size > free:
        raise UserError(
            f"{name} needs {size / 1e9:.2f} GB in {cache}, and {free / 1e9:.2f} GB are free: free some space, or set "
            "HF_HUB_CACHE to another folder"
        )


def _library() -> Any:
    try:
        importlib.import_module("huggingface_hub.utils")
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise UserError(
            f"fetching models of the hub needs the package huggingface_hub ({error}): pip install "
            "'sims-diffusion[diffusers]'"
        ) from error


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Without the hub's own bars and warnings; what is fetched is said here, and what is wrong is an error."""
    utils = library.utils
    level, shown = utils.logging.get_verbosity(), not utils.are_progress_bars_disabled()
    utils.logging.set_verbosity(utils.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            utils.disable_progress_bars()
            yield
    finally:
        utils.logging.set_verbosity(level)
        if shown:
            utils.enable_progress_bars()


@contextmanager
def _in_a_sentence(name: str) -> Iterator[None]:
    """Whatever the hub's client raises, in errors of many libraries, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        chain: list[BaseException] = [error]
        while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
            chain.append(cause)
        raise UserError(f"{name} cannot be fetched from the hub: {_reason(chain)}") from error


_ANSWERS: Mapping[int, str] = {
    401: "it has no such model, or one that is private or gated (401); check the name, or log in (`hf auth login`)",
    403: "you may not have it (403); accept its conditions on its page, and log in (`hf auth login`)",
    404: "it has no such model or file (404); check the name",
    429: "it has had too many requests (429); try again later",
}


def _reason(chain: list[BaseException]) -> str:
    """What went wrong and what to do, of an error and those behind it."""
    status = next((code for one in chain if (code := _status(one)) is not None), None)
    if any(type(one).__name__ == "OfflineModeIsEnabled" for one in chain):
        return "HF_HUB_OFFLINE forbids it; unset that, or give a path"
    if any(isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT) for one in chain):
        return f"no space is left in {_cache()}; free some, and run the same command again"
    if (refused := next((one for one in chain if isinstance(one, OSError) and one.filename), None)) is not None:
        return f"{refused.filename} cannot be written ({refused.strerror}); set HF_HUB_CACHE to another folder"
    if (answer := _ANSWERS.get(status or 0)) is not None:
        return answer
    what = next((text for one in reversed(chain) if (text := str(one).strip())), type(chain[0]).__name__)
    return f"{what.splitlines()[0][:200]}; check the connection, and run the same command again"


def _status(error: BaseException) -> int | None:
    """The status of a server's answer that an error is about."""
    code = getattr(getattr(error, "response", None), "status_code", None)
    return code if isinstance(code, int) else None
