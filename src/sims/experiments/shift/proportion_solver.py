"""The solver of distribution control: which proportions the auxiliary's data must have, and at which strength.

Guidance away from an auxiliary moves log-odds in the direction of log pi_r - log pi_s (base minus auxiliary), by
g w (log pi_r - log pi_s): the score at sigma -> 0 says g = 1, the exact guided flow less, 0.34 to 0.84 in mixtures of
one dimension; and an auxiliary does not forget quite what its data leave out. So g is unknown, one for each value: it
is measured, and what the target still lacks is corrected in log-odds. Everything here is a function of arrays (K,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

Array = np.ndarray
FLOOR = 1e-4  # shares below count as this much in log-odds: a target of 0 means next to none
GAIN_SPREAD = 0.2  # standard deviation of the gain around what is expected, before anything is measured
CLOSE = 1.25  # times the total variation of the target's own samples: no round is spent on less
PATIENCE = 2  # rounds that may pass without one that comes nearer
BIAS_SPREAD = 0.1  # standard deviation, per unit of w, of what the auxiliary does to a log-odds besides
TRAINING_NOISE = 0.07  # standard deviation, per unit of w, of a log-odds between two auxiliaries trained alike
FORGOTTEN = 0.8  # nats by which an auxiliary's log-odds of a value fell whose samples it never saw (digits, 1000 steps)
TINY = 0.005  # a share that is surely below this, and estimated as none, counts as none
STEP = 1.15  # by which the strength is raised until a plan can be carried out


@dataclass(frozen=True)
class Plan:
    """A strength, and the proportions (K,) of the auxiliary's data; ``limited`` where more would have been needed."""

    w: float
    proportions: Array
    limited: bool = False


@dataclass(frozen=True)
class Observed:
    """What one plan gave: proportions (K,) with intervals for all values at once, TV to the target, and quality.

    ``tv_low`` is the lower limit of the total variation: 0 where the errors of the shares can make up all of it.
    """

    plan: Plan
    values: Array
    low: Array
    high: Array
    n: int
    tv: float
    tv_low: float = 0.0
    fd: float = math.nan
    round: int = 0


@dataclass(frozen=True)
class Limits:
    """What a plan may ask for.

    ``available`` are the shares (K,) among candidates as the classifier sees them, ``candidates`` how many there can
    be, ``samples`` how many the auxiliary needs at least, ``deepest`` how far log-odds may be lowered in its data.
    """

    available: Array
    candidates: int
    samples: int
    max_w: float
    deepest: float

    def bounds(self, base: Array) -> tuple[Array, Array]:
        """Lowest and highest proportions (K,): not below base exp(-deepest), and such that enough samples are left."""
        high = self.available * (self.candidates / self.samples)
        return np.minimum(base * math.exp(-self.deepest), high), high


@dataclass(frozen=True)
class Reach:
    """What the base allows before anything is trained: values it never draws, values far from the target, shares."""

    absent: tuple[int, ...]
    far: tuple[int, ...]
    expected: Array


def rejection_ratio(proportions: Array, available: Array) -> float:
    """Candidates that rejection needs for one sample: max_k proportions_k / available_k; infinite without support."""
    wanted = proportions > 0
    with np.errstate(divide="ignore"):
        return float(np.max(proportions[wanted] / available[wanted]))


def log_shares(shares: Array) -> Array:
    """Log of shares (K,), floored."""
    return np.log(np.maximum(shares, FLOOR))


def _centred(x: Array, target: Array) -> Array:
    """Log-odds are known up to a constant: the one for which their mean under the target is zero."""
    weights = np.maximum(target, FLOOR)
    return x - float(weights @ x / weights.sum())


def reach(base: Array, upper: Array, n: int, target: Array, max_w: float, gain: float) -> Reach:
    """What is reachable from the base's shares (K,), measured on n samples, with upper confidence bounds (K,).

    A value is absent where fewer than one of the n samples is expected to have it, and its share is known to be tiny:
    guidance multiplies odds, and what the base never draws cannot be created. A value is far where the odds that the
    target asks for lie beyond what auxiliaries forgot in measurements: such a target is tried, not promised.
    ``expected`` are the shares at best.
    """
    absent = tuple(int(k) for k in np.flatnonzero((target > 0) & (base * n < 1) & (upper < TINY)))
    room = gain * max_w * FORGOTTEN
    needed = special.logit(np.clip(target, FLOOR, 1 - FLOOR)) - special.logit(np.clip(upper, FLOOR, 1 - FLOOR))
    far = tuple(int(k) for k in np.flatnonzero(needed > room) if int(k) not in absent)
    ahead = np.where(base > 0, log_shares(base), -np.inf)
    step = np.clip(_centred(log_shares(target) - log_shares(base), target), -room, room)
    best = np.exp(ahead + step)
    return Reach(absent, far, best / best.sum())


def push_of(plan: Plan, base: Array, target: Array) -> Array:
    """w (log pi_r - log pi_s), centred (K,): what the gain multiplies."""
    return plan.w * _centred(log_shares(base) - np.log(np.maximum(plan.proportions, 1e-9)), target)


def plan_for(push: Array, base: Array, limits: Limits, w: float) -> Plan:
    """The plan of the lowest strength from ``w`` on that gives a push (K,) within the limits.

    At strength w the auxiliary's data must have the proportions pi_r exp(-push / w), normalized. Where even the highest
    strength does not suffice, the proportions go as far as the limits let them.
    """
    low, high = limits.bounds(base)
    strength = min(w, limits.max_w)
    while True:
        # What the base never draws cannot be among the data.
        proportions = special.softmax(np.where(high > 0, log_shares(base) - push / strength, -np.inf))
        if ((low <= proportions) & (proportions <= high)).all():
            return Plan(strength, proportions)
        if strength >= limits.max_w:
            return Plan(strength, _clipped(proportions, low, high), limited=True)
        strength = min(STEP * strength, limits.max_w)


def _clipped(proportions: Array, low: Array, high: Array) -> Array:
    """Proportions (K,) within bounds that sum to one: clip(c p, low, high), with the factor c found by bisection."""
    less, more = -60.0, 60.0
    for _ in range(200):
        middle = (less + more) / 2
        total = float(np.clip(math.exp(middle) * proportions, low, high).sum())
        less, more = (middle, more) if total < 1 else (less, middle)
    clipped = np.clip(math.exp(more) * proportions, low, high)
    return clipped / clipped.sum()


def first_guess(base: Array, target: Array, limits: Limits, w: float, gain: float) -> Plan:
    """The first plan: log pi_s = log pi_r - (log pi* - log pi_r) / (g w), with the expected gain g."""
    return plan_for(_centred(log_shares(target) - log_shares(base), target) / gain, base, limits, w)


def gains(base: Array, base_n: int, target: Array, observed: Sequence[Observed], expected: float) -> Array:
    """The gain of every value (K,): regression of what was achieved on the push and on w, with priors.

    Achieved, the centred log m - log pi_r, is gain push + bias w: gain ~ ``expected`` +- 0.2, bias ~ 0 +- 0.1. The bias
    is what training on own samples does to a value whatever their proportions; without it, small pushes would seem
    to have no gain, and the next would be far too large. Every value has a gain of its own: a rare one that the data
    leave out is forgotten only in part, which tells nothing of the others. Clipped to 0.15 ... 1.5.
    """
    num = len(base)
    a11, a12, a22 = np.full(num, GAIN_SPREAD**-2), np.zeros(num), np.full(num, BIAS_SPREAD**-2)
    b1, b2 = expected * a11, np.zeros(num)
    for entry in observed:
        push, w = push_of(entry.plan, base, target), entry.plan.w
        achieved = _centred(log_shares(entry.values) - log_shares(base), target)
        precision = 1 / _variance(entry, base, base_n)
        a11, a12, a22 = a11 + precision * push * push, a12 + precision * push * w, a22 + precision * w * w
        b1, b2 = b1 + precision * push * achieved, b2 + precision * w * achieved
    return np.clip((b1 * a22 - b2 * a12) / (a11 * a22 - a12 * a12), 0.15, 1.5)


def _variance(entry: Observed, base: Array, base_n: int) -> Array:
    """Variance (K,) of the log-odds that a plan achieved: of shares m from n samples 1 / (n m), and of training."""
    drawn = 1 / (entry.n * np.maximum(entry.values, FLOOR)) + 1 / (base_n * np.maximum(base, FLOOR))
    return drawn + (TRAINING_NOISE * entry.plan.w) ** 2


def next_plan(
    base: Array,
    base_n: int,
    target: Array,
    observed: Sequence[Observed],
    limits: Limits,
    *,
    w: float,
    gain: float,
    damping: float,
) -> Plan:
    """The next plan: every observation says which push it takes, push + damping (log pi* - log m) / g; their mean.

    Only the last round's observations count. The next round goes on from its weights, so that what this auxiliary does
    besides the push, it will do again. At several strengths, the mean is weighted by how certain each is: by its
    counts, and by how far it lies from the target, since the correction is about as uncertain as the gain.
    """
    own = gains(base, base_n, target, observed, gain)
    observed = [entry for entry in observed if entry.round == observed[-1].round]
    total, weights = np.zeros(len(base)), np.zeros(len(base))
    for entry in observed:
        missing = _centred(log_shares(target) - log_shares(entry.values), target)
        precision = 1 / (_variance(entry, base, base_n) + np.square(GAIN_SPREAD * missing))
        total += precision * (push_of(entry.plan, base, target) + damping * missing / own)
        weights += precision
    return plan_for(total / weights, base, limits, w)


def next_strength(base: Array, target: Array, observed: Sequence[Observed], max_w: float) -> float | None:
    """The strength at which the last observation's auxiliary should come nearest to the target; None if known.

    Of one auxiliary, log-odds move in proportion to the strength, whatever its gains and its own bias: so what was
    achieved says it, without a model. No nearer than 10 % to a strength that was measured.
    """
    last = observed[-1]
    achieved = log_shares(last.values) - log_shares(base)
    known = [entry.plan.w for entry in observed if np.array_equal(entry.plan.proportions, last.plan.proportions)]
    lattice = np.linspace(0.5 * last.plan.w, min(2 * last.plan.w, max_w), 61)
    away = [
        0.5 * np.abs(special.softmax(log_shares(base) + w / last.plan.w * achieved) - target).sum() for w in lattice
    ]
    found = float(lattice[int(np.argmin(away))])
    return found if all(abs(math.log(found / w)) > 0.1 for w in known) else None


def within(entry: Observed, target: Array) -> bool:
    """Whether the target lies within the intervals of all values, and no total variation is left beyond the errors."""
    return entry.tv_low <= 0 and bool(((entry.low <= target) & (target <= entry.high)).all())


def best(observed: Sequence[Observed], target: Array) -> Observed:
    """The least total variation, of what meets the target where anything does."""
    met = [entry for entry in observed if within(entry, target)]
    return min(met or observed, key=lambda entry: entry.tv)


def noise_of(target: Array, n: int) -> float:
    """The total variation that n samples of the target itself would show on average: sum sqrt(p (1 - p) / (2 pi n))."""
    return float(np.sqrt(target * (1 - target) / (2 * math.pi * n)).sum())


def stopped(observed: Sequence[Observed], target: Array, following: Plan | None, rounds: int) -> str | None:
    """Why to stop, in words; None to go on. ``following`` is the plan that would be next."""
    done = 1 + max(entry.round for entry in observed)
    found = best(observed, target)
    stale = done - 1 - found.round >= PATIENCE
    if within(found, target) and (stale or done >= rounds or found.tv <= CLOSE * noise_of(target, found.n)):
        return f"met: the target lies within the intervals of all values at w = {found.plan.w:.3g}"
    nearest = f"total variation {found.tv:.3f}"
    if done >= rounds:
        return f"{rounds} rounds are done; the nearest has {nearest}: raise solver.rounds to go on"
    if not stale:
        return None
    limits = ":"
    if following is not None and following.limited:
        limits = f"; neither a higher w than {following.w:g} nor other proportions are allowed: raise solver.max_w,"
    return (
        f"best reachable: {nearest}, and {PATIENCE} more rounds came no nearer{limits} train the auxiliary longer "
        "(auxiliary.images), or start from the distilled model"
    )
