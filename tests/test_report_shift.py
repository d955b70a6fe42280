"""The page of distribution control: everything that the result says appears, and what it lacks disappears."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sims.report.page import render
from sims.report.shares import farthest
from sims.report.strips import Pictures, read_pictures
from sims.results.common import Figure
from sims.results.shift import STEERED, Bounded, Rejection, Shares, ShiftResult, ShiftRow
from sims.results.summaries import read_result

ALL = ["proportions", "table", "cost", "samples", "groups", "solver", "classifiers", "reproduce"]


@pytest.fixture(scope="module")
def result(finished_shift: Path) -> ShiftResult:
    return read_result(finished_shift, ShiftResult)


def steered(result: ShiftResult) -> ShiftRow:
    row = result.row(STEERED)
    assert row is not None
    return row


def changed(result: ShiftResult, which: str, **changes: object) -> ShiftResult:
    """The result with one row changed."""
    rows = tuple(replace(row, **changes) if row.label == which else row for row in result.rows)  # type: ignore[arg-type]
    return replace(result, rows=rows)


def away(result: ShiftResult, tv: float, low: float, high: float, fd: float = 1.0) -> ShiftResult:
    """The result as if the steered model were so far from the target; the base is 0.2 [0.18, 0.22] away, with FD 5."""
    for label, bounded, value in (("base", Bounded(0.2, 0.18, 0.22), 5.0), (STEERED, Bounded(tv, low, high), fd)):
        row = result.row(label)
        assert row is not None
        figures = row.figures | {"fd_target": Figure(value)}
        result = changed(result, label, proportions=replace(row.proportions, tv=bounded), figures=figures)
    return result


def sections(html: str) -> list[str]:
    return re.findall(r'<section[^>]* id="([^"]+)"', html)


def section(html: str, name: str) -> str:
    """The text of one section, without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.split(f'<section id="{name}">')[1].split("</section>")[0]).split())


def test_page_says_all_of_the_result(result: ShiftResult, finished_shift: Path) -> None:
    html = render(result, read_pictures(finished_shift))
    assert sections(html) == ALL
    row, base = steered(result), result.base
    tv = row.proportions.tv
    assert f"<b>{tv.value:.3f}</b>" in html and f"95 %: {tv.low:.3f} to {tv.high:.3f}" in html
    for label in [found.label for found in result.rows]:
        assert label in section(html, "table")
    told = section(html, "proportions")
    for place, name in enumerate(result.values):
        assert name in told and f"{100 * base.proportions.values[place]:.1f} %" in told
    assert result.data.imbalance in told and "Shares of the baselines" in told
    for saving in result.savings:
        even = saving.rejection_at_equal_error.break_even
        assert even is None or str(even) in section(html, "cost").replace("\u202f", "")
    assert result.solver.reason in section(html, "solver").replace("→", "->") or "target" in section(html, "solver")
    assert f"{100 * result.classifiers['judging'].accuracy:.1f} %" in section(html, "classifiers")
    assert "yes, steered" in section(html, "samples") and "yes, base" in section(html, "samples")
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


@pytest.mark.parametrize(
    ("tv", "low", "high", "fd", "words", "sure"),
    [
        (0.01, 0.0, 0.02, 1.0, "the two 95 % intervals do not meet. What is left may be error of measurement.", True),
        (0.17, 0.15, 0.19, 1.0, "but the 95 % intervals overlap. At least 0.150 is left.", False),
        (0.4, 0.3, 0.5, 9.5, "no nearer to the target than the base", False),
        (0.01, 0.0, 0.02, 9.5, "is higher (5.00 → 9.50)", True),
    ],
)
def test_no_success_is_claimed_where_intervals_do_not_show_one(
    result: ShiftResult, tv: float, low: float, high: float, fd: float, words: str, sure: bool
) -> None:
    html = render(away(result, tv, low, high, fd))
    assert words in html and ('class="big unsure"' in html) != sure


def test_baselines_that_came_nearer_are_named(result: ShiftResult) -> None:
    row = next(row for row in result.rows if row.label == "rejection")
    near = changed(result, "rejection", proportions=replace(row.proportions, tv=Bounded(0.001, 0.0, 0.002)))
    assert "Nearer still:" in render(near) and "rejection (0.001)" in render(near)


def test_groups_that_became_worse_are_named_and_their_warnings_are_one(result: ShiftResult) -> None:
    before = tuple(replace(group, fd=1.0, recall=0.5) for group in result.base.groups)
    after = tuple(replace(group, fd=fd, recall=0.1) for group, fd in zip(steered(result).groups, (9.0, None)))
    found = changed(changed(result, "base", groups=before), STEERED, groups=after)
    html = render(
        replace(found, warnings=("worse than the base within 'a': FD 8.00 -> 9.00", "worse than the base within 'b'"))
    )
    text = section(html, "groups")
    assert f"Worse FD than the base within: {before[0].value}." in text and "worse FD, lower" in text
    assert "no worse" not in text, "what was not measured is not said to be no worse"
    assert "Worse than the base within &#39;a&#39;: FD 8.00 → 9.00; &#39;b&#39;" in html


def test_what_rejection_never_delivers_is_said(result: ShiftResult) -> None:
    never = Rejection(nfe=None, times=None, break_even=None)
    dear = Rejection(nfe=20.0, times=0.9, break_even=None)
    savings = (replace(result.savings[0], rejection=never, rejection_at_equal_error=dear), *result.savings[1:])
    text = section(render(replace(result, savings=savings)), "cost")
    assert "– never delivers" in text and "– never " in text and "0.90×" in text


@pytest.mark.parametrize(("part", "gone"), [("savings", "cost"), ("classifiers", "classifiers")])
def test_a_section_disappears_with_its_part(result: ShiftResult, part: str, gone: str) -> None:
    empty = {} if part == "classifiers" else ()
    html = render(replace(result, **{part: empty}))  # type: ignore[arg-type]
    assert sections(html) == [name for name in ALL if name not in (gone, "samples")]


def test_names_are_escaped(result: ShiftResult) -> None:
    evil = '<b>x</b>"><script>alert(1)</script> $\\frac$ &amp;'
    found = changed(result, "fine-tuning", label=evil, note=evil)
    found = replace(found, title=evil, headline=evil, warnings=(evil,), attribute=evil, values=(evil, "no"))
    html = render(replace(found, classifiers={evil: result.classifiers["steering"]}))
    assert "<b>x" not in html and "<script" not in html and "&lt;script" in html


def test_any_number_of_values(result: ShiftResult) -> None:
    size = 40
    names = tuple(f"a value with a long name, number {k}" for k in range(size))
    even = (1 / size,) * size
    base = tuple(np.random.default_rng(0).dirichlet(np.ones(size)).tolist())

    def shares(values: tuple[float, ...]) -> Shares:
        limits = Bounded(0.1, 0.0, 0.2)
        return Shares(values=values, low=values, high=values, raw=values, n=400, tv=limits, kl=limits)

    rows = tuple(
        replace(row, proportions=shares(base if row is result.base else even), steering=shares(even))
        for row in result.rows
    )
    solver = replace(result.solver, base=shares(base), rounds=(), expected=even)
    confusion = (np.eye(size) * 98 + 1).tolist()
    classifiers = {role: replace(found, confusion=confusion) for role, found in result.classifiers.items()}
    many = replace(
        result, values=names, target=even, real_counts=(10,) * size, rows=rows, solver=solver, classifiers=classifiers
    )
    images = {f"{label}#{k}": np.zeros((8, 8, 8, 1), np.uint8) for label in ("base", STEERED) for k in range(size)}
    html = render(many, Pictures(images=images))
    assert all(name in section(html, "proportions") for name in names)
    assert "values that the target changes most" in html and len(farthest(many, 16)) == 16
    assert len(re.findall(r'<div class="strip">', html)) <= 24 + 24
