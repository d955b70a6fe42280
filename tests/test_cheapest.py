"""The cheapest samplers: what the search tries, and what is saved as improved."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sims.errors import UserError
from sims.experiments.improve.sampler_search import KEPT, LEAST, Setting, fewest
from sims.experiments.improve.variants import to_save
from sims.experiments.options import ImproveOptions


def search(kept: Any, guided: bool = True) -> tuple[Setting | None, list[Setting]]:
    tried: list[Setting] = []

    def retained(setting: Setting) -> float:
        tried.append(setting)
        return float(kept(setting))

    return fewest(retained, "unipc", 12, guided), tried


def test_steps_fall_then_corrections_then_both_with_another_strength() -> None:
    """Of two other strengths, the weaker one keeps the gain with fewer corrections still."""
    found, tried = search(lambda s: s.steps >= 10 and s.refreshes >= {1.0: 4, 0.8: 2}.get(s.stronger, 9))
    assert found == Setting("unipc", 10, 2, 0.8)
    assert tried[:3] == [Setting("unipc", steps, steps) for steps in (12, 10, 8)] and len(tried) == len({*tried})
    assert all(setting.stronger == 1 for setting in tried if setting.refreshes > 4)


def test_more_steps_are_tried_where_the_own_do_not_suffice() -> None:
    found, _ = search(lambda s: s.steps >= 20)
    assert found is not None and found.steps == 20
    assert search(lambda s: float("nan") if s.steps > 16 else 0.0)[0] is None


def test_the_base_has_steps_alone() -> None:
    found, tried = search(lambda s: s.steps >= 9, guided=False)
    assert found == Setting("unipc", 10) and all(s.refreshes == 0 and s.stronger == 1 for s in tried)
    assert search(lambda s: True, guided=False)[0] == Setting("unipc", LEAST)


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
