"""The rule that stops before a round makes a model worse."""

from __future__ import annotations

from typing import Any, cast

import pytest

from sims.experiments.improve import _accept
from sims.verbs.evaluate import Judge


class FakeJudge:
    """A judge that knows only what a perfect model would score."""

    def __init__(self, perfect: float) -> None:
        self._perfect = perfect

    def perfect(self, count: int) -> float:
        return self._perfect


def row(label: str, train: float, test: float | None, half: float = 0.5) -> dict[str, Any]:
    return {
        "label": label,
        "fd_train": {"mean": train, "low": train - half, "high": train + half},
        "fd_test": {"mean": test, "low": None, "high": None},
        "samples_per_draw": 1000,
    }


def accept(
    base: tuple[float, float | None], after: tuple[float, float | None], *, earlier: int, perfect: float = 5.0
) -> Any:
    result = {"rows": [row("base", *base), row("sims", *after), row("distilled", *after)]}
    return _accept(result, cast(Judge, FakeJudge(perfect)), [{}] * earlier)


@pytest.mark.parametrize("earlier", [0, 1])
def test_a_round_that_improves_is_accepted(earlier: int) -> None:
    assert accept((20.0, 30.0), (12.0, 25.0), earlier=earlier)["accepted"]


def test_an_improvement_within_the_noise_stops() -> None:
    verdict = accept((20.0, 30.0), (19.5, 25.0), earlier=1)
    assert not verdict["accepted"] and "no improvement" in verdict["reason"]


def test_a_round_that_is_worse_stops() -> None:
    assert not accept((20.0, 30.0), (21.5, 25.0), earlier=0)["accepted"]


def test_held_out_data_getting_worse_stops_a_further_round() -> None:
    verdict = accept((20.0, 30.0), (12.0, 31.0), earlier=1)
    assert not verdict["accepted"] and "held-out" in verdict["reason"]


def test_a_score_below_a_perfect_models_stops_a_further_round() -> None:
    verdict = accept((6.0, 30.0), (4.0, 29.0), earlier=1)
    assert not verdict["accepted"] and "perfect" in verdict["reason"]


def test_without_held_out_data_the_training_data_decide() -> None:
    assert accept((20.0, None), (12.0, None), earlier=1)["accepted"]


def test_without_anything_to_judge_by_the_round_is_accepted_and_said_to_be_unverified() -> None:
    verdict = _accept({"rows": [row("base", 1.0, None)]}, None, [])
    assert verdict["accepted"] and "without verification" in verdict["reason"]
