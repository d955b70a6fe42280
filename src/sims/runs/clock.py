"""How long the stages of a run take, and what it takes to make the run again."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch

from sims.config import to_dict, to_toml
from sims.files import read_json, write_json
from sims.results.common import Reproduction, Stage
from sims.runs.directory import Run, command_line


class Clock:
    """Seconds of every stage, over interruptions (but for the time that a killed process lost): ``seconds.json``."""

    def __init__(self, run: Run) -> None:
        self.run, self.file = run, run.path / "seconds.json"
        self.seconds: dict[str, float] = read_json(self.file) if self.file.is_file() else {}

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

    def reproduction(self, options: object) -> Reproduction:
        """The commands and options that make the run again, and where its time went."""
        return Reproduction(
            commands=(command_line(), f"sims sample {self.run.path / 'improved'} --seeds 0-63 --out samples"),
            config_toml=to_toml(to_dict(options)),
            versions={
                "sims": version("sims-diffusion"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            stages=tuple(Stage(name, round(seconds, 2)) for name, seconds in self.seconds.items()),
        )
