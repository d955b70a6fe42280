"""Write the report: one HTML file that loads nothing from anywhere."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from sims.files import write_atomic
from sims.report.palette import Palette
from sims.report.record import Record, look, read_record

HERE = Path(__file__).parent


def write_report(run_dir: Path) -> Path:
    """Read a run directory and write its report.html; returns the path. Raises UserError for an unreadable run."""
    target = Path(run_dir) / "report.html"
    write_atomic(target, render(read_record(Path(run_dir))).encode("utf-8", "replace"))
    return target


def render(record: Record) -> str:
    """The page of a record, as HTML."""
    import jinja2

    from sims.report.head import make_hero
    from sims.report.loops import loop_methods, make_loop_hero, make_loop_sections
    from sims.report.sections import make_sections
    from sims.report.shift import make_shift_hero, make_shift_sections, shift_methods

    loop = loop_methods, make_loop_hero, make_loop_sections
    shift = shift_methods, make_shift_hero, make_shift_sections
    pages = {"loop": loop, "pollution": loop, "shift": shift}
    methods, hero, sections = pages.get(str(record.summary.get("experiment")), (_methods, make_hero, make_sections))
    palette = Palette(methods(record))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        hero=hero(record),
        sections=sections(record, palette),
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        light=palette.variables(dark=False),
        dark=palette.variables(dark=True),
    )


def _methods(record: Record) -> list[str]:
    """Methods that are named in the search, the rounds or the grids alone still get a colour of their own."""
    from sims.report.strips import split_key

    cells = [cell for cell in record.part("search").get("cells") or [] if isinstance(cell, dict)]
    rounds = [row for item in record.items("rounds") for row in item.get("rows") or []]
    grids = ({"method": split_key(key)[0]} for key in record.grids)
    return [look(row) for row in (*record.rows, *cells, *rounds, *grids)]
