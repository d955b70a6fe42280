"""The report: self-contained, honest about what is missing, and safe to open whatever the names in the run are."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from sims.report.plots import cache_levels
from sims.report.record import base_row, change_interval, look, read_record

from sims.errors import UserError
from sims.report import closing_table, write_report
from sims.report.numbers import count, duration, signed_percent
from sims.report.palette import KNOWN, SPARE, THEME

METHODS = (  # method, label, w, budget, nfe, FD train, FD test
    ("base", "Base", 0.0, None, 35, 19.24, 19.01),
    ("sims", "SIMS", 4.0, 256_000, 70, 11.02, 10.71),
    ("cached", "SIMS, cached", 3.0, 256_000, 44, 12.15, 11.79),
    ("distilled", "SIMS, distilled", None, 256_000, 35, 11.6, 11.4),
    ("neon", "Neon", 1.0, 64_000, 35, 17.9, 17.7),
    ("autoguidance", "Autoguidance", 2.0, None, 70, 13.4, 13.2),
    ("control", "Control: real-data fine-tune", 1.0, 256_000, 70, 19.10, None),
)


def spread(value: float | None, half: float) -> dict[str, float] | None:
    return None if value is None else {"mean": value, "low": value - half, "high": value + half}


def make_row(
    method: str, label: str, w: float | None, budget: int | None, nfe: int, train: float, test: float | None
) -> dict[str, Any]:
    return {
        "method": method,
        "label": label,
        "w": w,
        "budget": budget,
        "nfe": nfe,
        "fd": spread(train, 0.15),
        "fd_held_out": spread(test, 0.2),
        "precision": spread(0.71 - 0.002 * train, 0.006),
        "recall": spread(0.75 - 0.01 * train, 0.008),
        "memorized": spread(0.009 + 0.0001 * (35 - train), 0.002),
        "distance_ratio": 1.02,
        "seconds_per_1000": 0.08 * nfe,
        "extra_training_images": budget,
        "draws": 3,
        "samples_per_draw": 10_000,
        "note": "weights edited, nothing added at inference" if method == "neon" else "",
        "per_class": [
            {"class": k, "share": 0.1 + 0.004 * math.sin(k), "agreement": 0.8, "fd": train + 9 + k} for k in range(10)
        ]
        if method in ("base", "sims")
        else [],
    }


def search_cells() -> list[dict[str, Any]]:
    best = {"sims": (11.0, 3.6), "neon": (17.6, 1.0), "autoguidance": (13.3, 2.2)}
    cells: list[dict[str, Any]] = [{"method": "base", "budget": None, "w": 0.0, "n": 5000, "fd": 19.6}]
    for method, (low, at) in best.items():
        for step, budget in enumerate((64_000, 128_000, 256_000)):
            for n in (2000, 5000):
                for w in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0)[:: 1 if n == 2000 else 2]:
                    fd = low + (2 - step) * 0.9 + (19.6 - low) * ((w / at) - 1) ** 2 + 3000 / n
                    cells.append({"method": method, "budget": budget, "w": w, "n": n, "fd": min(fd, 60.0)})
    return cells


def make_summary() -> dict[str, Any]:
    levels = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)]
    rows = [make_row(*item) for item in METHODS]
    return {
        "format": 1,
        "title": "CIFAR-10 in 8×8 grey, improved with its own samples",
        "headline": "SIMS lowers the Fréchet distance by 43 % with nothing but the model’s own samples.",
        "verified": True,
        "warnings": [],
        "data": {
            "name": "cifar10 8×8 grey",
            "num_train": 50_000,
            "num_test": 10_000,
            "shape": [1, 8, 8],
            "num_classes": 10,
            "conditional": True,
        },
        "extractor": {"name": "small classifier", "hash": "a1b2c3d4e5f60718", "num_features": 64, "accuracy": 0.53},
        "floor": {
            "fd": 0.34,
            "n_train": 50_000,
            "n_test": 10_000,
            "text": "No model can be expected below 0.34: that is real against real.",
        },
        "rows": rows,
        "search": {
            "samples": 5000,
            "grid_samples": 2000,
            "seconds": 212.0,
            "extended": True,
            "chosen": {"sims": {"budget": 256_000, "w": 4.0}, "neon": {"budget": 64_000, "w": 1.0}},
            "cells": search_cells(),
        },
        "costs": {
            "base_training_images": 1_536_000,
            "synthesized": 10_000,
            "synthesis_evaluations": 350_000,
            "auxiliary_images": 256_000,
            "search_evaluations": 8_400_000,
            "distillation_images": 64_000,
        },
        "cache": {
            "levels": levels,
            "refresh": [i % 4 == 0 for i in range(18)],
            "solver": "Heun, 18 steps",
            "nfe_base": 35,
            "nfe_full": 70,
            "nfe_cached": 44,
            "retained_train": 0.86,
            "retained_test": 0.87,
            "cheapest": {"text": "refresh every 6th level", "nfe": 41},
        },
        "rounds": [
            {
                "round": 1,
                "rows": [make_row(*METHODS[0]), make_row(*METHODS[1])],
                "accepted": True,
                "reason": "FD test fell by 43 %",
            },
            {
                "round": 2,
                "rows": [
                    make_row("base", "Base", 0.0, None, 35, 11.6, 11.4),
                    make_row("sims", "SIMS", 1.0, 64_000, 70, 11.5, 11.6),
                ],
                "accepted": False,
                "reason": "the interval includes zero",
            },
        ],
        "comparisons": [
            {
                "a": "SIMS",
                "b": "Base",
                "metric": "fd",
                "difference": {"mean": -8.22, "low": -8.4, "high": -8.03},
                "verdict": "SIMS is better",
            },
            {
                "a": "SIMS",
                "b": "Base",
                "metric": "fd_held_out",
                "difference": {"mean": -8.3, "low": -8.6, "high": -8.0},
                "verdict": "SIMS is better",
            },
            {
                "a": "Control: real-data fine-tune",
                "b": "Base",
                "metric": "fd",
                "difference": {"mean": -0.14, "low": -0.35, "high": 0.07},
                "verdict": "no difference shown",
            },
        ],
        "commands": ["sims improve --data.path cifar10-8x8 --run runs/cifar", "sims sample runs/cifar/improved"],
        "config_toml": '[data]\nname = "cifar10-8x8"\n\n[train]\nsteps = 6000\nlr = 1e-3\n',
        "versions": {"sims": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "seconds": 1240.0,
        "stages": [
            {"name": "train", "seconds": 640.0},
            {"name": "synthesize", "seconds": 90.0},
            {"name": "search", "seconds": 212.0},
            {"name": "evaluate", "seconds": 298.0},
        ],
    }


def make_grids(side: int = 8, channels: int = 1, num: int = 32) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:side, :side] / side
    phase = rng.uniform(0, 6, (num, 1, 1, channels))

    def images(frequency: float) -> np.ndarray:
        wave = np.sin(frequency * x[None, ..., None] * 6 + phase) + np.cos(5 * y[None, ..., None] + 2 * phase)
        return (127 + 55 * wave + rng.normal(0, 8, wave.shape)).clip(0, 255).astype(np.uint8)

    keys = {
        "base@0": 1.0,
        "sims@1": 1.05,
        "sims@2": 1.1,
        "sims@4": 1.2,
        "neon@1": 1.05,
        "cached@3": 1.15,
        "real": 1.3,
        "nearest": 1.2,
    }
    return {key: images(value) for key, value in keys.items()} | {"seeds": np.arange(num)}


def write_run(path: Path, summary: dict[str, Any], grids: dict[str, np.ndarray] | None = None) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    if grids is not None:
        np.savez(path / "grids.npz", **grids)  # type: ignore[arg-type]
    return path


@pytest.fixture
def summary() -> dict[str, Any]:
    """A run without the parts whose figures take long to draw; `full_page` has them all."""
    full = make_summary()
    full["search"]["cells"] = []
    return full


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = write_run(tmp_path_factory.mktemp("run"), make_summary(), make_grids())
    return write_report(run).read_text(encoding="utf-8")


def page_of(run: Path, summary: dict[str, Any], grids: dict[str, np.ndarray] | None = None) -> str:
    return write_report(write_run(run, summary, grids)).read_text(encoding="utf-8")


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


def test_every_figure_has_caption_and_alt(full_page: str) -> None:
    parsed = parse(full_page)
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    drawings = [attributes for tag, attributes in parsed.tags if tag == "svg"]
    assert len(images) >= 8 and all(item.get("alt") for item in images)
    assert len(drawings) >= 6 and all(item.get("role") == "img" and item.get("aria-label") for item in drawings)
    for figure in re.findall(r"<figure>(.*?)</figure>", full_page, flags=re.DOTALL):
        assert "<figcaption>" in figure or "<table>" in figure


def test_all_sections_appear_in_order(full_page: str) -> None:
    everything = [
        "samples",
        "results",
        "strength",
        "cost",
        "cache",
        "memorization",
        "classes",
        "rounds",
        "search",
        "reproduce",
    ]
    assert section_ids(full_page) == everything
    for text in (
        "−42.7 %",
        "95 %: −43.7 % to −41.7 % (paired difference)",
        "sims improve --data.path",
        "0.34",
        "11.02 ± 0.15",
    ):
        assert text in full_page


@pytest.mark.parametrize(
    ("part", "section"),
    [("cache", "cache"), ("rounds", "rounds"), ("search", "search"), ("search", "strength")],
)
def test_a_section_disappears_with_its_part(tmp_path: Path, summary: dict[str, Any], part: str, section: str) -> None:
    if section == "strength":
        for row in summary["rows"]:
            row["budget"] = None
    del summary[part]
    page = page_of(tmp_path, summary)
    assert section not in section_ids(page)
    parse(page)


def test_rows_alone_decide_classes_and_memorization(tmp_path: Path, summary: dict[str, Any]) -> None:
    for row in summary["rows"]:
        row |= {"per_class": [], "memorized": None, "distance_ratio": None, "fd_held_out": None}
    found = section_ids(page_of(tmp_path, summary))
    assert "classes" not in found and "memorization" not in found and "samples" not in found


def test_the_least_summary_still_makes_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path, {"format": 1, "rows": []})
    parse(page)
    assert section_ids(page) == []


def test_missing_figures_are_dashes(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["rows"][1]["precision"] = None
    summary["rows"][2]["fd"] = {"mean": math.nan, "low": math.nan, "high": math.nan}
    summary["cache"]["retained_train"] = math.inf
    page = page_of(tmp_path, summary)
    text = "".join(parse(page).text)
    assert not re.search(r"\b(nan|NaN|inf|None|null)\b", text)
    assert "–" in text


def test_unverified_and_warned_runs_say_so(tmp_path: Path, summary: dict[str, Any], full_page: str) -> None:
    assert "Not verified." not in full_page and "Warning." not in full_page
    summary |= {"verified": False, "warnings": ["the test set has 360 images only"]}
    page = page_of(tmp_path, summary)
    assert "but the run did not verify it" in page and 'class="big unsure"' in page
    assert "Not verified." in page and "the test set has 360 images only" in page


def test_no_improvement_is_not_sold_as_one(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary |= {"comparisons": [], "cache": None, "rounds": None, "search": None}
    for row in summary["rows"][1:]:
        row["fd"] = spread(19.2, 0.3)
    page = page_of(tmp_path, summary)
    assert "includes zero: no improvement is shown" in page and 'class="big unsure"' in page
    for row in summary["rows"][1:]:
        row["fd"] = spread(25.0, 0.3)
    assert "No method improved on the base." in page_of(tmp_path, summary)


def test_a_gain_on_training_images_alone_is_named(tmp_path: Path, summary: dict[str, Any]) -> None:
    summary["comparisons"] = []
    for row in summary["rows"][1:]:
        row["fd_held_out"] = spread(19.5, 0.3)
    assert "which no model has seen, no improvement is shown" in page_of(tmp_path, summary)


def test_a_difference_the_wrong_way_round_is_not_used(summary: dict[str, Any], tmp_path: Path) -> None:
    summary["comparisons"][0]["difference"] = {"mean": 8.22, "low": 8.03, "high": 8.4}
    record = read_record(write_run(tmp_path, summary))
    base = base_row(record.rows)
    assert base is not None
    found = change_interval(record, record.rows[1], base)
    assert found is not None and found[2] < 0 and not found[3]


def test_names_are_escaped(tmp_path: Path, summary: dict[str, Any]) -> None:
    evil = '<b>x</b>"><script>alert(1)</script> $\\frac$ &amp;'
    summary["data"]["name"] = summary["title"] = summary["headline"] = summary["config_toml"] = evil
    summary["warnings"] = [evil]
    summary["commands"] = [evil]
    summary["rounds"][0]["reason"] = summary["comparisons"][0]["verdict"] = evil
    for row in summary["rows"]:
        row["label"] += evil
        row["note"] = evil
        for item in row["per_class"]:
            item["class"] = f"{evil}{item['class']}"
    grids = make_grids()
    grids[f"{evil}@1"] = grids["base@0"]
    page = page_of(tmp_path, summary, grids)
    parsed = parse(page)
    assert "<b>x" not in page and "<script" not in page
    assert evil in "".join(parsed.text)


def test_one_colour_per_method_and_no_two_alike() -> None:
    for shade in (0, 1):
        colours = [item[shade] for item in [*KNOWN.values(), *SPARE, *THEME.values()]]
        assert len(colours) == len(set(colours))


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (32, 3), (256, 3)])
def test_images_of_any_size_fit(tmp_path: Path, summary: dict[str, Any], side: int, channels: int) -> None:
    least = {"format": 1, "title": "images", "rows": summary["rows"][:2]}
    page = page_of(tmp_path, least, make_grids(side, channels, 16 if side < 256 else 7))
    widths = [int(dict(a)["width"] or 0) for tag, a in parse(page).tags if tag == "img"]
    assert widths and max(widths) <= 900
    assert len(page) < 4_000_000


def test_report_replaces_the_old_one_at_once(
    tmp_path: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, {"format": 1, "rows": summary["rows"][:3], "cache": summary["cache"]})
    (run / "report.html").write_text("old")

    def fail(*_: Any) -> None:
        assert (run / "report.html").read_text() == "old"
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="disk full"):
            write_report(run)
    assert sorted(path.name for path in run.iterdir()) == ["report.html", "summary.json"]
    assert write_report(run) == run / "report.html"
    first = (run / "report.html").read_bytes()
    write_report(run)
    assert (run / "report.html").read_bytes() == first  # the same run is the same page


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "finished run"), ("{", "not valid JSON"), ("[]", "not written by sims"), ('{"format": 9}', "format 9")],
)
def test_unreadable_runs_are_user_errors(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "summary.json").write_text(text)
    with pytest.raises(UserError, match=message):
        write_report(tmp_path)
    (tmp_path / "summary.json").write_text('{"format": 1, "rows": []}')
    (tmp_path / "grids.npz").write_bytes(b"PK torn")
    with pytest.raises(UserError, match=r"grids\.npz cannot be read"):
        write_report(tmp_path)


def test_closing_table(summary: dict[str, Any]) -> None:
    summary["rows"][2]["label"] = "[red]cached"
    summary["rows"][3]["fd"] = math.nan
    console = Console(file=io.StringIO(), width=140, record=True)
    console.print(closing_table(summary))
    text = console.export_text()
    for piece in ("11.02 ± 0.15", "−42.7 %", "[red]cached", "256k", "–", "Base"):
        assert piece in text
    console.print(closing_table({}))


@pytest.mark.parametrize("width", [60, 80, 110])
def test_closing_table_keeps_the_method_and_the_distances_however_narrow(summary: dict[str, Any], width: int) -> None:
    for row in summary["rows"]:
        row["retained"] = {"fd": 0.5, "fd_held_out": None}
    summary["rows"][0]["retained"] = None
    console = Console(file=io.StringIO(), width=width, record=True)
    console.print(closing_table(summary))
    text = console.export_text()
    for row in summary["rows"]:
        assert row["label"] in text
    assert "11.02 ± 0.15" in text and "…" not in text
    assert ("budget" in text) == (width >= 110)


def test_variants_of_sims_look_different_and_keep_their_place(summary: dict[str, Any], tmp_path: Path) -> None:
    summary["rows"] = [dict(row) for row in summary["rows"][:3]]
    for row, label in zip(summary["rows"], ("base", "sims", "sims (cached)")):
        row |= {"label": label, "method": label.split()[0], "kid_held_out": 470215.8, "retained": {"fd": 0.87}}
    summary["rows"][1]["retained"] = {"fd": 1.0}
    summary["search"]["samples_by_method"] = {"sims": 4200}
    summary["cache"]["tried"] = [{"steps": 12, "refreshes": 4, "nfe": 16, "retained": 0.963}]
    images = np.zeros((4, 8, 8, 1), np.uint8)
    keys = ("base@0", "sims (cached)@4", "sims@4")
    np.savez(tmp_path / "grids.npz", seeds=np.arange(4), **dict.fromkeys(keys, images))  # type: ignore[arg-type]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    record = read_record(tmp_path)
    assert [look(row) for row in record.rows] == ["base", "sims", "cached"]
    page = write_report(tmp_path).read_text(encoding="utf-8")
    strips = re.findall(r'alt="Samples of ([^"]*?):', page)
    assert strips == ["base", "sims, w\u00a0=\u00a04", "sims (cached), w\u00a0=\u00a04"]
    for piece in ("KID test", "470k", "87 %", "96.3 %", "sims 4200"):
        assert piece in page


def test_levels_of_a_cache_merge_the_evaluations_that_share_one() -> None:
    assert cache_levels({"levels": [9, 3, 3, 1], "refresh": [1, 0, 1, 0]}) == ([9, 3, 1], [True, True, False])
    assert cache_levels({"levels": [9, 3], "refresh": [1]}) == ([], [])


def test_numbers() -> None:
    assert [count(v) for v in (360, 50_000, 1_536_000, None, math.nan)] == ["360", "50\u202f000", "1.54 M", "–", "–"]
    assert [duration(v) for v in (0.5, 42, 600, 7500, None)] == ["0.5 s", "42 s", "10 min", "2 h 05 min", "–"]
    assert [signed_percent(v) for v in (-42.72, 3.0, -0.01, None)] == ["−42.7 %", "+3.0 %", "0.0 %", "–"]


def test_import_loads_no_torch_and_no_matplotlib() -> None:
    code = "import sys, sims.report; print([m for m in ('torch', 'matplotlib', 'PIL', 'jinja2') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
