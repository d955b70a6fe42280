"""What is concluded from a loop's curves: collapse, weak and strong prevention, and which strength is judged.

A curve is an array (R, T + 1): the distance to the real distribution of R replicas (or repeats) in generations 0 ... T,
lower is better. Replica r has the same data and seeds in every arm, so arms are compared pair by pair. All intervals
are Student's t over replicas, two-sided, 95 %: the chance that a bound is crossed by luck is 2.5 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sims.errors import UserError
from sims.experiments.loop.remedies import EQUAL, STANDARD, STEPS, is_guided
from sims.metrics.intervals import paired_interval
from sims.metrics.matrices import Array
from sims.results.common import Interval
from sims.results.loop import Arm, Verdict, Verdicts

ALLOWED = 1.15  # of standard training's generation 0: what strong prevention may cost


def mad(curve: Array) -> Verdict:
    """Model autophagy disorder: an arm's distance grows with the generations (Alemohammad et al. 2023).

    growth: the last quarter of the generations minus generation 1; rise: last generation minus generation 0. It holds
    where both lie above 0 with their intervals. Generation 0 is trained on real data alone, and a jump from there that
    then stays is a cost, not a growth. A fixed real set bounds a loop: it grows to a level and stays there, so that a
    line through all generations would say less the longer one looks. UserError below two replicas or below T = 2.
    """
    curve = _curve(curve, 3)
    growth = paired_interval(_late(curve), curve[:, 1])
    rise = paired_interval(curve[:, -1], curve[:, 0])
    holds = growth.low > 0 and rise.low > 0
    grows = "grows" if holds else "does not significantly grow"
    text = (
        f"The distance {grows} with the generations: {_shown(growth)} from generation 1 to the last quarter, and "
        f"{_shown(rise)} from generation 0 to {curve.shape[1] - 1}."
    )
    return Verdict(holds=holds, text=text, intervals={"growth": growth, "rise": rise})


def weak_prevention(curve: Array, equal: Array, against: str = "") -> Verdict:
    """Whether an arm ends significantly below standard training at equal data and equal total compute."""
    curve, equal = _curve(curve), _curve(equal)
    difference = paired_interval(curve[:, -1], equal[:, -1])
    verb = "is significantly below" if difference.high < 0 else "is not significantly below"
    text = (
        f"At generation {curve.shape[1] - 1} it {verb} standard training at equal data and compute: "
        f"{_shown(difference)}."
    )
    return Verdict(holds=difference.high < 0, text=text, intervals={"difference": difference}, against=against)


def strong_prevention(curve: Array, standard: Array) -> Verdict:
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
    return Verdict(holds=holds, text=text, intervals={"difference": difference})


def verdicts_on(curves: Mapping[str, Sequence[Sequence[float]]], arms: Sequence[Arm]) -> dict[str, Verdicts]:
    """The verdicts on every arm; none where there is one repeat.

    ``curves`` are distances to the real data: arm -> generation -> repeat. Weak prevention is held against standard
    training of equal compute where that is among the arms, else against standard training.
    """
    array = {arm.name: np.asarray(curves[arm.name]).T for arm in arms}  # (repeats, generations + 1)
    standard, equal = array[STANDARD], EQUAL if EQUAL in array else STANDARD
    if len(standard) < 2:
        return {}
    return {
        arm.name: Verdicts(
            mad=mad(curve) if curve.shape[1] > 2 else None,
            weak=weak_prevention(curve, array[equal], equal) if is_guided(arm.method) else None,
            strong=strong_prevention(curve, standard) if arm.method != STANDARD else None,
        )
        for arm in arms
        for curve in [array[arm.name]]
    }


def conclusion(
    curves: Mapping[str, Sequence[Sequence[float]]],
    arms: Sequence[Arm],
    verdicts: Mapping[str, Verdicts],
    distance: str,
    places: int,
) -> str:
    """Plain sentences: what became of standard training, and what each remedy prevented."""
    if not verdicts:
        return "One repeat gives no intervals, and so no verdicts: run the same command with more repeats."

    def ends(name: str) -> str:
        first, last = (float(np.mean(curves[name][generation])) for generation in (0, -1))
        return f"{first:.{places}f} -> {last:.{places}f}"

    first, last = (curves[STANDARD][generation] for generation in (0, -1))
    worse = "significantly" if paired_interval(last, first).low > 0 else "not significantly"
    collapses = (growing := verdicts[STANDARD].mad) is not None and growing.holds
    text = f"After {len(curves[STANDARD]) - 1} generations standard training is {worse} worse than its generation 0"
    text += f"{', and collapses' if collapses else ''} ({distance} {ends(STANDARD)})."
    if STEPS in curves:
        text += f" Sampled with twice the steps: {ends(STEPS)}."
    for arm in arms:
        weak, strong = verdicts[arm.name].weak, verdicts[arm.name].strong
        if weak and strong:
            kind = "strong" if strong.holds else "weak" if weak.holds else "no"
            text += f" {arm.label}: {kind} prevention ({ends(arm.name)})."
    return text


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
