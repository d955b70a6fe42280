"""What distribution control leaves: one table, its figures, pictures, and what was found in words."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from sims.experiments.improve.summary import reproduction
from sims.experiments.shift.baselines import Contender, ratio_within
from sims.experiments.shift.measuring import Meter, Seen
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.setup import Problem
from sims.experiments.shift.steering import Cost
from sims.files import atomic_path, digest, write_atomic
from sims.model import Model
from sims.results.common import Figure
from sims.results.scores import ScoreRow
from sims.runs.directory import Run
from sims.seeds import seed_range


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    found = Figure.of(values)
    return {"mean": found.mean, "low": found.low, "high": found.high, "min": found.lowest}


GRID = 64  # samples shown of every contender
GROUP = 8  # and of every group, out of
SHOWN = 256
RIVALS = ("rejection", "classifier guidance", "fine-tuning")


@dataclass(frozen=True)
class Row:
    """One line of the table: what was seen of a contender, draw by draw, and what a sample and making it cost."""

    label: str
    seen: Seen
    draws: Sequence[Seen]
    nfe: float
    cost: Cost
    w: float | None
    note: str = ""
    drawn: int | None = None

    @classmethod
    def of(cls, contender: Contender, seen: Seen, size: int) -> Row:
        draws = [seen[first : first + size] for first in range(0, len(seen), size)]
        return cls(contender.label, seen, draws, contender.nfe, contender.cost, contender.w, contender.note)

    def figures(self, meter: Meter) -> dict[str, Any]:
        """Everything but the groups, in plain values."""
        distances = [meter.distances(draw) for draw in self.draws]
        steering = meter.shares(self.seen.steering, judged=False)
        return {
            "label": self.label,
            "w": self.w,
            "nfe": self.nfe,
            "cost": self.cost.to_json(),
            "note": self.note,
            "drawn": self.drawn,
            "n": len(self.seen),
            "proportions": meter.shares(self.seen.judged, judged=True),
            "steering": steering,
            "samples_per_draw": len(self.draws[0]),
            "draws": len(self.draws),
            **{name: _interval([found[name] for found in distances]) for name in distances[0]},
        }


def groups_of(meter: Meter, rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Quality within each group, of every row, at equal numbers: as many as the base or the steered model has fewer.

    Fréchet distances of few samples are biased upwards, so that unequal numbers could not be compared.
    """
    found: dict[str, list[dict[str, Any]]] = {row.label: [] for row in rows}
    compared = [row for row in rows if row.label in ("base", "steered")]
    for value in range(len(meter.names)):
        limit = max(2, min(int((row.seen.judged == value).sum()) for row in compared))
        for row in rows:
            found[row.label].append(meter.group(row.seen, value, limit))
    return found


def costs_of(rows: Sequence[dict[str, Any]], base_shares: np.ndarray, target: np.ndarray) -> list[dict[str, Any]]:
    """Cost per delivered sample against rejection, exact and at the row's own error, and the break-even numbers.

    ``base_shares`` (K,) are the base's proportions. At a total variation t, rejection may leave that much undone
    (``ratio_within``). Break-even: the number of samples from which on a row costs less than rejection, its making
    included; None where it never does.
    """
    base = next(row for row in rows if row["label"] == "base")
    found = []
    for row in rows:
        if row["label"] in ("base", "rejection"):
            continue
        tv = row["proportions"]["tv"]["value"]
        entry: dict[str, Any] = {"label": row["label"], "nfe": row["nfe"], "cost": row["cost"]["total"], "tv": tv}
        for name, allowed in (("rejection", 0.0), ("rejection_at_equal_error", tv)):
            nfe = base["nfe"] * ratio_within(target, base_shares, allowed)
            finite = math.isfinite(nfe)
            saved = nfe - row["nfe"]
            entry[name] = {
                "nfe": nfe if finite else None,
                "times": nfe / row["nfe"] if finite else None,
                "break_even": math.ceil(row["cost"]["total"] / saved) if finite and saved > 0 else None,
            }
        found.append(entry)
    return found


def worse_groups(groups: dict[str, list[dict[str, Any]]], most: int) -> list[str]:
    """Groups in which the steered model's quality is below the base's, in words.

    Precision and recall are shares, of ``most`` samples and real images at most: a fall counts from two standard errors
    on.
    """
    texts = []
    for before, after in zip(groups["base"], groups["steered"]):
        parts = []
        if before["fd"] is not None and after["fd"] is not None and after["fd"] > before["fd"]:
            parts.append(f"FD {before['fd']:.2f} -> {after['fd']:.2f}")
        for name, count in (("precision", "n"), ("recall", "real")):
            p, q, n = before[name], after[name], min(before[count], most)
            if p is not None and q is not None and p - q > 2 * math.sqrt((p * (1 - p) + q * (1 - q)) / n):
                parts.append(f"{name} {p:.2f} -> {q:.2f}")
        if parts:
            counts = f"{before['n']:,} samples each, {before['real']:,} real images"
            texts.append(f"{before['value']!r}: {', '.join(parts)} ({counts})")
    return texts


def disagreement(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> list[str]:
    """Values whose share the two classifiers see differently, beyond the intervals of both, among steered samples.

    Their errors were measured on real images; on generated ones they can have others.
    """
    steered = next(row for row in rows if row["label"] == "steered")
    judged, steering = steered["proportions"], steered["steering"]
    apart = [
        f"{name!r} {steering['values'][k]:.1%} and {judged['values'][k]:.1%}"
        for k, name in enumerate(names)
        if steering["low"][k] > judged["high"][k] or steering["high"][k] < judged["low"][k]
    ]
    text = f"the steering and the judging classifier disagree on steered samples: {', '.join(apart)}"
    return [text] if apart else []


def headline(rows: Sequence[dict[str, Any]], solver: dict[str, Any]) -> str:
    """What was reached, by the judge, on the evaluation seeds."""
    by_label = {row["label"]: row for row in rows}
    before, after = by_label["base"], by_label["steered"]
    tv, old = after["proportions"]["tv"], before["proportions"]["tv"]
    fd = f"{before['fd_target']['mean']:.2f} -> {after['fd_target']['mean']:.2f}"
    state = "target met" if solver["met"] else "target not met"
    return (
        f"{state} on the selection seeds; by the judge, n = {after['n']:,}: total variation {old['value']:.3f} -> "
        f"{tv['value']:.3f} [{tv['low']:.3f}, {tv['high']:.3f}], FD to real data in the target's proportions {fd}"
    )


def summarize(
    run: Run,
    options: ShiftOptions,
    problem: Problem,
    meter: Meter,
    solver: dict[str, Any],
    rows: Sequence[Row],
    tried: dict[str, Any],
    seconds: dict[str, float],
) -> dict[str, Any]:
    """Everything that ``summary.json`` holds."""
    table = [row.figures(meter) for row in rows]
    groups = groups_of(meter, rows)
    for entry in table:
        entry["groups"] = groups[entry["label"]]
    warnings = [f"worse than the base within {text}" for text in worse_groups(groups, meter.judge.manifold_samples)]
    warnings += disagreement(table, meter.names)
    if not solver["met"]:
        warnings.insert(0, f"the target was not met: {solver['reason']}")
    real = np.bincount(problem.train_labels[problem.train_labels >= 0], minlength=len(meter.names))
    base_shares = np.asarray(solver["base"]["values"])
    return {
        "format": 1,
        "experiment": "shift",
        "title": f"{options.data.path if options.model is None else options.model.name}: proportions to a target",
        "headline": headline(table, solver),
        "warnings": warnings,
        "attribute": {"name": meter.steering.attribute.name, "values": list(meter.names)},
        "target": meter.target.tolist(),
        "real": {"counts": real.tolist(), "shares": (real / real.sum()).tolist()},
        "data": {
            "name": problem.train.name,
            "num_train": len(problem.train),
            "num_test": len(problem.test),
            "num_base_train": len(problem.base_data) if options.model is None else None,
            "shape": list(problem.train.data_shape),
            "imbalance": options.imbalance,
        },
        "classifiers": {
            role: {"hash": c.hash, "accuracy": c.accuracy, "confusion": np.asarray(c.confusion).tolist()}
            for role, c in (("steering", meter.steering), ("judging", meter.judging))
        },
        "extractor": asdict(meter.judge.about()),
        "solver": solver,
        "rows": table,
        "costs": costs_of(table, base_shares, meter.target),
        "scales": tried,
        **reproduction(run, options, seconds),
    }


def _score_rows(meter: Meter, options: ShiftOptions, row: Row) -> list[dict[str, Any]]:
    """One self-describing row per figure: distances of every draw, shares and total variation of all samples."""
    judge, size = meter.judge, options.evaluation.samples
    seeds = seed_range("evaluation", options.seed, options.evaluation.draws * size)
    about = {"label": row.label, "w": row.w, "nfe": row.nfe}
    target = digest(meter.target.tolist())[:16]

    def entry(metric: str, value: float, part: tuple[int, int], count: int, **source: str) -> dict[str, Any]:
        score = ScoreRow(
            metric=metric, value=value, num_samples=count, seeds=part, dtype="as the data",
            **source,  # type: ignore[arg-type]
        )  # fmt: skip
        return {**about, **score.to_json()}

    found = []
    for index, draw in enumerate(row.draws):
        part = (seeds.start + index * size, seeds.start + (index + 1) * size)
        part = part if row.drawn is None else (seeds.start, seeds.start + row.drawn)
        for name, value in meter.distances(draw).items():
            own = judge.second if name.startswith("check_") and judge.second else judge
            reference = own.test if name == "fd_held_out_target" and own.test else own.train
            source = {
                "extractor_name": own.extractor.name,
                "extractor_hash": own.extractor.hash,
                "reference_name": f"{reference.name} in the target's proportions",
                "reference_hash": digest(reference.hash, target)[:16],
                "resize": own.extractor.resize,
            }
            found.append(entry(name, value, part, len(draw), **source) | {"draw": index})
    shares = meter.shares(row.seen.judged, judged=True)
    source = {
        "extractor_name": f"judge of {meter.judging.attribute.name}",
        "extractor_hash": meter.judging.hash,
        "reference_name": "target",
        "reference_hash": target,
        "resize": "none",
    }
    whole = (seeds.start, seeds.start + (row.drawn or len(row.seen)))
    figures = {"tv": shares["tv"]["value"], "kl": shares["kl"]["value"]}
    figures |= {f"share[{name}]": value for name, value in zip(meter.names, shares["values"])}
    return found + [entry(k, v, whole, len(row.seen), **source) for k, v in figures.items() if v is not None]


def write_outputs(
    run: Run, options: ShiftOptions, meter: Meter, base: Model, contenders: Sequence[Contender], rows: Sequence[Row]
) -> None:
    """``metrics.jsonl`` and ``grids.npz``: "LABEL" are 64 samples of the same seeds, "LABEL#K" up to 8 of value K."""
    lines = [json.dumps(entry) for row in rows for entry in _score_rows(meter, options, row)]
    write_atomic(run.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    seeds = seed_range("figures", options.seed, SHOWN)
    arrays: dict[str, np.ndarray] = {"seeds": np.asarray(seeds)}
    for contender in contenders:
        x = contender.sample(seeds).nan_to_num(0.0, 1e3, -1e3)
        x = base.codec.encode(base.codec.decode(x))
        images, values = base.codec.to_images(x), meter.judging(x.to(run.device))
        arrays[contender.label] = images[:GRID]
        for value in range(len(meter.names)):
            arrays[f"{contender.label}#{value}"] = images[values == value][:GROUP]
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def shift_table(summary: dict[str, Any]) -> Table:
    """The closing table of the terminal."""
    table = Table(title=f"{summary['attribute']['name']} to the target")
    for name in ("", "TV to target", "FD (target)", "NFE / sample", "made for", "break-even"):
        table.add_column(name, justify="left" if not name else "right")
    costs = {entry["label"]: entry for entry in summary["costs"]}
    for row in summary["rows"]:
        tv, fd = row["proportions"]["tv"], row["fd_target"]["mean"]
        even = costs.get(row["label"], {}).get("rejection_at_equal_error", {}).get("break_even")
        table.add_row(
            row["label"],
            f"{tv['value']:.3f} [{tv['low']:.3f}, {tv['high']:.3f}]",
            f"{fd:.2f}",
            f"{row['nfe']:.1f}",
            f"{row['cost']['total']:,}",
            "" if even is None else f"{even:,}",
        )
    return table
