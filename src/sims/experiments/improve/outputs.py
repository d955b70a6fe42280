"""What a finished improvement leaves to look at: rows of figures and sample grids."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from sims.data.dataset import Dataset, View
from sims.experiments.improve.stages import Stages
from sims.experiments.options import ImproveOptions
from sims.files import atomic_path, write_atomic, write_json
from sims.guidance import CorrectionGuide
from sims.interop.latents import to_images
from sims.metrics.memorization import nearest
from sims.runs.directory import Run
from sims.seeds import seed_range

GRID = 64  # samples shown of every method


def write_outputs(stages: Stages, result: dict[str, Any], summary: dict[str, Any]) -> None:
    """Everything that the run leaves to look at; ``summary.json`` last."""
    run, judge = stages.run, stages.judge
    lines = []
    for choice, row in zip(result["choices"], result["rows"]):
        if judge is not None:
            seeds = stages.draw_seeds(row["draws"], row["samples_per_draw"], 0)
            about = {
                "method": row["method"],
                "label": row["label"],
                "w": row["w"],
                "budget": row["budget"],
                "nfe": row["nfe"],
            }
            for index, draw in enumerate(result["draws"][choice.label]):
                lines += [json.dumps(entry) for entry in judge.rows(draw, seeds[index], draw=index, **about)]
    write_atomic(run.path / "metrics.jsonl", "".join(f"{line}\n" for line in lines).encode())
    _grids(run, stages.options, result, stages.real)
    write_json(run.path / "summary.json", summary)


def _grids(run: Run, options: ImproveOptions, result: dict[str, Any], real: Dataset | None) -> None:
    """The same seeds for every method, and for SIMS across w; and the nearest training image of each."""
    seeds = seed_range("figures", options.seed, GRID)
    arrays: dict[str, np.ndarray] = {"seeds": np.asarray(seeds)}
    codec = result["base"].model.codec
    for choice in result["choices"]:
        x = choice.model.sample(seeds, sampler=choice.options, batch_size=GRID)
        arrays[f"{choice.label}@{choice.w:g}"] = to_images(codec, x, run.device)
        guided = choice.model.denoiser
        if choice.label == "sims" and isinstance(guided, CorrectionGuide):
            for w in (0.5 * choice.w, 2.0 * choice.w):
                other = guided.with_cache(None).with_strength(w)
                images = choice.model.with_denoiser(other).sample(seeds, batch_size=GRID)
                arrays[f"sims@{w:g}"] = to_images(codec, images, run.device)
            if real is not None:
                some = real.batch(np.random.default_rng(0).permutation(len(real))[:GRID])[0]
                arrays["real"] = to_images(codec, some, run.device)
                arrays["nearest"] = to_images(codec, _nearest(x, real), run.device)
    with atomic_path(run.path / "grids.npz") as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def _nearest(x: torch.Tensor, real: Dataset) -> torch.Tensor:
    return real.batch(nearest(x, View(real)).indices)[0]  # type: ignore[arg-type]
