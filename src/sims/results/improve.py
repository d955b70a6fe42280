"""The result of the main job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from sims.results.adapter import AdapterCheck
from sims.results.common import Comparison, Interval, Result, Row, TrustedChoice, inline_rows


@dataclass(frozen=True, kw_only=True)
class SearchCell:
    """One measurement of a search: the FD of n samples at (budget, w), and half of its 95 % interval.

    ``extra`` is the setting beside w of a method that has one.
    ``fd`` is None where sampling diverged; the base on the same seeds has no budget and w = 0.
    """

    method: str
    budget: int | None
    w: float
    n: int
    fd: float | None
    half_width: float | None = None
    extra: float | None = None


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a method's search chose, and how many samples and evaluations it drew.

    ``extra`` is the setting beside w of a method that has one, and ``extra_name`` what that is called.
    """

    budget: int
    w: float
    samples: int
    extra: float | None = None
    extra_name: str = ""
    evaluations: int = 0
    trusted: TrustedChoice | None = None


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The searches of a run: by method, what was chosen; every cell; what a full grid would have drawn."""

    chosen: dict[str, Chosen]
    cells: tuple[SearchCell, ...]
    grid_samples: int
    extended: bool = False


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What the run as a whole spent, in images and network evaluations; None where it is not known."""

    base_training_images: int | None = None
    synthesized: int = 0
    synthesis_evaluations: int | None = None
    auxiliary_images: int = 0
    search_evaluations: int = 0
    distillation_images: int = 0


@dataclass(frozen=True, kw_only=True)
class TriedSampler:
    """A cheaper sampler that was tried on the selection seeds: FD to the training data, and the share of the gain kept.

    ``method`` is what it is of; the share is of the leading method alone.
    """

    method: str
    solver: str
    steps: int
    refreshes: int
    w: float
    nfe: float
    fd: float | None = None
    retained: float | None = None


@dataclass(frozen=True, kw_only=True)
class CacheResult:
    """Where cached guidance recomputes its correction (``refresh``, one per level), and what that costs and keeps."""

    levels: tuple[float, ...]
    refresh: tuple[bool, ...]
    solver: str
    nfe_base: float
    nfe_full: float
    nfe_cached: float
    retained: dict[str, float] = field(default_factory=dict)
    cheapest: str | None = None
    cheapest_nfe: float | None = None
    tried: tuple[TriedSampler, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round of improvement: its rows, and whether it was kept."""

    round: int
    accepted: bool
    reason: str
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The best within a cost (in units of the base's evaluations; None = any): ``label`` of a row, evaluations of it.

    ``trained``: among all methods, and not only those that need no training. ``differences`` are from the base, by
    figure, paired by draw.
    """

    max_cost: float | None
    trained: bool
    label: str
    nfe: float
    differences: dict[str, Interval] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ImproveResult(Result):
    """The main job. ``leader`` is the method that the headline is about; ``improved`` the label that was saved.

    ``free`` is the label of a rule without training that is as good as the best that was trained, within the cost that
    was allowed; "" where none is. ``distilled`` is the label of the best of all in one network, where one was made.
    ``adapter`` are the errors of a given network on the real pictures.
    """

    experiment: ClassVar[str] = "improve"
    verified: bool = True
    leader: str
    improved: str = ""
    free: str = ""
    distilled: str = ""
    rows: tuple[Row, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    recommended: tuple[Recommendation, ...] = ()
    search: SearchResult | None = None
    spent: Spent | None = None
    cache: CacheResult | None = None
    rounds: tuple[Round, ...] = ()
    adapter: AdapterCheck | None = None

    def inline_table(self) -> tuple[list[str], list[list[str]]]:
        return inline_rows(self.figures, self.rows)

    def row(self, label: str) -> Row | None:
        """The row with this label."""
        return next((row for row in self.rows if row.label == label), None)
