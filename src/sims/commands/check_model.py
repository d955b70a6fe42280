"""sims check: whether a network is read rightly, on real pictures."""

from __future__ import annotations

import json
import math

from rich.table import Table

from sims.api import at_least
from sims.commands.options import CheckCommand
from sims.data.sources import load
from sims.experiments.adapter_check import check_adapter
from sims.interop.opening import open_model
from sims.processes import join
from sims.results.adapter import AdapterCheck, LevelError
from sims.results.summaries import to_json
from sims.screen import Screen
from sims.screen import show as say

BAR = 24  # columns of the plot


def check_model(options: CheckCommand) -> int:
    """Print the errors and what they tell; 1 where the adapter is likely wrong."""
    at_least(2, images=options.images)
    model = open_model(options.model, options.weights, download=options.download).to(join().device)
    data = load(options.data.path, options=options.data.source, limit=options.data.limit)
    found = check_adapter(model, data, str(options.model), options.images, options.seed)
    if options.json:
        say(json.dumps(to_json(found), indent=2))
    else:
        show(found)
    return 1 if found.problems else 0


def show(found: AdapterCheck) -> None:
    """The table with its plot, and the sentences."""
    console = Screen(highlight=False)
    table = Table(title=f"{found.model} on {found.num_images} pictures of {found.data}", title_justify="left")
    for name in ("sigma", "network", "linear", "nearest"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("# network, | linear", no_wrap=True)
    values = [math.log(value) for level in found.levels for value in (level.network, level.linear) if value > 0]
    for level in found.levels:
        errors = [f"{value:.2g}" for value in (level.network, level.linear, level.nearest)]
        table.add_row(f"{level.sigma:.3g}", *errors, _plot(level, min(values), max(values)))
    console.print(table)
    console.print(
        "mean squared errors of the network, of the best linear denoiser and of the mean over the nearest pictures, in "
        "units of the variance of the data; the plot is logarithmic",
        style="dim",
    )
    for text in (*found.problems, *found.remarks):
        say(text)
    if len(found.better) > 1:
        for other in found.better[1:]:
            say(f"  ({other.words} alone: {other.times:.3g} times better)")
    say("likely wrong" if found.problems else "nothing that was tried fits better: the network is read rightly")


def _plot(level: LevelError, low: float, high: float) -> str:
    """A line of text with the two errors at their places."""
    line = [" "] * (BAR + 1)
    for value, mark in ((level.linear, "|"), (level.network, "#")):
        place = (math.log(max(value, 1e-30)) - low) / max(high - low, 1e-9)
        line[round(BAR * min(max(place, 0.0), 1.0))] = mark
    return "".join(line)
