"""How long the stages of a run take."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sims.config import read_as
from sims.files import write_json
from sims.runs.directory import Run


class Clock:
    """Seconds of every stage, over interruptions (but for the time that a killed process lost): ``seconds.json``."""

    def __init__(self, run: Run) -> None:
        self.run, self.file = run, run.path / "seconds.json"
        self.seconds: dict[str, float] = read_as(self.file, dict[str, float]) if self.file.is_file() else {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add up how long a stage takes."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
            if self.run.is_main:
                write_json(self.file, self.seconds)
