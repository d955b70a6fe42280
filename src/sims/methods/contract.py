"""What a method is, what it starts from, and what it leaves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.guidance import Guide
from sims.guidance.guide import around
from sims.methods.settings import Expected, Settings
from sims.model import Model, load
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.work import Work
from sims.training.options import TrainOptions


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
    """What a method prepared: models by budget (images seen), and what they cost: samples, training, a teacher.

    ``note`` is what else there is to say of them.
    """

    key: str
    variants: dict[int, Path]
    cost: Cost = field(default_factory=Cost)
    note: str = ""

    def load(self, budget: int, device: torch.device | str = "cpu") -> Model:
        """The network trained for ``budget`` images; UserError names the budgets there are."""
        if budget not in self.variants:
            raise UserError(f"no snapshot at {budget:,} images: there are {', '.join(map(str, sorted(self.variants)))}")
        return load(self.variants[budget], device)


STRENGTHS = (
    0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0,
    8.0, 10.0, 12.0, 14.0, 16.0,
)  # fmt: skip


@dataclass(frozen=True)
class Continuous:
    """A strength that can be chosen: where the search begins, and where searches ended so far; 0 is the base.

    ``among`` are the strengths that a search may choose, beside those where it begins; all lie above ``above``.
    """

    start: tuple[float, ...] = (0.5, 1.0, 2.0)
    usual: float = 1.0
    among: tuple[float, ...] = STRENGTHS
    above: float = -math.inf


@dataclass(frozen=True)
class Fixed:
    """A method with a single strength."""

    w: float


@dataclass(frozen=True)
class Extra:
    """A setting beside the strength: what it is called, the values that a search tries, and one that is usual."""

    name: str
    values: tuple[float, ...]
    usual: float

    def said(self, value: float) -> str:
        """Such as "memory 0.5"."""
        return f"{self.name} {value:g}"


@dataclass(frozen=True)
class Method:
    """A way to make a base model better (or a control that should not): three functions, and facts that others ask for.

    ``preparation`` makes what the method needs, once: the artefact is content-addressed and found again. Beside it,
    ``work`` says what that counts. ``construction`` combines the base with one prepared network at strength w, and at
    the extra setting where there is one.

    look              its title, colours and marker in tables and figures, where its label is its name
    needs_real        trains on real data
    needs_snapshots   needs earlier snapshots of the base's own training
    fits              what a base lacks for it, as a sentence; None where it lacks nothing
    extra             a setting beside the strength, which is searched with it
    composes          is a rule that can be laid around any denoiser, at its cost: it is tried in a pair
    networks          network evaluations at each evaluation of its denoiser
    prepared_as       what it prepares: methods that name the same share one artefact; "" prepares nothing
    budget            which of its networks: one that a search chooses, that of the leader's budget, one of the base's
                      snapshots that a search chooses, the only one, or none, since it needs no network but the base
    follows_leader    what it is prepared with, or its budget, follows from what the leading method chose
    of_leader         is made from the leader's model, so that its strength and all its costs are its own too
    later_rounds      runs in every round, and not in the first alone
    saved             is one network that the run leaves as a model directory of the method's name
    default           runs unless methods are named
    of_text           can make a text-to-image pipeline better, which is guided itself, and whose own weights stay
    """

    name: str
    summary: str
    look: Look
    strengths: Continuous | Fixed
    preparation: Callable[[Base, Dataset | None, Settings, Run], Artefact | None]
    construction: Callable[..., Denoiser]
    work: Callable[[Expected], Work] | None = None
    needs_real: bool = False
    needs_snapshots: bool = False
    fits: Callable[[Denoiser], str | None] | None = None
    extra: Extra | None = None
    composes: bool = False
    networks: int = 1
    prepared_as: str = ""
    budget: Literal["searched", "leader", "snapshots", "only", "none"] = "searched"
    follows_leader: bool = False
    of_leader: bool = False
    later_rounds: bool = False
    saved: bool = False
    default: bool = True
    of_text: bool = False

    def __post_init__(self) -> None:
        if bool(self.prepared_as) != (self.work is not None):
            raise TypeError(f"method {self.name!r}: what prepares something says under which name, and what it counts")

    @property
    def feeds_loops(self) -> bool:
        """Whether it can be a remedy in a loop: a network made from a generation's own model."""
        return not (self.needs_real or self.follows_leader or self.budget == "none" or self.strengths == Fixed(0.0))

    @property
    def is_free(self) -> bool:
        """Whether it needs no training at all, neither of its own nor of another network."""
        return self.budget == "none" or self.strengths == Fixed(0.0)

    def lacks(self, real: bool, snapshots: bool, judged: bool, base: Denoiser | None) -> str | None:
        """What it needs and this job lacks: real data, snapshots, something to choose by, a base that fits.

        The strengths that suit a rule without training differ so much between bases that none is taken unverified.

        A base that is not known yet fits nothing that asks.
        """
        if self.needs_real and not real:
            return "it needs the real training data"
        if self.needs_snapshots and not snapshots:
            return "it needs earlier snapshots of the base's training, and a given model has none"
        if self.budget == "none" and not judged:
            return "there is nothing to choose its strength by"
        if not self.of_text and (isinstance(base, Guide) or hasattr(base, "adapted")):
            return "it works on a single network with weights of its own, and the base is a pipeline"
        if self.fits is None:
            return None
        return "it depends on the base" if base is None else self.fits(base)

    def prepare(self, base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact | None:
        """The method's artefact; None if it needs none. UserError if it needs real data and there is none."""
        if self.needs_real and real is None:
            raise UserError(f"method {self.name!r} needs the real training data: give data.path, or leave it out")
        return self.preparation(base, real, settings, run)

    def build(self, base: Model, aux: Model | None, w: float, extra: float | None = None) -> Denoiser:
        """The denoiser at strength w, and at ``extra`` where it has that setting; w = 0 is the base, bit for bit."""
        check_strength(w)
        if w == 0:
            return base.denoiser
        if isinstance(self.strengths, Fixed) and w != self.strengths.w:
            raise UserError(
                f"method {self.name!r} has the one strength {self.strengths.w:g} (or 0, the base), not {w:g}"
            )
        if aux is None and self.budget != "none":
            raise UserError(f"method {self.name!r} at w = {w:g} needs its prepared network")
        if aux is not None and isinstance(base.denoiser, Guide):
            aux = aux.with_denoiser(around(base.denoiser, aux.denoiser))
        more = () if self.extra is None else (self.extra.usual if extra is None else extra,)
        return self.construction(base, base if aux is None else aux, w, *more)


def check_strength(w: float) -> None:
    """UserError for a strength that is not a finite number."""
    if not w - w == 0:  # NaN and infinities
        raise UserError(f"w is {w}: the strength of guidance must be a finite number, such as 1 (0 = the base)")
