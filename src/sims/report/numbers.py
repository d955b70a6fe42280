"""Numbers as text: one dash for what is missing, one number of decimals per column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sims.results.common import Figure, Interval, Row

T = TypeVar("T")
DASH = "–"


def decimals(values: Iterable[float | None]) -> int:
    """How many decimals a column needs so that its largest figure shows about four digits."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return 1 if largest >= 100 else 2 if largest >= 1 else 3


def fixed(value: float | None, places: int = 2) -> str:
    return DASH if value is None else f"{value:.{places}f}".replace("-", "−")


def strength(value: float | None) -> str:
    """A guidance strength or a noise level without trailing zeros: 0.25, 1, 1.5."""
    return DASH if value is None else f"{value:.4g}".replace("-", "−")


def percent(value: float | None, places: int = 1) -> str:
    """A fraction as a percentage."""
    return DASH if value is None else f"{100 * value:.{places}f} %".replace("-", "−")


def signed(value: float, places: int) -> str:
    return f"{value:+.{places}f}".replace("-", "−")


def signed_percent(value: float | None, places: int = 1) -> str:
    """A change that is already in percent, with its sign."""
    if value is None:
        return DASH
    text = signed(value, places)
    return f"{text if float(f'{value:.{places}f}') else text[1:]} %"


def plus_minus(value: Figure | Interval | None, places: int) -> str:
    """mean ± half-width of the 95 % interval; the mean alone where there is none."""
    if value is None:
        return DASH
    half = "" if value.low is None or value.high is None else f" ± {(value.high - value.low) / 2:.{places}f}"
    return fixed(value.mean, places) + half


def with_ends(value: Figure | Interval | None, places: int) -> str:
    """A figure with the ends of its interval, which need not lie evenly around it."""
    if value is None or value.low is None or value.high is None:
        return DASH if value is None else fixed(value.mean, places)
    return f"{fixed(value.mean, places)} [{fixed(value.low, places)}, {fixed(value.high, places)}]"


def ends(value: Figure | Interval | None, places: int) -> str:
    """The interval in words; empty where there is none."""
    if value is None or value.low is None or value.high is None:
        return ""
    level, count = (value.level, value.num_values) if isinstance(value, Interval) else (0.95, 0)
    of = f", {count} values" if count else ""
    return f"{100 * level:g} % interval {fixed(value.low, places)} to {fixed(value.high, places)}{of}"


def count(value: float | None) -> str:
    """A count with thin thousands: 12 800; from a million on 1.28 M."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:,.0f}".replace(",", "\u202f") if abs(value) >= 10_000 else f"{value:.0f}"


def short_count(value: float | None) -> str:
    """A count in as few characters as possible: 12.8k, 1.5M."""
    if value is None:
        return DASH
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.4g}"


def duration(seconds: float) -> str:
    """Seconds in the unit that a person would use."""
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def short_name(name: str, most: int = 30) -> str:
    """A name without its middle where it is long: the ends tell names apart."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def told(name: str, at: Sequence[str], values: Sequence[str], most: int = 12) -> str:
    """A line of a figure in words, at ``most`` of its places, first and last among them.

    >>> told("FD of SIMS", ["w 0", "w 1"], ["84.9", "40.2"])
    'FD of SIMS: w 0: 84.9, w 1: 40.2.'
    """
    pairs = [f"{place}: {value}" for place, value in thinned(list(zip(at, values)), most)]
    return f"{name}: {', '.join(pairs)}." if pairs else ""


def thinned(items: Sequence[T], most: int = 6) -> list[T]:
    """At most ``most`` of the items, evenly spaced, first and last among them."""
    if len(items) <= most:
        return list(items)
    return [items[round(index * (len(items) - 1) / (most - 1))] for index in range(most)]


def sentence(text: str) -> str:
    """What the run says in its log, as it is written on a page."""
    return (text[:1].upper() + text[1:]).replace(" -> ", " → ")


def lowest(rows: Sequence[Row], figure: str) -> str:
    """The lowest draw of each row, as published FIDs are given; empty where there are no draws to choose from."""
    values = {row.label: row.figures[figure].lowest for row in rows if figure in row.figures}
    kept = {label: value for label, value in values.items() if value is not None}
    if not kept:
        return ""
    places = decimals(kept.values())
    parts = [f"{label} {fixed(value, places)}" for label, value in kept.items()]
    return f"Lowest of {rows[0].draws} draws: {', '.join(parts)}."
