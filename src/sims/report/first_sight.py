"""What a page opens with: one picture, the same seeds side by side, and one plain sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sims.report import curves, improve_figures, shares
from sims.report import numbers as say
from sims.report.blocks import Images, Strip
from sims.report.context import Context, base_row, called, title
from sims.report.curves import Loops
from sims.report.head import Opening
from sims.report.improve_figures import Improve
from sims.report.improve_page import change_interval, leading_row
from sims.report.shares import Shift, value_of
from sims.report.shift_page import apart
from sims.report.strips import make_strip, split_key
from sims.results.common import Figure, Result, Row
from sims.results.improve import ImproveResult
from sims.results.loop import Arm, LoopResult, PollutionResult
from sims.results.shift import STEERED, ShiftResult

SAME_NOISE = "Each column starts from the same noise; samples are not selected."
REAL = " The row “real” shows real images, which correspond to nothing above them."
REFERENCE = {"fd_held_out": "held-out images", "fd": "training images"}  # the first that was measured is spoken of


# -- the main job ------------------------------------------------------------------------------------------------------


def improve_opening(c: Improve) -> Opening:
    """The base, what was saved, the distilled network, and real images; by how much the distance fell."""
    result, base = c.result, base_row(c.result.rows)
    labels = list(dict.fromkeys(row.label for row in (base, result.row(result.free), _subject(result)) if row))
    labels += [result.distilled] if result.distilled and result.distilled not in labels else []
    picture = _rows_picture(c, result.rows, labels, next(iter(_measured(result)), ""))
    return Opening(_improve_sentence(result), picture or improve_figures.fd_dots(c, labels, "opening"))


def _subject(result: ImproveResult) -> Row | None:
    """The model that was saved; what the claim is about where that is the base, or none was."""
    saved = result.row(result.improved)
    return saved if saved is not None and saved is not base_row(result.rows) else leading_row(result)


def _measured(result: ImproveResult) -> list[str]:
    """The distances that the base and the subject have, held-out images first."""
    rows = (base_row(result.rows), _subject(result))
    return [name for name in REFERENCE if all(row is not None and name in row.figures for row in rows)]


def _improve_sentence(result: ImproveResult) -> str:
    """Empty where nothing was measured: the run's own words then stand alone."""
    base, ours, measured = base_row(result.rows), _subject(result), _measured(result)
    if base is None or ours is None or ours is base or not measured:
        return ""
    name, figure = called(result, ours.label), measured[0]
    old, new = base.figures[figure].mean, ours.figures[figure].mean
    places = say.decimals([old, new])
    limits = [change_interval(result, ours, base, each) for each in measured]
    shown = result.verified and all(found is not None and found[2] < 0 for found in limits)
    by = f", by {say.percent(1 - new / old, 0)}" if 0 < new < old else ""
    numbers = f"from {say.fixed(old, places)} to {say.fixed(new, places)}"
    distance = f"distance (FD) to {REFERENCE[figure]}"
    if new >= old:
        return f"With {name} the samples are no better: their {distance} goes {numbers}."
    free = result.row(result.free)
    if shown and free is not None and figure in free.figures:
        best, reached = called(result, free.label), say.fixed(free.figures[figure].mean, places)
        beside = "" if free is ours else f", and {name} ({say.fixed(new, places)}) is not shown to be better"
        falls = f"the {distance} falls from {say.fixed(old, places)} to {reached}"
        return f"No training is needed: with {best} {falls}{beside}."
    if shown:
        return f"With {name} the samples are better: their {distance} falls {numbers}{by}."
    by_chance = any(found is None or found[2] >= 0 for found in limits)
    why = "maybe by chance" if by_chance else "which the run did not verify"
    return f"It is not shown that samples are better with {name}: their {distance} goes {numbers}, {why}."


# -- loops and pollution -----------------------------------------------------------------------------------------------


def loop_opening(c: Loops) -> Opening:
    """Standard training at the beginning and at the end, the best arm at the end, and real samples."""
    result, names, places = c.result, curves.distances_of(c.result), curves.places_of(c.result)
    if not names or not result.arms:
        return Opening("")
    last = {arm.name: Figure.of(result.curves[names[0]][arm.name][-1]).mean for arm in result.arms}
    standard, best = result.arms[0], min(result.arms, key=lambda arm: last[arm.name])
    wanted = [(standard, places[0]), (standard, places[-1])] + [(best, places[-1])] * (best is not standard)
    images = {split_key(key): array for key, array in c.pictures.images.items()}
    strips = []
    for arm, place in ((arm, place) for arm, place in wanted if (arm.name, place) in images):
        figure = Figure.of(result.curves[names[0]][arm.name][places.index(place)]).mean
        label = f"{arm.label}, {curves.place_text(result, place)}"
        numbers = f"{title(result, names[0])} {say.fixed(figure, say.decimals([figure]))}"
        strip = make_strip(
            images[arm.name, place], label, f"Samples of {label}, {numbers}", c.palette[arm.name].variable
        )
        strips.append(strip)
    drawn = curves.point_grid(c, "opening", 1) or curves.curve_panels(
        c, "opening", names[:1], f"{title(result, names[0])}: mean over the repeats. Lower is better."
    )
    return Opening(_loop_sentence(result, names[0], standard, best, last), _pictured(strips, c) or drawn)


def _loop_sentence(
    result: LoopResult | PollutionResult, figure: str, standard: Arm, best: Arm, last: dict[str, float]
) -> str:
    first = Figure.of(result.curves[figure][standard.name][0]).mean
    places = say.decimals([first, *last.values()])
    begin, ours, theirs = (say.fixed(value, places) for value in (first, last[best.name], last[standard.name]))
    if isinstance(result, PollutionResult):
        where = f"With {result.levels[-1]:g} % synthetic samples among the real data"
        start = f" (with {result.levels[0]:g} %: {begin})"
    else:
        where, start = f"After {result.generations} generations", f" (it began at {begin})"
    text = f"{where}, {title(result, figure)} is {theirs} with {standard.label}{start}"
    others = "and no other arm is lower" if best is standard else f"and {ours} with {best.label}, the lowest"
    alone = "" if result.repeats > 1 else "; a single run, so chance is not ruled out"
    return f"{text}, {others}{alone}." if len(result.arms) > 1 else f"{text}{alone}."


# -- proportions -------------------------------------------------------------------------------------------------------


def shift_opening(c: Shift) -> Opening:
    """The base, what was saved and the distilled network; how far the steered model is from the target."""
    result = c.result
    labels = list(dict.fromkeys([result.base.label, result.improved or STEERED, result.distilled]))
    rows = [row for row in result.rows if row.label in labels]
    drawn = shares.share_plot(c, rows, shares.farthest(result, shares.MOST), "opening")
    picture = _rows_picture(c, result.rows, labels, "fd_target")
    return Opening(_shift_sentence(result), picture or drawn)


def _shift_sentence(result: ShiftResult) -> str:
    steered = result.row(STEERED)
    before, after = value_of(result.base.proportions.tv), value_of(steered.proportions.tv) if steered else None
    if before is None or after is None:
        return ""
    numbers = f"total variation from them goes from {say.fixed(before.mean, 3)} to {say.fixed(after.mean, 3)}"
    if after.mean >= before.mean:
        return f"Steering does not bring the samples nearer to the proportions that were asked for: {numbers}."
    if apart(after, before):
        return f"Steering brings the samples nearer to the proportions that were asked for: {numbers}."
    return f"Steering is not shown to bring the samples nearer to what was asked for: {numbers}, maybe by chance."


# -- pictures ----------------------------------------------------------------------------------------------------------


def _rows_picture(c: Context[Result], rows: Iterable[Row], labels: Sequence[str], figure: str) -> Images | None:
    """A strip for each of these rows, with the figure in its alternative text; None where the run kept no pictures."""
    by_label, strips = {row.label: row for row in rows}, []
    for row in (by_label[label] for label in labels if label in by_label):
        keys = [key for key in c.pictures.images if split_key(key)[0] == row.label]
        key = next((key for key in keys if split_key(key)[1] in (row.w, None)), None)
        if key is None:
            continue
        name, value = c.palette.name(row.label), row.mean(figure)
        of = f"{name}, w = {say.strength(row.w)}" if row.w else name
        numbers = "" if value is None else f", {title(c.result, figure)} {say.fixed(value, say.decimals([value]))}"
        swatch = c.palette[row.label].variable
        strips.append(make_strip(c.pictures.images[key], name, f"Samples of {of}{numbers}", swatch))
    return _pictured(strips, c)


def _pictured(strips: Sequence[Strip], c: Context[Result]) -> Images | None:
    if not strips:
        return None
    if c.pictures.real is None:
        return Images(strips, SAME_NOISE)
    return Images([*strips, make_strip(c.pictures.real, "real", "Real images, not samples")], SAME_NOISE + REAL)
