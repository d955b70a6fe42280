"""Pages are read by everybody: the picture and one sentence first, nothing sideways, on paper, and in words."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from page_checks import blocks_of, figure_faults
from sims.report import numbers as say
from sims.report.blocks import Column, Details, Drawn, Images, Section, Table
from sims.report.folding import PAGE, fold, folded, width
from sims.report.page import contents, render
from sims.report.strips import Pictures, read_pictures
from sims.results.common import Figure, Result
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult
from sims.results.shift import ShiftResult
from sims.results.summaries import read_result
from test_report_kinds import firsts

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def results(
    finished: Path, finished_loop: Path, finished_pollution: Path, finished_shift: Path
) -> dict[str, tuple[Result, Pictures]]:
    """Published results, which have no pictures, and a finished run of every experiment, with its own."""
    runs = {"improve": finished, "loop": finished_loop, "pollution": finished_pollution, "shift": finished_shift}
    found = {name: (result, Pictures()) for name, result in firsts().items()}
    return found | {name: (read_result(run), read_pictures(run)) for name, run in runs.items()}


@pytest.fixture(scope="module")
def pages(results: dict[str, tuple[Result, Pictures]]) -> dict[str, str]:
    return {name: render(*given) for name, given in results.items()}


def alternatives(page: str) -> list[str]:
    """The alternative text of every picture of a page."""
    pictures = re.findall(r"<(?:img|svg)\b[^>]*>", page)
    texts = [re.search(r'(?:alt|aria-label)="([^"]*)"', picture) for picture in pictures]
    return [unescape(text[1]) if text else "" for text in texts]


# -- what a page opens with --------------------------------------------------------------------------------------------


def test_a_page_opens_with_a_picture_and_one_sentence(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        assert page.index('class="opening"') < page.index('class="head"' if "improve" in name else "<nav"), name
        opening = page[page.index('class="opening"') : page.index('<p class="headline">')]
        assert len(re.findall("<svg|<img", opening)) >= 1, name
        text = unescape(re.findall(r'<p class="headline">(.*?)</p>', page)[0])
        assert text.endswith(".") and not re.search(r"\.\s", text), (name, text)
        assert len(re.findall(r'<p class="headline">', page)) == 1


def test_the_picture_shows_base_improved_distilled_and_real(results: dict[str, tuple[Result, Pictures]]) -> None:
    result, pictures = results["improve"]
    assert isinstance(result, ImproveResult) and result.distilled and result.improved
    picture = contents(result, pictures)[0].opening.picture
    assert isinstance(picture, Images)
    shown = [result.looks[label].title for label in ("base", result.free, result.improved, result.distilled) if label]
    assert [strip.label for strip in picture.strips] == [*dict.fromkeys(shown), "real"]
    held = result.row(result.distilled).mean("fd_held_out")  # type: ignore[union-attr]
    assert held is not None and say.fixed(held, say.decimals([held])) in picture.strips[-2].alt
    loop = contents(*results["loop"])[0].opening.picture
    assert isinstance(loop, Images) and [strip.label for strip in loop.strips][::3] == [
        "standard training, generation 0", "real",
    ]  # fmt: skip
    shift = contents(*results["shift"])[0].opening.picture
    assert isinstance(shift, Images) and len(shift.strips) == 3


def test_what_is_drawn_where_no_pictures_were_kept_has_its_caption(results: dict[str, tuple[Result, Pictures]]) -> None:
    for name, (result, _) in results.items():
        picture = contents(result, Pictures())[0].opening.picture
        assert isinstance(picture, Drawn) and not figure_faults(picture), name


def with_distances(result: ImproveResult, old: float, new: float) -> str:
    """What is said where every row but the base has the second FD, ± 1."""
    rows = [
        replace(row, figures={name: Figure(fd, fd - 1, fd + 1) for name in ("fd", "fd_held_out")})
        for row, fd in ((row, old if row.w == 0 else new) for row in result.rows)
    ]
    changed = replace(result, rows=tuple(rows), comparisons=(), verified=True, search=None, cache=None)
    return contents(changed, Pictures())[0].opening.sentence


def test_the_sentence_says_no_more_than_the_figures(results: dict[str, tuple[Result, Pictures]]) -> None:
    result = results["improve"][0]
    assert isinstance(result, ImproveResult)
    result = replace(result, free="")
    assert "the samples are better: their distance (FD) to held-out images falls from 20.00 to 10.00, by 50 %." in (
        with_distances(result, 20.0, 10.0)
    )
    assert with_distances(result, 20.0, 19.0).startswith("It is not shown that samples are better")
    assert "the samples are no better: their distance (FD) to held-out images goes from 20.00 to 21.00." in (
        with_distances(result, 20.0, 21.0)
    )
    assert with_distances(replace(result, rows=result.rows[:1]), 20.0, 21.0) == ""
    unverified = contents(replace(result, verified=False), Pictures())[0].opening.sentence
    assert "the samples are better" not in unverified


def test_the_sentence_says_first_that_no_training_is_needed(results: dict[str, tuple[Result, Pictures]]) -> None:
    result = results["improve"][0]
    assert isinstance(result, ImproveResult)
    for free, more in (("history", ", and "), (result.improved, "")):
        found = with_distances(replace(result, free=free), 20.0, 10.0)
        assert found.startswith(f"No training is needed: with {result.looks[free].title} the distance (FD) to held-out")
        assert "falls from 20.00 to 10.00" in found and ("is not shown to be better" in found) == bool(more)
    assert not with_distances(replace(result, free=""), 20.0, 10.0).startswith("No training")
    assert not with_distances(replace(result, free="history"), 20.0, 21.0).startswith("No training")


def test_sentences_of_loops_and_proportions_have_the_run_s_numbers(
    results: dict[str, tuple[Result, Pictures]],
) -> None:
    result, pictures = results["loop"]
    assert isinstance(result, LoopResult)
    last = {arm.name: Figure.of(result.curves["fd"][arm.name][-1]).mean for arm in result.arms}
    sentence, places = contents(result, pictures)[0].opening.sentence, say.decimals(last.values())
    assert say.fixed(last["standard"], places) in sentence and say.fixed(min(last.values()), places) in sentence
    alone = replace(result, repeats=1, arms=result.arms[:1])
    assert "a single run, so chance is not ruled out" in contents(alone, pictures)[0].opening.sentence
    shift = results["shift"][0]
    assert isinstance(shift, ShiftResult) and shift.base.proportions.tv.value is not None
    assert f"{shift.base.proportions.tv.value:.3f} to " in contents(shift, Pictures())[0].opening.sentence


# -- in words ----------------------------------------------------------------------------------------------------------


def test_no_picture_is_without_words(pages: dict[str, str]) -> None:
    for name, page in pages.items():
        texts = alternatives(page)
        assert len(texts) >= 2 and all(re.search(r"\d", text) or "real images" in text.lower() for text in texts), name


def numbers_of(result: Result) -> Iterator[str]:
    """What the alternative texts of a result must hold."""
    if isinstance(result, ImproveResult):
        for name in ("fd", "fd_held_out"):
            places = say.decimals(row.mean(name) for row in result.rows)
            yield from (say.with_ends(row.figures[name], places) for row in result.rows if name in row.figures)
        most = max(cell.n for cell in result.search.cells) if result.search else 0
        for cell in result.search.cells if result.search else ():
            if cell.n == most and cell.budget is not None and cell.fd:
                yield f"w {say.strength(cell.w)}: {say.fixed(cell.fd, say.decimals([cell.fd]))}"
    elif isinstance(result, ShiftResult):
        for row in (row for row in result.rows if not row.baseline):
            yield from (say.percent(share) for share in row.proportions.values[:4])
    else:
        for figure, arms in result.curves.items():  # type: ignore[attr-defined]
            for name, curve in arms.items():
                means = [Figure.of(values).mean for values in curve]
                label = next(arm.label for arm in result.arms if arm.name == name)  # type: ignore[attr-defined]
                yield f"{result.figures[figure].title}, {label}: "
                yield f": {say.fixed(means[-1], say.decimals(means))}."


def test_the_words_have_the_numbers_of_the_result(
    results: dict[str, tuple[Result, Pictures]], pages: dict[str, str]
) -> None:
    for name, (result, _) in results.items():
        words = " ".join(alternatives(pages[name]))
        missing = [number for number in numbers_of(result) if number not in words]
        assert not missing, (name, missing[:5])


def test_long_curves_are_told_in_a_few_places() -> None:
    at, values = [f"generation {k}" for k in range(101)], [str(k) for k in range(101)]
    text = say.told("FD", at, values)
    assert text.startswith("FD: generation 0: 0, ") and text.endswith(", generation 100: 100.")
    assert text.count("generation") == 12 and say.told("FD", [], []) == ""


# -- wide tables -------------------------------------------------------------------------------------------------------


def wide(count: int, **more: Any) -> Table:
    columns = [Column(f"figure {k}", ["123.45 ± 6.78", "1.2"], **more) for k in range(count)]
    return Table([Column("method", ["base", "other"], False), *columns], "caption")


def test_a_table_that_fits_stays() -> None:
    table = wide(4)
    assert fold(table) == [table] and sum(map(width, table.columns)) < PAGE


def test_columns_of_a_wide_table_go_behind_a_line_and_none_is_lost() -> None:
    table = wide(20)
    shown, more = fold(table)
    assert isinstance(shown, Table) and isinstance(more, Details) and shown.caption == "caption"
    parts = [shown, *(block for block in more.blocks if isinstance(block, Table))]
    assert all(sum(map(width, part.columns)) <= PAGE and part.columns[0].title == "method" for part in parts)
    assert [column for part in parts for column in part.columns[1:]] == list(table.columns[1:])
    assert more.summary == f"{20 - len(shown.columns) + 1} more columns of this table"


def test_what_matters_least_goes_first_and_groups_and_keys_stay_together() -> None:
    table = wide(9)
    columns = [replace(column, drop=k if k < 3 else 0) for k, column in enumerate(table.columns)]
    shown, _ = fold(replace(table, columns=columns))
    assert isinstance(shown, Table)
    assert [column.title for column in shown.columns] == ["method", *(f"figure {k}" for k in range(2, 8))]
    grouped = replace(table, columns=[replace(c, group=f"g{k // 4}") if k else c for k, c in enumerate(table.columns)])
    shown, more = fold(grouped)
    assert isinstance(shown, Table) and isinstance(more, Details)
    for part in (shown, *more.blocks):
        assert isinstance(part, Table)
        assert all(size == len([c for c in grouped.columns if c.group == name]) for name, size in part.groups if name)
    keyed = [replace(column, key=k == 1) for k, column in enumerate(table.columns)]
    _, more = fold(replace(table, columns=keyed))
    assert isinstance(more, Details) and isinstance(more.blocks[0], Table)
    assert [column.title for column in more.blocks[0].columns[:2]] == ["method", "figure 0"]


def test_tables_behind_a_line_are_folded_too() -> None:
    (block,) = folded(Section("a", "A", [Details("more", [wide(20)])])).blocks
    assert isinstance(block, Details) and len(block.blocks) == 2
    assert len(list(blocks_of([Section("a", "A", [block])]))) > 3


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not os.access(CHROMIUM, os.X_OK):
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


OPEN = "document.querySelectorAll('details').forEach(each => each.open = true)"
SIDEWAYS = """() => [document.documentElement, ...document.querySelectorAll('.scroll, pre, nav')]
    .map(each => [each.scrollWidth - each.clientWidth, each.textContent.trim().slice(0, 60)])
    .filter(([by]) => by > 0)"""


def test_nothing_scrolls_sideways_and_paper_cuts_nothing_off(
    browser: Any, pages: dict[str, str], tmp_path: Path
) -> None:
    for name, html in pages.items():
        file = tmp_path / "page.html"
        file.write_text(html, encoding="utf-8")
        page = browser.new_page(viewport={"width": 1200, "height": 800})
        page.goto(file.as_uri())
        page.evaluate(OPEN)
        assert page.evaluate(SIDEWAYS) == [], name
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, name  # figures scroll within themselves
        page.close()
        page = browser.new_page(viewport={"width": 703, "height": 1030}, color_scheme="dark")  # A4 within its margins
        page.goto(file.as_uri())
        page.emulate_media(media="print", color_scheme="dark")
        assert page.evaluate(SIDEWAYS) == [], name
        closed = "[...document.querySelectorAll('details > :not(summary)')].filter(each => !each.offsetHeight).length"
        assert page.evaluate(closed) == 0, name
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)", name
        page.close()


def test_names_that_do_not_end_scroll_nothing(browser: Any, finished: Path, tmp_path: Path) -> None:
    result = read_result(finished, ImproveResult)
    rows = tuple(replace(row, label=f"{row.label}-{'x' * 90}", note="y" * 90) for row in result.rows)
    file = tmp_path / "page.html"
    file.write_text(render(replace(result, rows=rows, comparisons=(), search=None, cache=None)), encoding="utf-8")
    page = browser.new_page(viewport={"width": 1200, "height": 800})
    page.goto(file.as_uri())
    assert page.evaluate(SIDEWAYS) == []
    page.close()
