"""Modules of diffusers and their weights: in whichever files, and under whichever names, these lie in a folder."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sims.config import JSON, check_sizes, fitted, read_as
from sims.errors import UserError
from sims.interop.parameterizations import library, quiet
from sims.interop.recognize import described
from sims.interop.state_dicts import not_finite, some
from sims.networks.layers import check_depth

WEIGHTS = "diffusion_pytorch_model"
UNSAFE = ("*.bin", "*.ckpt", "*.pt", "*.pth", "*.pkl", "*.msgpack", "*.h5")  # weights never read nor copied
MOST_TABLE = 1 << 26  # numbers in tables that are in no file of weights, such as those of positions
INDEX = ".index.json"  # which file each tensor of a sharded set lies in
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})")
_NAMED = 3  # tensors that a message names


@dataclass(frozen=True)
class _Depth:
    """How deep a configuration says that its network is."""

    layers_per_block: int = 1
    num_layers: int | None = 1
    down_block_types: tuple[str, ...] = ()
    up_block_types: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        levels = max(len(self.down_block_types), len(self.up_block_types), 1)
        check_depth(max(self.layers_per_block * levels, self.num_layers or 0))


@dataclass(frozen=True)
class _Stored:
    """A tensor in a file: where, under which name there, of which shape, and whether of floating point."""

    file: Path
    name: str
    shape: tuple[int, ...]
    floating: bool


def make_module(architecture: str, config: Mapping[str, JSON], empty: bool) -> nn.Module:
    """A module of diffusers from its configuration; ``empty``: with parameters on meta, its other tables on the CPU.

    UserError where the configuration makes none, or one beyond what networks are, before anything of its size is made.
    """
    settings: dict[str, Any] = {key: value for key, value in config.items() if not key.startswith("_")}
    check_sizes(settings, "config.json")
    fitted(settings, _Depth, "config.json", rest=True)
    make = getattr(library(), architecture).from_config
    try:
        with quiet():
            with torch.device("meta"):
                planned = make(settings)
            tables = sum(buffer.numel() for buffer in planned.buffers())
            if tables > MOST_TABLE:
                raise UserError(f"its tables would have {tables:,} numbers: at most {MOST_TABLE:,} are possible")
            with torch.device("cpu"):  # also where others are made on meta
                if not empty:
                    return make(settings)  # type: ignore[no-any-return]
                with init_empty_weights():
                    return make(settings)  # type: ignore[no-any-return]
    except (UserError, MemoryError):
        raise
    except Exception as error:  # what a library makes of a configuration that it does not check can fail in any way
        reason = ascii(" ".join(str(error).split())[:300])[1:-1]
        raise UserError(f"diffusers cannot make the {architecture} of config.json ({reason}): correct it") from error


def pretrained(architecture: str, folder: Path) -> tuple[nn.Module, str]:
    """A model of diffusers from its folder, float32, in evaluation mode, and the prefix that its tensors' names had.

    UserError if it is not there and whole; numbers of a configuration that weights do not bear out make nothing.
    """
    stored = _headers(_weight_files(folder))
    try:
        model = make_module(architecture, read_as(folder / "config.json", dict[str, JSON]), empty=True)
        wanted, prefix, found = _fitting(model, stored)
    except UserError as error:
        raise UserError(f"the {architecture} in {folder} cannot be read: {error}") from None
    tensors: dict[str, Tensor] = {}
    files = defaultdict(list)
    for name in wanted:
        files[found[name].file].append(name)
    for file, names in files.items():
        with safe_open(file, framework="pt") as opened:
            for name in names:
                tensor = opened.get_tensor(found[name].name)
                # A file's tensors may lie at any address, and the last bits of a product depend on alignment.
                tensors[name] = tensor.to(torch.float32 if tensor.is_floating_point() else tensor.dtype, copy=True)
    if broken := not_finite(tensors):
        raise UserError(
            f"the {architecture} in {folder} holds values that are not finite in {some(broken)}: copy it again"
        )
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False), prefix


def _weight_files(folder: Path) -> list[Path]:
    """The files of one whole set of weights in a folder; UserError where there is none."""
    there = [
        path.name for pattern in ("", INDEX) for path in folder.glob(f"[!.]*.safetensors{pattern}") if path.is_file()
    ]
    if not any(name.endswith(".safetensors") for name in there):
        raise UserError(_without_weights(folder))
    return [folder / name for name in one_set(str(folder), there)]


def one_set(where: str, files: Collection[str]) -> list[str]:
    """Of names of files, those of one whole set of weights: the plain one, else the first variant.

    Where there are an index and its shards, a single file beside them is of an earlier time: diffusers writes either,
    and leaves what is there. UserError, which says where, if there is none.
    """
    sets: dict[str, list[str]] = defaultdict(list)
    indices = {file.removesuffix(f".safetensors{INDEX}") for file in files if file.endswith(INDEX)}
    for file in sorted(file for file in files if file.endswith(".safetensors")):
        sets[_SHARD.sub("", file.removesuffix(".safetensors"))].append(file)
    names = [name for name in sorted(sets) if name == WEIGHTS or name.startswith(f"{WEIGHTS}.")] or sorted(sets)
    if not names:
        raise UserError(f"{where} has no weights: it needs {WEIGHTS}.safetensors, so choose another model")
    if len(names) > 1 and not names[0].startswith(WEIGHTS):
        raise UserError(f"{where} has weights of several names ({', '.join(names)}): leave the network's there alone")
    whole = [file for file in sets[names[0]] if not _SHARD.search(file)]
    found = [file for file in sets[names[0]] if file not in whole]
    if whole and not (found and names[0] in indices):
        return whole
    parts = [_SHARD.search(file) for file in found]
    there, total = {part[1] for part in parts if part}, max(part[2] for part in parts if part)
    if len(there) != len(found) or len(there) != int(total):
        raise UserError(f"{where} has {len(found)} of the {int(total)} files of its weights: copy it whole")
    return found


def _without_weights(folder: Path) -> str:
    unsafe = sorted(path.name for pattern in UNSAFE for path in folder.glob(pattern))
    if not unsafe:
        return f"{folder} has no weights: it needs {WEIGHTS}.safetensors, so download or copy it whole"
    return (
        f"{folder} has its weights only as {unsafe[0]}, a format that can run code: where you trust it, load it with "
        "diffusers (from_pretrained) and write it again as safetensors (save_pretrained)"
    )


def _headers(files: Iterable[Path]) -> dict[str, _Stored]:
    """What the files say that they hold, by name."""
    stored: dict[str, _Stored] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (no mapping)
                    part = opened.get_slice(name)
                    floating = str(part.get_dtype()).startswith(("F", "BF"))
                    if name in stored:
                        raise UserError(f"{file} and {stored[name].file} both have a tensor {name!r}: remove one")
                    stored[name] = _Stored(file, name, tuple(part.get_shape()), floating)
        except (SafetensorError, OSError, ValueError) as error:
            reason = described(file) or f"it is damaged or incomplete ({' '.join(str(error).split())[:200]})"
            raise UserError(f"{file} cannot be read: {reason}; download or copy it again") from error
    return stored


def _fitting(model: nn.Module, stored: Mapping[str, _Stored]) -> tuple[list[str], str, dict[str, _Stored]]:
    """The names of the module's tensors, the prefix that the stored ones bear, and what is stored for each."""
    wanted, known = model.state_dict(), {name for name, _ in model.named_buffers()}
    first, last = min(stored, default=""), max(stored, default="")
    common = first[: next((at for at, (a, b) in enumerate(zip(first, last)) if a != b), len(first))]
    prefixes = ["", *(common[: at + 1] for at, letter in enumerate(common) if letter == ".")]
    attempts = [(prefix, _under_our_names(model, stored, prefix)) for prefix in prefixes]
    prefix, found = next(((p, found) for p, found in attempts if wanted.keys() <= found.keys()), attempts[0])
    missing = [name for name in wanted if name not in found]
    more = [name for name in found if name not in wanted and name not in known]
    if missing or more:
        what = [f"lack {len(missing)} tensors ({_some(missing)})"] if missing else []
        what += [f"have {len(more)} that it has no place for ({_some(more)})"] if more else []
        raise UserError(
            f"the weights {' and '.join(what)}: config.json is of another network, or their names are another program's"
        )
    for name, value in wanted.items():
        if found[name].shape != tuple(value.shape):
            raise UserError(
                f"the tensor {name} has shape {found[name].shape}, and config.json makes it {tuple(value.shape)}: "
                "restore both from one place"
            )
        if found[name].floating != value.is_floating_point():
            raise UserError(f"the tensor {name} holds no numbers of floating point: quantized weights cannot be read")
    return list(wanted), prefix, found


def _under_our_names(model: nn.Module, stored: Mapping[str, _Stored], prefix: str) -> dict[str, _Stored]:
    """What is stored without a prefix, and with the names of today for attention as it was once written."""
    found = {name.removeprefix(prefix): entry for name, entry in stored.items()}
    rename: Any = getattr(model, "_fix_state_dict_keys_on_load", None)
    if rename is not None:
        rename(found)
    return found


def _some(names: list[str]) -> str:
    shown = ascii(", ".join(name[:80] for name in names[:_NAMED]))[1:-1]
    return f"{shown}, ..." if len(names) > _NAMED else shown
