"""The closed loop: plan, train, measure, correct, until the target is met or the best reachable is known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sims.errors import UserError
from sims.experiments.shift import proportion_solver as solver
from sims.experiments.shift.contenders import of_model
from sims.experiments.shift.measuring import TRAIN, Meter, finite, tv_of
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.proportion_solver import Limits, Observed, Plan, Reach
from sims.experiments.shift.steering import Candidates
from sims.methods import Base
from sims.model import Model
from sims.processes import agree
from sims.results.common import Cost
from sims.results.shift import STEERED, Shares, SolverResult, SolverRound
from sims.runs.directory import Run
from sims.seeds import seed_range


@dataclass(frozen=True)
class Solved:
    """What the solver found: all it saw and did, what it chose, the model of that, and what it cost."""

    result: SolverResult
    chosen: Observed
    model: Model
    cost: Cost


class ClosedLoop:
    """Rounds of one solver. A repetition finds all it did in files and goes the same way."""

    def __init__(self, run: Run, options: ShiftOptions, meter: Meter, base: Base, candidates: Candidates) -> None:
        self.run, self.options, self.meter, self.base, self.candidates = run, options, meter, base, candidates
        self.target, self.names = meter.target, meter.names
        self.seeds = seed_range("selection", options.seed, options.solver.samples)
        self.measured = Cost()
        self.trained: list[Model] = []  # the auxiliary of every round
        self.samples: list[int] = []  # that it was trained on

    def solve(self) -> Solved:
        """Rounds until the target is met or the best reachable is known; UserError where a value has no support."""
        options, target, settings = self.options.solver, self.target, self.options.auxiliary
        before = agree(self.meter.shares(self.candidates.values, judged=False))
        base, available = np.asarray(before.values), np.asarray(before.raw)
        reached = self._announced(before)
        limits = Limits(available, settings.most, settings.min_samples, options.max_w, options.deepest)
        observed: list[Observed] = []
        plan = solver.first_guess(base, target, limits, options.w, options.gain)
        while True:
            observed += self._round(plan, before)
            plan = solver.next_plan(
                base, before.n, target, observed, limits, w=options.w, gain=options.gain, damping=options.damping
            )
            if reason := solver.stopped(observed, target, plan, options.rounds):
                break
        self.run.log(f"solver: {reason}")
        chosen = solver.best(observed, target)
        trained = settings.images + (len(self.trained) - 1) * settings.refine
        result = SolverResult(
            base=before,
            far=tuple(self.names[value] for value in reached.far),
            expected=tuple(reached.expected.tolist()),
            rounds=tuple(self._told(entry, available, entry is chosen) for entry in observed),
            met=solver.within(chosen, target),
            reason=reason,
        )
        cost = self.candidates.cost + self.measured + Cost(images=trained)
        return Solved(result, chosen, self._guided(chosen.plan.w, chosen.round), cost)

    def _announced(self, before: Shares) -> Reach:
        """Say what is reachable before anything is trained."""
        options, names = self.options.solver, self.names
        base, upper = np.asarray(before.values), np.asarray(before.high)
        reached = solver.reach(base, upper, before.n, self.target, options.max_w, options.gain)
        if reached.absent:
            first = reached.absent[0]
            raise UserError(
                f"the base never draws {names[first]!r} of {self.meter.steering.attribute.name} (estimated none "
                f"of {before.n:,} samples, at most {upper[first]:.2%} with 95 % confidence), and what it never "
                "draws cannot be created: set its share in the target to 0, or give a base that draws it"
            )
        for value in reached.far:
            self.run.log(
                f"{names[value]!r}: from {base[value]:.1%} to {self.target[value]:.1%} is farther than "
                f"auxiliaries were seen to move it (about {reached.expected[value]:.1%} at w = {options.max_w:g}); "
                "what is reached is reported"
            )
        return reached

    def _round(self, plan: Plan, before: Shares) -> list[Observed]:
        """One auxiliary, or the last one trained on, measured at the planned strength.

        The first one also at those where it should come nearer.
        """
        options, target, round_ = self.options.solver, self.target, len(self.trained)
        start = self.trained[-1] if self.trained else None
        network, count = self.candidates.network(plan.proportions, "auxiliary", start)
        self.trained.append(network)
        self.samples.append(count)
        ratio = solver.rejection_ratio(plan.proportions, np.asarray(before.raw))
        limited = ", as far as the limits let it go" if plan.limited else ""
        self.run.log(
            f"round {round_ + 1}: w = {plan.w:.3g}, auxiliary on {count:,} own samples ({ratio:.2g} candidates for "
            f"each){limited}"
        )
        observed = [self._observed(plan, round_)]
        for _ in range(options.strengths - 1 if round_ == 0 else 0):
            w = agree(solver.next_strength(np.asarray(before.values), target, observed, options.max_w))
            if w is None or solver.within(observed[-1], target):
                break
            observed.append(self._observed(replace(plan, w=w), round_))
        return observed

    def _guided(self, w: float, round_: int) -> Model:
        guidance = self.options.guidance
        return self.base.model.guided(self.trained[round_], w, (guidance.sigma_low, guidance.sigma_high))

    def _observed(self, plan: Plan, round_: int) -> Observed:
        """The guided model on the selection seeds, as the steering classifier sees it."""
        meter = self.meter
        contender = of_model(STEERED, self._guided(plan.w, round_), self.options.batch_size, Cost(), plan.w)
        name = f"round {round_ + 1}, w = {plan.w:.3g}"
        seen = meter.measure(contender.key, contender.sample, self.base.model.codec, self.seeds, name)
        level = 1 - (1 - self.options.solver.level) / len(self.target)  # all values at once (Bonferroni)
        shares, fd = agree((meter.shares(seen.steering, judged=False, level=level), meter.distances(seen)[TRAIN]))
        self.measured += Cost(0, round(len(seen) * contender.nfe), len(seen))
        tv = tv_of(shares)
        self.run.log(f"{name}: total variation {tv:.3f}, FD {fd:.2f}")
        values, low, high = (np.asarray(limit) for limit in (shares.values, shares.low, shares.high))
        return Observed(plan, values, low, high, len(seen), tv, shares.tv.low or 0.0, fd, round_)

    def _told(self, entry: Observed, available: np.ndarray, chosen: bool) -> SolverRound:
        """One measurement in plain values."""
        ratio = solver.rejection_ratio(entry.plan.proportions, available)
        return SolverRound(
            round=entry.round + 1,
            w=entry.plan.w,
            proportions=tuple(entry.plan.proportions.tolist()),
            limited=entry.plan.limited,
            samples=self.samples[entry.round],
            candidates_per_sample=finite(ratio),
            values=tuple(entry.values.tolist()),
            low=tuple(entry.low.tolist()),
            high=tuple(entry.high.tolist()),
            n=entry.n,
            tv=entry.tv,
            fd_target=entry.fd,
            chosen=chosen,
        )
