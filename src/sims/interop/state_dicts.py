"""Files of tensors by name: .safetensors, and .pt, .pth or .ckpt of torch, read without running anything in them.

Trainers put weights beside optimizers and averages, and under names of their own: ``{"model": ..., "ema": ...}``,
``state_dict``, ``module.``, ``_orig_mod.``. What is nested becomes one list of dotted names, of which one prefix is
chosen: averages before weights.
"""

from __future__ import annotations

import re
import struct
import zipfile
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sims.errors import UserError
from sims.files import parse_json, regular
from sims.interop.recognize import described, holds_tensors
from sims.safe_pickle import Opaque, PersistentObject, load_around

# params_ema, net_ema, averaged_model, model_EMA, emaModel
_AVERAGE_PART = re.compile(r"(?i:(^|_)(ema|averaged?|avg|shadow)(_|$))|^ema(?=[A-Z])|(?<=[a-z])E(MA|ma)$")
_BUFFER = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked|inv_freq)$")  # which have no averages
_STORED = {
    "byte": torch.uint8, "char": torch.int8, "complexfloat": torch.complex64, "complexdouble": torch.complex128,
}  # fmt: skip
_INSIDE = re.compile(
    r"(?<=\.)(_orig_mod|_checkpoint_wrapped_module|_fsdp_wrapped_module)\."
)  # what wraps parts of a network
WRAPPERS = ("state_dict", "model", "module", "_orig_mod", "model_state_dict", "net", "network", "params", "weights")
_AVERAGE = "averages of the weights"
_OTHERS = re.compile(r"(opt|sched|lr_|scaler|rng|epoch|step|n_averaged|num_updates|initted|callbacks|loops|hyper|args)")
NAMED = 10  # tensors that a message names
_DEEPEST = 64  # dicts within dicts


@dataclass(frozen=True)
class Content:
    """What a file holds: tensors by their full dotted names, and the plain values beside them (``args.model``)."""

    path: Path
    tensors: dict[str, Tensor]
    values: dict[str, object] = field(default_factory=dict)


def read_state_dict(path: Path | str, wanted: Collection[str] = ()) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of a network in a file, by the network's own names, and notes: sentences on what was chosen.

    ``wanted`` are the names that the network has, or some of them; without them the usual wrappings are taken off.
    Averages are taken where there are both. The tensors are mapped from the file, not yet read: copy what is to stay.
    Errors: UserError for files that are missing, of another kind, damaged, or without tensors.

    >>> import torch
    >>> torch.save({"model": {"module.w": torch.zeros(2)}, "ema": {"module.w": torch.ones(2)}}, FOLDER + "/net.pt")
    >>> read_state_dict(FOLDER + "/net.pt", ["w"])
    ({'w': tensor([1., 1.])}, ("averages of the weights ('ema') are taken, and not the weights ('model')",))
    """
    chosen, notes, _ = choose(read(path).tensors, wanted)
    return chosen, notes


def choose(
    tensors: Mapping[str, Tensor], wanted: Collection[str] = ()
) -> tuple[dict[str, Tensor], tuple[str, ...], str]:
    """The tensors below one prefix, notes as of ``read_state_dict``, and the prefix; all without a wanted name."""
    tensors = _averages_by_name({_bare(name): tensor for name, tensor in tensors.items()})
    if wanted:
        counts = Counter(prefix for name in wanted for prefix in _prefixes(tensors, name))
        found = [prefix for prefix, count in counts.items() if count == max(counts.values())]
    else:
        found = _unwrapped(tensors)
    if not found:
        return dict(tensors), (), ""
    prefix = min(found, key=lambda one: (not _averaged(one), bool(_OTHERS.match(one)), len(one)))
    chosen = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    where = prefix.rstrip(".")
    if _averaged(prefix):
        rest = {other.rstrip(".") for other in found if not _averaged(other)} or _weights_beside(tensors, prefix)
        also = f", and not the weights ({min(rest, key=len)!r})" if rest else ""
        said = [f"{_AVERAGE} ({_named_average(prefix)!r}) are taken{also}"]
        if more := sorted({_named_average(one) for one in found if one != prefix and _averaged(one)}):
            said.append(f"there are other averages, which are not taken: {some([repr(one) for one in more])}")
        return chosen, tuple(said), prefix
    notes = [f"the tensors lie under {where!r}"] if where else []
    if others := sorted({one.rstrip(".") for one in found if one != prefix and not _OTHERS.match(one)}):
        notes.append(f"those under {some([repr(one) for one in others])} would fit as well, and are not taken")
    if any(".shadow_params." in f".{name}" for name in tensors):
        notes.append("averages of the weights ('shadow_params') have no names, fit in several ways, and are not taken")
    return chosen, tuple(notes), prefix


def unlike(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """In words, what a state dict lacks or exceeds of a module's ``own``, or holds that no network does; else empty."""
    shapes = [
        f"{key} is {tuple(tensors[key].shape)} and not {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != own[key].shape
    ]
    both = [key for key in own if key in tensors and not shapes]
    kinds = [
        f"{key} is of {tensors[key].dtype} and not {own[key].dtype}"
        for key in both
        if tensors[key].is_floating_point() != own[key].is_floating_point()
    ]
    broken = not_finite({key: tensors[key] for key in both})
    parts = {
        "it lacks": [key for key in own if key not in tensors],
        "the module has no": [key for key in tensors if key not in own],
        "": shapes or kinds,
        "values that are not finite in": broken,
    }
    return "; ".join(f"{words} {some(names)}".strip() for words, names in parts.items() if names)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that hold NaN or infinities, which no network was trained to."""
    return [name for name, one in tensors.items() if one.is_floating_point() and not torch.isfinite(one).all()]


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def read(path: Path | str) -> Content:
    """All that a file holds, by dotted names; UserError as ``read_state_dict``."""
    path = Path(path)
    regular(path)
    if not holds_tensors(path):
        what = described(path) or "it is no file of tensors, or a damaged one"
        raise UserError(f"{path} cannot be read: {what} (.safetensors, .pt, .pth and .ckpt can be)")
    with open(path, "rb") as file:
        start = file.read(2)
    content = _archive(path) if start == b"PK" else _legacy(path) if start == b"\x80\x02" else _safetensors(path)
    tensors = {name: value for name, value in content if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"{path} holds no tensors: give the file that has the weights")
    values = {name: value for name, value in content if not isinstance(value, Tensor)}
    return Content(path, tensors, values)


# -- reading -----------------------------------------------------------------------------------------------------------

Named = list[tuple[str, object]]


def _safetensors(path: Path) -> Named:
    try:
        with safe_open(path, "pt") as opened:
            about = _flat({key: _parsed(value) for key, value in (opened.metadata() or {}).items()})
            return [*about, *((name, opened.get_tensor(name)) for name in opened.keys())]  # noqa: SIM118
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise _damaged(path, error) from error


def _legacy(path: Path) -> Named:
    """What ``torch.save`` wrote before version 1.6."""
    try:
        with open(path, "rb") as opened:  # torch goes by the endings of paths
            return list(_flat(torch.load(opened, map_location="cpu", weights_only=True)))
    except Exception as error:  # a damaged or hostile pickle fails in any way at all
        raise UserError(
            f"{path} is an old file of torch.save that is damaged, or asks for more than tensors; none of its code "
            "ran: write its state_dict as safetensors"
        ) from error


def _parsed(value: str) -> object:
    """A value of safetensors' metadata, which are words: JSON where it is that."""
    try:
        return parse_json(value, "metadata")
    except UserError:
        return value


def _archive(path: Path) -> Named:
    """What ``torch.save`` writes since version 1.6: a zip of a pickle and of storages, which are mapped into memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            places = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if (order := places.get("byteorder")) and archive.read(order) != b"little":
                raise UserError(f"{path} was written on a machine of another byte order: write it as safetensors")
            data = archive.read(places["data.pkl"])
            content = load_around(data, str(path), _Storages(path, archive, places))
    except (OSError, zipfile.BadZipFile, struct.error) as error:
        raise _damaged(path, error) from error
    return list(_flat(content))


class _Storages:
    """Storages (N,) of an archive by what its pickle calls them, mapped from the file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile, places: Mapping[str, zipfile.ZipInfo]) -> None:
        self.archive, self.places, self.made = archive, places, dict[str, Tensor]()
        self.bytes = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)

    def __call__(self, pid: Any) -> Tensor:
        word, kind, key, _, count = pid
        if word != "storage" or type(key) is not str or type(count) is not int or count < 0:
            raise ValueError("malformed storage")
        if key not in self.made:
            self.made[key] = self._mapped(self.places[f"data/{key}"])
        named = kind.name.rpartition(".")[2].removesuffix("Storage").lower()
        dtype = _STORED.get(named, getattr(torch, named, None))
        dtype = torch.uint8 if kind.name.endswith("UntypedStorage") else dtype
        if not isinstance(dtype, torch.dtype):
            raise ValueError(f"unknown storage {kind.name}")
        values = self.made[key]
        if count * dtype.itemsize > len(values):
            raise ValueError("a storage is shorter than it says")
        return values[: count * dtype.itemsize].view(dtype)

    def _mapped(self, info: zipfile.ZipInfo) -> Tensor:
        if info.compress_type != zipfile.ZIP_STORED:
            return torch.frombuffer(bytearray(self.archive.read(info)) or bytearray(1), dtype=torch.uint8)
        header = bytes(self.bytes[info.header_offset : info.header_offset + 30].tolist())
        begin = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
        values = self.bytes[begin : begin + info.file_size]
        return values if begin % 64 == 0 else values.clone()  # numbers must lie at multiples of their size


def _flat(content: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, object]]:
    """Everything within dicts, lists and opaque objects, by dotted names."""
    if isinstance(content, Opaque | PersistentObject):
        content = content.state
    inside: Any = ()
    if isinstance(content, Mapping):
        inside = _of_module(content) if "_modules" in content else content.items()
    elif isinstance(content, list | tuple):
        inside = enumerate(content)
    elif name:
        yield name, content.detach() if isinstance(content, Tensor) else content
    for key, value in inside if depth < _DEEPEST else ():
        yield from _flat(value, f"{name}.{key}" if name else str(key), depth + 1)


def _of_module(state: Mapping[Any, Any]) -> Iterator[tuple[str, object]]:
    """What the state dict of a module has that was saved whole: not its buffers that are made anew, nor its hooks."""
    anew = state.get("_non_persistent_buffers_set")
    for part in ("_parameters", "_buffers", "_modules"):
        held = state.get(part)
        for key, value in held.items() if isinstance(held, Mapping) else ():
            if part != "_buffers" or not isinstance(anew, set) or key not in anew:
                yield key, value


def _damaged(path: Path, error: Exception) -> UserError:
    reason = ascii(" ".join(str(error).split())[:160])[1:-1]
    return UserError(f"{path} is damaged or incomplete ({reason}): download or copy it again")


# -- choosing ----------------------------------------------------------------------------------------------------------


def _prefixes(tensors: Mapping[str, Tensor], name: str) -> Iterator[str]:
    """What stands before a name in the names that end with it."""
    for full in tensors:
        if full == name or full.endswith(f".{name}"):
            yield full.removesuffix(name)


def _bare(name: str) -> str:
    """A name without the wrappings of parts of a network; those of all of it stay, and are said."""
    match = _INSIDE.search(name)
    if match is None or all(part in WRAPPERS or _averaged(part) for part in name[: match.start() - 1].split(".")):
        return name
    return _INSIDE.sub("", name)


def _averaged(prefix: str) -> bool:
    parts = prefix.split(".")
    return any(_AVERAGE_PART.search(part) for part in parts) and "online_model" not in parts


def _named_average(prefix: str) -> str:
    """What a file calls averages, as far as it tells them from others: ``ema``, ``ema.0``, ``ema_0.9999``."""
    parts = prefix.rstrip(".").split(".")
    first = next(at for at, part in enumerate(parts) if _AVERAGE_PART.search(part))
    last = next((at for at in range(first + 1, len(parts)) if not parts[at].isdigit()), len(parts))
    return ".".join(parts[first:last])


def _weights_beside(tensors: Mapping[str, Tensor], prefix: str) -> set[str]:
    heads = {name.partition(".")[0] for name in tensors}
    return {head for head in WRAPPERS if head in heads and not prefix.startswith(f"{head}.")}


def _unwrapped(tensors: Mapping[str, Tensor]) -> list[str]:
    """The prefix of the network, where the rest is of a trainer: wrappings are taken off as long as there are any."""
    prefix, names = "", list(tensors)
    while True:
        heads = {name.partition(".")[0] for name in names if "." in name}
        averages = sorted(head for head in heads if _AVERAGE_PART.search(head) and not _OTHERS.match(head))
        rest = {name for name in names if not _OTHERS.match(name)}
        around = [head for head in WRAPPERS if rest and all(name.startswith(f"{head}.") for name in rest)]
        inner = next(iter([*averages, *around]), None)
        if inner is None:
            return [prefix] if prefix else []
        prefix += f"{inner}."
        names = [name.removeprefix(f"{inner}.") for name in names if name.startswith(f"{inner}.")]


def _averages_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Averages that are kept by number (``shadow_params.0``) or without dots, under the names of their weights."""
    made = dict(tensors)
    groups: dict[str, list[str]] = {}
    for name in tensors:
        if match := re.match(r"(.*?\bmodel_ema\.)(?!(?:decay|num_updates)$)[^.]+$|(.*?)\bshadow_params\.\d+$", name):
            groups.setdefault(match[1] or f"{match[2]}shadow_params.", []).append(name)
    for start, names in groups.items():
        where = start.removesuffix("shadow_params.").removesuffix("model_ema.").removesuffix("ema.")
        weights = [name for name in tensors if name.startswith(where) and not name.startswith(start)]
        if start.endswith("model_ema."):
            dotless = {name.removeprefix(where).removeprefix("model.").replace(".", ""): name for name in weights}
            pairs = {dotless.get(name.removeprefix(start), ""): name for name in names}
        else:
            pairs = _by_order(
                tensors, [name for name in weights if not _OTHERS.match(name)], sorted(names, key=_number)
            )
        if {*pairs.values()} == {*names} and "" not in pairs:
            for name in names:
                del made[name]
            made |= {f"ema.{name}": tensors[pairs.get(name, name)] for name in weights if not _OTHERS.match(name)}
    return made


def _number(name: str) -> int:
    return int(name.rpartition(".")[2])


def _by_order(tensors: Mapping[str, Tensor], weights: list[str], averages: list[str]) -> dict[str, str]:
    """Averages by the names of the weights, in order; {} where buffers, which have none, cannot be told from them.

    A weight that is stored twice has one average, as it is one parameter of its module.
    """
    first: dict[tuple[int, torch.Size], str] = {}
    for name in weights:
        if tensors[name].numel() and not _BUFFER.search(name):
            first.setdefault((tensors[name].data_ptr(), tensors[name].shape), name)
    own = _aligned([(name, tensors[name].shape) for name in first.values()], [tensors[name].shape for name in averages])
    by_name = dict(zip(own, averages))
    same = {name: first.get((tensors[name].data_ptr(), tensors[name].shape)) for name in weights}
    return {name: by_name[source] for name, source in same.items() if source in by_name}


def _aligned(own: Sequence[tuple[str, torch.Size]], shapes: Sequence[torch.Size]) -> list[str]:
    """The names of these shapes, in order, where there is but one way to have them; else none."""
    if len(own) == len(shapes):
        return [name for name, _ in own] if [shape for _, shape in own] == list(shapes) else []
    ways = [1, *[0] * len(shapes)]  # in how many ways the first of the shapes are found among the names so far
    back = [list(ways)]
    for _, shape in own:
        for place in range(len(shapes), 0, -1):
            ways[place] = min(2, ways[place] + (ways[place - 1] if shapes[place - 1] == shape else 0))
        back.append(list(ways))
    if ways[-1] != 1:
        return []
    found, place = list[str](), len(shapes)
    for row in range(len(own), 0, -1):
        name, shape = own[row - 1]
        if place and shapes[place - 1] == shape and back[row - 1][place] == 0:
            found.append(name)
            place -= 1
    return found[::-1]
