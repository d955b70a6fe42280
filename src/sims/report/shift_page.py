"""The page of distribution control: which proportions were asked for, what was reached, and what it cost."""

from __future__ import annotations

from dataclasses import replace

from sims.report.blocks import (
    Block,
    Cell,
    Column,
    Fact,
    Images,
    Notice,
    Prose,
    Section,
    Table,
    details,
    present,
    prose,
    table,
)
from sims.report.context import figure_facts
from sims.report.head import Head
from sims.report.numbers import (
    DASH,
    count,
    decimals,
    fixed,
    percent,
    sentence,
    short_count,
    short_name,
    strength,
    with_ends,
)
from sims.report.shares import (
    Shift,
    farthest,
    reached_table,
    share_plot,
    share_table,
    trained_table,
    uncorrected_table,
    value_of,
)
from sims.report.strips import MAX_STRIPS, make_strip, sample_grids
from sims.report.tables import (
    MADE_FOR,
    all_figures,
    diverged,
    diverged_column,
    draws_text,
    extractor_text,
    figure_column,
    made_for,
    reproduce,
)
from sims.results.common import Figure
from sims.results.shift import (
    STEERED,
    ClassifierFacts,
    Group,
    Rejection,
    Saving,
    ShiftResult,
    ShiftRow,
    SolverResult,
    SolverRound,
)

DISTANCES = ("fd_target", "fd_held_out_target", "check_fd_target")
MOST = 16  # values in a figure
WORSE = "worse than the base within "  # how a warning about a group begins


def shift_head(result: ShiftResult) -> Head:
    """Total variation to the target by the judge, before and after, in the words that the intervals allow."""
    steered = result.row(STEERED)
    before, after = value_of(result.base.proportions.tv), value_of(steered.proportions.tv) if steered else None
    label = "total variation to the target, steered, by the judge"
    texts = [text for text in result.warnings if not text.startswith(WORSE)]
    worse = [text.removeprefix(WORSE) for text in result.warnings if text.startswith(WORSE)]
    texts += [WORSE + "; ".join(worse)] if worse else []
    return Head.of(
        result,
        diverged(result.rows),
        said=texts,
        big=fixed(after.mean, 3) if after else "",
        big_label=f"{label}; the base: {with_ends(before, 3)}" if before else label,
        big_interval=f"95 %: {fixed(after.low, 3)} to {fixed(after.high, 3)}"
        if after and after.low is not None
        else "",
        convincing=_apart(after, before),
        verdict=_verdict(result, steered, before, after) if steered and before and after else "",
        facts=_head_facts(result, steered) if steered else [],
    )


def _apart(after: Figure | None, before: Figure | None) -> bool:
    """Whether the one lies below the other, intervals included."""
    high, low = after.high if after else None, before.low if before else None
    return high is not None and low is not None and high < low


def _verdict(result: ShiftResult, steered: ShiftRow, before: Figure, after: Figure) -> str:
    """Nearer, not shown, or not nearer; what is left; and who else came nearer."""
    if after.mean >= before.mean:
        words = ["The steered model lies no nearer to the target than the base."]
    elif _apart(after, before):
        words = ["The steered model lies nearer to the target than the base: the two 95 % intervals do not meet."]
    else:
        words = ["The steered model lies nearer to the target than the base, but the 95 % intervals overlap."]
    if after.low is not None:
        left = "What is left may be error of measurement." if after.low <= 0 else f"At least {after.low:.3f} is left."
        words.append(left)
    old, new = result.base.mean(DISTANCES[0]), steered.mean(DISTANCES[0])
    if old is not None and new is not None and new > old:
        words.append(f"Its FD to real data in the target’s proportions is higher ({fixed(old)} → {fixed(new)}).")
    distances = {row.label: row.proportions.tv.value for row in result.rows if row.baseline}
    nearer = [f"{label} ({fixed(tv, 3)})" for label, tv in distances.items() if tv is not None and tv < after.mean]
    return " ".join([*words, f"Nearer still: {', '.join(nearer)}."] if nearer else words)


def _head_facts(result: ShiftResult, steered: ShiftRow) -> list[Fact]:
    """Base → steered, one tile per figure; and what was saved."""
    base, tiles = result.base, []
    for place in farthest(result, 1):
        ours, theirs = steered.proportions.values[place], base.proportions.values[place]
        note = f"base {percent(theirs)}, target {percent(result.target[place])}".replace(" %", "\u00a0%")
        tiles.append(Fact(f"Share of {short_name(result.values[place])}", percent(ours), note))
    for name in DISTANCES[:2]:
        after, before = steered.figures.get(name), base.figures.get(name)
        if after and before:
            places = decimals([after.mean, before.mean])
            half = "" if after.half is None else f"± {fixed(after.half, places)}, "
            title = figure_facts(result, name).title
            tiles.append(Fact(title, fixed(after.mean, places), f"{half}base {fixed(before.mean, places)}"))
    tiles.append(Fact("Evaluations", short_count(steered.nfe), f"per sample, base {short_count(base.nfe)}"))
    saved = result.row(result.improved)
    if saved:
        note = f"total variation {fixed(saved.proportions.tv.value, 3)}, {short_count(saved.nfe)} evaluations"
        tiles.append(Fact("Saved as improved/", saved.label, note))
    return tiles


def shift_table(result: ShiftResult) -> Table | None:
    """The closing table of the terminal."""
    savings = {saving.label: saving for saving in result.savings}

    def even(row: ShiftRow) -> str:
        saving = savings.get(row.label)
        return count(saving.rejection_at_equal_error.break_even) if saving else ""

    columns: list[Column[ShiftRow]] = [
        Column("", lambda row: row.label, False),
        Column("TV to target", lambda row: with_ends(value_of(row.proportions.tv), 3)),
        Column(figure_facts(result, DISTANCES[0]).title, lambda row: fixed(row.mean(DISTANCES[0]))),
        Column("NFE / sample", lambda row: f"{row.nfe:.1f}"),
        diverged_column(),
        Column("made for", lambda row: count(row.cost.total), drop=2),
        Column("break-even", even, drop=1),
    ]
    return table(result.rows, columns, title=f"{result.attribute} to the target")


def _proportions(c: Shift) -> list[Block]:
    result, data = c.result, c.result.data
    models = [row for row in result.rows if not row.baseline]
    text = f"Proportions of the attribute “{result.attribute}”."
    if data.imbalance:
        cut = "" if data.num_base_train is None else f" to {count(data.num_base_train)} images"
        text += f" For the purpose the base’s training data were cut ({data.imbalance}){cut}."
    places = farthest(result, MOST)
    return present(
        Prose(text),
        share_plot(c, models, places),
        share_table(c, models),
        details("Shares of the baselines", share_table(c, [row for row in result.rows if row.baseline])),
        details("Shares by the other classifier, and without correction", uncorrected_table(c)),
    )


def _table(c: Shift) -> list[Block]:
    result, rows = c.result, c.result.rows
    distances = [row.proportions.tv.value for row in rows]
    nearest = min((tv for tv in distances if tv is not None), default=None)

    def name(row: ShiftRow) -> Cell:
        notes = ["saved as improved/" if row.label == result.improved else "", row.note]
        notes.append("" if row.drawn is None else f"{count(row.n)} of {count(row.drawn)} drawn")
        return c.name(row, "; ".join(filter(None, notes)))

    def kl(row: ShiftRow) -> Cell:
        value = value_of(row.proportions.kl)
        return Cell(fixed(row.proportions.kl.value, 3), title=f"95 %: {with_ends(value, 3)}")

    def tv(row: ShiftRow) -> Cell:
        value = row.proportions.tv
        return Cell(with_ends(value_of(value), 3), best=value.value is not None and value.value == nearest)

    columns: list[Column[ShiftRow]] = [
        Column[ShiftRow]("", name, False),
        Column[ShiftRow]("w", lambda row: strength(row.w)),
        Column[ShiftRow]("TV to target", tv),
        Column[ShiftRow]("KL", kl),
        *(figure_column(result, name, rows) for name in DISTANCES),
        diverged_column(),
        Column[ShiftRow]("NFE", lambda row: short_count(row.nfe)),
        Column[ShiftRow]("made for", lambda row: made_for(row.cost)),
    ]
    caption = (
        "TV: total variation to the target, with its 95 % interval, and KL: the Kullback-Leibler divergence from it, "
        "both by the judge. FD: Fréchet distance to real data reweighted to the target’s proportions, ± half the 95 % "
        f"interval; check: in the features of a second extractor. NFE: network evaluations per delivered sample. "
        f"{MADE_FOR} Bold: best of the column.{draws_text(rows)}"
    )
    scales = ", ".join(f"{scale}: {fixed(tv, 3)}" for scale, tv in result.scales.items())
    tried = f"Scales of classifier guidance that were tried, and the total variation of each: {scales}."
    return present(
        table(rows, columns, caption),
        prose(tried if scales else ""),
        prose(extractor_text(result.extractor)),
        all_figures(c, rows),
    )


def _cost(c: Shift) -> list[Block]:
    groups = ("rejection at equal error", "exact rejection")

    def of(saving: Saving, group: str) -> Rejection:
        return saving.rejection_at_equal_error if group == groups[0] else saving.rejection

    def columns(group: str) -> list[Column[Saving]]:
        def nfe(saving: Saving) -> str:
            value = of(saving, group).nfe
            return f"{DASH} never delivers" if value is None else short_count(value)

        def even(saving: Saving) -> str:
            found = of(saving, group)
            return f"{DASH} never" if found.nfe is not None and found.break_even is None else count(found.break_even)

        def times(saving: Saving) -> str:
            value = of(saving, group).times
            return DASH if value is None else f"{fixed(value)}×"

        return [
            Column("NFE", nfe, group=group),
            Column("times fewer", times, group=group),
            Column("break-even", even, group=group),
        ]

    names: list[Column[Saving]] = [
        Column("", lambda x: Cell(c.palette.name(x.label), swatch=c.palette[x.label].variable), False),
        Column("TV", lambda x: fixed(x.tv, 3)),
        Column("NFE", lambda x: short_count(x.nfe)),
        Column("made for", lambda x: made_for(x.cost)),
    ]
    caption = (
        "Times fewer: rejection’s network evaluations per sample over the contender’s; below 1× rejection is cheaper. "
        "Break-even: the number of samples from which on the contender, its making included, costs less than "
        "rejection. At equal error: rejection may leave as much total variation to the target as the contender does."
    )
    drawn = next((row for row in c.result.rows if row.drawn is not None), None)
    text = ""
    if drawn:
        text = f"Rejection as it was run needed {short_count(drawn.nfe)} network evaluations per delivered sample"
        text += f": it delivered {drawn.note}." if drawn.note else "."
    rejections = [column for group in groups for column in columns(group)]
    return present(table(c.result.savings, [*names, *rejections], caption), prose(text))


def _samples(c: Shift) -> list[Block]:
    """Strips of the same seeds, and what the base and the steered model draw of each value."""
    result, images = c.result, c.pictures.images
    whole = replace(c.pictures, images={key: array for key, array in images.items() if "#" not in key})
    pair = [row for row in result.rows if row.label in (result.base.label, STEERED)]
    places = [place for place in range(len(result.values)) if any(f"{row.label}#{place}" in images for row in pair)]
    kept = [place for place in farthest(result, MAX_STRIPS // 2) if place in places]
    strips = []
    for place, row in ((place, row) for place in kept for row in pair if f"{row.label}#{place}" in images):
        text = f"{short_name(result.values[place], 40)}, {row.label}"
        swatch = c.palette[row.label].variable
        strips.append(make_strip(images[f"{row.label}#{place}"], text, f"Samples of {text}", swatch))
    caption = "The first samples that the judge gives each value; fewer, or no row, where less of the samples had it."
    if len(kept) < len(places):
        caption += f" The {len(kept)} values that the target changes most; the others are in grids.npz."
    grids = sample_grids(whole, c.palette, [row.label for row in result.rows])
    return present(grids, Images(strips, caption) if strips else None)


def _groups(c: Shift) -> list[Block]:
    """Quality within each group, base against steered, both at equal numbers of samples."""
    steered = c.result.row(STEERED)
    pairs: list[tuple[Group, Group]] = list(zip(c.result.base.groups, steered.groups if steered else ()))
    change = {a.value: b.fd - a.fd for a, b in pairs if a.fd is not None and b.fd is not None}
    worse = [value for value, by in change.items() if by > 0]

    def words(pair: tuple[Group, Group]) -> str:
        before, after = pair
        said = ["worse FD"] if before.value in worse else []
        for name, old, new in (
            ("precision", before.precision, after.precision),
            ("recall", before.recall, after.recall),
        ):
            said += [f"lower {name}"] if old is not None and new is not None and new < old else []
        return ", ".join(said) or ("no worse" if before.value in change else DASH)

    def columns(name: str) -> list[Column[tuple[Group, Group]]]:
        return [
            Column("base", lambda pair: fixed(getattr(pair[0], name)), group=name),
            Column("steered", lambda pair: fixed(getattr(pair[1], name)), group=name),
        ]

    names: list[Column[tuple[Group, Group]]] = [
        Column("value", lambda pair: pair[0].value, False),
        Column("samples", lambda pair: count(pair[0].n)),
        Column("real images", lambda pair: count(pair[0].real)),
    ]
    figures = [*columns("fd"), *columns("precision"), *columns("recall"), Column("", words, False)]
    caption = (
        "Of the samples that the judge gives a value, against the real images of that value; equal numbers of both "
        "models. FD of few samples is too high, and small differences are chance."
    )
    text = f"FD is no worse than the base’s within any of the {len(change)} groups that can be compared."
    said: Block = Notice(f"Worse FD than the base within: {', '.join(worse)}.") if worse else Prose(text)
    return present(said if change else None, table(pairs, [*names, *figures], caption))


def _solver(c: Shift, solver: SolverResult) -> list[Block]:
    rounds = solver.rounds
    digits = decimals(item.fd_target for item in rounds)

    def words(item: SolverRound) -> str:
        limited = "proportions as far as the limits let them go" if item.limited else ""
        return ", ".join(filter(None, ["chosen" if item.chosen else "", limited]))

    columns: list[Column[SolverRound]] = [
        Column("round", lambda item: count(item.round)),
        Column("w", lambda item: strength(item.w)),
        Column("TV", lambda item: fixed(item.tv, 3)),
        Column("FD", lambda item: fixed(item.fd_target, digits)),
        Column("measured on", lambda item: count(item.n)),
        Column("trained on", lambda item: count(item.samples)),
        Column("candidates for each", lambda item: short_count(item.candidates_per_sample)),
        Column("", words, False),
    ]
    caption = (
        "The first round trains an auxiliary on own samples of the base; each further one trains it on. Measured by "
        "the steering classifier, on selection seeds, which are not those of the results above."
    )
    strong = [place for place, item in enumerate(rounds) if item.chosen]
    far = ", ".join(solver.far)
    return present(
        prose(f"Farther than auxiliaries were seen to move a value, and tried nevertheless: {far}." if far else ""),
        Prose(f"{'The target was met' if solver.met else 'The target was not met'}. {sentence(solver.reason)}."),
        table(rounds, columns, caption, strong=strong),
        trained_table(c, solver),
        details("Shares that each strength gave", reached_table(c, solver)),
    )


def _classifiers(c: Shift) -> list[Block]:
    """How good the two classifiers are, and what they mistake for what."""
    values = c.result.values
    Named = tuple[str, ClassifierFacts]

    def worst(item: Named) -> str:
        lines = [(line[k] / sum(line), k) for k, line in enumerate(item[1].confusion) if sum(line)]
        return f"{values[min(lines)[1]]}: {percent(min(lines)[0])}" if lines else DASH

    columns: list[Column[Named]] = [
        Column("classifier", lambda item: Cell(item[0], title=f"hash {item[1].hash[:16]}"), False),
        Column("accuracy", lambda item: percent(item[1].accuracy)),
        Column("images", lambda item: count(sum(map(sum, item[1].confusion)) or None)),
        Column("least accurate on", worst, False),
    ]
    caption = (
        "Errors as counted on real images: those that a classifier trained here did not learn from; for one that was "
        "given, held-out images where there are labelled ones of every value. The judging classifier took no part in "
        "steering. Shares are corrected with these rates, as if the classifiers erred on samples as they do on real "
        "images."
    )

    def matrix(role: str, confusion: list[list[float]]) -> Table | None:
        def called(k: int) -> Column[int]:
            return Column(short_name(values[k], 12), lambda line: count(confusion[line][k]))

        names = Column[int]("", lambda line: values[line], False)
        caption = f"The {role} classifier. Lines: true values; columns: what it says."
        return table(range(len(confusion)), [names, *map(called, range(len(values)))], caption)

    classifiers = c.result.classifiers.items()
    matrices = [matrix(role, found.confusion) for role, found in classifiers]
    return present(table(classifiers, columns, caption), details("What they mistake for what", *matrices))


def shift_sections(c: Shift) -> list[Section]:
    """Every section of the page, in order; those without blocks are left out."""
    return [
        Section("proportions", "Proportions", _proportions(c)),
        Section("table", "Table", _table(c)),
        Section("cost", "Cost against rejection", _cost(c)),
        Section("samples", "Samples", _samples(c)),
        Section("groups", "Quality within each group", _groups(c)),
        Section("solver", "How the solver went", _solver(c, c.result.solver)),
        Section("classifiers", "Classifiers", _classifiers(c)),
        Section("reproduce", "Reproduce", reproduce(c.result.reproduction)),
    ]
