"""A job, a data set and a network so small that every test can afford them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sims.data.dataset import Dataset
from sims.model import Model
from sims.networks.options import NetworkOptions
from sims.results.common import Reproduction
from sims.results.improve import ImproveResult
from sims.results.summaries import read_result
from sims.sampling import SamplerOptions
from sims.training.base import new_model

NETWORK = NetworkOptions(width=32, blocks=1, embedding=16, sigma_data=0.5)
SAMPLER = SamplerOptions(steps=5)

#: The main job in a few seconds: an unconditional digits model, judged by PCA features.
JOB = shlex.split(
    "--network.width 64 --network.blocks 1 --network.embedding 32 --sampler.steps 6 --batch-size 100 "
    "--base.images 12800 --auxiliary.samples 200 --auxiliary.budgets 2560,5120 --search.rungs 50,100 "
    "--guidance.pilot 32 --distilled.samples 200 --distilled.images 5120 --evaluation.samples 100 "
    "--evaluation.draws 2 --evaluation.manifold-samples 50"
)
PCA = ["--evaluation.extractor", "pca"]

#: A conditional digits model, trained in a second.
TRAIN = shlex.split(
    "--data.path digits --data.limit 300 --data.conditional --network.width 32 --network.blocks 1 "
    "--network.embedding 16 --base.images 12800 --base.train.batch 128 --sampler.steps 5"
)

Say = Callable[..., tuple[int, str, str]]  # a command's words -> exit status, stdout, stderr


def improve_arguments(run: Path, *more: str) -> list[str]:
    """The command line of the tiny job, after the name of the program; later options win."""
    return ["improve", "--run", str(run), *JOB, *more]


def model(data: Dataset, seed: int = 0, **network: Any) -> Model:
    """A freshly drawn network for this data."""
    options = NetworkOptions(**{**vars(NETWORK), **network})
    return new_model(data, options, SAMPLER, seed)


def figures(run: Path) -> dict[str, Any]:
    """Everything that a finished run found, without times and paths."""
    result = read_result(run, ImproveResult)
    rows = tuple(replace(row, seconds_per_1000=None) for row in result.rows)
    result = replace(result, rows=rows, rounds=(), reproduction=Reproduction())
    return {"metrics": (run / "metrics.jsonl").read_bytes(), "result": result}


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file below a folder with its content, but for lock, log and report."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name not in ("lock", "log")]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}
