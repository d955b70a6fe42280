"""The cheapest samplers: what the search tries, and what is saved as improved."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from sims.cli import main
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.improve import own_sampler, sampler_search
from sims.experiments.improve.improvement import Choice
from sims.experiments.improve.own_sampler import best_at_its_cost
from sims.experiments.improve.recommendation import advice, best, beyond, recommendations, to_save
from sims.experiments.improve.sampler_search import (
    OWN,
    STEPS,
    Setting,
    best_within,
    cheapest_bound,
    cheapest_expected,
    cost_of,
    evaluations,
    fewest,
    own_expected,
    suits_best,
)
from sims.experiments.improve.variants import own_limit
from sims.experiments.options import ImproveOptions
from sims.gaussians import GaussianMixture
from sims.results.common import Figure, Row
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import SamplerOptions, nfe


def search(kept: Callable[[Setting], float], solver: Any = "unipc") -> tuple[Setting | None, list[Setting]]:
    tried: list[Setting] = []

    def retained(setting: Setting) -> float:
        tried.append(setting)
        return float(kept(setting))

    return fewest(retained, solver), tried


def test_steps_rise_corrections_fall_then_less_with_another_strength() -> None:
    """Of two other strengths, the weaker one keeps the gain with fewer corrections still."""
    found, tried = search(lambda s: s.steps >= 10 and s.refreshes >= {1.0: 4, 0.8: 2}.get(s.stronger, 9))
    assert found == Setting("unipc", 10, 2, 0.8)
    assert tried[:3] == [Setting("unipc", steps, steps) for steps in (6, 8, 10)] and len(tried) == len({*tried})
    assert [setting.refreshes for setting in tried[3:6]] == [7, 4, 2] and all(s.stronger == 1 for s in tried[:6])


def test_few_steps_may_do_better_than_more() -> None:
    assert search(lambda s: s.steps == 8 and s.refreshes > 5)[0] == Setting("unipc", 8, 8)
    assert search(lambda s: math.nan if s.steps > 16 else 0.0)[0] is None
    assert search(lambda s: 0.0)[0] is None


def test_the_best_within_a_cost_has_as_many_corrections_as_that_leaves() -> None:
    """Every number of steps once, then the best of them at other strengths; none where nothing keeps any gain."""
    tried: list[Setting] = []

    def retained(setting: Setting) -> float:
        tried.append(setting)
        return {("unipc", 10): 0.8, ("unipc", 13): 0.7, ("heun", 6): 0.9 - setting.stronger}.get(setting[:2], -1.0) + (
            0.05 * (setting.stronger > 1)
        )

    assert best_within(retained, cost_of, 16) == Setting("unipc", 10, 6, 1.25)
    assert tried[:6] == [
        Setting("unipc", 6, 6), Setting("unipc", 8, 8), Setting("unipc", 10, 6), Setting("unipc", 13, 3),
        Setting("heun", 6, 5), Setting("heun", 8, 1),
    ]  # fmt: skip
    assert tried[6:] == [Setting("unipc", 10, 6, 0.8), Setting("unipc", 10, 6, 1.25)]
    assert best_within(lambda s: -math.inf, cost_of, 16) is None and best_within(retained, cost_of, 6) is None
    assert best_within(retained, lambda s: 2 * cost_of(s), 32) == Setting(
        "unipc", 10, 6, 1.25
    )  # of two evaluations each


def test_it_is_sought_where_the_cheapest_costs_more_than_the_base_or_than_is_allowed() -> None:
    options = ImproveOptions()
    assert not cheapest_expected(35, own_limit(options, 35)).beyond
    assert cheapest_expected(16, own_limit(options, 16)).beyond and own_limit(options, 16) == 16
    assert own_limit(replace(options, max_cost=0.5), 35) == 17 and own_limit(replace(options, max_cost=2.0), 35) == 35
    more, less = cheapest_expected(35, 17), cheapest_expected(35, 35)
    assert more.beyond and more.evaluations > less.evaluations and more.settings > less.settings
    assert cheapest_bound(35, 17) >= more.evaluations and cheapest_bound(35, 35) >= less.evaluations


def test_a_job_whose_cheapest_sampler_costs_too_much_has_the_best_that_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No setting keeps so much of the gain; the row is at the base's cost, is compared, and may be what is saved."""
    monkeypatch.setattr(sampler_search, "KEPT", 99.0)
    words = ("--methods", "base,sims", "--max-cost", "1", "--sampler.steps", "5")
    assert main(tiny.improve_arguments(tmp_path / "run", *tiny.PCA, *words)) == 0
    result = read_result(tmp_path / "run", ImproveResult)
    rows = {row.label: row for row in result.rows}
    row = rows["sims (within cost)"]
    assert "sims (fast)" not in rows and row.nfe <= rows["base"].nfe == 9 and "corrections" in row.note
    assert ("sims (within cost)", "base") in {(entry.a, entry.b) for entry in result.comparisons}
    assert result.cache is not None
    able = [one for one in result.cache.tried if one.method == "sims" and one.nfe <= 9 and one.refreshes]
    best = max(able, key=lambda one: one.retained or -math.inf)
    assert row.w == best.w and row.note == Setting(best.solver, best.steps, best.refreshes).note
    assert result.improved in ("sims (within cost)", "base (tuned)")


def test_the_base_has_the_sampler_that_suits_it_best() -> None:
    """The cheapest of those that are no worse than the best; none where its own is better."""
    shares = {("heun", 6): 1.2, ("unipc", 10): 1.215, ("dpmpp2m", 8): 1.0}
    found = suits_best(lambda s: shares.get((s.solver, s.steps), 0.5))
    assert found == Setting("unipc", 10)  # 10 evaluations: Heun makes 11
    assert suits_best(lambda s: 0.97) is None
    assert suits_best(lambda s: math.nan if s.steps > STEPS[0] else 0.99) == Setting("unipc", STEPS[0])
    seen: set[Setting] = set()
    suits_best(lambda s: seen.add(s) or 0.0)
    assert seen == {*OWN} and all(s.refreshes == 0 and s.stronger == 1 for s in seen)
    assert own_expected(11) == (6 + 8 + 10 + 11 + 6 + 8 + 10, 7)


def test_what_costs_no_more_than_the_base_has_its_own_sampler_sought() -> None:
    """The best of these, if it is better than the base: neither two networks, nor the base with another sampler."""
    found = {"base": (35, 120.0), "sims": (70, 20.0), "history": (35, 30.0), "neon": (35, 25.0), "distilled": (36, 1.0)}
    choices = {name: (SimpleNamespace(method=name, label=name, nfe=nfe), fd) for name, (nfe, fd) in found.items()}
    choices |= {
        "base (tuned)": (SimpleNamespace(method="base", nfe=10), 5.0),
        "sims (fast)": (SimpleNamespace(method="sims", nfe=11), 6.0),
        "pair": (SimpleNamespace(method="sims+history", nfe=35), 7.0),
    }
    best: Any = best_at_its_cost(choices)  # type: ignore[arg-type]
    assert best.label == "neon"
    worse = {name: (choice, fd + 200 * (name != "base")) for name, (choice, fd) in choices.items()}
    assert best_at_its_cost(worse) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("best", "found"), [(("heun", 6), None), (("unipc", 8), "rescaled (tuned)")])
def test_a_sampler_that_is_its_own_is_no_other(
    best: tuple[str, int], found: str | None, digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = replace(tiny.model(digits), sampler=SamplerOptions("heun", 6))

    def selected(context: Any, choice: Choice, round_: int) -> Any:
        sampler = choice.model.sampler
        return SimpleNamespace(fd=1.0 if (sampler.solver, sampler.steps) == best else 2.0)

    monkeypatch.setattr(own_sampler, "select", selected)
    context: Any = SimpleNamespace(options=ImproveOptions())
    tuned, tried = own_sampler.at_its_best(context, Choice("rescaled", "rescaled", model))
    assert (None if tuned is None else tuned.label) == found and len(tried) == own_expected(11)[1]


@pytest.mark.parametrize("solver", sorted({setting.solver for setting in OWN}))
def test_evaluations_are_those_of_the_solver(solver: Any) -> None:
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    assert all(evaluations(Setting(solver, n)) == nfe(exact, SamplerOptions(solver, n)) for n in STEPS)


def known(**fds: tuple[int, float]) -> dict[str, tuple[Any, float]]:
    """Choices as (evaluations, FD); the base and history need no training."""
    free = {"base", "history"}
    return {
        name: (SimpleNamespace(method=name if name in free else "sims", nfe=nfe), fd) for name, (nfe, fd) in fds.items()
    }


def test_the_best_within_the_cost_is_saved_whatever_its_name() -> None:
    trained = {"sims": (70, 20), "cached": (43, 21), "fast": (18, 25), "distilled": (35, 24)}
    everything = known(base=(35, 120), **trained, history=(35, 23))
    for most, label in ((2, "sims"), (math.inf, "sims"), (1.25, "cached"), (1, "history"), (0.6, "fast")):
        assert to_save(everything, 35, most) == label
    assert to_save(everything, 35, 0.1) == "sims"  # nothing is so cheap, which is said
    said = beyond(everything, 35, 0.1, "sims")
    assert "at most 0.1 times the base's evaluations: improved/ is sims, at 2 times" in said
    assert beyond(everything, 35, 2, "sims") == beyond(everything, 35, 1.25, "cached") == ""
    worse = known(base=(35, 10), sims=(70, 20), cached=(43, 21))
    assert to_save(worse, 35, 1.25) == "cached"  # nothing helps: what is least bad within the cost, not the base again
    assert best(worse, 35, 1.25) is None and to_save(known(base=(35, 10)), 35, 1.25) == ""


def test_the_best_with_and_without_training_within_every_cost() -> None:
    everything = known(base=(35, 120), sims=(70, 20), cached=(43, 21), distilled=(35, 24), history=(35, 23))
    found = [(r.max_cost, r.trained, r.label) for r in recommendations(everything, 35, [])]
    assert found == [
        (1.0, False, "history"), (1.0, True, "history"), (1.25, False, "history"), (1.25, True, "cached"),
        (None, False, "history"), (None, True, "sims"),
    ]  # fmt: skip


def line(label: str, values: tuple[float, ...], figure: str = "fd") -> Any:
    """A line of a table with a draw for every value."""
    row = Row(label=label, method=label, figures={figure: Figure(sum(values) / len(values))})
    draws = tuple(SimpleNamespace(scores={figure: value}) for value in values)
    return SimpleNamespace(choice=SimpleNamespace(label=label), row=row, draws=draws)


def test_what_chose_well_and_helps_nothing_on_fresh_seeds_is_not_recommended() -> None:
    """Both came out ahead on the selection seeds, and held-out images know of nothing."""
    everything, figure = known(base=(35, 0.3), cached=(43, 0.1), history=(35, 0.2)), "fd_held_out"
    base, cached = line("base", (0.87, 0.88, 0.86), figure), line("cached", (0.89, 0.91, 0.9), figure)
    same, better = (line("history", values, figure) for values in ((0.87, 0.87, 0.87), (0.71, 0.72, 0.7)))
    assert advice(everything, 35, [base, cached, same], 1.25) == (
        "Nothing is shown to help at up to 1.25 times the base's evaluations: with cached, the best on the selection "
        "seeds, FD to held-out data 0.87 -> 0.90."
    )
    assert advice(everything, 35, [base, cached, better], 1.25).startswith("No training is needed: history is better")
    alone = known(base=(35, 0.3), cached=(43, 0.1))
    assert advice(alone, 35, [base, cached], 1.25).startswith("Nothing is shown to help")


@pytest.mark.parametrize(
    ("cached", "says"),
    [
        ((20.0, 20.1, 20.2), "Training pays: cached is better than history, the best at up to 1.25 times"),
        ((24.9, 25.1, 25.2), "No training is needed: history is better than cached at up to 1.25 times"),
        ((22.9, 23.3, 23.0), "No training is needed: history is not distinguishable from cached at up to 1.25 times"),
    ],
)
def test_the_advice_says_first_whether_something_free_is_as_good(cached: tuple[float, ...], says: str) -> None:
    everything = known(base=(35, 120), cached=(43, 21), history=(35, 23))
    table = [line("history", (23.0, 23.1, 23.2)), line("cached", cached), line("base", (120.0, 121.0, 122.0))]
    assert advice(everything, 35, table, 1.25).startswith(says)
    only = known(base=(35, 120), cached=(43, 25), history=(35, 23))
    assert advice(only, 35, table, 1.25) == (
        "No training is needed: history is the best at up to 1.25 times the base's evaluations."
    )
    assert advice(known(base=(35, 120), cached=(43, 25)), 35, table, 1.25) == ""
    by = recommendations(everything, 35, table)[0].differences["fd"]
    assert by.mean == pytest.approx(-97.9) and by.high < 0


@pytest.mark.parametrize("wrong", [0.0, -1.0, float("nan")])
def test_a_cost_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(UserError, match="max_cost"):
        ImproveOptions(max_cost=wrong)
