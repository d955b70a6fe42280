"""The summary of an improvement: what ``summary.json`` holds, and what the report is made from."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sims.config import to_dict, to_toml
from sims.data.dataset import Dataset
from sims.experiments.improve.search import Found
from sims.experiments.improve.stages import Selection, Stages
from sims.experiments.options import ImproveOptions
from sims.metrics.intervals import paired_interval
from sims.runs.directory import Run, command_line
from sims.scoring.judge import Draw, Judge


def retained(rows: dict[str, dict[str, Any]], label: str, metric: str) -> float | None:
    """Share of SIMS's improvement over the base that a row keeps, in one metric; None where SIMS is no improvement."""
    figures_ = [rows[name][metric]["mean"] for name in ("base", "sims", label) if name in rows]
    if len(figures_) < 3 or None in figures_:
        return None
    base, full, this = figures_
    return (base - this) / (base - full) if full < base else None


def _comparisons(result: dict[str, Any]) -> list[dict[str, Any]]:
    """SIMS against every other method, paired by seed."""
    draws: dict[str, list[Draw]] = result["draws"]
    if len(draws.get("sims", ())) < 2:
        return []
    ours = [draw.scores for draw in draws["sims"]]
    entries = []
    for label, theirs in draws.items():
        if label == "sims":
            continue
        scores = [draw.scores for draw in theirs]
        for metric in [m for m in ("fd", "fd_held_out") if m in ours[0]]:
            found = paired_interval([s[metric] for s in ours], [s[metric] for s in scores])
            verdict = "better" if found.high < 0 else "worse" if found.low > 0 else "not distinguishable"
            difference = {"mean": found.mean, "low": found.low, "high": found.high}
            text = f"sims is {verdict} than {label}" if verdict[0] != "n" else f"sims and {label} are {verdict}"
            entries.append({"a": "sims", "b": label, "metric": metric, "difference": difference, "verdict": text})
    return entries


def _headline(rows: dict[str, dict[str, Any]], comparisons: list[dict[str, Any]]) -> tuple[str, list[str]]:
    if "base" not in rows or "sims" not in rows:
        return "No comparison of base and sims was asked for.", []
    base, ours = rows["base"], rows["sims"]
    if base["fd"]["mean"] is None:
        return "The improved model is ready; nothing was verified, since there was no real data to judge it by.", []
    warnings = []
    parts = []
    for metric, name in (("fd", "training"), ("fd_held_out", "held-out")):
        before, after = base[metric]["mean"], ours[metric]["mean"]
        if before is None:
            continue
        change = 100 * (after / before - 1)
        entry = next((c for c in comparisons if c["b"] == "base" and c["metric"] == metric), None)
        sure = entry is None or entry["difference"]["high"] < 0 or entry["difference"]["low"] > 0
        doubt = ", one draw: no interval" if entry is None else "" if sure else ", within the noise"
        parts.append(f"FD to {name} data {before:.2f} -> {after:.2f} ({change:+.0f} %{doubt})")
        if change > 0 and sure:
            warnings.append(f"FD to {name} data became worse with sims: {before:.2f} -> {after:.2f}.")
    for entry in comparisons:
        if entry["metric"] == "fd" and entry["difference"]["low"] > 0 and not entry["b"].startswith("sims"):
            warnings.append(f"{entry['b']} reached a lower FD to the training data than sims.")
    return "sims against base: " + "; ".join(parts) + ".", warnings


def summarize(
    run: Run, options: ImproveOptions, stages: Stages, result: dict[str, Any], rounds: list[dict[str, Any]],
    real: Dataset | None, test: Dataset | None,
) -> dict[str, Any]:  # fmt: skip
    judge, rows = stages.judge, {row["label"]: row for row in result["rows"]}
    comparisons = _comparisons(result)
    headline, warnings = _headline(rows, comparisons)
    for row in result["rows"]:
        row["retained"] = {metric: retained(rows, row["label"], metric) for metric in ("fd", "fd_held_out")}
    model = result["base"].model
    return {
        "format": 1,
        "title": f"{options.data.path if options.model is None else options.model.name}: a model improves itself",
        "headline": headline,
        "verified": judge is not None,
        "warnings": warnings,
        "data": {
            "name": real.name if real else "none",
            "num_train": len(real) if real else 0,
            "num_test": len(test) if test else 0,
            "shape": list(model.data_shape),
            "num_classes": model.num_classes,
            "conditional": model.num_classes > 0,
        },
        "extractor": asdict(judge.about()) if judge else None,
        "floor": _floor(judge, real, test),
        "rows": result["rows"],
        "search": _search_summary(result["searches"], result["before"], options),
        "costs": _costs(result, options),
        "cache": _cache(result, rows),
        "rounds": rounds if len(rounds) > 1 or options.rounds > 1 else [],
        "comparisons": comparisons,
        **reproduction(run, options, stages.seconds),
    }


def _floor(judge: Judge | None, real: Dataset | None, test: Dataset | None) -> dict[str, Any] | None:
    if judge is None or judge.floor is None or real is None or test is None:
        return None
    text = f"real against real: {len(real):,} training images against {len(test):,} held-out ones"
    return {"fd": judge.floor, "n_train": len(real), "n_test": len(test), "text": text}


def reproduction(run: Run, options: Any, seconds: dict[str, float]) -> dict[str, Any]:
    """What a page needs to say how a run with an improved model is repeated, and where its time went."""
    return {
        "commands": [command_line(), f"sims sample {run.path / 'improved'} --seeds 0-63 --out samples"],
        "config_toml": to_toml(to_dict(options)),
        "versions": {
            "sims": version("sims-diffusion"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(sum(seconds.values()), 1),
        "stages": [{"name": name, "seconds": round(value, 2)} for name, value in seconds.items()],
    }


def _search_summary(
    searches: dict[str, Found], before: Selection | None, options: ImproveOptions
) -> dict[str, Any] | None:
    if not searches:
        return None
    cells = [
        {
            "method": name,
            "budget": c.budget,
            "w": c.w,
            "n": c.n,
            "fd": c.fd if np.isfinite(c.fd) else None,
            "half_width": c.half_width,
        }
        for name, found in searches.items()
        for c in found.cells
    ]
    if before is not None:
        n = max(options.search.rungs)
        cells.append(
            {"method": "base", "budget": None, "w": 0.0, "n": n, "fd": before.fd, "half_width": before.half_width}
        )
    budgets = sum(len({cell.budget for cell in found.cells}) for found in searches.values())
    return {
        "samples": sum(found.samples for found in searches.values()),
        "samples_by_method": {name: found.samples for name, found in searches.items()},
        "grid_samples": budgets * 13 * 5_000,
        "extended": any(found.extended for found in searches.values()),
        "chosen": {name: {"budget": found.budget, "w": found.w} for name, found in searches.items()},
        "cells": cells,
        "trusted": {name: found.trusted for name, found in searches.items() if found.trusted is not None},
    }


def _costs(result: dict[str, Any], options: ImproveOptions) -> dict[str, Any]:
    distilled = any(choice.method == "distilled" for choice in result["choices"])
    sims = result["searches"].get("sims")
    return {
        "base_training_images": result["base"].images or None,
        "synthesized": options.auxiliary.samples,
        "synthesis_evaluations": options.auxiliary.samples
        * next(c.nfe for c in result["choices"] if c.method == "base")
        if any(c.method == "base" for c in result["choices"])
        else None,
        "auxiliary_images": max(options.auxiliary.budgets),
        "search_evaluations": sims.evaluations if sims else 0,
        "distillation_images": options.distilled.images if distilled else 0,
    }


def _cache(result: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any] | None:
    choice = next((c for c in result["choices"] if c.label == "sims (cached)"), None)
    if choice is None:
        return None
    guided: Any = choice.model.denoiser
    planned = choice.options.planned(guided)
    quick = rows.get("sims (fast)")
    return {
        "levels": planned.tolist(),
        "refresh": [step is not None and step.refresh for step in guided.steps(planned)],
        "solver": choice.options.solver,
        "nfe_base": guided.base.evaluations(planned),
        "nfe_full": rows["sims"]["nfe"],
        "nfe_cached": choice.nfe,
        "retained_train": retained(rows, choice.label, "fd"),
        "retained_test": retained(rows, choice.label, "fd_held_out"),
        "cheapest": {"text": quick["note"], "nfe": quick["nfe"]} if quick else None,
        "tried": result["cheapest"],
    }
