"""What a method is, what it starts from, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.model import Model, load
from sims.results.common import Look
from sims.runs.directory import Run
from sims.training.loop import TrainOptions


@dataclass(frozen=True)
class Base:
    """The model to improve, and what is known of its training.

    ``snapshots`` (images seen -> model directory) and ``training`` (a finished training folder) are empty for a
    model that was given; methods that need them say so.
    """

    model: Model
    key: str
    snapshots: dict[int, Path] = field(default_factory=dict)
    training: Path | None = None
    images: int = 0
    seed: int = 0
    train: TrainOptions = field(default_factory=TrainOptions)


@dataclass(frozen=True)
class Artefact:
    """What a method prepared: models by budget (images seen), and what making them cost.

    ``synthesized`` counts samples drawn, ``images`` training images seen, ``evaluations`` network evaluations
    spent besides: on the samples, and on a teacher.
    """

    key: str
    variants: dict[int, Path]
    synthesized: int = 0
    images: int = 0
    evaluations: int = 0

    def load(self, budget: int, device: Any = "cpu") -> Model:
        """The network trained for ``budget`` images; UserError names the budgets there are."""
        if budget not in self.variants:
            raise UserError(f"no snapshot at {budget:,} images: there are {', '.join(map(str, sorted(self.variants)))}")
        return load(self.variants[budget], device)


@dataclass(frozen=True)
class Continuous:
    """A strength that can be chosen: where the search begins, and where searches ended so far; 0 is the base."""

    start: tuple[float, ...] = (0.5, 1.0, 2.0)
    usual: float = 1.0


@dataclass(frozen=True)
class Fixed:
    """A method with a single strength."""

    w: float


@dataclass(frozen=True)
class Method:
    """A way to make a base model better (or a control that should not), from two functions.

    ``preparation`` makes what the method needs, once: the artefact is content-addressed and found again.
    ``construction`` combines the base with one prepared network at strength w.

    look              its title, colours and marker in tables and figures
    needs_real        trains on real data
    needs_snapshots   needs earlier snapshots of the base's own training
    networks          network evaluations at each evaluation of its denoiser
    prepared_as       what it prepares: methods that name the same share one artefact; "" prepares nothing
    follows_leader    what it is prepared with follows from what the leading method (SIMS) chose
    default           runs unless methods are named
    """

    name: str
    summary: str
    look: Look
    strengths: Continuous | Fixed
    preparation: Callable[[Base, Dataset | None, Any, Run], Artefact | None]
    construction: Callable[[Model, Model, float], Denoiser]
    needs_real: bool = False
    needs_snapshots: bool = False
    networks: int = 1
    prepared_as: str = ""
    follows_leader: bool = False
    default: bool = True

    def prepare(self, base: Base, real: Dataset | None, settings: Any, run: Run) -> Artefact | None:
        """The method's artefact; None if it needs none. UserError if it needs real data and there is none."""
        if self.needs_real and real is None:
            raise UserError(f"method {self.name!r} needs the real training data: give --data, or leave the method out")
        return self.preparation(base, real, settings, run)

    def build(self, base: Model, aux: Model | None, w: float) -> Denoiser:
        """The denoiser at strength w; w = 0 is the base itself, bit for bit."""
        check_strength(w)
        if w == 0:
            return base.denoiser
        if isinstance(self.strengths, Fixed) and w != self.strengths.w:
            raise UserError(
                f"method {self.name!r} has the one strength {self.strengths.w:g} (or 0, the base), not {w:g}"
            )
        if aux is None:
            raise UserError(f"method {self.name!r} at w = {w:g} needs its prepared network")
        return self.construction(base, aux, w)


def check_strength(w: float) -> None:
    """UserError for a strength that is not a finite number."""
    if not w - w == 0:  # NaN and infinities
        raise UserError(f"w is {w}: the strength of guidance must be a finite number, such as 1 (0 = the base)")
