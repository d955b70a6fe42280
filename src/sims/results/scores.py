"""What scoring finds: figures with limits and with what they depend on, rows that describe themselves, differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Self

from sims import notebook
from sims.config import JSON, fitted
from sims.errors import UserError
from sims.results.common import ExtractorFacts, Figure, FigureFacts


@dataclass(frozen=True)
class Space:
    """Where a figure is measured, other than in features; ``dtype`` is the type of the values that are compared."""

    name: str
    hash: str
    dtype: str
    resize: str = "none"


@dataclass(frozen=True)
class ScoreFigure(Figure):
    """A figure of ``samples`` samples, and where its 95 % limits come from (``interval``).

    settings   what else the value depends on; two figures are comparable only where these are equal
    details    what was found besides, such as the p-value of a test
    space      where it was measured, if not in the extractor's features
    """

    interval: str = "none"
    samples: int = 0
    settings: dict[str, JSON] = field(default_factory=dict)
    details: dict[str, float] = field(default_factory=dict)
    space: Space | None = None

    def to_json(self) -> dict[str, JSON]:
        """Mean, limits and where they come from, with settings and details among them."""
        limits: dict[str, JSON] = {"mean": self.mean, "low": self.low, "high": self.high, "interval": self.interval}
        return {**limits, "samples": self.samples, **self.settings, **self.details}


ScoreFigures = dict[str, ScoreFigure]  # by name


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a source tree
        return "unknown"


@dataclass(frozen=True)
class ScoreRow:
    """One measured figure that describes itself.

    seeds: the half-open range [first, after the last] of the samples' seeds, (0, 0) where seeds do not apply;
    resize: how images came to the size they were measured at; images: what else was done to them ("grey repeated to
    RGB"); format: how samples were stored ("memory", "png", ...); dtype: what the samples were rounded to before
    measuring ("float32", "uint8"); unreadable: pictures that were left out because they could not be read; diverged:
    samples with values that were not finite, which count as bad samples; class_distance: total variation distance
    between the classes' shares among the samples and in the reference, None where either has no labels; low, high: 95 %
    limits, and interval: where they come from; floor: the same figure of real images against real ones, of which
    floor_samples took the samples' place; num_reference: reference images, 0 where a file does not say; settings: what
    else the figure depends on.
    """

    metric: str
    value: float
    extractor_name: str
    extractor_hash: str
    reference_name: str
    reference_hash: str
    num_samples: int
    seeds: tuple[int, int]
    resize: str = "none"
    format: str = "memory"
    dtype: str = "float32"
    samples: str = ""
    samples_hash: str = ""
    images: str = "as they are"
    unreadable: int = 0
    diverged: int = 0
    class_distance: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = "none"
    floor: float | None = None
    floor_samples: int = 0
    num_reference: int = 0
    settings: dict[str, JSON] = field(default_factory=dict)
    sims_version: str = field(default_factory=lambda: _version("sims-diffusion"))
    torch_version: str = field(default_factory=lambda: _version("torch"))
    numpy_version: str = field(default_factory=lambda: _version("numpy"))
    scipy_version: str = field(default_factory=lambda: _version("scipy"))

    def to_json(self) -> dict[str, JSON]:
        """The fields as a dictionary that json can write."""
        return {**asdict(self), "seeds": list(self.seeds)}

    @classmethod
    def from_json(cls, row: dict[str, JSON]) -> Self:
        """The inverse of to_json; a row may hold further keys. UserError where a field is missing."""
        missing = [name for name in REQUIRED if name not in row] if isinstance(row, dict) else REQUIRED
        if missing:
            raise UserError(f"A score lacks {', '.join(missing)}; it was not written by sims: measure it again.")
        fitted(row, cls, "a score", rest=True)
        values = {entry.name: row[entry.name] for entry in fields(cls) if entry.name in row}
        return cls(**{**values, "seeds": tuple(row["seeds"])})  # type: ignore[arg-type]

    def _repr_html_(self) -> str:
        """What a notebook shows: the figure, and what it depends on."""
        half = None if self.low is None or self.high is None else (self.high - self.low) / 2
        rows = [[self.metric, notebook.number(self.value, half)], ["real against real", notebook.number(self.floor)]]
        rows += [["samples", f"{self.samples}, {self.num_samples:,}"], ["reference", self.reference_name]]
        return notebook.table("score", [], [*rows, ["extractor", self.extractor_name]])


@dataclass(frozen=True, kw_only=True)
class RunRow(ScoreRow):
    """A row of a run's ``metrics.jsonl``: of the row of tables that is called ``label``."""

    label: str = ""


REQUIRED = tuple(
    entry.name for entry in fields(ScoreRow) if entry.default is MISSING and entry.default_factory is MISSING
)


def diverged_words(diverged: int, samples: int) -> str:
    """The warning about samples that diverged."""
    return (
        f"WARNING: {diverged:,} of {samples:,} samples diverged (values that are not finite): they are counted as bad "
        "samples in every figure; lower w, or take more steps"
    )


def class_words(names: Sequence[str], ours: Sequence[float], theirs: Sequence[float], option: str) -> str:
    """The warning about samples whose classes have other shares than the reference's."""
    order = sorted(range(len(names)), key=lambda index: -abs(ours[index] - theirs[index]))
    told = [f"{names[index]!r} {100 * ours[index]:.1f} % against {100 * theirs[index]:.1f} %" for index in order[:3]]
    more = f" and {len(order) - 3} more" if len(order) > 3 else ""
    return (
        f"the samples' class shares are not the reference's ({', '.join(told)}{more}), so every figure compares "
        f"proportions too: draw classes in the reference's shares (option '{option}'), or give a reference with theirs"
    )


@dataclass(frozen=True)
class SetFacts:
    """A set of real images: its name, a hash of its content, how many there are (0: not known)."""

    name: str
    hash: str
    count: int


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """Figures of one class: number and share of its samples and reference images, and how the two compare.

    frechet is None below two images on a side; precision and recall are None where k is not below both numbers.
    """

    index: int
    count: int
    share: float
    reference_count: int
    reference_share: float
    frechet: float | None
    precision: float | None
    recall: float | None


@dataclass(frozen=True, kw_only=True)
class ClassScores(ClassRow):
    """Figures of a class by its name.

    told_by     whether samples count to the class that was intended, or to the one that a classifier recognizes
    """

    name: str
    told_by: str


@dataclass(frozen=True, kw_only=True)
class Scores:
    """The scores of one set of samples.

    figures     name -> the mean over the draws, or the one draw's value, with its limits
    facts       name -> what the figure is called, and which way is better
    floor       the same figures of real images against real ones, ``floor_of`` says which
    rows        one per figure and draw, with all that it was measured with
    """

    samples: str
    draws: int
    samples_per_draw: int
    extractor: ExtractorFacts
    reference: SetFacts
    held_out: SetFacts | None = None
    figures: ScoreFigures
    facts: dict[str, FigureFacts]
    floor: dict[str, float] = field(default_factory=dict)
    floor_of: str | None = None
    classes: tuple[ClassScores, ...] = ()
    notes: tuple[str, ...] = ()
    rows: tuple[ScoreRow, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: every figure with half of its interval, and real images in the samples' place."""
        return ScoreTable(scores=(self,))._repr_html_()

    def to_json(self) -> dict[str, JSON]:
        """What ``sims evaluate --json`` prints."""
        sides = {"train": self.reference, "held_out": self.held_out}
        e = self.extractor
        return {
            "samples": self.samples,
            "draws": self.draws,
            "samples_per_draw": self.samples_per_draw,
            "extractor": {"name": e.name, "hash": e.hash, "num_features": e.num_features},
            "reference": {key: asdict(side) for key, side in sides.items() if side},
            "metrics": {name: figure.to_json() for name, figure in self.figures.items()},
            "floor": dict(self.floor),
            "floor_of": self.floor_of,
            "classes": [
                {"class" if key == "name" else key: value for key, value in asdict(row).items()} for row in self.classes
            ],
            "notes": list(self.notes),
            "rows": [row.to_json() for row in self.rows],
        }


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A figure of two sets of samples: the first minus the second, its 95 % limits, where they come from, a verdict."""

    metric: str
    difference: float
    low: float
    high: float
    interval: str
    significant: bool
    verdict: str


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scores of several sets of samples, and the differences of the first two."""

    scores: tuple[Scores, ...] = ()
    differences: tuple[Difference, ...] = ()

    def _repr_html_(self) -> str:
        """What a notebook shows: the figures side by side, and what can be said of their differences."""
        names = dict.fromkeys(name for one in self.scores for name in one.figures)
        facts = {name: fact for one in self.scores for name, fact in one.facts.items()}
        sets = [one.samples for one in self.scores]
        if len({*sets}) < len(sets):  # as the verdicts tell them apart
            sets = [
                f"{name} ({place})" for name, place in zip(sets, ("the first", "the second", *range(3, len(sets) + 1)))
            ]
        columns = ["", *sets, "real against real", "95 % from"]
        rows = []
        for name in names:
            found = [one.figures.get(name) for one in self.scores]
            values = ["–" if value is None else notebook.number(value.mean, value.half) for value in found]
            floor = next((one.floor[name] for one in self.scores if name in one.floor), None)
            interval = next(value.interval for value in found if value is not None)
            title = facts[name].title if name in facts else name
            rows.append([title, *values, notebook.number(floor), interval])
        notes = dict.fromkeys(note for one in self.scores for note in one.notes)
        return notebook.table("scores", columns, rows, [*(row.verdict for row in self.differences), *notes])

    def to_json(self) -> dict[str, JSON]:
        """What ``sims evaluate A B --json`` prints."""
        return {
            "scores": [one.to_json() for one in self.scores],
            "differences": [asdict(row) for row in self.differences],
        }
