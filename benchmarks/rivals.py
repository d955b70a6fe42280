"""Would something simpler have helped as much? Every method on the same bases, repeated with fresh seeds.

    python benchmarks/rivals.py --bed digits-5k --repeats 5 --out benchmarks/results/rivals-digits-5k.json

A repeat is the whole of ``sims improve --methods all`` with its own seed: base, all that is trained, every search
(paired seeds, the same budget for all), one draw of fresh samples per row. Beds as in ``claim.py``. An interrupted
benchmark continues; further options go to ``sims improve``.
"""

from __future__ import annotations

import collections
from typing import Any

import claim
from sims.methods import METHODS
from sims.results.improve import ImproveResult

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
    options, extra, results = claim.repeats(__doc__, ["--methods", "all"])
    rows, lines = rows_of(claim.independent(options, results)), verdict(results)
    found = {"verdict": lines, "headlines": [found.headline for found in results], "rows": rows}
    claim.write(options, extra, results, found)
    title = f"# {options.bed}: every method on the same bases, {claim.over(options)}"
    text = [title, "", *[f"- {line}" for line in lines], "", table(rows), ""]
    options.out.with_suffix(".md").write_text("\n".join(text))
    print("\n".join(text))


if __name__ == "__main__":
    main()
