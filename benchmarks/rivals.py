"""Would something simpler have helped as much? Every method on the same bases, repeated with fresh seeds.

    python benchmarks/rivals.py --bed digits-5k --repeats 5 --out benchmarks/results/rivals-digits-5k.json

A repeat is the whole of ``sims improve --methods all`` with its own seed: base, all that is trained, every search
(paired seeds, the same budget for all), one draw of fresh samples per row. Beds as in ``claim.py``, and fashion-mnist
(--data FOLDER with the IDX files). An interrupted benchmark continues; further options go to ``sims improve``.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import claim
from sims.methods import METHODS
from sims.results.improve import ImproveResult
from sims.results.summaries import to_json

BEDS = {**claim.BEDS, "fashion-mnist": "fashion-mnist"}
COLUMNS = (
    "method, evaluations, training, w, FD train, change, FD test, change, second FD test, KID test, recall, memorized, "
    "s per 1,000"
)


def rows_of(results: list[ImproveResult]) -> list[dict[str, Any]]:
    """``claim``'s rows, with what each needed and took; those of every repeat alone."""
    rows = claim.collect(results)
    for row in rows:
        found = [entry for result in results for entry in result.rows if entry.label == row["label"]]
        method = METHODS.get(row["method"].split(" ")[0])
        row["free"] = method is not None and method.is_free
        row["needs_real"] = method is not None and method.needs_real
        row["notes"] = [entry.note for entry in found]
        row["cost"] = [entry.cost.total for entry in found]
        row["seconds_per_1000"] = [entry.seconds_per_1000 for entry in found]
    return rows


def verdict(results: list[ImproveResult]) -> list[str]:
    """What the repeats recommend within each cost, and what they say first."""
    lines = []
    for limit in (1.0, 1.25, None):
        for trained in (False, True):
            labels = [
                item.label
                for result in results
                for item in result.recommended
                if item.max_cost == limit and item.trained == trained
            ]
            counts = ", ".join(f"{label} ({n})" for label, n in collections.Counter(labels).most_common())
            within = "at any cost" if limit is None else f"at {limit:g} times the base's evaluations at most"
            lines.append(f"best {within}, {'any method' if trained else 'without training'}: {counts or 'none'}")
    return lines


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| " + COLUMNS.replace(", ", " | ") + " |", "|" + "---|" * len(COLUMNS.split(", "))]

    def cell(row: dict[str, Any], name: str, digits: int = 1) -> str:
        entry = row.get(name)
        return f"{entry['mean']:.{digits}f} ± {(entry['high'] - entry['low']) / 2:.{digits}f}" if entry else "–"

    def change(row: dict[str, Any], name: str) -> str:
        if row["label"] == "base" or name not in row:
            return "–"
        by = row[name]["change_percent"]
        return f"{by['mean']:+.0f} % [{by['low']:+.0f}, {by['high']:+.0f}]"

    for row in sorted(rows, key=lambda row: row["fd"]["mean"]):
        needs = "none" if row["free"] else "real data" if row["needs_real"] else "yes"
        seconds = sorted(s for s in row["seconds_per_1000"] if s is not None)
        cells = [row["label"], "–".join(f"{n:g}" for n in sorted({min(row["nfe"]), max(row["nfe"])})), needs]
        cells += [", ".join(f"{w:g}" for w in row["w"]), cell(row, "fd"), change(row, "fd"), cell(row, "fd_held_out")]
        cells += [change(row, "fd_held_out"), cell(row, "check_fd_held_out"), cell(row, "check_kid_held_out", 3)]
        cells += [cell(row, "recall", 3), cell(row, "memorized", 3)]
        cells.append(f"{seconds[len(seconds) // 2]:.1f}" if seconds else "–")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bed", choices=sorted(BEDS), required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, default=Path("runs/rivals"))
    parser.add_argument("--data", help="data set of the beds cifar10-8x8 and fashion-mnist")
    parser.add_argument("--out", type=Path, required=True)
    options, extra = parser.parse_known_args()
    claim.BEDS.update(BEDS)
    words = ["--methods", "all", *extra]
    seeds = range(options.first_seed, options.first_seed + options.repeats)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        jobs = [pool.submit(claim.run_repeat, options.bed, s, options.folder, options.data, words) for s in seeds]
        results = [job.result() for job in jobs]
    rows, lines = rows_of(results), verdict(results)
    result = {
        "benchmark": "rivals",
        "bed": options.bed,
        "repeats": options.repeats,
        "date": datetime.date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread a repeat",
        "command": f"python benchmarks/rivals.py --bed {options.bed} --repeats {options.repeats} "
        f"--first-seed {options.first_seed} --out {options.out}",
        "options": extra,
        "extractor": to_json(results[0].extractor),
        "floor": to_json(results[0].floor),
        "verdict": lines,
        "headlines": [found.headline for found in results],
        "rows": rows,
        "seconds": [found.reproduction.seconds for found in results],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    title = f"# {options.bed}: every method on the same bases, {options.repeats} repeats"
    text = [title, "", *[f"- {line}" for line in lines], "", table(rows), ""]
    options.out.with_suffix(".md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
