"""Distribution control so small that every test can afford it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sims.data.dataset import Dataset
from sims.experiments.shift.attributes import Labelled
from sims.results.common import Reproduction
from sims.results.shift import ShiftResult
from sims.results.summaries import read_result

EPOCHS = 60.0  # of its classifiers, for 300

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


def result_of(run: Path) -> ShiftResult:
    """What a finished run found."""
    return read_result(run, ShiftResult)


def figures(run: Path) -> tuple[bytes, ShiftResult]:
    """Everything that a finished run measured, without commands, times and paths."""
    return (run / "metrics.jsonl").read_bytes(), replace(result_of(run), reproduction=Reproduction())


def write_labels(path: Path, data: Dataset, parts: Sequence[Labelled]) -> None:
    """A label file that says which data it belongs to."""
    columns = {
        attribute.name: [attribute.values[value] if value >= 0 else None for value in labels]
        for attribute, labels in parts
    }
    path.write_text(json.dumps({"data": data.fingerprint, "attributes": columns}))
