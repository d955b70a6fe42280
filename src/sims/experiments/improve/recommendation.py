"""What a run recommends: the best within a cost, with and without training; chosen on the selection seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import product

from sims.experiments.improve.improvement import Choice, Context
from sims.experiments.improve.rows import REFERENCES, Measured
from sims.experiments.improve.search import Searched
from sims.experiments.improve.selection import select
from sims.methods import BASE, METHODS
from sims.metrics.intervals import paired_interval
from sims.results.common import Interval
from sims.results.improve import Recommendation

LIMITS = (1.0, 1.25, None)  # of a sample's cost, in units of the base's evaluations; None = any
SHOWN = (*REFERENCES, "check_fd_held_out", "memorized")
Known = Mapping[str, tuple[Choice, float]]  # label -> choice, its FD on the selection seeds


def judged(context: Context, choices: Sequence[Choice], searches: Mapping[str, Searched], round_: int) -> Known:
    """Every choice with its FD on all selection seeds: what its search measured, where that went so far."""
    count = max(context.options.search.rungs)
    known = {}
    for choice in choices:
        searched = searches.get(choice.label)
        cells = () if searched is None or searched.trusted is not None else searched.cells
        at = None if searched is None else (searched.budget, searched.extra, searched.w, count)
        fd = next((cell.fd for cell in cells if (cell.budget, cell.extra, cell.w, cell.n) == at), None)
        known[choice.label] = (choice, select(context, choice, round_).fd if fd is None else fd)
    return known


def best(known: Known, nfe: int, max_cost: float | None, trained: bool = True) -> str | None:
    """The label of the best that costs no more than ``max_cost``, in units of the base's ``nfe`` evaluations.

    None where nothing but the base itself is within the cost, or better than it.
    """
    able = [
        (fd, label)
        for label, (choice, fd) in known.items()
        if fd < math.inf and (max_cost is None or choice.nfe <= max_cost * nfe) and (trained or _is_free(choice))
    ]
    found = min(able, default=None)
    return None if found is None or found[1] == BASE.name else found[1]


def to_save(known: Known, nfe: int, max_cost: float) -> str:
    """The label of what becomes ``improved``: the best within the cost, of all but the base where that is best.

    Empty where nothing but the base was run.
    """
    others = {label: found for label, found in known.items() if label != BASE.name}
    within = {label: found for label, found in others.items() if found[0].nfe <= max_cost * nfe}
    return best(known, nfe, max_cost) or min(within or others, key=lambda label: others[label][1], default="")


def beyond(known: Known, nfe: int, max_cost: float, label: str) -> str:
    """A sentence where what is saved costs more than was allowed, since nothing costs so little; else ""."""
    if label not in known or known[label][0].nfe <= max_cost * nfe:
        return ""
    cost = known[label][0].nfe / nfe
    return (
        f"Nothing costs at most {max_cost:g} times the base's evaluations: improved/ is {label}, at {cost:.3g} times; "
        "give a sampler of fewer steps, or a larger option 'max_cost'."
    )


def recommendations(known: Known, nfe: int, table: Sequence[Measured]) -> tuple[Recommendation, ...]:
    """The best within every limit, without training and with it, and how it differs from the base on fresh seeds."""
    found = []
    for limit, trained in product(LIMITS, (False, True)):
        label = best(known, nfe, limit, trained)
        if label is not None:
            by = differences(table, label, BASE.name)
            found.append(
                Recommendation(max_cost=limit, trained=trained, label=label, nfe=known[label][0].nfe, differences=by)
            )
    return tuple(found)


def differences(table: Sequence[Measured], a: str, b: str) -> dict[str, Interval]:
    """a minus b in the figures that count, paired by draw; empty where there are fewer than two draws."""
    draws = {line.choice.label: [draw.scores for draw in line.draws] for line in table}
    ours, theirs = draws.get(a, []), draws.get(b, [])
    if min(len(ours), len(theirs)) < 2:
        return {}
    names = [name for name in SHOWN if name in ours[0] and name in theirs[0]]
    return {name: paired_interval([s[name] for s in ours], [s[name] for s in theirs]) for name in names}


def free_enough(known: Known, nfe: int, table: Sequence[Measured], max_cost: float) -> str:
    """The best rule that needs no training, where the best that does is not shown to be better; else ""."""
    free, trained = best(known, nfe, max_cost, trained=False), best(known, nfe, max_cost)
    if free is None or trained is None or free == trained:
        return free or ""
    between = differences(table, free, trained)
    figure = _deciding(between)
    return "" if figure is None or between[figure].low > 0 else free


def _deciding(between: Mapping[str, Interval]) -> str | None:
    """The figure that is spoken of: to held-out data, where there are some."""
    return next((name for name in reversed(REFERENCES) if name in between), None)


def advice(known: Known, nfe: int, table: Sequence[Measured], max_cost: float) -> str:
    """One sentence: whether anything helps on fresh seeds, and what needs no training as much as what does."""
    free, trained = best(known, nfe, max_cost, trained=False), best(known, nfe, max_cost)
    if trained is None:
        return ""
    within = f"at up to {max_cost:g} times the base's evaluations"
    if found := _no_help(table, trained, free):
        return f"Nothing is shown to help {within}: {found}."
    if free is None:
        return ""
    if free == trained:
        return f"No training is needed: {free} is the best {within}."
    between = differences(table, free, trained)
    figure = _deciding(between)
    if figure is None:
        return ""
    ours, theirs = (_mean(table, label, figure) for label in (free, trained))
    values = f"FD to {REFERENCES[figure]} data {ours:.2f} against {theirs:.2f}"
    if not free_enough(known, nfe, table, max_cost):
        return f"Training pays: {trained} is better than {free}, the best {within} that needs none ({values})."
    word = "better than" if between[figure].high < 0 else "not distinguishable from"
    return f"No training is needed: {free} is {word} {trained} {within} ({values})."


def _no_help(table: Sequence[Measured], label: str, free: str | None) -> str:
    """What became of the best on the selection seeds, where neither it nor the best without training is better."""
    changes = {one: differences(table, one, BASE.name) for one in (label, free) if one is not None}
    figure = _deciding(changes[label])
    if figure is None or any(change[figure].high < 0 for change in changes.values() if figure in change):
        return ""
    old, new = (_mean(table, one, figure) for one in (BASE.name, label))
    return f"with {label}, the best on the selection seeds, FD to {REFERENCES[figure]} data {old:.2f} -> {new:.2f}"


def _mean(table: Sequence[Measured], label: str, figure: str) -> float:
    return next(line.row.figures[figure].mean for line in table if line.choice.label == label)


def _is_free(choice: Choice) -> bool:
    """Whether it needs no training; of what is made of several methods, none does."""
    return all(name in METHODS and METHODS[name].is_free for name in choice.method.split("+"))
