"""What is concluded from a loop's curves: collapse, weak and strong prevention, and which strength is judged.

A curve is an array (R, T + 1): the distance to the real distribution of R replicas (or repeats) in generations 0 ... T,
lower is better. Replica r has the same data and seeds in every arm, so arms are compared pair by pair. All intervals
are Student's t over replicas, two-sided, 95 %: the chance that a bound is crossed by luck is 2.5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sims.errors import UserError
from sims.metrics.arrays import Array
from sims.metrics.intervals import Interval, paired_interval

ALLOWED = 1.15  # of standard training's generation 0: what strong prevention may cost


@dataclass(frozen=True)
class Mad:
    """Model autophagy disorder: the distance to the real distribution increases with t (Alemohammad et al. 2023).

    growth: the last quarter of the generations minus generation 1; rise: last generation minus generation 0. It holds
    where both lie above 0 with their intervals. Generation 0 is trained on real data alone, and a jump from there that
    then stays is a cost, not a growth. A fixed real set bounds a loop: it grows to a level and stays there, so that a
    line through all generations would say less the longer one looks.
    """

    holds: bool
    growth: Interval
    rise: Interval
    text: str


@dataclass(frozen=True)
class Prevention:
    """``difference`` is the arm's last generation minus what it is held against; it holds where it all lies below 0."""

    holds: bool
    difference: Interval
    text: str


def mad(curve: Array) -> Mad:
    """Whether an arm's distance grows with the generations; UserError below two replicas or below T = 2."""
    curve = _curve(curve, 3)
    growth = paired_interval(_late(curve), curve[:, 1])
    rise = paired_interval(curve[:, -1], curve[:, 0])
    holds = growth.low > 0 and rise.low > 0
    grows = "grows" if holds else "does not significantly grow"
    text = (
        f"The distance {grows} with the generations: {_shown(growth)} from generation 1 to the last quarter, and "
        f"{_shown(rise)} from generation 0 to {curve.shape[1] - 1}."
    )
    return Mad(holds, growth, rise, text)


def weak_prevention(curve: Array, equal: Array) -> Prevention:
    """Whether an arm ends significantly below standard training at equal data and equal total compute."""
    curve, equal = _curve(curve), _curve(equal)
    difference = paired_interval(curve[:, -1], equal[:, -1])
    verb = "is significantly below" if difference.high < 0 else "is not significantly below"
    text = (
        f"At generation {curve.shape[1] - 1} it {verb} standard training at equal data and compute: "
        f"{_shown(difference)}."
    )
    return Prevention(difference.high < 0, difference, text)


def strong_prevention(curve: Array, standard: Array) -> Prevention:
    """Whether an arm ends no worse than 1.15 times standard training's generation 0, with its upper bound.

    The interval is of the paired difference, last generation minus 1.15 times generation 0 of standard training in the
    same replica; it holds where the upper end is at most 0.
    """
    curve, standard = _curve(curve), _curve(standard)
    difference = paired_interval(curve[:, -1], ALLOWED * standard[:, 0])
    holds = difference.high <= 0
    last, first = float(curve[:, -1].mean()), float(standard[:, 0].mean())
    ratio = f"{last / first:.2f} times it" if first > 0 else "which is 0"
    text = (
        f"At generation {curve.shape[1] - 1} the distance is {last:.4f}; generation 0 of standard training has "
        f"{first:.4f} ({ratio}). Against {ALLOWED:g} times that, replica by replica: {_shown(difference)}, "
        f"so the bound is {'kept' if holds else 'not kept'}."
    )
    return Prevention(holds, difference, text)


def choose_strength(curves: Mapping[float, Array], selection_replicas: Sequence[int]) -> float:
    """The strength with the least mean distance over the last quarter of the generations, on these replicas alone.

    No verdict may use the same replicas. Of equal strengths the weaker is taken. UserError where there are none.
    """
    if not curves or not len(selection_replicas):
        raise UserError(f"{len(curves)} strengths and {len(selection_replicas)} replicas to choose by: give both")
    chosen = list(selection_replicas)

    def late(curve: Array) -> float:
        mean = float(_late(_curve(curve, 1)[chosen]).mean())
        return mean if np.isfinite(mean) else float("inf")

    return min(sorted(curves), key=lambda w: late(curves[w]))


def _curve(curve: Array, generations: int = 2) -> Array:
    array = np.asarray(curve, np.float64)
    if array.ndim != 2 or array.shape[1] < generations:
        raise UserError(
            f"a curve of shape {array.shape}: one row per replica with at least {generations} generations is needed"
        )
    return array


def _late(curve: Array) -> Array:
    """The mean of the last quarter of the generations (R,)."""
    return curve[:, -max(1, curve.shape[1] // 4) :].mean(axis=1)


def _shown(interval: Interval) -> str:
    return f"{interval.mean:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}]"
