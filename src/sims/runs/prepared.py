"""Which models a run's methods were built from: an index of folders, for who wants to look at them later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from sims.config import JSON, read_as
from sims.errors import UserError
from sims.files import write_json
from sims.runs.directory import Run

FILE = "models.json"


@dataclass(frozen=True)
class Prepared:
    """What ``models.json`` says; folders are relative to the run's.

    base       the base's folder; "" where it is not in the run (it is then inside of the improved model's)
    sampler    how the base is sampled
    methods    by method, and by budget in images, the folder of the network that was prepared; none for a rule that
               needs the base alone
    """

    base: str = ""
    sampler: dict[str, JSON] = field(default_factory=dict)
    methods: dict[str, dict[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        folders = [self.base, *(path for made in self.methods.values() for path in made.values())]
        for path in folders:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise UserError(f"{FILE} names {path[:80]!r}, which is not in the run: delete {FILE}")


def prepared(run: Path) -> Prepared:
    """What a run has prepared so far. UserError where the file is damaged, or names what is not in the run."""
    file = run / FILE
    return read_as(file, Prepared) if file.is_file() else Prepared()


def record(run: Run, base: Path | None, sampler: dict[str, JSON], method: str, networks: Mapping[int, Path]) -> None:
    """Add what a method has prepared."""
    if not run.is_main:
        return
    known = prepared(run.path)
    folders = {str(budget): _inside(run.path, path) for budget, path in networks.items()}
    found = Prepared(
        _inside(run.path, base), sampler, {**known.methods, method: {k: path for k, path in folders.items() if path}}
    )
    if found != known:
        write_json(run.path / FILE, asdict(found))


def _inside(run: Path, path: Path | None) -> str:
    """A folder relative to the run's; "" where it is none, or elsewhere."""
    return str(path.relative_to(run)) if path is not None and path != run and path.is_relative_to(run) else ""
