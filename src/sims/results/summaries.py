"""Results as JSON: written, read and checked."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any, TypeVar

from sims.config import JSON, convert
from sims.errors import UserError
from sims.files import read_json, write_json
from sims.results.common import Result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.shift import ShiftResult

T = TypeVar("T", bound=Result)
FORMAT = 2
TIMES = "times.json"
RESULTS: dict[str, type[Result]] = {
    kind.experiment: kind for kind in (ImproveResult, LoopResult, PollutionResult, ShiftResult)
}


def to_json(value: object) -> JSON:
    """A result, or a part of one, as JSON; a ``Result`` says which it is. Errors: UserError where a number is NaN."""
    if isinstance(value, Result):
        return {"format": FORMAT, "experiment": value.experiment, **_fields(value)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"a result holds the number {value}: what is not known is left out, or None")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a result holds a {type(value).__name__}")


def clean(value: Any) -> Any:
    """The same JSON value with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fields(value: object) -> dict[str, JSON]:
    return {entry.name: to_json(getattr(value, entry.name)) for entry in dataclasses.fields(value)}  # type: ignore[arg-type]


def write_result(run: Path, result: Result) -> None:
    """``times.json`` and, last, ``summary.json``; of two runs of one job only the times differ."""
    times: dict[str, JSON] = {}
    summary = _without_times(to_json(result), "", times)
    write_json(run / TIMES, times)
    write_json(run / "summary.json", summary)


def _without_times(value: JSON, where: str, times: dict[str, JSON]) -> JSON:
    """A value without the seconds that it holds at any depth; these, by JSON pointers (RFC 6901)."""
    if isinstance(value, list):
        return [_without_times(item, f"{where}/{i}", times) for i, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    rest: dict[str, JSON] = {}
    for key, item in value.items():
        place = f"{where}/{key.replace('~', '~0').replace('/', '~1')}"
        if key.startswith("seconds"):
            times[place] = item
        else:
            rest[key] = _without_times(item, place, times)
    return rest


def _put_times(values: JSON, file: Path) -> None:
    """Put seconds where ``_without_times`` took them from. Errors: UserError where they belong to another summary."""
    times = read_json(file) if file.is_file() else {}
    for pointer, seconds in times.items() if isinstance(times, dict) else ():
        place: Any = values
        try:
            *keys, last = [key.replace("~1", "/").replace("~0", "~") for key in pointer.split("/")[1:]]
            for key in keys:
                place = place[int(key) if isinstance(place, list) else key]
            place[last] = seconds
        except (KeyError, IndexError, TypeError, ValueError):
            raise UserError(f"{file} does not belong to the summary.json beside it: delete it") from None


def from_json(values: JSON, where: str = "the result") -> Result:
    """The result that ``to_json`` wrote. Errors: UserError that names what is missing or of another type."""
    if not isinstance(values, dict):
        raise UserError(f"{where} holds a {type(values).__name__}, not a table of results: it was not written by sims")
    if values.get("format") != FORMAT:
        found = values.get("format")
        raise UserError(f"{where} has format {found!r}, this version reads {FORMAT}: use the version that wrote it")
    kind = RESULTS.get(str(values.get("experiment")))
    if kind is None:
        raise UserError(f"{where} is of {values.get('experiment')!r}, and experiments are {', '.join(RESULTS)}")
    rest = {key: value for key, value in values.items() if key not in ("format", "experiment")}
    return convert(rest, kind, where, what="entry")  # type: ignore[no-any-return]


def read_result(run: Path, kind: type[T] = Result) -> T:  # type: ignore[assignment]
    """The result of a finished run. Errors: UserError where there is none, it cannot be read or is of another kind.

    Example:
        >>> read_result(Path("runs/digits"), ImproveResult).headline  # doctest: +SKIP
    """
    path = Path(run) / "summary.json"
    if not path.is_file():
        raise UserError(
            f"{run} holds no summary.json: a report needs a finished run; run the same command to finish it"
        )
    values = read_json(path)
    _put_times(values, path.with_name(TIMES))
    result = from_json(values, str(path))
    if not isinstance(result, kind):
        raise UserError(f"{path} is of {result.experiment!r}, not of {kind.experiment!r}: give a run of that command")
    return result
