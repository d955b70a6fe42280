"""Progress bars; in logs and pipes, a line now and then; for who looks from elsewhere, a file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sims.files import write_json
from sims.screen import Screen

Advance = Callable[[int], None]
FILE = "progress.json"  # in the run directory, while something is under way
LINE, BEAT = 10.0, 2.0  # seconds from one line to the next, and from one file to the next


@contextmanager
def progress(console: Screen, title: str, total: int, folder: Path | None = None) -> Iterator[Advance]:
    """A progress bar with an ETA; in logs a line every ten seconds; in a folder ``progress.json``."""
    told = _ProgressFile(folder / FILE, title, total) if folder is not None else None
    with _shown(console, title, total) as advance:
        if told is None:
            yield advance
            return
        try:
            yield lambda count: (advance(count), told(count))[0]
        finally:
            told.close()


@contextmanager
def _shown(console: Screen, title: str, total: int) -> Iterator[Advance]:
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


class _Pace:
    """How far something is, and how long the rest takes at the pace since it began or was taken up again."""

    def __init__(self, total: int, every: float) -> None:
        self.total, self.every = total, every
        self.done = self.first = 0
        self.begin = self.last = time.monotonic()

    def due(self, count: int) -> bool:
        """Add a count; whether it is time to say something."""
        if self.done == 0:
            self.first = count  # what an earlier run had done already
        self.done += count
        now = time.monotonic()
        if now - self.last < self.every or self.done >= self.total:
            return False
        self.last = now
        return True

    @property
    def eta(self) -> float:
        """Seconds; 0 where it is not known."""
        rate = (self.done - self.first) / (self.last - self.begin)
        return (self.total - self.done) / rate if rate > 0 else 0.0


class _LineProgress:
    """Progress for logs and pipes: at most one line every ten seconds."""

    def __init__(self, console: Screen, title: str, total: int) -> None:
        self.console, self.title, self.pace = console, title, _Pace(total, LINE)

    def __call__(self, count: int) -> None:
        pace = self.pace
        if pace.due(count):
            done = f"{pace.done:,} of {pace.total:,}, ETA {pace.eta:.0f} s"
            self.console.print(f"  {self.title}: {done}", highlight=False)


@dataclass(frozen=True)
class Reached:
    """What ``progress.json`` says: the stage, how much of it is done, seconds that the rest takes, the time of day."""

    stage: str
    done: int
    total: int
    eta: float
    at: float


class _ProgressFile:
    """The same for other processes; what cannot be written is not worth an interruption."""

    def __init__(self, file: Path, title: str, total: int) -> None:
        self.file, self.title, self.pace = file, title, _Pace(total, BEAT)

    def __call__(self, count: int) -> None:
        pace = self.pace
        if pace.due(count):
            reached = Reached(self.title, pace.done, pace.total, pace.eta, time.time())
            with suppress(OSError):
                write_json(self.file, asdict(reached))

    def close(self) -> None:
        with suppress(OSError):
            self.file.unlink(missing_ok=True)
