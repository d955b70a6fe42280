"""A run is a directory: configuration, artefacts, log and results; the same command continues it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from sims.config import JSON, differences, read_as
from sims.errors import UserError
from sims.files import LEFTOVERS, digest, read_json, regular, remove_leftovers, write_atomic, write_json
from sims.processes import agree, join
from sims.results.summaries import FORMAT
from sims.runs.progress import FILE, Advance, progress
from sims.runs.tracking import Tracking
from sims.screen import Screen

T = TypeVar("T")


class Run:
    """One run directory, held by one process group at a time.

    Every process of a distributed run holds a ``Run``; the main one takes the lock and writes, and tells the trackers
    that are named by ``track``.
    Errors: UserError if another run uses the directory, or it was made with another configuration.
    """

    writes: ClassVar[bool] = True

    def __init__(
        self, path: Path | str, config: Mapping[str, JSON], *, quiet: bool = False, track: Sequence[str] = ()
    ) -> None:
        self.path = Path(path)
        self.config = config
        self.accelerator = join()
        width = None if sys.stderr.isatty() else max(110, shutil.get_terminal_size().columns)  # logs need not wrap
        self.console = Screen(stderr=True, quiet=quiet or not self.is_main, width=width)
        self._open()
        self.tracking = Tracking(track, self.path, self.log) if track and self.is_main else None
        if self.tracking is not None:
            self.tracking.configuration(config)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        return self.accelerator.process_index

    @property
    def num_processes(self) -> int:
        return self.accelerator.num_processes

    @property
    def device(self) -> Any:
        return self.accelerator.device

    def _open(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"the run directory {self.path} is a file: choose another run directory")
        try:
            self._take()
        except BlockingIOError:
            raise UserError(
                f"the run directory {self.path} is in use by another process: wait, or choose another one"
            ) from None
        except OSError as error:
            raise UserError(f"the run directory {self.path} cannot be written: {error.strerror}") from None
        if self.is_main:
            self._check_config()
            found = self.path.rglob(LEFTOVERS) if self.writes else ()
            for folder in {file.parent for file in found}:  # of killed processes: the lock is ours
                remove_leftovers(folder, older_than=0.0)
        self.barrier()

    def _take(self) -> None:
        """Make the directory, and hold it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if self.is_main:
            for name in ("lock", "log"):  # a pipe of that name would be waited for
                if (self.path / name).exists():
                    regular(self.path / name)
            self._lock = (self.path / "lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _check_config(self) -> None:
        """Write ``config.json``, or compare with it: format, command, then every option."""
        file, config = self.path / "config.json", {"format": FORMAT, **self.config}
        passing = {"config.json", "lock", "log", "seconds.json", "track", FILE}
        made = {child.name for child in self.path.glob("*")} - passing
        if not made or not file.exists():  # options that came to nothing, such as a misspelt path, bind nobody
            if self.writes:
                write_json(file, config)
            return
        earlier = read_as(file, dict[str, JSON])
        if (format := earlier.get("format", 1)) != FORMAT:
            raise UserError(
                f"the run directory {self.path} has format {format} and this version of sims makes format {FORMAT}: "
                "continue it with the version that made it, or choose another run directory"
            )
        if (command := earlier.get("command")) != config.get("command"):
            raise UserError(
                f"the run directory {self.path} was made by sims {command}, not by sims {config.get('command')}: "
                "choose another run directory"
            )
        for name, old, new in differences(earlier, config):
            raise UserError(
                f"the run directory {self.path} was made with another configuration ({name}: {old!r} there, {new!r} "
                "now): repeat the earlier options, or choose another run directory"
            )

    def close(self) -> None:
        """Give the directory back."""
        if self.tracking is not None:
            self.tracking.close()
        if self.is_main:
            self._lock.close()

    def barrier(self) -> None:
        self.accelerator.wait_for_everyone()

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that this process is to work on; the union over the processes is all of them."""
        return items[self.rank :: self.num_processes]

    def artefact(self, kind: str, *key: Any) -> Path:
        """The folder of a content-addressed artefact: equal keys share it."""
        return self.path / "artefacts" / f"{kind}-{digest(kind, *key)[:12]}"

    def spread(self, items: Sequence[T], file: Callable[[T], Path], work: Callable[[T], None]) -> None:
        """Do the items whose file is not there yet, shared out over the processes; ``work`` writes the file."""
        missing = agree([index for index, item in enumerate(items) if not file(item).is_file()])
        for index in self.share(missing):  # every process must see the same files missing, or shares would not fit
            work(items[index])
        self.barrier()

    def once(self, file: Path, make: Callable[[], Any], *, together: bool = False) -> Any:
        """A JSON result that is computed once and read ever after.

        The main process computes it; ``together``, every process takes part in ``make`` and gets the same result.
        """
        there = agree(file.is_file())
        if not there and (together or self.is_main):
            result = make()
            if self.is_main:
                file.parent.mkdir(parents=True, exist_ok=True)
                write_json(file, result)
        self.barrier()
        return read_json(file)

    def write_rows(self, rows: Iterable[Mapping[str, JSON]]) -> None:
        """``metrics.jsonl``: a line for each self-describing row."""
        write_atomic(self.path / "metrics.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows).encode())

    def log(self, text: str) -> None:
        """One line for the user and for ``log``."""
        if not self.is_main:
            return
        self.console.print(text, highlight=False)
        with (self.path / "log").open("a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    @contextmanager
    def progress(self, title: str, total: int) -> Iterator[Advance]:
        """A progress bar with an ETA on the run's console, and in a file; trackers follow a training under it."""
        folder = self.path if self.is_main and self.writes else None
        with progress(self.console, title, total, folder) as advance:
            yield advance if self.tracking is None else self.tracking.watch(advance)


class Rehearsal(Run):
    """A run directory as a run would find it, with the same errors; nothing is written, and nothing is said."""

    writes = False

    def __init__(self, path: Path | str, config: Mapping[str, JSON]) -> None:
        super().__init__(path, config, quiet=True)

    def _take(self) -> None:
        """See whether the directory could be made, or is in use."""
        nearest = next(place for place in (self.path, *self.path.parents) if place.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            code = errno.EACCES if nearest.is_dir() else errno.ENOTDIR
            raise OSError(code, os.strerror(code))
        if self.is_main and (self.path / "lock").is_file():
            with (self.path / "lock").open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Nothing is held."""

    def once(self, file: Path, make: Callable[[], Any], *, together: bool = False) -> Any:
        """What a run has found already, else what it would find."""
        return read_json(file) if file.is_file() else make()

    def log(self, text: str) -> None:
        """Nothing."""


def command_line() -> str:
    """The command that started this process, as the user would type it."""
    program = os.path.basename(sys.argv[0])
    name = "sims" if program in ("sims", "__main__.py") else program
    return shlex.join([name, *sys.argv[1:]])
