"""One thread, and fixtures that several files share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import tiny

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
torch.set_num_threads(1)

from sims.cli import main  # noqa: E402
from sims.data.dataset import Dataset  # noqa: E402
from sims.data.sources import load_pair  # noqa: E402


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """300 bundled digits with their classes."""
    return load_pair("digits", limit=300)[0]


@pytest.fixture(scope="session")
def plain(digits: Dataset) -> Dataset:
    """The same digits without classes."""
    return digits.without_labels()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of the tiny job with PCA features, finished; tests must not change it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert main(tiny.improve_arguments(run, *tiny.PCA)) == 0
    return run
