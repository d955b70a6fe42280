"""What lies below a path, before anything of it is believed: names, kinds by content, what is passed over and why."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from sims.data.pictures import HEAD, Unreadable, kind_of
from sims.errors import UserError
from sims.files import LARGEST, read_bytes
from sims.limits import most

#: Suffixes that are taken at their word until a file is decoded; what has another one, or none, shows its first bytes.
SUFFIXES = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff"), "picture"),
    **dict.fromkeys((".ppm", ".pgm", ".pbm", ".pnm", ".avif", ".jp2", ".j2k", ".jpx"), "picture"),
    ".npy": "array",
    ".npz": "arrays",
    ".parquet": "table",
    ".zip": "archive",
}
LISTINGS = ("dataset.json", "metadata.csv", "metadata.jsonl")  # of EDM and StyleGAN; of the hub's image folders
_HIDDEN = re.compile(r"^(\..*|__macosx)$")  # folders and files that nobody put there
_BESIDE = re.compile(  # files that go without saying beside pictures, unless they are some
    r"^(thumbs\.db|desktop\.ini|(readme|licen[cs]e|copying|notice)(\..*)?|.*\.(md|sha256|md5))$"
)
GZIP = b"\x1f\x8b"
IDX_TYPES = {b"\x08": ">u1", b"\x09": ">i1", b"\x0b": ">i2", b"\x0c": ">i4", b"\x0d": ">f4", b"\x0e": ">f8"}
MOST_MEMBER = 1 << 30  # bytes of one picture, packed or not
_NAMED = 3  # examples of each reason
_ZIP_ERRORS = (zipfile.BadZipFile, OSError, EOFError, zlib.error, NotImplementedError, RuntimeError)


@dataclass
class Listing:
    """The files below a path, by kind: "picture", "array", "arrays", "table"; ``read`` gives the bytes of a name.

    names        kind -> names below the path (/ between folders), sorted; kinds are also "idx"
    listings     files that list labels
    passed_over  name -> why it is not read; the usual junk is not among them
    remarks      what else is to be said
    """

    source: Path
    packed: bool
    read: Callable[[str], bytes]
    names: dict[str, list[str]] = field(default_factory=dict)
    listings: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def of(self, *kinds: str) -> list[str]:
        """The names of some kinds, sorted."""
        return sorted(name for kind in kinds for name in self.names.get(kind, ()))

    def take(self, name: str, head: Callable[[], bytes]) -> None:
        """Sort one file in, by its suffix or, where that says nothing, by its first bytes."""
        file = name.rpartition("/")[2].lower()
        if file in LISTINGS:
            self.listings.append(name)
            return
        suffix = os.path.splitext(file)[1]
        kind = SUFFIXES.get(suffix)
        if kind is None:
            try:
                first = head()
                kind = "idx" if is_idx(first) else kind_of(first)
            except (OSError, Unreadable) as error:
                if not _BESIDE.match(file):
                    self.passed_over[name] = f"cannot be read ({error})"
                return
        if kind == "archive":
            self.passed_over[name] = "an archive within the data: unpack it"
        elif kind in ("picture", "array", "arrays", "table", "idx"):
            self.names.setdefault(kind, []).append(name)
        elif suffix in (".heic", ".heif") or kind == "heic":
            self.passed_over[name] = "HEIC, which is not read: convert it to png or jpg"
        elif not _BESIDE.match(file):
            self.passed_over[name] = f"no picture ({suffix or 'no suffix'}{f', {kind}' if kind else ''})"


def is_idx(head: bytes) -> bool:
    """Whether a file, packed by gzip or not, begins as an IDX file (MNIST's format)."""
    if head[:2] == GZIP:
        with suppress(zlib.error):
            head = zlib.decompressobj(31).decompress(head, 4)
    return head[:2] == b"\0\0" and head[2:3] in IDX_TYPES and head[3:4] in (b"\x01", b"\x02", b"\x03", b"\x04")


def list_path(path: Path) -> Listing:
    """The files below a folder, or in a zip. Errors: UserError where it cannot be read."""
    listing = _list_folder(path) if path.is_dir() else _list_zip(path)
    for names in listing.names.values():
        names.sort()
    return listing


def passed_over(found: dict[str, str]) -> list[str]:
    """Sentences about files that are not read, one for each reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in sorted(found.items()):
        reasons.setdefault(reason, []).append(name)
    lines = []
    for reason, names in reasons.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(f"{len(names)} not read, {reason}: {', '.join(names[:_NAMED])}{more}")
    return lines


# -- folders -----------------------------------------------------------------------------------------------------------


def _list_folder(root: Path) -> Listing:
    def read(name: str) -> bytes:
        try:
            return read_bytes(f"{root}/{name}", LARGEST if name.lower().endswith(LISTINGS) else MOST_MEMBER)
        except UserError as error:
            raise Unreadable(str(error)) from error

    def head(name: str) -> bytes:
        with open(f"{root}/{name}", "rb", buffering=0) as file:
            return file.read(HEAD)

    listing = Listing(root, False, read)
    again: list[str] = []
    for name, problem in _walk(root, again):
        if problem:
            listing.passed_over[name] = problem
        else:
            listing.take(name, lambda name=name: head(name))  # type: ignore[misc]
    if again:
        listing.remarks.append(
            f"{len(again)} links lead to what is read already, and count once: {', '.join(sorted(again)[:_NAMED])}"
        )
    return listing


def _walk(root: Path, again: list[str]) -> Iterator[tuple[str, str]]:
    """Files below a folder with why they are not read ("" = they are), each inode once; real ones before links."""
    seen_folders = {_identity(os.stat(root))}
    seen_files: set[tuple[int, int]] = set()
    folders = [(root, "")]
    links: list[tuple[Path, str]] = []
    while folders or links:
        if not folders:
            path, name = links.pop(0)
            yield from _link(path, name, again, seen_folders, seen_files, folders)
            continue
        folder, below = folders.pop()
        try:
            device = os.stat(folder).st_dev
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            yield below, f"cannot be read ({error.strerror})"
            continue
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if _HIDDEN.match(entry.name.lower()):
                continue
            if entry.is_symlink():
                links.append((Path(entry.path), name))
            elif entry.is_dir():
                if _once(_identity(entry.stat()), seen_folders):
                    folders.append((Path(entry.path), name))
            elif not entry.is_file():
                yield name, "no regular file"
            elif _once((device, entry.inode()), seen_files):
                yield name, ""
            else:
                again.append(name)


def _link(
    path: Path, name: str, again: list[str], seen_folders: set[tuple[int, int]], seen_files: set[tuple[int, int]],
    folders: list[tuple[Path, str]],
) -> Iterator[tuple[str, str]]:  # fmt: skip
    try:
        found = os.stat(path)
    except OSError as error:
        yield name, f"a link that leads nowhere ({error.strerror})"
        return
    if stat.S_ISDIR(found.st_mode):
        if _once(_identity(found), seen_folders):
            folders.append((path, name))
        else:
            again.append(name)
    elif not stat.S_ISREG(found.st_mode):
        yield name, "no regular file"
    elif _once(_identity(found), seen_files):
        yield name, ""
    else:
        again.append(name)


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _once(key: tuple[int, int], seen: set[tuple[int, int]]) -> bool:
    if key in seen:
        return False
    seen.add(key)
    return True


# -- zip files ---------------------------------------------------------------------------------------------------------


def _list_zip(path: Path) -> Listing:
    try:
        archive = zipfile.ZipFile(path)
        infos = archive.infolist()
    except (*_ZIP_ERRORS, ValueError) as error:
        raise UserError(f"{path} cannot be read as a zip file ({error}): download or make it again") from error
    members: dict[str, zipfile.ZipInfo] = {}

    def read(name: str) -> bytes:
        try:
            with archive.open(members[name]) as file:
                return file.read(members[name].file_size)  # what a stream unfolds to beyond that is never made
        except _ZIP_ERRORS as error:
            raise Unreadable(str(error)) from error

    def head(name: str) -> bytes:
        try:
            with archive.open(members[name]) as file:
                return file.read(HEAD)
        except _ZIP_ERRORS as error:
            raise Unreadable(str(error)) from error

    listing = Listing(path, True, read)
    twice: Counter[str] = Counter()
    for info in infos:
        name = mended(info.filename)
        if not name or info.is_dir() or name.endswith("/") or any(_HIDDEN.match(p) for p in name.lower().split("/")):
            continue
        if name in members:
            twice[name] += 1
            continue
        members[name] = info
        limit = LARGEST if name.rpartition("/")[2].lower() in LISTINGS else MOST_MEMBER
        if info.file_size > min(limit, most(info.compress_size)):
            listing.passed_over[name] = (
                f"said to unfold to {info.file_size / 1e9:.1f} GB, more than such a file of that size holds"
            )
        else:
            listing.take(name, lambda name=name: head(name))  # type: ignore[misc]
    if twice:
        listing.remarks.append(f"{len(twice)} names stand more than once in {path.name}; the first of each is read")
    return listing


def mended(name: str) -> str:
    """A name in an archive as everybody else writes it: / between folders, no way out of the archive."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    return "/".join(parts) + ("/" if parts and name[-1] in "/\\" else "")


def common_folders(names: Sequence[str]) -> int:
    """How many leading folders all names share."""
    paths = [name.split("/")[:-1] for name in names]
    depth = 0
    while paths and all(len(parts) > depth for parts in paths) and len({parts[depth] for parts in paths}) == 1:
        depth += 1
    return depth
