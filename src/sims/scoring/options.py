"""How models of a run are judged, and how samples are scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from sims.config import left_open, nearest
from sims.data.pictures import SourceOptions
from sims.errors import UserError
from sims.metrics.pretrained import FITTED, NAMES
from sims.sampling.noise import checked_shares
from sims.scoring.figures import METRICS
from sims.seeds import check_drawn, check_seed

EXTRACTORS = ("auto", *FITTED, *NAMES)
SECOND = tuple(name for name in EXTRACTORS if name != "pca")


@dataclass(frozen=True)
class EvaluationOptions:
    """How models are judged."""

    draws: int = left_open(5)
    """Independent draws of samples; their spread gives the intervals."""
    samples: int = left_open(5_000)
    """Samples per draw."""
    extractor: str = "auto"
    """Features: classifier (small, trained on the real labels), pca (of the pixels), or inception, dinov2, clip, efficientnet-lite0, torchscript:PATH; auto: classifier where there are labels, else pca."""  # noqa: E501
    download: bool = False
    """Allow fetching the published weights of the extractor (checked against their hash)."""
    extractor_seed: int = 0
    """Seed of the classifier's training."""
    check: bool = True
    """Score a second time, in features that no choice was made with: those of ``check_extractor``."""
    check_extractor: str = "auto"
    """Features of the second scores: classifier (of another architecture and seed), or inception, dinov2, clip, efficientnet-lite0, torchscript:PATH; auto: classifier where there are labels, else none."""  # noqa: E501
    manifold_samples: int = 2_000
    """Samples (and real images) per draw that precision, recall and KID look at."""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise UserError(f"evaluation.samples is {self.samples}: at least 2 samples are needed for a covariance")
        check_drawn("evaluation.samples, with evaluation.draws of them,", self.samples * self.draws)
        if self.draws < 1:
            raise UserError(f"evaluation.draws is {self.draws}: at least 1 is needed (5 for useful intervals)")
        for name, known in ((self.extractor, EXTRACTORS), (self.check_extractor, SECOND)):
            kind = name.partition(":")[0]
            if kind not in known:
                raise UserError(f"unknown extractor {kind!r}{nearest(kind, known)}")
        if self.check_extractor == self.extractor not in ("auto", "classifier"):
            raise UserError(
                f"evaluation.check_extractor is {self.extractor}, which is the one that chooses: give another, or auto"
            )
        if self.manifold_samples < 10:
            raise UserError(f"evaluation.manifold_samples is {self.manifold_samples}: at least 10 are needed")


@dataclass(frozen=True)
class ScoreOptions:
    """How samples are scored."""

    extractor: str = "auto"
    """Features: inception, dinov2, clip, efficientnet-lite0, torchscript:PATH, classifier (trained on the reference's labels), pca, or the file of one of these two; auto: what the reference was measured with, else classifier where it has labels, else pca."""  # noqa: E501
    metrics: tuple[str, ...] = tuple(name for name, metric in METRICS.items() if metric.in_features)
    """Groups of figures: all of them unless stated (manifold: precision, recall, density, coverage)."""
    draws: int | None = None
    """Independent draws: of a model 5 unless stated; of a set of samples 1, or disjoint parts of --samples each."""
    samples: int = 5_000
    """Samples per draw of a model."""
    class_shares: tuple[float, ...] = ()
    """Weights by which a model's classes are drawn, such as 9,1 (a single 1: evenly); its own shares if not given."""
    limit: int | None = None
    """At most this many samples of a set, drawn with a fixed seed."""
    neighbours: int = 5_000
    """At most this many samples (and real images) where all pairs are looked at: KID, neighbours, memorization."""
    resamples: int = 20
    """Subsets from which the intervals of a single draw are made."""
    precision: str = "fp32"
    """Arithmetic of a ready-made extractor: fp32 or bf16 (part of its name: never mixed silently)."""
    download: bool = False
    """Allow fetching published weights of extractors, and models of the Hugging Face hub (hf:owner/name), into the cache; all are checked against their hashes."""  # noqa: E501
    skip_unreadable: bool = False
    """Score the other pictures where some cannot be read; every row says how many were left out."""
    vae: Path | None = None
    """Folder of the autoencoder that makes images of what a latent model samples; its own if it has one."""
    force: bool = False
    """Compare although the scores differ in what they were measured with."""
    seed: int = 0
    """Shifts the seeds that a model is sampled with."""
    batch_size: int = 100
    """Images per pass through the extractor."""
    sample_batch: int = 500
    """Samples that a model computes at once."""
    source: SourceOptions = field(default_factory=SourceOptions)

    def __post_init__(self) -> None:
        names = [name for name, metric in METRICS.items() if metric.in_features]
        for name in self.metrics or ("",):
            if name not in names:
                raise UserError(f"unknown metric {name!r}{nearest(name, names)}")
        least_of = {"samples": 2, "neighbours": 10, "resamples": 2, "batch_size": 1, "sample_batch": 1}
        for name, least in least_of.items():
            if getattr(self, name) < least:
                raise UserError(f"{name} is {getattr(self, name)}: at least {least} is needed")
        check_seed(self.seed)
        checked_shares(self.class_shares, len(self.class_shares))
        if self.draws is not None and self.draws < 1:
            raise UserError(f"draws is {self.draws}: at least 1 is needed (5 for useful intervals)")
