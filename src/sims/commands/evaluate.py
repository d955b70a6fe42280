"""sims evaluate: a table of scores with the floor beside them, or JSON."""

from __future__ import annotations

import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sims import api
from sims.commands.options import EvaluateCommand
from sims.report.numbers import decimals, fixed, plus_minus
from sims.report.record import Interval

NAMES = {
    "fd_train": "FD to training data",
    "fd_test": "FD to held-out data",
    "kid_test": "KID to held-out data",
    "precision": "precision",
    "recall": "recall",
    "memorized": "memorized share",
    "nearest_ratio": "distance to nearest",
}


def evaluate(options: EvaluateCommand) -> int:
    """Score, and print."""
    result = api.evaluate(
        options.samples,
        options.reference,
        data=options.data,
        evaluation=options.evaluation,
        seed=options.seed,
        split_seed=options.split_seed,
        batch_size=options.batch_size,
        cache=options.cache,
    )
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result, Console())
    return 0


def show(result: dict[str, Any], console: Console) -> None:
    """The figures as a table, and the lines that say what they are."""
    table = Table(title=Text(f"{result['samples']}"), title_justify="left", header_style="dim")
    table.add_column("metric")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("real against real", justify="right", no_wrap=True)
    metrics, floor = result["metrics"], result["floor"]
    known = [*NAMES, *[f"check_{name}" for name in NAMES]]
    for metric in sorted(metrics, key=lambda name: known.index(name) if name in known else len(known)):
        value = Interval(**metrics[metric]) if metrics[metric]["mean"] is not None else None
        places, real = _places(metrics[metric]["mean"]), floor.get(metric)
        shown = plus_minus(value, places) if result["draws"] > 1 else f"{plus_minus(value, places)} ± –"
        table.add_row(Text(_name(metric)), Text(shown), Text(fixed(real, _places(real))))
    console.print(table)
    for line in _lines(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _name(metric: str) -> str:
    base = metric.removeprefix("check_")
    return NAMES.get(base, base) + (" (check)" if base != metric else "")


def _places(value: float | None) -> int:
    """Decimals that show about four digits."""
    size = abs(value or 0.0)
    return 0 if size >= 1000 else 5 if 0 < size < 0.01 else decimals([size])


def _lines(result: dict[str, Any]) -> list[str]:
    train, test = result["reference"]["train"], result["reference"].get("test")
    draws, count = result["draws"], result["samples_per_draw"]
    lines = [
        f"{draws} draws of {count:,} samples; ± is the half-width of the 95 % interval over them"
        if draws > 1
        else f"one draw of {count:,} samples, so there are no intervals (–): more draws would tell how sure this is",
        f"features: {_features(result['extractor'])}",
    ]
    if result["check_extractor"]:
        lines.append(f"check: {_features(result['check_extractor'])}, which no choice was made with")
    if test is None:
        return [*lines, f"reference: {train['name']}, {train['count']:,} images; no held-out data, so no floor"]
    return [*lines, f"real against real: {train['count']:,} training images and {test['count']:,} held-out ones"]


def _features(extractor: dict[str, Any]) -> str:
    accuracy = "" if extractor["accuracy"] is None else f", {100 * extractor['accuracy']:.1f} % accurate"
    return f"{extractor['name']} ({extractor['hash']}{accuracy})"
