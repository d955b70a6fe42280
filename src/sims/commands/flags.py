"""Names of options as the command line writes them: the library says ``data.path``, a user types ``--data.path``."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from contextlib import contextmanager

from tyro.conf import Positional

from sims.errors import UserError

_PLACED = Positional[int].__metadata__[0]  # type: ignore[attr-defined]  # what marks an option that a place gives
_QUOTED = re.compile(r"(?<!unknown )\boption '([A-Za-z_][\w.]*)((?:\[\d+\])*)'")
_DOTTED = re.compile(r"(?<![\w./'-])[a-z_]\w*(?:\.[a-z_]\w*)+(?![\w/'-]|\.\w)")


def flags(kind: type) -> dict[str, str]:
    """Every option of a command, by its dotted name: as ``--data.source.size``, or ``MODEL`` where a place gives it."""
    return dict(_flags(kind, ""))


def _flags(kind: type, where: str) -> Iterator[tuple[str, str]]:
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        name, hint = f"{where}{field.name}", hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _flags(hint, f"{name}.")  # type: ignore[arg-type]
        else:
            placed = _PLACED in getattr(hint, "__metadata__", ())
            yield name, field.name.upper() if placed else f"--{name.replace('_', '-')}"


def in_flags(text: str, kind: type) -> str:
    """A message of the library with the options of a command as flags.

    ``option 'source.size'`` is any one option that ends so, or that ``size`` is the whole or the end of; dotted names
    that stand free must be whole (``data.path``). Words that name no option, or several, stay as they are.
    """
    names = flags(kind)

    def quoted(match: re.Match[str]) -> str:
        name = _resolved(match[1], names)
        return match[0] if name is None else names[name] + match[2]

    text = _QUOTED.sub(quoted, text)
    return _DOTTED.sub(lambda match: names.get(match[0], match[0]), text)


def _resolved(name: str, names: dict[str, str]) -> str | None:
    """The one option that is meant: of this name, or with this end; else with a part of the name left out in front."""
    while name:
        if name in names:
            return name
        ends = [other for other in names if other.endswith(f".{name}")]
        if ends:
            return ends[0] if len(ends) == 1 else None
        name = name.partition(".")[2]
    return None


@contextmanager
def speaking_of(kind: type) -> Iterator[None]:
    """Errors of the library, raised in the block, name options as flags of a command."""
    try:
        yield
    except UserError as error:
        raise UserError(in_flags(str(error), kind)) from error
