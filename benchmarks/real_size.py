"""What a finished run at a real size shows: its table, the base's own training, and a picture.

    sims improve --recipe fashion-mnist --data.path FASHION_MNIST --run runs/fashion-mnist
    python benchmarks/real_size.py runs/fashion-mnist --name fashion-mnist

The table is the run's own, in the features that chose and in those that did not. Beside it: Fréchet distances of the
base's snapshots in both, which say what a gain is worth in training; and samples of the same seeds, none selected, with
real pictures below (``benchmarks/results/NAME.png``).
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import sims
from common import flat, save
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result

COLUMNS, SCALE = 16, 2
LABEL, GAP = 84, 8  # pixels


def training(base: Path, run: Path, samples: int) -> list[dict[str, Any]]:
    """Distances of the base's snapshots, one draw each, in the features of the run, then in its second ones."""
    options = {"metrics": ["fd"], "draws": 1, "samples": samples}
    rows = []
    for path in sorted((base / "snapshots").iterdir()):
        row: dict[str, Any] = {"images": int(path.name)}
        for folder, prefix in ((run / "references", ""), (run / "references" / "check", "check_")):
            if folder.is_dir():
                scores = sims.evaluate(path, folder, options=options, quiet=True)
                row |= {prefix + name: value.mean for name, value in scores.figures.items()}
        rows.append(row)
        print(rows[-1], flush=True)
    return rows


def picture(run: Path, file: Path) -> None:
    """Rows of the same seeds: base, the cheapest SIMS, distilled; real pictures below."""
    with np.load(run / "grids.npz") as arrays:
        found = {key.partition("@")[0]: arrays[key] for key in [*arrays][::-1]}
    improved = "sims (fast)" if "sims (fast)" in found else "sims"
    wanted = {"base": "base", improved: "improved", "distilled": "distilled", "real": "real"}
    rows = {title: np.concatenate([*found[name][:COLUMNS]], axis=1) for name, title in wanted.items() if name in found}
    height, width = (SCALE * side for side in next(iter(rows.values())).shape[:2])
    whole = Image.new("RGB", (LABEL + width, len(rows) * (height + GAP) - GAP), "white")
    draw, font = ImageDraw.Draw(whole), ImageFont.load_default(16)
    for number, (title, row) in enumerate(rows.items()):
        strip = Image.fromarray(row.squeeze(-1) if row.shape[-1] == 1 else row)
        top = number * (height + GAP)
        whole.paste(strip.resize((width, height), Image.Resampling.NEAREST), (LABEL, top))
        draw.text((LABEL - 10, top + height / 2), title, fill="black", font=font, anchor="rm")
    whole.save(file, optimize=True)
    print(f"written: {file}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--base", type=Path, help="where the base was trained, unless in the run")
    parser.add_argument("--samples", type=int, default=2_000, help="of every snapshot of the base")
    parser.add_argument("--table-only", action="store_true", help="nothing of the base's training")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    settings = parser.parse_args()
    result = read_result(settings.run, ImproveResult)
    picture(settings.run, settings.out / f"{settings.name}.png")
    content: dict[str, Any] = {"benchmark": "real_size", "run": result.reproduction.commands[0]}
    content |= {"headline": result.headline, "improved": result.improved, "rows": [flat(row) for row in result.rows]}
    content["comparisons"] = [asdict(entry) for entry in result.comparisons]
    content["tried"] = [asdict(entry) for entry in result.cache.tried] if result.cache else []
    file = settings.out / f"{settings.name}.json"
    content["recommended"] = [asdict(entry) for entry in result.recommended]
    base = settings.base or settings.run / "base"
    if (base / "snapshots").is_dir() and not settings.table_only:
        content["training"] = training(base, settings.run, settings.samples)
    save(file, content)


if __name__ == "__main__":
    main()
