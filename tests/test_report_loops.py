"""The pages of loops and pollution: everything that the result says appears, and what it lacks disappears."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sims.report.loop_page import loop_table, pollution_table, verdict_in_short
from sims.report.numbers import plus_minus, thinned
from sims.report.page import render
from sims.report.strips import Pictures, read_pictures
from sims.results.common import Figure
from sims.results.loop import LoopResult, PollutionResult, Verdict, Verdicts
from sims.results.summaries import read_result


@pytest.fixture(scope="module")
def loop(finished_loop: Path) -> LoopResult:
    return read_result(finished_loop, LoopResult)


@pytest.fixture(scope="module")
def pollution(finished_pollution: Path) -> PollutionResult:
    return read_result(finished_pollution, PollutionResult)


def sections(html: str) -> list[str]:
    return re.findall(r'<section[^>]* id="([^"]+)"', html)


def section(html: str, name: str) -> str:
    """The text of one section, without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.split(f'<section id="{name}">')[1].split("</section>")[0]).split())


def test_loop_page_says_all_of_the_result(loop: LoopResult, finished_loop: Path) -> None:
    html = render(loop, read_pictures(finished_loop))
    names = ["setting", "distances", "verdicts", "selection", "samples", "figures", "cost", "trained", "reproduce"]
    assert sections(html) == names
    trained = section(html, "trained")
    for item in loop.trained_on:
        source = "".join(f" {number} of generation {earlier}" for earlier, number in item.synthetic.items())
        assert f"{item.place:g} {item.real} {sum(item.synthetic.values())}{source}" in trained
    last = Figure.of(loop.curves["fd"]["sims"][-1])
    assert plus_minus(last, 2) in section(html, "distances")
    assert all(arm.label in section(html, "cost") for arm in loop.arms)
    assert loop.verdicts["standard"].mad is not None and loop.verdicts["standard"].mad.text in section(html, "verdicts")
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_pollution_page_says_all_of_the_result(pollution: PollutionResult, finished_pollution: Path) -> None:
    html = render(pollution, read_pictures(finished_pollution))
    names = ["setting", "distances", "levels", "samples", "figures", "strengths", "trusted", "cost", "trained"]
    assert sections(html) == [*names, "reproduce"]
    for item in pollution.comparisons:
        assert plus_minus(item.difference, 2) in section(html, "levels")
    assert all(f"{level:g} %" in section(html, "trained") for level in pollution.levels)
    found = pollution.trusted["sims"]
    ratios = np.array(found.ratio)
    text = f"{ratios.mean():.3f} on average, {ratios.max():.3f} at worst"
    assert text in section(html, "trusted") and f"The {found.size} trusted images" in section(html, "trusted")


def test_points_are_drawn(loop: LoopResult) -> None:
    rng = np.random.default_rng(0)
    points = {f"{arm.name}@{place}": rng.normal(size=(50, 2)) for arm in loop.arms for place in (0, 2)}
    html = render(replace(loop, figures={}), Pictures(points=points, truth=rng.normal(size=(50, 2))))
    assert "Samples at a few generations" in html and html.count("<image") == 6


def test_a_section_disappears_with_its_part(loop: LoopResult) -> None:
    bare = replace(loop, verdicts={}, selection={}, trained_on=(), shares={})
    assert sections(render(bare)) == ["setting", "distances", "figures", "cost", "reproduce"]
    assert "band" not in render(replace(loop, curves=_first(loop.curves))).split('id="verdicts"')[0].lower()


def _first(curves: dict[str, dict[str, list[list[float]]]]) -> dict[str, dict[str, list[list[float]]]]:
    """The curves of one repeat."""
    return {
        figure: {arm: [values[:1] for values in curve] for arm, curve in arms.items()}
        for figure, arms in curves.items()
    }


def test_closing_tables(loop: LoopResult, pollution: PollutionResult) -> None:
    table = loop_table(loop)
    assert table is not None and [row[0].text for row in table.rows] == [arm.label for arm in loop.arms]
    assert [column.title for column in table.columns][:2] == ["arm", "FD, 0"] and table.title == loop.title
    assert table.rows[0][1].text == plus_minus(Figure.of(loop.curves["fd"]["standard"][0]), 2)
    levels = pollution_table(pollution)
    assert levels is not None and [row[0].text for row in levels.rows] == ["+0 %", "+100 %"]
    assert levels.rows[1][1].text == plus_minus(Figure.of(pollution.curves["fd"]["standard"][1]), 2)


def test_verdicts_in_short() -> None:
    yes, no = Verdict(holds=True, text=""), Verdict(holds=False, text="")
    assert verdict_in_short(None) == verdict_in_short(Verdicts(mad=no)) == "–"
    assert verdict_in_short(Verdicts(mad=yes, weak=yes, strong=no)) == "collapses, weak prevention"
    assert verdict_in_short(Verdicts(weak=yes, strong=yes)) == "strong prevention"


def test_generations_are_thinned_with_both_ends() -> None:
    assert thinned(range(4)) == [0, 1, 2, 3]
    assert thinned(range(101), 6) == [0, 20, 40, 60, 80, 100]
