"""Guidance by a correction that changes slowly along a trajectory: limited to an interval, and cached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from sims.config import JSON
from sims.denoiser import Denoiser, Evaluate, expand
from sims.guidance.cache import CacheRule, Step
from sims.guidance.interval import IntervalGuide

Records = list[tuple[float, Tensor]]


class CorrectionGuide(IntervalGuide):
    """D = D_base + w c: a rule says in ``correction`` what c is, and gets interval and cache for it.

    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute c; None = everywhere
    """

    if TYPE_CHECKING:  # fields of the rule

        @property
        def cache(self) -> CacheRule | None: ...

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """c, like x, where ``denoised`` is the base's estimate and ``others`` evaluate what else it ``calls``."""
        raise NotImplementedError

    def together(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate
    ) -> tuple[Tensor, Tensor]:
        """The base's estimate and c; a rule that can have both of one call says so here."""
        denoised = base(x, sigma, labels)
        return denoised, self.correction(x, sigma, labels, denoised, *others)

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        """The guided estimate, each sample at its own level; the cache plays no part here."""
        guided = self.is_guided(sigma)  # (B,)
        if not guided.any():
            return base(x, sigma, labels)
        denoised, correction = self.together(x, sigma, labels, base, *others)
        return torch.where(expand(guided, x), denoised + self.w * correction, denoised)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        """A fresh evaluator for one run over these levels, each shared by the whole batch; it holds the correction."""
        return self.base.trajectory(sigmas) if self.w == 0 else Trajectory(self, sigmas)

    def evaluations(self, sigmas: Tensor) -> int:
        """Network evaluations per sample: the base's at every level and the others' at every refresh."""
        refreshes = _refreshes(sigmas, self.steps(sigmas))
        others = 0 if self.w == 0 else sum(child.evaluations(refreshes) for child in self.counted()[1:])
        return self.base.evaluations(sigmas) + others

    def steps(self, sigmas: Tensor) -> list[Step | None]:
        """What to do at each of these levels; None = the base alone."""
        at = self.is_guided(sigmas) & (self.w != 0)
        guided, levels = at.tolist(), sigmas[at]
        plan = iter([Step(True, 1.0)] * len(levels) if self.cache is None else self.cache.plan(levels))
        return [next(plan) if active else None for active in guided]

    def with_cache(self, cache: CacheRule | None) -> Self:
        """The same rule, its correction computed only where ``cache`` says; None = everywhere."""
        return replace(self, cache=cache)  # type: ignore[type-var]

    def settings(self) -> dict[str, JSON]:
        return {**super().settings(), "cache": self.cache.to_json() if self.cache else None}

    @classmethod
    def from_settings(cls, children: Mapping[str, Denoiser], settings: Mapping[str, Any]) -> Self:
        cache = CacheRule.from_json(settings["cache"]) if settings["cache"] else None
        return super().from_settings(children, {**settings, "cache": cache})

    def describe(self) -> dict[str, str]:
        cached = f"the correction is computed {self.cache.refreshes} times along a trajectory" if self.cache else "none"
        return {**super().describe(), "cache": cached}


def _refreshes(sigmas: Tensor, steps: Sequence[Step | None]) -> Tensor:
    """Those of these levels at which the correction is computed."""
    return sigmas[torch.tensor([step is not None and step.refresh for step in steps], dtype=torch.bool)]


class Trajectory:
    """One sampling run: the position along the plan and the correction held."""

    def __init__(self, guided: CorrectionGuide, sigmas: Tensor, records: Records | None = None) -> None:
        self._guided = guided
        self._sigmas = sigmas.tolist()
        self._steps = guided.steps(sigmas)
        self._base, *self._others = guided.evaluators(sigmas, _refreshes(sigmas, self._steps))
        self._records = records
        self._position = 0
        self._correction: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert self._position < len(self._steps), "more evaluations than levels were planned"
        step, level = self._steps[self._position], self._sigmas[self._position]
        self._position += 1
        if step is None or not step.refresh:
            denoised = self._base(x, sigma, labels)
        else:
            denoised, self._correction = self._guided.together(x, sigma, labels, self._base, *self._others)
            if self._records is not None:
                self._records.append((level, self._correction.detach().to("cpu", torch.float32, copy=True)))
        if step is None or self._correction is None:  # a plan may begin without any correction
            return denoised
        return denoised + (self._guided.w * step.scale) * self._correction
