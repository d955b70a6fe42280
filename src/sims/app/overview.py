"""What is there to look at: runs with their state, and models; read from their directories alone."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from sims.config import JSON, read_as
from sims.errors import UserError
from sims.results.common import Result
from sims.results.summaries import read_result
from sims.runs import progress
from sims.runs.progress import Reached

USUAL = Path("runs")  # where runs are, unless others are named
Status = Literal["finished", "running", "interrupted", "broken"]


@dataclass(frozen=True)
class RunState:
    """A run as it is now.

    sentence   its headline; what it did last, where it is not finished; what is wrong, where it is broken
    reached    how far the present stage of a running one is
    result     of a finished one
    """

    path: Path
    command: str
    status: Status
    sentence: str
    reached: Reached | None = None
    result: Result | None = field(default=None, repr=False)

    @property
    def report(self) -> Path | None:
        """Its page, where there is one."""
        page = self.path / "report.html"
        return page if page.is_file() and not page.is_symlink() else None


def state_of(run: Path) -> RunState:
    """A run as it is now; one that cannot be read is broken, and says why."""
    command = "?"
    try:
        command = str(read_as(run / "config.json", dict[str, JSON]).get("command", "?"))
        if (run / "summary.json").is_file():
            result: Result = read_result(run)
            return RunState(run, command, "finished", result.headline, result=result)
        held, said = _is_held(run), _last_line(run)
        if not held:
            return RunState(run, command, "interrupted", f"{said} (the same command goes on)".strip())
        return RunState(run, command, "running", said, _reached(run))
    except UserError as error:
        return RunState(run, command, "broken", str(error))
    except OSError as error:
        return RunState(run, command, "broken", f"{run} cannot be read ({error.strerror}): give the right to read it")


def _is_held(run: Path) -> bool:
    """Whether a process works on it."""
    lock = run / "lock"
    if not lock.is_file():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _reached(run: Path) -> Reached | None:
    file = run / progress.FILE
    try:
        return read_as(file, Reached) if file.is_file() else None
    except UserError:  # it has just gone, or is of another version: the run is as well without
        return None


def _last_line(run: Path) -> str:
    """Of the log, without its time."""
    log = run / "log"
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    return lines[-1][20:] if lines else ""


@dataclass(frozen=True)
class Shown:
    """What the pages may show: these runs and models, and nothing else on this machine."""

    runs: tuple[Path, ...] = ()
    models: tuple[Path, ...] = ()

    def run(self, name: str) -> Path:
        """The run of this name. UserError for any other path."""
        return _one_of(self.runs, name, "run")

    def model(self, name: str) -> Path:
        """The model of this name. UserError for any other path."""
        return _one_of(self.models, name, "model")


def _one_of(paths: Sequence[Path], name: str, what: str) -> Path:
    for path in paths:
        if str(path) == name:
            return path
    raise UserError(f"{name[:200]!r} is not among what is shown: name the {what} when sims view is started")


def find(given: Sequence[Path]) -> Shown:
    """Runs and models at these paths, or runs in folders there; without any, those below ``runs``.

    UserError for a path that holds neither.
    """
    runs: dict[Path, None] = {}
    models: dict[Path, None] = {}
    for path in given or (USUAL,):
        if (path / "model.json").is_file():
            models[path] = None
            continue
        found = [path] if (path / "config.json").is_file() else [*_runs_in(path)]
        if not found and not given:
            raise UserError("no runs in the folder runs: give a run directory, or a model directory")
        if not found:
            what = "holds neither a run nor a model" if path.exists() else "does not exist"
            raise UserError(f"{path} {what}: give a run directory, a folder of them, or a model directory")
        runs |= dict.fromkeys(found)
    return Shown(tuple(runs), tuple(models))


def _runs_in(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(child for child in folder.iterdir() if (child / "config.json").is_file())
