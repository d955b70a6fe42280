"""The result of distribution control."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sims import notebook
from sims.results.common import Cost, Result, Row, inline_rows

STEERED = "steered"  # the label of the model that the solver made
REJECTION, CLASSIFIER, FINE_TUNING = "rejection", "classifier guidance", "fine-tuning"
BASELINES = (REJECTION, CLASSIFIER, FINE_TUNING)  # labels of what it is compared with


@dataclass(frozen=True)
class Bounded:
    """A value with 95 % limits; None where it is not finite."""

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Proportions (K,) of an attribute, corrected for the classifier's errors, with limits; ``raw``: as it calls them.

    tv, kl: total variation and Kullback-Leibler divergence to the target.
    """

    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    raw: tuple[float, ...]
    n: int
    tv: Bounded
    kl: Bounded


@dataclass(frozen=True, kw_only=True)
class Group:
    """Quality within the samples that the judge gives one value: ``n`` of them against ``real`` real images."""

    value: str
    n: int
    real: int
    fd: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True, kw_only=True)
class ShiftRow(Row):
    """A contender: proportions by the judging classifier and by the steering one; quality within each group.

    ``n`` samples in all; ``drawn``: how many rejection drew for them.
    """

    n: int
    proportions: Shares
    steering: Shares
    drawn: int | None = None
    groups: tuple[Group, ...] = ()

    @property
    def baseline(self) -> bool:
        """Whether it is no model of the run's own, but what those are compared with."""
        return self.label in BASELINES


@dataclass(frozen=True, kw_only=True)
class SolverRound:
    """One measurement of the solver: the auxiliary's proportions (K,) and w, and what the guided model then drew."""

    round: int
    w: float
    proportions: tuple[float, ...]
    limited: bool
    samples: int
    candidates_per_sample: float | None
    values: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: int
    tv: float
    fd_target: float
    chosen: bool


@dataclass(frozen=True, kw_only=True)
class SolverResult:
    """What the solver saw and did: the base's proportions, what was expected to be reachable, every round, the end."""

    base: Shares
    far: tuple[str, ...]
    expected: tuple[float, ...]
    rounds: tuple[SolverRound, ...]
    met: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Rejection from the base: evaluations of a delivered sample, that over the row's, where the row breaks even."""

    nfe: float | None
    times: float | None
    break_even: int | None


@dataclass(frozen=True, kw_only=True)
class Saving:
    """A row's cost against rejection: exact, and where rejection may leave as much undone as the row does."""

    label: str
    nfe: float
    cost: Cost
    tv: float | None
    rejection: Rejection
    rejection_at_equal_error: Rejection


@dataclass(frozen=True, kw_only=True)
class ClassifierFacts:
    """A classifier of the attribute: accuracy on held-out images, confusion counts (K, K), true by called."""

    hash: str
    accuracy: float
    confusion: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class ShiftResult(Result):
    """Proportions moved to a target (K,); ``improved`` is the label of what was saved.

    ``distilled`` is that of the steered model in one network, where one was made.
    """

    experiment: ClassVar[str] = "shift"
    attribute: str
    values: tuple[str, ...]
    target: tuple[float, ...]
    real_counts: tuple[int, ...]
    classifiers: dict[str, ClassifierFacts]
    solver: SolverResult
    rows: tuple[ShiftRow, ...]
    savings: tuple[Saving, ...] = ()
    scales: dict[str, float] = field(default_factory=dict)
    improved: str = ""
    distilled: str = ""

    def inline_table(self) -> tuple[list[str], list[list[str]]]:
        columns, lines = inline_rows(self.figures, self.rows)
        distances = [notebook.number(row.proportions.tv.value) for row in self.rows]
        return [*columns, "distance to the target ↓"], [[*line, tv] for line, tv in zip(lines, distances)]

    @property
    def base(self) -> ShiftRow:
        """The row of the base, which comes first."""
        return self.rows[0]

    def row(self, label: str) -> ShiftRow | None:
        """The row with this label."""
        return next((row for row in self.rows if row.label == label), None)
