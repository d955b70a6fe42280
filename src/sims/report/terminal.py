"""The table that closes a run in the terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from sims.report.numbers import decimals, fixed, lowest, percent, plus_minus, short_count, signed_percent, strength
from sims.report.record import Row, base_row, best_row, change, clean, interval, mean, number

COLUMNS = ("method", "w", "budget", "NFE", "FD train", "FD test", "precision", "recall", "gain", "change")
EXPENDABLE = ("gain", "budget", "recall", "precision", "w")  # left out in this order where the terminal is narrow


class ClosingTable:
    """The rows of a summary, the best (lowest FD to the training images) emphasized, in as many columns as fit."""

    def __init__(self, summary: dict[str, Any]) -> None:
        summary = clean(summary)
        self.title = str(summary.get("title") or "Results")
        self.rows: list[Row] = [row for row in summary.get("rows") or [] if isinstance(row, dict)]
        self.best = best_row(self.rows)
        base = base_row(self.rows)
        places = decimals([mean(row, metric) for row in self.rows for metric in ("fd", "fd_held_out")])
        self.cells = [_cells(row, base, places) for row in self.rows]

    def table(self, columns: tuple[str, ...]) -> Table:
        """The table with these columns; none of them is ever shortened."""
        least = lowest(self.rows, "fd")
        table = Table(title=Text(self.title), title_justify="left", header_style="dim", caption_justify="left",
                      caption=Text(f"FD train: {least}") if least else None)  # fmt: skip
        for name in columns:
            table.add_column(name, justify="left" if name == "method" else "right", no_wrap=True)
        for row, cells in zip(self.rows, self.cells):
            # Text, not str: a label like "[red]" is a label
            table.add_row(*[Text(cells[name]) for name in columns], style="bold green" if row is self.best else "")
        for column, name in zip(table.columns, columns):
            column.min_width = max(len(text) for text in (name, *(cells[name] for cells in self.cells)))
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = tuple(name for name in COLUMNS if name != "gain" or any(cells["gain"] for cells in self.cells))
        table = self.table(columns)
        for name in EXPENDABLE:
            if Measurement.get(console, options.update(width=1000), table).maximum <= options.max_width:
                break
            columns = tuple(column for column in columns if column != name)
            table = self.table(columns)
        yield table


def closing_table(summary: dict[str, Any]) -> ClosingTable:
    """What a finished run prints."""
    return ClosingTable(summary)


def _cells(row: Row, base: Row | None, places: int) -> dict[str, str]:
    found = row.get("retained")
    kept = number(found.get("fd")) if isinstance(found, dict) and row is not base else None
    return {
        "method": str(row.get("label") or row.get("method") or ""),
        "w": strength(row.get("w")),
        "budget": short_count(row.get("budget")),
        "NFE": short_count(row.get("nfe")),
        "FD train": plus_minus(interval(row.get("fd")), places),
        "FD test": fixed(mean(row, "fd_held_out"), places),
        "precision": fixed(mean(row, "precision"), 3),
        "recall": fixed(mean(row, "recall"), 3),
        "gain": "" if kept is None else percent(kept, 0),
        "change": signed_percent(change(row, base)),
    }
