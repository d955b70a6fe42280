"""Tables in the terminal, and the one that closes a run."""

from __future__ import annotations

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

    def columns(self, kept: list[int]) -> RichTable:
        """The table with these columns."""
        table = self.table
        drawn = RichTable(
            title=Text(table.title), title_justify="left", header_style="dim", caption_justify="left",
            caption=Text(table.caption) if table.caption else None,
        )  # fmt: skip
        for k in kept:
            column = table.columns[k]
            width = max(len(text) for text in (column.title, *(row[k].text for row in table.rows)))
            drawn.add_column(
                Text(column.title), justify="right" if column.numeric else "left", no_wrap=True, min_width=width
            )
        for place, row in enumerate(table.rows):  # Text, not str: a label like "[red]" is a label
            style = "bold green" if place in table.strong else ""
            drawn.add_row(*[Text(row[k].text) for k in kept], style=style)
        return drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        kept = list(range(len(self.table.columns)))
        for k in sorted((k for k in kept if self.table.columns[k].drop), key=lambda k: self.table.columns[k].drop):
            if Measurement.get(console, options.update(width=1000), self.columns(kept)).maximum <= options.max_width:
                break
            kept.remove(k)
        yield self.columns(kept)


def closing_table(result: Result) -> ClosingTable | Text:
    """What a finished run prints: its main table, with a line where samples diverged.

    Example: ``rich.print(closing_table(sims.improve(options)))``
    """
    if isinstance(result, ImproveResult):
        table = improve_table(result)
    elif isinstance(result, LoopResult):
        table = loop_table(result)
    elif isinstance(result, PollutionResult):
        table = pollution_table(result)
    else:
        assert isinstance(result, ShiftResult)
        table = shift_table(result)
    return Text(result.title) if table is None else ClosingTable(table)
