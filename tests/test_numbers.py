"""Every option that is a number: what is none is refused before anything runs, whatever the option is."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

import pytest

from sims.commands import options as commands
from sims.errors import UserError
from sims.experiments.loop.options import LoopOptions, PollutionOptions
from sims.experiments.options import ImproveOptions
from sims.experiments.shift.options import ShiftOptions

GIVEN: dict[str, Any] = {"model": "m", "samples": "s", "out": "o", "path": "p"}  # what has no default
UNLIMITED = {"s_min", "s_max", "max_cost", "sigma_high", "checkpoint_seconds", "ema_rampup"}  # inf: without a limit


def kinds() -> list[type]:
    """The options of all commands, and those within them."""
    found: list[type] = []
    tops = [getattr(commands, name) for name in vars(commands) if name.endswith("Command")]
    waiting = [ImproveOptions, LoopOptions, PollutionOptions, ShiftOptions, *tops]
    while waiting:
        kind = waiting.pop()
        if kind not in found:
            found.append(kind)
            waiting += [hint for hint in typing.get_type_hints(kind).values() if dataclasses.is_dataclass(hint)]
    return found


def numbers() -> list[Any]:
    found = []
    for kind in kinds():
        for entry in dataclasses.fields(kind):
            hint = typing.get_type_hints(kind)[entry.name]
            if hint is float or float in typing.get_args(hint):
                several = typing.get_origin(hint) is tuple
                found.append(pytest.param(kind, entry.name, several, id=f"{kind.__name__}-{entry.name}"))
    return found


def make(kind: type, name: str, value: object) -> object:
    needed = [
        entry.name
        for entry in dataclasses.fields(kind)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    ]
    return kind(**{one: GIVEN.get(one, "x") for one in needed}, **{name: value})


@pytest.mark.parametrize(("kind", "name", "several"), numbers())
def test_what_is_no_number_is_refused(kind: type, name: str, several: bool) -> None:
    for value in (math.nan, *([] if name in UNLIMITED else [math.inf])):
        with pytest.raises(UserError, match=str(value)):
            make(kind, name, (value, 1.0) if several else value)


def test_there_are_many() -> None:
    assert len(numbers()) > 50
