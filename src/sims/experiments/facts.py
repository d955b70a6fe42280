"""What every result says besides what was found: the real data, and how to make the run again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np
import torch

from sims.config import to_dict, to_toml
from sims.data.dataset import Dataset
from sims.metrics.per_class import beyond_chance
from sims.results.common import Data, Reproduction, Stage
from sims.results.scores import class_words
from sims.runs.clock import Clock
from sims.runs.directory import command_line
from sims.sampling.noise import checked_shares

Array = np.ndarray
GRID = 64  # samples shown of every model


def drawn_shares(num_classes: int, weights: Sequence[float]) -> tuple[float, ...]:
    """The shares by which classes are drawn: even ones without weights; () without classes."""
    return (num_classes and checked_shares(weights, num_classes)) or (1 / max(1, num_classes),) * num_classes


def class_warnings(names: Sequence[str], shares: Sequence[float], real: Array | None, samples: int) -> list[str]:
    """A warning where ``samples`` drawn by these shares, one for each class, differ beyond chance from real labels."""
    if not shares or real is None:
        return []
    ours, theirs = np.asarray(shares), np.bincount(real[real >= 0], minlength=len(shares))
    if len(theirs) != len(shares) or not theirs.any() or not beyond_chance(ours * samples, theirs):
        return []
    return [class_words(names, ours.tolist(), (theirs / theirs.sum()).tolist(), "sampler.class_shares")]


def data_facts(train: Dataset, test: Dataset | None, conditional: bool, drawn: Sequence[float] = ()) -> Data:
    """The real data, and the classes' shares of the training data where it has labels; those ``drawn`` by a model."""
    return Data(
        name=train.name,
        num_train=len(train),
        num_test=0 if test is None else len(test),
        shape=train.data_shape,
        num_classes=train.num_classes,
        conditional=conditional,
        class_names=train.class_names,
        class_shares=train.class_shares,
        drawn_shares=tuple(drawn),
    )


def reproduction(options: object, clock: Clock | None = None) -> Reproduction:
    """The command that made a run, its options as a recipe, and versions.

    Of a run with a ``clock``, which leaves an improved model, also how to sample it, and how long every stage took.
    """
    commands = [command_line()]
    if clock is not None:
        commands.append(f"sims sample {clock.run.path / 'improved'} --seeds 0-63 --out samples")
    return Reproduction(
        commands=tuple(commands),
        config_toml=to_toml({name: value for name, value in to_dict(options).items() if name != "track"}),
        versions={"sims": version("sims-diffusion"), "torch": torch.__version__, "python": platform.python_version()},
        stages=tuple(Stage(name, round(seconds, 2)) for name, seconds in clock.seconds.items()) if clock else (),
    )
