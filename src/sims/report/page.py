"""Write the report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from sims.files import write_atomic
from sims.report.blocks import Section
from sims.report.context import Context
from sims.report.first_sight import improve_opening, loop_opening, shift_opening
from sims.report.folding import folded
from sims.report.head import Head, Opening
from sims.report.improve_page import improve_head, improve_sections
from sims.report.loop_page import loop_head, loop_sections, pollution_sections
from sims.report.palette import Palette
from sims.report.shift_page import shift_head, shift_sections
from sims.report.strips import Pictures, read_pictures
from sims.report.svg import house_style
from sims.results.common import Result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.shift import ShiftResult
from sims.results.summaries import read_result

HERE = Path(__file__).parent
Sections = Callable[[Context[Any]], list[Section]]
PAGES: dict[type[Result], tuple[Callable[[Any], Head], Callable[[Context[Any]], Opening], Sections]] = {
    ImproveResult: (improve_head, improve_opening, improve_sections),
    LoopResult: (loop_head, loop_opening, loop_sections),
    PollutionResult: (loop_head, loop_opening, pollution_sections),
    ShiftResult: (shift_head, shift_opening, shift_sections),
}


def write_report(run_dir: Path) -> Path:
    """Read a run directory and write its report.html; returns the path. Raises UserError for an unreadable run."""
    target = Path(run_dir) / "report.html"
    page = render(read_result(Path(run_dir)), read_pictures(Path(run_dir)))
    write_atomic(target, page.encode("utf-8", "replace"))
    return target


def render(result: Result, pictures: Pictures | None = None) -> str:
    """The page of a result, as HTML."""
    import jinja2

    head, sections, palette = contents(result, pictures or Pictures())
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        head=head,
        sections=[folded(section) for section in sections if section.blocks],
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        light=palette.variables(dark=False),
        dark=palette.variables(dark=True),
    )


def contents(result: Result, pictures: Pictures) -> tuple[Head, list[Section], Palette]:
    """The head, the sections and the colours of a result's page."""
    if isinstance(result, LoopResult | PollutionResult):
        names = [(arm.name, arm.method) for arm in result.arms]
    else:
        assert isinstance(result, ImproveResult | ShiftResult)
        names = [(row.label, row.method) for row in result.rows]
    palette = Palette(result.looks, names)
    head, opening, sections = PAGES[type(result)]
    context = Context(result, pictures, palette)
    with house_style():
        return replace(head(result), opening=opening(context)), sections(context), palette
