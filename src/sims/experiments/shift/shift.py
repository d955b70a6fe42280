"""``sims shift``: the proportions that a model generates are moved to a target.

own samples -> labelled -> auxiliary on a choice of them -> guided away from it -> measured -> corrected -> judged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sims.errors import UserError
from sims.experiments.improve.stages import Choice, Stages
from sims.experiments.shift import proportion_solver as solver
from sims.experiments.shift.baselines import Contender, best_scale, has_gradient, of_model, rejection
from sims.experiments.shift.measuring import Meter, Seen
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.proportion_solver import Limits, Observed, Plan
from sims.experiments.shift.setup import Problem, as_improve, open_meter, read_problem
from sims.experiments.shift.steering import Candidates, Cost
from sims.experiments.shift.summary import Row, summarize, write_outputs
from sims.files import write_json
from sims.methods import DISTILLED, Base, Leader, Settings
from sims.model import Model
from sims.processes import agree
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.seeds import seed_range

Array = np.ndarray


@dataclass(frozen=True)
class Solved:
    """What the solver found: the base's proportions, all it observed, what it chose and why it stopped, the cost."""

    base: dict[str, Any]
    reach: solver.Reach
    observed: list[Observed]
    chosen: Observed
    model: Model
    reason: str
    cost: Cost
    samples: list[int]

    def to_json(self, names: tuple[str, ...]) -> dict[str, Any]:
        """What the solver saw and did, in plain values."""
        rounds = [
            {
                "round": entry.round + 1,
                "w": entry.plan.w,
                "proportions": entry.plan.proportions.tolist(),
                "limited": entry.plan.limited,
                "samples": self.samples[entry.round],
                "candidates_per_sample": solver.rejection_ratio(entry.plan.proportions, np.asarray(self.base["raw"])),
                "values": entry.values.tolist(),
                "low": entry.low.tolist(),
                "high": entry.high.tolist(),
                "n": entry.n,
                "tv": entry.tv,
                "fd_target": entry.fd,
                "chosen": entry is self.chosen,
            }
            for entry in self.observed
        ]
        reach = {
            "far": [names[value] for value in self.reach.far],
            "expected": self.reach.expected.tolist(),
        }
        met = self.reason.startswith("met")
        return {"base": self.base, "reach": reach, "rounds": rounds, "met": met, "reason": self.reason}


def run_shift(options: ShiftOptions, run: Run) -> dict[str, Any]:
    """Run or continue distribution control in ``run``; returns the summary that ``summary.json`` holds."""
    problem = read_problem(run, options)
    stages = Stages(run, as_improve(options), problem.base_data)
    with stages.timed("references"):
        meter = open_meter(run, options, problem)
    stages.judge = meter.judge
    with stages.timed("train base"):
        base = stages.base(_in_codec(problem))
    with stages.timed("candidates"):
        candidates = Candidates(run, options, base, meter.steering)
    with stages.timed("solve"):
        solved = Solver(run, options, problem, meter, base, candidates).solve()
    with stages.timed("variants and baselines"):
        contenders, tried = _contenders(run, options, meter, stages, base, candidates, solved)
    with stages.timed("judge"):
        rows = _judged(options, meter, base, contenders)
        improved = _improved(options, meter, contenders, solved)
    if run.is_main:
        _save(run, meter, improved, contenders)
        summary = summarize(run, options, problem, meter, solved.to_json(meter.names), rows, tried, stages.seconds)
        summary["improved"] = improved.label
        write_outputs(run, options, meter, base.model, contenders, rows)
        write_json(run.path / "summary.json", summary)
    run.barrier()
    return run.once(run.path / "summary.json", dict)


def _in_codec(problem: Problem) -> Model | None:
    """The given model, its samples rounded to the values that the data can have."""
    model = problem.model
    return None if model is None else replace(model, codec=problem.train.codec)


class Solver:
    """The closed loop: plan, train, measure, correct. A repetition finds all it did in files and goes the same way."""

    def __init__(
        self, run: Run, options: ShiftOptions, problem: Problem, meter: Meter, base: Base, candidates: Candidates
    ) -> None:
        self.run, self.options, self.problem, self.meter = run, options, problem, meter
        self.base, self.candidates = base, candidates
        self.seeds = seed_range("selection", options.seed, options.solver.samples)
        self.measured = Cost()
        self.trained: dict[int, Model] = {}
        self.samples: list[int] = []

    def solve(self) -> Solved:
        """Rounds until the target is met or the best reachable is known; UserError where a value has no support."""
        options, target = self.options.solver, self.problem.target
        values = self.candidates.values
        before = agree(self.meter.shares(values, judged=False))
        shares = np.asarray(before["values"])
        reached = self._announced(before)
        settings = self.options.auxiliary
        limits = Limits(np.asarray(before["raw"]), settings.most, settings.min_samples, options.max_w, options.deepest)
        observed: list[Observed] = []
        plan = solver.first_guess(shares, target, limits, options.w, options.gain)
        while True:
            round_ = len(self.samples)
            observed += self._round(plan, round_, before)
            plan = solver.next_plan(
                shares, before["n"], target, observed, limits,
                w=options.w, gain=options.gain, damping=options.damping,
            )  # fmt: skip
            if reason := solver.stopped(observed, target, plan, options.rounds):
                break
        chosen = solver.best(observed, target)
        self.run.log(f"solver: {reason}")
        trained = settings.images + (len(self.samples) - 1) * settings.refine
        cost = self.candidates.cost + self.measured + Cost(images=trained)
        model = self._guided(chosen.plan.w, chosen.round)
        return Solved(before, reached, observed, chosen, model, reason, cost, self.samples)

    def _announced(self, before: dict[str, Any]) -> solver.Reach:
        """Say what is reachable before anything is trained."""
        options, names = self.options.solver, self.meter.names
        base, upper = np.asarray(before["values"]), np.asarray(before["high"])
        found = solver.reach(base, upper, before["n"], self.problem.target, options.max_w, options.gain)
        if found.absent:
            first = found.absent[0]
            raise UserError(
                f"the base never draws {names[first]!r} of {self.meter.steering.attribute.name} (estimated none "
                f"of {before['n']:,} samples, at most {upper[first]:.2%} with 95 % confidence), and what it never "
                "draws cannot be created: set its share in the target to 0, or give a base that draws it"
            )
        for value in found.far:
            self.run.log(
                f"{names[value]!r}: from {base[value]:.1%} to {self.problem.target[value]:.1%} is farther than "
                f"auxiliaries were seen to move it (about {found.expected[value]:.1%} at w = {options.max_w:g}); "
                "what is reached is reported"
            )
        return found

    def _round(self, plan: Plan, round_: int, before: dict[str, Any]) -> list[Observed]:
        """One auxiliary, or the last one trained on, measured at the planned strength.

        The first one also at those where it should come nearer.
        """
        options, target = self.options.solver, self.problem.target
        shares, available = np.asarray(before["values"]), np.asarray(before["raw"])
        network, count = self.candidates.network(plan.proportions, "auxiliary", self.trained.get(round_ - 1))
        self.trained[round_] = network
        self.samples.append(count)
        ratio = solver.rejection_ratio(plan.proportions, available)
        limited = ", as far as the limits let it go" if plan.limited else ""
        self.run.log(
            f"round {round_ + 1}: w = {plan.w:.3g}, auxiliary on {count:,} own samples ({ratio:.2g} candidates for "
            f"each){limited}"
        )
        found = [self._observed(plan, round_)]
        for _ in range(options.strengths - 1 if round_ == 0 else 0):
            w = agree(solver.next_strength(shares, target, found, options.max_w))
            if w is None or solver.within(found[-1], target):
                break
            found.append(self._observed(replace(plan, w=w), round_))
        return found

    def _guided(self, w: float, round_: int) -> Model:
        guidance = self.options.guidance
        return self.base.model.guided(self.trained[round_], w, (guidance.sigma_low, guidance.sigma_high))

    def _observed(self, plan: Plan, round_: int) -> Observed:
        """The guided model on the selection seeds, as the steering classifier sees it."""
        meter, count = self.meter, len(self.problem.target)
        contender = of_model("steered", self._guided(plan.w, round_), self.options.batch_size, Cost(), plan.w)
        name = f"round {round_ + 1}, w = {plan.w:.3g}"
        seen = meter.measure(contender.key, contender.sample, self.base.model.codec, self.seeds, name)
        level = 1 - (1 - self.options.solver.level) / count  # all values at once (Bonferroni)
        found = agree(meter.shares(seen.steering, judged=False, level=level))
        values, low, high = (np.asarray(found[key]) for key in ("values", "low", "high"))
        fd = agree(meter.distances(seen)["fd_target"])
        self.measured += Cost(0, round(len(seen) * contender.nfe), len(seen))
        self.run.log(f"{name}: total variation {found['tv']['value']:.3f}, FD {fd:.2f}")
        tv = found["tv"]
        return Observed(plan, values, low, high, len(seen), tv["value"], tv["low"], fd, round_)


def _contenders(
    run: Run, options: ShiftOptions, meter: Meter, stages: Stages, base: Base, candidates: Candidates, solved: Solved
) -> tuple[list[Contender], dict[str, Any]]:
    """Everything that is judged: the base, the steered model and its variants, the baselines that are models."""
    size, w = options.batch_size, solved.chosen.plan.w
    found = [of_model("base", base.model, size, Cost(), 0.0)]
    found.append(of_model("steered", solved.model, size, solved.cost, w))
    choice = Choice("sims", "steered", solved.model, w, None, solved.cost.images, solved.cost.evaluations)
    if cached := stages.cached(choice, 0):
        pilot = Cost(0, cached.extra_evaluations - solved.cost.evaluations)
        # Whether it keeps the proportions is measured too, before it becomes the result.
        samples = options.solver.samples
        checked = Cost(0, samples * nfe(cached.model, cached.model.sampler), samples)
        found.append(of_model("steered (cached)", cached.model, size, solved.cost + pilot + checked, w, cached.note))
    if options.distilled.samples:
        leader = Leader(solved.model, w)
        settings = Settings(seed=options.seed, batch_size=size, distilled=options.distilled, leader=leader)
        artefact = DISTILLED.prepare(base, None, settings, run)
        assert artefact is not None
        model = base.model.with_denoiser(artefact.load(options.distilled.images, run.device).denoiser)
        cost = solved.cost + Cost(artefact.images, artefact.evaluations)
        found.append(of_model("distilled", model, size, cost, w, "the steered model in one network"))
    tried: dict[str, Any] = {}
    if "classifier" in options.baselines.methods:
        if not has_gradient(meter, base.model.data_shape):
            run.log("classifier guidance is left out: the steering classifier has no gradients")
        else:
            contender, tried = best_scale(base.model, meter, options)
            found.append(contender)
    if "fine-tuning" in options.baselines.methods:
        network, count = candidates.network(meter.target, "fine-tuned")
        cost = candidates.cost + Cost(images=options.auxiliary.images)
        note = f"the base fine-tuned on {count:,} own samples in the target's proportions"
        found.append(of_model("fine-tuning", network, size, cost, note=note))
    return found, tried


def _judged(options: ShiftOptions, meter: Meter, base: Base, contenders: list[Contender]) -> list[Row]:
    """Every contender on the same evaluation seeds, and rejection from the base's."""
    evaluation, codec = options.evaluation, base.model.codec
    seeds = seed_range("evaluation", options.seed, evaluation.draws * evaluation.samples)
    rows = []
    for contender in contenders:
        seen = meter.measure(contender.key, contender.sample, codec, seeds, contender.label)
        rows.append(Row.of(contender, seen, evaluation.samples))
    if "rejection" in options.baselines.methods:
        found = rejection(contenders[0], rows[0].seen, meter, options, seeds, codec)
        if len(found.seen) >= 2:
            draws = [found.seen[part] for part in _halves(found.seen, evaluation.samples)]
            note = f"{len(found.seen):,} of the base's {found.drawn:,} samples"
            rows.append(Row("rejection", found.seen, draws, found.nfe, Cost(), contenders[0].w, note, found.drawn))
    return rows


def _halves(seen: Seen, size: int) -> list[Array]:
    """Draws of what rejection delivered: every value is spread over all of them, in the order of delivery."""
    count = max(1, round(len(seen) / size))
    order = np.argsort(seen.steering, kind="stable")
    return [np.sort(order[first::count]) for first in range(count)]


def _improved(options: ShiftOptions, meter: Meter, contenders: list[Contender], solved: Solved) -> Contender:
    """The steered model, cached where the cache keeps the proportions on the selection seeds."""
    by_label = {contender.label: contender for contender in contenders}
    cached = by_label.get("steered (cached)")
    if cached is not None and cached.model is not None:
        seeds = seed_range("selection", options.seed, options.solver.samples)
        seen = meter.measure(cached.key, cached.sample, cached.model.codec, seeds, cached.label)
        tv = agree(float(meter.shares(seen.steering, judged=False)["tv"]["value"]))
        if tv <= solved.chosen.tv + solver.noise_of(meter.target, len(seen)):
            return cached
    return by_label["steered"]


def _save(run: Run, meter: Meter, improved: Contender, contenders: list[Contender]) -> None:
    """The results as model directories: ``improved``, and ``distilled``, the same in one network."""
    target = dict(zip(meter.names, meter.target.tolist()))
    distilled = next((contender for contender in contenders if contender.label == "distilled"), None)
    for name, contender in (("improved", improved), ("distilled", distilled)):
        if contender is not None and contender.model is not None:
            about = {"method": "shift", "label": contender.label, "attribute": meter.steering.attribute.name}
            model = contender.model
            model.with_denoiser(model.denoiser, **about, target=target).save(run.path / name)
