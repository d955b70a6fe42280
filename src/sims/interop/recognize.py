"""What a file under a model's name is, by its first bytes: true in one sentence, and with the way out."""

from __future__ import annotations

import itertools
import os
import pickletools
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from safetensors import SafetensorError, safe_open

from sims.errors import UserError

_HEAD, _MOST_OPCODES, _LARGEST_PICKLE = 512, 300_000, 64 << 20
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # the number that torch.save once began with
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
_HOLDERS = "ema ema_model model_ema params_ema ema_state_dict state_dict_ema state_dict model net network unet module"
_MAKERS: tuple[tuple[str, str], ...] = (
    (r"lora_|\.lora\.", "of a LoRA, which changes another network and is none itself"),
    (r"^(model\.diffusion_model|first_stage_model)\.|\.attn2\.|add_embedding\.", "of a network that text steers"),
    (r"^(input_blocks|module\.input_blocks)\.", "of a network of guided-diffusion"),
    (r"(^|\.)(enc|dec)\.\d+x\d+_", "of a network of EDM or EDM2: give its own .pkl"),
    (r"(^|\.)(down_blocks|transformer_blocks)\.", "of a network of diffusers"),
)


@dataclass(frozen=True)
class _Pickled:
    """What a pickle names, without reading it: classes and functions, and the words in it, in order."""

    names: tuple[str, ...]
    words: tuple[str, ...]

    @property
    def holder(self) -> str:
        """The key under which the tensors lie; empty where they are the whole."""
        first = next((word for word in self.words if "." in word), None)
        before = set(itertools.takewhile(lambda word: word != first, self.words)) if first else set()
        return next((word for word in _HOLDERS.split() if word in (before if before else self.words)), "")


def refuse_others(file: Path) -> None:
    """UserError that says what a file is and what to do, where it is no pickle that could be of NVIDIA's."""
    if file.is_dir():
        raise UserError(
            f"{file} is a folder without model.json, model_index.json or config.json: give a model directory, a folder "
            "of diffusers, or a .pkl of EDM or EDM2"
        )
    if what := described(file):
        raise UserError(f"{file} cannot be read as a model: {what}")


def described(file: Path) -> str | None:
    """What a file is and what to do with it; None where it may be a pickle of NVIDIA's, or cannot be told or read."""
    try:
        if not file.is_file():
            return "it is a device or a pipe" if file.exists() else None
        with open(file, "rb") as opened:
            head, size = opened.read(_HEAD), os.fstat(opened.fileno()).st_size
            if head.startswith(_LEGACY):
                opened.seek(len(_LEGACY))
                return _torch(_pickled(_legacy(opened)), file)
            if head.startswith(b"PK\x03\x04"):
                return _zipped(file)
    except OSError:
        return None  # whoever reads it says why it cannot be
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head.strip(b"\0"):
        return "it holds nothing but zeros" if head else "it is empty: download or copy it again"
    for start, what in _STARTS:
        if head.startswith(start):
            return f"it is {what}"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, saved under a model's name: download the file itself"
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size:
        return _safetensors(file)
    if head[257:262] == b"ustar":
        return "it is a tar archive: unpack it first"
    if head[:1] == b"\x08" and head[1:2] < b"\x20" and head[2:3] in (b"\x12", b"\x1a", b"\x22", b"\x3a", b"B"):
        return "it is a graph of ONNX, which cannot be trained: give the network that it was exported from"
    if head[:1] != b"\x80" and not re.search(rb"[^\t\r\n\x20-\x7e]", head) and text[:1] in (b"{", b"["):
        return "it is a text of JSON: give the folder that it lies in"
    return None


def _safetensors(file: Path) -> str | None:
    try:
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
    except (SafetensorError, OSError, ValueError):
        return "it is a file of safetensors that is cut off or damaged: download or copy it again"
    whole = f"these are {len(names):,} tensors alone ({_some(names)}){_maker(names)}"
    return f"{whole}; a network needs {_beside(file.name)}"


def _beside(name: str) -> str:
    return (
        f"its configuration too: put {name}, named diffusion_pytorch_model.safetensors, into a folder with the "
        "config.json and scheduler_config.json that diffusers saved with it, and give that folder (or EDM's own .pkl)"
    )


def _maker(names: Iterable[str]) -> str:
    names = list(names)
    return next((f", {what}" for pattern, what in _MAKERS if any(re.search(pattern, name) for name in names)), "")


def _zipped(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            inside = next((name for name in names if name.count("/") <= 1 and name.endswith("data.pkl")), None)
            if any(name.endswith("/constants.pkl") for name in names):
                return "it is a program of TorchScript, which can only be run: give the network that it was made from"
            if inside is not None:
                if archive.getinfo(inside).file_size > _LARGEST_PICKLE:
                    return f"it is a file of torch.save whose {inside} is larger than that of any network"
                with archive.open(inside) as opened:
                    return _torch(_pickled(pickletools.genops(opened)), file)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return "it is a zip archive that is cut off or damaged: download or copy it again"
    if any(name.endswith(".npy") for name in names):
        return "it is an .npz of numpy, and no model"
    return "it is a zip archive, and no model: unpack it, and give what is in it"


def _legacy(opened: IO[bytes]) -> Iterator[tuple[object, object, object]]:
    """The opcodes of the third pickle of an old file: after a number, a version and the system."""
    for _ in range(2):
        for _ in pickletools.genops(opened):
            pass
    yield from pickletools.genops(opened)


def _pickled(opcodes: Iterable[tuple[object, object, object]]) -> _Pickled:
    names: dict[str, None] = {}
    words: list[str] = []
    try:
        for opcode, argument, _ in itertools.islice(opcodes, _MOST_OPCODES):
            kind = getattr(opcode, "name", "")
            if kind == "GLOBAL":
                names[str(argument).replace(" ", ".")[:200]] = None
            elif kind == "STACK_GLOBAL":
                names[".".join(words[-2:])[:200]] = None
            elif isinstance(argument, str):
                words.append(argument)
    except ValueError:  # the end of a damaged file: what came before tells
        pass
    return _Pickled(tuple(names), tuple(words))


def _torch(found: _Pickled, file: Path) -> str:
    modules = [name for name in found.names if name.startswith("torch.nn.modules.")]
    if modules or not any(name.startswith("torch.") for name in found.names):
        own = [name for name in found.names if not name.startswith(("torch.", "collections.", "numpy."))]
        shown = _some(own or modules or list(found.words))
        what = "a whole module" if modules else "something else than tensors"
        return (
            f"it is a file of torch.save that holds {what} ({shown}), and reading that would run its code: in the "
            "program that it is of, write its state_dict() with safetensors.torch.save_file; a network needs "
            + _beside("that file")
        )
    known = ("torch.", "collections.OrderedDict", "numpy.", "_codecs.encode")
    others = [name for name in found.names if not name.startswith(known)]
    tensors = [word for word in found.words if "." in word]
    key = f"[{found.holder!r}]" if found.holder else ""
    trusted = "weights_only=True" if not others else "weights_only=False"
    caution = f" (where you trust it: it names {_some(others)}, which may run code)" if others else ""
    return (
        f"it is a file of torch.save with tensors{f' under {found.holder!r}' if key else ''} ({_some(tensors)})"
        f"{_maker(tensors)}; write them as safetensors{caution}: `import torch, safetensors.torch as st; tensors = "
        f"torch.load({file.name!r}, map_location='cpu', {trusted}){key}; st.save_file({{name: tensor.contiguous() for "
        f"name, tensor in tensors.items()}}, 'diffusion_pytorch_model.safetensors')`; a network needs "
        + _beside("that file")
    )


def _some(names: list[str]) -> str:
    shown = ascii(", ".join(name[:80] for name in names[:3]))[1:-1]
    return f"{shown}, ..." if len(names) > 3 else shown
