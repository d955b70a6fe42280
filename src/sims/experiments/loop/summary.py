"""The summary of a loop or of a pollution experiment: what ``summary.json`` holds, and a closing table."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from sims.config import to_dict, to_toml
from sims.data.dataset import Dataset
from sims.experiments.loop import verdicts
from sims.experiments.loop.counts import Counts
from sims.experiments.loop.options import EQUAL, STANDARD, STEPS, CommonOptions, LoopOptions, is_guided
from sims.files import write_atomic
from sims.metrics.intervals import paired_interval, t_interval
from sims.runs.directory import Run, command_line
from sims.scoring.judge import Judge

if TYPE_CHECKING:
    from sims.experiments.loop.models import Arm

Results = list[dict[str, list[dict[str, Any]]]]  # one per repeat: arm -> entry of every generation
LABELS = {
    STANDARD: "standard training",
    EQUAL: "standard training, equal compute",
    STEPS: "standard training, twice the steps",
}


def label(arm: Arm) -> str:
    """An arm in words."""
    return LABELS.get(arm.remedy) or f"{arm.remedy}, w = {arm.w:g}"


def about(run: Run, options: CommonOptions, judge: Judge, data: tuple[Dataset, Dataset]) -> dict[str, Any]:
    """What every summary says: data, features, floor, command, options and versions."""
    train, test = data
    versions = {"sims": version("sims-diffusion"), "torch": torch.__version__, "python": platform.python_version()}
    names = list(train.class_names)
    return {
        "data": {
            "name": train.name,
            "num_train": len(train),
            "num_test": len(test),
            "shape": list(train.data_shape),
            "num_classes": train.num_classes,
            "conditional": options.data.conditional,
            "class_names": names,
            "class_shares": _class_shares(train),
        },
        "extractor": asdict(judge.about()),
        "floor": {
            "fd": judge.floor,
            "perfect": judge.perfect(options.evaluation.samples),
            "n_train": len(train),
            "n_test": len(test),
            "text": f"real against real: {len(train):,} training images against {len(test):,} held-out ones",
        },
        "commands": [command_line()],
        "config_toml": to_toml(to_dict(options)),
        "versions": versions,
    }


def _class_shares(data: Dataset) -> list[float]:
    if data.labels is None:
        return []
    labels = data.labels[data.labels >= 0]
    return (np.bincount(labels, minlength=data.num_classes) / max(1, len(labels))).tolist()


def interval_of(values: Sequence[float]) -> dict[str, float | None]:
    """Mean and 95 % interval over repeats; no limits for a single one."""
    if len(values) < 2:
        return {"mean": float(values[0]), "low": None, "high": None}
    found = t_interval(values)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def curves_of(results: Results, arms: Sequence[Arm]) -> dict[str, dict[str, list[list[float]]]]:
    """Every figure: arm -> generation -> the value of each repeat."""
    figures = list(results[0][arms[0].name][0]["figures"])
    span = range(len(results[0][arms[0].name]))
    return {
        figure: {
            arm.name: [[repeat[arm.name][g]["figures"][figure] for repeat in results] for g in span] for arm in arms
        }
        for figure in figures
        if all(figure in entry["figures"] for repeat in results for arm in arms for entry in repeat[arm.name])
    }


def summarize(
    run: Run,
    options: LoopOptions,
    judge: Judge,
    arms: Sequence[Arm],
    plan: Sequence[Counts],
    results: Results,
    selection: dict[str, Any] | None,
    data: tuple[Dataset, Dataset],
) -> dict[str, Any]:
    """The summary of a loop on images; writes ``metrics.jsonl`` as well."""
    curves = curves_of(results, arms)
    if run.is_main:
        _write_rows(run, results)
    found, conclusion = judged(curves["fd"], arms)
    span = range(len(plan))
    shares = {
        arm.name: [np.mean([repeat[arm.name][g]["shares"] for repeat in results], axis=0).tolist() for g in span]
        for arm in arms
    }
    return {
        "format": 1,
        "experiment": "loop",
        "title": f"{options.generations} generations of {data[0].name} ({options.kind})",
        "headline": conclusion,
        **about(run, options, judge, data),
        "kind": options.kind,
        "generations": options.generations,
        "repeats": len(results),
        "passed_on": options.passed_on,
        "start": options.start,
        "arms": [_arm(arm, results) for arm in arms],
        "curves": curves,
        "shares": shares,
        "accounting": [
            {"generation": g, "planned": counts.to_json(), "used": results[0][arms[0].name][g]["accounting"]}
            for g, counts in enumerate(plan)
        ],
        "selection": selection,
        "verdicts": found,
        "conclusion": conclusion,
        "rows": [],
    }


def judged(curves: dict[str, list[list[float]]], arms: Sequence[Arm]) -> tuple[dict[str, Any], str]:
    """The verdicts on every arm (arm -> mad, weak, strong), and a plain conclusion.

    ``curves`` are distances to the real data: arm -> generation -> repeat. Weak prevention is held against standard
    training of equal compute where that is among the arms, else against standard training, and ``against`` says which.
    """
    array = {arm.name: np.asarray(curves[arm.name]).T for arm in arms}  # (repeats, generations + 1)
    if len(array[STANDARD]) < 2:
        return {}, "One repeat gives no intervals, and so no verdicts: run the same command with a higher --repeats."
    equal = EQUAL if EQUAL in array else STANDARD
    found: dict[str, Any] = {}
    for arm in arms:
        curve = array[arm.name]
        entry: dict[str, Any] = {"mad": None, "weak": None, "strong": None}
        if curve.shape[1] > 2:
            entry["mad"] = _verdict(verdicts.mad(curve), "growth", "rise")
        if is_guided(arm.remedy):
            weak = _verdict(verdicts.weak_prevention(curve, array[equal]), "difference")
            entry["weak"] = {**weak, "against": equal}
        if arm.remedy != STANDARD:
            entry["strong"] = _verdict(verdicts.strong_prevention(curve, array[STANDARD]), "difference")
        found[arm.name] = entry
    return found, _conclusion(array, found, arms)


def _verdict(verdict: Any, *intervals: str) -> dict[str, Any]:
    shown = {name: asdict(getattr(verdict, name)) for name in intervals}
    return {"holds": bool(verdict.holds), "text": verdict.text, **shown}


def _conclusion(array: dict[str, Any], found: dict[str, Any], arms: Sequence[Arm]) -> str:
    last = array[STANDARD].shape[1] - 1

    def ends(name: str) -> str:
        curve = array[name]
        return f"{curve[:, 0].mean():.2f} -> {curve[:, -1].mean():.2f}"

    worse = paired_interval(array[STANDARD][:, -1], array[STANDARD][:, 0]).low > 0
    text = f"After {last} generations standard training is {'significantly' if worse else 'not significantly'} worse "
    text += f"than its generation 0 (FD to train {ends(STANDARD)})."
    for arm in arms:
        if not is_guided(arm.remedy):
            continue
        weak, strong = found[arm.name]["weak"], found[arm.name]["strong"]
        kind = "strong" if strong["holds"] else "weak" if weak["holds"] else "no"
        text += f" {label(arm)}: {kind} prevention ({ends(arm.name)})."
    return text


def verdict_in_short(entry: dict[str, Any] | None) -> str:
    """The verdict on an arm, as a cell of a table."""
    if not entry:
        return "–"
    words = ["collapses"] if entry["mad"] and entry["mad"]["holds"] else []
    words += [f"{kind} prevention" for kind in ("strong", "weak") if entry[kind] and entry[kind]["holds"]][:1]
    return ", ".join(words) or "–"


def _arm(arm: Arm, results: Results) -> dict[str, Any]:
    """An arm and what it cost, per generation and in all; the same in every repeat."""
    entries = results[0][arm.name]
    per_generation = [entry["cost"] for entry in entries]
    total = {key: sum(cost[key] for cost in per_generation) for key in per_generation[0]}
    cost = {**total, "per_generation": per_generation, "nfe": entries[0]["nfe"]}
    return {"name": arm.name, "label": label(arm), "method": arm.method, "remedy": arm.remedy, "w": arm.w, "cost": cost}


def _write_rows(run: Run, results: Results) -> None:
    """``metrics.jsonl``: a self-describing row for every figure of every arm, generation and repeat."""
    lines = [
        json.dumps({"repeat": index, "arm": name, "generation": entry["generation"], "w": entry["w"], **row})
        for index, repeat in enumerate(results)
        for name, entries in repeat.items()
        for entry in entries
        for row in entry["rows"]
    ]
    write_atomic(run.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())


def plus_minus(values: Sequence[float], places: int = 2) -> str:
    """Mean ± half of the 95 % interval."""
    found = interval_of(values)
    mean, high = found["mean"], found["high"]
    return f"{mean:.{places}f}" if high is None or mean is None else f"{mean:.{places}f} ± {high - mean:.{places}f}"


def loop_table(summary: dict[str, Any]) -> Table:
    """The table that closes a loop: distances of every arm at generation 0 and at the last, and its verdict."""
    last, curves = summary["generations"], summary["curves"]
    figures = [("fd", "FD train", 2), ("fd_held_out", "FD test", 2), ("recall", "recall", 3)]
    if "fd" not in curves:  # points: the distance to the truth comes first
        figures = [(next(iter(curves)), "distance", 4)]
    table = Table(title=Text(summary["title"]), title_justify="left", header_style="dim")
    table.add_column("arm")
    table.add_column(f"{figures[0][1]}, 0", justify="right")
    for _, name, _ in figures:
        table.add_column(f"{name}, {last}", justify="right")
    table.add_column("compute", justify="right")
    table.add_column("verdict")
    for arm in summary["arms"]:
        first, _, places = figures[0]
        cells = [plus_minus(curves[first][arm["name"]][0], places)]
        cells += [plus_minus(curves[figure][arm["name"]][-1], places) for figure, _, places in figures]
        cells += [f"{arm['cost']['total'] / 1e6:.1f} M images", verdict_in_short(summary["verdicts"].get(arm["name"]))]
        table.add_row(*[Text(text) for text in [arm["label"], *cells]])
    return table
