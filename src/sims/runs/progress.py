"""Progress bars; in logs and pipes, a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sims.screen import Screen

Advance = Callable[[int], None]


@contextmanager
def progress(console: Screen, title: str, total: int) -> Iterator[Advance]:
    """A progress bar with an ETA; a line every ten seconds where there is no terminal."""
    if not console.is_terminal:
        yield _LineProgress(console, title, total)
        return
    columns = (
        TextColumn("{task.description:<34}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


class _LineProgress:
    """Progress for logs and pipes: at most one line every ten seconds."""

    def __init__(self, console: Screen, title: str, total: int) -> None:
        self.console, self.title, self.total = console, title, total
        self.done = self.first = 0
        self.begin = self.last = time.monotonic()

    def __call__(self, count: int) -> None:
        if self.done == 0:
            self.first = count  # what an earlier run had done already
        self.done += count
        now = time.monotonic()
        if now - self.last < 10 or self.done >= self.total:
            return
        self.last = now
        rate = (self.done - self.first) / (now - self.begin)
        eta = (self.total - self.done) / rate if rate > 0 else 0
        self.console.print(f"  {self.title}: {self.done:,} of {self.total:,}, ETA {eta:.0f} s", highlight=False)
