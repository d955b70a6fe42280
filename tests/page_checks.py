"""What no page may do: show a table or column that holds nothing, or speak of a mark that is not drawn."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pytest

from sims.report.blocks import Block, Details, Drawn, Facts, Images, Section, Table
from sims.report.numbers import DASH
from sims.results import common, improve, loop, shift

EMPTY = ("", DASH)
MARKS = {  # a word of a caption: the kind of mark it speaks of, and what its element in the SVG has
    r"dotted": ("dotted", r"stroke-dasharray[^\"]*var\(--ink\)"),
    r"dashed": ("dashed", r"stroke-dasharray[^\"]*var\(--muted\)"),
    r"bars?": ("bar", r"<path[^>]*stroke: var\(--m\d+\)"),
    r"bands?": ("band", r"fill-opacity|opacity"),
    r"rings?": ("ring", r"fill-opacity: 0; stroke: var\(--ink\)"),
    r"pale": ("pale", r"opacity"),
    r"filled": ("filled", r"fill: var\(--(m\d+|ink)\)"),
    r"hollow": ("hollow", r"fill: none|fill-opacity: 0"),
    r"grey": ("grey", r"<image"),
    r"strokes?": ("stroke", r"<path[^>]*stroke: var\(--ink\)"),
    r"red|blue|green|orange|yellow|purple|black|white": ("colour", "nothing is named by such a colour"),
}
RESULTS = [
    kind
    for module in (common, improve, loop, shift)
    for kind in vars(module).values()
    if dataclasses.is_dataclass(kind) and isinstance(kind, type) and kind.__module__ == module.__name__
]
Field = tuple[str, str]  # the name of a dataclass, the name of its field


def blocks_of(sections: Iterable[Section]) -> Iterator[Block]:
    """Every block of a page, those behind a line too."""

    def inner(blocks: Sequence[Block]) -> Iterator[Block]:
        for block in blocks:
            yield block
            if isinstance(block, Details):
                yield from inner(block.blocks)

    for section in sections:
        yield from inner(section.blocks)


def table_faults(table: Table) -> list[str]:
    """Columns that hold nothing, and a table that holds nothing else."""
    if not table.rows or len(table.columns) < 2:
        return [f"a table of {len(table.rows)} rows and {len(table.columns)} columns"]
    lines = table.rows
    empty = [
        column.title
        for k, column in enumerate(table.columns)
        if all(line[k].text in EMPTY and not line[k].note for line in lines)
    ]
    return [f"column {title!r} holds nothing" for title in empty]


def marks_in(drawn: Drawn) -> dict[str, list[str]]:
    """The marks that an SVG has: kind -> the elements, each with everything within it."""
    kinds = "|".join(sorted({kind for kind, _ in MARKS.values()}))
    found: dict[str, list[str]] = {}
    for start in re.finditer(rf'<g id="[a-z]+-({kinds})-\d+"', drawn.svg):
        depth = 0
        for tag in re.finditer(r"<g\b[^>]*(?<!/)>|</g>", drawn.svg[start.start() :]):
            depth += -1 if tag[0] == "</g>" else 1
            if depth == 0:
                found.setdefault(start[1], []).append(drawn.svg[start.start() : start.start() + tag.end()])
                break
    return found


def figure_faults(drawn: Drawn) -> list[str]:
    """What a caption speaks of and the SVG does not have, and marks that need a word and have none."""
    marks, caption = marks_in(drawn), drawn.caption.lower()
    faults = [] if drawn.svg.count("<path") > 3 else ["an empty figure"]
    said = set()
    for word, (kind, look) in MARKS.items():
        if not re.search(rf"\b({word})\b", caption):
            continue
        said.add(kind)
        if kind not in marks:
            faults.append(f"the caption speaks of {kind!r} and none is drawn")
        elif not all(re.search(look, styled(drawn, element)) for element in marks[kind]):
            faults.append(f"a mark called {kind!r} does not look like one")
    return faults + [f"{kind!r} is drawn and the caption does not say what it is" for kind in marks.keys() - said]


def styled(drawn: Drawn, element: str) -> str:
    """An element with the definitions that it uses."""
    uses = re.findall(r'href="#([^"]+)"', element)
    definitions = [re.findall(rf'<path id="{re.escape(name)}".*?/>', drawn.svg, flags=re.DOTALL) for name in uses]
    return element + "".join(text for found in definitions for text in found)


def page_faults(sections: Iterable[Section]) -> list[str]:
    """Everything that is wrong with a page."""
    faults = []
    for block in blocks_of(sections):
        if isinstance(block, Table):
            faults += table_faults(block)
        elif isinstance(block, Drawn):
            faults += [f"{fault}: {block.caption[:60]}" for fault in figure_faults(block)]
        elif isinstance(block, Facts):
            faults += [f"fact {fact.label!r} has no value" for fact in block.facts if fact.value in EMPTY]
        elif isinstance(block, Images) and not block.strips:
            faults.append("no images")
        elif isinstance(block, Details) and not block.blocks:
            faults.append(f"nothing behind {block.summary!r}")
    return faults


def fields_of(kind: type) -> list[Field]:
    """The fields that a dataclass itself adds."""
    inherited = {name for base in kind.__mro__[1:] for name in getattr(base, "__annotations__", {})}
    return [(kind.__name__, entry.name) for entry in dataclasses.fields(kind) if entry.name not in inherited]


def recorded(patch: pytest.MonkeyPatch) -> set[Field]:
    """A set that from now on receives every field of a result that anybody reads."""
    read: set[Field] = set()

    def look(self: Any, name: str) -> Any:
        read.update((kind.__name__, name) for kind in type(self).__mro__)
        return object.__getattribute__(self, name)

    for kind in RESULTS:
        patch.setattr(kind, "__getattribute__", look, raising=False)
    return read


def written(value: object) -> set[Field]:
    """The fields within a result that hold something else than their default."""
    found: set[Field] = set()
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return found.union(*map(written, value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return found
    for entry in dataclasses.fields(value):
        item = getattr(value, entry.name)
        default = entry.default_factory() if callable(entry.default_factory) else entry.default
        if item != default:
            found.update((kind.__name__, entry.name) for kind in type(value).__mro__)
        found |= written(item)
    return found
