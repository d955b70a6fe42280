"""The main job: a diffusion model improves itself, and the report says by how much.

base -> synthesize -> auxiliary at several budgets -> choose (budget, w) -> judge on fresh seeds -> distil -> report.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.experiments.adapter_check import LEAST_PICTURES, check_adapter
from sims.experiments.base_model import TRAIN_BASE, base_of, given_model, require_shape, with_sampler
from sims.experiments.cost.described import DataSize, described, of_model, stated
from sims.experiments.cost.estimate import estimate
from sims.experiments.cost.fit import fitted
from sims.experiments.cost.table import Estimate
from sims.experiments.data import in_classes_of, open_judge, read_images, same_data
from sims.experiments.improve.improve_result import improve_result
from sims.experiments.improve.improvement import Context, settings_of
from sims.experiments.improve.outputs import GRIDS, save_adapters, save_models, write_grids, write_metrics
from sims.experiments.improve.rounds import RoundOutcome, methods_of, next_base, run_round, work_of
from sims.experiments.improve.selection import accept
from sims.experiments.improve.trusted import read_trusted
from sims.experiments.job_sizes import kept_sizes, said, sized_for_data, sized_for_text
from sims.experiments.latent_space import decoder_of, latent_space, to_latents
from sims.experiments.options import ImproveOptions
from sims.experiments.runner import Experiment, carry_out, rehearsed
from sims.experiments.text_model import Prompted, open_prompted
from sims.interop.latents import Autoencoder
from sims.methods import BASE, Expected
from sims.methods.auxiliary import TRAINED_HERE
from sims.metrics.extractors import extract
from sims.model import Model
from sims.processes import agree
from sims.results.adapter import AdapterCheck
from sims.results.improve import ImproveResult, Round
from sims.runs.clock import Clock
from sims.runs.directory import Run
from sims.runs.work import Sampling
from sims.scoring.judge import Judge, load_judge
from sims.scoring.reference import try_references

Pair = tuple[Dataset, Dataset]


def improve(options: ImproveOptions, *, quiet: bool = False) -> ImproveResult | Estimate:
    """Run or continue the main job in ``options.run``; its result, which ``summary.json`` holds.

    With ``options.dry_run`` nothing is run or written: what the job would cost is returned.

    Errors: UserError for bad options or data, or a run directory of another configuration or in use.
    """
    options = sized_for_text(options)
    if not options.dry_run:
        return carry_out(IMPROVE, options, quiet=quiet)
    with rehearsed(IMPROVE, options) as run:
        known = stated(options.data)
        opened = _opened(run, options, at_hand=known is None)
        size = opened.size(options) if known is None else of_model(known, opened.model, options)
        options = sized_for_data(options, size.shape, opened.is_latent, size.num_train)
        options = options.settled(size.shape, opened.is_latent)
        _rehearse_references(run, options, opened)
        found = estimate(options, size, opened.model, partial(work_of, options), run.device, run.num_processes)
        return replace(found, sizes=said(options))


@dataclass(frozen=True)
class Opened:
    """What the job begins with: everything that is given, read and checked.

    space     the codec of its latents; None for pixels
    real      training data in the space of the model, and ``test``, held-out data; None without data
    pictures  of training and test, where these were encoded as latents
    trusted   images that are known to be real, where there are some
    prompted  of a text-to-image model, what its labels mean
    """

    model: Model | None
    space: Codec | None
    real: Dataset | None
    test: Dataset | None
    pictures: Pair | None
    trusted: Dataset | None
    seconds: float
    prompted: Prompted | None = None

    @property
    def is_latent(self) -> bool:
        return self.space is not None or (self.real is not None and self.real.codec.latents is not None)

    @property
    def data_shape(self) -> tuple[int, ...]:
        known = self.real or self.model
        assert known is not None
        return known.data_shape

    def size(self, options: ImproveOptions) -> DataSize:
        """Of the data, as far as a pilot wants to know."""
        pictures = self.pictures[0] if self.pictures else None
        return described(options, self.model, self.real, self.test, pictures, self.seconds)


def _opened(run: Run, options: ImproveOptions, at_hand: bool = True) -> Opened:
    """Read and check; UserError, before anything is trained, for whatever does not fit together.

    A rehearsal may do so without the data (not ``at_hand``).
    """
    begin = time.perf_counter()
    prompted = open_prompted(options, run.device, run.log) if options.is_text else None
    if prompted is not None:
        model: Model | None = with_sampler(prompted.model, options.sampler)
    else:
        model = given_model(options.model, options.sampler, run.device, options.vae, options.weights, options.download)
    _check_parts(options, model, run.num_processes)
    at_hand = at_hand and options.data.path != "none"
    space = latent_space(options, model, at_hand)
    real, test, pictures = _data(run, options, model, space) if at_hand else (None, None, None)
    trusted = None
    if options.trusted is not None and real is not None:
        trusted = read_trusted(str(options.trusted), pictures[0] if pictures else real, options.data.source)
    if model is not None and real is not None and model.codec.kind == real.codec.kind == "pixels":
        model = replace(model, codec=real.codec)  # its samples are rounded to the values that the data can have
    return Opened(model, space, real, test, pictures, trusted, time.perf_counter() - begin, prompted)


def _rehearse_references(run: Run, options: ImproveOptions, opened: Opened) -> None:
    """UserError for a reference or an extractor that the job could not use."""
    decoder = decoder_of(opened.space, run)
    if options.reference is not None:
        load_judge(options.reference, None, None, options.evaluation, run.device, decoder)
    elif opened.real is not None:
        shown = (*opened.pictures, options.evaluation) if opened.pictures else None
        try_references(*(shown or (opened.real, opened.test, options.evaluation, decoder)))


def _improve(run: Run, options: ImproveOptions) -> ImproveResult:
    clock = Clock(run)
    with clock.stage("read the data"):
        opened = _opened(run, options)
    model, real, test = opened.model, opened.real, opened.test
    options = kept_sizes(run, options, opened.data_shape, opened.is_latent, None if real is None else len(real))
    options = options.settled(opened.data_shape, opened.is_latent)
    options = fitted(run, options, partial(opened.size, options), model, partial(work_of, options))
    conditional = options.data.conditional if model is None else model.num_classes > 0 and opened.prompted is None
    context = Context(run, options, clock, real if real is None or conditional else real.without_labels())
    if options.is_judged:
        with clock.stage("references"):
            judge = _judge(run, options, (real, test), opened.pictures, decoder_of(opened.space, run))
            features = None
            if opened.trusted is not None:
                features = extract(judge.extractor, opened.trusted.all()[0].to(run.device))
        if opened.prompted is not None:
            judge = judge.for_prompts(opened.prompted.asked(real, judge.extractor))
        context = replace(context, judge=judge, trusted=features)
    if opened.prompted is not None:
        context = replace(context, held_out=opened.prompted.held_out)
    if model is None:
        with clock.stage(TRAIN_BASE):
            base = base_of(run, options, context.real, None)
    else:
        base = base_of(run, options, context.real, model)
    adapter = _looked_at(context, base.model) if model is not None and opened.prompted is None else None
    first, rounds = run_round(context, base, 0), []
    outcome: RoundOutcome = first
    for round_ in range(options.rounds):
        if round_:
            outcome = run_round(context, next_base(outcome, options, round_ - 1), round_)
        rounds.append(_verdict(outcome, round_))
        run.log(f"round {round_ + 1}: {rounds[-1].reason}")
        accepted = all(entry.accepted for entry in rounds)
        if accepted or round_ == 0:
            save_models(context, outcome)
            if opened.prompted is not None:
                save_adapters(context, outcome)
        if not accepted and not options.keep_going:
            break
    if run.is_main:
        with clock.stage(GRIDS):
            write_metrics(context, first.table)
            write_grids(context, first)
    run.barrier()
    return improve_result(context, first, rounds, real, test, adapter)


def _looked_at(context: Context, model: Model) -> AdapterCheck | None:
    """How well a given network denoises the real data; a warning now where it is likely read wrongly."""
    data, options = context.real, context.options
    if data is None or len(data) < LEAST_PICTURES:
        return None
    found = check_adapter(model, data, str(options.model), seed=options.seed, others=False)
    for text in found.problems:
        context.run.log(f"WARNING: {text} (`sims check` tries other readings)")
    return found


def _verdict(outcome: RoundOutcome, round_: int) -> Round:
    found, by = outcome.variants, {label: fd for label, (_, fd) in outcome.known.items()}
    before, after, noise = (found.before, found.after, found.noise) if found else (None, None, 0.0)
    accepted, reason = agree(accept(before, after, noise, first=round_ == 0))
    if found is None and BASE.name in by and outcome.improved in by:  # the leading method was not run
        accepted = by[outcome.improved] < by[BASE.name]
        change = f"{by[BASE.name]:.2f} -> {by[outcome.improved]:.2f} with {outcome.improved}"
        reason = f"{'accepted' if accepted else 'no improvement'}: FD to train {change}, on the selection seeds"
    rows = tuple(line.row for line in outcome.table)
    if rows and {row.method for row in rows} == {BASE.name}:
        reason = "nothing beside the base was asked for"
    return Round(round=round_ + 1, accepted=accepted, reason=reason, rows=rows)


IMPROVE = Experiment("improve", ImproveResult, _improve, unbound=("fit_memory",))


def _check_parts(options: ImproveOptions, model: Model | None, num_processes: int) -> None:
    """UserError for what cannot be counted, or a batch that the processes cannot split: now, not after hours."""
    if options.model is None:
        options.base.train.check_parts(num_processes)
    sampling = Sampling(model or TRAINED_HERE, model.sampler if model else options.sampler, 0, 0)
    expected = Expected(settings_of(options.settled(())), options.base.train, sampling=sampling)
    for method in methods_of(options, model):
        training = method.work(expected).training if method.work is not None else None
        if training is not None:
            training.options.check_parts(num_processes)


def _data(
    run: Run, options: ImproveOptions, model: Model | None, space: Codec | None
) -> tuple[Dataset, Dataset, Pair | None]:
    """Training and held-out data in the space of the model; and the pictures that were encoded, if any were."""
    data = options.data
    train, test = read_images(run, data, options.seed)
    classed = model is not None and model.num_classes > 0 and not options.is_text
    if model is not None and classed and (space is not None or model.data_shape == train.data_shape):
        train, test = (in_classes_of(model, str(options.model), part, data.path) for part in (train, test))
    pictures = None
    if space is not None:
        pictures = (train, test) if train.codec.kind == "pixels" else None
        train, test = (to_latents(run, options, space, part) for part in (train, test))
    require_shape(model, options.model, train.data_shape, data.path)
    same_data(run, data.path, train, test)
    return train, test, pictures


def _judge(
    run: Run,
    options: ImproveOptions,
    real: tuple[Dataset | None, Dataset | None],
    pictures: Pair | None,
    decoder: Autoencoder | None,
) -> Judge:
    if options.reference is not None:
        return load_judge(options.reference, *real, options.evaluation, run.device, decoder)
    train, test = real
    assert train is not None
    return open_judge(run, train, test, options.evaluation, pictures, decoder)
