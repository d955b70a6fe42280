"""A text-to-image pipeline improved by LoRAs on its own samples, against itself at its best guidance scale.

    python benchmarks/text_toy.py --out toy
    python benchmarks/text_to_image.py --toy toy --folder runs/text --out benchmarks/results/text-to-image.json

The base is measured at several scales of classifier-free guidance (equal seeds, steps and samples). At the scale whose
FD to the training pictures is lowest, so that the base is at its best, `sims improve` trains a LoRA, and chooses
strengths; every row has its FD, the agreement of two classifiers with the prompts' classes, and intervals over draws.
With ``--second efficientnet-lite0`` (and a folder of its own) features that chose nothing measure all rows once more.
Samples of the same seeds, none selected, go into a picture beside the result. Interrupted, it continues.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from common import flat, improved, save
from real_size import picture
from sims.data.pictures import SourceOptions
from sims.experiments.improve.search import SearchOptions
from sims.experiments.options import DataOptions, ImproveOptions
from sims.interop.text_to_image import TextOptions
from sims.scoring.options import EvaluationOptions

SCALES = (1.5, 1.0, 2.0, 3.0)


def options(given: argparse.Namespace, name: str, scale: float, **more: Any) -> ImproveOptions:
    """A run in a folder of this name."""
    return ImproveOptions(
        run=given.folder / name,
        model=given.toy / "pipeline",
        data=DataOptions(path=str(given.toy / "data"), source=SourceOptions(cache=given.folder / "cache")),
        text=TextOptions(scale=scale, steps=given.steps),
        batch_size=100,
        search=SearchOptions(rungs=(200, 500), limit=5_000),
        evaluation=EvaluationOptions(samples=1_000, draws=4, manifold_samples=1_000, check_extractor=given.second),
        **more,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--toy", type=Path, required=True, help="what text_toy.py has written")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=12, help="of the pipeline's scheduler")
    parser.add_argument("--methods", default="base,sims,neon")
    parser.add_argument("--second", default="auto", help="extractor of the second scores, such as efficientnet-lite0")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/text-to-image.json"))
    given = parser.parse_args()
    scales = {}
    first = given.folder / f"scale-{SCALES[0]:g}" / "references"
    for scale in SCALES:
        job = options(given, f"scale-{scale:g}", scale, methods=("base",))
        if first.is_dir() and not (references := job.run / "references").exists():
            shutil.copytree(first, references)  # the same pictures, the same classifiers
        scales[scale] = improved(job, quiet=True).rows[0]
        print(f"scale {scale:g}: FD to train {scales[scale].figures['fd'].mean:.1f}", flush=True)
    best = min(scales, key=lambda scale: scales[scale].figures["fd"].mean)
    methods = tuple(given.methods.split(","))
    job = options(given, f"improve-{best:g}", best, methods=methods)
    if not (references := job.run / "references").exists():
        shutil.copytree(first, references)
    result = improved(replace(job))
    content: dict[str, Any] = {"benchmark": "text_to_image", "steps": given.steps, "best_scale": best}
    content["scales"] = [{"scale": scale, **flat(row)} for scale, row in sorted(scales.items())]
    content |= {"headline": result.headline, "improved": result.improved, "rows": [flat(row) for row in result.rows]}
    content["comparisons"] = [asdict(entry) for entry in result.comparisons]
    content["search"] = asdict(result.search)["chosen"] if result.search else {}
    picture(job.run, given.out.with_suffix(".png"))
    save(given.out, content)


if __name__ == "__main__":
    main()
