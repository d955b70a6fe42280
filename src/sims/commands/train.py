"""sims train."""

from __future__ import annotations

from sims import fitting
from sims.commands.options import TrainCommand


def train(options: TrainCommand) -> int:
    """Train or continue, and leave the model in OUT/model."""
    fitting.train(
        options.out,
        options.data,
        network=options.network,
        base=options.base,
        sampler=options.sampler,
        seed=options.seed,
        track=options.track,
    )
    return 0
