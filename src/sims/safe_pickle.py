"""Foreign pickles, read without running anything that they name.

A pickle is a program: it names functions, and reading it calls them. Here every name is looked up in one table
(`_NAMES`) and stands for a function of this file that checks its arguments and makes plain data; nothing is imported,
no attribute is fetched by name, no `__setstate__` of another's class is called. A name or an opcode outside the tables
is refused. What comes out: None, numbers, strings, bytes, lists, tuples, dicts, sets, slices, numeric numpy arrays,
torch tensors on the CPU, dtypes, devices, and a `PersistentObject` in place of each network of NVIDIA's snapshots.
"""

from __future__ import annotations

import hashlib
import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims.errors import UserError
from sims.files import regular

_SHOWN = 160  # characters of a foreign text that enter a message
_UNFOLDS, _SPARE = 8, 1 << 20  # what calls may receive in all: bytes per byte of the file, and bytes for any file
_LONG = {str, bytes, bytearray, list, tuple, dict}


@dataclass(frozen=True, eq=False)
class PersistentObject:
    """What a snapshot of NVIDIA's says of an object that `torch_utils.persistence` pickled; its code stays unread.

    `state` is the object's __dict__; a network's has `_parameters`, `_buffers` and `_modules` (submodules are
    PersistentObjects too). `init_args` and `init_kwargs` are empty where the file did not record them. `source_hash`
    (16 hex digits) identifies the source code that came along; a torch.nn container brings none, and has "".
    """

    class_name: str
    init_args: tuple[Any, ...] = field(repr=False)
    init_kwargs: dict[Any, object] = field(repr=False)
    state: dict[Any, object] = field(repr=False)
    source_hash: str


@dataclass(frozen=True, eq=False)
class Opaque:
    """What stands in place of an object of an unknown class: its name, and the plain values that were to fill it."""

    name: str
    state: dict[Any, object] = field(default_factory=dict)


Storages = Callable[[Any], torch.Tensor]


def load(source: str | Path | bytes) -> Any:
    """The content of a pickle, given as a path or as its bytes.

    OrderedDict and EasyDict become dict, a torch Parameter its tensor (without gradient; on the CPU, whatever its
    device was); a function or class of the table that is only mentioned, not called, becomes an opaque name.
    UserError names what the file asks for beyond the tables, or says that it is missing or damaged.
    """
    if isinstance(source, bytes):
        return _load(io.BytesIO(source), "the pickle")
    regular(source)
    try:
        file = open(source, "rb")  # noqa: SIM115 (only the opening may raise here)
    except OSError as error:
        raise UserError(f"cannot read {source} ({error.strerror}): check the path and its permissions") from error
    with file:
        return _load(file, str(source))


def load_around(data: bytes, where: str, storages: Storages) -> Any:
    """As ``load``, of the pickle within an archive of torch: what is unknown becomes an ``Opaque``, and is not called.

    ``storages`` gives the values (N,) of a storage that the pickle refers to.
    """
    return _load(io.BytesIO(data), where, storages)


def _load(file: Any, where: str, storages: Storages | None = None) -> Any:
    try:
        return _Unpickler(file, storages).load()
    except _Refused as error:
        raise UserError(
            f"{where} asks for {_shown(error)}, which a foreign pickle may not use here; reading stopped and none of "
            "its code ran: ask its author for a safetensors or npz file"
        ) from error
    except Exception as error:  # bytes that are no pickle, or a hostile one, fail in any way at all
        reason = f"{type(error).__name__}: {_shown(error)}" if str(error) else type(error).__name__
        raise UserError(f"{where} is damaged, incomplete or no pickle ({reason}): download or copy it again") from error


def _shown(error: Exception) -> str:
    """The start of a message, without the line breaks and terminal codes that a file could put into it."""
    return ascii(str(error)[:_SHOWN])[1:-1]


class _Refused(Exception):
    """A name or an opcode that is not in the tables."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A name that a pickle may use, and what calling it does here."""

    name: str
    make: Callable[..., Any]


# -- what the names stand for ------------------------------------------------------------------------------------------


def _check(good: bool, what: str) -> None:
    """ValueError unless `good`: the pickle passes something that its writer never does."""
    if not good:
        raise ValueError(f"malformed {what}")


def _sizes(values: Any) -> tuple[int, ...]:
    """A shape, or strides in elements: a few whole numbers >= 0."""
    _check(isinstance(values, tuple) and len(values) <= 64, "shape")
    _check(all(type(value) is int and 0 <= value < 1 << 63 for value in values), "shape")
    return tuple(values)


_SCALARS = {type(None), bool, int, float, complex, str, bytes}


def _key(value: Any) -> Any:
    """A dict key or set member: no tuples, since a tuple of tuples of tuples can take forever to hash."""
    if type(value) not in _SCALARS and type(value) not in (_Name, Opaque):
        raise _Refused(f"a dict key or set member of type {type(value).__name__}")
    return value


def _dict() -> dict[Any, Any]:
    return {}


def _set(items: Any = ()) -> set[Any]:
    _check(type(items) in (list, tuple), "set")
    return {_key(item) for item in items}


def _frozenset(items: Any = ()) -> frozenset[Any]:
    return frozenset(_set(items))


def _bytes() -> bytes:
    return b""


def _bytearray(data: Any = b"", encoding: str = "latin-1") -> bytearray:
    return bytearray(data) if type(data) is bytes else bytearray(_encode(data, encoding))


def _encode(text: Any, encoding: Any) -> bytes:
    """How protocols 0 to 2 write bytes."""
    _check(type(text) is str and encoding in ("latin1", "latin-1"), "bytes")
    return text.encode("latin-1")


_DTYPES = {"b1", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "c8", "c16"}


def _numpy_dtype(code: Any, align: Any = False, copy: Any = True) -> np.dtype:
    if type(code) is not str or code not in _DTYPES:
        raise _Refused(f"a numpy array of dtype {code if type(code) is str else type(code).__name__}")
    return np.dtype(code, copy=True)  # type: ignore[call-overload]  # a copy, because its byte order follows by BUILD


def _array(cls: Any, shape: Any, code: Any) -> np.ndarray:
    """An empty array, whose content follows by BUILD."""
    _check(isinstance(cls, _Name) and cls.name == "numpy.ndarray", "array")
    return np.empty(0, np.uint8)


def _array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """How protocol 5 writes an array; order K (numpy 2.3) is C order followed by a transposition."""
    _check(type(buffer) in (bytes, bytearray) and isinstance(dtype, np.dtype) and order in ("C", "F", "K"), "array")
    _check((order == "K") == (axes is not None), "array")
    array = np.frombuffer(buffer, dtype).reshape(_sizes(shape), order="F" if order == "F" else "C")
    return array if axes is None else array.transpose(_sizes(axes))


def _numpy_scalar(dtype: Any, raw: Any) -> Any:
    _check(isinstance(dtype, np.dtype) and type(raw) is bytes and len(raw) == dtype.itemsize, "numpy number")
    return np.frombuffer(raw, dtype)[0]


def _storage(raw: Any) -> torch.Tensor:
    """The storage (N,) that `torch.save` wrote into `raw` (old format or zip), read by torch's restricted reader."""
    _check(type(raw) is bytes, "tensor storage")
    try:
        storage = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True, mmap=False)
    except pickle.UnpicklingError as error:
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise _Refused(f"{asked[1]} inside a tensor") from error
        raise ValueError("a tensor's storage cannot be read") from None  # torch's text advises to trust the file
    _check(isinstance(storage, torch.storage.TypedStorage), "tensor storage")
    data = storage._untyped_storage  # the public accessors warn
    _check(data.nbytes() <= len(raw), "tensor storage")  # more than was stored would be whatever lay in memory
    return torch.empty(0, dtype=storage.dtype, device="cpu").set_(data)  # type: ignore[call-overload]


def _tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, extra: Any = None
) -> torch.Tensor:
    """A view of a storage, never larger than it; whether it wanted a gradient is forgotten."""
    _check(type(storage) is torch.Tensor and storage.ndim == 1, "tensor")
    size, stride, (offset,) = _sizes(size), _sizes(stride), _sizes((offset,))
    _check(len(size) == len(stride) and not hooks and not extra, "tensor")
    last = offset + sum((length - 1) * step for length, step in zip(size, stride))
    several = math.prod(size) > len(storage)  # one value in many places, of which only a few can be meant
    _check(not several or (0 in stride and math.prod(size) <= _SPARE), "tensor")
    _check(0 in size or last < len(storage), "tensor")
    return storage.as_strided(size, stride, storage.storage_offset() + offset)


def _parameter(data: Any, grad: Any, hooks: Any, attributes: Any = None) -> torch.Tensor:
    _check(type(data) is torch.Tensor and not hooks, "parameter")
    return data


def _size(values: Any) -> torch.Size:
    return torch.Size(_sizes(values))


def _device(kind: Any, index: Any = None) -> torch.device:
    _check(type(kind) is str and (index is None or type(index) is int), "device")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _persistent(meta: Any) -> PersistentObject:
    """What `torch_utils.persistence` (version 6) calls to rebuild an object: there it would run `module_src`."""
    _check(type(meta) is dict and meta.get("type") == "class", "persistent object")
    name, source, state = meta.get("class_name"), meta.get("module_src"), meta.get("state") or {}
    _check(type(name) is str and type(source) is str and type(state) is dict, "persistent object")
    args, kwargs = state.get("_init_args") or (), state.get("_init_kwargs") or {}
    _check(type(args) is tuple and type(kwargs) is dict, "persistent object")
    digits = hashlib.sha256(source.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    return PersistentObject(name, args, kwargs, state, digits)


def _container(name: str) -> Callable[[], PersistentObject]:
    """torch.nn's containers are no persistent objects, yet hold the blocks of EDM's and EDM2's U-Nets."""
    return lambda: PersistentObject(name, (), {}, {}, "")


def _nothing() -> None:
    raise ValueError("numpy.ndarray is called")


def _table() -> dict[tuple[str, str], Any]:
    """Every (module, name) that a pickle may use. Names with two modules moved once."""
    calls: dict[tuple[str, str], Callable[..., Any]] = {
        ("collections", "OrderedDict"): _dict,
        ("dnnlib.util", "EasyDict"): _dict,
        ("_codecs", "encode"): _encode,
        ("numpy", "ndarray"): _nothing,  # an argument only
        ("numpy", "dtype"): _numpy_dtype,
        ("torch.storage", "_load_from_bytes"): _storage,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
        ("torch", "Size"): _size,
        ("torch", "device"): _device,
        ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    }
    for name in ("ModuleDict", "ModuleList"):
        calls["torch.nn.modules.container", name] = _container(name)
    for module in ("builtins", "__builtin__"):
        for make in (_set, _frozenset, _bytes, _bytearray):
            calls[module, make.__name__[1:]] = make
        calls[module, "complex"], calls[module, "slice"] = complex, slice
    for module in ("numpy.core", "numpy._core"):
        calls[f"{module}.multiarray", "_reconstruct"] = _array
        calls[f"{module}.multiarray", "scalar"] = _numpy_scalar
        calls[f"{module}.numeric", "_frombuffer"] = _array_from_buffer
    types = "bool uint8 int8 int16 int32 int64 float16 bfloat16 float32 float64 complex64 complex128"
    values = {("torch", name): getattr(torch, name) for name in types.split()}
    return {**{key: _Name(".".join(key), make) for key, make in calls.items()}, **values}


_NAMES = _table()


# -- the machine that reads --------------------------------------------------------------------------------------------


class _Unpickler(pickle._Unpickler):
    """Python's own unpickler with the tables in place of imports, calls and attributes.

    The one written in Python, not its faster twin in C: there BUILD and NEWOBJ cannot be replaced.
    """

    def __init__(self, file: Any, storages: Storages | None = None) -> None:
        super().__init__(file)
        self.storages = storages  # of an archive, whose pickle may name anything: see load_around
        size = file.seek(0, io.SEEK_END)
        self.left = _UNFOLDS * size + _SPARE
        self._file_read = lambda length: file.read(min(length, size))  # a length may be a lie
        file.seek(0)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES:
            return _NAMES[module, name]
        if self.storages is None:
            raise _Refused(f"{module}.{name}")
        return _Name(f"{module}.{name}", lambda *args: Opaque(f"{module}.{name}"))

    def persistent_load(self, pid: Any) -> torch.Tensor:
        if self.storages is None:
            raise _Refused("the opcode BINPERSID")
        return self.storages(pid)

    def key(self, value: Any) -> Any:
        """A dict key or set member; beside the weights of an archive, something opaque in place of what is none."""
        known = self.storages is None or type(value) in (*_SCALARS, _Name, Opaque)
        return _key(value) if known else Opaque(type(value).__name__)

    def spend(self, *values: Any) -> None:
        """ValueError where a short file that names one long value again and again would fill the memory."""
        self.left -= sum(len(value) for value in values if type(value) in _LONG)
        _check(self.left >= 0, f"pickle: it unfolds to more than {_UNFOLDS} times its size")


def _reduce(self: Any) -> None:
    """REDUCE and NEWOBJ: call a function of the table."""
    args, target = self.stack.pop(), self.stack.pop()
    if type(target) is Opaque:  # something that was made by what is unknown
        return self.append(Opaque(target.name))
    _check(type(target) is _Name and type(args) is tuple, "call")
    self.spend(*args)
    try:
        made = target.make(*args)
    except (_Refused, ValueError) as error:
        if self.storages is None or not (isinstance(error, _Refused) or target.name.startswith("numpy.")):
            raise
        made = Opaque(target.name)  # such as an array of words, beside the weights
    self.append(made)


def _build(self: Any) -> None:
    """BUILD: fill what was made empty; anything else would set attributes or call a __setstate__."""
    state, target = self.stack.pop(), self.stack[-1]
    if type(target) is Opaque:
        target.state.update(state if type(state) is dict else {})
    elif type(target) is dict and self.storages is not None:
        pass  # what torch notes beside a state dict
    elif type(target) is np.ndarray:
        _check(type(state) is tuple and len(state) == 5, "array")
        _, shape, dtype, fortran, raw = state
        if self.storages is not None and type(dtype) is Opaque:
            self.stack[-1] = Opaque("numpy.ndarray")
            return
        _check(isinstance(dtype, np.dtype) and type(fortran) is bool and type(raw) is bytes, "array")
        _check(math.prod(_sizes(shape)) * dtype.itemsize == len(raw), "array")
        self.spend(raw)
        target.__setstate__((1, shape, dtype, fortran, raw))
    elif isinstance(target, np.dtype):
        _check(type(state) is tuple and len(state) == 8 and state[1] in ("<", ">", "|", "="), "dtype")
        target.__setstate__((3, state[1], None, None, None, -1, -1, 0))  # type: ignore[attr-defined]
    elif type(target) is PersistentObject and not target.source_hash:
        _check(type(state) is dict, "module")
        self.spend(state)
        target.state.update(state)
    else:
        raise _Refused(f"attributes of an object of type {type(target).__name__}")


def _fill(self: Any, kind: type, items: list[Any]) -> None:
    """Put items into the list, dict (key, value, key, ...) or set on top of the stack; subclasses could run code."""
    target = self.stack[-1]
    if type(target) is Opaque:
        return
    _check(type(target) is kind, kind.__name__)
    if kind is list:
        target.extend(items)
    elif kind is set:
        target.update(map(self.key, items))
    else:
        _check(len(items) % 2 == 0, "dict")
        target.update(zip(map(self.key, items[::2]), items[1::2]))


def _dict_of(self: Any) -> None:
    items = self.pop_mark()
    self.append({})
    _fill(self, dict, items)


def _frozenset_of(self: Any) -> None:
    items = self.pop_mark()  # first, because it changes where `append` appends
    self.append(_frozenset(items))


def _bytearray_of(self: Any) -> None:
    length = int.from_bytes(self.read(8), "little")
    self.append(bytearray(self.read(length)))  # not allocated first: the length may be a lie


def _inst(self: Any) -> None:
    """INST is of Python 1; it is read only so that the message names what it asks for."""
    self.find_class(*(self.readline()[:-1].decode("ascii") for _ in range(2)))
    raise _Refused("the opcode INST")


_OURS: dict[str, Callable[[Any], None]] = {
    "REDUCE": _reduce,
    "NEWOBJ": _reduce,
    "BUILD": _build,
    "APPEND": lambda self: _fill(self, list, [self.stack.pop()]),
    "APPENDS": lambda self: _fill(self, list, self.pop_mark()),
    "SETITEM": lambda self: _fill(self, dict, [self.stack.pop(-2), self.stack.pop()]),
    "SETITEMS": lambda self: _fill(self, dict, self.pop_mark()),
    "ADDITEMS": lambda self: _fill(self, set, self.pop_mark()),
    "DICT": _dict_of,
    "FROZENSET": _frozenset_of,
    "BYTEARRAY8": _bytearray_of,
    "INST": _inst,
}
_PLAIN = """PROTO FRAME STOP MARK POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE GLOBAL
    STACK_GLOBAL NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT STRING BINSTRING
    SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
    TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 LIST EMPTY_LIST EMPTY_DICT EMPTY_SET BINPERSID"""  # plain data, no calls


class _Opcodes(dict[int, Callable[[Any], None]]):
    """What to do for an opcode, by its byte; those of neither table are refused."""

    def __init__(self) -> None:
        codes = {name: getattr(pickle, name)[0] for name in (*_PLAIN.split(), *_OURS)}
        super().__init__({code: _OURS.get(name) or pickle._Unpickler.dispatch[code] for name, code in codes.items()})

    def __missing__(self, code: int) -> Callable[[Any], None]:
        opcode = pickletools.code2op.get(chr(code))  # type: ignore[attr-defined]
        if opcode is None:
            raise ValueError(f"byte {code:#04x} is no opcode")
        raise _Refused(f"the opcode {opcode.name}")


_Unpickler.dispatch = _Opcodes()
