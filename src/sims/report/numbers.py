"""Numbers as text: one dash for what is missing, one number of decimals per column."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sims.report.record import Interval, Row, number

DASH = "–"


def decimals(values: Iterable[float | None]) -> int:
    """How many decimals a column needs so that its largest figure shows about four digits."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 1 if largest >= 100 else 2 if largest >= 1 else 3


def fixed(value: Any, places: int = 2) -> str:
    found = number(value)
    return DASH if found is None else f"{found:.{places}f}".replace("-", "−")


def strength(value: Any) -> str:
    """A guidance strength or a noise level without trailing zeros: 0.25, 1, 1.5."""
    found = number(value)
    return DASH if found is None else f"{found:.4g}".replace("-", "−")


def percent(value: Any, places: int = 1) -> str:
    """A fraction as a percentage."""
    found = number(value)
    return DASH if found is None else f"{100 * found:.{places}f} %".replace("-", "−")


def signed_percent(value: float | None, places: int = 1) -> str:
    """A change that is already in percent, with its sign."""
    if value is None:
        return DASH
    text = f"{value:+.{places}f}".replace("-", "−")
    return f"{text if float(f'{value:.{places}f}') else text[1:]} %"


def plus_minus(value: Interval | None, places: int) -> str:
    """mean ± half-width of the 95 % interval; the mean alone where there is none."""
    if value is None:
        return DASH
    half = value.half
    return fixed(value.mean, places) + ("" if half is None else f" ± {half:.{places}f}")


def count(value: Any) -> str:
    """A count with thin thousands: 12 800; from a million on 1.28 M."""
    found = number(value)
    if found is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(found) >= size:
            return f"{found / size:.3g} {unit}"
    return f"{found:,.0f}".replace(",", "\u202f") if abs(found) >= 10_000 else f"{found:.0f}"


def short_count(value: Any) -> str:
    """A count in as few characters as possible: 12.8k, 1.5M."""
    found = number(value)
    if found is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(found) >= size:
            return f"{found / size:.3g}{unit}"
    return f"{found:.4g}"


def duration(seconds: Any) -> str:
    """Seconds in the unit that a person would use."""
    found = number(seconds)
    if found is None:
        return DASH
    if found < 100:
        return f"{found:.2g} s" if found < 10 else f"{found:.0f} s"
    minutes = round(found / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def lowest(rows: list[Row], metric: str) -> str:
    """The lowest draw of each row, as published FIDs are given; empty where there are no draws to choose from."""
    found = [(row, row.get(metric)) for row in rows]
    values = [(row, number(value.get("min"))) for row, value in found if isinstance(value, dict)]
    known = [(row, value) for row, value in values if value is not None]
    if not known:
        return ""
    places = decimals([value for _, value in known])
    parts = [f"{row.get('label') or row.get('method')} {fixed(value, places)}" for row, value in known]
    return f"Lowest of {known[0][0].get('draws')} draws: {', '.join(parts)}."
