"""What a file under a model's name is, by its first bytes: true in one sentence, and with the way out."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path

from sims.errors import UserError
from sims.files import regular

_HEAD = 512  # bytes
_LARGEST_HEADER = 100_000_000  # bytes, of safetensors
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the number that torch.save once began with
_ZIP = b"PK\x03\x04"
_ZIP_ERRORS = (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself: fetch that with `git lfs pull`"),
    (b"\x89HDF\r\n", "a file of HDF5 (Keras and others), which cannot be read: give a folder of diffusers"),
    (b"GGUF", "a file of GGUF, whose quantized weights cannot be read: give a folder of diffusers"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"BZh", "compressed with bzip2: unpack it first"),
    (b"\xfd7zXZ", "compressed with xz: unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd: unpack it first"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it first"),
    (b"\x93NUMPY", "an array of numpy, and no model"),
    (b"PAR1", "a table of parquet, and no model"),
    (b"\x89PNG", "a picture, and no model"),
    (b"\xff\xd8\xff", "a picture, and no model"),
    (b"%PDF", "a PDF document, and no model"),
    (b"\x7fELF", "a program, and no model"),
)


def refuse_others(file: Path) -> None:
    """UserError that says what a file is and what to do, where it is no pickle that could be of NVIDIA's."""
    if file.is_dir():
        raise UserError(
            f"{file} is a folder without model.json, model_index.json or config.json: give a model directory, a folder "
            "of diffusers, or a .pkl of EDM or EDM2"
        )
    if holds_tensors(file):
        raise UserError(f"{file} is a file of tensors, and no pickle of EDM or EDM2: `sims import` reads it")
    if what := described(file):
        raise UserError(f"{file} cannot be read as a model: {what}")


def holds_tensors(file: Path) -> bool:
    """Whether a file is one of tensors, safetensors or of torch.save: its first bytes tell, whatever its name."""
    try:
        regular(file)
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
        return _is_safetensors(head) or head.startswith(_LEGACY) or (head.startswith(_ZIP) and _of_torch(file))
    except (UserError, OSError):
        return False  # whoever reads it says why it cannot be


def described(file: Path) -> str | None:
    """What a file is and what to do with it; None where it may be a pickle of NVIDIA's, or cannot be told or read."""
    try:
        if not file.is_file():
            return "it is a device or a pipe" if file.exists() else None
        with open(file, "rb") as opened:
            head = opened.read(_HEAD)
    except OSError:
        return None  # whoever reads it says why it cannot be
    if _is_safetensors(head):
        return None  # whoever reads it says whether it is whole
    if holds_tensors(file):
        return "it is a file of torch.save"
    if head.startswith(_ZIP):
        return _zipped(file)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head.strip(b"\0"):
        return "it holds nothing but zeros" if head else "it is empty: download or copy it again"
    for start, what in _STARTS:
        if head.startswith(start):
            return f"it is {what}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, saved under a model's name: download the file itself"
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it first"
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"B"):
        return "it is a graph of ONNX, which cannot be trained: give the network that it was exported from"
    if head[:1] != b"\x80" and not re.search(rb"[^\t\r\n\x20-\x7e]", head) and text[:1] in (b"{", b"["):
        return "it is a text of JSON: give the folder that it lies in"
    return None


def _is_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER


def _of_torch(file: Path) -> bool:
    """Whether a zip is what torch.save writes, and not TorchScript, which is written alike."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
            return "data.pkl" in names and "constants.pkl" not in names
    except _ZIP_ERRORS:
        return False


def _zipped(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except _ZIP_ERRORS:
        return "it is a zip archive that is cut off or damaged: download or copy it again"
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a program of TorchScript, which can only be run: give the network that it was made from"
    if any(name.endswith(".npy") for name in names):
        return "it is an .npz of numpy, and no model"
    return "it is a zip archive, and no model: unpack it, and give what is in it"
