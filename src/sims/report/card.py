"""The card of a model that is published: what it is, what was measured of it and how, what it was trained on, limits.

Markdown with YAML in front, as the Hugging Face hub reads it. Names that come from data are escaped wherever they
stand, and none stands in the YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sims.report import numbers as say
from sims.report.context import base_row, called, facts_of, heading, in_order, title
from sims.report.strips import GAP, Pictures, as_png, side_by_side, split_key
from sims.report.tables import diverged
from sims.results.common import Figure, Result, Row
from sims.results.improve import ImproveResult
from sims.results.scores import RunRow
from sims.results.shift import ShiftResult, ShiftRow
from sims.screen import printable

if TYPE_CHECKING:
    import numpy as np

MAIN = ("fd", "fd_held_out", "fd_target", "check_fd", "check_fd_held_out", "memorized")
PICTURE = "samples.png"
_LONGEST = 200  # characters of a foreign text
_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$&@]|:(?=//)|^[-+=]|(?<=^\d)[.)])")


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card says of a model that the result of its run does not.

    name            owner/name on the hub
    licence         as the hub writes it, such as apache-2.0
    row, rows       what was measured of the model; the rows that it is compared with, the first base among them
    what            what it is made of, such as "one network (mlp), 1,280,000 parameters"
    hash            of weights and settings
    shape           of a sample; ``pictures``: it makes pictures
    classes         names or numbers of the classes that samples are asked of
    trained_on      the data that the network was trained on, as the model names them, and a ``fingerprint`` of it;
                    "" where the model does not say
    origin          owner/name@commit of the model that the run began with, "" where that was none of the hub
    given           the run began with a model that somebody had trained before
    needs           what samples need besides, in a sentence
    """

    name: str
    licence: str
    row: Row
    rows: tuple[Row, ...]
    what: str
    hash: str
    shape: tuple[int, ...]
    pictures: bool = True
    classes: tuple[str, ...] = ()
    trained_on: str = ""
    fingerprint: str = ""
    origin: str = ""
    given: bool = False
    needs: str = ""


def plain(text: object) -> str:
    r"""A foreign text as Markdown shows it: one line, in which nothing is a mark.

    >>> plain("a|b*\n# c")
    'a\\|b\\* \\# c'
    """
    line = printable(" ".join(str(text).split()))
    line = line if len(line) <= _LONGEST else line[:_LONGEST] + "…"
    return _MARKS.sub(r"\\\1", line)


def model_card(result: Result, facts: CardFacts, measured: Sequence[RunRow], picture: bool) -> str:
    """The text of ``README.md``; ``picture``: ``samples.png`` lies beside it."""
    sections = (
        _about(result, facts, picture),
        _use(facts),
        _figures(result, facts),
        _proportions(result, facts.row),
        _measured(result, facts, measured),
        _memorization(result, facts),
        _data(result, facts),
        _limits(result, facts),
        _origin(result, facts),
    )
    return _front(facts) + "\n\n".join(text for text in sections if text) + "\n"


def _front(facts: CardFacts) -> str:
    lines = [f"license: {facts.licence}", "library_name: sims"]
    if facts.pictures:
        lines.append("pipeline_tag: unconditional-image-generation")
    if facts.origin:
        lines.append(f"base_model: {facts.origin.partition('@')[0]}")
    return "\n".join(["---", *lines, "tags:", "- sims", "- diffusion", "- self-improvement", "---", "", ""])


def _about(result: Result, facts: CardFacts, picture: bool) -> str:
    base, row = base_row(facts.rows), facts.row
    size = " × ".join(map(str, facts.shape))
    text = f"A diffusion model of samples of size {size}: {plain(facts.what)}."
    if facts.classes:
        names = ", ".join(map(plain, facts.classes[:20])) + ", …" * (len(facts.classes) > 20)
        text += f" Conditional on {len(facts.classes)} classes: {names}."
    if row is base:
        text += " It is the base that the run began with."
    elif isinstance(result, ShiftResult):
        text += f" Steered with its own samples to chosen proportions of “{plain(result.attribute)}”."
    else:
        text += f" Improved with its own samples: {_name(result, row)}."
    lines = [f"# {plain(facts.name.partition('/')[2])}", text]
    if picture:
        above = "" if row is base else f"Above the base, below {_name(result, row)}. "
        lines += [f"![samples]({PICTURE})", f"{above}Seeds were not selected; a column starts from the same noise."]
    return "\n\n".join(lines)


def _use(facts: CardFacts) -> str:
    classes = ", labels=[0]" if facts.classes else ""
    return f"""## Use

```sh
pip install 'sims-diffusion[hub]'
sims sample hf:{facts.name} --download --seeds 0-63 --out samples
```

```python
import sims

model = sims.load("hf:{facts.name}", download=True)
x = model.sample(seeds=range(16){classes})  # in [-1, 1]; sample i depends on seed i alone
images = model.images(seeds=range(16){classes})  # (16, ...), values as in the data
```

`hf:{facts.name}@COMMIT` pins a commit. Weights are safetensors, and reading them runs no code.\
{" " + plain(facts.needs) if facts.needs else ""}"""


def _figures(result: Result, facts: CardFacts) -> str:
    """Every model in the main figures; this one and the base in all of them."""
    base, row = base_row(facts.rows), facts.row
    if not row.figures:
        return "## Figures\n\nNothing was measured: the run had no real data to judge by."
    names = [name for name in in_order(result, row.figures) if name in MAIN]
    places = {name: say.decimals(one.mean(name) for one in facts.rows) for name in in_order(result, row.figures)}
    titles = ["", *(plain(heading(result, name)) for name in names), "evaluations a sample"]
    lines = []
    for one in facts.rows:
        cells = [_value(result, one, name, places[name]) for name in names]
        mark = "**" if one == row else ""
        lines.append([f"{mark}{_name(result, one)}{mark}", *cells, say.short_count(one.nfe)])
    pair = [row] if base is row or base is None else [base, row]
    every = [
        [plain(heading(result, name)), *(_value(result, one, name, places[name], True) for one in pair)]
        for name in places
    ]
    draws = f"{row.draws} draw{'s' * (row.draws != 1)} of {row.samples_per_draw:,} samples each"
    single = "" if row.draws > 1 else " One draw has no interval."
    return "\n\n".join(
        [
            "## Figures",
            f"Means over {draws}, ± half of the 95 % interval.{single} Arrows: which way is better.",
            _table(titles, lines),
            "All figures, with the ends of their 95 % intervals:",
            _table(["", *(_name(result, one) for one in pair)], every),
        ]
    )


def _value(result: Result, row: Row, name: str, places: int, with_ends: bool = False) -> str:
    """A figure and its interval; shares in percent."""
    value = row.figures.get(name)
    if value is not None and facts_of(result, name).kind == "share":
        low, high = (None if end is None else 100 * end for end in (value.low, value.high))
        return (say.with_ends if with_ends else say.plus_minus)(Figure(100 * value.mean, low, high), 1) + " %"
    return (say.with_ends if with_ends else say.plus_minus)(value, places)


def _name(result: Result, row: Row) -> str:
    """What a row is called, in Markdown."""
    name = called(result, row.label if row.label in result.looks else row.method)
    return plain(name if row.label in result.looks or not row.note else f"{name}, {row.note}")


def _table(titles: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A table in Markdown: the first column left, the others right."""
    rows = [titles, ["---", *["---:"] * (len(titles) - 1)], *lines]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows)


def _proportions(result: Result, row: Row) -> str:
    """The proportions that were asked for, those of the base, and those of the model."""
    if not isinstance(result, ShiftResult) or not isinstance(row, ShiftRow):
        return ""
    base = result.base.proportions.values
    shares = row.proportions
    lines = [
        [
            plain(value), say.percent(result.target[k]), say.percent(base[k]),
            f"{say.percent(shares.values[k])} [{say.percent(shares.low[k])}, {say.percent(shares.high[k])}]",
        ]
        for k, value in enumerate(result.values)
    ]  # fmt: skip
    counted = f"{shares.n:,} samples, as a second classifier calls them, corrected for its errors; 95 % intervals."
    return f"## Proportions\n\nOf {counted}\n\n{_table(['', 'target', 'the base', 'this model'], lines)}"


def _measured(result: Result, facts: CardFacts, measured: Sequence[RunRow]) -> str:
    """What every figure was measured with: extractor, reference, samples, seeds."""
    own = [one for one in measured if one.label == facts.row.label]
    groups: dict[tuple[str, str, str, str, int], list[RunRow]] = {}
    for one in own:
        key = (one.extractor_name, one.extractor_hash, one.reference_name, one.reference_hash, one.num_reference)
        groups.setdefault(key, []).append(one)
    if not groups:
        return ""
    lines = []
    for (extractor, its_hash, reference, reference_hash, count), rows in groups.items():
        names = "; ".join(plain(title(result, name)) for name in dict.fromkeys(one.metric for one in rows))
        of = f"{count:,} samples, " if count else ""
        seeds = min(one.seeds[0] for one in rows), max(one.seeds[1] for one in rows)
        lines.append(
            [
                names, f"{plain(extractor)} (`{_code(its_hash)}`)",
                f"{plain(reference)} ({of}`{_code(reference_hash)}`)",
                f"{rows[0].num_samples:,}", f"{seeds[0]:,} to {seeds[1] - 1:,}" if seeds[1] else say.DASH,
            ]
        )  # fmt: skip
    versions = f"sims {plain(own[0].sims_version)}, torch {plain(own[0].torch_version)}"
    heads = ["figures", "in the space of", "against", "samples a draw", "seeds"]
    text = f"Hashes are of content; two figures can be compared only where all of this is equal. By {versions}."
    return f"## Measured with\n\n{_table(heads, lines)}\n\n{text}"


def _code(text: str) -> str:
    return re.sub(r"[^\w.-]", "", text)[:16]


def _memorization(result: Result, facts: CardFacts) -> str:
    row, base = facts.row, base_row(facts.rows)
    if (near := row.figures.get("memorized")) is None:
        return "## Memorization\n\nNot measured: that takes training data and held-out data." if row.figures else ""
    text = (
        f"{_value(result, row, 'memorized', 1)} of the samples are nearer to a training sample than 99 % of held-out "
    )
    text += "data are; of held-out data 1 % would be."
    ratio, before = row.mean("distance_ratio"), base.figures.get("memorized") if base else None
    if base is not None and before is not None and base is not row:
        text += f" Of the base's: {_value(result, base, 'memorized', 1)}."
    if ratio is not None:
        text += f" Samples are {say.fixed(ratio, 3)} times as far from their nearest training sample as held-out data."
    most = before.high or before.mean if before else 0.0
    if before is not None and row is not base and (near.low or near.mean) > most:
        text += (
            "\n\n**More of its samples than of the base's lie unusually near to training data**: where that matters, "
        )
        text += "compare what you publish with the training data, or choose a lower strength."
    return f"## Memorization\n\n{text}"


def _data(result: Result, facts: CardFacts) -> str:
    data = result.data
    known = f" Fingerprint of their content: `{_code(facts.fingerprint)}`." if facts.fingerprint else ""
    if facts.given:
        origin = f" It is [{plain(facts.origin)}](https://huggingface.co/{facts.origin.partition('@')[0]})."
        text = "The network that the run began with was trained before, on "
        text += f"{plain(facts.trained_on)}, as it says.{known}" if facts.trained_on else "data that it does not name."
        text += origin if facts.origin else ""
        if data.num_train:
            text += f" The run judged and chose with {plain(data.name)}: {data.num_train:,} samples, and "
            text += f"{data.num_test:,} held out."
    else:
        text = f"{plain(data.name)}: {data.num_train:,} samples, and {data.num_test:,} held out for the figures.{known}"
        if data.num_base_train:
            text += f" The base was trained on {data.num_base_train:,} of them"
            text += f" ({plain(data.imbalance)})." if data.imbalance else "."
    return f"## Training data\n\n{text} Besides these, a run trains on samples of its own models only."


def _limits(result: Result, facts: CardFacts) -> str:
    """What the figures do not say."""
    texts = []
    if isinstance(result, ImproveResult) and not result.verified:
        texts.append("**Not verified**: there was no real data to judge by, so nothing says that it is an improvement.")
    if result.extractor is not None:
        name = plain(result.extractor.name)
        texts.append(
            f"FD is the Fréchet distance in features of {name}; it can be compared with figures of the same extractor, "
            "reference and number of samples only."
            + ("" if result.extractor.name.startswith("inception") else " **It is not an FID**, which Inception gives.")
        )
    texts += [plain(say.sentence(text)) for text in (*result.warnings, *diverged([facts.row]))]
    texts.append("Guidance and training on own samples add nothing that the base has not seen: gaps and biases of the "
                 "training data remain, and diversity may fall (recall and coverage).")  # fmt: skip
    return "## Limits\n\n" + "\n".join(f"- {text}" for text in texts)


def _origin(result: Result, facts: CardFacts) -> str:
    versions = ", ".join(f"{plain(name)} {plain(version)}" for name, version in result.reproduction.versions.items())
    made = f" with {versions}" if versions else ""
    text = f"Made by `sims {result.experiment}`{made}; hash `{_code(facts.hash)}` (`sims inspect`)."
    licence = f"{facts.licence}, as asked for by who publishes it."
    if facts.given:
        licence += " The licence of the model that the run began with, and of its data, may ask for more."
    return f"## Provenance\n\n{text}\n\n## Licence\n\n{licence}"


def samples_png(pictures: Pictures, facts: CardFacts) -> bytes | None:
    """Samples of the base above the model's, of the same seeds; None where the run kept no pictures of them."""
    import numpy as np

    base = base_row(facts.rows)
    rows = [facts.row] if base is None or base is facts.row else [base, facts.row]
    strips = [side_by_side(images) for row in rows if (images := _pictures_of(pictures, row)) is not None]
    if len(strips) < len(rows) or len({strip.shape for strip in strips}) != 1:
        return None
    gap = np.zeros((GAP, strips[0].shape[1], 4), np.uint8)
    return as_png(np.concatenate([part for strip in strips for part in (gap, strip)][1:]))


def _pictures_of(pictures: Pictures, row: Row) -> np.ndarray | None:
    """The pictures of a row, of its strength where there are several."""
    keys = {key: w for key in pictures.images for label, w in [split_key(key)] if label == row.label}
    if not keys:
        return None
    return pictures.images[min(keys, key=lambda key: abs((keys[key] or 0.0) - (row.w or 0.0)))]
