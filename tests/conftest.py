"""One thread, and fixtures that several files share."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

import tiny
import tiny_loop
import tiny_shift

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start
torch.set_num_threads(1)
hypothesis.settings.register_profile("sims", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("sims")

from scoring import in_bytes  # noqa: E402
from sims.cli import main  # noqa: E402
from sims.data.dataset import Dataset  # noqa: E402
from sims.data.sources import load_pair  # noqa: E402
from sims.experiments.shift import attributes  # noqa: E402

attributes.EPOCHS = tiny_shift.EPOCHS

#: What takes longest comes first, so that no process is left with much to do when the others have finished.
LONG = (
    "processes",
    "text_to_image",
    "view",
    "adapter_check",
    "usual",
    "sharding",
    "errors",
    "text_page",
    "your_model",
    "kill",
    "report_kinds",
    "report_reading",
    "notebook",
    "loop_kill",
    "recipes",
    "how_to",
    "user_code_runs",
    "replicas",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files in ``LONG`` first, in its order; the others as they are."""
    place = {f"test_{name}": number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONG)))


def pytest_collection_finish() -> None:
    """What is there before the first test stays: a collection of garbage, which ends every training, passes it over."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """300 bundled digits with their classes."""
    return load_pair("digits", limit=300)[0]


@pytest.fixture(scope="session")
def plain(digits: Dataset) -> Dataset:
    """The same digits without classes."""
    return digits.without_labels()


def finished_once(factory: pytest.TempPathFactory, name: str, words: Callable[[Path], list[str]]) -> Path:
    """The directory of a finished run that all processes of this test session share; tests must not change it."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / name / "summary.json").is_file():
            assert main(words(base / name)) == 0
    return base / name


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny job with PCA features, finished; tests must not change it."""
    return finished_once(tmp_path_factory, "run", lambda run: tiny.improve_arguments(run, *tiny.PCA))


@pytest.fixture(scope="session")
def finished_loop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny loop of two repeats, finished; tests must not change it."""
    return finished_once(tmp_path_factory, "loop", lambda run: tiny_loop.loop_arguments(run, "--repeats", "2"))


@pytest.fixture(scope="session")
def finished_pollution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pollution experiment of two repeats, finished; tests must not change it."""
    return finished_once(
        tmp_path_factory, "pollution", lambda run: tiny_loop.pollution_arguments(run, "--repeats", "2")
    )


@pytest.fixture(scope="session")
def finished_shift(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny distribution control, finished; tests must not change it."""
    return finished_once(tmp_path_factory, "shift", tiny_shift.shift_arguments)


@pytest.fixture
def say(capsys: pytest.CaptureFixture) -> tiny.Say:
    """Run a command: exit status, stdout and stderr."""

    def run(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            status = main([str(word) for word in words])
        except SystemExit as error:  # options that a dataclass refuses
            status = int(error.code or 0)
        return (status, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished training, ``run``; tests must not change it."""
    folder = tmp_path_factory.mktemp("home")
    assert main(["train", "--out", str(folder / "run"), *tiny.TRAIN]) == 0
    return folder


@pytest.fixture(scope="session")
def model(home: Path) -> Path:
    return home / "run" / "model"


@pytest.fixture(scope="session")
def store(home: Path, model: Path) -> Path:
    """60 samples of seeds 0 to 59: those of the first evaluation draw."""
    words = ["synthesize", str(model), "--out", str(home / "store"), "--count", "60", "--batch-size", "30"]
    assert main(words) == 0
    return home / "store"


@pytest.fixture(scope="session")
def real() -> tuple[Dataset, Dataset]:
    """1437 digits to compare with and 360 held out, without labels."""
    train, test = load_pair("digits")
    return in_bytes(train), in_bytes(test)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of features that the tests of one file share."""
    return tmp_path_factory.mktemp("cache")
