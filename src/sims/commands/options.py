"""Options of the commands besides ``improve``; every docstring is its ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tyro.conf import Positional

from sims.experiments.options import BaseOptions, DataOptions
from sims.sampling import SamplerOptions, SolverName
from sims.verbs.evaluate import EvaluationOptions
from sims.verbs.train import NetworkOptions


@dataclass(frozen=True)
class TrainCommand:
    """Train a diffusion model; the finished model is OUT/model. The same command continues after an interruption."""

    out: Path = Path("runs/train")
    """Directory of the run."""
    data: DataOptions = field(default_factory=DataOptions)
    network: NetworkOptions = field(default_factory=NetworkOptions)
    base: BaseOptions = field(default_factory=BaseOptions)
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    seed: int = 0
    """Seed of the weights, the data order and the noise."""


@dataclass(frozen=True)
class SynthesizeCommand:
    """Draw samples into a store (parquet shards with seed, label, model, method and w; opens with `datasets`)."""

    model: Positional[Path]
    """Model directory."""
    out: Path = Path("runs/synthetic")
    """Directory of the store."""
    count: int = 10_000
    """Number of samples."""
    first_seed: int = 0
    """Seed of the first sample; sample i has first-seed + i."""
    label: int | None = None
    """Class of all samples; otherwise drawn from the seeds."""
    batch_size: int = 500
    """Samples computed at once."""


@dataclass(frozen=True)
class SampleCommand:
    """Sample images: one PNG per seed and a contact sheet, grid.png. Image i depends on seed i alone.

    Data that PNG cannot hold (points, latents, other numbers of channels) go to samples.npz instead.
    """

    model: Positional[Path]
    """Model directory."""
    seeds: str = "0-63"
    """Seeds, such as 0-63 or 1,5,10-20."""
    out: Path = Path("samples")
    """Folder for the images."""
    label: int | None = None
    """Class of all samples; otherwise drawn from the seeds."""
    solver: SolverName | None = None
    """Solver; the model's own if not given."""
    steps: int | None = None
    """Steps; the model's own if not given."""
    w: float | None = None
    """Another guidance strength for a guided model (0 = its base)."""
    batch_size: int = 64
    """Samples computed at once."""


@dataclass(frozen=True)
class EvaluateCommand:
    """Score samples or a model against real data, with the floor (real against real) beside it."""

    samples: Positional[str]
    """Model directory, store of samples, or any data source."""
    reference: str = "digits"
    """Real data (any source), or the `references` folder of a run."""
    data: DataOptions = field(default_factory=DataOptions)
    """How the real data is read (path is replaced by --reference)."""
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    seed: int = 0
    """Shifts the seeds that a model is sampled with."""
    split_seed: int = 0
    """Seed that holds out a share of a reference without a test part: the --seed of the run that trained on it."""
    batch_size: int = 500
    """Samples computed at once."""
    cache: Path = Path("runs/references")
    """Where extractors and references are kept."""
    json: bool = False
    """Print JSON instead of a table."""


@dataclass(frozen=True)
class InspectCommand:
    """Say what a model directory, a store or a run directory holds."""

    path: Positional[Path]
    """Directory to look at."""
