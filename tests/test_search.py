"""The search for (budget, w) on synthetic surfaces: good choices, few samples."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sims.config import convert
from sims.errors import UserError
from sims.experiments.improve.search import Arm, Search, Searched, SearchOptions
from sims.methods import Continuous

BUDGETS = (32_000, 64_000, 128_000, 256_000)
START = Continuous(start=(0.5, 1.0, 2.0, 3.0))
ARMS = [Arm(budget) for budget in BUDGETS]
FULL_GRID = 4 * 13 * 5_000
DEFAULT = SearchOptions()


class Surface:
    """A distance with its optimum at (budget, w), quadratic in ln w and U-shaped in ln budget, and paired noise.

    Sample i of a cell is its cell's distance plus noise that depends on i (shared by all cells) and a little on the
    cell; the distance of n samples is their mean plus a bias that falls with n, as that of Fréchet distances does.
    """

    def __init__(self, budget: int, w: float, noise: float = 0.0, curvature: float = 10.0) -> None:
        self.budget, self.w, self.noise, self.curvature = budget, w, noise, curvature
        self.asked: list[tuple[int, float, int, int]] = []

    def true(self, budget: int, w: float) -> float:
        return 20 + self.curvature * math.log(w / self.w) ** 2 + 2 * math.log(budget / self.budget) ** 2

    def features(self, arm: Arm, w: float, first: int, last: int) -> np.ndarray:
        budget = arm.budget
        self.asked.append((budget, w, first, last))
        common = np.random.default_rng(1).standard_normal(10_000)[first:last]
        own = np.random.default_rng([budget, round(1000 * w)]).standard_normal(10_000)[first:last]
        return (self.true(budget, w) + self.noise * (10 * common + own))[:, None]

    def distance(self, features: np.ndarray) -> float:
        return float(features.mean()) + 2000 / len(features)

    def search(self, options: SearchOptions = DEFAULT) -> Searched:
        return Search(self.features, self.distance, ARMS, START, options).run()


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("w", [0.25, 0.7, 1.0, 1.5, 2.5, 4.0, 10.0])
def test_the_choice_is_as_good_as_the_full_grid_at_a_tenth_of_its_samples(budget: int, w: float) -> None:
    surface = Surface(budget, w, noise=10.0)
    found = surface.search()
    # A range that has to extend itself costs a little more where noise makes the walk longer.
    assert found.samples <= (0.11 if found.extended else 0.1) * FULL_GRID
    assert surface.true(found.budget, found.w) <= 20 + 1.0  # one budget beside the best, or 1.4 times its strength


@given(st.sampled_from(BUDGETS), st.floats(math.log(0.3), math.log(14)), st.floats(1, 50))
@settings(max_examples=60, deadline=None)
def test_on_unimodal_surfaces_the_choice_beats_its_neighbours(budget: int, log_w: float, curvature: float) -> None:
    surface = Surface(budget, math.exp(log_w), curvature=curvature)
    search = Search(surface.features, surface.distance, ARMS, START, SearchOptions())
    found = search.run()
    assert found.budget == budget and found.samples <= 0.1 * FULL_GRID
    best = min(search.lattice, key=lambda w: surface.true(budget, w))
    assert surface.true(budget, found.w) == pytest.approx(surface.true(budget, best))


@given(st.sampled_from(BUDGETS), st.floats(math.log(0.1), math.log(40)))
@settings(max_examples=30, deadline=None)
def test_no_sample_is_drawn_twice(budget: int, log_w: float) -> None:
    surface = Surface(budget, math.exp(log_w))
    found = surface.search()
    assert found.samples == sum(last - first for _, _, first, last in surface.asked)
    for cell in {(b, w) for b, w, _, _ in surface.asked}:
        parts = [(first, last) for b, w, first, last in surface.asked if (b, w) == cell]
        assert parts[0][0] == 0 and all(a[1] == b[0] for a, b in pairwise(parts))


@pytest.mark.parametrize(("w", "extended"), [(12.0, True), (100.0, True), (0.05, False), (0.01, False), (1.0, False)])
def test_the_range_extends_itself(w: float, extended: bool) -> None:
    found = Surface(64_000, w, noise=1.0).search()
    assert found.extended == extended
    assert abs(math.log(found.w / min(max(w, 0.02), 16.0))) <= math.log(1.5)


def test_the_range_ends_where_it_is_told_to() -> None:
    assert Surface(64_000, 12.0).search(SearchOptions(max_w=5.0)).w == 5.0
    assert Surface(64_000, 12.0).search(SearchOptions(max_w=0.3)).w == pytest.approx(0.3, abs=0.06)


def test_a_fixed_strength_or_budget_leaves_only_the_other_to_seek() -> None:
    surface = Surface(128_000, 2.0)
    found = surface.search(SearchOptions(w=1.1))
    assert (found.budget, found.w) == (128_000, 1.1) and {w for _, w, _, _ in surface.asked} == {1.1}
    surface = Surface(128_000, 2.0)
    found = surface.search(SearchOptions(budget=32_000))
    assert (found.budget, found.w) == (32_000, 2.0) and {b for b, _, _, _ in surface.asked} == {32_000}
    found = Surface(128_000, 2.0).search(SearchOptions(budget=32_000, w=1.1))
    assert (found.budget, found.w) == (32_000, 1.1)
    with pytest.raises(UserError, match=r"search\.budget 99 is none of the auxiliary's budgets: 32000"):
        Surface(128_000, 2.0).search(SearchOptions(budget=99))


def test_strengths_at_which_sampling_diverges_are_never_chosen() -> None:
    class Diverging(Surface):
        def features(self, arm: Arm, w: float, first: int, last: int) -> np.ndarray:
            values = super().features(arm, w, first, last)
            return values * math.nan if w > 2.2 else values

    found = Diverging(64_000, 5.0).search()
    assert found.w == 2.0 and math.isfinite(found.fd)
    assert any(cell.fd is None for cell in found.cells)


def test_what_was_found_survives_json() -> None:
    found = Surface(64_000, 1.0).search()
    assert convert(json.loads(json.dumps(asdict(found))), Searched, "found") == found


@pytest.mark.parametrize(
    "bad", [{"rungs": ()}, {"rungs": (1,)}, {"rungs": (200, 100)}, {"w": math.nan}, {"w": math.inf}, {"max_w": 0.0}]
)
def test_options_that_cannot_work_are_refused(bad: dict) -> None:
    with pytest.raises(UserError, match=f"search.{next(iter(bad))}"):
        SearchOptions(**bad)
