"""A pair: a rule that needs no training laid around one that does, where both help alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.methods.contract import Artefact, Base, Extra, Method
from sims.methods.settings import Settings
from sims.model import Model
from sims.results.common import Cost, Look
from sims.runs.directory import Run

PAIR = "pair"
LOOK = Look("Pair of rules", "#4a4a9c", "#a5a5ef", "X")
WEAKER = Extra("the trained rule's strength times", (0.5, 0.75, 1.0), usual=0.75)


@dataclass(frozen=True)
class Alone:
    """What a method's own search chose, and what it cost to prepare and to search."""

    method: Method
    budget: int
    w: float
    extra: float | None = None
    cost: Cost = field(default_factory=Cost)

    def __str__(self) -> str:
        rule = self.method.extra
        return self.method.name + (f" ({rule.said(self.extra)})" if rule is not None and self.extra is not None else "")


def paired(inner: Alone, outer: Alone) -> Method:
    """The method that has ``inner``'s denoiser, at a share of its strength, under ``outer``'s rule at strength w.

    Nothing is prepared that ``inner`` has not prepared; the share of its strength is what is searched beside w. What
    both have cost is counted.
    """

    def prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact | None:
        artefact = inner.method.preparation(base, real, settings, run)
        if artefact is None:
            return None
        variants, both = {inner.budget: artefact.variants[inner.budget]}, f"{inner} and {outer}"
        key = f"{artefact.key}, {both}, w {inner.w:g}"  # all that a search under it depends on
        return dataclasses.replace(artefact, key=key, variants=variants, cost=inner.cost + outer.cost, note=both)

    def build(base: Model, aux: Model, w: float, share: float) -> Denoiser:
        under = base.with_denoiser(inner.method.build(base, aux, share * inner.w, inner.extra))
        return outer.method.build(under, None, w, outer.extra)

    return dataclasses.replace(
        inner.method, name=PAIR, summary=f"{inner} and {outer}", look=LOOK, strengths=outer.method.strengths,
        preparation=prepare, construction=build, extra=WEAKER, budget="only", saved=False, fits=None,
    )  # fmt: skip
