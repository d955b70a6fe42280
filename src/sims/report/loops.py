"""The page of self-consuming loops and of the pollution experiment: what happens to a model fed with models' samples.

`summary.json` of a loop (besides title, conclusion, data, commands, config_toml, versions, seconds, stages):

    experiment "loop", kind, generations, arms [{name, label, method, w, cost: {…}}],
    curves {figure: {arm: [[one value per repeat] per generation]}}, floor {figure: value},
    accounting [{generation, arm, real, fresh, synthetic, from: {generation: number}}],
    verdicts {arm: {verdict: {holds, text}}}

Of a pollution experiment: experiment "pollution", levels, repeats, arms, table {figure: {arm: [[…] per level]}},
strengths {arm: {w, figures: {figure: [[[…] per w] per level]}}}, trusted {arm: {size, sizes, ratio, reliability}},
comparisons [{a, b, metric, level, difference, better, over_clean}], accounting [{level, used}].

`grids.npz`: `arm@place` (place: generation or level), uint8 (n, H, W, C) or points (n, 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sims.report.blocks import Block, Cell, Column, Details, Fact, Facts, Figure, Images, Prose, Section, Table
from sims.report.head import Hero, data_text
from sims.report.numbers import DASH, count, decimals, duration, fixed, percent, plus_minus, short_count, strength
from sims.report.palette import INK, MUTED, Palette
from sims.report.record import Interval, Record, interval, number
from sims.report.sections import reproduce
from sims.report.strips import make_strip, split_key
from sims.report.svg import house_style, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DISTANCES = ("w2", "sliced_w2", "fd", "fd_held_out", "check_fd", "check_fd_held_out")
NAMES = {
    "w2": "2-Wasserstein distance to the truth",
    "sliced_w2": "sliced Wasserstein distance to the truth",
    "fd": "FD to the clean training images",
    "fd_held_out": "FD to the test images",
    "check_fd": "FD to the training images, second extractor",
    "check_fd_held_out": "FD to the test images, second extractor",
    "precision": "precision",
    "recall": "recall",
    "memorized": "share suspiciously near a training sample",
    "distance_ratio": "distance to the nearest training sample, against held-out ones",
    "coverage": "modes covered",
    "class_distance": "total variation of class proportions",
    "log_det": "log determinant of the covariance",
}
VERDICTS = {"mad": "collapses (MAD)", "weak": "weak prevention", "strong": "strong prevention"}
Arm = dict[str, Any]


def make_loop_hero(record: Record) -> Hero:
    """The conclusion, as the run drew it."""
    summary = record.summary
    usual = "Self-consuming loop" if summary.get("experiment") == "loop" else "Training on polluted data"
    return Hero(
        title=str(summary.get("title") or usual),
        data=_data_text(record),
        headline=str(summary.get("conclusion") or summary.get("headline") or ""),
        big="",
        big_label="",
        big_interval="",
        convincing=False,
        verdict="",
        facts=_last_facts(record),
        verified=True,
        warnings=[str(item) for item in record.items("warnings")],
    )


def _data_text(record: Record) -> str:
    data = record.part("data")
    if data.get("shape") != [2]:
        return data_text(record)
    return f"{data.get('name')} · {count(data.get('num_train'))} real points in two dimensions"


def loop_methods(record: Record) -> list[str]:
    """The arms, in their order: each has a colour of its own."""
    return [str(arm["name"]) for arm in _arms(record)]


def make_loop_sections(record: Record, palette: Palette) -> list[Section]:
    """Every section that has something to show."""
    with house_style():
        found = [(id, title, build(record, palette)) for id, title, build in SECTIONS]
    return [Section(id, title, blocks) for id, title, blocks in found if blocks]


def band(values: Sequence[Any]) -> Interval | None:
    """Mean and 95 % t-interval over repeats; without repeats the mean alone."""
    found = [value for value in map(number, values) if value is not None]
    if not found:
        return None
    mean = sum(found) / len(found)
    if len(found) < 2:
        return Interval(mean)
    from scipy.stats import t

    spread = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
    half = float(t.ppf(0.975, len(found) - 1)) * spread / math.sqrt(len(found))
    return Interval(mean, mean - half, mean + half)


def _arms(record: Record) -> list[Arm]:
    return [arm for arm in record.items("arms") if isinstance(arm, dict) and arm.get("name")]


def _label(arm: Arm) -> str:
    return str(arm.get("label") or arm["name"])


def _curves(record: Record) -> dict[str, dict[str, list[list[Any]]]]:
    return record.part("curves") or record.part("table")


def _places(record: Record) -> tuple[list[float], str]:
    """Where the curves are measured, and what that is called."""
    if record.summary.get("experiment") == "pollution":
        return [float(level) for level in record.items("levels")], "pollution: synthetic samples, % of the real data"
    longest = max((len(curve) for arms in _curves(record).values() for curve in arms.values()), default=0)
    return [float(generation) for generation in range(longest)], "generation"


def _last_facts(record: Record) -> list[Fact]:
    """The main distance of every arm at the last generation or level."""
    curves = _curves(record)
    figure = next((name for name in DISTANCES if name in curves), None)
    if figure is None:
        return []
    places, _ = _places(record)
    found = [(arm, band(curves[figure][arm["name"]][-1])) for arm in _arms(record) if curves[figure].get(arm["name"])]
    digits = decimals([value.mean for _, value in found if value])
    last = f"generation {places[-1]:g}" if record.summary.get("experiment") == "loop" else f"{places[-1]:g} %"
    return [
        Fact(_label(arm), fixed(value.mean, digits), f"{NAMES.get(figure, figure)}, {last}")
        for arm, value in found
        if value
    ][:6]


def _samples(record: Record, palette: Palette) -> list[Block]:
    """Samples of every arm at a few generations or levels, the same seeds in the same columns."""
    labels = {arm["name"]: _label(arm) for arm in _arms(record)}
    found = {split_key(key): array for key, array in record.grids.items()}
    blocks: list[Block] = []
    if found:
        strips = []
        for name in labels:
            places = sorted(place for arm, place in found if arm == name and place is not None)
            for place in _thinned(places, 6):
                text = f"{labels[name]}, {_place_text(record, place)}"
                strips.append(make_strip(found[name, place], text, f"Samples of {text}", palette[name].variable))
        if record.real is not None:
            strips.append(make_strip(record.real, "real", "Clean training images, not samples"))
        blocks.append(Images(strips, "Each column starts from the same noise. Samples are not selected."))
    if record.points and (drawing := _scatter(record, palette, labels)) is not None:
        caption = "Samples at a few generations; the same noise in every row. Grey: the truth."
        blocks.append(Figure(to_svg(drawing, palette, "Scatter plots of samples per generation.", "points"), caption))
    return blocks


def _place_text(record: Record, place: float) -> str:
    return f"generation {place:g}" if record.summary.get("experiment") == "loop" else f"{place:g} %"


def _thinned(places: Sequence[float], most: int) -> list[float]:
    """At most ``most`` of the places, first and last among them."""
    if len(places) <= most:
        return list(places)
    return [places[round(index * (len(places) - 1) / (most - 1))] for index in range(most)]


def _scatter(record: Record, palette: Palette, labels: dict[str, str]) -> Drawing | None:
    found = {split_key(key): array for key, array in record.points.items()}
    truth = record.points.get("truth")
    names = [name for name in labels if any(arm == name for arm, _ in found)]
    if not names:
        return None
    places = _thinned(sorted({place for arm, place in found if arm in names and place is not None}), 6)
    reach = max(float(abs(array).max()) for array in record.points.values() if array is truth or truth is None) * 1.1
    figure = new_figure(1.55 * len(names) + 0.3)
    grid = figure.subplots(len(names), len(places), sharex=True, sharey=True, squeeze=False)
    for index, (row, name) in enumerate(zip(grid, names)):
        for axes, place in zip(row, places):
            if truth is not None:
                axes.plot(*truth[:800].T, ".", color=MUTED, markersize=2, markeredgewidth=0, alpha=0.3, rasterized=True)
            if (name, place) in found:
                points = found[name, place][:800]
                axes.plot(
                    *points.T,
                    ".",
                    color=palette[name].light,
                    markersize=3,
                    markeredgewidth=0,
                    alpha=0.7,
                    rasterized=True,
                )
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
            if index == 0:
                axes.set_title(_place_text(record, place))
        row[0].set_ylabel(labels[name].replace(", ", ",\n"), fontsize="small")
    return figure


def _distances(record: Record, palette: Palette) -> list[Block]:
    curves = _curves(record)
    chosen = [name for name in DISTANCES if name in curves]
    if not chosen:
        return []
    what = "generation" if record.summary.get("experiment") == "loop" else "pollution"
    caption = f"Mean over the repeats; bands are 95 % intervals of the mean. Lower is better. Against {what}."
    if record.part("floor"):
        caption += " Dotted: what real data score in the samples' place."
    drawing = _panels(record, palette, chosen)
    blocks: list[Block] = [Figure(to_svg(drawing, palette, f"Distances against {what}.", "distances"), caption)]
    table = _distance_table(record, palette, chosen)
    return [*blocks, table]


def _others(record: Record, palette: Palette) -> list[Block]:
    chosen = [name for name in _curves(record) if name not in DISTANCES]
    if not chosen:
        return []
    drawing = _panels(record, palette, chosen)
    caption = "The other figures, measured on the same samples; bands are 95 % intervals of the mean."
    return [Figure(to_svg(drawing, palette, "Further figures of every arm.", "figures"), caption)]


def _panels(record: Record, palette: Palette, chosen: Sequence[str]) -> Drawing:
    places, title = _places(record)
    columns = min(2, len(chosen))
    lines = math.ceil(len(chosen) / columns)
    figure = new_figure(2.75 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, name in zip(grid.flat, chosen):
        _panel(axes, record, palette, name, places)
        axes.set_xlabel(title)
        if title == "generation":
            axes.xaxis.get_major_locator().set_params(integer=True)
    for axes in list(grid.flat)[len(chosen) :]:
        axes.set_axis_off()
    handles, labels = grid.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=min(4, len(labels) or 1))
    return figure


def _panel(axes: Axes, record: Record, palette: Palette, name: str, places: Sequence[float]) -> None:
    for arm in _arms(record):
        curve = _curves(record)[name].get(arm["name"]) or []
        found = [(place, band(values)) for place, values in zip(places, curve)]
        kept = [(place, value) for place, value in found if value is not None]
        if not kept:
            continue
        swatch = palette[arm["name"]]
        at = [place for place, _ in kept]
        marker = swatch.marker if len(at) <= 15 else ""
        axes.plot(at, [value.mean for _, value in kept], color=swatch.light, marker=marker, label=_label(arm))
        if all(value.low is not None for _, value in kept):
            low, high = [value.low for _, value in kept], [value.high for _, value in kept]
            axes.fill_between(at, low, high, color=swatch.light, alpha=0.16, linewidth=0)  # type: ignore[arg-type]
    floor = interval(record.part("floor").get(name))
    if floor is not None:
        axes.axhline(floor.mean, color=INK, linewidth=1.0, linestyle=(0, (1, 1.5)), zorder=0)
    axes.set_title(NAMES.get(name, name.replace("_", " ")))
    axes.grid()
    axes.tick_params(length=0)
    if name in DISTANCES:
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])


def _distance_table(record: Record, palette: Palette, chosen: Sequence[str]) -> Table:
    """Every arm at a few generations, or at every level."""
    places, _ = _places(record)
    shown = places if record.summary.get("experiment") == "pollution" else _thinned(places, 6)
    columns = [Column("arm", False)]
    groups: list[tuple[str, int]] = [("", 1)]
    for name in chosen:
        columns += [Column(f"{place:g}") for place in shown]
        groups.append((NAMES.get(name, name), len(shown)))
    curves = _curves(record)
    digits = {
        name: decimals([value.mean for curve in curves[name].values() for v in curve if (value := band(v))])
        for name in chosen
    }
    rows = []
    for arm in _arms(record):
        line = [Cell(_label(arm), swatch=palette[arm["name"]].variable)]
        for name in chosen:
            curve = dict(zip(places, curves[name].get(arm["name"]) or []))
            line += [Cell(plus_minus(band(curve.get(place, [])), digits[name])) for place in shown]
        rows.append(line)
    return Table(columns, rows, "Mean over the repeats ± half the 95 % interval.", groups=groups)


def _verdicts(record: Record, palette: Palette) -> list[Block]:
    verdicts = record.part("verdicts")
    if not verdicts:
        return []
    rows = []
    for arm in _arms(record):
        for key, found in (verdicts.get(arm["name"]) or {}).items():
            if isinstance(found, dict):
                holds = {True: "yes", False: "no"}.get(found.get("holds"), DASH)  # type: ignore[arg-type]
                cells = [
                    Cell(_label(arm), swatch=palette[arm["name"]].variable),
                    Cell(VERDICTS.get(key, key)),
                    Cell(holds),
                ]
                rows.append([*cells, Cell(str(found.get("text") or ""))])
    columns = [Column("arm", False), Column("verdict", False), Column("holds", False), Column("because", False)]
    return [Table(columns, rows, "What each verdict means is in docs/loops.md.")] if rows else []


def _levels(record: Record, palette: Palette) -> list[Block]:
    """Pollution: the paired differences from standard training at every level."""
    found = [item for item in record.items("comparisons") if isinstance(item, dict) and item.get("difference")]
    if record.summary.get("experiment") != "pollution" or not found:
        return []
    labels = {arm["name"]: _label(arm) for arm in _arms(record)}
    values = [interval(item["difference"]) for item in found]
    digits = decimals([value.mean for value in values if value])
    rows = []
    for item, value in zip(found, values):
        name = str(item.get("a"))
        clean = interval(item.get("over_clean"))
        rows.append([
            Cell(labels.get(name, name), swatch=palette[name].variable),
            Cell(NAMES.get(str(item.get("metric")), str(item.get("metric")))),
            Cell(f"{number(item.get('level')) or 0:g} %"),
            Cell(plus_minus(value, digits)),
            Cell("better" if item.get("better") else "not shown"),
            Cell(plus_minus(clean, 2)),
        ])  # fmt: skip
    columns = [Column("arm", False), Column("of", False), Column("pollution"), Column("difference")]
    columns += [Column("verdict", False), Column("over clean")]
    caption = "Against standard training, paired by repeat; ± is half the 95 % interval. Over clean: as a multiple of "
    return [Table(columns, rows, caption + "standard training without synthetic samples.")]


def _strengths(record: Record, palette: Palette) -> list[Block]:
    """FD against w, a panel for every guided remedy and a line for every level."""
    found = {name: entry for name, entry in record.part("strengths").items() if isinstance(entry, dict)}
    found = {name: entry for name, entry in found.items() if (entry.get("figures") or {}).get("fd")}
    if not found:
        return []
    figure = new_figure(3.0)
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axes, (name, entry) in zip(panels, found.items()):
        curves = entry["figures"]["fd"]
        for index, (level, curve) in enumerate(zip(record.items("levels"), curves)):
            points = [(w, value.mean) for w, values in zip(entry["w"], curve) if (value := band(values))]
            if not points:
                continue
            shade = 0.35 + 0.65 * (index + 1) / len(curves)
            axes.plot(*zip(*points), color=palette[name].light, alpha=shade, marker="o", markersize=4)
            axes.annotate(f"{level:g} %", points[-1], xytext=(5, 0), textcoords="offset points")
        axes.set(xlabel="w", title=name)
        axes.grid()
        axes.tick_params(length=0)
    panels[0].set_ylabel("FD to the clean training images")
    panels[0].set_ylim(0, 1.04 * panels[0].get_ylim()[1])
    caption = "FD against the guidance strength, one line per level of pollution, mean over the repeats."
    return [Figure(to_svg(figure, palette, "FD against w per pollution level.", "strengths"), caption)]


def _trusted(record: Record, palette: Palette) -> list[Block]:
    """How good the strength is that a few trusted images choose, by their number."""
    blocks: list[Block] = []
    for name, entry in record.part("trusted").items():
        if not isinstance(entry, dict) or not entry.get("sizes"):
            continue
        rows = []
        for place, size in enumerate(entry["sizes"]):
            cells = [item for level in entry["reliability"] for item in level[place] if isinstance(item, dict)]
            means = [band([item.get(key) for item in cells]) for key in ("ratio", "ratio_90", "within_10_percent")]
            ratio, far, near = (None if value is None else value.mean for value in means)
            rows.append([Cell(str(size)), Cell(fixed(ratio, 3)), Cell(fixed(far, 3)), Cell(percent(near, 0))])
        columns = [Column("trusted images"), Column("mean"), Column("90th percentile"), Column("within 10 %")]
        caption = (
            f"{name}: FD at the strength that random sets of trusted images choose, over FD at the best strength "
            "(1 = as good), over all levels and repeats."
        )
        blocks.append(Table(columns, rows, caption))
        used = [value for row in entry.get("ratio") or [] for value in map(number, row) if value is not None]
        if used:
            text = f"The {entry.get('size')} trusted images of this run: {fixed(sum(used) / len(used), 3)} on average"
            blocks.append(Prose(f"{text}, {fixed(max(used), 3)} at worst."))
    return blocks


def _cost(record: Record, palette: Palette) -> list[Block]:
    arms = [arm for arm in _arms(record) if isinstance(arm.get("cost"), dict) and arm["cost"]]
    if not arms:
        return []
    keys = list(dict.fromkeys(key for arm in arms for key in arm["cost"]))
    rows = []
    for arm in arms:
        line = [Cell(_label(arm), swatch=palette[arm["name"]].variable)]
        for key in keys:
            value = arm["cost"].get(key)
            line.append(Cell(duration(value) if "seconds" in key else short_count(value)))
        rows.append(line)
    columns = [Column("arm", False), *(Column(key.replace("_", " ")) for key in keys)]
    what = "all generations" if record.summary.get("experiment") == "loop" else "a level"
    return [Table(columns, rows, f"What {what} of one repeat cost; nfe: network evaluations of a sample.")]


def _accounting(record: Record, palette: Palette) -> list[Block]:
    """What every generation, or the model of every level, was trained on."""
    items = [item for item in record.items("accounting") if isinstance(item, dict)]
    if not items:
        return []
    if record.summary.get("experiment") == "pollution":
        rows = []
        for item in items:
            used = dict(item.get("used") or {})
            real = used.pop("real", 0)
            drawn = sum(value for value in map(number, used.values()) if value is not None)
            rows.append([Cell(f"{number(item.get('level')) or 0:g} %"), Cell(count(real)), Cell(count(drawn))])
        columns = [Column("pollution"), Column("real"), Column("synthetic")]
        return [Details("What the model of every level was trained on", [Table(columns, rows)])]
    labels = {arm["name"]: _label(arm) for arm in _arms(record)}
    rows = []
    for item in items:
        sources = item.get("from") or {}
        text = ", ".join(f"{count(number(num))} of generation {place}" for place, num in sources.items()) or DASH
        arm = labels.get(str(item.get("arm")), str(item.get("arm") or "all"))
        figures = [Cell(count(item.get(key))) for key in ("real", "fresh", "synthetic")]
        rows.append([Cell(str(item.get("generation", ""))), Cell(arm), *figures, Cell(text)])
    columns = [Column("generation"), Column("arm", False), Column("real"), Column("fresh"), Column("synthetic")]
    table = Table([*columns, Column("synthetic from", False)], rows)
    return [Details("What every generation was trained on", [table])]


def _facts(record: Record, palette: Palette) -> list[Block]:
    summary = record.summary
    facts = [
        Fact("Kind", str(summary.get("kind") or DASH)),
        Fact("Generations", count(summary.get("generations"))),
        Fact("Repeats", count(summary.get("repeats") or summary.get("replicas"))),
        Fact(
            "Strengths", ", ".join(dict.fromkeys(strength(arm["w"]) for arm in _arms(record) if number(arm.get("w"))))
        ),
    ]
    kept = [fact for fact in facts if fact.value not in (DASH, "")]
    return [Facts(kept)] if kept else []


SECTIONS: tuple[tuple[str, str, Callable[[Record, Palette], list[Block]]], ...] = (
    ("setting", "Setting", _facts),
    ("distances", "Distance to the real distribution", _distances),
    ("verdicts", "Verdicts", _verdicts),
    ("levels", "Standard training against SIMS", _levels),
    ("samples", "Samples", _samples),
    ("figures", "Other figures", _others),
    ("strengths", "Strength", _strengths),
    ("trusted", "Choosing w with a few trusted images", _trusted),
    ("cost", "Cost", _cost),
    ("accounting", "Real and synthetic data", _accounting),
    ("reproduce", "Reproduce", lambda record, palette: reproduce(record)),
)
