"""One round of improvement: all methods chosen and judged; and what the whole job counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from sims.denoiser import Denoiser
from sims.experiments.base_model import base_work
from sims.experiments.improve.choices import choose, choosing_work, in_order, pair_of
from sims.experiments.improve.improvement import Choice, Context, settings_of
from sims.experiments.improve.outputs import grids_work
from sims.experiments.improve.own_sampler import at_its_best, best_at_its_cost, own_planned
from sims.experiments.improve.recommendation import Known, judged, to_save
from sims.experiments.improve.rows import Measured, measure, table_work, with_retained
from sims.experiments.improve.search import Searched
from sims.experiments.improve.selection import faithful, select
from sims.experiments.improve.variants import CHOOSE, Variants, cached_rival, find_variants, variants_work
from sims.experiments.options import ImproveOptions
from sims.guidance import Guide
from sims.methods import BASE, HEIR, LEADER, METHODS, PAIR, Base, Expected, Method
from sims.processes import agree
from sims.results.improve import Chosen, TriedSampler
from sims.runs.work import Sampling, Work
from sims.sampling import FEW, nfe
from sims.seeds import derive_seed


@dataclass(frozen=True)
class RoundOutcome:
    """What a round found: its base, every line of the table, the searches by method, what the variants are.

    ``known`` are all choices with their FD on the selection seeds; ``improved`` is the label of what is saved;
    ``tried`` are other samplers of some.
    """

    base: Base
    table: tuple[Measured, ...]
    searches: dict[str, Searched] = field(default_factory=dict)
    variants: Variants | None = None
    known: Known = field(default_factory=dict)
    improved: str = LEADER.name
    tried: tuple[TriedSampler, ...] = ()

    def choice(self, label: str) -> Choice | None:
        """The choice with this label."""
        return next((line.choice for line in self.table if line.choice.label == label), None)


def _named(options: ImproveOptions, round_: int, base: Denoiser | None) -> dict[Method, str | None]:
    """The methods of a round in the order of the table, and what each needs that this job lacks."""
    named = [METHODS[name] for name in options.methods]
    if round_:  # further rounds have their own, whatever was asked for
        named = [method for method in METHODS.values() if method.later_rounds]
    snapshots = options.model is None and bool(options.base.snapshots) and round_ == 0
    return {method: method.lacks(options.data.path != "none", snapshots, options.is_judged, base) for method in named}


def methods_of(options: ImproveOptions, base: Denoiser | None, round_: int = 0) -> list[Method]:
    """The methods that a round runs: without what they need of the data or the base, some are left out."""
    return [method for method, lacks in _named(options, round_, base).items() if lacks is None]


def run_round(context: Context, base: Base, round_: int) -> RoundOutcome:
    """All methods of one round, chosen and judged."""
    options = context.options
    for method, lacks in _named(options, round_, base.model.denoiser).items():
        if lacks is not None:
            context.run.log(f"{method.name} is left out: {lacks}")
    methods = methods_of(options, base.model.denoiser, round_)
    context = replace(context, faithful=faithful(context, Choice(BASE.name, BASE.name, base.model), round_))
    chosen, searches = _choose_all(context, base, methods, round_)
    choices = [chosen[name] for name in (*(method.name for method in methods), PAIR) if name in chosen]
    variants = None
    if (leader := chosen.get(LEADER.name)) is not None and LEADER.name in searches:
        with context.stage(CHOOSE, round_):
            variants = find_variants(context, base, choices, leader, searches[LEADER.name].fd, round_)
        place = choices.index(leader) + 1
        choices[place:place] = variants.choices
        if not round_ and nfe(base.model, base.model.sampler) > FEW:
            fds = {name: found.fd for name, found in searches.items()}
            rival = cached_rival(context, list(chosen.values()), fds, variants.before.fd)
            choices += [] if rival is None else [rival]
    known: Known = {}
    improved, tried = LEADER.name, () if variants is None else variants.tried
    if context.judge is not None:
        with context.stage(CHOOSE, round_):
            choices, of_own = _tuned(context, base, choices, methods, searches, round_)
            known = judged(context, choices, searches, round_)
        tried += of_own
        improved = agree(to_save(known, nfe(base.model, base.model.sampler), options.max_cost))
    table = with_retained([measure(context, choice, round_) for choice in choices])
    return RoundOutcome(base, table, searches, variants, known, improved, tried)


def _tuned(
    context: Context,
    base: Base,
    choices: Sequence[Choice],
    methods: Sequence[Method],
    searches: Mapping[str, Searched],
    round_: int,
) -> tuple[list[Choice], tuple[TriedSampler, ...]]:
    """The choices with the base, and the best at its cost, as their own samplers suit them best; and what was tried."""
    found, tried = [*choices], list[TriedSampler]()
    if not own_planned(context.options, methods, nfe(base.model, base.model.sampler), round_):
        return found, ()
    known = judged(context, choices, searches, round_)
    for choice in (known[BASE.name][0], best_at_its_cost(known)):
        if choice is not None:
            tuned, others = at_its_best(context, choice)
            place = found.index(choice) + 1
            found[place:place] = [] if tuned is None else [tuned]
            tried += others
    return found, tuple(tried)


def _choose_all(
    context: Context, base: Base, methods: Sequence[Method], round_: int
) -> tuple[dict[str, Choice], dict[str, Searched]]:
    """Every method's choice and search, by name: the leading one first, a pair of two that help, the heir last."""
    chosen: dict[str, Choice] = {}
    searches: dict[str, Searched] = {}

    def add(method: Method, first: Choice | None) -> None:
        chosen[method.name], searched = choose(context, method, base, round_, first)
        if searched is not None:
            searches[method.name] = searched
            context.run.log(_said(method.name, searched))

    for method in in_order(methods):
        if method is not HEIR:
            add(method, chosen.get(LEADER.name))
    if context.judge is not None and searches and not round_:
        with context.stage(CHOOSE, round_):
            plain = select(context, Choice(BASE.name, BASE.name, base.model), round_)
        if (pair := pair_of(methods, chosen, searches, plain.fd)) is not None:
            add(pair, chosen.get(LEADER.name))
    if HEIR in methods:
        add(HEIR, _teacher(chosen, searches))
    return chosen, searches


def _teacher(chosen: Mapping[str, Choice], searches: Mapping[str, Searched]) -> Choice | None:
    """Whom the heir learns from: the best rule of guidance."""
    guided = [name for name in searches if isinstance(chosen[name].model.denoiser, Guide)]
    return chosen.get(min(guided, key=lambda name: searches[name].fd, default=LEADER.name))


def _said(name: str, chosen: Chosen) -> str:
    by = ""
    if chosen.trusted is not None:
        by = f", by {chosen.trusted.size:,} trusted images; by the training data {chosen.trusted.by_data:g}"
    budget = f"budget {chosen.budget:,} images, " if chosen.budget else ""
    return f"{name}: {budget}w = {chosen.w:g} ({chosen.samples:,} samples searched){by}"


def next_base(outcome: RoundOutcome, options: ImproveOptions, round_: int) -> Base:
    """What the round after this one starts from."""
    heir = outcome.choice(HEIR.name)
    assert heir is not None
    return Base(
        heir.model, heir.model.hash, seed=derive_seed("base", options.seed, round_ + 1), train=options.base.train
    )


def work_of(options: ImproveOptions, sampling: Sampling) -> list[Work]:
    """The stages of a job after its references, in order."""
    work = [base_work(options, sampling.denoiser.data_shape, options.vae is not None)] if options.model is None else []
    costs, foreign = (sampling.nfe, sampling.guided), sampling.foreign
    expected = Expected(settings_of(options), options.base.train, *costs, foreign=foreign, sampling=sampling)
    for round_ in range(options.rounds):
        methods = methods_of(options, sampling.denoiser, round_)
        work += choosing_work(options, methods, expected, round_)
        if options.is_judged:
            work.append(variants_work(options, methods, expected, sampling, round_))
            work += table_work(options, methods, expected, round_)
    return [*work, grids_work(options, methods_of(options, sampling.denoiser), expected)]
