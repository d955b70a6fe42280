"""Options of the commands besides ``improve``; every docstring is its ``--help``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from sims.experiments.options import BaseOptions, DataOptions
from sims.interop.hub_models import HubOptions
from sims.interop.reading import Assumptions
from sims.methods.contract import check_strength
from sims.networks.options import NetworkOptions
from sims.runs.tracking import check_trackers
from sims.sampling import SamplerOptions, SolverName
from sims.sampling.noise import checked_shares
from sims.scoring.options import ScoreOptions
from sims.scoring.suite import CACHE
from sims.seeds import check_seed


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
    track: tuple[str, ...] = ()
    """Trackers that follow the training: tensorboard, wandb, trackio (losses, speeds)."""

    def __post_init__(self) -> None:
        check_trackers(self.track)
        check_seed(self.seed)


@dataclass(frozen=True)
class SynthesizeCommand(HubOptions):
    """Draw samples into a store (parquet shards with seed, label, model, method and w; opens with `datasets`)."""

    model: Positional[Path]
    """Model directory, or a model of the Hugging Face hub (hf:owner/name)."""
    out: Path = Path("runs/synthetic")
    """Directory of the store."""
    count: int = 10_000
    """Number of samples."""
    first_seed: int = 0
    """Seed of the first sample; sample i has first-seed + i."""
    label: int | None = None
    """Class of all samples; otherwise drawn from the seeds."""
    class_shares: tuple[float, ...] = ()
    """Weights by which classes are drawn, such as 9,1 (a single 1: evenly); the model's own shares if not given."""
    batch_size: int = 500
    """Samples computed at once."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run)."""

    def __post_init__(self) -> None:
        checked_shares(self.class_shares, len(self.class_shares))


@dataclass(frozen=True)
class SampleCommand(HubOptions):
    """Sample images: one PNG per seed and a contact sheet, grid.png. Image i depends on seed i alone.

    Data that PNG cannot hold (points, latents without --vae, other numbers of channels) go to samples.npz instead.
    """

    model: Positional[Path]
    """Model directory, or a model of the Hugging Face hub (hf:owner/name)."""
    seeds: str = "0-63"
    """Seeds, such as 0-63 or 1,5,10-20."""
    out: Path = Path("samples")
    """Folder for the images."""
    label: int | None = None
    """Class of all samples; otherwise drawn from the seeds."""
    class_shares: tuple[float, ...] = ()
    """Weights by which classes are drawn, such as 9,1 (a single 1: evenly); the model's own shares if not given."""
    solver: SolverName | None = None
    """Solver; the model's own if not given."""
    steps: int | None = None
    """Steps; the model's own if not given."""
    w: float | None = None
    """Another guidance strength for a guided model (0 = its base)."""
    vae: Path | None = None
    """Folder of the autoencoder that makes images of a latent model's samples; its own if it has one."""
    batch_size: int = 64
    """Samples computed at once."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run)."""

    def __post_init__(self) -> None:
        checked_shares(self.class_shares, len(self.class_shares))
        check_strength(0.0 if self.w is None else self.w)


@dataclass(frozen=True)
class EvaluateCommand(ScoreOptions):
    """Score samples, statistics or models against real data, with intervals and with what real images score.

    `sims evaluate A B --paired` tells whether two models differ. What was extracted is kept in the cache: an
    interrupted evaluation continues when the same command is run again.
    """

    given: Positional[list[str]] = field(default_factory=list)
    """Model directories, models of the Hugging Face hub (hf:owner/name), stores, folders, zip, parquet, npz, statistics files, or .jsonl files written with --out."""  # noqa: E501
    reference: str = "digits"
    """Real data (any source), a statistics file (EDM's npz, EDM2's pkl, ours), or the `references` folder of a run."""
    held_out: str | None = None
    """Real data that no model was trained on; else the test part of the reference, where it has one."""
    paired: bool = False
    """Compare two: the difference of every figure with its interval, paired by seed where the samples are."""
    out: Path | None = None
    """File that the rows are appended to (.jsonl), each with all it was measured with."""
    statistics: Path | None = None
    """File that the reference's statistics are written to (.safetensors), to compare with later."""
    cache: Path = Path(CACHE)
    """Where features and extractors are kept."""
    json: bool = False
    """Print JSON instead of a table."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run)."""


@dataclass(frozen=True)
class ViewCommand:
    """Look at runs and models on a local page: samples side by side at any strength, searches, proportions.

    The page is for this machine alone (127.0.0.1); from another one: `ssh -L 7860:localhost:7860`. Needs the extra app.
    """

    given: Positional[list[Path]] = field(default_factory=list)
    """Run directories, folders of them, or model directories; those below `runs` if not given."""
    port: int | None = None
    """Port; if not given, the first that is free from 7860 on."""
    browser: bool = True
    """Open the page in the browser, where there is a screen."""
    code: str | None = None
    """my_model.py:make, where a model's network is made by code of yours (it is run)."""


@dataclass(frozen=True)
class InspectCommand(HubOptions):
    """Say what a model directory, a store, a run directory, a .pkl checkpoint or a folder of diffusers holds."""

    path: Positional[Path]
    """Directory or .pkl file to look at, or a model's name on the Hugging Face hub (hf:owner/name)."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run)."""


@dataclass(frozen=True)
class CheckCommand(HubOptions):
    """Is a network read rightly? Its errors on real pictures, by noise level, and whether another reading fits better.

    Compared with the best linear denoiser of the data, with other predictions, directions and units of time, schedules
    and ranges of values, and with other orders of the classes. Exit status 1 where the adapter is likely wrong.
    """

    model: Positional[Path]
    """Whatever `sims improve --model` takes: my_model.py:make (its code is run), a model directory, a checkpoint."""
    weights: Path | None = None
    """Weights for the network that my_model.py:make makes (safetensors, .pt, .pth, .ckpt; nothing in it is run)."""
    code: str | None = None
    """my_model.py:make, the code that a model directory needs (it is run)."""
    data: DataOptions = field(default_factory=DataOptions)
    images: int = 128
    """Pictures that are looked at."""
    seed: int = 0
    """Seed of the choice of pictures, and of the noise."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class ImportCommand(Assumptions, HubOptions):
    """Turn a checkpoint of another project, or a network of yours, into a model directory."""

    file: Positional[Path]
    """A .pkl of NVIDIA's EDM or EDM2, a folder of diffusers (UNet2DModel or DiT, without text) or its name on the Hugging Face hub (hf:owner/name), tensors of a DiT, a SiT, guided-diffusion and others (.pt, .pth, .ckpt, .safetensors), or my_model.py:make, a file and a function of yours (its code is run)."""  # noqa: E501
    out: Positional[Path]
    """Model directory to write."""
    weights: Path | None = None
    """Weights for the network that my_model.py:make makes (safetensors, .pt, .pth, .ckpt; nothing in it is run)."""
    null_class: bool = False
    """The last class of a UNet2DModel stands for "no class" and is not drawn; a DiT always has one, which is known."""


@dataclass(frozen=True)
class ExportCommand(HubOptions):
    """Write a model as a folder that diffusers opens, or as the tensors that NVIDIA's classes load.

    What came from diffusers becomes a folder again. A single network (neon, distilled, self-trained) is an ordinary
    one; a guided pair gets a second network beside the first, and `sims.interop.diffusers.load_guided` opens it for a
    sampling loop of diffusers. A network of EDM or EDM2 becomes a .safetensors file with their names of the tensors; so
    does one of yours, a DiT, a SiT, and the U-Nets of guided-diffusion and denoising-diffusion-pytorch.
    """

    model: Positional[Path]
    """Model directory, such as `distilled`, `neon` or `improved` of a run, or a model of the hub (hf:owner/name)."""
    out: Positional[Path]
    """Folder to write, or .safetensors file (all but diffusers)."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run)."""
    like: Path | None = None
    """The original folder of diffusers, whose scheduler and other parts are copied."""


@dataclass(frozen=True)
class PushCommand:
    """Publish a model of a finished run on the Hugging Face hub, with a card that says what was measured of it.

    `--out FOLDER` writes what would be uploaded there instead: the model directory, README.md (the card), and
    samples.png where the run kept pictures. Nothing is uploaded before the hub has been asked what is there; of a
    repository that holds a model of sims, one more commit replaces it. It needs a token: HF_TOKEN, or `hf auth login`.
    """

    run: Positional[Path]
    """Directory of a finished run of improve or shift."""
    name: Positional[str]
    """Where on the hub: owner/name."""
    model: str = "improved"
    """Which model of the run: the name of its directory, such as improved, distilled, neon, sims or base."""
    licence: Annotated[str | None, arg(aliases=["--license"])] = None
    """What others may do with it, as the hub writes it (apache-2.0, mit, cc-by-4.0, other, ...); it must be given."""
    private: bool = False
    """Make a new repository private."""
    out: Path | None = None
    """Folder to write to (empty or new), and nothing is uploaded."""
    code: str | None = None
    """my_model.py:make, where the model's network is made by code of yours (it is run, and not uploaded)."""
