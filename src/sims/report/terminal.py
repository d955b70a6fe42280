"""The table that closes a run in the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from sims.report.numbers import decimals, fixed, plus_minus, short_count, signed_percent, strength
from sims.report.record import base_row, best_row, change, clean, interval, mean


def closing_table(summary: dict[str, Any]) -> Table:
    """The rows of a summary, the best (lowest FD to the training images) emphasized."""
    rows = [row for row in clean(summary).get("rows") or [] if isinstance(row, dict)]
    base, best = base_row(rows), best_row(rows)
    places = decimals([mean(row, metric) for row in rows for metric in ("fd_train", "fd_test")])
    table = Table(title=Text(str(summary.get("title") or "Results")), title_justify="left", header_style="dim")
    table.add_column("method")
    for name in ("w", "budget", "NFE", "FD train", "FD test", "precision", "recall", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        cells = [
            str(row.get("label") or row.get("method") or ""),
            strength(row.get("w")),
            short_count(row.get("budget")),
            short_count(row.get("nfe")),
            plus_minus(interval(row.get("fd_train")), places),
            fixed(mean(row, "fd_test"), places),
            fixed(mean(row, "precision"), 3),
            fixed(mean(row, "recall"), 3),
            signed_percent(change(row, base)),
        ]
        # Text, not str: a label like "[red]" is a label
        table.add_row(*[Text(cell) for cell in cells], style="bold green" if row is best else "")
    return table
