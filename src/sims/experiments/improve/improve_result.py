"""The result of an improvement, from what its rounds found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np

from sims.data.dataset import Dataset
from sims.experiments.facts import class_warnings, data_facts, drawn_shares, reproduction
from sims.experiments.improve.improvement import Context
from sims.experiments.improve.recommendation import advice, beyond, free_enough, recommendations
from sims.experiments.improve.rounds import RoundOutcome
from sims.experiments.improve.rows import REFERENCES, Measured
from sims.guidance import CorrectionGuide
from sims.methods import BASE, CACHED, FAST, HEIR, LEADER, TUNED, WITHIN, looks_of
from sims.metrics.intervals import paired_interval
from sims.results.adapter import AdapterCheck
from sims.results.common import Comparison, Data, Floor, Row
from sims.results.improve import CacheResult, Chosen, ImproveResult, Round, SearchCell, SearchResult, Spent
from sims.sampling import nfe, shares_to_draw
from sims.scoring.fidelity import Asked
from sims.scoring.figures import run_figures


def improve_result(
    context: Context,
    outcome: RoundOutcome,
    rounds: Sequence[Round],
    real: Dataset | None,
    test: Dataset | None,
    adapter: AdapterCheck | None = None,
) -> ImproveResult:
    """What ``summary.json`` holds; ``outcome`` is the first round's."""
    options, judge, model = context.options, context.judge, outcome.base.model
    rows = tuple(line.row for line in outcome.table)
    subject = LEADER.name if outcome.choice(LEADER.name) else outcome.improved
    comparisons = _comparisons(outcome.table, subject)
    headline, warnings = _headline({row.label: row for row in rows}, comparisons, subject)
    own = nfe(model, model.sampler)
    headline = f"{advice(outcome.known, own, outcome.table, options.max_cost)} {headline}".strip()
    shares = shares_to_draw(context.shown(model).sampler, model)
    drawn, names, floor = drawn_shares(model.num_classes, shares), model.class_names, None
    if context.held_out:
        kept = np.count_nonzero(context.held_out)
        headline += f" Every figure is of the {kept:,} of {model.num_classes:,} prompts that only the table is of."
    if options.is_text:
        drawn, names = _of_prompts(drawn, judge.asked if judge is not None else None)
    conditional = len(drawn) > 0
    data = data_facts(real, test, conditional, drawn) if real else Data("none", drawn_shares=drawn)
    if judge is not None:
        samples = options.evaluation.draws * options.evaluation.samples
        warnings += class_warnings(names, drawn, judge.train.labels, samples)
    if judge is not None and judge.floor is not None and real is not None and test is not None:
        text = f"real against real: {len(real):,} training images against {len(test):,} held-out ones"
        floor = Floor({"fd_held_out": judge.floor}, text)
    too_dear = beyond(outcome.known, own, options.max_cost, outcome.improved)
    warnings += [too_dear] if too_dear else []
    warnings += [f"the network may be read wrongly: {text}" for text in (adapter.problems if adapter else ())]
    return ImproveResult(
        title=f"{options.data.path if options.model is None else options.model.name}: a model improves itself",
        headline=headline,
        warnings=tuple(warnings),
        data=replace(data, shape=model.data_shape, num_classes=len(drawn), conditional=conditional),
        extractor=judge.about() if judge else None,
        second_extractor=judge.about_second() if judge else None,
        floor=floor,
        looks=looks_of(row.method for row in rows),
        figures={name: facts for name, facts in run_figures().items() if any(name in row.figures for row in rows)},
        reproduction=reproduction(options, context.clock),
        verified=judge is not None,
        leader=subject,
        improved=outcome.improved,
        free=free_enough(outcome.known, own, outcome.table, options.max_cost),
        distilled=HEIR.name if outcome.choice(HEIR.name) else "",
        rows=rows,
        comparisons=tuple(comparisons),
        recommended=recommendations(outcome.known, own, outcome.table),
        search=_search(context, outcome),
        spent=_spent(context, outcome),
        cache=_cache(outcome, rows),
        rounds=tuple(rounds) if options.rounds > 1 else (),
        adapter=adapter,
    )


def _comparisons(table: Sequence[Measured], subject: str) -> list[Comparison]:
    """What the result is about against every other, the leader at less cost against the base; paired by seed."""
    draws = {line.choice.label: [draw.scores for draw in line.draws] for line in table}
    pairs = [(subject, label) for label in draws if label != subject]
    pairs += [(cheap, name) for cheap in (FAST, WITHIN) for name in (BASE.name, BASE.name + TUNED)]
    found = []
    for a, b in pairs:
        ours, theirs = draws.get(a, []), draws.get(b, [])
        for name in (name for name in REFERENCES if min(len(ours), len(theirs)) > 1 and name in ours[0]):
            difference = paired_interval([scores[name] for scores in ours], [scores[name] for scores in theirs])
            text = f"{a} and {b} are not distinguishable"
            if difference.excludes():
                text = f"{a} is {'better' if difference.high < 0 else 'worse'} than {b}"
            found.append(Comparison(a=a, b=b, figure=name, difference=difference, verdict=text))
    return found


def _headline(rows: dict[str, Row], comparisons: Sequence[Comparison], leader: str) -> tuple[str, list[str]]:
    base, ours = rows.get(BASE.name), rows.get(leader)
    if base is None or ours is None:
        return f"No comparison of {BASE.name} and another method was asked for.", []
    if not base.figures:
        return "The improved model is ready; nothing was verified, since there was no real data to judge it by.", []
    warnings, parts = [], []
    for figure, name in REFERENCES.items():
        before, after = base.mean(figure), ours.mean(figure)
        if before is None or after is None:
            continue
        change = 100 * (after / before - 1)
        entry = next((c for c in comparisons if (c.a, c.b, c.figure) == (leader, BASE.name, figure)), None)
        sure = entry is None or entry.difference.excludes()
        doubt = ", one draw: no interval" if entry is None else "" if sure else ", within the noise"
        parts.append(f"FD to {name} data {before:.2f} -> {after:.2f} ({change:+.0f} %{doubt})")
        if change > 0 and sure:
            warnings.append(f"FD to {name} data became worse with {leader}: {before:.2f} -> {after:.2f}.")
    cheaper = (CACHED, FAST, WITHIN)
    for entry in comparisons:
        if entry.a == leader and entry.figure == "fd" and entry.difference.low > 0 and entry.b not in cheaper:
            warnings.append(f"{entry.b} reached a lower FD to the training data than {leader}.")
    bad = "".join(f"; {row.diverged:,} samples of {row.label} diverged" for row in (base, ours) if row.diverged)
    return f"{leader} against {BASE.name}: {'; '.join(parts)}{bad}.", warnings


def _of_prompts(shares: tuple[float, ...], asked: Asked | None) -> tuple[tuple[float, ...], tuple[str, ...]]:
    """The shares of the classes that prompts ask for, drawn by these shares, and their names; () where not known."""
    if asked is None or asked.classes is None or (asked.classes < 0).any():
        return (), ()
    found = np.bincount(asked.classes, weights=shares, minlength=len(asked.class_names))
    return tuple(found.tolist()), asked.class_names


def _search(context: Context, outcome: RoundOutcome) -> SearchResult | None:
    if not outcome.searches:
        return None
    cells = [cell for searched in outcome.searches.values() for cell in searched.cells]
    budgets = len({(cell.method, cell.budget) for cell in cells})
    if (variants := outcome.variants) is not None:
        base, n = variants.before, max(context.options.search.rungs)
        cells.append(SearchCell(method=BASE.name, budget=None, w=0.0, n=n, fd=base.fd, half_width=base.half_width))
    chosen = {
        name: Chosen(**{entry.name: getattr(searched, entry.name) for entry in fields(Chosen)})
        for name, searched in outcome.searches.items()
    }
    extended = any(searched.extended for searched in outcome.searches.values())
    return SearchResult(chosen=chosen, cells=tuple(cells), grid_samples=budgets * 13 * 5_000, extended=extended)


def _spent(context: Context, outcome: RoundOutcome) -> Spent:
    options, base = context.options, outcome.choice(BASE.name)
    leader = outcome.searches.get(LEADER.name)
    return Spent(
        base_training_images=outcome.base.images or None,
        synthesized=options.auxiliary.samples,
        synthesis_evaluations=options.auxiliary.samples * base.nfe if base else None,
        auxiliary_images=max(options.auxiliary.budgets),
        search_evaluations=leader.evaluations if leader else 0,
        distillation_images=options.distilled.images if outcome.choice(HEIR.name) else 0,
    )


def _cache(outcome: RoundOutcome, rows: Sequence[Row]) -> CacheResult | None:
    choice, by = outcome.choice(CACHED), {row.label: row for row in rows}
    if choice is None or outcome.variants is None:
        return None
    guided, quick = choice.model.denoiser, by.get(FAST)
    assert isinstance(guided, CorrectionGuide)
    planned = choice.model.sampler.planned(guided)
    return CacheResult(
        levels=tuple(planned.tolist()),
        refresh=tuple(step is not None and step.refresh for step in guided.steps(planned)),
        solver=choice.model.sampler.solver,
        nfe_base=guided.base.evaluations(planned),
        nfe_full=by[LEADER.name].nfe,
        nfe_cached=choice.nfe,
        retained=by[CACHED].retained,
        cheapest=quick.note if quick else None,
        cheapest_nfe=quick.nfe if quick else None,
        tried=outcome.tried,
    )
