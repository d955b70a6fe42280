"""Distribution control so small that every test can afford it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

ARGUMENTS = shlex.split(
    "--members 1 --imbalance 0=0.06 --network.width 64 --network.blocks 1 --network.embedding 32 --sampler.steps 6 "
    "--batch-size 200 --base.images 51200 --base.train.batch 128 --attributes zero:yes=0/no=1+2+3+4+5+6+7+8+9 --target "
    "yes=0.1,no=0.9 --auxiliary.candidates 600 --auxiliary.max-candidates 1200 --auxiliary.samples 600 "
    "--auxiliary.min-samples 200 --auxiliary.images 12800 --auxiliary.refine 6400 --auxiliary.train.batch 128 "
    "--solver.rounds 2 --solver.samples 400 --solver.strengths 2 --guidance.pilot 32 --distilled.samples 200 "
    "--distilled.images 5120 --evaluation.draws 2 --evaluation.samples 200 --evaluation.manifold-samples 100 "
    "--evaluation.extractor pca --baselines.scales 4 --baselines.limit 1200"
)


def shift_arguments(run: Path, *more: str) -> list[str]:
    """The command line of the tiny job; later options win."""
    return ["shift", "--run", str(run), *ARGUMENTS, *more]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def figures(run: Path) -> dict[str, Any]:
    """Everything that a finished run measured, without commands, times and paths."""
    left_out = ("commands", "config_toml", "seconds", "stages")
    summary = {key: value for key, value in summary_of(run).items() if key not in left_out}
    return {"metrics": (run / "metrics.jsonl").read_bytes(), "summary": summary}
