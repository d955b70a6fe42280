"""The page of distribution control: which proportions were asked for, what was reached, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sims.report import numbers as say
from sims.report import shares, tables
from sims.report.blocks import Block, Cell, Column, Fact, Images, Section, Table, Text, details, present, prose, table
from sims.report.context import title
from sims.report.head import Head
from sims.report.shares import Shift, value_of
from sims.report.strips import MAX_STRIPS, make_strip, sample_grids
from sims.report.tables import MADE_FOR
from sims.results.common import Figure
from sims.results.shift import STEERED, Rejection, ShiftResult, ShiftRow

DISTANCES = ("fd_target", "fd_held_out_target", "check_fd_target")
WORSE = "worse than the base within "  # how a warning about a group begins


def shift_head(result: ShiftResult) -> Head:
    """Total variation to the target by the judge, before and after, in the words that the intervals allow."""
    steered, label = result.row(STEERED), "total variation to the target, steered, by the judge"
    before, after = value_of(result.base.proportions.tv), value_of(steered.proportions.tv) if steered else None
    worse = [text.removeprefix(WORSE) for text in result.warnings if text.startswith(WORSE)]
    said = [text for text in result.warnings if not text.startswith(WORSE)] + [WORSE + "; ".join(worse)] * bool(worse)
    if steered is None or before is None or after is None:
        return Head.of(result, tables.diverged(result.rows), said)
    return Head.of(
        result,
        tables.diverged(result.rows),
        said,
        big=say.fixed(after.mean, 3),
        big_label=f"{label}; the base: {say.with_ends(before, 3)}",
        big_interval=f"95 %: {say.fixed(after.low, 3)} to {say.fixed(after.high, 3)}",
        convincing=apart(after, before),
        verdict=_verdict(result, steered, before, after),
        facts=_head_facts(result, steered),
    )


def apart(after: Figure, before: Figure) -> bool:
    """Whether the one lies below the other, intervals included."""
    return after.high is not None and before.low is not None and after.high < before.low


def _verdict(result: ShiftResult, steered: ShiftRow, before: Figure, after: Figure) -> str:
    """Nearer, not shown, or not nearer; what is left; and who else came nearer."""
    if after.mean >= before.mean:
        words = ["The steered model lies no nearer to the target than the base."]
    elif apart(after, before):
        words = ["The steered model lies nearer to the target than the base: the two 95 % intervals do not meet."]
    else:
        words = ["The steered model lies nearer to the target than the base, but the 95 % intervals overlap."]
    if after.low is not None:
        left = "What is left may be error of measurement." if after.low <= 0 else f"At least {after.low:.3f} is left."
        words.append(left)
    old, new = result.base.mean(DISTANCES[0]), steered.mean(DISTANCES[0])
    if old is not None and new is not None and new > old:
        words.append(
            f"Its FD to real data in the target’s proportions is higher ({say.fixed(old)} → {say.fixed(new)})."
        )
    distances = {row.label: row.proportions.tv.value for row in result.rows if row.baseline}
    nearer = [f"{label} ({say.fixed(tv, 3)})" for label, tv in distances.items() if tv is not None and tv < after.mean]
    return " ".join([*words, f"Nearer still: {', '.join(nearer)}."] if nearer else words)


def _head_facts(result: ShiftResult, steered: ShiftRow) -> list[Fact]:
    """Base → steered, one tile per figure; and what was saved."""
    (place,) = shares.farthest(result, 1)
    ours, theirs, target = shares.percents(
        [steered.proportions.values[place], result.base.proportions.values[place], result.target[place]]
    )
    note = f"base {theirs}, target {target}".replace(" %", "\u00a0%")
    tiles = [Fact(f"Share of {say.short_name(result.values[place])}", ours, note)]
    tiles += tables.figure_tiles(result, DISTANCES[:2], steered, result.base)
    if saved := result.row(result.improved):
        note = f"total variation {say.fixed(saved.proportions.tv.value, 3)}, {say.short_count(saved.nfe)} evaluations"
        tiles.append(Fact("Saved as improved/", saved.label, note))
    return tiles


def shift_table(result: ShiftResult) -> Table | None:
    """The closing table of the terminal."""
    rows = result.rows
    even = {saving.label: say.count(saving.rejection_at_equal_error.break_even) for saving in result.savings}
    columns = [
        Column("", [row.label for row in rows], False),
        Column("TV to target", [say.with_ends(value_of(row.proportions.tv), 3) for row in rows]),
        Column(title(result, DISTANCES[0]), [say.fixed(row.mean(DISTANCES[0])) for row in rows]),
        Column("NFE / sample", [f"{row.nfe:.1f}" for row in rows]),
        tables.diverged_column(rows),
        Column("made for", [say.count(row.cost.total) for row in rows], drop=2),
        Column("break-even", [even.get(row.label, "") for row in rows], drop=1),
    ]
    return table(columns, title=f"{result.attribute} to the target")


def _proportions(c: Shift) -> list[Block]:
    result, data = c.result, c.result.data
    models, baselines = ([row for row in result.rows if row.baseline == kind] for kind in (False, True))
    text = f"Proportions of the attribute “{result.attribute}”."
    if data.imbalance:
        cut = "" if data.num_base_train is None else f" to {say.count(data.num_base_train)} images"
        text += f" For the purpose the base’s training data were cut ({data.imbalance}){cut}."
    return present(
        Text(text),
        shares.share_plot(c, models, shares.farthest(result, shares.MOST)),
        shares.share_table(c, models),
        details("Shares of the baselines", shares.share_table(c, baselines)),
        details("Shares by the other classifier, and without correction", shares.uncorrected_table(c, models)),
    )


def _table(c: Shift) -> list[Block]:
    result, rows = c.result, c.result.rows
    distances = [row.proportions.tv.value for row in rows]
    nearest = min((tv for tv in distances if tv is not None), default=None)

    def name(row: ShiftRow) -> Cell:
        saved = ["saved as improved/"] * (row.label == result.improved)
        return c.cell(row.label, "; ".join([*saved, row.note] if row.note else saved))

    def away(row: ShiftRow) -> Cell:
        tv = row.proportions.tv
        best = tv.value is not None and tv.value == nearest
        return Cell(say.with_ends(value_of(tv), 3), title=f"{say.count(row.n)} samples", best=best)

    kl = [value_of(row.proportions.kl) for row in rows]
    columns = [
        Column("", [name(row) for row in rows], False),
        Column("w", [say.strength(row.w) for row in rows]),
        Column("TV to target", [away(row) for row in rows]),
        Column(
            "KL", [Cell(say.fixed(v.mean if v else None, 3), title=f"95 %: {say.with_ends(v, 3)}") for v in kl], drop=1
        ),
        *(tables.figure_column(result, name, rows, drop) for drop, name in zip((0, 3, 2), DISTANCES)),
        tables.diverged_column(rows),
        Column("NFE", [say.short_count(row.nfe) for row in rows]),
        Column("made for", [tables.made_for(row.cost) for row in rows]),
    ]
    caption = (
        "TV: total variation to the target, with its 95 % interval, and KL: the Kullback-Leibler divergence from it, "
        "both by the judge. FD: Fréchet distance to real data reweighted to the target’s proportions, ± half the 95 % "
        f"interval. NFE: network evaluations per delivered sample. {MADE_FOR} Bold: best of the column."
    )
    scales = ", ".join(f"{scale}: {say.fixed(tv, 3)}" for scale, tv in result.scales.items())
    tried = f"Scales of classifier guidance that were tried, and the total variation of each: {scales}."
    return present(
        table(columns, caption + tables.draws_text([row for row in rows if row.drawn is None])),
        prose(tried if scales else ""),
        prose(tables.extractor_text(result)),
        tables.all_figures(c, rows),
    )


def _cost(c: Shift) -> list[Block]:
    savings = c.result.savings
    columns = [
        Column("", [c.cell(saving.label) for saving in savings], False),
        Column("TV", [say.fixed(saving.tv, 3) for saving in savings]),
        Column("NFE", [say.short_count(saving.nfe) for saving in savings]),
        Column("made for", [tables.made_for(saving.cost) for saving in savings]),
        *_against("rejection at equal error", [saving.rejection_at_equal_error for saving in savings]),
        *_against("exact rejection", [saving.rejection for saving in savings]),
    ]
    caption = (
        "Times fewer: rejection’s network evaluations per sample over the contender’s; below 1× rejection is cheaper. "
        "Break-even: the number of samples from which on the contender, its making included, costs less than "
        "rejection. At equal error: rejection may leave as much total variation to the target as the contender does."
    )
    drawn, text = next((row for row in c.result.rows if row.drawn is not None), None), ""
    if drawn and savings:
        text = f"Rejection as it was run needed {say.short_count(drawn.nfe)} network evaluations per delivered sample"
        text += f": it delivered {drawn.note}." if drawn.note else "."
    return present(table(columns, caption), prose(text))


def _against(group: str, found: Sequence[Rejection]) -> list[Column]:
    """What rejection costs in the place of every contender."""
    nfe = [f"{say.DASH} never delivers" if x.nfe is None else say.short_count(x.nfe) for x in found]
    never = [x.nfe is not None and x.break_even is None for x in found]
    return [
        Column("NFE", nfe, group=group),
        Column("times fewer", ["" if x.times is None else f"{say.fixed(x.times)}×" for x in found], group=group),
        Column(
            "break-even", ["– never" if no else say.count(x.break_even) for x, no in zip(found, never)], group=group
        ),
    ]


def _samples(c: Shift) -> list[Block]:
    """Strips of the same seeds, and what the base and the steered model draw of each value."""
    result, images = c.result, c.pictures.images
    whole = replace(c.pictures, images={key: array for key, array in images.items() if "#" not in key})
    pair = [row.label for row in result.rows if row.label in (result.base.label, STEERED)]
    places = [place for place in range(len(result.values)) if any(f"{label}#{place}" in images for label in pair)]
    kept = [place for place in shares.farthest(result, MAX_STRIPS // 2) if place in places]
    strips = []
    for place, label in ((place, label) for place in kept for label in pair if f"{label}#{place}" in images):
        text, swatch = f"{say.short_name(result.values[place], 40)}, {label}", c.palette[label].variable
        strips.append(make_strip(images[f"{label}#{place}"], text, f"Samples of {text}", swatch))
    caption = "The first samples that the judge gives each value; fewer, or no row, where less of the samples had it."
    if len(kept) < len(places):
        caption += f" The {len(kept)} values that the target changes most; the others are in grids.npz."
    grids = sample_grids(whole, c.palette, [row.label for row in result.rows])
    return present(grids, Images(strips, caption) if strips else None)


def _groups(c: Shift) -> list[Block]:
    """Quality within each group, base against steered, both at equal numbers of samples."""
    steered = c.result.row(STEERED)
    pairs = list(zip(c.result.base.groups, steered.groups if steered else ()))
    change = {a.value: b.fd - a.fd for a, b in pairs if a.fd is not None and b.fd is not None}
    worse, words = [value for value, by in change.items() if by > 0], []
    for a, b in pairs:
        said = ["worse FD"] * (a.value in worse)
        for name, old, new in (("precision", a.precision, b.precision), ("recall", a.recall, b.recall)):
            said += [f"lower {name}"] * (old is not None and new is not None and new < old)
        words.append(", ".join(said) or ("no worse" if a.value in change else say.DASH))
    columns = [
        Column("value", [a.value for a, _ in pairs], False),
        Column("samples", [say.count(a.n) for a, _ in pairs]),
        Column("real images", [say.count(a.real) for a, _ in pairs]),
    ]
    for name in ("FD", "precision", "recall"):
        for side, label in enumerate((c.result.base.label, STEERED)):
            values = [getattr(pair[side], name.lower()) for pair in pairs]
            columns.append(Column(label, [say.fixed(value) for value in values], group=name))
    caption = (
        "Of the samples that the judge gives a value, against the real images of that value; equal numbers of both "
        "models. FD of few samples is too high, and small differences are chance."
    )
    verdict = Text(f"FD is no worse than the base’s within any of the {len(change)} groups that can be compared.")
    if worse:
        verdict = Text(f"Worse FD than the base within: {', '.join(worse)}.", "notice")
    return present(verdict if change else None, table([*columns, Column("", words, False)], caption))


def _solver(c: Shift) -> list[Block]:
    solver, rounds = c.result.solver, c.result.solver.rounds
    digits = say.decimals(item.fd_target for item in rounds)
    limited = ["proportions as far as the limits let them go"]
    words = [", ".join(["chosen"] * item.chosen + limited * item.limited) for item in rounds]
    columns = [
        Column("round", [say.count(item.round) for item in rounds]),
        Column("w", [say.strength(item.w) for item in rounds]),
        Column("TV", [say.fixed(item.tv, 3) for item in rounds]),
        Column("FD", [say.fixed(item.fd_target, digits) for item in rounds]),
        Column("measured on", [say.count(item.n) for item in rounds]),
        Column("trained on", [say.count(item.samples) for item in rounds]),
        Column("candidates for each", [say.short_count(item.candidates_per_sample) for item in rounds]),
        Column("", words, False),
    ]
    caption = (
        "The first round trains an auxiliary on own samples of the base; each further one trains it on. Measured by "
        "the steering classifier, on selection seeds, which are not those of the results above."
    )
    far, end = ", ".join(solver.far), "The target was met" if solver.met else "The target was not met"
    return present(
        prose(f"Farther than auxiliaries were seen to move a value, and tried nevertheless: {far}." if far else ""),
        Text(f"{end}. {say.sentence(solver.reason)}."),
        table(columns, caption, strong=[place for place, item in enumerate(rounds) if item.chosen]),
        shares.trained_table(c),
        details("Shares that each strength gave", shares.reached_table(c)),
    )


def _classifiers(c: Shift) -> list[Block]:
    """How good the two classifiers are, and what they mistake for what."""
    values, classifiers = c.result.values, c.result.classifiers
    worst, matrices = [], []
    for role, found in classifiers.items():
        rates = [(line[k] / sum(line), values[k]) for k, line in enumerate(found.confusion) if sum(line)]
        worst.append(f"{min(rates)[1]}: {say.percent(min(rates)[0])}" if rates else say.DASH)
        called = zip(values, zip(*found.confusion))
        columns = [Column(say.short_name(value, 12), [say.count(n) for n in line]) for value, line in called]
        caption = f"The {role} classifier. Lines: true values; columns: what it says."
        matrices.append(table([Column("", values, False), *columns], caption))
    named = [Cell(role, title=f"hash {found.hash[:16]}") for role, found in classifiers.items()]
    columns = [
        Column("classifier", named, False),
        Column("accuracy", [say.percent(found.accuracy) for found in classifiers.values()]),
        Column("images", [say.count(sum(map(sum, found.confusion)) or None) for found in classifiers.values()]),
        Column("least accurate on", worst, False),
    ]
    caption = (
        "Errors as counted on real images: those that a classifier trained here did not learn from; for one that was "
        "given, held-out images where there are labelled ones of every value. The judging classifier took no part in "
        "steering. Shares are corrected with these rates, as if the classifiers erred on samples as they do on real "
        "images."
    )
    return present(table(columns, caption), details("What they mistake for what", *matrices))


def shift_sections(c: Shift) -> list[Section]:
    """Every section of the page, in order; those without blocks are left out."""
    return [
        Section("proportions", "Proportions", _proportions(c)),
        Section("table", "Table", _table(c)),
        Section("cost", "Cost against rejection", _cost(c)),
        Section("samples", "Samples", _samples(c)),
        Section("groups", "Quality within each group", _groups(c)),
        Section("solver", "How the solver went", _solver(c)),
        Section("classifiers", "Classifiers", _classifiers(c)),
        Section("reproduce", "Reproduce", tables.reproduce(c.result.reproduction)),
    ]
