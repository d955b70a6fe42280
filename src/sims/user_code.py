"""Functions that a user names: ``file.py:function`` or ``module:function``. Naming one runs the code around it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from sims.config import nearest
from sims.errors import UserError
from sims.files import digest

T = TypeVar("T")


def named_function(name: str, what: str) -> Callable[..., Any]:
    """What ``file.py:function`` or ``module:function`` names; the file may import what lies beside it.

    Errors: UserError that says which ``what`` it was to be, for a name of another form, a file, module or function that
    is missing, and for whatever the code raises.
    """
    place, colon, attribute = name.rpartition(":")
    if not colon or not place or not attribute:
        raise UserError(f"{what} {name!r} is not understood: write module:function or file.py:function")
    module = guarded(lambda: _module(place), f"{what} {name}: {place} cannot be imported", place)
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"{what} {name}: {place} has no function {attribute!r}{nearest(attribute, names)}")
    return found  # type: ignore[no-any-return]


def guarded(function: Callable[[], T], what: str, place: str) -> T:
    """The result of a user's function; UserError with the line of ``place`` for whatever it raises."""
    try:
        return function()
    except UserError:
        raise
    except Exception as error:  # a user's code may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename.endswith(Path(place).name)]
        where = f" in line {lines[-1]}" if lines else ""
        raise UserError(f"{what}: {type(error).__name__}{where}: {error}; correct the code") from error


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        sys.path.insert(0, "")  # as python -m does: the folder the user stands in
        try:
            return importlib.import_module(place)
        finally:
            sys.path.remove("")
    path = Path(place).expanduser().resolve()
    spec = importlib.util.spec_from_file_location(f"sims_user_{digest(str(path))[:8]}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    sys.path.append(str(path.parent))
    spec.loader.exec_module(module)
    return module
