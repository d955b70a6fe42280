"""Pages against what writers write: every published result and a finished run of every experiment.

No table or column holds nothing, no caption speaks of what is not drawn, and every field of the schema is both written
and read.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image
from rich.console import Console

import tiny
import tiny_loop
from page_checks import RESULTS, fields_of, figure_faults, page_faults, recorded, table_faults, written
from sims.cli import main
from sims.data.sources import load
from sims.report import closing_table
from sims.report.blocks import Cell, Column, Drawn, Section, Table, table
from sims.report.page import contents, render
from sims.report.palette import Palette
from sims.report.strips import Pictures, read_pictures
from sims.report.svg import Drawing, house_style
from sims.results.common import Result
from sims.results.summaries import from_json, read_result
from sims.training.classifier import train_classifier

PUBLISHED = Path(__file__).parent.parent / "benchmarks" / "results"
NEVER_WRITTEN = {
    ("Row", "diverged"): "no samples diverge in these runs",
    ("Arm", "diverged"): "no samples diverge in these runs",
    ("StrengthChoice", "at_edge"): "the best strength of these runs lies within those tried",
    ("Interval", "level"): "all intervals are of 95 %",
    ("ImproveResult", "adapter"): "no model is given to these runs; test_adapter_check.py renders one that was",
}
NEVER_READ: dict[tuple[str, str], str] = {}


@cache
def published() -> dict[str, Result]:
    """Every result in a published file: by the file and where it is in it."""
    found = {}
    for file in sorted(PUBLISHED.glob("*.json")):
        values = json.loads(file.read_text())
        for where, entry in entries(values, file.stem):
            found[where] = from_json(entry, where)
    return found


def firsts() -> dict[str, Result]:
    """The published results without further repeats of the same target."""
    return {name: result for name, result in published().items() if name.endswith(("/summary", "/0"))}


def entries(values: object, where: str) -> Iterator[tuple[str, dict]]:
    if isinstance(values, dict) and "experiment" in values and "format" in values:
        yield where, values
    elif isinstance(values, dict | list):
        items = values.items() if isinstance(values, dict) else enumerate(values)
        for key, item in items:
            yield from entries(item, f"{where}/{key}")


@pytest.fixture(scope="module")
def runs(
    finished: Path,
    finished_loop: Path,
    finished_pollution: Path,
    finished_shift: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A finished tiny run of every experiment; of the main job three, with and without what it may have."""
    folder, trusted = tmp_path_factory.mktemp("runs"), tmp_path_factory.mktemp("trusted")
    for index, pixels in enumerate(load("digits", limit=30).raw):
        Image.fromarray(pixels[0] * 15).save(trusted / f"{index}.png")
    full = ["--rounds", "2", "--data.conditional", "--methods", "base,sims,distilled", "--trusted", str(trusted)]
    given = next((finished / "base" / "snapshots").glob("*12800"))
    words = {
        "points": tiny_loop.points_arguments(folder / "points"),
        "rounds": tiny.improve_arguments(folder / "rounds", *full, "--search.budget", "2560"),
        "blind": tiny.improve_arguments(folder / "blind", "--model", str(given), "--data.path", "none"),
    }
    with pytest.MonkeyPatch.context() as patch:  # what the classifiers are worth is not looked at
        patch.setattr("sims.scoring.extractor_fitting.train_classifier", partial(train_classifier, steps=20))
        for line in words.values():
            assert main(line) == 0
    shared = {"improve": finished, "loop": finished_loop, "pollution": finished_pollution, "shift": finished_shift}
    return shared | {name: folder / name for name in words}


@pytest.fixture(scope="module")
def results(runs: dict[str, Path]) -> dict[str, tuple[Result, Pictures]]:
    found = {name: (result, Pictures()) for name, result in firsts().items()}
    return found | {name: (read_result(run), read_pictures(run)) for name, run in runs.items()}


@pytest.fixture(scope="module")
def shown(results: dict[str, tuple[Result, Pictures]]) -> tuple[dict[str, str], set[tuple[str, str]]]:
    """The page of every result; and the fields that pages and tables have read."""
    with pytest.MonkeyPatch.context() as patch:
        read = recorded(patch)
        pages = {name: render(result, pictures) for name, (result, pictures) in results.items()}
        for result, _ in results.values():
            printed(result)
        return pages, {*read}


def printed(result: Result, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(closing_table(result))
    return console.export_text()


def test_results_of_every_experiment_are_published_or_run(results: dict[str, tuple[Result, Pictures]]) -> None:
    assert {result.experiment for result, _ in results.values()} == {"improve", "loop", "pollution", "shift"}
    assert {result.experiment for result in published().values()} >= {"loop", "pollution", "shift"}


@pytest.mark.parametrize("name", published())
def test_a_published_page_shows_nothing_empty_and_names_nothing_undrawn(name: str) -> None:
    _, sections, _ = contents(published()[name], Pictures())
    assert not page_faults(sections)


def test_the_page_of_a_run_shows_nothing_empty_and_names_nothing_undrawn(
    results: dict[str, tuple[Result, Pictures]], runs: dict[str, Path]
) -> None:
    faults = {name: page_faults(contents(*results[name])[1]) for name in runs}
    assert not any(faults.values()), faults


def test_every_field_is_written_and_read(
    results: dict[str, tuple[Result, Pictures]], shown: tuple[dict[str, str], set[tuple[str, str]]]
) -> None:
    there = {field for kind in RESULTS for field in fields_of(kind)}
    filled = written([result for result, _ in results.values()])
    unwritten = there - filled
    assert unwritten <= NEVER_WRITTEN.keys(), f"read but never written: {sorted(unwritten - NEVER_WRITTEN.keys())}"
    unread = there - shown[1]
    assert unread <= NEVER_READ.keys(), f"written but never read: {sorted(unread - NEVER_READ.keys())}"


def test_every_figure_of_a_result_is_on_its_page(
    results: dict[str, tuple[Result, Pictures]], shown: tuple[dict[str, str], set[tuple[str, str]]]
) -> None:
    for name, (result, _) in results.items():
        text = Markup(re.sub(r"<[^>]+>", " ", shown[0][name])).unescape()
        missing = [facts.title for facts in result.figures.values() if facts.title not in text]
        assert not missing, (name, missing)


def test_the_terminal_shows_a_full_table_of_every_experiment(results: dict[str, tuple[Result, Pictures]]) -> None:
    for name, (result, _) in results.items():
        closing = closing_table(result)
        assert not table_faults(closing.table), name  # type: ignore[union-attr]
        for width in (60, 80, 200):
            assert "…" not in printed(result, width).splitlines()[0], name


# -- the checks themselves ---------------------------------------------------------------------------------------------


def test_an_empty_column_is_a_fault() -> None:
    columns = [Column("generation", ["0", "1"]), Column("real", ["1437", "1437"]), Column("fresh", ["–", "–"])]
    assert table_faults(Table(columns)) == ["column 'fresh' holds nothing"]
    assert table_faults(Table([*columns[:2], Column("fresh", ["–", "5"])])) == []
    assert table_faults(Table(columns[:1])) and table_faults(Table([Column("real", []), Column("fresh", [])]))
    assert page_faults([Section("a", "A", [Table(columns)])])


def drawing(*, draw: bool) -> Drawing:
    figure = Drawing(Palette({}, []), "planted", 2.0)
    (axes,) = figure.panels(1)
    axes.plot([0, 1], [1, 2])
    if draw:
        figure.line(axes, 1.5, "dotted")
    return figure


def test_a_caption_of_a_line_that_is_not_drawn_is_a_fault() -> None:
    promise = "Dotted: what real data score."
    with house_style():
        for draw in (True, False):
            block = drawing(draw=draw).block("A line.", dotted=promise)
            assert not figure_faults(block) and (promise in block.caption) == draw
        said = drawing(draw=False).block(promise)
        silent = drawing(draw=True).block("A line.")
        other = drawing(draw=False)
        other.figure.axes[0].axhline(1.5, gid=other.mark("dotted"))
        solid = other.block(promise)
    assert figure_faults(said) == ["the caption speaks of 'dotted' and none is drawn"]
    assert figure_faults(silent) == ["'dotted' is drawn and the caption does not say what it is"]
    assert figure_faults(solid) == ["a mark called 'dotted' does not look like one"]
    assert figure_faults(Drawn(said.svg, "Red: the truth.")) == ["the caption speaks of 'colour' and none is drawn"]


def test_a_field_that_nobody_reads_or_writes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    result = next(iter(published().values()))
    read = recorded(monkeypatch)
    assert result.title and ("Result", "title") in read and ("Result", "headline") not in read
    filled = written(result)
    assert ("Result", "warnings") not in filled and ("Result", "title") in filled


def test_tables_leave_out_what_is_empty() -> None:
    numbers, none = Column("n", ["1", "2"]), Column("none", ["–", ""])
    whole = table([numbers, none, Column("twice", ["2", Cell("4")])])
    assert whole is not None and [column.title for column in whole.columns] == ["n", "twice"]
    assert table([numbers, none]) is None and table([Column("n", []), Column("m", [])]) is None


def test_samples_that_diverged_are_warned_of_on_the_page_and_in_the_terminal() -> None:
    for name, result in firsts().items():
        field = "rows" if hasattr(result, "rows") else "arms"
        values = json.loads(json.dumps(_plain(name)))
        values[field][1]["diverged"] = 7
        sick = from_json(values)
        assert "diverged (values that are not finite)" in render(sick), name
        assert "diverged" in printed(sick) and "diverged" not in printed(result), name


def _plain(name: str) -> dict:
    file, *path = name.split("/")
    values = json.loads((PUBLISHED / f"{file}.json").read_text())
    for key in path:
        values = values[int(key) if isinstance(values, list) else key]
    return values


def test_floors_are_drawn_where_they_were_measured() -> None:
    for name in ("loop-digits/summary", "pollution-digits/summary"):
        result = published()[name]
        page = render(result)
        assert result.floor is not None and set(result.floor.values) == {"fd", "fd_held_out"}
        assert len(re.findall(r'<g id="distances-dotted-\d+"', page)) == 2
        assert np.isfinite(list(result.floor.values.values())).all()
