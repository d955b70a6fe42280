"""``sims shift``: the proportions that a model generates are moved to a target.

own samples -> labelled -> auxiliary on a choice of them -> guided away from it -> measured -> corrected -> judged.
"""

from __future__ import annotations

from sims.experiments.base_model import TRAIN_BASE, base_of
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.sampler_search import CACHED_NOTE, cached_model, pilot_cost
from sims.experiments.job_sizes import sized_base
from sims.experiments.runner import Experiment, carry_out, rehearsed
from sims.experiments.shift import proportion_solver as solver
from sims.experiments.shift.closed_loop import ClosedLoop, Solved
from sims.experiments.shift.contenders import (
    CACHED,
    Contender,
    Judged,
    best_scale,
    has_gradient,
    of_model,
    rejection,
)
from sims.experiments.shift.measuring import Meter
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.problem import open_meter, read_problem
from sims.experiments.shift.shift_estimate import estimate_shift
from sims.experiments.shift.shift_result import summarized, write_outputs
from sims.experiments.shift.steering import Candidates
from sims.methods import BASE, DISTILLED, Base, Leader, Settings
from sims.processes import agree
from sims.results.common import Cost
from sims.results.shift import FINE_TUNING, REJECTION, STEERED, ShiftResult
from sims.runs.clock import Clock
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.seeds import seed_range


def shift(options: ShiftOptions, *, quiet: bool = False) -> ShiftResult | Estimate:
    """Run or continue distribution control in ``options.run``; the result, which ``summary.json`` holds.

    With ``options.dry_run`` nothing is run or written: what the job would cost is returned.

    Errors: UserError for bad options, data, targets or classifiers, or a run directory of another configuration or in
    use.
    """
    if not options.dry_run:
        return carry_out(SHIFT, options, quiet=quiet)
    with rehearsed(SHIFT, options) as run:
        return estimate_shift(run, options)


def _work(run: Run, options: ShiftOptions) -> ShiftResult:
    """Everything but ``summary.json``."""
    problem = read_problem(run, options)
    if problem.model is None:
        data = problem.base_data
        options = sized_base(options, data.data_shape, data.codec.latents is not None, len(data))
    clock = Clock(run)
    with clock.stage("references"):
        meter = open_meter(run, options, problem)
    with clock.stage(TRAIN_BASE):
        base = base_of(run, options, problem.base_data, problem.model)
    with clock.stage("candidates"):
        candidates = Candidates(run, options, base, meter.steering)
    with clock.stage("solve"):
        solved = ClosedLoop(run, options, meter, base, candidates).solve()
    with clock.stage("variants and baselines"):
        contenders = _variants(run, options, base, solved)
        baselines, scales = _baselines(options, meter, base, candidates)
        contenders += baselines
    with clock.stage("judge"):
        rows = _judged(options, meter, base, contenders)
        improved = _improved(options, meter, contenders, solved)
    result = None
    if run.is_main:
        _save(run, meter, improved, contenders)
        write_outputs(run, options, meter, base.model, rows)
        result = summarized(run, options, problem, meter, solved.result, rows, scales, improved.label, clock)
    found = agree(result)
    assert found is not None
    return found


SHIFT = Experiment("shift", ShiftResult, _work)


def _variants(run: Run, options: ShiftOptions, base: Base, solved: Solved) -> list[Contender]:
    """The base, the steered model, and the steered model at a lower cost."""
    size, w, cost = options.batch_size, solved.chosen.plan.w, solved.cost
    variants = [of_model(BASE.name, base.model, size, Cost(), 0.0), of_model(STEERED, solved.model, size, cost, w)]
    if cached := cached_model(run, solved.model, options.guidance, options.seed):
        pilot = Cost(0, pilot_cost(solved.model, options.guidance))
        # Whether it keeps the proportions is measured too, before it becomes the result.
        samples = options.solver.samples
        checked = Cost(0, samples * nfe(cached, cached.sampler), samples)
        variants.append(of_model(CACHED, cached, size, cost + pilot + checked, w, CACHED_NOTE))
    if options.distilled.samples:
        leader = Leader(solved.model, w, STEERED)
        settings = Settings(seed=options.seed, batch_size=size, distilled=options.distilled, leader=leader)
        artefact = DISTILLED.prepare(base, None, settings, run)
        assert artefact is not None
        model = base.model.with_denoiser(artefact.load(options.distilled.images, run.device).denoiser)
        cost += artefact.cost
        variants.append(of_model(DISTILLED.name, model, size, cost, w, "the steered model in one network"))
    return variants


def _baselines(
    options: ShiftOptions, meter: Meter, base: Base, candidates: Candidates
) -> tuple[list[Contender], dict[str, float]]:
    """The baselines that are sampled, and the total variation at each scale of classifier guidance."""
    baselines: list[Contender] = []
    scales: dict[str, float] = {}
    if "classifier" in options.baselines.methods:
        if has_gradient(meter, base.model.data_shape):
            contender, scales = best_scale(base.model, meter, options)
            baselines.append(contender)
        else:
            meter.run.log("classifier guidance is left out: the steering classifier has no gradients")
    if FINE_TUNING in options.baselines.methods:
        network, count = candidates.network(meter.target, "fine-tuned")
        cost = candidates.cost + Cost(images=options.auxiliary.images)
        note = f"the base fine-tuned on {count:,} own samples in the target's proportions"
        baselines.append(of_model(FINE_TUNING, network, options.batch_size, cost, note=note))
    return baselines, scales


def _judged(options: ShiftOptions, meter: Meter, base: Base, contenders: list[Contender]) -> list[Judged]:
    """Every contender on the same evaluation seeds, and rejection from the base's."""
    size, codec = options.evaluation.samples, base.model.codec
    seeds = seed_range("evaluation", options.seed, options.evaluation.draws * size)
    rows = []
    for contender in contenders:
        seen = meter.measure(contender.key, contender.sample, codec, seeds, contender.label)
        draws = [seen[first : first + size] for first in range(0, len(seen), size)]
        rows.append(Judged.by(meter, contender, seen, draws))
    if REJECTION in options.baselines.methods and (delivered := rejection(rows[0], meter, options, seeds)):
        rows.append(delivered)
    return rows


def _improved(options: ShiftOptions, meter: Meter, contenders: list[Contender], solved: Solved) -> Contender:
    """The steered model, cached where the cache keeps the proportions on the selection seeds."""
    by_label = {contender.label: contender for contender in contenders}
    cached = by_label.get(CACHED)
    if cached is not None and cached.model is not None:
        seeds = seed_range("selection", options.seed, options.solver.samples)
        seen = meter.measure(cached.key, cached.sample, cached.model.codec, seeds, cached.label)
        if meter.steered_tv(seen) <= solved.chosen.tv + solver.noise_of(meter.target, len(seen)):
            return cached
    return by_label[STEERED]


def _save(run: Run, meter: Meter, improved: Contender, contenders: list[Contender]) -> None:
    """The results as model directories: ``improved``, and ``distilled``, the same in one network."""
    target = dict(zip(meter.names, meter.target.tolist()))
    distilled = [(DISTILLED.name, contender) for contender in contenders if contender.label == DISTILLED.name]
    for name, contender in [("improved", improved), *distilled]:
        about = {"method": "shift", "label": contender.label, "attribute": meter.steering.attribute.name}
        assert contender.model is not None
        model = contender.model.with_denoiser(contender.model.denoiser, **about, target=target)
        model.save(run.path / name)
