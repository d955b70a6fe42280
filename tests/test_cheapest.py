"""The cheapest samplers: what the search tries, and what is saved as improved."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sims.errors import UserError
from sims.experiments.improve.sampler_search import KEPT, OF_BASE, STEPS, Setting, best_of_base, evaluations, fewest
from sims.experiments.improve.variants import to_save
from sims.experiments.options import ImproveOptions
from sims.gaussians import GaussianMixture
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


def test_the_base_has_the_sampler_that_suits_it_best() -> None:
    """The cheapest of those that are no worse than the best; none where its own is better."""
    shares = {("heun", 6): 1.2, ("unipc", 10): 1.215, ("dpmpp2m", 8): 1.0}
    found = best_of_base(lambda s: shares.get((s.solver, s.steps), 0.5))
    assert found == Setting("unipc", 10)  # 10 evaluations: Heun makes 11
    assert best_of_base(lambda s: 0.97) is None
    assert best_of_base(lambda s: math.nan if s.steps > STEPS[0] else 0.99) == Setting("unipc", STEPS[0])
    everything = {s for solver in OF_BASE for s in (Setting(solver, n) for n in STEPS)}
    seen: set[Setting] = set()
    best_of_base(lambda s: seen.add(s) or 0.0)
    assert seen == everything and all(s.refreshes == 0 and s.stronger == 1 for s in seen)


@pytest.mark.parametrize("solver", OF_BASE)
def test_evaluations_are_those_of_the_solver(solver: Any) -> None:
    exact = GaussianMixture(torch.ones(1), torch.zeros(1, 2), torch.eye(2)[None])
    assert all(evaluations(Setting(solver, n)) == nfe(exact, SamplerOptions(solver, n)) for n in STEPS)


def known(**fds: tuple[int, float]) -> dict[str, tuple[Any, float]]:
    names = {"full": "sims", "cached": "sims (cached)", "fast": "sims (fast)", "distilled": "distilled"}
    return {
        names[key]: (SimpleNamespace(method="distilled" if key == "distilled" else "sims", nfe=nfe), fd)
        for key, (nfe, fd) in fds.items()
    }


def test_the_cheapest_that_keeps_the_gain_is_saved() -> None:
    """Of a gain of 100: a sampler may lose 2 on the selection seeds, and a network of its own is not a sampler."""
    assert (
        to_save(known(full=(70, 20), cached=(43, 21), fast=(18, 21.5), distilled=(35, 10)), 35, 120, None)
        == "sims (fast)"
    )
    assert to_save(known(full=(70, 20), cached=(43, 21), fast=(18, 23)), 35, 120, None) == "sims (cached)"
    assert to_save(known(full=(70, 20)), 35, 120, None) == "sims"
    assert to_save(known(full=(70, 20), cached=(43, 15)), 35, 10, None) == "sims (cached)"  # no gain: the lowest cost
    assert KEPT == 0.98


def test_a_cost_that_is_given_decides() -> None:
    everything = known(full=(70, 20), cached=(43, 21), fast=(18, 25), distilled=(35, 24))
    for most, label in ((2, "sims"), (1.25, "sims (cached)"), (1, "distilled"), (0.6, "sims (fast)")):
        assert to_save(everything, 35, 120, most) == label
    assert to_save(everything, 35, 120, 0.1) == "sims (fast)"  # none is so cheap
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="max_cost"):
            ImproveOptions(max_cost=wrong)
