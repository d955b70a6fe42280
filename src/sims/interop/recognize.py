"""What a file under a model's name is, by its first bytes: true in one sentence, and with the way out."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from safetensors import SafetensorError, safe_open

from sims.errors import UserError
from sims.safe_pickle import PLAIN

_HEAD, _LARGEST_PICKLE = 512, 16 << 20  # bytes: of a start, and of a pickle that names a hundred thousand tensors
_LARGEST_HEADER = 100_000_000  # bytes, of safetensors
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
_HOLDERS = [
    "ema",
    "ema_model",
    "model_ema",
    "params_ema",
    "ema_state_dict",
    "state_dict_ema",
    "state_dict",
    "model",
    "net",
    "network",
    "unet",
]
_READ = "only UNet2DModel and DiT of diffusers and the networks of EDM and EDM2 can be read, so choose one of these"
_CONVERT = (
    "convert it to a folder of diffusers with scripts/convert_{}_to_diffusers.py of its repository, and give that"
)
_MAKERS: tuple[tuple[str, str, str], ...] = (  # what names of tensors tell: whose they are, and what then to do
    (r"lora_|\.lora\.", "a LoRA, which changes another network", "fuse it with its network, if that can be read"),
    (r"^(model\.diffusion_model|first_stage_model)\.|\.attn2\.|add_embedding\.", "a network that text steers", _READ),
    (r"(^|\.)input_blocks\.", "a network of guided-diffusion", _READ),
    (r"(^|\.)(enc|dec)\.\d+x\d+_", "a network of EDM or EDM2 without its arguments", "give its own .pkl"),
    (r"(^|\.)x_embedder\.", "a DiT in its authors' form", _CONVERT.format("dit")),
    (r"(^|\.)temb\.dense\.", "DDPM in its authors' form", _CONVERT.format("ddpm_original_checkpoint")),
    (r"(^|\.)all_modules\.", "NCSN++ in its authors' form", _CONVERT.format("ncsnpp_original_checkpoint")),
    (r"^network\.", "a model of sims without its model.json", "give the folder that has both"),
)
_FOLDER = (
    "into a folder with the config.json and the scheduler_config.json that diffusers saved with the network, which "
    "needs them, and give that folder"
)


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
            head = opened.read(_HEAD)
            if head.startswith(_LEGACY):
                opened.seek(0)
                return _torch(opened, file, pickles=4)  # a number, a version, the system, and then the content
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
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= _LARGEST_HEADER:
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
    out = _made_by(names, f"put it, named diffusion_pytorch_model.safetensors, {_FOLDER}")
    return f"these are {len(names):,} tensors alone ({_some(names)}){out}"


def _made_by(names: list[str], otherwise: str) -> str:
    """Of which network tensors are, where that is none of diffusers, and the way out."""
    for pattern, what, out in _MAKERS:
        if any(re.search(pattern, name) for name in names):
            return f" of {what}: {out}"
    return f": {otherwise}"


def _zipped(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if any(name.endswith("/constants.pkl") for name in names):
                return "it is a program of TorchScript, which can only be run: give the network that it was made from"
            inside = next((name for name in names if name.count("/") <= 1 and name.endswith("data.pkl")), None)
            if inside is not None:
                with archive.open(inside) as opened:
                    return _torch(opened, file)
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, RuntimeError):
        return "it is a zip archive that is cut off or damaged: download or copy it again"
    if any(name.endswith(".npy") for name in names):
        return "it is an .npz of numpy, and no model"
    return "it is a zip archive, and no model: unpack it, and give what is in it"


# -- files of torch.save -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Named:
    """What a pickle makes by calling a name; nothing is called here."""

    name: str

    def __call__(self, *arguments: object) -> object:
        return _Table() if self.name == "collections.OrderedDict" else self

    @property
    def tensor(self) -> bool:
        return self.name.startswith(("torch._utils._rebuild_tensor", "torch._utils._rebuild_parameter"))


class _Table(dict[object, object]):
    """A dict of a pickle, with its keys that are words or numbers: others can take forever to hash."""

    def __setitem__(self, key: object, value: object) -> None:
        if isinstance(key, str | int):
            super().__setitem__(key, value)


class _Outline(pickle._Unpickler):
    """Which tables, tensors and other objects a pickle makes, by name; nothing is imported, called or filled."""

    def __init__(self, data: bytes, names: set[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.names = names

    def find_class(self, module: str, name: str) -> object:
        self.names.add(f"{module}.{name}"[:200])
        return _Named(f"{module}.{name}"[:200])

    def persistent_load(self, pid: object) -> object:
        return pid[1] if isinstance(pid, tuple) and pid[:1] == ("module",) and len(pid) > 1 else None  # a class


def _call(self: Any) -> None:
    self.stack.pop()
    made = self.stack.pop()
    self.append(made() if isinstance(made, _Named) else None)


def _fill(self: Any, items: list[object]) -> None:
    target = self.stack[-1]
    if isinstance(target, _Table):
        for key, value in zip(items[::2], items[1::2]):
            target[key] = value
    elif isinstance(target, list):
        target.extend(items)


def _filled(self: Any) -> None:
    items = self.pop_mark()
    self.append(_Table())
    _fill(self, items)


_OPCODES: dict[str, Callable[[Any], None]] = {
    "REDUCE": _call,
    "NEWOBJ": _call,
    "BUILD": lambda self: self.stack.pop(),
    "EMPTY_DICT": lambda self: self.append(_Table()),
    "EMPTY_SET": lambda self: self.append([]),
    "DICT": _filled,
    "SETITEM": lambda self: _fill(self, [self.stack.pop(-2), self.stack.pop()]),
    "SETITEMS": lambda self: _fill(self, self.pop_mark()),
    "APPEND": lambda self: _fill(self, [self.stack.pop()]),
    "APPENDS": lambda self: _fill(self, self.pop_mark()),
    "ADDITEMS": lambda self: _fill(self, self.pop_mark()),
    "FROZENSET": lambda self: self.append(self.pop_mark()),
}
_KEPT = [name for name in (*PLAIN.split(), "PERSID", "BINPERSID") if name not in _OPCODES]
_Outline.dispatch = {
    **{getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _KEPT},
    **{getattr(pickle, name)[0]: work for name, work in _OPCODES.items()},
}


def _torch(opened: IO[bytes], file: Path, pickles: int = 1) -> str:
    """What the last of the pickles in a file of torch.save is, and what to do with it."""
    data, names = opened.read(_LARGEST_PICKLE), set[str]()
    try:
        outline = _Outline(data, names)
        for _ in range(pickles):
            content = outline.load()
    except Exception:  # a damaged file, or a hostile one, fails in any way at all
        return "it is a file of torch.save that is cut off or damaged: download or copy it again"
    tables: dict[tuple[object, ...], object] = {(): content}
    for _ in range(2):
        inside = [(at, held) for at, held in tables.items() if isinstance(held, _Table)]
        tables |= {(*at, key): value for at, held in inside for key, value in held.items()}
    found = {keys: _tensors(table) for keys, table in tables.items() if _tensors(table)}
    if not found:
        other = next((value.name for value in tables.values() if isinstance(value, _Named) and not value.tensor), None)
        if other is not None:
            return (
                f"it is a file of torch.save that holds an object of {_some([other])}, which only its own code can "
                f"read: where you trust it, write its state_dict() with safetensors.torch.save_file; put that {_FOLDER}"
            )
        keys = _some([key for key in content if isinstance(key, str)]) if isinstance(content, _Table) else ""
        return f"it is a file of torch.save without tensors that have names{f' ({keys})' * bool(keys)}: {_READ}"
    order = [(), *((name,) for name in _HOLDERS), *found]
    place = next(keys for keys in order if keys in found)
    known = ("torch.", "collections.OrderedDict", "numpy.", "_codecs.encode")
    others = sorted(name for name in names if not name.startswith(known))
    caution = f" (where you trust it: it names {_some(others)}, whose code would run)" if others else ""
    key = "".join(f"[{key!r}]" for key in place)
    snippet = (
        f"`import torch, safetensors.torch as st; tensors = torch.load({file.name!r}, map_location='cpu', "
        f"weights_only={not others}){key}; st.save_file({{name: tensor.contiguous().clone() for name, tensor in "
        "tensors.items()}, 'diffusion_pytorch_model.safetensors')`"
    )
    out = _made_by(found[place], f"write them as safetensors{caution}: {snippet}; put that {_FOLDER}")
    return (
        f"it is a file of torch.save with tensors{f' under {place[0]!a}' if place else ''} ({_some(found[place])}){out}"
    )


def _tensors(table: object) -> list[str]:
    """The names of the tensors in a table."""
    if not isinstance(table, _Table):
        return []
    return [
        name for name, value in table.items() if isinstance(value, _Named) and value.tensor and isinstance(name, str)
    ]


def _some(names: list[str]) -> str:
    shown = ascii(", ".join(name[:80] for name in names[:3]))[1:-1]
    return f"{shown}, ..." if len(names) > 3 else shown
