"""The summary of a pollution experiment: what its ``summary.json`` holds, and its closing table."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from sims.data.dataset import Dataset
from sims.experiments.loop.options import STANDARD, PollutionOptions, is_guided
from sims.experiments.loop.summary import LABELS, about, interval_of, plus_minus
from sims.files import write_atomic
from sims.metrics.intervals import paired_interval, paired_ratio_interval
from sims.runs.directory import Run
from sims.scoring.judge import Judge

COMPARED = ("fd", "fd_held_out", "check_fd", "check_fd_held_out")
Results = list[list[dict[str, Any]]]  # one per repeat: the entry of every level


def pollution_summary(
    run: Run, options: PollutionOptions, judge: Judge, results: Results, data: tuple[Dataset, Dataset]
) -> dict[str, Any]:
    """The summary of a pollution experiment; writes ``metrics.jsonl`` as well."""
    if run.is_main:
        _write_rows(run, results)
    names = list(results[0][0]["arms"])
    span = range(len(options.levels))
    figures = list(results[0][0]["arms"][STANDARD]["figures"])
    table = {
        figure: {
            name: [[r[level]["arms"][name]["figures"][figure] for r in results] for level in span] for name in names
        }
        for figure in figures
    }
    guided = [name for name in options.remedies if is_guided(name)]
    compared = _compared(options, table, guided)
    conclusion = _conclusion(compared, table, guided)
    return {
        "format": 1,
        "experiment": "pollution",
        "title": f"{data[0].name} polluted by an earlier model's samples",
        "headline": conclusion,
        **about(run, options, judge, data),
        "levels": list(options.levels),
        "repeats": len(results),
        "arms": [_arm(name, results, guided) for name in names],
        "table": table,
        "shares": {
            name: [np.mean([r[level]["arms"][name]["shares"] for r in results], axis=0).tolist() for level in span]
            for name in names
        },
        "accounting": [{"level": entry["level"], "used": entry["accounting"]} for entry in results[0]],
        "strengths": {name: _strengths(name, results, figures) for name in guided},
        "trusted": {name: _trusted(name, results) for name in guided},
        "comparisons": compared,
        "conclusion": conclusion,
        "rows": [],
    }


def _arm(name: str, results: Results, guided: list[str]) -> dict[str, Any]:
    """An arm: its strength at every level and repeat, and what it cost (the same at all levels)."""
    entries = [[repeat[level]["arms"][name] for repeat in results] for level in range(len(results[0]))]
    method = name.removesuffix("-trusted")
    how = "chosen by trusted images" if name != method else "chosen by the clean data"
    return {
        "name": name,
        "label": f"{method}, w {how}" if method in guided else LABELS[name],
        "method": {"standard": "base", "standard-equal": "continued"}.get(method, method),
        "w": [[entry["w"] for entry in row] for row in entries],
        "cost": {**entries[0][0]["cost"], "nfe": entries[-1][0]["nfe"]},
    }


def _strengths(name: str, results: Results, figures: list[str]) -> dict[str, Any]:
    """Every figure over w: figure -> level -> strength -> the value of each repeat; and the strengths chosen."""
    keys = list(results[0][0]["strengths"][name])
    span = range(len(results[0]))
    curves = {
        figure: [[[r[level]["strengths"][name][w][figure] for r in results] for w in keys] for level in span]
        for figure in figures
    }
    picked = [[repeat[level]["choices"][name]["chosen"] for repeat in results] for level in span]
    edge = [[w == max(map(float, keys)) for w in row] for row in picked]
    return {"w": [float(w) for w in keys], "figures": curves, "chosen": picked, "at_edge": edge}


def _trusted(name: str, results: Results) -> dict[str, Any]:
    """The rule's choices and how far its FD is from the oracle's, and the same for other numbers of trusted images."""
    span = range(len(results[0]))
    choices = [[repeat[level]["choices"][name] for repeat in results] for level in span]
    sizes = list(choices[0][0]["reliability"])
    return {
        "size": choices[0][0]["trusted"]["size"],
        "features": choices[0][0]["rule_features"],
        "w": [[choice["trusted"]["w"] for choice in row] for row in choices],
        "ratio": [[choice["trusted"]["ratio"] for choice in row] for row in choices],
        "details": [[choice["trusted"] for choice in row] for row in choices],
        "sizes": [int(size) for size in sizes],
        "reliability": [[[choice["reliability"][size] for choice in row] for size in sizes] for row in choices],
    }


def _compared(options: PollutionOptions, table: dict[str, Any], guided: list[str]) -> list[dict[str, Any]]:
    """Each guided arm against standard training at every level, and against the clean first generation, paired."""
    entries = []
    names = [arm for name in guided for arm in (name, f"{name}-trusted")]
    for name in names:
        for figure in [figure for figure in ("fd", "fd_held_out", "check_fd", "check_fd_held_out") if figure in table]:
            rows = table[figure]
            for level, percent in enumerate(options.levels):
                ours, theirs = rows[name][level], rows[STANDARD][level]
                entry: dict[str, Any] = {"a": name, "b": STANDARD, "metric": figure, "level": percent}
                entry["mean"] = [float(np.mean(ours)), float(np.mean(theirs))]
                if len(ours) > 1:
                    entry["difference"] = asdict(paired_interval(ours, theirs))
                    entry["change_percent"] = asdict(paired_ratio_interval(ours, theirs))
                    entry["better"] = entry["difference"]["high"] < 0
                if options.levels[0] == 0:
                    ratios = [value / first for value, first in zip(ours, rows[STANDARD][0])]
                    entry["over_clean"] = interval_of(ratios)
                entries.append(entry)
    return entries


def _conclusion(compared: list[dict[str, Any]], table: dict[str, Any], guided: list[str]) -> str:
    lines = []
    for name in guided:
        found = [e for e in compared if e["a"] == name and e["metric"] == "fd" and e["level"] > 0]
        if not found:
            continue
        last = found[-1]
        text = f"With {last['level']:g} % synthetic samples, FD to train is {last['mean'][1]:.2f} for standard training"
        text += f" and {last['mean'][0]:.2f} for {name}"
        if "over_clean" in last:
            text += f" ({last['over_clean']['mean']:.2f} times the clean first generation's)"
        if "better" in last:
            better = [f"{e['level']:g}" for e in found if e["better"]]
            whole = (
                "every level above 0"
                if len(better) == len(found)
                else f"{', '.join(better)} %"
                if better
                else "no level"
            )
            text += f"; {name} is significantly better at {whole}"
        lines.append(f"{text}.")
    return " ".join(lines)


def _write_rows(run: Run, results: Results) -> None:
    """``metrics.jsonl``: a self-describing row for every figure of every arm, level and repeat."""
    lines = [
        json.dumps({"repeat": index, "arm": name, "level": entry["level"], "w": arm["w"], **row})
        for index, repeat in enumerate(results)
        for entry in repeat
        for name, arm in entry["arms"].items()
        for row in arm["rows"]
    ]
    write_atomic(run.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())


def pollution_table(summary: dict[str, Any]) -> Table:
    """The table that closes a pollution experiment: FD to train and test of every arm at every level."""
    table = Table(title=Text(summary["title"]), title_justify="left", header_style="dim")
    table.add_column("synthetic", justify="right")
    for arm in summary["arms"]:
        table.add_column(Text(f"{arm['name']}: FD train"), justify="right")
        table.add_column("FD test", justify="right")
    fd = [summary["table"].get(figure) for figure in ("fd", "fd_held_out")]
    for level, percent in enumerate(summary["levels"]):
        cells = [plus_minus(rows[arm["name"]][level]) if rows else "–" for arm in summary["arms"] for rows in fd]
        table.add_row(f"+{percent:g} %", *cells)
    return table
