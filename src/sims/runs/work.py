"""What a stage of an experiment does, in counts: training images, network evaluations, samples, what stays on disk."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sims.denoiser import Denoiser
from sims.sampling import SamplerOptions
from sims.training.options import TrainOptions


@dataclass(frozen=True)
class Sampling:
    """The base as it is sampled; network evaluations of a sample: ``nfe`` alone, ``guided`` of a pair of networks.

    ``foreign``: it was not trained here, or not at the usual rate.
    """

    denoiser: Denoiser
    options: SamplerOptions
    nfe: int
    guided: int
    foreign: bool = False

    def cost(self, networks: int) -> int:
        """Evaluations of a sample where every evaluation of the denoiser is one of so many networks."""
        return self.nfe + (networks - 1) * (self.guided - self.nfe)


@dataclass(frozen=True)
class Training:
    """A training as it is timed and made to fit: ``name`` is the part of the options whose ``train`` it is.

    ``taught``: from a guided pair of networks, which lies in memory too.
    """

    name: str
    options: TrainOptions
    taught: bool = False


@dataclass(frozen=True)
class Leaves:
    """What a stage leaves on disk, under one line of the table: networks, samples as images (uncompressed), features.

    ``features`` counts samples whose features stay.
    """

    kind: str
    networks: int = 0
    samples: int = 0
    features: int = 0


@dataclass(frozen=True)
class Work:
    """A stage, in what is to be expected of it; ``most`` bounds the evaluations where they depend on the results.

    stage        its name in the table
    training     what trains on ``images`` in ``steps``
    evaluations  network evaluations
    samples      are drawn; ``searched`` and ``measured`` of them judged, by features alone or by all that rows hold
    cells        points of a search that are compared
    draws        sets of samples that are scored
    seconds      known already, beside all that follows from the counts
    """

    stage: str
    training: Training | None = None
    images: int = 0
    steps: int = 0
    evaluations: int = 0
    samples: int = 0
    searched: int = 0
    measured: int = 0
    cells: int = 0
    draws: int = 0
    seconds: float = 0.0
    most: int | None = None
    leaves: tuple[Leaves, ...] = ()


def training_work(
    stage: str, training: Training, images: int, *, leaves: str, snapshots: int = 1, times: int = 1
) -> Work:
    """A stage that trains a network on so many images, so many times; each leaves a folder with so many snapshots."""
    train = training.options
    averages = len(train.ema_rel) if train.ema == "power" else 1
    stored = 0
    if train.ema == "power":
        stored = min(math.ceil(images / train.batch), images // train.stored_every(images) + 1)
    networks = snapshots + 3 + averages * (1 + stored)  # 3: the state to resume from, with both moments
    steps = times * math.ceil(images / train.batch)
    return Work(stage, training, times * images, steps, leaves=(Leaves(leaves, networks=times * networks),))
