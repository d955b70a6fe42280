"""The page of distribution control: everything that the summary says appears, and what it lacks disappears."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sims.cli import main
from sims.report import write_report
from sims.runs.directory import Run

ALL = ["proportions", "table", "cost", "samples", "groups", "solver", "classifiers", "reproduce"]
TARGET = [0.2, 0.3, 0.5]
BASE = [0.02, 0.38, 0.6]


def shares(values: list[float], tv: float, kl: float | None = 0.01, half: float = 0.01) -> dict[str, Any]:
    low, high = [max(0.0, value - half) for value in values], [min(1.0, value + half) for value in values]
    kls = {"value": kl, "low": None, "high": None} if kl is None else {"value": kl, "low": 0.0, "high": 2 * kl}
    return {
        "values": values,
        "low": low,
        "high": high,
        "n": 400,
        "tv": {"value": tv, "low": tv - half, "high": tv + half},
        "kl": kls,
    }


def make_row(
    label: str, values: list[float], tv: float, fd: float, nfe: float, names: list[str], **more: Any
) -> dict[str, Any]:
    groups = [
        {"value": name, "n": 15 + k, "fd": fd + k, "precision": 0.5, "recall": 0.4} for k, name in enumerate(names)
    ]
    return {
        "label": label,
        "w": 2.0,
        "nfe": nfe,
        "cost": {"images": 100, "evaluations": 700, "labelled": 2_400, "total": 12_800},
        "note": "",
        "drawn": None,
        "n": 400,
        "proportions": shares(values, tv),
        "draws": 2,
        "samples_per_draw": 200,
        "fd_target": {"mean": fd, "low": fd - 0.5, "high": fd + 0.5, "min": fd},
        "fd_held_out_target": {"mean": fd + 1, "low": None, "high": None},
        "groups": groups,
        **more,
    }


def make_summary(names: list[str], target: list[float], base: list[float]) -> dict[str, Any]:
    tv = float(np.abs(np.subtract(base, target)).sum() / 2)
    size = len(names)
    confusion = (np.eye(size, dtype=int) * 98 + 1).tolist()
    never = {"nfe": 20.0, "times": 0.9, "break_even": None}
    entry = {"w": 2.0, "proportions": base, "limited": False, "samples": 600, "n": 400, "candidates_per_sample": 1.25}
    return {
        "format": 1,
        "experiment": "shift",
        "title": "digits: proportions to a target",
        "headline": f"target met: total variation {tv:.3f} -> 0.012",
        "warnings": ["worse than the base within 'a': FD 8.00 -> 9.00", "worse than the base within 'b': FD 1 -> 2"],
        "improved": "steered (cached)",
        "attribute": {"name": "shape", "values": names},
        "target": target,
        "real": {"counts": [10] * size, "shares": target},
        "data": {"name": "digits", "num_train": 1437, "num_base_train": 1378, "imbalance": "0=0.06"},
        "extractor": {"name": "pca", "num_features": 64},
        "classifiers": {
            role: {"accuracy": 0.98, "confusion": confusion, "hash": "abc"} for role in ("steering", "judging")
        },
        "solver": {
            "base": {"values": base},
            "reach": {"far": names[:1], "expected": target},
            "met": True,
            "reason": "met: the target lies within the intervals",
            "rounds": [
                {**entry, "round": 1, "values": base, "tv": 0.1, "fd_target": 8.5, "chosen": False},
                {**entry, "round": 1, "w": 3.0, "values": target, "tv": 0.01, "fd_target": 7.5, "chosen": True},
                {**entry, "round": 2, "values": target, "tv": 0.02, "fd_target": None, "limited": True},
            ],
        },
        "rows": [
            make_row("base", base, tv, 8.0, 11, names),
            make_row("steered", target, 0.012, 7.0, 22, names),
            make_row("steered (cached)", target, 0.014, 7.1, 13.5, names, note="correction reused"),
            make_row("fine-tuning", target, 0.011, 9.0, 11, names, w=None),
            make_row("rejection", target, 0.002, 7.7, 94.3, names, note="400 of the base's 3,419 samples", drawn=3_419),
        ],
        "costs": [
            {
                "label": "steered",
                "nfe": 22,
                "cost": 12_800,
                "rejection": {"nfe": 94.29, "times": 4.2857, "break_even": 1_611},
                "rejection_at_equal_error": {"nfe": 41.0, "times": 1.8617, "break_even": 6_141},
            },
            {
                "label": "steered (cached)",
                "nfe": 13.5,
                "cost": 12_900,
                "rejection": {"nfe": None, "times": None, "break_even": None},
                "rejection_at_equal_error": never,
            },
        ],
        "commands": ["sims shift --imbalance 0=0.06"],
    }


def summary() -> dict[str, Any]:
    return make_summary(["ring", "bar", "rest"], TARGET, BASE)


def make_grids(labels: list[str], values: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    keys = [*labels, *(f"{label}#{value}" for label in labels for value in range(values))]
    return {key: rng.integers(0, 256, (8, 8, 8, 1), np.uint8) for key in keys}


def page(folder: Path, summary: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> str:
    (folder / "summary.json").write_text(json.dumps(summary))
    if arrays:
        np.savez(folder / "grids.npz", seeds=np.arange(8), **arrays)  # type: ignore[arg-type]
    return write_report(folder).read_text()


def sections(html: str) -> list[str]:
    return re.findall(r'<section[^>]* id="([^"]+)"', html)


def section(html: str, name: str) -> str:
    """The text of one section, without tags."""
    return " ".join(re.sub(r"<[^>]+>", " ", html.split(f'<section id="{name}">')[1].split("</section>")[0]).split())


def test_page_says_all_of_the_summary(tmp_path: Path) -> None:
    grids = make_grids(["base", "steered", "steered (cached)"], 3)
    grids["steered#1"] = grids["steered#1"][:0]  # no sample of this value
    html = page(tmp_path, summary(), grids)
    assert sections(html) == ALL
    head = " ".join(html.split("<nav")[0].split())
    for text in (
        "<b>0.012</b>",
        "the base: 0.180 [0.170, 0.190]",
        "95 %: 0.002 to 0.022",
        "the two 95 % intervals do not meet",
        "Nearer still: fine-tuning (0.011), rejection (0.002).",
        "Share of ring",
        "FD 8.00 → 9.00; &#39;b&#39;",
        "Saved as improved/",
    ):
        assert text in head, text
    told = {
        "proportions": [
            "training data were cut (0=0.06) to 1378 images",
            "2.0 % [1.0, 3.0]",
            "Shares of the baselines",
        ],
        "table": ["0.180 [0.170, 0.190]", "7.00 ± 0.50", "saved as improved/; correction reused", "12.8k"],
        "cost": ["1.86×", "4.29×", "6141", "1611", "– never", "– never delivers", "400 of the base&#39;s"],
        "samples": ["steered (cached)", "ring, base", "rest, steered", "Seeds 0–7"],
        "groups": ["FD is no worse than the base’s within any of the 3 groups", "no worse"],
        "solver": [
            "Why it stopped: met",
            "nevertheless: ring.",
            "chosen",
            "as far as the limits",
            "round 2",
            "Shares that",
        ],
        "classifiers": ["98.0 %", "ring: 98.0 %", "What they mistake for what"],
        "reproduce": ["sims shift --imbalance 0=0.06"],
    }
    for name, texts in told.items():
        for text in texts:
            assert text in section(html, name), (name, text)
    assert "700 evaluations, 2400 images labelled" in html
    assert "bar, steered" not in section(html, "samples") and "bar, base" in section(html, "samples")
    assert "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html


def test_no_success_is_claimed_where_intervals_do_not_show_one(tmp_path: Path) -> None:
    found = summary()
    found["rows"][1]["proportions"] = shares(BASE, 0.175)
    html = page(tmp_path, found)
    assert "but the 95 % intervals overlap" in html and 'class="big unsure"' in html
    found["rows"][1]["proportions"] = shares(BASE, 0.4)
    found["rows"][1]["fd_target"]["mean"] = 9.5
    html = page(tmp_path, found)
    assert "no nearer to the target than the base" in html and 'class="big unsure"' in html
    assert "is higher (8.00 → 9.50)" in html


def test_groups_that_became_worse_are_named(tmp_path: Path) -> None:
    found = summary()
    found["rows"][1]["groups"][1] |= {"fd": 99.0, "recall": 0.1}
    found["rows"][1]["groups"][2]["fd"] = None
    text = section(page(tmp_path, found), "groups")
    assert "Worse FD than the base within: bar." in text and "worse FD, lower recall" in text
    assert text.count("no worse") == 1, "what was not measured is not said to be no worse"


@pytest.mark.parametrize(
    ("part", "gone"),
    [
        ("costs", ["cost"]),
        ("solver", ["solver"]),
        ("classifiers", ["classifiers"]),
        ("commands", ["reproduce"]),
        ("rows", ["proportions", "table", "samples", "groups"]),
        ("attribute", ["proportions"]),
        ("target", []),
        ("real", []),
        ("warnings", []),
        ("improved", []),
        ("data", []),
    ],
)
def test_a_section_disappears_with_its_part(tmp_path: Path, part: str, gone: list[str]) -> None:
    found = summary()
    del found[part]
    html = page(tmp_path, found, make_grids(["base", "steered"], 3))
    assert sections(html) == [name for name in ALL if name not in gone]


def test_page_of_a_bare_summary(tmp_path: Path) -> None:
    assert sections(page(tmp_path, {"format": 1, "experiment": "shift"})) == []


def nothing(value: Any) -> Any:
    """The same with null for every number."""
    if isinstance(value, dict):
        return {key: nothing(item) for key, item in value.items()}
    if isinstance(value, list):
        return [nothing(item) for item in value]
    return value if isinstance(value, (str, bool)) else None


def without(value: Any) -> Any:
    """The same with nothing but the names in every table."""
    if isinstance(value, dict):
        return {key: without(item) for key, item in value.items() if key in ("label", "value")}
    return [without(item) for item in value] if isinstance(value, list) else value


def test_missing_figures_are_dashes(tmp_path: Path) -> None:
    found = summary()
    for part in ("rows", "costs", "solver", "classifiers", "target", "real", "data"):
        found[part] = nothing(found[part])
    html = page(tmp_path, found)
    assert sections(html) == [name for name in ALL if name not in ("proportions", "samples")]
    assert "nan" not in html and "None" not in html


def test_bare_rows_make_a_page(tmp_path: Path) -> None:
    found = summary()
    rows, costs = without(found["rows"]), without(found["costs"])
    html = page(tmp_path, {**found, "rows": [*rows, {}, {"label": "x", "proportions": None}], "costs": costs})
    assert "never" not in section(html, "cost") and "table" in sections(html)


def test_some_figures_are_missing(tmp_path: Path) -> None:
    found = summary()
    found["rows"][0]["proportions"]["kl"] = {"value": None, "low": None, "high": None}
    found["rows"][1]["proportions"]["low"] = None
    found["rows"][2]["proportions"]["values"] = [0.5]
    found["rows"][3]["fd_target"] = None
    assert sections(page(tmp_path, found)) == [name for name in ALL if name != "samples"]


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = '<b>x</b>"><script>alert(1)</script> $\\frac$ &amp;'
    found = json.loads(json.dumps(summary()).replace('"ring"', json.dumps(evil)))
    found["rows"].append({**found["rows"][3], "label": evil, "note": evil})
    found["costs"].append({**found["costs"][0], "label": evil})
    found["classifiers"][evil] = found["classifiers"]["steering"]
    found |= {"title": evil, "headline": evil, "warnings": [evil], "improved": evil}
    found["attribute"]["name"] = found["solver"]["reason"] = found["data"]["imbalance"] = evil
    html = page(tmp_path, found, make_grids(["base", "steered"], 3))
    assert "<b>x" not in html and "<script" not in html and "&lt;script" in html


@pytest.mark.parametrize("size", [1, 40])
def test_any_number_of_values(tmp_path: Path, size: int) -> None:
    names = [f"a value with a long name, number {k}" for k in range(size)]
    rng = np.random.default_rng(0)
    found = make_summary(names, [1 / size] * size, rng.dirichlet(np.ones(size)).tolist())
    html = page(tmp_path, found, make_grids(["base", "steered"], size))
    assert sections(html) == ALL
    assert all(name in section(html, "proportions") for name in names)
    assert ("values that the target changes most" in html) == (size == 40)
    assert len(re.findall(r'<div class="strip">', html)) <= 2 + 24


def test_the_command_writes_the_page_at_its_end_and_where_a_finished_run_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def finish(options: Any, run: Run) -> dict[str, Any]:
        (run.path / "summary.json").write_text(json.dumps(summary()))
        return summary()

    monkeypatch.setattr("sims.experiments.shift.command.run_shift", finish)
    file = tmp_path / "run" / "report.html"
    for _ in range(2):
        assert main(["shift", "--run", str(tmp_path / "run")]) == 0
        assert f"report: {file}" in capsys.readouterr().err.replace("\n", "")
        assert sections(file.read_text())[0] == "proportions"
        file.unlink()
