"""Foreign pickles: what is plain arrives unchanged, and nothing that they name is ever run."""

from __future__ import annotations

import builtins
import codecs
import copyreg
import functools
import importlib
import io
import operator
import os
import pickle
import struct
import subprocess
import sys
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sims import safe_pickle
from sims.errors import UserError
from sims.safe_pickle import PersistentObject, load

PROTOCOLS = range(6)
DTYPES = ("bool", "uint8", "int8", "int16", "int64", "float16", "bfloat16", "float32", "float64", "complex64")


class Call:
    """Pickles as a call of any function."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple:
        return self.function, self.args


class Plain:
    """An object of an unknown class."""

    def __init__(self) -> None:
        self.value = 1


class Dictionary(dict):
    """A dict of an unknown class."""


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that hostile pickles create where their code runs."""
    return tmp_path / "canary"


def attacks(canary: Path) -> dict[str, Call]:
    """Calls that would create the canary, by the name that is to be refused."""
    code = f"open({str(canary)!r}, 'w')"
    return {
        f"{os.system.__module__}.system": Call(os.system, f"touch {canary}"),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", str(canary)]),
        "eval": Call(eval, code),
        "exec": Call(exec, code),
        "__import__": Call(__import__, "os"),
        "open": Call(builtins.open, str(canary), "w"),
        "getattr": Call(getattr, canary, "touch"),
        "functools.partial": Call(functools.partial, open, str(canary), "w"),
        "operator.methodcaller": Call(operator.methodcaller, "touch"),
        "importlib.import_module": Call(importlib.import_module, "os"),
        "_codecs.decode": Call(codecs.decode, b"", "zip"),
        "torch.serialization.load": Call(torch.load, str(canary)),
        "copyreg._reconstructor": Call(copyreg._reconstructor, Plain, object, None),
        "torch.nn.modules.linear.Linear": Call(torch.nn.Linear, 1, 1),
    }


ATTACKS = list(attacks(Path("canary")))


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(UserError, match="may not use") as caught:
        load(data)
    for word in words:
        assert word in str(caught.value)


def broken(data: bytes, *words: str) -> None:
    with pytest.raises(UserError, match="damaged, incomplete or no pickle") as caught:
        load(data)
    for word in words:
        assert word in str(caught.value)


def same(a: Any, b: Any) -> bool:
    """Equal in type, value, dtype and shape, all the way down; NaN equals itself."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, np.ndarray | np.generic):
        bits = np.asarray(a).tobytes() == np.asarray(b).tobytes()
        return type(a) is type(b) and a.dtype == b.dtype and a.shape == b.shape and bits
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, slice):
        return (a.start, a.stop, a.step) == (b.start, b.stop, b.step)
    return a == b


# -- what is read ------------------------------------------------------------------------------------------------------

REAL = npst.boolean_dtypes() | npst.integer_dtypes(endianness="?") | npst.floating_dtypes(endianness="?")
NUMBERS = REAL | npst.complex_number_dtypes(endianness="?")
ARRAYS = npst.arrays(NUMBERS, npst.array_shapes(min_dims=0, min_side=0))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers(allow_nan=False)
    | st.text()
)
KEYS = SCALARS | st.binary()
LEAVES = (
    KEYS
    | st.binary().map(bytearray)
    | st.sets(KEYS)
    | st.frozensets(KEYS)
    | st.builds(slice, st.integers(), st.none(), st.integers())
    | ARRAYS
    | ARRAYS.map(lambda array: array.T)
    | npst.from_dtype(np.dtype("f4"), allow_nan=False)
    | NUMBERS
    | st.sampled_from([torch.float16, torch.int64, torch.device("cpu"), torch.device("cuda", 1), torch.Size([2, 3])])
)
NESTED = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(KEYS, inner), max_leaves=12
)


@settings(max_examples=300, deadline=None)
@given(NESTED, st.sampled_from(PROTOCOLS))
def test_nested_plain_data_arrives_unchanged(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert same(load(data), pickle.loads(data))  # numpy makes the byte order native in some protocols


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_shared_and_cyclic_values_stay_so(protocol: int) -> None:
    array = np.arange(3.0)
    value: dict[str, Any] = {"a": array, "b": [array]}
    value["self"] = value
    read = load(pickle.dumps(value, protocol))
    assert read["a"] is read["b"][0] and read["self"] is read


def test_arrays_of_numpy_1_are_read() -> None:
    data = pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "n": np.float32(2)}, 2)
    assert b"numpy._core" in data
    old = load(data.replace(b"numpy._core", b"numpy.core"))
    assert same(old, {"a": np.arange(6.0).reshape(2, 3), "n": np.float32(2)})


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    kinds = {name: (torch.rand(2, 3, generator=generator) * 9).to(getattr(torch, name)) for name in DTYPES}
    base = torch.arange(24.0).reshape(2, 3, 4)
    views = {"transposed": base.permute(2, 0, 1), "part": base[1:, ::2, 1], "scalar": torch.tensor(2.5)}
    return {**kinds, **views, "none": torch.empty(0, 3)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tensors_are_read(protocol: int) -> None:
    value = {"deep": [tensors(), {"parameter": torch.nn.Parameter(torch.ones(2))}]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = load(pickle.dumps(value, protocol))
    assert same(read["deep"][0], tensors())
    parameter = read["deep"][1]["parameter"]
    assert type(parameter) is torch.Tensor and not parameter.requires_grad and bool((parameter == 1).all())


def stored(tensor: torch.Tensor, zipped: bool) -> bytes:
    """The bytes of a tensor's storage as torch.save writes them, in its new or old format."""
    storage = torch.storage.TypedStorage(wrap_storage=tensor.untyped_storage(), dtype=tensor.dtype, _internal=True)
    buffer = io.BytesIO()
    torch.save(storage, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def rebuilt(raw: bytes, size: Any, stride: Any, offset: Any = 0, **extra: Any) -> Call:
    """A tensor as torch pickles it, from the bytes of its storage."""
    storage = Call(torch.storage._load_from_bytes, raw)
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict(), *extra.values())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_both_formats_of_storages_are_read(zipped: bool, dtype: str) -> None:
    tensor = torch.arange(6).to(getattr(torch, dtype)).reshape(2, 3)
    read = load(pickle.dumps({"x": [rebuilt(stored(tensor, zipped), (2, 3), (3, 1))]}))
    assert same(read["x"][0], tensor)


# -- NVIDIA's snapshots ------------------------------------------------------------------------------------------------


@pytest.fixture
def nvidia(monkeypatch: pytest.MonkeyPatch, canary: Path) -> types.SimpleNamespace:
    """Classes that pickle as those of `torch_utils.persistence` and `dnnlib` do; their source creates the canary."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")
    source = f"open({str(canary)!r}, 'w')"

    def _reconstruct_persistent_obj(meta: dict) -> None:
        exec(meta["module_src"])

    _reconstruct_persistent_obj.__module__ = persistence.__name__
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    EasyDict = type("EasyDict", (dict,), {"__module__": util.__name__})
    util.EasyDict = EasyDict
    for name, module in (("torch_utils", types.ModuleType("torch_utils")), ("dnnlib", types.ModuleType("dnnlib"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, persistence.__name__, persistence)
    monkeypatch.setitem(sys.modules, util.__name__, util)

    class Persistent:
        def __reduce__(self) -> tuple:
            meta = {"type": "class", "version": 6, "module_src": source, "class_name": type(self).__name__}
            return _reconstruct_persistent_obj, ({**meta, "state": self.__dict__},)

    class Layer(Persistent, torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).half())
            self.register_buffer("filter", torch.ones(1, 2))
            self._init_args, self._init_kwargs = (), {}

    class Network(Persistent, torch.nn.Module):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__()
            self._init_args, self._init_kwargs = args, kwargs
            self.skip_scale = np.sqrt(0.5)
            self.enc = torch.nn.ModuleDict({"8x8_conv": Layer()})
            self.dec = torch.nn.ModuleList([Layer()])

    class Loss(Persistent):
        def __init__(self) -> None:
            self.P_mean, self.scale = -0.4, np.float32([0.5, 0.25])

    return types.SimpleNamespace(
        source=source, EasyDict=EasyDict, Network=Network, Loss=Loss, reconstruct=_reconstruct_persistent_obj
    )


@pytest.mark.parametrize("protocol", range(2, 6))
def test_snapshots_are_read_and_their_code_is_not_run(
    nvidia: types.SimpleNamespace, protocol: int, canary: Path, tmp_path: Path
) -> None:
    network = nvidia.Network(8, img_channels=3, dtype=torch.float16, options=nvidia.EasyDict(mult=[1, 2]))
    data = nvidia.EasyDict(ema=network, loss_fn=nvidia.Loss(), dataset_kwargs=nvidia.EasyDict(path="a", xflip=False))
    path = tmp_path / "network-snapshot.pkl"
    path.write_bytes(pickle.dumps(data, protocol))
    read = load(path)
    assert not canary.exists()
    assert type(read) is dict and same(read["dataset_kwargs"], {"path": "a", "xflip": False})
    ema = read["ema"]
    assert type(ema) is PersistentObject and ema.class_name == "Network" and len(ema.source_hash) == 16
    assert same(ema.init_args, (8,))
    assert same(ema.init_kwargs, {"img_channels": 3, "dtype": torch.float16, "options": {"mult": [1, 2]}})
    assert same(ema.state["skip_scale"], np.sqrt(0.5)) and ema.state["training"] is True
    enc, dec = ema.state["_modules"]["enc"], ema.state["_modules"]["dec"]
    assert (enc.class_name, enc.source_hash, dec.class_name) == ("ModuleDict", "", "ModuleList")
    for layer in (enc.state["_modules"]["8x8_conv"], dec.state["_modules"]["0"]):
        assert layer.class_name == "Layer" and layer.init_args == () and layer.init_kwargs == {}
        assert same(layer.state["_parameters"], {"weight": torch.arange(6.0).reshape(2, 3).half()})
        assert same(layer.state["_buffers"], {"filter": torch.ones(1, 2)})
    assert same(read["loss_fn"].state, {"P_mean": -0.4, "scale": np.float32([0.5, 0.25])})


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_inside_a_snapshot_are_refused(nvidia: types.SimpleNamespace, name: str, canary: Path) -> None:
    attack = attacks(canary)[name]
    for meta in (
        {"type": "class", "version": 6, "module_src": nvidia.source, "class_name": "N", "state": {"x": attack}},
        {"type": "class", "version": 6, "module_src": attack, "class_name": "N", "state": {}},
    ):
        refused(pickle.dumps({"ema": Call(nvidia.reconstruct, meta)}), name)
    assert not canary.exists()


def test_a_snapshot_of_another_kind_is_refused(nvidia: types.SimpleNamespace) -> None:
    meta = {"type": "class", "version": 6, "module_src": "", "class_name": "N", "state": {}}
    for change in ({"type": "function"}, {"class_name": 3}, {"module_src": b""}, {"state": [1]}):
        broken(pickle.dumps(Call(nvidia.reconstruct, {**meta, **change})), "persistent object")
    refused(pickle.dumps(Call(nvidia.reconstruct, meta), 0)[:-1] + b"}b.", "PersistentObject")


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_by_name(name: str, protocol: int, canary: Path) -> None:
    attack = attacks(canary)[name]
    for value in (attack, {"fid": [np.ones(2), attack]}, (torch.ones(2), {"a": attack}), {attack: 1}):
        refused(
            pickle.dumps(value, protocol), name if protocol > 2 else name.split(".")[-1]
        )  # 0 to 2: Python 2's names
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_inside_a_tensor_are_refused(name: str, zipped: bool, canary: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"x": attacks(canary)[name]}, buffer, _use_new_zipfile_serialization=zipped)
    for raw in (buffer.getvalue(), *([] if zipped else [pickle.dumps(attacks(canary)[name], 2)])):
        refused(pickle.dumps(rebuilt(raw, (1,), (1,))), "inside a tensor", name.split(".")[-1])
    assert not canary.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_only_storages_come_from_inside_a_tensor(zipped: bool) -> None:
    for value in ({"x": 1}, torch.ones(2), None):
        buffer = io.BytesIO()
        torch.save(value, buffer, _use_new_zipfile_serialization=zipped)
        broken(pickle.dumps(rebuilt(buffer.getvalue(), (1,), (1,))), "tensor storage")


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "path.join"),
        ("builtins", "set.__class__"),
        ("builtins", "set.mro"),
        ("numpy", "ndarray.tofile"),
        ("numpy", "core.multiarray._reconstruct"),
        ("collections", "OrderedDict.fromkeys"),
        ("sims.safe_pickle", "load"),
        ("sims.safe_pickle", "_Name"),
        ("torch", "load"),
        ("torch.nn.modules.container", "Sequential"),
        ("builtins", "a\n\x1b[2Jb"),
        ("", ""),
    ],
)
def test_dotted_and_odd_names_are_refused(module: str, name: str) -> None:
    strings = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
    shown = ascii(f"{module}.{name}")[1:-1]
    refused(b"\x80\x04" + strings + b"\x93.", shown)
    if "\n" not in name:
        refused(f"c{module}\n{name}\n.".encode(), shown)


def test_objects_of_unknown_classes_are_refused() -> None:
    for value in (
        Plain(),
        Dictionary(a=1),
        torch.nn.Linear(1, 1),
        np.random.default_rng(0),
        Path("a"),
        ValueError("a"),
    ):
        for protocol in PROTOCOLS:
            refused(pickle.dumps(value, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_and_records_are_refused(protocol: int) -> None:
    for dtype in (object, [("a", "f4"), ("b", "i8")], "U3", "S3", "M8[s]"):
        refused(pickle.dumps(np.zeros(2, dtype), protocol), "numpy array of dtype")


@pytest.mark.parametrize(
    "data, word",
    [
        (b"(S'touch x'\nios\nsystem\n.", "os.system"),
        (b"(i__builtin__\nset\n.", "INST"),
        (b"(c__builtin__\nset\no.", "OBJ"),
        (b"\x82\xf0.", "EXT1"),
        (b"\x83\xf0\x00.", "EXT2"),
        (b"\x84\xf0\x00\x00\x00.", "EXT4"),
        (b"Pid\n.", "PERSID"),
        (b"NQ.", "BINPERSID"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x05C\x01a\x98.", "READONLY_BUFFER"),
        (b"\x80\x04c__builtin__\nset\n)}\x92.", "NEWOBJ_EX"),
    ],
)
def test_opcodes_outside_the_table_are_refused(data: bytes, word: str) -> None:
    copyreg.add_extension("os", "system", 0xF0)
    try:
        refused(data, word)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


FUNCTION = b"ccollections\nOrderedDict\n"
STATE = b"}X\x01\x00\x00\x00aK\x01s"  # {"a": 1}


@pytest.mark.parametrize("target", [FUNCTION, b"N", b"]", b"}", b")", FUNCTION + b")R", b"ctorch\nfloat32\n", b"K\x01"])
@pytest.mark.parametrize("state", [STATE, b"N" + STATE + b"\x86", b")"])
def test_build_sets_no_attributes(target: bytes, state: bytes) -> None:
    refused(b"\x80\x02" + target + state + b"b.", "attributes of an object")


def test_build_cannot_change_the_table() -> None:
    before = dict(safe_pickle._NAMES)
    name = safe_pickle._NAMES["collections", "OrderedDict"]
    slots = b"NX\x01\x00\x00\x00a"
    refused(b"\x80\x02" + FUNCTION + b"N}X\x04\x00\x00\x00makeNs\x86b.", "_Name")
    broken(b"\x80\x02" + FUNCTION + slots + b"s.")
    assert before == safe_pickle._NAMES and name.make() == {}


def test_calls_reach_functions_of_the_table_only() -> None:
    for target in (b"N", b"X\x04\x00\x00\x00eval", b"ctorch\nfloat32\n", b"]"):
        broken(b"\x80\x02" + target + b")R.", "call")
        broken(b"\x80\x02" + target + b")\x81.", "call")
    broken(b"\x80\x02" + FUNCTION + b"]R.", "call")
    broken(b"cnumpy\nndarray\n)R.")
    assert load(b"\x80\x02c__builtin__\nset\n)\x81.") == set()


def test_only_plain_containers_are_filled() -> None:
    for data in (b"NNa.", b"N(NNe.", b"NNNs.", b"N(NNu.", b"\x80\x04N(N\x90.", b"](NNu.", b"}(Ne.", b"}(Nu.", b"(Nd."):
        broken(data, "malformed")


@pytest.mark.parametrize(
    "wrong", [(2, 4), (7,), (-1, -6), (2**62, 2**62), (True, 6), [2, 3], (1.0, 6), None, (1,) * 70]
)
def test_arrays_hold_what_was_stored(wrong: Any) -> None:
    array, raw = np.arange(6.0), np.arange(6.0).tobytes()
    for state in ((1, wrong, array.dtype, False, raw), (1, (6,), array.dtype, False, raw[:-8]), (6,), ("a",)):
        call, args = array.__reduce__()[:2]
        broken(pickle.dumps(Built(call, args, state)), "malformed")
    frombuffer = np._core.numeric._frombuffer
    broken(pickle.dumps(Call(frombuffer, raw, array.dtype, wrong, "C")))
    broken(pickle.dumps(Call(frombuffer, raw[:-1], array.dtype, (6,), "C")))
    broken(pickle.dumps(Call(np._core.multiarray.scalar, array.dtype, raw)))


class Built(Call):
    """Pickles as a call followed by BUILD."""

    def __init__(self, function: Callable[..., Any], args: tuple, state: Any) -> None:
        super().__init__(function, *args)
        self.state = state

    def __reduce__(self) -> tuple:
        return self.function, self.args, self.state


@pytest.mark.parametrize(
    "size, stride, offset",
    [
        ((7,), (1,), 0),
        ((2,), (6,), 0),
        ((1,), (1,), 6),
        ((2,), (-1,), 5),
        ((-1,), (1,), 0),
        ((10**12,), (0,), 0),
        ((2**40, 2**40), (1, 1), 0),
        ((2,), (1, 1), 0),
        ((True,), (1,), 0),
        ([2], (1,), 0),
        ((2,), (1,), None),
    ],
)
def test_tensors_stay_within_their_storage(size: Any, stride: Any, offset: Any) -> None:
    raw = stored(torch.arange(6.0), False)
    broken(pickle.dumps(rebuilt(raw, size, stride, offset)), "malformed")
    broken(pickle.dumps(rebuilt(raw, (6,), (1,), metadata={"conj": True})), "malformed")


# -- damage and excess -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_beginning_of_a_file_is_an_error(protocol: int) -> None:
    value = {"fid": {"mu": np.ones(3), "sigma": np.eye(3)}, "net": [torch.ones(2)], "text": "abc", "n": 2**70, "s": {1}}
    data = pickle.dumps(value, protocol)
    assert load(data)["text"] == "abc"
    for end in range(len(data)):
        with pytest.raises(UserError, match=r"\Athe pickle (is damaged|asks for)[^\n]*\Z"):
            load(data[:end])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_changed_bytes_are_an_error_or_other_data(data: st.DataObject) -> None:
    value = {"fid": {"mu": np.ones(2)}, "net": torch.ones(2), "list": [1, 2.5, "a", None], "s": {1}}
    raw = bytearray(pickle.dumps(value, data.draw(st.sampled_from(PROTOCOLS))))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        load(bytes(raw))
    except UserError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_error_or_data(raw: bytes) -> None:
    try:
        load(raw)
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("opcode", [b"\x8e", b"\x96", b"\x8d", b"\x95"])
@pytest.mark.parametrize("length", [2**33, 2**50, 2**63 - 1, 2**64 - 1])
@pytest.mark.parametrize("on_disk", [True, False])
def test_lengths_beyond_the_file_take_no_memory(opcode: bytes, length: int, on_disk: bool, tmp_path: Path) -> None:
    data = b"\x80\x05" + opcode + struct.pack("<Q", length) + b"abc"
    (tmp_path / "a.pkl").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "a.pkl" if on_disk else data)


def test_memo_indices_take_no_memory() -> None:
    assert load(b"\x80\x02Nr\xff\xff\xff\xff.") is None


def test_deep_and_doubled_structures_end() -> None:
    deep = load(b"(" * 100_000 + b"l" * 100_000 + b".")
    assert type(deep) is list
    doubled = b"N" + b"2\x86" * 60  # 2 ** 60 leaves in 120 bytes
    assert type(load(b"\x80\x02" + doubled + b".")) is tuple
    refused(b"\x80\x02}" + doubled + b"Ns.", "key", "tuple")
    refused(b"\x80\x02cnumpy\ndtype\n" + doubled + b"\x85R.", "dtype tuple")


def test_a_value_named_again_and_again_is_an_error() -> None:
    long = (
        b"\x80\x04]B" + struct.pack("<I", 1 << 20) + bytes(1 << 20) + b"q\x00\x85q\x010c__builtin__\nbytearray\nq\x020"
    )
    broken(long + b"h\x02h\x01Ra" * 100_000 + b".", "unfolds to more than")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*missing\.pkl"):
        load(tmp_path / "missing.pkl")
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path)
    (tmp_path / "empty.pkl").touch()
    with pytest.raises(UserError, match=r"empty\.pkl is damaged, incomplete or no pickle \(EOFError\)"):
        load(str(tmp_path / "empty.pkl"))
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n.")
    with pytest.raises(UserError, match=r"bad\.pkl asks for os\.system"):
        load(tmp_path / "bad.pkl")


def test_whatever_libraries_import_stays_unimported(tmp_path: Path) -> None:
    assert "antigravity" not in sys.modules
    refused(b"cantigravity\nfly\n.", "antigravity.fly")
    assert "antigravity" not in sys.modules
