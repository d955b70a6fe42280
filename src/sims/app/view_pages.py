"""The pages: what there is to see and to move; what is answered comes from the desk."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from sims.app.desk import OWN, SOLVERS, Asked, Desk, cost_html, extra_name, overview_html
from sims.app.preview import SupersededError, tile
from sims.app.proportion_view import draw_bars, group_pictures, share_html
from sims.app.search_curves import said
from sims.app.shelf import Shelf, of_method
from sims.errors import UserError
from sims.guidance.guide import innermost

TITLE = "sims view"
PANELS = 3
_BAR = gr.Progress()  # gradio gives each event its own where this is the default
EVERY = 4.0  # seconds from one look at the runs to the next
MOST_CLASSES = 2_000  # in a list to choose from
ANY = "any"
CSS = Path(__file__).with_name("view.css")


@dataclass
class Panel:
    """The parts of one of the columns in which models stand side by side."""

    model: gr.Dropdown
    w: gr.Slider
    extra: gr.Dropdown
    budget: gr.Dropdown
    pictures: gr.Gallery
    cost: gr.HTML
    folder: gr.Textbox
    use: gr.Button
    written: gr.HTML

    @property
    def settings(self) -> list[Component]:
        """What says which model is drawn."""
        return [self.model, self.w, self.extra, self.budget]

    @property
    def settled(self) -> list[Component]:
        """What depends on the model that is chosen."""
        return [*self.settings, self.folder, self.use, self.written]


@dataclass
class Shared:
    """What holds for all columns."""

    run: gr.Dropdown
    first: gr.Number
    count: gr.Dropdown
    solver: gr.Dropdown
    steps: gr.Number
    label: gr.Dropdown

    @property
    def all(self) -> list[Component]:
        return [self.run, self.first, self.count, self.solver, self.steps, self.label]


def pages(desk: Desk) -> gr.Blocks:
    """All pages as one application."""
    with gr.Blocks(analytics_enabled=False, title=TITLE, delete_cache=(600, 3600)) as app:
        gr.Markdown("# sims view\nSamples, searches and proportions of your runs. All of it stays on this machine.")
        names = desk.names
        run = gr.Dropdown(names, value=names[0], label="Run or model", elem_id="run", filterable=True)
        about = gr.HTML(elem_id="about", elem_classes="said")
        with gr.Tab("Compare", id="compare"):
            compare = _compare(desk, run)
        with gr.Tab("Search", id="search"):
            search = _search(desk, compare)
        with gr.Tab("Proportions", id="proportions"):
            proportions = _proportions(desk)
        with gr.Tab("Runs", id="runs"):
            table = gr.HTML(lambda: overview_html(desk), elem_id="runs")
            gr.Timer(EVERY).tick(lambda: overview_html(desk), None, table, show_progress="hidden")
        for event in (app.load, run.input):
            chosen = event(lambda name: _about(desk, name), run, about)
            chosen.then(compare.choose, run, compare.outputs).then(
                compare.draw_all, compare.inputs, compare.drawn, show_progress_on=compare.galleries, **_FREE
            )
            event(search.choose, run, search.outputs)
            event(proportions.choose, run, proportions.outputs)
    return app


#: Later requests are not kept waiting: they supersede earlier ones, which give up at their next step.
_FREE: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None}


@dataclass
class Part:
    """A page: what choosing a run changes in it."""

    choose: Callable[[str], Sequence[Any]]
    outputs: list[Component]


@dataclass
class Compare(Part):
    """The page of columns."""

    shared: Shared
    panels: list[Panel]
    draw_all: Callable[..., Iterator[Sequence[Any]]]

    @property
    def inputs(self) -> list[Component]:
        return [*self.shared.all, *(part for panel in self.panels for part in panel.settings)]

    @property
    def galleries(self) -> list[Component]:
        return [panel.pictures for panel in self.panels]

    @property
    def drawn(self) -> list[Component]:
        return [part for panel in self.panels for part in (panel.pictures, panel.cost)]


def failed(error: object) -> str:
    """A sentence about what went wrong."""
    return f"<p class='failed' role='alert'>{escape(str(error))}</p>"


def _about(desk: Desk, name: str) -> str:
    try:
        state = desk.state(name)
    except UserError as error:
        return failed(error)
    if state is None:
        return "<p>A model that stands alone.</p>"
    if state.status == "broken":
        return failed(f"This run is broken: {state.sentence}")
    return f"<p><b>{state.status}</b>: {escape(state.sentence)}</p>"


def _compare(desk: Desk, run: gr.Dropdown) -> Compare:
    with gr.Row():
        first = gr.Number(0, label="First seed", precision=0, minimum=0, min_width=110, elem_id="first")
        count = gr.Dropdown([1, 4, 16, 36, 64], value=16, label="Pictures", min_width=110, elem_id="count")
        solver = gr.Dropdown([OWN, *SOLVERS], value=OWN, label="Solver", min_width=150, elem_id="solver")
        steps = gr.Number(
            0, label="Steps (0: the model's own)", precision=0, minimum=0, maximum=1000, min_width=150, elem_id="steps"
        )
        label = gr.Dropdown([ANY], value=ANY, label="Class", min_width=130, elem_id="label")
    shared = Shared(run, first, count, solver, steps, label)
    with gr.Row(equal_height=False):
        panels = [_panel(place) for place in range(PANELS)]
    gr.Markdown("Click a picture to see it large, beside the training picture nearest to it.")
    with gr.Row():
        large = gr.Image(label="Sample", interactive=False, buttons=["fullscreen"], elem_id="large", format="png")
        near = gr.Image(
            label="Nearest training picture", interactive=False, buttons=["fullscreen"], elem_id="nearest", format="png"
        )
    words = gr.HTML(elem_id="nearest-said", elem_classes="said")

    def draw_all(request: gr.Request, progress: gr.Progress = _BAR, *values: Any) -> Iterator[list[Any]]:
        yield from _draw_all(desk, values, request, progress)

    part = Compare(
        lambda name: _chosen(desk, name),
        [shared.count, shared.label, *(one for panel in panels for one in panel.settled)],
        shared, panels, draw_all,
    )  # fmt: skip
    for place, panel in enumerate(panels):
        _connect(desk, shared, panel, place, [large, near, words])
    for one in (shared.first, shared.count, shared.solver, shared.steps, shared.label):
        one.input(draw_all, part.inputs, part.drawn, show_progress_on=part.galleries, **_FREE)
    return part


def _panel(place: int) -> Panel:
    with gr.Column(min_width=300, elem_classes="panel", elem_id=f"panel-{place}"):
        return Panel(
            gr.Dropdown([], label="Model", elem_id=f"model-{place}", filterable=True),
            gr.Slider(
                0, 4, step=0.01, label="w, the strength of guidance (0: the base)", visible=False, elem_id=f"w-{place}"
            ),
            gr.Dropdown([], label="Setting beside w", visible=False, elem_id=f"extra-{place}"),
            gr.Dropdown([], label="Training budget, in images", visible=False, elem_id=f"budget-{place}"),
            gr.Gallery(
                columns=4, format="png", allow_preview=False, show_label=False, interactive=False, buttons=[],
                object_fit="contain", height="auto", elem_id=f"pictures-{place}", elem_classes="plain",
            ),
            gr.HTML(elem_id=f"cost-{place}", elem_classes="said"),
            gr.Textbox(
                label="Write this model as a folder of the run", placeholder="a name, such as stronger", max_lines=1,
                elem_id=f"folder-{place}",
            ),
            gr.Button("Use this w", size="sm", elem_id=f"use-{place}"),
            gr.HTML(elem_id=f"written-{place}", elem_classes="said"),
        )  # fmt: skip


def _connect(desk: Desk, shared: Shared, panel: Panel, place: int, detail: list[Component]) -> None:
    """What happens when something in a column is moved or clicked."""
    given = [*shared.all, *panel.settings]

    def draw(request: gr.Request, progress: gr.Progress = _BAR, *values: Any) -> Sequence[Any]:
        spot = (request.session_hash, place)
        return _drawn(desk, spot, desk.turns.take(spot), values, progress)

    def settle(run: str, name: str) -> list[Any]:
        try:
            return _settings(desk.shelf(run), name)
        except UserError:
            return [gr.skip()] * 7

    def click(run: str, event: gr.SelectData, request: gr.Request) -> Sequence[Any]:
        return _clicked(desk, run, (request.session_hash, place), int(event.index))

    def use(folder: str, *values: Any) -> str:
        try:
            path = desk.write(_asked(values), (folder or "").strip())
        except UserError as error:
            return failed(error)
        command = f"sims sample {shlex.quote(str(path))} --seeds 0-63 --out samples"
        return f"<p>Written. To sample it: <code>{escape(command)}</code></p>"

    drawn = [panel.pictures, panel.cost]
    follow: dict[str, Any] = {"show_progress_on": panel.pictures, **_FREE}
    panel.model.input(settle, [shared.run, panel.model], panel.settled).then(draw, given, drawn, **follow)
    for one in (panel.w, panel.extra, panel.budget):
        one.input(draw, given, drawn, **follow)
    panel.pictures.select(click, shared.run, detail)
    panel.use.click(use, [panel.folder, *given], panel.written)


def _asked(values: Sequence[Any]) -> Asked:
    """The parts of the page as a request; UserError for what no page sends."""
    run, first, count, solver, steps, label, model, w, extra, budget = values
    try:
        return Asked(
            str(run), str(model or ""), None if w is None else float(w), None if extra is None else float(extra),
            None if budget is None else int(budget), int(first or 0), int(count or 1), str(solver), int(steps or 0),
            None if label in (None, ANY) else int(label),
        )  # fmt: skip
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"not a number: {str(error)[:100]}") from None


def _drawn(
    desk: Desk, spot: object, number: int, values: Sequence[Any], progress: gr.Progress, columns: int | None = None
) -> Sequence[Any]:
    """A gallery and what is said under it; as many columns as rows, unless their number is given."""
    try:
        asked = _asked(values)
        drawn = desk.draw(
            spot, number, asked, lambda done, total: progress((done, total), desc=asked.model, unit="steps")
        )
    except SupersededError:
        return gr.skip(), gr.skip()
    except UserError as error:
        return [], failed(error)
    named = list(zip(drawn.tiles(), [f"seed {seed}" for seed in drawn.seeds]))
    columns = math.ceil(math.sqrt(len(named))) if columns is None else columns
    return gr.Gallery(named, columns=columns), cost_html(drawn, asked.model)


def _draw_all(desk: Desk, values: Sequence[Any], request: gr.Request, progress: gr.Progress) -> Iterator[list[Any]]:
    """Column after column: the next model is read and sampled while the first is seen."""
    shared, panels = values[:6], [values[6 + 4 * place : 10 + 4 * place] for place in range(PANELS)]
    spots: list[object] = [(request.session_hash, place) for place in range(PANELS)]
    numbers = [desk.turns.take(spot) for spot in spots]
    for place, settings in enumerate(panels):
        answer: list[Any] = [gr.skip()] * (2 * PANELS)
        answer[2 * place : 2 * place + 2] = _drawn(desk, spots[place], numbers[place], (*shared, *settings), progress)
        yield answer


def _clicked(desk: Desk, run: str, spot: object, index: int) -> Sequence[Any]:
    try:
        large, found = desk.nearest(run, spot, index)
    except UserError as error:
        return None, None, failed(error)
    if isinstance(found, str):
        return large, None, f"<p>No training picture beside it: {escape(found)}.</p>"
    words = f"<p>Training picture {found.index:,} is nearest: distance {found.distance:.3g}, values in [-1, 1].</p>"
    return large, tile(found.image, 256), words


def _chosen(desk: Desk, name: str) -> list[Any]:
    """How the page begins with a run: base, improved and distilled, or what there is."""
    try:
        shelf = desk.shelf(name)
        names = list(shelf.entries)
        model = desk.model(Asked(name, names[0] if names else ""))
    except UserError:  # the sentence stands above
        nothing = [gr.Dropdown(choices=[], value=None), *[gr.update(visible=False)] * 5, ""]
        return [gr.skip(), gr.Dropdown(choices=[ANY], value=ANY), *nothing * PANELS]
    names_of = model.class_names or getattr(innermost(model.denoiser), "prompts", ())
    named = [names_of[k] if k < len(names_of) else str(k) for k in range(min(model.num_classes, MOST_CLASSES))]
    classes = [(ANY, ANY), *((title, str(k)) for k, title in enumerate(named))]
    found: list[Any] = [desk.usual_count(model), gr.Dropdown(choices=classes, value=ANY)]
    for place in range(PANELS):
        one = names[min(place, len(names) - 1)]
        found += _settings(shelf, one)
    return found


def _settings(shelf: Shelf, name: str) -> list[Any]:
    """A column for a model: the models there are, and what of it can be moved."""
    entry = shelf.entry(name)
    model = gr.Dropdown(choices=_listed(shelf), value=name)
    strength = entry.strength
    if strength is None:
        return [model, *[gr.update(visible=False, value=None)] * 4, gr.update(visible=False), ""]
    write = [gr.update(visible=True, value=""), gr.update(visible=True), ""]
    w = gr.Slider(minimum=strength.least, maximum=strength.most, value=strength.chosen, visible=True)
    budgets = [(f"{budget:,}", budget) for budget in strength.budgets]
    budget = gr.Dropdown(choices=budgets, value=strength.budget, visible=len(budgets) > 1)
    if strength.extra is None:
        return [model, w, gr.update(visible=False, value=None), budget, *write]
    values = sorted({*strength.extra.values, strength.value or strength.extra.usual})
    extra = gr.Dropdown(
        choices=[(f"{value:g}", value) for value in values],
        value=strength.value,
        label=strength.extra.name,
        visible=True,
    )
    return [model, w, extra, budget, *write]


def _listed(shelf: Shelf) -> list[tuple[str, str]]:
    """What a list of models shows and what it stands for."""
    return [(one.title, one.name) for one in shelf.entries.values()]


def _search(desk: Desk, compare: Compare) -> Part:
    method = gr.Dropdown([], label="Method", elem_id="method")
    gr.Markdown("FD to the training data against w. Click a point, or choose a measurement below, to see its samples.")
    curves = gr.Image(
        label="FD against w", show_label=False, interactive=False, buttons=[], elem_id="curves", format="png"
    )
    point = gr.Dropdown([], label="Measurement", elem_id="point")
    pictures = gr.Gallery(
        columns=8, format="png", allow_preview=False, show_label=False, interactive=False, buttons=[], height="auto",
        elem_id="point-pictures", elem_classes="plain",
    )  # fmt: skip
    cost = gr.HTML(elem_id="point-cost", elem_classes="said")
    shared = compare.shared

    def choose(name: str) -> list[Any]:
        try:
            names = desk.searched(name)
        except UserError:
            names = []
        if not names:
            return [gr.Dropdown(choices=[], value=None), None, gr.Dropdown(choices=[], value=None)]
        return [gr.Dropdown(choices=names, value=names[0]), *show(name, names[0])]

    def show(name: str, method: str) -> list[Any]:
        try:
            found = desk.curves(name, method)
        except UserError:
            return [None, gr.Dropdown(choices=[], value=None)]
        points = [(said(cell, extra_name(method)), place) for place, cell in enumerate(found.cells)]
        return [found.image, gr.Dropdown(choices=points, value=None)]

    def click(name: str, method: str, event: gr.SelectData) -> Any:
        place = desk.curves(name, method).at(*event.index)
        return gr.skip() if place is None else place

    def draw(request: gr.Request, progress: gr.Progress = _BAR, *values: Any) -> Sequence[Any]:
        name, method, place, first, count = values
        if place is None:
            return [], ""
        try:
            cell = desk.curves(name, method).cells[int(place)]
        except (UserError, IndexError, ValueError) as error:
            return [], failed(error)
        spot = (request.session_hash, "search")
        asked = (name, first, count, OWN, 0, ANY, of_method(method), cell.w, cell.extra, cell.budget or None)
        return _drawn(desk, spot, desk.turns.take(spot), asked, progress, columns=8)

    given = [shared.run, method, point, shared.first, shared.count]
    method.input(show, [shared.run, method], [curves, point])
    curves.select(click, [shared.run, method], point)
    point.change(draw, given, [pictures, cost], show_progress_on=pictures, **_FREE)
    return Part(choose, [method, curves, point])


def _proportions(desk: Desk) -> Part:
    words = gr.HTML(elem_id="proportions-said", elem_classes="said")
    bars = gr.Image(
        label="Shares with 95 % intervals", show_label=False, interactive=False, buttons=[], elem_id="bars",
        format="png", visible=False,
    )  # fmt: skip
    table = gr.HTML(elem_id="shares")
    groups = gr.Gallery(
        columns=8, format="png", label="Pictures of every group", interactive=False, buttons=[], height="auto",
        elem_id="groups", visible=False,
    )  # fmt: skip

    def choose(name: str) -> list[Any]:
        try:
            result = desk.proportions(name)
        except UserError:
            result = None
        if result is None:
            empty = "<p>This run moves no proportions: choose a finished run of <code>sims shift</code>.</p>"
            return [empty, gr.update(visible=False), "", gr.update(visible=False)]
        said, pictures = f"<p>{escape(result.headline)}</p>", []
        try:
            pictures = group_pictures(desk.shown.run(name), result)
        except UserError as error:
            said += failed(error)
        drawn = gr.Image(draw_bars(result), visible=True)
        return [said, drawn, share_html(result), gr.Gallery(pictures, visible=bool(pictures))]

    return Part(choose, [words, bars, table, groups])
