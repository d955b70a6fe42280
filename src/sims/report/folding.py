"""Tables that are wider than the page: what matters most stays, the other columns go behind a line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from sims.report.blocks import Block, Column, Details, Section, Table

PAGE = 1000  # CSS pixels that a section has for a table on a page of 1,200
CHARACTER, PADDING, WORDS = 9.3, 20, 140  # of a number's digit; beside every cell; least of a column that wraps


def folded(section: Section) -> Section:
    """The section with all its tables as narrow as the page."""
    return replace(section, blocks=_blocks(section.blocks))


def _blocks(blocks: Sequence[Block]) -> list[Block]:
    found: list[Block] = []
    for block in blocks:
        if isinstance(block, Details):
            found.append(Details(block.summary, _blocks(block.blocks)))
        else:
            found += fold(block) if isinstance(block, Table) else [block]
    return found


def width(column: Column) -> float:
    """About how wide a column is at least, in CSS pixels: numbers stay on one line, words wrap."""
    title = max((len(word) for word in column.title.split(" ")), default=0)
    texts = [cell if isinstance(cell, str) else cell.text for cell in column.cells]
    longest = CHARACTER * max([title, *map(len, texts)])
    return PADDING + (longest if column.numeric else min(longest + CHARACTER, WORDS))


def fold(table: Table, most: float = PAGE) -> list[Block]:
    """The table, where it fits; else what fits of it, and the other columns behind a line, in tables that fit.

    Columns with a ``drop`` go first, the lowest before the others, then those at the right; neighbours of one ``group``
    stay together. What tells the rows apart, such as the first column, is repeated.
    """
    keys = [column for place, column in enumerate(table.columns) if column.key or not place]
    others = [column for place, column in enumerate(table.columns) if place and not column.key]
    units = [list(group) for _, group in groupby(others, key=lambda column: column.group or id(column))]
    room, kept = most - _wide(keys), list(range(len(units)))
    for place in sorted(kept, key=lambda place: (min(map(_order, units[place])), -place)):
        if sum(_wide(units[k]) for k in kept) <= room or len(kept) == 1:
            break
        kept.remove(place)
    rest = [unit for place, unit in enumerate(units) if place not in kept]
    if not rest:
        return [table]
    parts: list[list[Column]] = [[]]
    for unit in rest:
        if parts[-1] and _wide(parts[-1]) + _wide(unit) > room:
            parts.append([])
        parts[-1] += unit
    more = [replace(table, columns=[*keys, *part], caption="") for part in parts]
    number = sum(map(len, rest))
    shown = [*keys, *(column for place in kept for column in units[place])]
    return [replace(table, columns=shown), Details(f"{number} more column{'s' * (number > 1)} of this table", more)]


def _order(column: Column) -> float:
    """When a column is left out: those without a ``drop`` last."""
    return column.drop or float("inf")


def _wide(columns: Sequence[Column]) -> float:
    return sum(map(width, columns))
