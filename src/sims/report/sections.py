"""The sections of the page, in order; a section whose part of the summary is missing is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sims.report import plots, tables
from sims.report.blocks import Block, Code, Details, Fact, Facts, Figure, Prose, Section
from sims.report.numbers import count, duration, fixed, percent, short_count, strength
from sims.report.palette import TITLES, Palette
from sims.report.record import Record, base_row, best_row, look, number
from sims.report.strips import nearest_pairs, sample_grids
from sims.report.svg import house_style, to_svg

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


@dataclass(frozen=True)
class Context:
    """What every section is built from."""

    record: Record
    palette: Palette
    names: dict[str, str]  # method → the name a reader knows it by

    def figure(self, name: str, drawing: Drawing | None, alt: str, caption: str) -> list[Block]:
        return [Figure(to_svg(drawing, self.palette, alt, name), caption)] if drawing is not None else []


def make_sections(record: Record, palette: Palette) -> list[Section]:
    """Every section that has something to show."""
    context = Context(record, palette, method_names(record))
    with house_style():
        found = [(id, title, build(context)) for id, title, build in SECTIONS]
    return [Section(id, title, blocks) for id, title, blocks in found if blocks]


def method_names(record: Record) -> dict[str, str]:
    """A method's label where all its rows share one, its usual name otherwise."""
    labels: dict[str, set[str]] = {}
    for row in record.rows:
        labels.setdefault(look(row), set()).add(str(row.get("label") or row.get("method")))
    return TITLES | {method: next(iter(found)) for method, found in labels.items() if len(found) == 1}


def _samples(context: Context) -> list[Block]:
    grids = sample_grids(context.record, context.palette, context.names)
    return [grids] if grids else []


def _results(context: Context) -> list[Block]:
    table = tables.main_table(context.record, context.palette)
    if table is None:
        return []
    alt = "Dot plot of the Fréchet distance of every method, with 95 % intervals; the table above holds the figures."
    caption = (
        "Fréchet distance (FD), lower is better. Bars are 95 % intervals, where not visible narrower than the dot; "
        "the dashed line is the base."
    )
    floor = context.record.part("floor")
    if number(floor.get("fd")) is not None:
        caption += f" The dotted line ({fixed(floor['fd'])}) is the training set itself against the test set."
    blocks: list[Block] = [table]
    blocks += context.figure("dots", plots.fd_dots(context.record, context.palette), alt, caption)
    blocks += [Prose(text) for text in (_floor_text(floor), extractor_text(context.record)) if text]
    comparisons = tables.comparison_table(context.record)
    return [*blocks, comparisons] if comparisons else blocks


def _floor_text(floor: dict[str, Any]) -> str:
    text, fd = str(floor.get("text") or ""), number(floor.get("fd"))
    text = text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
    return text if fd is None else f"Floor: FD {fixed(fd)}. {text}"


def extractor_text(record: Record) -> str:
    """Which features the distances were measured in; empty where the run does not say."""
    extractor = record.part("extractor")
    if not extractor:
        return ""
    text = f"Measured with {extractor.get('name')}"
    if extractor.get("num_features") is not None:
        text += f", {count(extractor['num_features'])} features"
    if number(extractor.get("accuracy")) is not None:
        text += f", {percent(extractor['accuracy'])} test accuracy as a classifier"
    if extractor.get("hash"):
        text += f" (hash {str(extractor['hash'])[:16]})"
    return text + ". FDs of different extractors or sample counts cannot be compared."


def _strengths(context: Context) -> list[Block]:
    drawing = plots.fd_against_w(context.record, context.palette, context.names)
    caption = (
        "FD against w in the search, logarithmic scale; w = 0 is the base. One line per budget; the ring marks the "
        "setting that was chosen. Pale lines are early rungs of the search with fewer samples: FD falls with their "
        "number, so they compare with each other only. Bars are 95 % intervals by a jackknife over the samples. The "
        "lowest of many scores is flattering: judge by the results above."
    )
    alt = "Line plots of the Fréchet distance against the guidance strength w, one panel per method."
    blocks = context.figure("strength", drawing, alt, caption)
    budgets = plots.fd_against_budget(context.record, context.palette, context.names)
    caption = (
        "FD against the auxiliary’s training budget. Filled: final scores with 95 % intervals. Hollow, joined: the "
        "lowest FD over w at each budget in the rung of the search that compared the most budgets; from fewer samples, "
        "hence higher, with 95 % intervals by a jackknife over the samples."
    )
    alt = "The Fréchet distance against the training budget of the auxiliary, one line per method."
    return blocks + context.figure("budget", budgets, alt, caption)


def _cost(context: Context) -> list[Block]:
    table = tables.cost_table(context.record, context.palette)
    if table is None:
        return []
    alt = "Scatter plot of the Fréchet distance against the number of network evaluations per sample."
    caption = (
        "Quality against cost: FD to the training images against network evaluations per sample. Lower left is better."
    )
    drawing = plots.cost_dots(context.record, context.palette)
    blocks: list[Block] = [*context.figure("cost", drawing, alt, caption), table]
    facts = tables.training_facts(context.record)
    return [*blocks, Prose("What the run spent, once:"), Facts(facts)] if facts else blocks


def _cache(context: Context) -> list[Block]:
    cache = context.record.part("cache")
    if not cache:
        return []
    refresh = plots.cache_levels(cache)[1]
    fresh = sum(refresh)
    caption = (
        f"Filled: the auxiliary is evaluated and the correction recomputed (at {fresh} of {len(refresh)} levels). "
        "Hollow: the last correction is used again, scaled."
    )
    alt = f"Strip of {len(refresh)} noise levels; {fresh} of them recompute the guidance."
    drawing = plots.cache_strip(context.record, context.palette)
    facts = [
        Fact("Base", short_count(cache.get("nfe_base")), "evaluations per sample"),
        Fact("Guided in full", short_count(cache.get("nfe_full")), "evaluations per sample"),
        Fact("Guided, cached", short_count(cache.get("nfe_cached")), "evaluations per sample"),
    ]
    for name, key in (("FD train", "retained_train"), ("FD test", "retained_test")):
        if number(cache.get(key)) is not None:
            facts.append(Fact("Gain kept", percent(cache[key], 0), f"of the improvement in {name}"))
    blocks: list[Block] = [Facts(facts), *context.figure("cache", drawing, alt, caption)]
    cheapest = cache.get("cheapest")
    if isinstance(cheapest, dict) and cheapest.get("text"):
        blocks.append(
            Prose(f"Cheapest: {cheapest['text']} ({short_count(cheapest.get('nfe'))} evaluations per sample).")
        )
    tried = tables.sampler_table(context.record)
    if tried:
        blocks.append(Details("Cheaper samplers that were tried", [tried]))
    if cache.get("solver"):
        blocks.append(Prose(f"Solver: {cache['solver']}. The levels are fixed before sampling, by noise level alone."))
    return blocks


def _memorization(context: Context) -> list[Block]:
    record, rows = context.record, context.record.rows
    caption = (
        "Share of samples that lie nearer to a training image than 99 % of held-out images do. Held-out images give "
        "1 % by construction (dotted line); clearly more means that training images are being copied."
    )
    alt = "Dot plot of the share of samples that are suspiciously near to a training image, per method."
    blocks = context.figure("memory", plots.memorization_dots(record, context.palette), alt, caption)
    # The nearest images that a run keeps are those of sims, where it has sims.
    sims = next((row for row in rows if look(row) == "sims"), None)
    main = sims or best_row([row for row in rows if row is not base_row(rows)]) or best_row(rows)
    if main is not None:
        method = look(main)
        pairs = nearest_pairs(
            record, context.palette, (method, number(main.get("w"))), context.names.get(method, method)
        )
        blocks += [pairs] if pairs else []
    table = tables.memorization_table(record, context.palette)
    return [*blocks, table] if table else blocks


def _classes(context: Context) -> list[Block]:
    table = tables.class_table(context.record, context.palette)
    return [table] if table else []


def _rounds(context: Context) -> list[Block]:
    table = tables.rounds_table(context.record, context.palette)
    if table is None:
        return []
    alt = "FD to the training images over the rounds, one line per method."
    drawing = plots.rounds_plot(context.record, context.palette)
    caption = "FD to the training images over the rounds; a round that did not improve was not kept."
    return [*context.figure("rounds", drawing, alt, caption), table]


def _search(context: Context) -> list[Block]:
    search = context.record.part("search")
    if not search:
        return []
    evaluations = context.record.part("costs").get("search_evaluations")
    shares = search.get("samples_by_method")
    facts = [
        Fact("Time", duration(search.get("seconds")), "for the whole search"),
        Fact("Samples", count(search.get("samples")), "drawn in all"),
        Fact("Full grid", count(search.get("grid_samples")), "samples it would take: every budget × 13 w × 5000"),
        Fact("Scores taken", count(len(plots.search_cells(context.record))), ""),
        Fact("Network evaluations", short_count(evaluations), "spent on the search for sims"),
    ]
    blocks: list[Block] = [Facts([fact for fact in facts if fact.value != "–"])]
    if search.get("extended"):
        blocks.append(Prose("The best setting lay on the edge of the grid, so the search was extended beyond it."))
    chosen = [
        f"{context.names.get(method, method)}: w = {strength(found.get('w'))}"
        + (f" at {short_count(found['budget'])} images" if number(found.get("budget")) else "")
        for method, found in (search.get("chosen") or {}).items()
        if isinstance(found, dict)
    ]
    if chosen:
        blocks.append(Prose("Chosen — " + "; ".join(chosen) + "."))
    if isinstance(shares, dict) and shares:
        drawn = [f"{context.names.get(method, method)} {count(found)}" for method, found in shares.items()]
        blocks.append(Prose("Samples drawn — " + "; ".join(drawn) + "."))
    cells = tables.cells_table(context.record, context.palette, context.names)
    return [*blocks, Details("Every score of the search", [cells])] if cells else blocks


def reproduce(record: Record) -> list[Block]:
    """What it takes to make the run again."""
    blocks: list[Block] = []
    if record.items("commands"):
        blocks.append(Code("\n".join(str(line) for line in record.items("commands"))))
    if record.summary.get("config_toml"):
        blocks.append(Details("Configuration", [Code(str(record.summary["config_toml"]))]))
    stages = tables.stage_table(record)
    if stages:
        blocks.append(Details("Where the time went", [stages]))
    versions = tables.version_table(record)
    if versions:
        blocks.append(Details("Versions", [versions]))
    return blocks


SECTIONS: tuple[tuple[str, str, Callable[[Context], list[Block]]], ...] = (
    ("samples", "Samples", _samples),
    ("results", "Results", _results),
    ("strength", "Strength and budget", _strengths),
    ("cost", "Cost", _cost),
    ("cache", "Cached guidance", _cache),
    ("memorization", "Memorization", _memorization),
    ("classes", "Classes", _classes),
    ("rounds", "Rounds", _rounds),
    ("search", "Search", _search),
    ("reproduce", "Reproduce", lambda context: reproduce(context.record)),
)
