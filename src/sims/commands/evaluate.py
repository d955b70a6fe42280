"""sims evaluate: tables of scores with intervals and floors, and whether two models differ."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from rich.table import Table
from rich.text import Text

from sims import api
from sims.commands.flags import in_flags
from sims.commands.options import EvaluateCommand
from sims.errors import UserError
from sims.files import read_json_lines
from sims.report.numbers import decimals, fixed, plus_minus
from sims.results.common import Interval
from sims.results.scores import ClassScores, Difference, ScoreFigure, ScoreRow, Scores, ScoreTable, diverged_words
from sims.scoring.differences import require_alike
from sims.scoring.figures import facts
from sims.scoring.options import ScoreOptions
from sims.screen import Screen, show


def evaluate(options: EvaluateCommand) -> int:
    """Score, print, and keep the rows."""
    if not options.given:
        raise UserError("nothing to score: name a model directory, a folder of images, or another set of samples")
    files = [Path(given) for given in options.given if given.endswith(".jsonl")]
    given = [name for name in options.given if not name.endswith(".jsonl")]
    if options.paired and (len(given) != 2 or files):
        raise UserError(f"--paired compares two sets of samples, and {len(options.given)} were given")
    if options.out is not None and (options.out.suffix != ".jsonl" or options.out.is_dir()):
        raise UserError(f"--out is {options.out}: give a file that ends in .jsonl")
    for file in (options.out, options.statistics):  # before anything is measured
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
    earlier = {file: read_rows(file) for file in files}
    found = _scores(given, options, [row for rows in earlier.values() for row in rows])
    if not PartialState().is_main_process:
        return 0
    if options.out is not None:
        _append(options.out, found.scores)
    if options.json:
        alone = len(given) == 1 and not options.paired
        show(json.dumps((found.scores[0] if alone else found).to_json(), indent=2))
        return 0
    console = Screen()
    for score in found.scores:
        show_scores(score, console)
    if len(given) + len(files) > 1 or not given:
        side_by_side(found.scores, earlier, console)
    if options.paired:
        show_differences(found.differences, console)
    return 0


def _scores(given: list[str], options: EvaluateCommand, earlier: list[ScoreRow]) -> ScoreTable:
    """What `sims.api.compare` returns; rows that were measured earlier need no reference."""
    if not given:
        require_alike([], earlier, options.force)
        return ScoreTable()
    fields = {field.name for field in dataclasses.fields(ScoreOptions)}
    return api.compare(
        given,
        options.reference,
        held_out=options.held_out,
        options=ScoreOptions(**{name: getattr(options, name) for name in fields}),
        cache=options.cache,
        statistics=options.statistics,
        earlier=earlier,
        differences=options.paired,
    )


def read_rows(file: Path) -> list[ScoreRow]:
    """Rows written with --out; UserError where the file is missing, empty or holds something else."""
    try:
        rows = [ScoreRow.from_json(row) for row in read_json_lines(file)]
    except UserError as error:
        text = f"{file} cannot be read as rows of scores ({error}): give a file written with --out"
        raise UserError(text) from error
    if not rows:
        raise UserError(f"{file} holds no rows: give a file written with --out")
    return rows


def _append(file: Path, scores: Sequence[Scores]) -> None:
    with file.open("a") as stream:
        stream.write("".join(json.dumps(row.to_json()) + "\n" for score in scores for row in score.rows))


def show_scores(result: Scores, console: Screen) -> None:
    """The figures of one set of samples, and the lines that say what they are."""
    table = Table(title=Text(result.samples), title_justify="left", header_style="dim")
    table.add_column("metric", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("real against real", justify="right", no_wrap=True)
    table.add_column("n", justify="right")
    table.add_column("95 % from", style="dim")
    for metric, figure in result.figures.items():
        real = result.floor.get(metric)
        shown = [Text(_name(metric, result.extractor.name)), Text(_value(figure)), Text(fixed(real, _places(real)))]
        table.add_row(*shown, f"{figure.samples:,}", figure.interval)
    console.print(table)
    if result.classes:
        console.print(_classes(result.classes))
    for line in _lines(result):
        console.print(in_flags(line, EvaluateCommand), highlight=False, soft_wrap=True)


def _name(metric: str, extractor: str = "inception") -> str:
    """What a metric is called; the Inception Score is one for Inception's probabilities only."""
    if metric == "inception_score" and extractor != "inception":
        return f"IS of {extractor}"
    known = facts().get(metric)  # rows of a run may have others
    return known.title if known else metric


def _value(figure: ScoreFigure) -> str:
    places = _places(figure.mean)
    if figure.low is None or figure.high is None:
        return f"{figure.mean:.{places}f} ± –"
    return plus_minus(Interval(figure.mean, figure.low, figure.high), places)


def _places(value: float | None) -> int:
    """Decimals that show about four digits."""
    size = abs(value or 0.0)
    return 0 if size >= 1000 else 5 if 0 < size < 0.01 else decimals([size])


def _classes(rows: Sequence[ClassScores]) -> Table:
    table = Table(title=f"per class ({rows[0].told_by} classes)", title_justify="left", header_style="dim")
    for name in ("class", "samples", "share", "share of real", "Fréchet distance", "precision", "recall"):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in rows:
        shares = [f"{100 * share:.1f} %" for share in (row.share, row.reference_share)]
        values = [fixed(value, places) for value, places in ((row.frechet, 2), (row.precision, 3), (row.recall, 3))]
        table.add_row(row.name, f"{row.count:,}", *shares, *values)
    return table


def _lines(result: Scores) -> list[str]:
    e, train, held_out = result.extractor, result.reference, result.held_out
    count = f"{train.count:,} images" if train.count else "unknown number of images"
    lines = [f"features: {e.name} ({e.hash}, {e.num_features:,} numbers)"]
    lines.append(f"reference: {train.name}, {count} ({train.hash})")
    if held_out:
        lines.append(f"held out: {held_out.name}, {held_out.count:,} images ({held_out.hash})")
    draws, per = result.draws, result.samples_per_draw
    lines.append(f"{draws} draws of {per:,} samples" if draws > 1 else f"one draw of {per:,} samples")
    if result.floor_of:
        lines.append(f"real against real: {result.floor_of}")
    return [*lines, *result.notes]


def side_by_side(scores: Sequence[Scores], earlier: dict[Path, list[ScoreRow]], console: Screen) -> None:
    """One column per set of samples and file, the mean over draws; and a warning for samples that diverged."""
    columns: list[tuple[str, Sequence[ScoreRow]]] = [(score.samples, score.rows) for score in scores]
    for file, kept in earlier.items():
        names = dict.fromkeys(row.samples for row in kept)
        columns += [(f"{name} ({file.name})", [row for row in kept if row.samples == name]) for name in names]
    table = Table(title="side by side", title_justify="left", header_style="dim")
    table.add_column("metric")
    for name, _ in columns:
        table.add_column(Text(name), justify="right")
    for metric in dict.fromkeys(row.metric for _, rows in columns for row in rows):
        values = [[row.value for row in rows if row.metric == metric] for _, rows in columns]
        means = [sum(found) / len(found) if found else None for found in values]
        places = _places(max(abs(mean) for mean in means if mean is not None))
        table.add_row(_name(metric), *[fixed(mean, places) for mean in means])
    console.print(table)
    for name, rows in columns:
        worst = max(rows, key=lambda row: row.diverged)
        if worst.diverged:
            text = f"{name}: {diverged_words(worst.diverged, worst.num_samples)}"
            console.print(text, highlight=False, soft_wrap=True)


def show_differences(differences: Sequence[Difference], console: Screen) -> None:
    """The table of differences and the verdicts."""
    table = Table(title="first minus second", title_justify="left", header_style="dim")
    for name in ("metric", "difference", "95 %", "interval from"):
        table.add_column(name, justify="left" if name in ("metric", "interval from") else "right", no_wrap=True)
    for row in differences:
        places = _places(max(abs(row.low), abs(row.high)))
        limits = f"[{row.low:.{places}f}, {row.high:.{places}f}]"
        table.add_row(_name(row.metric), f"{row.difference:+.{places}f}", limits, row.interval)
    console.print(table)
    for row in differences:
        console.print(row.verdict, highlight=False, soft_wrap=True)
