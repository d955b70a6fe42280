"""Write the report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from sims.files import write_atomic
from sims.report.blocks import Section
from sims.report.context import Context
from sims.report.head import Head
from sims.report.improve_page import improve_head, improve_sections
from sims.report.loop_page import loop_head, loop_sections, pollution_sections
from sims.report.palette import Palette
from sims.report.shift_page import shift_head, shift_sections
from sims.report.strips import Pictures, read_pictures
from sims.report.svg import house_style
from sims.results.common import Result
from sims.results.files import read_result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.shift import ShiftResult

HERE = Path(__file__).parent


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
        sections=[section for section in sections if section.blocks],
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        light=palette.variables(dark=False),
        dark=palette.variables(dark=True),
    )


def contents(result: Result, pictures: Pictures) -> tuple[Head, list[Section], Palette]:
    """The head, the sections and the colours of a result's page."""
    palette = Palette(result.looks, _names(result))
    with house_style():
        if isinstance(result, ImproveResult):
            improve = Context(result, pictures, palette)
            return improve_head(result), improve_sections(improve), palette
        if isinstance(result, ShiftResult):
            shift = Context(result, pictures, palette)
            return shift_head(result), shift_sections(shift), palette
        if isinstance(result, LoopResult):
            return loop_head(result), loop_sections(Context(result, pictures, palette)), palette
        assert isinstance(result, PollutionResult)
        return loop_head(result), pollution_sections(Context(result, pictures, palette)), palette


def _names(result: Result) -> list[tuple[str, str]]:
    """Everything that a page compares, with the method behind it."""
    if isinstance(result, LoopResult | PollutionResult):
        return [(arm.name, arm.method) for arm in result.arms]
    if isinstance(result, ShiftResult):
        return [(row.label, row.method) for row in result.rows]
    assert isinstance(result, ImproveResult)
    rounds = [row for item in result.rounds for row in item.rows]
    cells = result.search.cells if result.search else ()
    return [(row.label, row.method) for row in (*result.rows, *rounds)] + [(cell.method, "") for cell in cells]
