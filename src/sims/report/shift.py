"""The page of distribution control: which proportions were asked for, what was reached, and what it cost.

`summary.json` of a shift (besides title, headline, warnings, data, extractor, commands, config_toml, versions, stages):

    experiment "shift", improved (the label of what was saved), attribute {name, values}, target [K],
    real {counts, shares}, classifiers {role: {accuracy, confusion [K][K], true by called}},
    solver {base {values}, reach {far}, reason, rounds [{round, w, proportions, samples, candidates_per_sample, limited,
    values, n, tv, fd_target, chosen}]},
    rows [{label, w, nfe, cost {images, evaluations, labelled, total}, note, draws, samples_per_draw,
    proportions {values, low, high, tv, kl}, fd_target, fd_held_out_target, check_fd_target,
    groups [{value, n, fd, precision, recall}]}],
    costs [{label, nfe, cost, tv, rejection, rejection_at_equal_error: {nfe, times, break_even}}]

`proportions`, `tv` and `kl` are the judge's, tv and kl {value, low, high}. In `grids.npz`, `label` is of the same seeds
each and `label#k` samples of the k-th value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sims.report.blocks import (
    Block,
    Cell,
    Column,
    Details,
    Fact,
    Figure,
    Images,
    Notice,
    Prose,
    Section,
    Table,
)
from sims.report.head import Hero, data_text
from sims.report.numbers import DASH, count, decimals, fixed, percent, plus_minus, short_count, strength
from sims.report.palette import INK, LINE, Palette
from sims.report.record import Interval, Record, Row, interval, mean, number
from sims.report.sections import extractor_text, reproduce
from sims.report.strips import MAX_STRIPS, make_strip, sample_grids
from sims.report.svg import house_style, new_figure, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

MODELS = ("base", "steered", "steered (cached)", "distilled")  # what the run is about; all else are baselines
LOOKS = {"steered": "sims", "steered (cached)": "cached"}
DISTANCES = (("fd_target", "FD train"), ("fd_held_out_target", "FD test"), ("check_fd_target", "FD check"))
MOST = 16  # values in a figure
SPENT = (("images", "training images"), ("evaluations", "evaluations"), ("labelled", "images labelled"))
WORSE = "worse than the base within "  # how a warning about a group begins


def make_shift_hero(record: Record) -> Hero:
    """Total variation to the target by the judge, before and after, in the words that the intervals allow."""
    before, after = (_part_interval(_row(record, label), "tv") for label in ("base", "steered"))
    big = label = text = ""
    if after is not None:
        big, label = fixed(after.mean, 3), "total variation to the target, steered, by the judge"
        label += "" if before is None else f"; the base: {_with_ends(before, 3)}"
        text = "" if after.low is None else f"95 %: {fixed(after.low, 3)} to {fixed(after.high, 3)}"
    return Hero(
        title=str(record.summary.get("title") or "Proportions to a target"),
        data=data_text(record),
        headline=_sentence(record.summary.get("headline")),
        big=big,
        big_label=label,
        big_interval=text,
        convincing=_apart(after, before),
        verdict=_verdict(record, before, after),
        facts=_hero_facts(record),
        verified=True,
        warnings=_warnings(record),
    )


def shift_methods(record: Record) -> list[str]:
    """The contenders, in their order: each has a colour of its own."""
    return [_look(row) for row in _rows(record)]


def make_shift_sections(record: Record, palette: Palette) -> list[Section]:
    """Every section that has something to show."""
    with house_style():
        found = [(id, title, build(record, palette)) for id, title, build in SECTIONS]
    return [Section(id, title, blocks) for id, title, blocks in found if blocks]


def _rows(record: Record) -> list[Row]:
    return [row for row in record.rows if row.get("label")]


def _row(record: Record, label: str) -> Row:
    """A contender by its label, empty where there is none."""
    return next((row for row in _rows(record) if row["label"] == label), {})


def _look(row: Row) -> str:
    return LOOKS.get(str(row["label"]), str(row["label"]))


def _name(row: Row, palette: Palette, note: str = "") -> Cell:
    return Cell(str(row["label"]), note, swatch=palette[_look(row)].variable)


def _names(record: Record) -> list[str]:
    return [str(value) for value in record.part("attribute").get("values") or []]


def _dict(item: Row, name: str) -> Row:
    value = item.get(name)
    return value if isinstance(value, dict) else {}


def _dicts(values: Any) -> list[Row]:
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list) else []


def _at(values: Any, place: int) -> float | None:
    """A number of a list, None where the list or the number is missing."""
    return number(values[place]) if isinstance(values, list) and place < len(values) else None


def _share(row: Row, place: int) -> Interval | None:
    """The share of a value among a contender's samples, by the judge."""
    value, low, high = (_at(_dict(row, "proportions").get(key), place) for key in ("values", "low", "high"))
    return None if value is None else Interval(value, low, high)


def _part_interval(row: Row, name: str) -> Interval | None:
    """What a contender's proportions say of the distance to the target, `tv` or `kl`."""
    found = _dict(_dict(row, "proportions"), name)
    return interval({**found, "mean": found.get("value")})


def _with_ends(value: Interval | None, places: int) -> str:
    """A figure with the ends of its interval, which need not lie evenly around it."""
    if value is None or value.low is None or value.high is None:
        return DASH if value is None else fixed(value.mean, places)
    return f"{fixed(value.mean, places)} [{fixed(value.low, places)}, {fixed(value.high, places)}]"


def _share_text(value: Interval | None) -> str:
    if value is None or value.low is None or value.high is None:
        return DASH if value is None else percent(value.mean)
    return f"{percent(value.mean)} [{fixed(100 * value.low, 1)}, {fixed(100 * value.high, 1)}]"


def _short(name: str, most: int = 30) -> str:
    """A name without its middle where it is long: the ends tell names apart."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[1 - most // 2 :]}"


def _apart(after: Interval | None, before: Interval | None) -> bool:
    """Whether the one lies below the other, intervals included."""
    high, low = after.high if after else None, before.low if before else None
    return high is not None and low is not None and high < low


def _warnings(record: Record) -> list[str]:
    """The run's warnings, those about groups as one."""
    texts = [str(item) for item in record.items("warnings")]
    worse = [text.removeprefix(WORSE) for text in texts if text.startswith(WORSE)]
    others = [text for text in texts if not text.startswith(WORSE)]
    return [_sentence(text) for text in (*others, *([WORSE + "; ".join(worse)] if worse else []))]


def _sentence(text: Any) -> str:
    """What the run says in its log, as it is written on a page."""
    words = str(text or "").replace(" -> ", " → ")
    return words[:1].upper() + words[1:]


def _verdict(record: Record, before: Interval | None, after: Interval | None) -> str:
    """Nearer, not shown, or not nearer; what is left; and who else came nearer."""
    if before is None or after is None:
        return ""
    if after.mean >= before.mean:
        words = ["The steered model lies no nearer to the target than the base."]
    elif _apart(after, before):
        words = ["The steered model lies nearer to the target than the base: the two 95 % intervals do not meet."]
    else:
        words = ["The steered model lies nearer to the target than the base, but the 95 % intervals overlap."]
    if after.low is not None:
        left = "What is left may be error of measurement." if after.low <= 0 else f"At least {after.low:.3f} is left."
        words.append(left)
    old, new = (mean(_row(record, label), "fd_target") for label in ("base", "steered"))
    if old is not None and new is not None and new > old:
        words.append(f"Its FD to real data in the target’s proportions is higher ({fixed(old)} → {fixed(new)}).")
    found = [(str(row["label"]), _part_interval(row, "tv")) for row in _rows(record) if row["label"] not in MODELS]
    nearer = [f"{label} ({fixed(tv.mean, 3)})" for label, tv in found if tv is not None and tv.mean < after.mean]
    return " ".join([*words, f"Nearer still: {', '.join(nearer)}."] if nearer else words)


def _hero_facts(record: Record) -> list[Fact]:
    """Base → steered, one tile per figure; and what was saved."""
    before, after = _row(record, "base"), _row(record, "steered")
    facts = []
    for place in _farthest(record, 1):
        ours, theirs = _share(after, place), _share(before, place)
        if ours and theirs:
            note = f"base {percent(theirs.mean)}, target {percent(_at(record.items('target'), place))}"
            note = note.replace(" %", "\u00a0%")
            facts.append(Fact(f"Share of {_short(_names(record)[place])}", percent(ours.mean), note))
    for key, title in DISTANCES[:2]:
        values = [interval(row.get(key)) for row in (before, after)]
        if values[0] and values[1]:
            places = decimals([value.mean for value in values if value])
            half = "" if values[1].half is None else f"± {fixed(values[1].half, places)}, "
            facts.append(Fact(title, fixed(values[1].mean, places), f"{half}base {fixed(values[0].mean, places)}"))
    if number(after.get("nfe")) and number(before.get("nfe")):
        note = f"per sample, base {short_count(before['nfe'])}"
        facts.append(Fact("Evaluations", short_count(after["nfe"]), note))
    improved = record.summary.get("improved")
    if improved:
        row = _row(record, str(improved))
        tv = _part_interval(row, "tv")
        note = "" if tv is None else f"total variation {fixed(tv.mean, 3)}, {short_count(row.get('nfe'))} evaluations"
        facts.append(Fact("Saved as improved/", str(improved), note))
    return facts


def _farthest(record: Record, most: int) -> list[int]:
    """The values whose share the target changes most, in their own order."""
    target, base = record.items("target"), _row(record, "base")

    def away(place: int) -> float:
        wanted, share = _at(target, place), _share(base, place)
        return -1.0 if wanted is None or share is None else round(abs(wanted - share.mean), 6)

    return sorted(sorted(range(len(_names(record))), key=away, reverse=True)[:most])


def _proportions(record: Record, palette: Palette) -> list[Block]:
    names = _names(record)
    rows = [row for row in _rows(record) if any(_share(row, place) for place in range(len(names)))]
    if not rows:
        return []
    models = [row for row in rows if row["label"] in MODELS] or rows
    others = [row for row in rows if row not in models]
    blocks: list[Block] = [Prose(text)] if (text := _setting(record)) else []
    places = _farthest(record, MOST)
    alt = "Dot plot of the share of every value: the target, the base and the steered models, with 95 % intervals."
    caption = "Shares by the judge, corrected for its errors, on evaluation seeds; bars are 95 % intervals."
    if len(places) < len(names):
        caption += f" The {len(places)} values that the target changes most; all {len(names)} are in the table."
    drawing = _share_plot(record, palette, models, places)
    blocks += [Figure(to_svg(drawing, palette, alt, "proportions"), caption), _share_table(record, palette, models)]
    return [*blocks, Details("Shares of the baselines", [_share_table(record, palette, others)])] if others else blocks


def _setting(record: Record) -> str:
    """The attribute, and what the base was trained on where it was cut for the purpose."""
    data, name = record.part("data"), record.part("attribute").get("name")
    text = f"Proportions of the attribute “{name}”." if name else ""
    if data.get("imbalance"):
        text += f" For the purpose the base’s training data were cut ({data['imbalance']})"
        text += f" to {count(data['num_base_train'])} images." if data.get("num_base_train") else "."
    return text


def _share_plot(record: Record, palette: Palette, rows: Sequence[Row], places: Sequence[int]) -> Drawing:
    """A line per value: the target as a stroke, the contenders as dots with intervals."""
    figure = new_figure(0.8 + len(places) * (0.16 + 0.13 * len(rows)))
    axes = figure.subplots()
    reach = 0.3 if len(rows) > 1 else 0.0
    for index, row in enumerate(rows):
        swatch = palette[_look(row)]
        for line, place in enumerate(places):
            value = _share(row, place)
            if value is None:
                continue
            at = line + (2 * reach * index / max(1, len(rows) - 1) - reach)
            if value.low is not None and value.high is not None:
                axes.plot([value.low, value.high], [at, at], color=swatch.light, linewidth=2, solid_capstyle="butt")
            axes.plot(value.mean, at, swatch.marker, color=swatch.light, markersize=6, clip_on=False)
        axes.plot([], [], swatch.marker, color=swatch.light, linestyle="none", label=_short(str(row["label"])))
    for line, place in enumerate(places):
        axes.axhline(line + 0.5, color=LINE, linewidth=0.6, zorder=0)
        share = _at(record.items("target"), place)
        if share is not None:
            axes.plot([share, share], [line - 0.46, line + 0.46], color=INK, linewidth=1.6, zorder=1)
    axes.plot([], [], "|", color=INK, markersize=10, markeredgewidth=1.6, markeredgecolor=INK, label="target")
    axes.set_yticks(range(len(places)), [_short(_names(record)[place]) for place in places])
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.set_xlim(0, min(1.0, axes.get_xlim()[1]))
    axes.xaxis.set_major_formatter(lambda value, _: f"{strength(100 * float(value))} %")
    axes.grid(axis="x")
    axes.tick_params(length=0)
    axes.spines["left"].set_visible(False)
    figure.legend(loc="outside upper left", ncols=5)
    return figure


def _share_table(record: Record, palette: Palette, rows: Sequence[Row]) -> Table:
    """Target, share among the labelled training images, and each contender's share with its interval."""
    target, real = record.items("target"), record.part("real").get("shares")
    lines = []
    for place, name in enumerate(_names(record)):
        line = [Cell(name), Cell(percent(_at(target, place)))]
        line += [Cell(percent(_at(real, place)))] if real else []
        lines.append([*line, *(Cell(_share_text(_share(row, place))) for row in rows)])
    columns = [Column(str(record.part("attribute").get("name") or "value"), False), Column("target")]
    columns += [Column("real data")] if real else []
    return Table([*columns, *(Column(str(row["label"])) for row in rows)], lines)


def _table(record: Record, palette: Palette) -> list[Block]:
    rows = _rows(record)
    if not rows:
        return []
    tv = [_part_interval(row, "tv") for row in rows]
    used = [(key, title) for key, title in DISTANCES if any(mean(row, key) is not None for row in rows)]
    places = {key: decimals([mean(row, key) for row in rows]) for key, _ in used}
    least = {key: min(value for row in rows if (value := mean(row, key)) is not None) for key, _ in used}
    nearest = min((value.mean for value in tv if value), default=None)
    improved = record.summary.get("improved")
    lines = []
    for row, away in zip(rows, tv):
        kl, cost = _part_interval(row, "kl"), _dict(row, "cost")
        notes = ["saved as improved/" if row["label"] == improved else "", str(row.get("note") or "")]
        note = "; ".join(filter(None, notes))
        line = [_name(row, palette, note), Cell(strength(row.get("w")))]
        line.append(Cell(_with_ends(away, 3), best=away is not None and away.mean == nearest))
        line.append(Cell(fixed(kl and kl.mean, 3), title="" if kl is None else f"95 %: {_with_ends(kl, 3)}"))
        for key, _ in used:
            fd, check = interval(row.get(key)), key.startswith("check_")
            text = fixed(fd and fd.mean, places[key]) if check else plus_minus(fd, places[key])
            title = "" if fd is None else f"95 %: {_with_ends(fd, places[key])}"
            line.append(Cell(text, title=title, best=fd is not None and fd.mean == least[key]))
        spent = [f"{count(cost[key])} {text}" for key, text in SPENT if number(cost.get(key)) is not None]
        line += [Cell(short_count(row.get("nfe"))), Cell(short_count(cost.get("total")), title=", ".join(spent))]
        lines.append(line)
    columns = [Column("", False), Column("w"), Column("TV to target"), Column("KL"), *(Column(t) for _, t in used)]
    columns += [Column("NFE"), Column("made for")]
    blocks: list[Block] = [Table(columns, lines, _table_caption(rows, [key for key, _ in used]))]
    return [*blocks, Prose(text)] if (text := extractor_text(record)) else blocks


def _table_caption(rows: Sequence[Row], used: Sequence[str]) -> str:
    text = (
        "TV: total variation to the target, with its 95 % interval, and KL: the Kullback-Leibler divergence from it, "
        "both by the judge. NFE: network evaluations per delivered sample. Made for: what making the sampler cost, in "
        "network evaluations (a training image counts as three; on hover: of what it is made up). Bold: lowest of the "
        "column."
    )
    if used:
        text += " FD: Fréchet distance to real data reweighted to the target’s proportions, ± half the 95 % interval."
    if "check_fd_target" in used:
        text += " FD check: of training images in the features of a second extractor."
    draws = {(row.get("draws"), row.get("samples_per_draw")) for row in rows if row["label"] != "rejection"}
    num, size = next(iter(draws)) if len(draws) == 1 else (None, None)
    return text if num is None else f"{text} {count(num)} draw{'' if num == 1 else 's'} of {count(size)} samples each."


def _cost(record: Record, palette: Palette) -> list[Block]:
    items = [item for item in _dicts(record.summary.get("costs")) if item.get("label")]
    if not items:
        return []
    lines = []
    for item in items:
        line = [_name(item, palette), Cell(short_count(item.get("nfe"))), Cell(short_count(item.get("cost")))]
        for name in ("rejection_at_equal_error", "rejection"):
            found = _dict(item, name)
            nfe, times, even = (number(found.get(key)) for key in ("nfe", "times", "break_even"))
            line.append(Cell(f"{DASH} never delivers" if found and nfe is None else short_count(nfe)))
            line.append(Cell(DASH if times is None else f"{fixed(times)}×"))
            line.append(Cell(f"{DASH} never" if nfe is not None and even is None else count(even)))
        lines.append(line)
    columns = [Column("", False), Column("NFE"), Column("made for")]
    columns += [Column(name) for name in ("NFE", "times fewer", "break-even")] * 2
    groups = [("", 1), ("", 1), ("", 1), ("rejection at equal error", 3), ("exact rejection", 3)]
    caption = (
        "Times fewer: rejection’s network evaluations per sample over the contender’s; below 1× rejection is cheaper. "
        "Break-even: the number of samples from which on the contender, its making included, costs less than "
        "rejection. At equal error: rejection may leave as much total variation to the target as the contender does."
    )
    blocks: list[Block] = [Table(columns, lines, caption, groups)]
    row = _row(record, "rejection")
    if number(row.get("nfe")) is not None:
        drawn = f": it delivered {row['note']}" if row.get("note") else ""
        text = (
            f"Rejection as it was run needed {short_count(row['nfe'])} network evaluations per delivered sample{drawn}."
        )
        blocks.append(Prose(text))
    return blocks


def _samples(record: Record, palette: Palette) -> list[Block]:
    """Strips of the same seeds, and what the base and the steered model draw of each value."""
    rows, names = _rows(record), _names(record)
    shown = replace(
        record,
        summary={"rows": [{**row, "method": _look(row)} for row in rows]},
        grids={_look(row): record.grids[row["label"]] for row in rows if row["label"] in record.grids},
    )
    whole = sample_grids(shown, palette, {_look(row): str(row["label"]) for row in rows})
    blocks: list[Block] = [whole] if whole else []
    pair = [row for row in rows if row["label"] in ("base", "steered")]
    places = [place for place in range(len(names)) if any(f"{row['label']}#{place}" in record.grids for row in pair)]
    kept = [place for place in _farthest(record, MAX_STRIPS // 2) if place in places]
    strips = []
    for place in kept:
        for row in pair:
            if (images := record.grids.get(f"{row['label']}#{place}")) is not None:
                text = f"{_short(names[place], 40)}, {row['label']}"
                strips.append(make_strip(images, text, f"Samples of {text}", palette[_look(row)].variable))
    caption = "The first samples that the judge gives each value; fewer, or no row, where less of the samples had it."
    if len(kept) < len(places):
        caption += f" The {len(kept)} values that the target changes most; the others are in grids.npz."
    return [*blocks, Images(strips, caption)] if strips else blocks


def _groups(record: Record, palette: Palette) -> list[Block]:
    """Quality within each group, base against steered, both at equal numbers of samples."""
    found = [
        {str(g.get("value")): g for g in _dicts(_row(record, label).get("groups"))} for label in ("base", "steered")
    ]
    pairs = [(name, found[0][name], found[1][name]) for name in found[0] if name in found[1]]
    if not pairs:
        return []
    figures = (("fd", "FD", 1), ("precision", "precision", -1), ("recall", "recall", -1))
    lines, worse, compared = [], [], 0
    for name, before, after in pairs:
        line = [Cell(name), Cell(count(before.get("n")))]
        words = []
        for key, title, sign in figures:
            old, new = number(before.get(key)), number(after.get(key))
            line += [Cell(fixed(old)), Cell(fixed(new))]
            if old is not None and new is not None and sign * (new - old) > 0:
                words.append(f"{'worse' if sign > 0 else 'lower'} {title}")
        known = number(before.get("fd")) is not None and number(after.get("fd")) is not None
        compared += known
        worse += [name] if "worse FD" in words else []
        lines.append([*line, Cell(", ".join(words) or ("no worse" if known else DASH))])
    columns = [Column("value", False), Column("samples"), *[Column("base"), Column("steered")] * 3, Column("", False)]
    groups = [("", 1), ("", 1), *((title, 2) for _, title, _ in figures), ("", 1)]
    caption = (
        "Of the samples that the judge gives a value, against the real images of that value; equal numbers of both "
        "models. FD of few samples is too high, and small differences are chance."
    )
    text = f"FD is no worse than the base’s within any of the {compared} groups that can be compared."
    said: Block = Notice(f"Worse FD than the base within: {', '.join(worse)}.") if worse else Prose(text)
    return [*([said] if compared else []), Table(columns, lines, caption, groups)]


def _solver(record: Record, palette: Palette) -> list[Block]:
    solver, names = record.part("solver"), _names(record)
    rounds = _dicts(solver.get("rounds"))
    blocks: list[Block] = []
    if far := _dict(solver, "reach").get("far"):
        text = "Farther than auxiliaries were seen to move a value, and tried nevertheless: "
        blocks.append(Prose(text + ", ".join(map(str, far)) + "."))
    if solver.get("reason"):
        blocks.append(Prose(f"Why it stopped: {solver['reason']}."))
    if not rounds:
        return blocks
    digits = decimals([number(item.get("fd_target")) for item in rounds])
    lines = []
    for item in rounds:
        line = [Cell(count(item.get("round"))), Cell(strength(item.get("w"))), Cell(fixed(item.get("tv"), 3))]
        line += [
            Cell(fixed(item.get("fd_target"), digits)),
            Cell(count(item.get("n"))),
            Cell(count(item.get("samples"))),
        ]
        line.append(Cell(short_count(item.get("candidates_per_sample"))))
        words = ["chosen"] if item.get("chosen") else []
        words += ["proportions as far as the limits let them go"] if item.get("limited") else []
        lines.append([*line, Cell(", ".join(words))])
    columns = [Column(name) for name in ("round", "w", "TV", "FD", "measured on", "trained on", "candidates for each")]
    strong = frozenset(index for index, item in enumerate(rounds) if item.get("chosen"))
    caption = (
        "The first round trains an auxiliary on own samples of the base; each further one trains it on. Measured by "
        "the steering classifier, on selection seeds, which are not those of the results above."
    )
    blocks.append(Table([*columns, Column("", False)], lines, caption, strong=strong))
    if not names:
        return blocks
    base = _dict(solver, "base").get("values")
    trained = {item.get("round"): item.get("proportions") for item in rounds}
    plans = {"target": record.items("target"), "base": base} | {f"round {count(k)}": v for k, v in trained.items()}
    blocks.append(_shares(names, plans, "Proportions of each auxiliary’s training data, beside target and base."))
    seen = {
        f"round {count(item.get('round'))}, w\u00a0=\u00a0{strength(item.get('w'))}": item.get("values")
        for item in rounds
    }
    caption = "By the steering classifier, corrected for its errors."
    measured = _shares(names, {"target": record.items("target"), "base": base} | seen, caption)
    return [*blocks, Details("Shares that each strength gave", [measured])]


def _shares(names: Sequence[str], columns: dict[str, Any], caption: str) -> Table:
    """A line per value, a column per list of shares."""
    lines = [
        [Cell(name), *(Cell(percent(_at(values, place))) for values in columns.values())]
        for place, name in enumerate(names)
    ]
    return Table([Column("value", False), *map(Column, columns)], lines, caption)


def _classifiers(record: Record, palette: Palette) -> list[Block]:
    """How good the two classifiers are, and what they mistake for what."""
    names, lines, matrices = _names(record), [], []
    for role, found in record.part("classifiers").items():
        if not isinstance(found, dict):
            continue
        confusion = [line for line in found.get("confusion") or [] if isinstance(line, list)]
        totals = [sum(filter(None, map(number, line))) for line in confusion]
        rates = [((_at(line, k) or 0.0) / totals[k], k) for k, line in enumerate(confusion[: len(names)]) if totals[k]]
        worst, place = min(rates, default=(None, 0))
        text = DASH if worst is None else f"{names[place]}: {percent(worst)}"
        images = count(sum(totals)) if totals else DASH
        lines.append([Cell(role), Cell(percent(found.get("accuracy"))), Cell(images), Cell(text)])
        if confusion:
            columns = [Column("", False), *(Column(_short(name, 12)) for name in names)]
            cells = [
                [Cell(name), *(Cell(count(_at(line, place))) for place in range(len(names)))]
                for name, line in zip(names, confusion)
            ]
            matrices.append(Table(columns, cells, f"The {role} classifier. Lines: true values; columns: what it says."))
    if not lines:
        return []
    columns = [Column("classifier", False), Column("accuracy"), Column("images"), Column("least accurate on", False)]
    caption = (
        "Errors as counted on real images: those that a classifier trained here did not learn from; for one that was "
        "given, held-out images where there are labelled ones of every value. The judging classifier took no part in "
        "steering. Shares are corrected with these rates, as if the classifiers erred on samples as they do on real "
        "images."
    )
    blocks: list[Block] = [Table(columns, lines, caption)]
    return [*blocks, Details("What they mistake for what", matrices)] if matrices else blocks


SECTIONS: tuple[tuple[str, str, Callable[[Record, Palette], list[Block]]], ...] = (
    ("proportions", "Proportions", _proportions),
    ("table", "Table", _table),
    ("cost", "Cost against rejection", _cost),
    ("samples", "Samples", _samples),
    ("groups", "Quality within each group", _groups),
    ("solver", "How the solver went", _solver),
    ("classifiers", "Classifiers", _classifiers),
    ("reproduce", "Reproduce", lambda record, palette: reproduce(record)),
)
