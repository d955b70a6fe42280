"""What every result says besides what was found: the real data, and how to make the run again."""

from __future__ import annotations

import platform
from importlib.metadata import version

import numpy as np
import torch

from sims.config import to_dict, to_toml
from sims.data.dataset import Dataset
from sims.results.common import Data, Reproduction, Stage
from sims.runs.clock import Clock
from sims.runs.directory import command_line

GRID = 64  # samples shown of every model


def data_facts(train: Dataset, test: Dataset | None, conditional: bool) -> Data:
    """The real data, and the classes' shares of the training data where it has labels."""
    labels = np.zeros(0, np.int64) if train.labels is None else train.labels[train.labels >= 0]
    shares = np.bincount(labels, minlength=train.num_classes) / len(labels) if len(labels) else np.zeros(0)
    return Data(
        name=train.name,
        num_train=len(train),
        num_test=0 if test is None else len(test),
        shape=train.data_shape,
        num_classes=train.num_classes,
        conditional=conditional,
        class_names=train.class_names,
        class_shares=tuple(shares.tolist()),
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
        config_toml=to_toml(to_dict(options)),
        versions={"sims": version("sims-diffusion"), "torch": torch.__version__, "python": platform.python_version()},
        stages=tuple(Stage(name, round(seconds, 2)) for name, seconds in clock.seconds.items()) if clock else (),
    )
