"""The table: every choice on the same fresh seeds, judged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from sims.experiments.improve.choices import expected_pair
from sims.experiments.improve.improvement import Choice, Context, mark
from sims.experiments.improve.own_sampler import own_planned
from sims.experiments.improve.sampler_search import cheapest_expected
from sims.experiments.improve.selection import draws_folder
from sims.experiments.improve.variants import cached_nfe, has_rival, own_limit
from sims.experiments.options import ImproveOptions
from sims.methods import BASE, CACHED, FAST, LEADER, PAIR, RIVAL, WITHIN, Expected, Method
from sims.results.common import Figure, Row
from sims.runs.measure import draw_and_measure, parts_of, sampled, seconds
from sims.runs.work import Leaves, Work
from sims.sampling import FEW
from sims.scoring.judge import Draw
from sims.seeds import seed_range

REFERENCES = {"fd": "training", "fd_held_out": "held-out"}  # the figures that decide, and the data they are to


@dataclass(frozen=True)
class Measured:
    """A choice, its line of the table, and its draws with their seeds; none where there is nothing to judge by."""

    choice: Choice
    row: Row
    draws: tuple[Draw, ...] = ()
    seeds: tuple[range, ...] = ()


def measure(context: Context, choice: Choice, round_: int) -> Measured:
    """Judge a choice: independent draws of fresh samples, a file per draw."""
    row = Row(
        label=choice.label, method=choice.label, w=choice.w, budget=choice.budget, nfe=choice.nfe, cost=choice.cost,
        note=choice.note,
    )  # fmt: skip
    if context.judge is None:
        return Measured(choice, row)
    judge, evaluation, options = context.judge, context.options.evaluation, context.options
    model = context.shown(choice.model)
    size = evaluation.samples
    seeds = parts_of(seed_range("evaluation", options.seed, evaluation.draws * size, round_), size)
    folder = draws_folder(context, replace(choice, model=model), size, round_, "evaluation")

    with (
        context.stage(_evaluating(choice.planned or choice.label), round_),
        context.run.progress(f"evaluate {choice.label}", evaluation.draws * size) as advance,
    ):
        draws = draw_and_measure(
            context.run, folder, seeds, lambda part: sampled(model, part, batch_size=options.batch_size),
            lambda samples: judge.scored(judge.measure(samples.x, samples.labels, samples.diverged)), Draw, advance,
        )  # fmt: skip
    named = judge.asked.class_names if judge.asked is not None else model.class_names
    names = named or tuple(map(str, range(getattr(judge.extractor, "num_classes", 0))))
    row = replace(
        row,
        figures={name: Figure.of([draw.scores[name] for draw in draws]) for name in draws[0].scores},
        draws=evaluation.draws,
        samples_per_draw=size,
        diverged=sum(draw.diverged for draw in draws),
        seconds_per_1000=round(1000 * float(np.median(seconds(folder, seeds))) / size, 3),
        per_class=judge.per_class(draws, names),
    )
    return Measured(choice, row, tuple(draws), tuple(seeds))


def _evaluating(label: str) -> str:
    return f"evaluate {label}"


def with_retained(table: Sequence[Measured]) -> tuple[Measured, ...]:
    """The table with the share of the leading method's improvement over the base that each row keeps."""
    base, full = (
        next((line.row for line in table if line.choice.label == name), None) for name in (BASE.name, LEADER.name)
    )

    def shares(row: Row) -> dict[str, float]:
        shares = {}
        for figure in REFERENCES:
            worst, best, this = (None if one is None else one.mean(figure) for one in (base, full, row))
            if worst is not None and best is not None and this is not None and best < worst:
                shares[figure] = (worst - this) / (worst - best)
        return shares

    return tuple(replace(line, row=replace(line.row, retained=shares(line.row))) for line in table)


def table_work(options: ImproveOptions, methods: Sequence[Method], expected: Expected, round_: int) -> list[Work]:
    """What ``measure`` counts, for every line of a round's table."""
    draws, count = options.evaluation.draws, options.evaluation.draws * options.evaluation.samples
    rows: list[tuple[str, int, int | None]]
    rows = [(method.name, expected.evaluations(method.networks), None) for method in methods]
    if LEADER in methods and options.guidance.cache_cost and expected.nfe > FEW:
        rows.append((CACHED, cached_nfe(options, expected.nfe), expected.guided))
        rows += [] if round_ else [(FAST, cached_nfe(options, expected.nfe), expected.guided)]
        limit = own_limit(options, expected.nfe)
        if not round_ and cheapest_expected(expected.nfe, limit).beyond:
            rows.append((WITHIN, limit, None))
        rows += (
            [] if round_ or not has_rival(methods) else [(RIVAL, cached_nfe(options, expected.nfe), expected.guided)]
        )
    rows += [(label, expected.nfe, None) for label in own_planned(options, methods, expected.nfe, round_)]
    if not round_ and expected_pair(methods) is not None:
        rows.append((PAIR, expected.guided, None))
    return [
        Work(
            _evaluating(label) + mark(options, round_), evaluations=count * nfe, samples=count, measured=count,
            draws=draws, most=None if most is None else count * most,
            leaves=(Leaves("features of samples", features=count),),
        )
        for label, nfe, most in rows
    ]  # fmt: skip
