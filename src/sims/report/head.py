"""The head of the page: the verdict, in the words that the figures allow and no stronger."""

from __future__ import annotations

from dataclasses import dataclass

from sims.report.blocks import Fact
from sims.report.numbers import count, decimals, duration, fixed, short_count, signed_percent, strength
from sims.report.record import Record, Row, base_row, best_row, change_interval, interval, mean, number


@dataclass(frozen=True)
class Hero:
    title: str
    data: str
    headline: str
    big: str  # the change of FD from the base; empty where the run has no base and rival
    big_label: str
    big_interval: str
    convincing: bool  # the interval excludes zero
    verdict: str
    facts: list[Fact]
    verified: bool
    warnings: list[str]


def make_hero(record: Record) -> Hero:
    """The verdict on a record: best method against base, on the training and on the test images."""
    rows = record.rows
    base = base_row(rows)
    # The claim is about sims, whatever else scored lower; other methods only where it was not run.
    rival = next((row for row in rows if _name(row) == "sims"), None) or best_row(
        [row for row in rows if row is not base]
    )
    found = change_interval(record, rival, base) if rival and base else None
    ours, theirs = mean(rival, "fd"), mean(base, "fd")
    big = signed_percent(100 * (ours / theirs - 1)) if ours is not None and theirs else ""
    label = f"FD to the training images, {_name(rival)} against the base" if rival and big else ""
    text = ""
    if found:
        kind = "paired difference" if found[3] else "the widest the two intervals allow"
        text = f"95 %: {signed_percent(found[1])} to {signed_percent(found[2])} ({kind})"
    return Hero(
        title=str(record.summary.get("title") or "Self-improvement report"),
        data=data_text(record),
        headline=str(record.summary.get("headline") or ""),
        big=big,
        big_label=label,
        big_interval=text,
        convincing=bool(found and found[2] < 0) and _verified(record),
        verdict=_verdict(record, rival, base) if rival and base and big else "",
        facts=_facts(rival, base) if rival and base and big else [],
        verified=_verified(record),
        warnings=[str(item) for item in record.items("warnings")],
    )


def _verified(record: Record) -> bool:
    return record.summary.get("verified") is not False


def _name(row: Row) -> str:
    return str(row.get("label") or row.get("method"))


def _verdict(record: Record, rival: Row, base: Row) -> str:
    """One or two sentences: improved, not shown, or worse; and the same for the test images where they were used."""
    found, tested = change_interval(record, rival, base), change_interval(record, rival, base, "fd_held_out")
    lower = (mean(rival, "fd") or 0) < (mean(base, "fd") or 0)
    if not lower:
        first = "No method improved on the base."
    elif found is None:
        first = f"{_name(rival)} scores lower than the base; with a single draw, how far this is chance is not known."
    elif found[2] < 0 and not _verified(record):
        first = f"{_name(rival)} scores lower and the 95 % interval lies below zero, but the run did not verify it."
    elif found[2] < 0:
        first = f"{_name(rival)} improves on the base: the whole 95 % interval lies below zero."
    else:
        first = f"{_name(rival)} scores lower, but the 95 % interval includes zero: no improvement is shown."
    if tested is None or not lower:
        return first
    if tested[2] < 0:
        return f"{first} On test images, which no model has seen, FD falls too ({signed_percent(tested[0])})."
    return f"{first} On test images, which no model has seen, no improvement is shown ({signed_percent(tested[0])})."


def _facts(rival: Row, base: Row) -> list[Fact]:
    """Base → best, one tile per figure."""
    facts = []
    metrics = (("FD train", "fd"), ("FD test", "fd_held_out"), ("Precision", "precision"), ("Recall", "recall"))
    for title, metric in metrics:
        ours, theirs = interval(rival.get(metric)), interval(base.get(metric))
        if ours and theirs:
            places = decimals([ours.mean, theirs.mean])
            half = "" if ours.half is None else f"± {fixed(ours.half, places)}, "
            facts.append(Fact(title, fixed(ours.mean, places), f"{half}base {fixed(theirs.mean, places)}"))
    if number(rival.get("nfe")) and number(base.get("nfe")):
        facts.append(Fact("Evaluations", short_count(rival["nfe"]), f"per sample, base {short_count(base['nfe'])}"))
    if number(rival.get("w")) is not None:
        budget = number(rival.get("budget"))
        facts.append(Fact("Strength w", strength(rival["w"]), f"budget {short_count(budget)} images" if budget else ""))
    return facts


def data_text(record: Record) -> str:
    data, parts = record.part("data"), []
    if data.get("name"):
        parts.append(str(data["name"]))
    if data.get("num_train") is not None:
        test = f" + {count(data['num_test'])} test" if data.get("num_test") else ""
        parts.append(f"{count(data['num_train'])} training{test} images")
    shape = data.get("shape")
    if isinstance(shape, list) and shape:
        parts.append("×".join(str(side) for side in [*shape[1:], shape[0]]) if len(shape) == 3 else str(shape))
    if data.get("num_classes"):
        known = "class-conditional" if data.get("conditional") else "unconditional"
        parts.append(f"{count(data['num_classes'])} classes, {known}")
    if record.summary.get("seconds") is not None:
        parts.append(f"ran {duration(record.summary['seconds'])}")
    return " · ".join(parts)
