"""The results of loops and of the pollution experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from sims import notebook
from sims.results.common import Cost, Figure, Interval, Result, TrustedChoice

Curves = dict[str, dict[str, list[list[float]]]]  # figure -> arm -> generation or level -> the value of each repeat


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One side of a comparison: a remedy (``method``, which looks are given for) at a strength.

    ``cost`` is that of one repeat, ``nfe`` the evaluations of a sample; ``diverged`` counts samples of all repeats.
    """

    name: str
    label: str
    method: str
    w: float = 0.0
    cost: Cost = field(default_factory=Cost)
    nfe: float = 0.0
    diverged: int = 0


@dataclass(frozen=True, kw_only=True)
class LevelArm(Arm):
    """An arm of a pollution experiment; ``strengths`` are level -> the strength of each repeat."""

    strengths: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a generation, or the model of a level, was trained on: samples; ``synthetic`` by the generation drawn from.

    ``place`` is the generation or the level.
    """

    place: float
    real: int
    fresh: int = 0
    synthetic: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether something holds, in words, with the intervals that say so; ``against`` names what it is held against."""

    holds: bool
    text: str
    intervals: dict[str, Interval] = field(default_factory=dict)
    against: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdicts:
    """Collapse (MAD), weak and strong prevention of one arm; None where the question does not arise."""

    mad: Verdict | None = None
    weak: Verdict | None = None
    strong: Verdict | None = None


@dataclass(frozen=True, kw_only=True)
class StrengthChoice:
    """A strength that was chosen beforehand: by the distances at each, after so many generations."""

    w: float
    distances: dict[str, float]
    generations: int
    at_edge: bool = False
    replicas: int = 0


def inline_curves(result: LoopResult | PollutionResult, places: dict[int, str]) -> tuple[list[str], list[list[str]]]:
    """A notebook's table: the first figure of every arm at some generations or levels, by position and name."""
    figure = next((name for name in result.figures if name in result.curves), "")
    curves = result.curves.get(figure, {})
    arms = [arm for arm in result.arms if arm.name in curves]

    def cell(values: Sequence[float]) -> str:
        value = Figure.of(values)
        return notebook.number(value.mean, value.half)

    lines = [[arm.label, notebook.number(arm.w), *(cell(curves[arm.name][place]) for place in places)] for arm in arms]
    title = result.figures[figure].title if figure else ""
    return ["", "w", *(f"{title}, {name}" for name in places.values())], lines


@dataclass(frozen=True, kw_only=True)
class LoopResult(Result):
    """Generations of models; ``judged`` are the repeats that the verdicts use."""

    experiment: ClassVar[str] = "loop"
    kind: str
    generations: int
    repeats: int
    passed_on: str
    start: str
    denoiser: str = "network"
    arms: tuple[Arm, ...] = ()
    curves: Curves = field(default_factory=dict)
    shares: dict[str, list[list[float]]] = field(default_factory=dict)
    trained_on: tuple[TrainedOn, ...] = ()
    selection: dict[str, StrengthChoice] = field(default_factory=dict)
    verdicts: dict[str, Verdicts] = field(default_factory=dict)
    judged: tuple[int, ...] = ()

    def inline_table(self) -> tuple[list[str], list[list[str]]]:
        return inline_curves(self, {0: "generation 0", -1: f"generation {self.generations}"})


@dataclass(frozen=True, kw_only=True)
class StrengthCurves:
    """Every figure over w: figure -> level -> strength -> the value of each repeat; what the clean data chose."""

    w: tuple[float, ...]
    figures: dict[str, list[list[list[float]]]]
    chosen: list[list[float]]
    at_edge: list[list[bool]]


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """FD at the strength that ``size`` trusted images choose, over the oracle's: mean, 90th percentile, within 10 %."""

    size: int
    ratio: float
    ratio_90: float
    within_10_percent: float
    w: float


@dataclass(frozen=True, kw_only=True)
class TrustedResult:
    """Strengths that trusted images chose (level -> repeat), FD over the oracle's, and reliability at other sizes.

    ``reliability`` is level -> size -> repeat.
    """

    size: int
    features: str
    w: list[list[float]]
    ratio: list[list[float]]
    choices: list[list[TrustedChoice]]
    reliability: list[list[list[Reliability]]]


@dataclass(frozen=True, kw_only=True)
class LevelComparison:
    """An arm against standard training at one level, paired by repeat (None: one repeat), and against the clean one."""

    a: str
    b: str
    figure: str
    level: float
    means: tuple[float, ...]
    difference: Interval | None = None
    change_percent: Interval | None = None
    over_clean: Figure | None = None

    @property
    def better(self) -> bool:
        """Whether the arm is significantly better."""
        return self.difference is not None and self.difference.high < 0


@dataclass(frozen=True, kw_only=True)
class PollutionResult(Result):
    """Real data polluted by an earlier model's samples, at every level (percent of the real ones)."""

    experiment: ClassVar[str] = "pollution"
    levels: tuple[float, ...]
    repeats: int
    arms: tuple[LevelArm, ...] = ()
    curves: Curves = field(default_factory=dict)
    shares: dict[str, list[list[float]]] = field(default_factory=dict)
    trained_on: tuple[TrainedOn, ...] = ()
    strengths: dict[str, StrengthCurves] = field(default_factory=dict)
    trusted: dict[str, TrustedResult] = field(default_factory=dict)
    comparisons: tuple[LevelComparison, ...] = ()

    def inline_table(self) -> tuple[list[str], list[list[str]]]:
        return inline_curves(self, {place: f"{level:g} %" for place, level in enumerate(self.levels)})
