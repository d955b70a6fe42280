"""What real images score: CIFAR-10's test images against its training images, in features of EfficientNet-Lite0.

    python benchmarks/floors.py --data DATA --out benchmarks/results/floors-cifar10.json

No samples can be told to be better than this floor, and it depends on their number. DATA is a folder with CIFAR-10 as
parquet files. Features are kept in --cache, so that an interrupted run continues; 60,000 images take some ten minutes
on two cores. A table in Markdown is written beside the JSON file.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from rich.progress import Progress

from common import save
from sims.data.stream import Stream
from sims.metrics.extractors import Extractor
from sims.metrics.frechet import Moments
from sims.metrics.infinity import PARTS
from sims.metrics.pretrained import get_extractor
from sims.results.scores import ScoreFigure
from sims.scoring.features import FeatureSet, extract_features
from sims.scoring.figures import Settings, figures
from sims.scoring.options import ScoreOptions
from sims.scoring.subjects import open_reference

METRICS = ("fd", "fd_infinity", "kid", "manifold")
COLUMNS = {
    "fd": ("FD", 2),
    "fd_infinity": ("FD, n to infinity", 2),
    "kid": ("KID x 1000", 3),
    "precision": ("precision (k=3)", 3),
    "recall": ("recall (k=3)", 3),
}


def features(stream: Stream, extractor: Extractor, cache: Path, keep: int) -> FeatureSet:
    """All features of a set, with a bar on the terminal."""
    with Progress(transient=True) as progress:
        task = progress.add_task(stream.name, total=stream.count)
        return extract_features(
            stream, extractor, cache, Accelerator(), keep=keep, advance=lambda n: progress.advance(task, n)
        )


def subset(found: FeatureSet, count: int) -> FeatureSet:
    """``count`` samples of a set; a smaller subset is part of a larger one."""
    assert found.kept is not None
    kept = found.kept[np.sort(np.random.default_rng(0).permutation(len(found.kept))[:count])]
    return replace(found, moments=Moments.of(kept), kept=kept, positions=None, labels=None, files=())


def entry(figure: ScoreFigure) -> dict[str, Any]:
    """A figure as JSON."""
    about = {"low": figure.low, "high": figure.high, "interval": figure.interval} if figure.low is not None else {}
    return {"value": figure.mean, **about, **figure.settings}


def cell(name: str, row: dict[str, Any]) -> str:
    """A figure with half the width of its interval."""
    if name not in row:
        return "–"
    found, places = row[name], COLUMNS[name][1]
    scale = 1000 if name == "kid" else 1
    half = scale * (found["high"] - found["low"]) / 2
    return f"{scale * found['value']:.{places}f} ± {half:.{places}f}"


def table(rows: list[dict[str, Any]]) -> str:
    """One row per number of test images."""
    lines = ["| n | " + " | ".join(title for title, _ in COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    lines += [f"| {row['n']:,} | " + " | ".join(cell(name, row) for name in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("data/cifar10"))
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    parser.add_argument("--counts", type=int, nargs="+", default=[2_000, 5_000, 10_000])
    parser.add_argument("--neighbours", type=int, default=10_000, help="training images that KID and neighbours see")
    parser.add_argument("--images", type=int, help="at most this many training and test images, to try it out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/floors-cifar10.json"))
    options = parser.parse_args()
    extractor = get_extractor("efficientnet-lite0")
    streams = open_reference(options.data, ScoreOptions())
    if None in streams:
        raise SystemExit(f"{options.data} needs parquet files named ...train... and ...test...")
    if options.images:
        streams = tuple(replace(stream, count=min(stream.count, options.images)) for stream in streams)
    train, test = (features(stream, extractor, options.cache, options.neighbours) for stream in streams)
    rows = []
    for count in options.counts:
        found = figures(subset(test, count), train, None, METRICS, Settings(neighbours=options.neighbours))
        if count < max(PARTS) * extractor.num_features:
            found.pop("fd_infinity", None)  # its smallest parts have fewer samples than features
        rows.append({"n": count, **{name: entry(figure) for name, figure in found.items()}})
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    used = min(options.neighbours, train.count)
    text = [
        f"# Real against real: CIFAR-10 (JPEG), {extractor.name}",
        "",
        f"n test images against {train.count:,} training images, each figure with its 95 % interval. KID, precision "
        f"and recall look at {used:,} of the training images. The distance for n to infinity is left out where its "
        f"smallest part, n / {max(PARTS)}, has fewer images than there are features ({extractor.num_features:,}).",
        "",
        table(rows),
    ]
    tried = f" --images {options.images}" if options.images else ""
    result = {
        "benchmark": "floors",
        "command": "python benchmarks/floors.py --data DATA --counts " + " ".join(map(str, options.counts)) + tried,
        "extractor": {"name": extractor.name, "hash": extractor.hash, "resize": extractor.resize},
        "reference": {"name": train.name, "hash": train.hash, "count": train.count, "neighbours": used},
        "samples": {"name": test.name, "hash": test.hash, "count": test.count},
        "rows": rows,
    }
    save(options.out, result)
    options.out.with_suffix(".md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
