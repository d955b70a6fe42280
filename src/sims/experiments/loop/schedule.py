"""What each generation of a loop is trained on: how many real, fresh and synthetic samples.

fully-synthetic  the last generation's samples alone
augmentation     a fixed real set and the last generation's samples ("synthetic augmentation": Alemohammad et al. 2023)
accumulate       a fixed real set and the samples of all earlier generations (Gerstgrasser et al. 2024)
fresh            new real samples in every generation and the last generation's samples ("fresh data")
counts           stated numbers of all three

Generation 0 is always trained on real data alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sims.config import nearest
from sims.errors import UserError
from sims.results.loop import TrainedOn

Plan = tuple["Counts", ...]
Kind = Literal["fully-synthetic", "augmentation", "accumulate", "fresh", "counts"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST, MOST_ACCUMULATED = 10_000, 1_000  # generations; of the latter each has a part of its own for all before it
TOY_REAL = 1_000  # real points where any number could be drawn


@dataclass(frozen=True)
class Counts:
    """Samples of one generation's training set; ``synthetic`` maps an earlier generation to the number of its samples.

    ``real`` are of the fixed real set, ``fresh`` are real samples that no earlier generation has seen.
    """

    real: int
    fresh: int = 0
    synthetic: dict[int, int] = field(default_factory=dict)

    def trained_on(self, generation: int) -> TrainedOn:
        """The same as a result says it."""
        synthetic = {str(earlier): count for earlier, count in self.synthetic.items()}
        return TrainedOn(place=generation, real=self.real, fresh=self.fresh, synthetic=synthetic)


@dataclass(frozen=True)
class CountOptions:
    """How many samples a generation is trained on. Generation 0 sees the real ones only."""

    real: int | None = None
    """Samples of the fixed real set; all there are if not given (kind fresh: the first generation's share of them)."""
    synthetic: int | None = None
    """Samples that a generation passes on to later ones; as many as `real` if not given."""
    fresh: int | None = None
    """New real samples in every generation (kinds fresh and counts); with kind fresh as many as `real` if not given."""
    total: int | None = None
    """Samples of a whole training set (kind counts): the three numbers must add up to it."""
    shares: tuple[float, ...] = ()
    """Instead of the three numbers (kind counts): shares of `total` that are real, synthetic and fresh; they add up to 1."""  # noqa: E501

    def __post_init__(self) -> None:
        for name in ("real", "synthetic", "fresh", "total"):
            if (value := getattr(self, name)) is not None and value < 0:
                raise UserError(f"counts.{name} is {value}: a number of samples cannot be negative")
        if not self.shares:
            return
        shown = list(self.shares)
        if len(shown) != 3 or min(shown) < 0 or abs(sum(shown) - 1) > 1e-6:
            raise UserError(f"counts.shares is {shown}: give three shares (real, synthetic, fresh) that add up to 1")
        if self.total is None:
            raise UserError(f"counts.shares is {shown}: give counts.total, the number of samples they are shares of")
        if given := [name for name in ("real", "synthetic", "fresh") if getattr(self, name) is not None]:
            raise UserError(f"counts.shares and counts.{given[0]} are both given: give the shares or the numbers")


def schedule(kind: Kind, options: CountOptions, generations: int, available: int | None = None) -> Plan:
    """The training sets of generations 0 ... T, checked before anything is computed.

    available  number of real samples there are; None where any number can be drawn (the 2-D toys)

    Errors: UserError for an unknown kind, T = 0, and whatever cannot be had or does not fit the kind.
    """
    if kind not in KINDS:
        raise UserError(f"unknown kind of loop {kind!r}{nearest(kind, KINDS)}")
    if generations < 1:
        raise UserError(f"generations is {generations}: a loop needs at least 1 generation after generation 0")
    if generations > (most := MOST_ACCUMULATED if kind == "accumulate" else MOST):
        raise UserError(f"generations is {generations:,}: at most {most:,} can be planned in a loop of kind {kind}")
    if kind != "counts" and (options.total is not None or options.shares):
        raise UserError(f"counts.total and counts.shares are for kind counts, not for {kind}: leave them out")
    if kind not in ("fresh", "counts") and options.fresh:
        raise UserError(f"counts.fresh is {options.fresh}, and a loop of kind {kind} takes no fresh data: leave it out")
    real, synthetic, fresh = _numbers(kind, options, generations, available)
    if real < 2:
        raise UserError(f"counts.real is {real}: generation 0 is trained on real data, at least 2 samples are needed")
    if kind == "fresh" and fresh < 1:
        raise UserError(f"counts.fresh is {fresh}: a loop of kind fresh needs at least 1 new real sample a generation")
    if synthetic < 1:
        raise UserError(f"counts.synthetic is {synthetic}: a generation must pass on at least 1 sample")
    if kind == "fully-synthetic" and synthetic < 2:
        raise UserError(f"counts.synthetic is {synthetic}: at least 2 samples are needed to train on them alone")
    needed = real + generations * fresh
    if available is not None and needed > available:
        more = f" + {generations} generations x {fresh:,} fresh" if fresh else ""
        raise UserError(
            f"{real:,} real{more} = {needed:,} real samples are needed, and there are {available:,}: "
            + ("lower counts.total" if options.shares else "lower counts.real" + (", counts.fresh" if fresh else ""))
            + (" or generations" if fresh else "")
        )
    plan = [Counts(real)]
    for generation in range(1, generations + 1):
        earlier = range(generation) if kind == "accumulate" else range(generation - 1, generation)
        fixed = 0 if kind in ("fully-synthetic", "fresh") else real
        plan.append(Counts(fixed, fresh, dict.fromkeys(earlier, synthetic)))
    return tuple(plan)


def _numbers(kind: Kind, options: CountOptions, generations: int, available: int | None) -> tuple[int, int, int]:
    """Real samples, samples passed on, and fresh samples a generation."""
    if options.shares and options.total is not None:
        return _apportioned(options.total, options.shares)
    fresh = options.fresh or 0
    if options.real is not None:
        real = options.real
    elif available is None:
        real = TOY_REAL
    else:
        real = available // (generations + 1) if kind == "fresh" else max(0, available - generations * fresh)
    fresh = real if kind == "fresh" and options.fresh is None else fresh
    synthetic = real if options.synthetic is None else options.synthetic
    if options.total is not None and real + synthetic + fresh != options.total:
        raise UserError(
            f"counts.real {real:,}, counts.synthetic {synthetic:,} and counts.fresh {fresh:,} add up to "
            f"{real + synthetic + fresh:,}, not to counts.total {options.total:,}: correct one of them"
        )
    return real, synthetic, fresh


def _apportioned(total: int, shares: Sequence[float]) -> tuple[int, int, int]:
    """Whole numbers that add up to a total, by the largest remainders; a share of 0 gives 0."""
    exact = [total * share for share in shares]
    found = [math.floor(value + 1e-9) for value in exact]
    by_rest = sorted(range(len(found)), key=lambda i: found[i] - exact[i])
    for i in by_rest[: total - sum(found)]:
        found[i] += 1
    real, synthetic, fresh = found
    return real, synthetic, fresh


def passed_on(plan: Plan, generation: int) -> int:
    """Samples of a generation that any later one is trained on."""
    return max((entry.synthetic.get(generation, 0) for entry in plan), default=0)


def fresh_positions(plan: Plan, generation: int) -> range:
    """Positions, in the shuffled real data, of the fresh samples of a generation: behind the real set, none twice."""
    first = plan[0].real + sum(entry.fresh for entry in plan[:generation])
    return range(first, first + plan[generation].fresh)
