"""The page of loops and pollution: everything that the summary says appears, and what it lacks disappears."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sims.report.loops import band

from sims.report import write_report

ARMS = [
    {"name": "standard", "label": "standard", "method": "standard", "w": 0, "cost": {"images": 2_000, "seconds": 90.0}},
    {"name": "sims@1", "label": "SIMS, w = 1", "method": "sims", "w": 1.0, "cost": {"images": 2_500, "seconds": 120.0}},
]


def curves(places: int, repeats: int = 4) -> dict[str, dict[str, list[list[float]]]]:
    rng = np.random.default_rng(0)
    names = [arm["name"] for arm in ARMS]
    return {
        figure: {str(name): (start + rng.random((places, repeats))).tolist() for name in names}
        for figure, start in (("fd", 20.0), ("fd_held_out", 30.0), ("recall", 0.1))
    }


def loop_summary() -> dict[str, Any]:
    return {
        "format": 1,
        "experiment": "loop",
        "title": "Self-consuming loop on digits",
        "conclusion": "Standard training collapses; SIMS does not.",
        "kind": "augmentation",
        "generations": 3,
        "repeats": 4,
        "arms": ARMS,
        "curves": curves(4),
        "floor": {"fd_held_out": 12.0},
        "accounting": [
            {"generation": 1, "arm": "sims@1", "real": 1437, "fresh": 0, "synthetic": 99, "from": {"0": 99}}
        ],
        "verdicts": {"standard": {"mad": {"holds": True, "text": "slope 0.5 [0.4, 0.6]"}}},
        "commands": ["sims loop --data digits"],
    }


def pollution_summary() -> dict[str, Any]:
    return {
        "format": 1,
        "experiment": "pollution",
        "conclusion": "SIMS stays below standard training.",
        "levels": [0, 50, 200],
        "repeats": 4,
        "arms": ARMS,
        "table": curves(3),
        "strengths": {
            "sims": {"w": [0.5, 1.0], "figures": {"fd": [[[30.0], [20.0]], [[31.0], [21.0]], [[38.0], [25.0]]]}}
        },
        "trusted": {
            "sims": {
                "size": 100,
                "sizes": [25, 100],
                "ratio": [[1.02, 1.04]],
                "reliability": [[[{"ratio": 1.2, "ratio_90": 1.5, "within_10_percent": 0.5}], [{"ratio": 1.01}]]],
            }
        },
        "comparisons": [
            {
                "a": "sims@1",
                "b": "standard",
                "metric": "fd",
                "level": 50,
                "difference": {"mean": -9, "low": -12, "high": -6},
                "better": True,
                "over_clean": {"mean": 0.9, "low": 0.8, "high": 1.0},
            }
        ],
        "accounting": [{"level": 50, "used": {"real": 150, "0": 75}}],
    }


def page(folder: Path, summary: dict[str, Any], **arrays: np.ndarray) -> str:
    (folder / "summary.json").write_text(json.dumps(summary))
    if arrays:
        np.savez(folder / "grids.npz", **arrays)  # type: ignore[arg-type]
    return write_report(folder).read_text()


def sections(html: str) -> list[str]:
    return re.findall(r'<section[^>]* id="([^"]+)"', html)


def test_loop_page_says_all_of_the_summary(tmp_path: Path) -> None:
    images = {f"{arm['name']}@{place}": np.full((8, 8, 8, 1), 90, np.uint8) for arm in ARMS for place in (0, 3)}
    html = page(tmp_path, loop_summary(), **images)
    assert sections(html) == [
        "setting", "distances", "verdicts", "samples", "figures", "cost", "accounting", "reproduce",
    ]  # fmt: skip
    for text in ("Standard training collapses", "slope 0.5", "SIMS, w = 1, generation 3", "99 of generation 0"):
        assert text in html
    values = curves(4)["fd"]["sims@1"][-1]
    half = stats.t.ppf(0.975, 3) * np.std(values, ddof=1) / 2
    assert f"{np.mean(values):.2f} ± {half:.2f}" in html
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_pollution_page(tmp_path: Path) -> None:
    html = page(tmp_path, pollution_summary())
    assert sections(html) == ["setting", "distances", "levels", "figures", "strengths", "trusted", "cost", "accounting"]
    for text in ("−9.00 ± 3.00", "0.90 ± 0.10", "1.200", "50 %", "1.030 on average, 1.040 at worst"):
        assert text in html


def test_points_are_drawn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = {f"{arm['name']}@{place}": rng.normal(size=(50, 2)) for arm in ARMS for place in (0, 3)}
    html = page(tmp_path, loop_summary(), truth=rng.normal(size=(50, 2)), **points)
    assert "Scatter plots" in html


def test_page_of_a_bare_summary(tmp_path: Path) -> None:
    assert sections(page(tmp_path, {"format": 1, "experiment": "loop"})) == []


@pytest.mark.parametrize("values", [[], [None, float("nan")]])
def test_band_of_nothing(values: list[Any]) -> None:
    assert band(values) is None


def test_band_is_the_t_interval() -> None:
    values = [1.0, 2.0, 4.0, 9.0]
    found = band(values)
    low, high = stats.t.interval(0.95, 3, loc=4.0, scale=stats.sem(values))
    assert found is not None and (found.low, found.high) == pytest.approx((low, high))
