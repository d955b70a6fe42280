"""The claim, tested: repeats of the whole procedure with fresh seeds for base, auxiliary, search and samples.

    python benchmarks/claim.py --bed digits-5k --repeats 5 --out benchmarks/results/claim-digits-5k.json

Beds: digits-5k, digits-20k (bundled), cifar10-8x8, cifar10-32x32 (--data FOLDER with train and test parquet files),
fashion-mnist (--data FOLDER with the IDX files). The repeats run as separate processes of one thread each
(``--threads``), ``--jobs`` at a time; an interrupted benchmark continues. Further options go to ``sims improve``: with
``--model BASE`` the base is the same in all repeats, which then tell how much auxiliary and search differ.
Every interval is Student's t over the repeats, and every comparison with the base is paired within the repeat; of a
single repeat, over its draws of samples.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from sims.metrics.intervals import paired_ratio_interval, t_interval
from sims.results.common import Figure
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result, to_json

NAME = Path(sys.argv[0]).stem  # of the benchmark that runs


class Bed(NamedTuple):
    """A recipe, and the bounds of the change in percent: to train at most, to test the interval's end at most."""

    recipe: str
    fall: int
    rise: int
    bundled: bool = False


BEDS = {
    "digits-5k": Bed("digits", -25, 5, bundled=True),
    "digits-20k": Bed("digits-20k", -25, 5, bundled=True),
    "cifar10-8x8": Bed("cifar10-8x8", -35, 0),
    "cifar10-32x32": Bed("cifar10-cpu", -30, 0),
    "fashion-mnist": Bed("fashion-mnist", -30, 0),
}
FIGURES = ("fd", "fd_held_out", "kid_held_out", "precision", "recall", "memorized", "distance_ratio")
CHECKED = tuple(f"check_{name}" for name in FIGURES[:5])


def command(recipe: str, run: Path, seed: int, data: str | None, extra: list[str]) -> list[str]:
    """One repeat: the whole of ``sims improve`` with its own seed, one draw of fresh samples per method."""
    words = [sys.executable, "-m", "sims", "improve", "--recipe", recipe, "--run", str(run)]
    words += ["--seed", str(seed), "--evaluation.draws", "1"]
    words += ["--methods", "default,placebo,self-trained"]
    if data:
        words += ["--data.path", data]
    return [*words, *extra]


def run_repeat(recipe: str, options: argparse.Namespace, seed: int, extra: list[str]) -> ImproveResult:
    run = folder_of(options, seed)
    run.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    with run.with_name(f"{run.name}.log").open("a") as log:
        words = command(recipe, run, seed, options.data, extra)
        subprocess.run(words, env=environment, stderr=log, stdout=log, check=True)
    print(f"{run.name} finished", flush=True)
    return read_result(run, ImproveResult)


def by_draw(result: ImproveResult, run: Path) -> list[ImproveResult]:
    """A repeat as one for each of its draws of samples, paired by seed: what intervals there are without others.

    They are then those of the samples alone; base, training and search are the same in all.
    """
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {(line["draw"], line["label"], line["metric"]): Figure(line["value"]) for line in lines}

    def one(draw: int) -> ImproveResult:
        rows = [
            replace(row, figures={name: found[draw, row.label, name] for name in row.figures}) for row in result.rows
        ]
        return replace(result, rows=tuple(rows))

    return [one(draw) for draw in sorted({line["draw"] for line in lines})]


def collect(results: list[ImproveResult]) -> list[dict[str, Any]]:
    """One row per method: every figure over the repeats, its change against the base, the share of the gain kept."""
    labels = [row.label for row in results[0].rows]
    by = [{row.label: row for row in result.rows} for result in results]
    rows = []
    for label in labels:
        if not all(label in repeat for repeat in by):
            continue
        first = by[0][label]
        row: dict[str, Any] = {"method": first.method, "label": label, "nfe": [r[label].nfe for r in by]}
        row |= {"w": [r[label].w for r in by], "budget": [r[label].budget for r in by]}
        for figure in (*FIGURES, *CHECKED):
            if figure not in first.figures:
                continue
            ours, base = ([r[name].figures[figure].mean for r in by] for name in (label, "base"))
            row[figure] = {"values": ours, **asdict(t_interval(ours))}
            if figure.endswith(("fd", "fd_held_out")):
                row[figure]["change_percent"] = asdict(paired_ratio_interval(ours, base))
                full = [r["sims"].figures[figure].mean for r in by]
                row[figure]["retained"] = share(*([b - o for b, o in zip(base, rival)] for rival in (ours, full)))
        rows.append(row)
    return rows


def share(gains: list[float], full: list[float]) -> dict[str, float]:
    """The mean gain as a share of the mean full gain, its interval by the jackknife over the repeats.

    Not the mean of the shares: in a repeat whose full gain is near zero, or negative, a share means nothing.
    """
    n, whole = len(gains), sum(gains) / sum(full)
    without = [(sum(gains) - g) / (sum(full) - f) for g, f in zip(gains, full)]
    return asdict(t_interval([n * whole - (n - 1) * other for other in without])) | {"mean": whole}


def verdict(bed: Bed, rows: list[dict[str, Any]], labels: set[str]) -> list[str]:
    """Which bounds hold, in words; ``labels`` are those of any repeat."""
    fall, rise = bed.fall, bed.rise
    found = {row["label"]: row for row in rows}
    lines = []
    for prefix, features in (("", "selection's features"), ("check_", "features selection did not use")):
        row = found["sims"]
        if f"{prefix}fd" not in row:
            continue
        train, test = (row[f"{prefix}{name}"]["change_percent"] for name in ("fd", "fd_held_out"))
        ok_train = train["mean"] <= fall
        ok_test = test["high"] < 0 if rise == 0 else test["high"] <= rise
        lines.append(
            f"{'holds' if ok_train else 'FAILS'} ({features}): FD to train {train['mean']:+.1f} % (bound {fall} %)"
        )
        lines.append(f"{'holds' if ok_test else 'FAILS'} ({features}): FD to test {test['mean']:+.1f} %, "
                     f"95 % [{test['low']:+.1f}, {test['high']:+.1f}] (upper bound {rise} %)")  # fmt: skip
    for label in ("sims (cached)", "sims (fast)", "distilled"):
        if label not in labels:
            continue
        if label not in found:
            lines.append(f"FAILS: {label} is missing in a repeat, and so in the table")
        else:
            kept, tested = (found[label][name]["retained"]["mean"] for name in ("fd", "fd_held_out"))
            nfe = max(found[label]["nfe"])
            mark = "holds" if kept >= 0.95 else "FAILS"
            lines.append(
                f"{mark}: {label} keeps {kept:.0%} of the gain to train, {tested:.0%} to test, at {nfe} evaluations"
                f" (base: {max(found['base']['nfe'])}); {_changes(found[label])}"
            )
    return lines


def _changes(row: dict[str, Any]) -> str:
    """The change of the distance to test in all features that it was measured in."""
    found = {"FD to test": "fd_held_out", "in features selection did not use": "check_fd_held_out"}
    by = {text: row[name]["change_percent"] for text, name in found.items() if name in row}
    return ", ".join(
        f"{text} {entry['mean']:+.1f} % [{entry['low']:+.1f}, {entry['high']:+.1f}]" for text, entry in by.items()
    )


def table(rows: list[dict[str, Any]]) -> str:
    names = "method, w, NFE, FD train, change, FD test, change, check FD train, check FD test, check KID test, "
    names += "check recall, memorized"
    lines = ["| " + names.replace(", ", " | ") + " |", "|" + "---|" * 12]
    for row in rows:

        def cell(name: str, digits: int = 2, row: dict[str, Any] = row) -> str:
            entry = row.get(name)
            return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}" if entry else "–"

        def change(name: str, row: dict[str, Any] = row) -> str:
            entry = row[name]["change_percent"]
            return (
                "–" if row["label"] == "base" else f"{entry['mean']:+.1f} % [{entry['low']:+.1f}, {entry['high']:+.1f}]"
            )

        strengths = ", ".join(f"{w:g}" for w in row["w"])
        cells = [row["label"], strengths, str(max(row["nfe"])), cell("fd"), change("fd"), cell("fd_held_out")]
        cells += [change("fd_held_out"), cell("check_fd"), cell("check_fd_held_out"), cell("check_kid_held_out", 3)]
        lines.append("| " + " | ".join([*cells, cell("check_recall", 3), cell("memorized", 4)]) + " |")
    return "\n".join(lines)


def repeats(description: str | None, words: list[str]) -> tuple[argparse.Namespace, list[str], list[ImproveResult]]:
    """The command line of a benchmark of whole repeats, and what these found, in the order of their seeds."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=sorted(BEDS), required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=1, help="of each repeat")
    parser.add_argument("--folder", type=Path, default=Path("runs") / NAME)
    parser.add_argument("--data", help="folder with the data set of a bed that is not bundled")
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()
    bed = BEDS[options.bed]
    if (options.data is None) != bed.bundled:
        named = "bundled" if bed.bundled else "not bundled"
        parser.error(f"--data is for beds that are not bundled, and needed there: {options.bed} is {named}")
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [
            pool.submit(run_repeat, bed.recipe, options, seed, [*words, *extra])
            for seed in range(options.first_seed, options.first_seed + options.repeats)
        ]
        return options, extra, [job.result() for job in jobs]


def independent(options: argparse.Namespace, results: list[ImproveResult]) -> list[ImproveResult]:
    """What intervals are over: repeats, or the draws of a single one."""
    return results if len(results) > 1 else by_draw(results[0], folder_of(options, options.first_seed))


def over(options: argparse.Namespace) -> str:
    """What intervals are over, in words."""
    return f"{options.repeats} repeats" if options.repeats > 1 else "one repeat, intervals over its draws of samples"


def folder_of(options: argparse.Namespace, seed: int) -> Path:
    return Path(options.folder) / f"{options.bed}-{seed}"


def write(options: argparse.Namespace, extra: list[str], results: list[ImproveResult], found: dict[str, Any]) -> None:
    """The result as JSON: what was run and where, then what was found."""
    head = {
        "benchmark": NAME,
        "bed": options.bed,
        "repeats": options.repeats,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, threads a repeat: {options.threads}",
        "command": f"python benchmarks/{NAME}.py --bed {options.bed} --repeats {options.repeats} "
        f"--first-seed {options.first_seed} {'--data DATA ' if options.data else ''}--out {options.out}",
        "options": extra,
        "extractor": to_json(results[0].extractor),
        "second_extractor": to_json(results[0].second_extractor),
        "floor": to_json(results[0].floor),
    }
    tail = {"seconds": [result.reproduction.seconds for result in results]}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({**head, **found, **tail}, indent=1) + "\n")


def main() -> None:
    options, extra, results = repeats(__doc__, [])
    rows = collect(independent(options, results))
    lines = verdict(BEDS[options.bed], rows, {row.label for result in results for row in result.rows})
    chosen = [to_json(result.search.chosen) for result in results if result.search]
    write(options, extra, results, {"verdict": lines, "rows": rows, "chosen": chosen})
    whole = "the whole procedure on one base" if "--model" in extra else "the whole procedure"
    title = f"# {options.bed}: {whole}, {over(options)}"
    text = [title, "", *[f"- {line}" for line in lines], "", table(rows)]
    options.out.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join([*lines, table(rows)]))


if __name__ == "__main__":
    main()
