"""Numbers with their intervals, costs, and what every result has."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from sims import notebook
from sims.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A mean and the limits of its confidence interval at ``level``, from ``num_values`` independent values."""

    mean: float
    low: float
    high: float
    level: float = 0.95
    num_values: int = 0

    def excludes(self, value: float = 0.0) -> bool:
        """Whether a value lies outside the interval."""
        return not self.low <= value <= self.high


@dataclass(frozen=True)
class Figure:
    """The mean of a figure over independent draws or repeats, its 95 % limits where there are several, the lowest.

    Published FIDs are the lowest of three draws.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    lowest: float | None = None

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """The mean of independent values with Student's t-interval; of a single value that value, without limits."""
        if len(values) < 2:
            return cls(float(values[0]))
        import numpy as np  # here: reading a result needs neither
        from scipy.special import stdtrit

        array = np.asarray(values, np.float64)
        mean = float(array.mean())
        half = float(stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / np.sqrt(len(array)))
        return cls(mean, mean - half, mean + half, float(array.min()))

    @property
    def half(self) -> float | None:
        """Half of the interval."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Cost:
    """Compute: images that networks were trained on, network evaluations besides, images labelled by a classifier.

    The unit of ``total`` is the network evaluation of one sample; a training image counts as three of them, for its
    forward and backward pass. ``total // 3`` is the same in training images.
    """

    images: int = 0
    evaluations: int = 0
    labelled: int = 0

    @property
    def total(self) -> int:
        """All of it, in network evaluations."""
        return 3 * self.images + self.evaluations

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.images + other.images, self.evaluations + other.evaluations, self.labelled + other.labelled)

    def __mul__(self, times: int) -> Cost:
        return Cost(times * self.images, times * self.evaluations, times * self.labelled)


MARKERS = tuple(".,ov^<>12348spP*hH+xXDd|_")


@dataclass(frozen=True)
class Look:
    """What a method is called in tables and figures, its colours on light and dark pages, its marker (matplotlib)."""

    title: str
    light: str
    dark: str
    marker: str

    def __post_init__(self) -> None:
        for colour in (self.light, self.dark):
            if not re.fullmatch(r"#[0-9a-fA-F]{6}", colour):
                raise UserError(f"colour {colour[:20]!r} is none: write it as #00699e")
        if self.marker not in MARKERS:
            raise UserError(f"marker {self.marker[:20]!r} is none of matplotlib's: {', '.join(MARKERS)}")


@dataclass(frozen=True)
class FigureFacts:
    """What a figure is called, which way is better, and whether it is a distance, a share or another number."""

    title: str
    better: Literal["lower", "higher", "neither"] = "neither"
    kind: Literal["distance", "share", "number"] = "number"


@dataclass(frozen=True)
class Data:
    """The real data of a run; counts are of training and held-out samples, ``class_shares`` of the training data.

    ``drawn_shares`` are those by which a class-conditional model's classes are drawn.
    """

    name: str
    num_train: int = 0
    num_test: int = 0
    shape: tuple[int, ...] = ()
    num_classes: int = 0
    conditional: bool = False
    class_names: tuple[str, ...] = ()
    class_shares: tuple[float, ...] = ()
    drawn_shares: tuple[float, ...] = ()
    num_base_train: int | None = None
    imbalance: str = ""


@dataclass(frozen=True)
class ExtractorFacts:
    """The features that figures are measured in; ``accuracy`` of a classifier on held-out images."""

    name: str
    hash: str
    num_features: int
    accuracy: float | None = None


@dataclass(frozen=True)
class Floor:
    """What real data score: by figure, with the words that say how it was measured."""

    values: dict[str, float]
    text: str = ""


@dataclass(frozen=True)
class Stage:
    """How long a stage of the run took, over interruptions."""

    name: str
    seconds: float = 0.0


@dataclass(frozen=True)
class Reproduction:
    """What it takes to make the run again, and where its time went."""

    commands: tuple[str, ...] = ()
    config_toml: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    stages: tuple[Stage, ...] = ()

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True)
class ClassFigures:
    """One class of a row's samples: share recognized, agreement with the class asked for, FD."""

    name: str
    share: float
    agreement: float | None = None
    fd: float | None = None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table: a model, how it is sampled, what making it cost, and what was measured of it.

    cost       beyond the base's own training
    figures    name -> mean over the draws
    retained   figure -> the share of the leading method's improvement over the base that the row keeps
    diverged   samples with values that were not finite or absurdly large; they are counted as bad samples, not left out
    """

    label: str
    method: str
    w: float | None = None
    budget: int | None = None
    nfe: float = 0.0
    cost: Cost = field(default_factory=Cost)
    figures: dict[str, Figure] = field(default_factory=dict)
    draws: int = 0
    samples_per_draw: int = 0
    diverged: int = 0
    seconds_per_1000: float | None = None
    retained: dict[str, float] = field(default_factory=dict)
    note: str = ""
    per_class: tuple[ClassFigures, ...] = ()

    def mean(self, figure: str) -> float | None:
        """The mean of a figure; None where it was not measured."""
        found = self.figures.get(figure)
        return None if found is None else found.mean


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two rows in one figure: a minus b, paired by draw or repeat, and the verdict in words."""

    a: str
    b: str
    figure: str
    difference: Interval
    verdict: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """What every experiment says.

    looks      a row's ``method`` (or arm) -> its title, colours and marker, in the order of tables; a variant, such as
               "sims (cached)", has a look and is a ``method`` of its own
    figures    name -> what the figure is called and which way is better, in the order of the tables
    """

    experiment: ClassVar[str]
    title: str
    headline: str
    warnings: tuple[str, ...] = ()
    data: Data
    extractor: ExtractorFacts | None = None
    second_extractor: ExtractorFacts | None = None
    floor: Floor | None = None
    looks: dict[str, Look] = field(default_factory=dict)
    figures: dict[str, FigureFacts] = field(default_factory=dict)
    reproduction: Reproduction = field(default_factory=Reproduction)

    def inline_table(self) -> tuple[list[str], list[list[str]]]:
        """The columns and rows that a notebook shows."""
        return [], []

    def _repr_html_(self) -> str:
        """What a notebook shows: the headline, warnings, and the figures that matter most."""
        columns, rows = self.inline_table()
        return notebook.table(self.title, columns, rows, [self.headline, *self.warnings])


#: The figures of rows that a notebook shows, where they were measured.
INLINE = ("fd", "fd_held_out", "check_fd_held_out", "precision", "recall", "memorized")


def inline_rows(facts: dict[str, FigureFacts], rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a notebook's table: what each model is, costs and scores, with half of the interval."""
    shown = [name for name in INLINE if any(name in row.figures for row in rows)]
    arrows = {"lower": " ↓", "higher": " ↑", "neither": ""}
    titles = [facts[name].title + arrows[facts[name].better] if name in facts else name for name in shown]

    def cell(row: Row, name: str) -> str:
        value = row.figures.get(name)
        return "–" if value is None else notebook.number(value.mean, value.half)

    lines = [
        [row.label, notebook.number(row.w), notebook.number(row.nfe), *(cell(row, name) for name in shown)]
        for row in rows
    ]
    return ["", "w", "evaluations", *titles], lines


@dataclass(frozen=True)
class TrustedChoice:
    """A strength that a few trusted images chose: distances and shares of resamples by strength, their number.

    ``by_data``: the strength that the (polluted) data would have chosen.
    """

    w: float
    distances: dict[str, float]
    shares: dict[str, float]
    size: int
    by_data: float | None = None
