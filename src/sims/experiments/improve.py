"""The main job: a diffusion model improves itself, and the report says by how much.

base -> synthesize -> auxiliary at several budgets -> choose (budget, w) -> judge on fresh seeds -> distil -> report.
"""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from sims.config import to_dict, to_toml
from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.experiments.search import Found
from sims.experiments.stages import Choice, Stages, figures
from sims.files import atomic_path, read_json, write_atomic, write_json
from sims.methods import METHODS, Base, Continuous
from sims.metrics.intervals import paired_interval
from sims.report import closing_table, write_report
from sims.runs import Run, command_line, derive_seed
from sims.verbs.evaluate import Draw, Judge, load_judge, make_references
from sims.verbs.seeds import seed_range

GRID = 64  # samples shown of every method


def improve(options: ImproveOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Run or continue the main job in ``options.run``; returns the summary that ``summary.json`` holds.

    Errors: UserError for bad options or data, or a run directory of another configuration or in use.
    """
    config = to_dict(options)
    run = Run(options.run, {key: value for key, value in config.items() if key != "run"}, quiet=quiet)
    try:
        if (run.path / "summary.json").is_file():
            run.log(f"{run.path} is finished; delete it, or choose another --run, to start anew")
            summary = read_json(run.path / "summary.json")
        else:
            summary = _improve(run, options)
        if run.is_main:
            if not (run.path / "report.html").is_file():
                write_report(run.path)
            run.console.print(closing_table(summary))
            run.console.print(summary["headline"], highlight=False)
            run.console.print(
                f"report: {run.path / 'report.html'}   improved model: {run.path / 'improved'}", highlight=False
            )
        return summary
    finally:
        run.close()


def _improve(run: Run, options: ImproveOptions) -> dict[str, Any]:
    real, test = _data(options)
    seen = real if real is None or options.data.conditional else real.without_labels()
    stages = Stages(run, options, seen)
    with stages.timed("references"):
        judge = stages.judge = _judge(run, options, real, test)
    with stages.timed("train base"):
        base = stages.base()
    rounds: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for round_ in range(options.rounds):
        methods = options.methods if round_ == 0 else ("base", "sims", "distilled")
        result = _round(stages, base, methods, round_, options)
        first = first or result
        verdict = _accept(result, judge, rounds)
        rounds.append({"round": round_ + 1, "rows": result["rows"], **verdict})
        run.log(f"round {round_ + 1}: {verdict['reason']}")
        accepted = all(entry["accepted"] for entry in rounds)
        if accepted or round_ == 0:
            _save_improved(run, result, judge)
        if not accepted and not options.keep_going:
            break
        if round_ + 1 < options.rounds:
            base = _next_base(result, options, round_)
    summary = _summary(run, options, stages, first, rounds, real, test)
    if run.is_main:
        _write(run, options, first, real, judge, summary)
    run.barrier()
    return summary


def _data(options: ImproveOptions) -> tuple[Dataset | None, Dataset | None]:
    data = options.data
    if data.path == "none":
        return None, None
    train, test = load_pair(
        data.path, data.test, data.test_fraction, options.seed, options=data.source, limit=data.limit
    )
    if data.conditional and train.labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    return train, test


def _judge(run: Run, options: ImproveOptions, real: Dataset | None, test: Dataset | None) -> Judge | None:
    if options.reference is not None:
        return load_judge(options.reference, real, test, options.evaluation, run.device)
    if real is None:
        return None
    folder = run.path / "references"
    if run.is_main:
        make_references(folder, real, test, options.evaluation)
    run.barrier()
    return load_judge(folder, real, test, options.evaluation, run.device)


def _round(
    stages: Stages, base: Base, methods: tuple[str, ...], round_: int, options: ImproveOptions
) -> dict[str, Any]:
    """All methods of one round, chosen and judged."""
    choices: list[Choice] = []
    searches: dict[str, Found] = {}
    sims: Choice | None = None
    order = sorted(methods, key=lambda name: name != "sims")  # the controls follow from what sims chose
    for name in order:
        if reason := _impossible(name, base, stages):
            stages.run.log(f"{name} is left out: {reason}")
            continue
        choice, found = stages.choose(name, base, round_, sims)
        choices.append(choice)
        if found is not None:
            searches[name] = found
            stages.run.log(
                f"{name}: budget {found.budget:,} images, w = {found.w:g} ({found.samples:,} samples searched)"
            )
        if name == "sims":
            sims = choice
    choices.sort(key=lambda choice: methods.index(choice.method))
    cheapest: list[dict[str, Any]] = []
    if sims is not None and stages.judge is not None:
        place = choices.index(sims) + 1
        if cached := stages.cached(sims, round_):
            choices.insert(place, cached)
        if "sims" in searches and round_ == 0 and (quick := _cheapest(stages, base, sims, searches["sims"], round_)):
            choices.insert(place + 1, quick[0])
            cheapest = quick[1]
    result: dict[str, Any] = {"choices": choices, "searches": searches, "cheapest": cheapest, "base": base, "draws": {}}
    result["rows"] = [_row(stages, choice, round_, options, result["draws"]) for choice in choices]
    return result


def _impossible(name: str, base: Base, stages: Stages) -> str | None:
    if METHODS[name].needs_real and stages.real is None:
        return "it needs the real training data"
    if name == "autoguidance" and not base.snapshots:
        return "it needs earlier snapshots of the base's training, and a given model has none"
    return None


def _cheapest(stages: Stages, base: Base, sims: Choice, found: Found, round_: int) -> Any:
    assert stages.judge is not None
    start = Choice("base", "base", base.model, 0.0, None)
    n = max(stages.options.search.rungs)
    with stages.timed("cheapest sampler"):
        base_fd = stages.judge.frechet(stages.draws(start, round_, "selection", n)[0].features)
        return stages.cheapest(sims, base_fd, found.fd, round_)


def _row(
    stages: Stages, choice: Choice, round_: int, options: ImproveOptions, kept: dict[str, list[Draw]]
) -> dict[str, Any]:
    """One line of the table."""
    row: dict[str, Any] = {
        "method": choice.method,
        "label": choice.label,
        "w": choice.w,
        "budget": choice.budget,
        "nfe": choice.nfe,
        "extra_training_images": choice.extra_images + choice.extra_evaluations // 3,
        "note": choice.note,
    }
    empty = {"mean": None, "low": None, "high": None}
    if stages.judge is None:
        return {**row, "fd_train": empty, "fd_test": empty, "draws": 0, "samples_per_draw": 0, "per_class": []}
    with stages.timed(f"evaluate {choice.label}"):
        draws = stages.draws(choice, round_)
    kept[choice.label] = draws
    evaluation = options.evaluation
    return {
        **row,
        "fd_test": empty,
        **figures(stages.judge, draws),
        "draws": evaluation.draws,
        "samples_per_draw": evaluation.samples,
        "seconds_per_1000": round(1000 * float(np.median([draw.seconds for draw in draws])) / evaluation.samples, 3),
        "per_class": stages.judge.per_class(draws, choice.model.class_names or _names(stages.judge)),
    }


def _names(judge: Judge) -> tuple[str, ...]:
    count = getattr(judge.extractor, "num_classes", 0)
    return tuple(str(index) for index in range(count))


def _accept(result: dict[str, Any], judge: Judge | None, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Whether a round made the model better; the rule that stops before one makes it worse.

    A round counts if the Fréchet distance to the training data falls by more than the two intervals allow, if it does
    not fall below what a perfect model would score (from there on it measures memorization, not quality), and if the
    distance to held-out data, where there are any, does not rise.
    """
    rows = {row["label"]: row for row in result["rows"]}
    best = rows.get("distilled") or rows.get("sims")
    if judge is None or best is None or "base" not in rows:
        return {"accepted": True, "reason": "accepted without verification: there is nothing to judge it by"}
    before, after = rows["base"]["fd_train"], best["fd_train"]
    if after["mean"] >= before["mean"] or (after["high"] or after["mean"]) >= (before["low"] or before["mean"]):
        return {
            "accepted": False,
            "reason": f"stopped: FD to train {before['mean']:.2f} -> {after['mean']:.2f} is no improvement",
        }
    perfect = judge.perfect(best["samples_per_draw"])
    if rounds and after["mean"] < perfect:
        text = f"stopped: FD to train {after['mean']:.2f} is below {perfect:.2f}, what a perfect model would score"
        return {"accepted": False, "reason": text}
    test_before, test_after = rows["base"]["fd_test"]["mean"], best["fd_test"]["mean"]
    if rounds and test_after is not None and test_after > test_before:
        text = f"stopped: FD to held-out data rises, {test_before:.2f} -> {test_after:.2f}"
        return {"accepted": False, "reason": text}
    return {"accepted": True, "reason": f"accepted: FD to train {before['mean']:.2f} -> {after['mean']:.2f}"}


def _next_base(result: dict[str, Any], options: ImproveOptions, round_: int) -> Base:
    model = next(choice.model for choice in result["choices"] if choice.method == "distilled")
    seed = derive_seed("base", options.seed, round_ + 1)
    return Base(model, model.hash, seed=seed, train=options.base.train)


def _save_improved(run: Run, result: dict[str, Any], judge: Judge | None) -> None:
    """``improved``: SIMS, cached if the cache was measured to keep the gain; ``distilled``: one network."""
    if not run.is_main:
        return
    choices = {choice.label: choice for choice in result["choices"]}
    rows = {row["label"]: row for row in result["rows"]}
    if "sims" in choices:
        label = "sims"
        if "sims (cached)" in choices and (retained(rows, "sims (cached)", "fd_train") or 0) >= 0.95:
            label = "sims (cached)"
        choices[label].model.with_denoiser(choices[label].model.denoiser, method=label).save(run.path / "improved")
    if "distilled" in choices:
        choices["distilled"].model.save(run.path / "distilled")


def retained(rows: dict[str, dict[str, Any]], label: str, metric: str) -> float | None:
    """Share of SIMS's improvement over the base that a row keeps, in one metric."""
    figures_ = [rows[name][metric]["mean"] for name in ("base", "sims", label) if name in rows]
    if len(figures_) < 3 or None in figures_ or figures_[0] == figures_[1]:
        return None
    base, full, this = figures_
    return (base - this) / (base - full)


def _comparisons(result: dict[str, Any], judge: Judge | None) -> list[dict[str, Any]]:
    """SIMS against every other method, paired by seed."""
    draws: dict[str, list[Draw]] = result["draws"]
    if judge is None or "sims" not in draws or len(draws["sims"]) < 2:
        return []
    ours = [judge.scores(draw) for draw in draws["sims"]]
    entries = []
    for label, theirs in draws.items():
        if label == "sims":
            continue
        scores = [judge.scores(draw) for draw in theirs]
        for metric in [m for m in ("fd_train", "fd_test") if m in ours[0]]:
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
    if base["fd_train"]["mean"] is None:
        return "The improved model is ready; nothing was verified, since there was no real data to judge it by.", []
    warnings = []
    parts = []
    for metric, name in (("fd_train", "training"), ("fd_test", "held-out")):
        before, after = base[metric]["mean"], ours[metric]["mean"]
        if before is None:
            continue
        change = 100 * (after / before - 1)
        entry = next((c for c in comparisons if c["b"] == "base" and c["metric"] == metric), None)
        sure = entry is None or entry["difference"]["high"] < 0 or entry["difference"]["low"] > 0
        parts.append(
            f"FD to {name} data {before:.2f} -> {after:.2f} ({change:+.0f} %{'' if sure else ', within the noise'})"
        )
        if change > 0 and sure:
            warnings.append(f"FD to {name} data became worse with sims: {before:.2f} -> {after:.2f}.")
    for entry in comparisons:
        if entry["metric"] == "fd_train" and entry["difference"]["low"] > 0 and not entry["b"].startswith("sims"):
            warnings.append(f"{entry['b']} reached a lower FD to the training data than sims.")
    return "sims against base: " + "; ".join(parts) + ".", warnings


def _summary(
    run: Run, options: ImproveOptions, stages: Stages, result: dict[str, Any], rounds: list[dict[str, Any]],
    real: Dataset | None, test: Dataset | None,
) -> dict[str, Any]:  # fmt: skip
    judge, rows = stages.judge, {row["label"]: row for row in result["rows"]}
    comparisons = _comparisons(result, judge)
    headline, warnings = _headline(rows, comparisons)
    for row in result["rows"]:
        row["retained"] = {metric: retained(rows, row["label"], metric) for metric in ("fd_train", "fd_test")}
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
        "extractor": _extractor(judge),
        "floor": _floor(judge, real, test),
        "rows": result["rows"],
        "search": _search_summary(result["searches"], options),
        "costs": _costs(result, options),
        "cache": _cache(result, rows),
        "rounds": rounds if len(rounds) > 1 or options.rounds > 1 else [],
        "comparisons": comparisons,
        "commands": [command_line(), f"sims sample {run.path / 'improved'} --seeds 0-63 --out samples"],
        "config_toml": to_toml(to_dict(options)),
        "versions": {
            "sims": version("sims-diffusion"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "seconds": round(sum(stages.seconds.values()), 1),
        "stages": [{"name": name, "seconds": round(value, 2)} for name, value in stages.seconds.items()],
    }


def _extractor(judge: Judge | None) -> dict[str, Any] | None:
    if judge is None:
        return None
    e = judge.extractor
    return {"name": e.name, "hash": e.hash, "num_features": e.num_features, "accuracy": judge.accuracy}


def _floor(judge: Judge | None, real: Dataset | None, test: Dataset | None) -> dict[str, Any] | None:
    if judge is None or judge.floor is None or real is None or test is None:
        return None
    text = f"real against real: {len(real):,} training images against {len(test):,} held-out ones"
    return {"fd": judge.floor, "n_train": len(real), "n_test": len(test), "text": text}


def _search_summary(searches: dict[str, Found], options: ImproveOptions) -> dict[str, Any] | None:
    if not searches:
        return None
    cells = [
        {"method": name, "budget": c.budget, "w": c.w, "n": c.n, "fd": c.fd if np.isfinite(c.fd) else None}
        for name, found in searches.items()
        for c in found.cells
    ]
    continuous = sum(isinstance(METHODS[name].strengths, Continuous) for name in searches)
    return {
        "samples": sum(found.samples for found in searches.values()),
        "samples_by_method": {name: found.samples for name, found in searches.items()},
        "grid_samples": continuous * len(options.auxiliary.budgets) * 13 * 5_000,
        "extended": any(found.extended for found in searches.values()),
        "chosen": {name: {"budget": found.budget, "w": found.w} for name, found in searches.items()},
        "cells": cells,
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
        "retained_train": retained(rows, choice.label, "fd_train"),
        "retained_test": retained(rows, choice.label, "fd_test"),
        "cheapest": {"text": quick["note"], "nfe": quick["nfe"]} if quick else None,
        "tried": result["cheapest"],
    }


def _write(
    run: Run,
    options: ImproveOptions,
    result: dict[str, Any],
    real: Dataset | None,
    judge: Judge | None,
    summary: dict[str, Any],
) -> None:
    """Everything that the run leaves to look at; ``summary.json`` last."""
    lines = []
    stages = Stages(run, options, real)
    for choice, row in zip(result["choices"], result["rows"]):
        if judge is not None:
            seeds = stages.draw_seeds(row["draws"], row["samples_per_draw"], 0)
            about = {
                "method": row["method"],
                "label": row["label"],
                "w": row["w"],
                "budget": row["budget"],
                "nfe": row["nfe"],
            }
            for index, draw in enumerate(result["draws"][choice.label]):
                lines += [json.dumps(entry) for entry in judge.rows(draw, seeds[index], draw=index, **about)]
    write_atomic(run.path / "metrics.jsonl", ("\n".join(lines) + "\n").encode())
    _grids(run, options, result, real)
    write_json(run.path / "summary.json", summary)


def _grids(run: Run, options: ImproveOptions, result: dict[str, Any], real: Dataset | None) -> None:
    """The same seeds for every method, and for SIMS across w; and the nearest training image of each."""
    seeds = seed_range("figures", options.seed, GRID)
    arrays: dict[str, np.ndarray] = {"seeds": np.asarray(seeds)}
    codec = result["base"].model.codec
    for choice in result["choices"]:
        x = choice.model.sample(seeds, sampler=choice.options, batch_size=GRID)
        arrays[f"{choice.label}@{choice.w:g}"] = codec.to_images(x)
        if choice.label == "sims":
            for factor in (0.5, 2.0):
                other = choice.model.denoiser
                stronger = type(other)(other.base, other.aux, other.w * factor, other.interval)  # type: ignore[attr-defined,call-arg]
                arrays[f"sims@{choice.w * factor:g}"] = codec.to_images(
                    replace(choice.model, denoiser=stronger).sample(seeds, batch_size=GRID)
                )
            if real is not None:
                arrays["real"] = codec.to_images(real.all()[0][:GRID])
                arrays["nearest"] = codec.to_images(_nearest(x, real))
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _nearest(x: torch.Tensor, real: Dataset) -> torch.Tensor:
    train = real.all()[0]
    flat = train.flatten(1)
    indices = [int(((flat - one.flatten()) ** 2).sum(dim=1).argmin()) for one in x]
    return train[indices]
