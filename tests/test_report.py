"""The report: self-contained, honest about what is missing, and safe to open whatever the names in the run are."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from sims.errors import UserError
from sims.methods import METHODS, looks_of
from sims.report import closing_table, write_report
from sims.report.improve_figures import cache_levels
from sims.report.improve_page import change_interval
from sims.report.numbers import count, duration, plus_minus, signed_percent
from sims.report.page import render
from sims.report.palette import SPARE, THEME, Palette
from sims.report.strips import Pictures, read_pictures
from sims.results.common import Comparison, Figure, Interval, Row
from sims.results.improve import CacheResult, ImproveResult
from sims.results.shift import ShiftResult
from sims.results.summaries import read_result, to_json


@pytest.fixture(scope="module")
def result(finished: Path) -> ImproveResult:
    return read_result(finished, ImproveResult)


@pytest.fixture(scope="module")
def full_page(finished: Path, result: ImproveResult) -> str:
    return render(result, read_pictures(finished))


@pytest.fixture
def bare(result: ImproveResult) -> ImproveResult:
    """The result without the parts whose figures take long to draw."""
    return replace(result, search=None, cache=None)


def scored(result: ImproveResult, ours: float, theirs: float, held_out: float | None = None) -> ImproveResult:
    """The result as if its leading method and base had these FDs, ± 0.3, and nothing else had been tried."""

    def row(label: str, fd: float, held: float) -> Row:
        found = result.row(label)
        assert found is not None
        figures = {"fd": Figure(fd, fd - 0.3, fd + 0.3), "fd_held_out": Figure(held, held - 0.3, held + 0.3)}
        return replace(found, figures=found.figures | figures)

    rows = (row("base", theirs, theirs), row(result.leader, ours, ours if held_out is None else held_out))
    return replace(result, rows=rows, comparisons=(), search=None, cache=None)


class Balance(HTMLParser):
    """Fails on a tag that is closed without being open; collects ids, attributes and text."""

    VOID = frozenset({"meta", "img", "br", "hr", "link", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)


def parse(page: str) -> Balance:
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def section_ids(page: str) -> list[str]:
    return re.findall(r'<section id="([a-z]+)"', page)


def printed(result: ImproveResult, width: int) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(closing_table(result))
    return console.export_text()


def test_page_is_valid_and_self_contained(full_page: str) -> None:
    parsed = parse(full_page)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not re.search(r"https?://|@import|<script|<link|<iframe", full_page)
    for tag, attributes in parsed.tags:
        source, link = attributes.get("src"), attributes.get("href")
        assert source is None or source.startswith("data:image/png;base64,"), tag
        assert link is None or (link.startswith("#") and link[1:] in parsed.ids), link
        assert not any(name.startswith("on") for name in attributes)
    for reference in re.findall(r"url\(([^)]*)\)", full_page):
        assert reference.startswith("#") and reference[1:] in parsed.ids
    measured = "".join(parsed.text).split("Configuration")[0]
    assert not re.search(r"\b(nan|NaN|inf|None|null)\b", measured)


def test_every_figure_has_caption_and_alt(full_page: str) -> None:
    parsed = parse(full_page)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    drawings = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(images) >= 8 and all(item.get("alt") for item in images)
    assert len(drawings) >= 5 and all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    for figure in re.findall(r"<figure>(.*?)</figure>", full_page, flags=re.DOTALL):
        assert "<figcaption>" in figure or "<table>" in figure


def test_sections_appear_in_order_with_the_figures_of_the_run(full_page: str, result: ImproveResult) -> None:
    ids = ["samples", "results", "strength", "cost", "cache", "memorization", "search", "reproduce"]
    assert section_ids(full_page) == ids
    text = "".join(parse(full_page).text)
    for row in result.rows:
        places = 1 if max(row.figures["fd"].mean for row in result.rows) >= 100 else 2
        assert plus_minus(row.figures["fd"], places) in text and result.looks[row.label].title in text
    assert result.reproduction.commands[0] in text and all(item.verdict in text for item in result.comparisons)


@pytest.mark.parametrize(("part", "section"), [("cache", "cache"), ("search", "search"), ("rows", "memorization")])
def test_a_section_disappears_with_its_part(result: ImproveResult, part: str, section: str) -> None:
    page = render(replace(result, **{part: () if part == "rows" else None}))
    assert section not in section_ids(page) and "samples" not in section_ids(page)
    parse(page)


def test_a_result_of_nothing_makes_a_page(bare: ImproveResult) -> None:
    empty = ImproveResult(title="t", headline="h", data=bare.data, leader=bare.leader)
    assert section_ids(render(empty)) == [] and "t" in printed(empty, 80)


def test_unverified_and_warned_runs_say_so(bare: ImproveResult) -> None:
    better = replace(scored(bare, 11.0, 19.0), warnings=())
    page = render(better)
    assert 'class="big"' in page and "Not verified." not in page and "Warning." not in page
    page = render(replace(better, verified=False, warnings=("the test set has 360 images only",)))
    assert "but the run did not verify it" in page and 'class="big unsure"' in page
    assert "Not verified." in page and "The test set has 360 images only" in page


def test_no_improvement_is_not_sold_as_one(bare: ImproveResult) -> None:
    page = render(scored(bare, 18.9, 19.0))
    assert "includes zero: no improvement is shown" in page and 'class="big unsure"' in page
    assert "No method improved on the base." in render(scored(bare, 25.0, 19.0))


def test_a_gain_on_training_images_alone_is_named(bare: ImproveResult) -> None:
    assert "which no model has seen, no improvement is shown" in render(scored(bare, 11.0, 19.0, held_out=19.1))
    assert "which no model has seen, FD falls too" in render(scored(bare, 11.0, 19.0))


def test_the_paired_interval_is_preferred_to_the_widest_that_two_allow(bare: ImproveResult) -> None:
    better = scored(bare, 11.0, 20.0)
    base, leader = better.rows
    assert change_interval(better, leader, base, "fd") == pytest.approx((-45, -47.2906, -42.6396, 0), abs=1e-3)
    difference = Interval(-9.0, -9.2, -8.8)
    paired = Comparison(a=leader.label, b="base", figure="fd", difference=difference, verdict="")
    found = change_interval(replace(better, comparisons=(paired,)), leader, base, "fd")
    assert found == pytest.approx((-45, -46, -44, 1))


def test_names_are_escaped(bare: ImproveResult, finished: Path) -> None:
    evil = '<b>x</b>"><script>alert(1)</script> $\\frac$ &amp;'
    rows = tuple(replace(row, label=row.label + evil, note=evil) for row in bare.rows)
    changed = replace(
        bare,
        title=evil,
        headline=evil,
        warnings=(evil,),
        rows=rows,
        data=replace(bare.data, name=evil),
        comparisons=tuple(replace(item, verdict=evil) for item in bare.comparisons),
        reproduction=replace(bare.reproduction, commands=(evil,), config_toml=evil),
    )
    pictures = read_pictures(finished)
    pictures = replace(pictures, images=pictures.images | {f"{evil}@1": next(iter(pictures.images.values()))})
    page = render(changed, pictures)
    assert "<b>x" not in page and "<script" not in page and evil in "".join(parse(page).text)


def test_one_colour_per_row_and_no_two_alike() -> None:
    looks = looks_of(METHODS)
    for shade in ("light", "dark"):
        colours = [getattr(look, shade) for look in looks.values()] + [pair[shade == "dark"] for pair in THEME.values()]
        assert len(colours) == len(set(colours))
    rows = [("sims@1", "sims"), ("sims", "sims"), ("sims (new)", "sims"), ("other", "unknown")]
    palette = Palette(looks, rows)
    assert palette["sims"].light == looks["sims"].light and palette.name("sims") == looks["sims"].title
    assert palette["sims@1"].light == SPARE[0].light and palette.name("sims@1") == "sims@1"
    assert len({palette[label].light for label, _ in rows}) == 4


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (256, 3)])
def test_images_of_any_size_fit(bare: ImproveResult, side: int, channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (16 if side < 256 else 7, side, side, channels), np.uint8)
    page = render(replace(bare, rows=bare.rows[:2]), Pictures(images={"base@0": images, "sims@1": images}, real=images))
    widths = [int(dict(attributes)["width"] or 0) for tag, attributes in parse(page).tags if tag == "img"]
    assert len(widths) == 5 and max(widths) <= 900 and len(page) < 4_000_000


def test_report_replaces_the_old_one_at_once(
    tmp_path: Path, bare: ImproveResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(to_json(bare)))
    (tmp_path / "report.html").write_text("old")

    def fail(*_: Any) -> None:
        assert (tmp_path / "report.html").read_text() == "old"
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "summary.json"]
    assert write_report(tmp_path) == tmp_path / "report.html"
    first = (tmp_path / "report.html").read_bytes()
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first  # the same run is the same page


def test_a_result_of_another_command_is_a_user_error(finished: Path) -> None:
    assert read_result(finished) == read_result(finished, ImproveResult)
    with pytest.raises(UserError, match="is of 'improve', not of 'shift': give a run of that command"):
        read_result(finished, ShiftResult)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "finished run"), ("{", "not valid JSON"), ("[]", "not written by sims"), ('{"format": 9}', "format 9")],
)
def test_unreadable_runs_are_user_errors(tmp_path: Path, finished: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_bytes((finished / "summary.json").read_bytes())
    (tmp_path / "grids.npz").write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"grids\.npz cannot be read"):
        write_report(tmp_path)


@pytest.mark.parametrize("width", [60, 80, 140])
def test_closing_table_keeps_the_method_and_the_distances_however_narrow(result: ImproveResult, width: int) -> None:
    rows = [replace(row, retained={"fd": 0.5}, budget=2560) for row in result.rows]
    rows[1] = replace(rows[1], label="[red]cached", figures={})
    text = printed(replace(result, rows=tuple(rows)), width)
    for row in rows:
        assert row.label in text
        assert "fd" not in row.figures or plus_minus(row.figures["fd"], 2) in text
    assert "…" not in text and "–" in text
    assert ("budget" in text) == (width >= 140)


def test_levels_of_a_cache_merge_the_evaluations_that_share_one() -> None:
    def cache(levels: tuple[float, ...], refresh: tuple[bool, ...]) -> CacheResult:
        return CacheResult(levels=levels, refresh=refresh, solver="heun", nfe_base=1, nfe_full=2, nfe_cached=1)

    assert cache_levels(cache((9, 3, 3, 1), (True, False, True, False))) == ([9, 3, 1], [True, True, False])
    with pytest.raises(ValueError, match="zip"):
        cache_levels(cache((9, 3), (True,)))


def test_numbers() -> None:
    assert [count(v) for v in (360, 50_000, 1_536_000, None)] == ["360", "50\u202f000", "1.54 M", "–"]
    assert [duration(v) for v in (0.5, 42, 600, 7500)] == ["0.5 s", "42 s", "10 min", "2 h 05 min"]
    assert [signed_percent(v) for v in (-42.72, 3.0, -0.01, None)] == ["−42.7 %", "+3.0 %", "0.0 %", "–"]


def test_import_loads_no_torch_and_no_matplotlib() -> None:
    code = "import sys, sims.report; print([m for m in ('torch', 'matplotlib', 'PIL', 'jinja2') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
