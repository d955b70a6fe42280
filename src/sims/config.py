"""Options are dataclasses; a recipe (TOML) sets any of them and the command line overrides it."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
import json
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from sims.errors import UserError
from sims.files import read_json, read_toml

T = TypeVar("T")
JSON = None | bool | int | float | str | list["JSON"] | dict[str, "JSON"]
LATER = {"later": True}  # of a field that is left out at its default, so that what is named by options keeps its name
NON_FINITE = ("inf", "-inf", "nan")  # as JSON keeps them
_WIDEST = 1 << 63  # whole numbers have at most 64 bits, as in tensors and tables
MOST_SIZE, MOST_ENTRIES = 1 << 20, 100_000  # of numbers and lists that say what a network is made of
_SHOWN = 80  # characters of a foreign text that enter a message


class _Open:
    """A default that stands for what is usual for the data: equal to its value, and told from the same value given."""


class _OpenInt(int, _Open): ...


class _OpenStr(str, _Open): ...


class _OpenTuple(tuple, _Open): ...  # type: ignore[type-arg]


def left_open(value: T) -> T:
    """A default of an option that something else may follow from as long as nobody gives the option, even this value.

    >>> batch = left_open(256)
    >>> batch == 256, suited(batch, 128), suited(256, 128)
    (True, 128, 256)
    """
    kinds: dict[type, Any] = {int: _OpenInt, str: _OpenStr, tuple: _OpenTuple}
    return kinds[type(value)](value)  # type: ignore[no-any-return]


def is_open(value: object) -> bool:
    """Whether an option was left open."""
    return isinstance(value, _Open)


def suited(value: T, other: T) -> T:
    """An option's value, or another one where it was left open."""
    return other if is_open(value) else value


def nearest(name: str, names: Iterable[str]) -> str:
    """A hint for a misspelt name: ``; did you mean 'x'?``, or the list of the names that there are."""
    names, name = sorted(names), name[:_SHOWN]  # comparing long texts takes forever
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(names)}"


def options_of(kind: type[T], given: T | Mapping[str, object] | None, where: str = "") -> T:
    """Options as they are, from a table of some of them, or the defaults; errors as ``override``."""
    return given if isinstance(given, kind) else override(kind(), plain(given or {}), where)


def from_dict(kind: type[T], values: Mapping[str, object], where: str = "") -> T:
    """Build a (nested) dataclass from plain values; unknown keys and wrong types are a UserError naming them."""
    return override(kind(), values, where)


def override(options: T, values: Mapping[str, object], where: str = "") -> T:
    """A copy of a (nested) dataclass instance with some of its values replaced."""
    hints = typing.get_type_hints(type(options))
    changes: dict[str, object] = {}
    for key, value in values.items():
        name = f"{where}{key}"
        if key not in hints:
            raise UserError(f"unknown option {name!r}{nearest(key, hints)}")
        current = getattr(options, key)
        if dataclasses.is_dataclass(current) and not isinstance(current, type):
            if not isinstance(value, dict):
                raise UserError(f"option {name!r} is a table of options, not {value!r}: write [{name}] and its keys")
            changes[key] = override(current, value, f"{name}.")
        else:
            changes[key] = convert(value, hints[key], name)
    return dataclasses.replace(options, **changes)  # type: ignore[type-var]


def read_as(path: str | Path, kind: type[T], rest: bool = False) -> T:
    """A JSON file as the dataclass that it becomes, as ``fitted``.

    >>> from dataclasses import dataclass
    >>> from sims.files import write_json
    >>> @dataclass(frozen=True)
    ... class Position:
    ...     step: int
    >>> write_json(FOLDER + "/position.json", {"step": 3})
    >>> read_as(FOLDER + "/position.json", Position)
    Position(step=3)
    """
    return fitted(read_json(path), kind, str(path), rest)


def fitted(value: Any, kind: Any, where: str, rest: bool = False) -> Any:
    """A plain value that was read at ``where`` as the annotated type; ``rest``: unknown keys are passed over.

    Errors: a UserError that names the file, the key, the value and what belongs there.
    """
    if rest and isinstance(value, dict):
        value = {entry.name: value[entry.name] for entry in dataclasses.fields(kind) if entry.name in value}
    try:
        return convert(value, kind, "", "entry")
    except UserError as error:
        raise UserError(f"{where}{': ' * bool(where)}{error}; correct or restore the file") from None


def check_arguments(make: Callable[..., object], values: Mapping[str, object], where: str) -> None:
    """UserError unless these are arguments of a class, of its annotated types and of sizes that networks have.

    What is made by a file's numbers is checked before: a million channels or taps are a mistake, or mean harm.
    """
    hints = {name: kind for name, kind in typing.get_type_hints(make.__init__).items() if name != "return"}
    rest = any(one.kind is one.VAR_KEYWORD for one in inspect.signature(make).parameters.values())
    for name, value in values.items():
        if name not in hints and rest:
            continue
        if name not in hints:
            raise UserError(f"unknown argument {_at(where, name)!r}{nearest(name, hints)}")
        check_sizes(value, _at(where, name))
        convert(value, hints[name], _at(where, name), "argument")


def check_sizes(value: object, name: str) -> None:
    """UserError where a plain value holds a whole number or a list beyond what networks have."""
    if isinstance(value, int) and abs(value) > MOST_SIZE:
        raise UserError(f"{name!r} is {value:,}: whole numbers here are at most {MOST_SIZE:,}")
    if isinstance(value, list | tuple | dict):
        if len(value) > MOST_ENTRIES:
            raise UserError(f"{name!r} has {len(value):,} entries: at most {MOST_ENTRIES} are possible")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_sizes(item, _at(name, key))


def convert(value: Any, kind: Any, name: str, what: str = "option") -> Any:
    """One plain value as the annotated type; a UserError says which ``what`` it is, the value and the accepted type.

    Tables become dataclasses, with every field that has no default, or ``dict[str, ...]``; ``JSON`` stays as it is.
    """
    if type(value) is kind and kind in (str, float, bool):  # most of what a file holds
        return value
    origin, arguments, anything = _parts(kind)
    if anything:
        return value
    if origin in (typing.Union, types.UnionType):
        if types.NoneType in arguments and (value is None or value == "none"):
            return None
        options = [option for option in arguments if option is not types.NoneType]
        if len(options) == 1:
            return convert(value, options[0], name, what)
        for option in options:
            try:
                return convert(value, option, name, what)
            except UserError:
                continue
    elif origin is Literal:
        if value in arguments:
            return value
        hint = nearest(str(value), map(str, arguments))
        raise UserError(f"{what} {name!r}: {value!r} is not one of its values{hint}")
    elif origin in (tuple, list, Sequence) and isinstance(value, list | tuple):
        kinds = arguments if arguments[-1] is not Ellipsis and origin is tuple else arguments[:1] * len(value)
        if len(kinds) == len(value):
            items = (convert(v, one, f"{name}[{i}]", what) for i, (v, one) in enumerate(zip(value, kinds)))
            return tuple(items) if origin is tuple else list(items)
    elif origin in (dict, Mapping) and isinstance(value, dict):
        return {str(key): convert(item, arguments[1], _at(name, key), what) for key, item in value.items()}
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _from_table(value, kind, name, what)
    elif kind is float and not isinstance(value, bool) and (isinstance(value, int | float) or value in NON_FINITE):
        return float(value)
    elif kind is Path and isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value).expanduser()
    elif kind is int and isinstance(value, int):
        if not isinstance(value, bool) and -_WIDEST <= value < 2 * _WIDEST:
            return value
    elif isinstance(kind, type) and isinstance(value, kind):
        return value
    wanted = getattr(kind, "__name__", str(kind))
    if name == "":
        wanted = "table of entries" if origin is dict or dataclasses.is_dataclass(kind) else wanted
        raise UserError(f"{str(value)[:200]!r} stands there, and no {wanted}")
    raise UserError(f"{what} {name!r}: {str(value)[:200]!r} is not a valid {wanted}")


def _at(name: str, key: object) -> str:
    """The name of a key in the table of this name."""
    return f"{name}.{str(key)[:_SHOWN]}" if name else str(key)[:_SHOWN]


@functools.cache
def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """Origin and arguments of a type, and whether it is ``JSON``: type hints are expanded to different depths."""
    arguments = typing.get_args(kind)
    return typing.get_origin(kind), arguments, _kinds(arguments) == _kinds(typing.get_args(JSON))


def _kinds(union: tuple[Any, ...]) -> set[Any]:
    """The members of a union, lists and tables without what they hold."""
    return {typing.get_origin(kind) or kind for kind in union}


@functools.cache
def _table(kind: Any) -> tuple[dict[str, Any], dict[str, bool]]:
    """The fields of a dataclass: the type of each, and whether it must be given."""
    missing = dataclasses.MISSING
    fields = {f.name: f.default is missing and f.default_factory is missing for f in dataclasses.fields(kind)}
    return typing.get_type_hints(kind), fields


def _from_table(values: Mapping[str, object], kind: Any, name: str, what: str) -> Any:
    """A dataclass from a table that has all its fields without a default, and no others."""
    hints, fields = _table(kind)
    for key in values:
        if key not in fields:
            raise UserError(f"unknown {what} {_at(name, key)!r}{nearest(str(key), fields)}")
    for key, required in fields.items():
        if required and key not in values:
            raise UserError(f"{what} {_at(name, key)!r} is missing")
    return kind(**{key: convert(item, hints[key], _at(name, key), what) for key, item in values.items()})


def to_dict(options: Any) -> dict[str, JSON]:
    """A dataclass as plain values that JSON and TOML can hold; a field that is ``LATER``, unless at its default."""
    values = [(f, getattr(options, f.name)) for f in dataclasses.fields(options)]
    return {f.name: plain(value) for f, value in values if not (f.metadata.get("later") and value == f.default)}


def plain(value: Any) -> Any:
    """Options, tables and paths as the plain values that JSON, TOML and recipes have."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, tuple | list):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return str(value) if isinstance(value, Path) else value


def differences(old: object, new: object, where: str = "") -> Iterator[tuple[str, object, object]]:
    """Where two nested plain values differ: the name of the place, the old value there, the new one."""
    if isinstance(old, dict) and isinstance(new, dict) and (where == "" or (old and new)):
        for key in [*old, *[key for key in new if key not in old]]:
            yield from differences(old.get(key), new.get(key), f"{where}.{key}" if where else str(key))
    elif old != new:
        yield where, old, new


RECIPES = Path(__file__).parent / "recipes"


def recipe_path(name: str) -> Path:
    """A recipe file: a path, or the name of one that comes with the package."""
    for path in (Path(name), RECIPES / f"{name}.toml"):
        if path.is_file():
            return path
    names = [path.stem for path in RECIPES.glob("*.toml")]
    raise UserError(f"no recipe {name!r}{nearest(name, names)} (or give the path of a TOML file)")


def load_recipe(name: str) -> dict[str, JSON]:
    """The values that a recipe file sets; broken TOML is a UserError with the line."""
    return read_toml(recipe_path(name))  # type: ignore[no-any-return]


def to_toml(values: Mapping[str, object], prefix: str = "") -> str:
    """Plain nested values as TOML; None is left out (it is the default wherever it is allowed)."""
    lines, tables = [], []
    for key, value in values.items():
        if isinstance(value, dict):
            body = to_toml(value, f"{prefix}{key}.")
            tables.append(f"\n[{prefix}{key}]\n{body}" if body.strip() else "")
        elif value is not None:
            lines.append(f"{key} = {_toml_value(value)}")
    return "\n".join([*lines, *[t for t in tables if t]]) + ("\n" if not prefix else "")


def _toml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)  # a JSON string is a TOML basic string
    return repr(value)
