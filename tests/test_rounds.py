"""The rule that stops before a round makes a model worse."""

from __future__ import annotations

import numpy as np
import pytest

from sims.experiments.improve import selection
from sims.experiments.improve.selection import Selection
from sims.results.improve import Round


def accept(base: tuple[float, float | None], after: tuple[float, float | None], *, first: bool) -> Round:
    """The verdict on a round whose figures (train, test) are these; a noise of 1, and 5 for a perfect model."""
    before, then = (Selection(np.zeros((1, 1)), train, None, test, 5.0) for train, test in (base, after))
    accepted, reason = selection.accept(before, then, 1.0, first)
    return Round(round=1, accepted=accepted, reason=reason)


@pytest.mark.parametrize("first", [True, False])
def test_a_round_that_improves_is_accepted(first: bool) -> None:
    assert accept((20.0, 30.0), (12.0, 25.0), first=first).accepted


def test_an_improvement_within_the_noise_stops() -> None:
    verdict = accept((20.0, 30.0), (19.5, 25.0), first=False)
    assert not verdict.accepted and "no improvement" in verdict.reason


def test_a_round_that_is_worse_stops() -> None:
    assert not accept((20.0, 30.0), (21.5, 25.0), first=True).accepted


def test_held_out_data_getting_worse_stops_a_further_round() -> None:
    verdict = accept((20.0, 30.0), (12.0, 31.0), first=False)
    assert not verdict.accepted and "held-out" in verdict.reason
    assert accept((20.0, 30.0), (12.0, 31.0), first=True).accepted


def test_a_score_below_a_perfect_models_stops_a_further_round() -> None:
    verdict = accept((6.0, 30.0), (4.0, 29.0), first=False)
    assert not verdict.accepted and "perfect" in verdict.reason
    assert accept((6.0, 30.0), (4.0, 29.0), first=True).accepted


def test_without_held_out_data_the_training_data_decide() -> None:
    assert accept((20.0, None), (12.0, None), first=False).accepted


def test_without_anything_to_judge_by_the_round_is_accepted_and_said_to_be_unverified() -> None:
    accepted, reason = selection.accept(None, None, 0.0, first=True)
    assert accepted and "without verification" in reason
