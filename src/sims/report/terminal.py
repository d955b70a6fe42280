"""Tables in the terminal, and the one that closes a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from sims.report.blocks import Table
from sims.report.improve_page import improve_table
from sims.report.loop_page import loop_table, pollution_table
from sims.report.shift_page import shift_table
from sims.results.common import Result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.shift import ShiftResult


class ClosingTable:
    """A table in as many columns as fit; those that stay are never shortened."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def drawn(self, kept: list[int]) -> RichTable:
        """The table with these columns."""
        table, rows = self.table, self.table.rows
        caption = Text(table.caption) if table.caption else None
        drawn = RichTable(title=Text(table.title), caption=caption, header_style="dim")
        drawn.title_justify = drawn.caption_justify = "left"
        for k in kept:
            column, width = (
                table.columns[k],
                max(len(text) for text in (table.columns[k].title, *(r[k].text for r in rows))),
            )
            justify: Literal["right", "left"] = "right" if column.numeric else "left"
            drawn.add_column(Text(column.title), justify=justify, no_wrap=True, min_width=width)
        for place, row in enumerate(rows):  # Text, not str: a label like "[red]" is a label
            drawn.add_row(*[Text(row[k].text) for k in kept], style="bold green" if place in table.strong else "")
        return drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = list(range(len(self.table.columns)))
        for k in sorted((k for k in kept if self.table.columns[k].drop), key=lambda k: self.table.columns[k].drop):
            if Measurement.get(console, options.update(width=1000), self.drawn(kept)).maximum <= options.max_width:
                break
            kept.remove(k)
        yield self.drawn(kept)


TABLES: dict[type[Result], Callable[[Any], Table | None]] = {
    ImproveResult: improve_table,
    LoopResult: loop_table,
    PollutionResult: pollution_table,
    ShiftResult: shift_table,
}


def closing_table(result: Result) -> ClosingTable | Text:
    """What a finished run prints: its main table.

    Example: ``rich.print(closing_table(sims.improve(options)))``
    """
    table = TABLES[type(result)](result)
    return Text(result.title) if table is None else ClosingTable(table)
