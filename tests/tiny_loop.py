"""A loop and a pollution experiment so small that every test can afford them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from sims.results.loop import LoopResult, PollutionResult
from sims.results.summaries import read_result

COMMON = shlex.split(
    "--data.limit 150 --network.width 16 --network.blocks 1 --network.embedding 8 --sampler.steps 3 --batch-size 50 "
    "--base.images 2560 --base.train.batch 128 --auxiliary.samples 50 --auxiliary.budgets 1280 "
    "--auxiliary.train.batch 128 --evaluation.samples 50 --evaluation.manifold-samples 30 --evaluation.extractor pca"
)
LOOP = shlex.split(
    "--generations 2 --remedies standard,standard-equal,sims --strengths 0.5,1 --selection-generations 1"
)
POLLUTION = shlex.split("--levels 0,100 --strengths 1,2 --selection-samples 50 --trusted 20 --trusted-sizes 10,20")


def loop_arguments(run: Path, *more: str) -> list[str]:
    """The command line of the tiny loop; later options win."""
    return ["loop", "--run", str(run), *COMMON, *LOOP, *more]


def pollution_arguments(run: Path, *more: str) -> list[str]:
    """The command line of the tiny pollution experiment; later options win."""
    return ["pollution", "--run", str(run), *COMMON, *POLLUTION, "--trusted-draws", "5", *more]


def points_arguments(run: Path, *more: str) -> list[str]:
    """The command line of a tiny loop of points with affine denoisers; later options win."""
    words = "--data.path gaussian --affine --kind fresh --generations 3 --repeats 4"
    return ["loop", "--run", str(run), *shlex.split(words), *more]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())


def loop_result(run: Path) -> LoopResult:
    """The result of a finished loop, as it is read."""
    return read_result(run, LoopResult)


def pollution_result(run: Path) -> PollutionResult:
    """The result of a finished pollution experiment, as it is read."""
    return read_result(run, PollutionResult)


def figures(run: Path) -> dict[str, Any]:
    """Everything that a finished run measured, without commands and paths."""
    summary = {key: value for key, value in summary_of(run).items() if key != "reproduction"}
    return {"metrics": (run / "metrics.jsonl").read_bytes(), "summary": summary}
