"""Models of the Hugging Face hub, by their names: found in its cache, and fetched into it where that is asked for."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sims.errors import UserError
from sims.files import digest_file, write_atomic
from sims.interop.diffusers import is_diffusers, network_config
from sims.interop.diffusers_folder import aux_component, find_layout
from sims.interop.diffusers_weights import INDEX, UNSAFE, one_set
from sims.interop.hub_client import TIMEOUT, cache, client, in_a_sentence, quiet
from sims.interop.recognize import holds_tensors
from sims.screen import say

PREFIX = "hf:"
_ID = r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*"
_REVISION = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)*"
_NAMED = re.compile(rf"(?:{PREFIX})?(?P<name>{_ID})(?:@(?P<revision>{_REVISION}))?")
_FILE = re.compile(r"(?:\w[\w.-]*/)*\w[\w.-]*\.(?:json|safetensors)")
_READ = re.compile(r"(?:(?:unet|transformer)(?:_ema|_aux)?|aux|vae|vqvae|scheduler)/[^/]+")  # of a folder of diffusers
_COMMIT = re.compile(r"[0-9a-f]{40}")
_OURS = "model.json"  # of a model directory of this package: the last to come, so that it stands for the rest
_SAFE = ".safetensors"
OUR_FILES = (_OURS, "model.safetensors")  # of a model directory, and of the folders in it
_MOST = 64  # networks of one model
_LARGEST = 64 << 20  # bytes of a file of settings
_CHUNK = 1 << 20  # bytes
_NEWEST = "main"  # the branch that a name without a revision means


@dataclass(frozen=True, kw_only=True)
class HubOptions:
    """What commands that take a model of others may do to get it."""

    download: bool = False
    """Allow fetching a model of the Hugging Face hub (hf:owner/name, or hf:owner/name@revision); its files are checked against the hub's hashes."""  # noqa: E501


@dataclass(frozen=True)
class HubName:
    """A model of the hub, ``owner/name``, at a revision: a commit's hash, a branch or a tag."""

    name: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName | None:
        """Of ``owner/name`` or ``hf:owner/name``, each with or without ``@revision``; None for all else.

        >>> HubName.parse("hf:someone/cats@v2")
        HubName(name='someone/cats', revision='v2')
        """
        found = _NAMED.fullmatch(text)
        return cls(found["name"], found["revision"]) if found else None

    @property
    def place(self) -> Path:
        """Its folder in the cache."""
        return cache() / f"models--{self.name.replace('/', '--')}"

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, which is the same for ever."""
        return bool(_COMMIT.fullmatch(self.revision or ""))

    def copy(self) -> Path | None:
        """The copy of it in the cache, of this revision; without one the newest."""
        snapshots = self.place / "snapshots"
        if self.pinned:
            return copy if (copy := snapshots / str(self.revision)).is_dir() else None
        ref = self.place / "refs" / (self.revision or _NEWEST)
        if ref.is_file() and (copy := snapshots / ref.read_text(errors="replace").strip()[:40]).is_dir():
            return copy
        copies = sorted(snapshots.glob("*"), key=lambda one: one.stat().st_mtime)
        return copies[-1] if copies and self.revision is None else None


def origin(path: Path) -> str | None:
    """``owner/name@commit`` of a path within the hub's cache; None for any other path."""
    found = re.search(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/([0-9a-f]{40})(?:/|$)", path.as_posix())
    return f"{found[1]}/{found[2]}@{found[3]}" if found else None


def local_copy(path: Path, download: bool = False) -> Path:
    """A path that is there, as it is; else the copy on this machine of the hub's model that it names.

    ``owner/name`` or ``hf:owner/name``, with ``@revision`` where it is not to be the newest. A folder, or the only file
    of tensors in it. Fetched only with ``download``, which also holds the weights of a copy that is there against the
    hashes that the hub gave. UserError where there is no copy, or it cannot be fetched.
    """
    text = str(path)
    asked, sure = HubName.parse(text), text.startswith(PREFIX)
    if sure and asked is None:
        raise UserError(f"{text!r} names no model of the hub: write hf:owner/name or hf:owner/name@revision")
    if asked is None or (not sure and (path.exists() or (path.parent.exists() and not download))):
        return path
    copy = asked.copy()
    moves = asked.revision is not None and not asked.pinned
    if download and (moves or copy is None or not _is_whole(copy)):
        return _opened(_fetch(asked))
    if copy is None and sure:
        raise UserError(
            f"{text} is not on this machine ({cache()}), and nothing is fetched by itself: give option 'download' to "
            "fetch it, and the hash of a commit (hf:owner/name@commit) to be sure what comes"
        )
    if copy is None:
        raise UserError(
            f"{text} does not exist, and {cache()} has no copy of a model of the hub of this name: nothing is fetched "
            "by itself, so give a path, or option 'download' to fetch it"
        )
    if download:
        for file in copy.rglob(f"*{_SAFE}"):
            kept = file.readlink().name if file.is_symlink() else ""  # the cache names large files by their hashes
            if re.fullmatch("[0-9a-f]{64}", kept):
                _require(file, digest_file(file), kept, "SHA-256")
    return _opened(copy)


def _opened(folder: Path) -> Path:
    """What of a copy is to be opened."""
    files = [file for file in folder.iterdir() if holds_tensors(file)]
    whole = len(files) != 1 or (folder / _OURS).is_file() or is_diffusers(folder)
    return folder if whole else files[0]


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
    if _OURS in names:
        return []
    names = [name for name in names if _FILE.fullmatch(name) and name.endswith(".json")]
    return sorted(name for name in names if "/" not in name or _READ.fullmatch(name))


def _weights(folder: Path, names: Collection[str], model: str) -> list[str]:
    """The files of weights that are read of a model, those of its network last; its settings lie in the folder.

    UserError where it is none that can be read, before anything large is fetched.
    """
    readable = sorted(name for name in names if _FILE.fullmatch(name))
    safe = [name for name in readable if name.endswith(_SAFE)]
    if _OURS in readable:
        ours = [name for name in readable if name.rpartition("/")[2] in OUR_FILES]
        return [*(name for name in ours if name != _OURS), _OURS]
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
    indices = [name for name in names if name.endswith(f"{_SAFE}{INDEX}")]
    for part in (layout.vae.name if layout.vae else "vae", aux_component(layout.component), layout.component):
        start = f"{part}/" if part else ""
        there = [name.removeprefix(start) for name in (*safe, *indices) if name.startswith(start)]
        there = [name for name in there if "/" not in name]
        if part == layout.component and not there:
            _require_safe(model, [name for name in names if name.startswith(start)])
        if any(name.endswith(_SAFE) for name in there) or part == layout.component:
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


def _fetch(asked: HubName) -> Path:
    """The files of a model that are read, in the hub's cache, at its commit."""
    library, name = client(), asked.name
    with in_a_sentence(f"{name} cannot be fetched from the hub"), quiet(library):
        about = library.HfApi().model_info(name, revision=asked.revision, files_metadata=True, timeout=TIMEOUT)
        if not _COMMIT.fullmatch(about.sha or "") or (asked.pinned and about.sha != asked.revision):
            raise UserError(f"the hub names no commit of {name}, or another than was asked for: try again later")
        files = {file.rfilename: file for file in about.siblings or ()}
        _require_safe(name, files)
        folder = asked.place / "snapshots" / about.sha
        for choose in (_settings, _weights):
            chosen = [files[file] for file in choose(folder, files, name)]
            _require_size(name, chosen)
            _require_space(name, sum(entry.size or 0 for entry in chosen if not (folder / entry.rfilename).is_file()))
            for entry in chosen:
                _get(library, name, folder, entry)
        if not asked.pinned:
            write_atomic(asked.place / "refs" / (asked.revision or _NEWEST), about.sha.encode())
    return folder


def _get(library: Any, name: str, folder: Path, entry: Any) -> None:
    """One file, and whether it is what the hub lists; UserError, and the file is removed, where it is not."""
    if not (folder / entry.rfilename).is_file():
        size = entry.size or 0
        say(f"fetching {entry.rfilename} of {name} ({f'{size / 1e6:,.0f} MB' if size >= 1e6 else f'{size:,} bytes'})")
    file = Path(library.hf_hub_download(name, entry.rfilename, revision=folder.name, cache_dir=cache()))
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


def _require_size(name: str, chosen: Collection[Any]) -> None:
    """UserError where a model has more files than one can have, or settings larger than any honest ones."""
    for entry in chosen:
        if not entry.rfilename.endswith(_SAFE) and (entry.size or 0) > _LARGEST:
            raise UserError(
                f"{entry.rfilename} of {name} has {entry.size:,} bytes, and settings at most {_LARGEST:,}: it is not "
                "fetched, choose another model"
            )
    if len(chosen) > 2 * _MOST:
        raise UserError(f"{name} has {len(chosen):,} files of a model, and at most {2 * _MOST} are fetched")


def _require_space(name: str, size: int) -> None:
    """UserError where the disk cannot hold what is still to come."""
    place = cache()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(
            f"{name} needs {size / 1e9:.2f} GB in {place}, and {free / 1e9:.2f} GB are free: free some space, or set "
            "HF_HUB_CACHE to another folder"
        )
