"""Guidance at some of the noise levels alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from sims.config import JSON, convert
from sims.errors import UserError
from sims.guidance.guide import Guide


class IntervalGuide(Guide):
    """A rule that guides at the noise levels in ``interval`` = (low, high] and is the base alone elsewhere.

    Guidance in a limited interval: Kynkaanniemi et al. 2024 (arXiv 2404.07724).
    """

    if TYPE_CHECKING:  # a field of the rule

        @property
        def interval(self) -> tuple[float, float]: ...

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.interval[0] < self.interval[1]:
            raise UserError(f"the guidance interval needs 0 <= low < high; got {self.interval}")

    def is_guided(self, sigma: Tensor) -> Tensor:
        """At which of these noise levels to guide: like sigma, boolean."""
        return (self.interval[0] < sigma) & (sigma <= self.interval[1])

    def limited(self, interval: tuple[float, float]) -> Self:
        return replace(self, interval=interval)  # type: ignore[type-var]

    def settings(self) -> dict[str, JSON]:
        low, high = self.interval
        return {**super().settings(), "interval": [low, None if math.isinf(high) else high]}

    @classmethod
    def from_settings(cls, children: Mapping[str, Any], settings: Mapping[str, Any]) -> Self:
        low, high = convert(settings["interval"], tuple[float, float | None], "interval", "entry")
        return super().from_settings(children, {**settings, "interval": (low, math.inf if high is None else high)})

    def describe(self) -> dict[str, str]:
        low, high = self.interval
        limits = "at all noise levels" if (low, high) == (0.0, math.inf) else f"for sigma in ({low:g}, {high:g}]"
        said = super().describe()
        said.pop("interval", None)
        return {**said, "w": f"{self.w:g}, {limits}"}
