"""The notebook runs and shows what the committed one shows; models, results and scores show themselves, as text."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import pages
import sims
from sims import notebook
from sims.model import load
from sims.results.common import Row
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from test_report_kinds import published

HOSTILE = "<script>alert(1)</script>\x1b[2J"
TAGS = {"div", "b", "table", "tr", "th", "td", "p"}


class Tags(HTMLParser):
    """The tags and the text of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not attrs
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += f"{data}\n"


def shown(thing: Any) -> Tags:
    """What a notebook shows of a thing: a table, no control characters, nothing but the tags of tables."""
    found = Tags(thing._repr_html_())
    assert "table" in found.tags and set(found.tags) <= TAGS
    assert "\x1b" not in found.text
    return found


def kinds(cells: list[Any]) -> list[list[str]]:
    """What every cell of code shows: names of errors, streams, or kinds of data."""
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    return [
        [kind for output in cell["outputs"] for kind in output.get("data", [output["output_type"]])] for cell in code
    ]


def test_the_notebook_runs_and_shows_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason="needs the packages of the tests: pip install '.[test]'")
    monkeypatch.syspath_prepend(pages.ROOT / "benchmarks")
    runner = importlib.import_module("notebook")
    kept = json.loads(runner.NOTEBOOK.read_text(encoding="utf-8"))
    fresh = runner.executed(tmp_path)
    expected = [["text/html"], ["image/png"], ["image/png"], ["image/png"], ["text/html"]]
    assert kinds(fresh.cells) == kinds(kept["cells"]) == expected
    assert runner.NOTEBOOK.stat().st_size < runner.LARGEST
    assert [cell["source"] for cell in fresh.cells] == ["".join(cell["source"]) for cell in kept["cells"]]
    for cells in (fresh.cells, kept["cells"]):
        table = "".join(cells[-2]["outputs"][0]["data"]["text/html"])
        assert "model (the first) is better than model (the second) in fd_held_out" in table
    assert str(Path.home()) not in json.dumps(kept) and "/tmp" not in json.dumps(kept)


def test_a_model_shows_what_it_is(model: Path) -> None:
    base = load(model)
    text = shown(base).text
    for words in ("1 × 8 × 8", "heun, 5 steps, 9 evaluations", base.hash, "digits"):
        assert words in text
    guided = shown(base.guided(base, 1.0)).text
    assert "extrapolation" in guided and "18 evaluations" in guided
    assert "cannot be saved" in shown(base.with_denoiser(sims.as_denoiser(lambda x, s: x, data_shape=(1, 8, 8)))).text
    named = replace(base, class_names=(HOSTILE,) * 10, provenance={HOSTILE: HOSTILE})
    assert "<script>alert(1)</script>\\x1b[2J" in shown(named).text
    assert base.sheet(range(6), columns=3).size == (3 * 66 - 2, 2 * 66 - 2)


def test_every_published_result_shows_itself() -> None:
    for name, result in published().items():
        found = shown(result)
        assert result.headline.split("\n")[0] in found.text, name
        assert found.tags.count("tr") > 1, name


def test_a_result_shows_its_rows_and_no_markup_of_theirs(finished: Path) -> None:
    result = read_result(finished, ImproveResult)
    text = shown(result).text
    assert all(row.label in text for row in result.rows) and "FD to held-out ↓" in text
    hostile = replace(
        result, title=HOSTILE, headline=HOSTILE, warnings=(HOSTILE,), rows=(Row(label=HOSTILE, method="base"),)
    )
    assert shown(hostile).text.count("<script>") == 4


def test_scores_show_figures_floors_and_verdicts(real: Any, tmp_path: Path) -> None:
    train, test = real
    how: dict[str, Any] = {"options": {"extractor": "pca", "metrics": ["fd"]}, "cache": tmp_path, "quiet": True}
    both = sims.compare([test, replace(test, name=HOSTILE)], train, **how)
    text = shown(both).text
    assert "real against real" in text and notebook.printable(both.differences[0].verdict) in text
    assert shown(both.scores[1]).text.count("<script>") >= 1
    assert "<script>" in shown(both.scores[1].rows[0]).text
    assert "(the first)" not in text and "(the second)" in shown(replace(both, scores=both.scores[:1] * 2)).text


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (None, None, "–"),
        (0.0, None, "0"),
        (-1.5, None, "−1.5"),
        (312.345, 2.345, "312.3 ± 2.3"),
        (0.5, 0.0123, "0.500 ± 0.012"),
    ],
)
def test_numbers(value: float | None, half: float | None, text: str) -> None:
    assert notebook.number(value, half) == text
