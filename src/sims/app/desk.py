"""What the pages answer: every request as a function of plain values, which is checked here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path

from PIL import Image

from sims.app.overview import RunState, Shown, state_of
from sims.app.preview import MOST, Neighbour, Samples, Turns, neighbour, tile
from sims.app.search_curves import Curves, draw_curves
from sims.app.shelf import Entry, Shelf, shelf_of, shelf_of_model, write
from sims.errors import UserError
from sims.methods import METHODS
from sims.model import Model
from sims.results.improve import ImproveResult
from sims.results.shift import ShiftResult
from sims.sampling import SamplerOptions
from sims.seeds import NUM_SEEDS

SOLVERS = ("heun", "dpmpp2m", "unipc", "euler")
OWN = "the model's own"
SMALL = 12  # pixels a side up to which pictures are drawn by the dozen
Told = Callable[[int, int], None]


@dataclass(frozen=True)
class Asked:
    """What shall be drawn, as the pages know it; ``extra`` and ``budget`` are the method's usual ones where None."""

    run: str
    model: str
    w: float | None = None
    extra: float | None = None
    budget: int | None = None
    first: int = 0
    count: int = 16
    solver: str = OWN
    steps: int = 0
    label: int | None = None

    def seeds(self) -> range:
        """UserError for seeds outside of what there is, or too many at once."""
        if not 1 <= self.count <= MOST:
            raise UserError(f"{self.count} pictures: 1 to {MOST} can be shown at once")
        if not 0 <= self.first <= NUM_SEEDS - self.count:
            raise UserError(f"seed {self.first}: seeds lie from 0 to {NUM_SEEDS - 1:,}")
        return range(self.first, self.first + self.count)

    def sampler(self, model: Model) -> SamplerOptions:
        """The model's own sampler with what was asked for."""
        if self.solver != OWN and self.solver not in SOLVERS:
            raise UserError(f"solver {self.solver[:40]!r} is none of {', '.join(SOLVERS)}")
        if self.steps and not 1 <= self.steps <= 1000:
            raise UserError(f"{self.steps} steps: between 1 and 1,000 are possible")
        solver = None if self.solver == OWN else self.solver
        return model.sampler.changed(solver, self.steps or None)  # type: ignore[arg-type]


@dataclass
class Desk:
    """Answers requests about the runs and models that are shown, and about nothing else."""

    shown: Shown
    turns: Turns = field(default_factory=Turns)
    last: dict[object, Samples] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """All that can be chosen: runs, then models."""
        return [str(path) for path in (*self.shown.runs, *self.shown.models)]

    def state(self, name: str) -> RunState | None:
        """A run as it is now; None for a model that stands alone. UserError for a path that is not shown."""
        if name in map(str, self.shown.models):
            return None
        return state_of(self.shown.run(name))

    def shelf(self, name: str) -> Shelf:
        """What of it can be looked at. UserError where it is broken or not shown."""
        state = self.state(name)
        if state is None:
            return shelf_of_model(self.shown.model(name))
        if state.status == "broken":
            raise UserError(state.sentence)
        return shelf_of(state)

    def model(self, asked: Asked) -> Model:
        """The model asked for."""
        entry = self.shelf(asked.run).entry(asked.model)
        return entry.build(_strength(entry, asked.w), asked.extra, asked.budget)

    def draw(self, place: object, number: int, asked: Asked, told: Told) -> Samples:
        """Samples, which are kept for the place. UserError, or SupersededError where others are asked for."""
        drawn = self.turns.draw(
            place, number, lambda: self.model(asked), asked.sampler, asked.seeds(), asked.label, told
        )
        self.last[place] = drawn
        return drawn

    def nearest(self, name: str, place: object, index: int) -> tuple[Image.Image, Neighbour | str]:
        """A sample that was drawn there, large, and its nearest training picture, or why there is none."""
        drawn = self.last.get(place)
        if drawn is None or not 0 <= index < len(drawn.images):
            raise UserError("this picture is no longer at hand: draw it again")
        image = drawn.images[index]
        try:
            return tile(image, 256), neighbour(self.shown.run(name), image)
        except UserError as error:
            return tile(image, 256), str(error)

    def write(self, asked: Asked, folder: str) -> Path:
        """The model asked for as a folder of its run; its sampler is the one asked for."""
        model = self.model(asked)
        return write(self.shelf(asked.run), asked.model, replace(model, sampler=asked.sampler(model)), folder)

    def searched(self, name: str) -> list[str]:
        """The methods of a run whose search can be looked at."""
        result = self._improved(name)
        if result is None or result.search is None:
            return []
        return list(dict.fromkeys(cell.method for cell in result.search.cells if cell.fd is not None))

    def curves(self, name: str, method: str) -> Curves:
        """What the search of a method measured."""
        result = self._improved(name)
        if result is None:
            raise UserError(f"{name} has no finished search")
        return draw_curves(result, method, extra_name(method))

    def _improved(self, name: str) -> ImproveResult | None:
        state = self.state(name)
        return state.result if state is not None and isinstance(state.result, ImproveResult) else None

    def proportions(self, name: str) -> ShiftResult | None:
        """What a run of ``sims shift`` found; None for others."""
        state = self.state(name)
        return state.result if state is not None and isinstance(state.result, ShiftResult) else None

    def usual_count(self, model: Model) -> int:
        """How many pictures are drawn at first."""
        return 16 if max(model.data_shape[1:], default=0) <= SMALL else 4


def extra_name(method: str) -> str:
    """What a method's setting beside w is called; "" where it has none."""
    known = METHODS.get(method)
    return known.extra.name if known is not None and known.extra is not None else ""


def _strength(entry: Entry, w: float | None) -> float:
    """The strength asked for, else the one that was chosen. UserError for one that is not finite."""
    if w is None:
        return entry.strength.chosen if entry.strength is not None else 0.0
    if not math.isfinite(w):
        raise UserError(f"w is {w}: the strength of guidance must be a finite number, such as 1 (0 = the base)")
    return w


def cost_html(drawn: Samples, model_name: str) -> str:
    """What is said under pictures."""
    text = f"<b>{drawn.evaluations}</b> evaluations of the network a picture; seeds {_range(drawn.seeds)}"
    if drawn.diverged:
        text += f"; <b>{drawn.diverged} diverged</b>: lower w, or take more steps"
    return f"<p class='cost' data-model='{escape(model_name, quote=True)}'>{text}</p>"


def _range(seeds: tuple[int, ...]) -> str:
    return f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"


def overview_html(desk: Desk) -> str:
    """The table of runs: state, headline, progress, link to the report."""
    lines = []
    for place, run in enumerate(desk.shown.runs):
        state = state_of(run)
        how = ""
        if state.reached is not None and state.reached.total > 0:
            now = state.reached
            how = (
                f"<br><progress max='{now.total}' value='{now.done}'></progress> "
                f"{escape(now.stage)}: {now.done:,} of {now.total:,}, about {_duration(now.eta)} to go in this stage"
            )
        link = f"<a href='report/{place}' target='_blank'>report</a>" if state.report is not None else ""
        lines.append(
            f"<tr><td><code>{escape(str(run))}</code></td><td>{escape(state.command)}</td>"
            f"<td class='{state.status}'>{state.status}</td><td>{escape(state.sentence)}{how}</td><td>{link}</td></tr>"
        )
    if not lines:
        return "<p>Only models are shown: name runs as well to see them here.</p>"
    head = "<tr><th>run</th><th>command</th><th>state</th><th>what it says</th><th></th></tr>"
    return f"<div class='wide'><table>{head}{''.join(lines)}</table></div>"


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{seconds / 3600:.1f} h"
