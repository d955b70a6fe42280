"""Remedies: ways of standard training, and methods that are made from a generation's own model alone."""

from __future__ import annotations

from collections.abc import Iterable

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.options import CommonOptions
from sims.methods import METHODS, Continuous
from sims.results.common import Look
from sims.results.loop import Arm
from sims.training.base import new_model

STANDARD, EQUAL, STEPS = "standard", "standard-equal", "standard-steps"
LOOKS = {
    STANDARD: Look("standard training", "#5f6a78", "#a1acba", "o"),
    EQUAL: Look("standard training, equal compute", "#8c6312", "#dab04a", "P"),
    STEPS: Look("standard training, twice the steps", "#9a4f8e", "#d592ca", "d"),
}
REMEDIES = (*LOOKS, *[name for name, method in METHODS.items() if method.feeds_loops])


def is_guided(remedy: str) -> bool:
    """Whether a remedy is a method with a strength, and not a way of standard training."""
    return remedy not in LOOKS


def check_fits(remedies: Iterable[str], data: Dataset, options: CommonOptions) -> None:
    """UserError for a remedy that cannot be had of the models that are trained on this data."""
    base = new_model(data, options.network, options.sampler, 0, options.base.train).denoiser
    for name in filter(is_guided, remedies):
        fits = METHODS[name].fits
        if fits is not None and (lacks := fits(base)) is not None:
            raise UserError(f"remedy {name!r} cannot be had of these models: {lacks}; leave it out")


def is_searched(remedy: str) -> bool:
    """Whether a remedy has a strength to choose."""
    return is_guided(remedy) and isinstance(METHODS[remedy].strengths, Continuous)


def arm_of(remedy: str, w: float = 0.0, name: str = "") -> Arm:
    """A remedy at a strength, called by its own name unless another one is given."""
    label = f"{remedy}, w = {w:g}" if is_guided(remedy) else LOOKS[remedy].title
    return Arm(name=name or remedy, label=label, method=remedy, w=w)


def arms_of(remedy: str, strengths: tuple[float, ...]) -> list[Arm]:
    """A remedy at each of some strengths; at its one strength, or none, where it has no choice."""
    if not is_guided(remedy):
        return [arm_of(remedy)]
    fixed = METHODS[remedy].strengths
    if not isinstance(fixed, Continuous):
        return [arm_of(remedy, fixed.w)]
    return [arm_of(remedy, w, remedy if len(strengths) == 1 else f"{remedy}@{w:g}") for w in strengths]


def looks_of(remedies: Iterable[str]) -> dict[str, Look]:
    """The title and the colours of every remedy."""
    return {name: METHODS[name].look if is_guided(name) else LOOKS[name] for name in remedies}
