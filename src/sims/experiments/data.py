"""Real data for an experiment: read, checked, measured once, and the same when the run is continued."""

from __future__ import annotations

from sims.data.dataset import Dataset
from sims.data.sources import load_pair
from sims.errors import UserError
from sims.experiments.options import DataOptions
from sims.interop.latents import Autoencoder
from sims.model import Model
from sims.runs.directory import Run
from sims.scoring.judge import Judge, load_judge
from sims.scoring.options import EvaluationOptions
from sims.scoring.reference import make_references


def read_data(data: DataOptions, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out data; UserError where they are not what the options say."""
    train, test = load_pair(data.path, data.test, data.test_fraction, seed, options=data.source, limit=data.limit)
    train.require_varied()
    if data.shape is not None and train.data_shape != data.shape:
        raise UserError(
            f"data.shape is {list(data.shape)}, and {data.path} has {list(train.data_shape)}: "
            "give the data that the recipe is for, or its shape (data.source.size changes pictures)"
        )
    if data.conditional and train.labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    return train, test


def read_images(run: Run, data: DataOptions, seed: int) -> tuple[Dataset, Dataset]:
    """Training and held-out images; UserError where they are no images, or not what the options say."""
    run.log(f"reading {data.path}")
    train, test = read_data(data, seed)
    if len(train.data_shape) != 3:
        raise UserError(f"{data.path} holds points of shape {train.data_shape}, not images (C, H, W): give images")
    return train, test


def in_classes_of(model: Model, name: str, data: Dataset, path: str) -> Dataset:
    """Data with labels by the numbers that a class-conditional model has for classes of their names.

    As many classes of other names are taken in their order. UserError for other numbers of them.
    """
    found = data.in_classes(model.class_names)
    if found.num_classes != model.num_classes:
        raise UserError(
            f"the model {name} has {model.num_classes} classes, but {path} has {data.num_classes}, of other names: "
            "give the labelled data it was trained on"
        )
    return found


def same_data(run: Run, path: str, train: Dataset, test: Dataset, **more: str) -> None:
    """UserError if the data, named by fingerprints and whatever else, is not what it was when the run began."""
    file = run.path / "data.json"
    if not run.writes and not file.is_file():
        return  # fingerprints of large data take their time
    found = {"train": train.fingerprint, "test": test.fingerprint, **more}
    if run.once(file, lambda: found) != found:
        raise UserError(f"the data at {path} has changed since {run.path} began: restore it, or begin a run elsewhere")


def open_judge(
    run: Run,
    train: Dataset,
    test: Dataset | None,
    options: EvaluationOptions,
    pictures: tuple[Dataset, Dataset] | None = None,
    decoder: Autoencoder | None = None,
) -> Judge:
    """The judge of a run: extractors and references are made once, by the main process, and then only read.

    Of latents with a ``decoder``, it is the pixels that are measured: those of ``pictures``, where these were encoded.
    """
    folder = run.path / "references"
    if run.is_main:
        if not (folder / "judge.json").is_file():
            run.log("measuring the real data (where it has labels, small classifiers are trained first)")
        real, held_out = pictures or (train, test)
        make_references(folder, real, held_out, options, None if pictures else decoder, run.progress)
    run.barrier()
    return load_judge(folder, train, test, options, run.device, decoder)
