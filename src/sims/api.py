"""The verbs as functions with plain arguments: what ``import sims`` offers and the commands call.

Wherever options are taken, so is a plain table with some of them, as in a recipe: ``sampler={"steps": 32}``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from accelerate import Accelerator
from rich.console import Console

from sims import runs
from sims.config import load_recipe, override, to_dict
from sims.data import sources
from sims.data.dataset import Dataset
from sims.data.readers import Pictures
from sims.errors import UserError
from sims.experiments.improve import improve as run_improve
from sims.experiments.options import BaseOptions, DataOptions, ImproveOptions
from sims.files import digest
from sims.guidance import Extrapolate
from sims.metrics.extractors import ClassifierExtractor
from sims.model import Model, load
from sims.report.record import clean
from sims.runs import Run, derive_seed
from sims.sampling import SamplerOptions
from sims.sampling.noise import NUM_SEEDS
from sims.verbs import synthesize as synthesis
from sims.verbs.evaluate import (
    Draw,
    EvaluationOptions,
    Judge,
    draw_samples,
    interval,
    load_judge,
    make_references,
    some,
)
from sims.verbs.seeds import seed_range
from sims.verbs.train import NetworkOptions, train_base

T = TypeVar("T")
Table = dict[str, Any]

_FEWEST = 6  # coverage looks at the five nearest neighbours of each sample


def load_data(
    source: str | Path, *, grayscale: bool = False, size: int | None = None, limit: int | None = None
) -> Dataset:
    """A data set: a folder of images, zip, parquet, npz, store, or a built-in name such as digits.

    Errors: UserError, one sentence naming the file, for anything missing, broken or inconsistent.
    """
    return sources.load(source, options=sources.SourceOptions(grayscale, size), limit=limit)


def improve(
    options: ImproveOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Improve a model with its own samples, or continue doing so; returns what ``summary.json`` holds.

    ``overrides`` are fields of ImproveOptions; ``data`` may also be the path alone. They override ``recipe``, which
    overrides ``options``. Errors: UserError for unknown or bad options, bad data, or a run directory of another
    configuration.
    """
    settings = options or ImproveOptions()
    if recipe is not None:
        settings = override(settings, load_recipe(recipe))
    if isinstance(overrides.get("data"), str | Path):
        overrides["data"] = {"path": overrides["data"]}
    return run_improve(override(settings, _plain(overrides)), quiet=quiet)


def train(
    out: str | Path,
    data: str | Path | DataOptions | Table = "digits",
    *,
    network: NetworkOptions | Table | None = None,
    base: BaseOptions | Table | None = None,
    sampler: SamplerOptions | Table | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Model:
    """Train a model, or continue doing so; it is also left in ``out/model``.

    The same data, options and seed give the base that ``improve`` trains. Errors: UserError for bad options or data,
    or a directory that another process uses or that was made with another configuration.
    """
    table = {"path": str(data)} if isinstance(data, str | Path) else data
    parts: dict[str, Any] = {
        "data": _options(DataOptions, table, "data."),
        "network": _options(NetworkOptions, network, "network."),
        "base": _options(BaseOptions, base, "base."),
        "sampler": _options(SamplerOptions, sampler, "sampler."),
    }
    config = {**{name: to_dict(part) for name, part in parts.items()}, "seed": seed}
    try:
        run = Run(out, config, quiet=quiet)
    except UserError as error:  # a Run speaks of --run, the flag of improve
        raise UserError(str(error).replace("--run", "--out")) from None
    target = Path(out) / "model"
    try:
        if (target / "model.json").is_file():
            run.log(f"{out} is finished; delete it, or choose another --out, to start anew")
        else:
            _train(run, target, seed=seed, **parts)
        run.barrier()
        return load(target, run.device)
    finally:
        run.close()


def _train(
    run: Run,
    target: Path,
    *,
    data: DataOptions,
    network: NetworkOptions,
    base: BaseOptions,
    sampler: SamplerOptions,
    seed: int,
) -> None:
    if data.path == "none":
        raise UserError("data.path is none: training needs data, such as digits or a folder of images")
    real, _ = sources.load_pair(
        data.path, data.test, data.test_fraction, seed, options=data.source, limit=data.limit
    )  # the held-out part stays unseen, so that the model can be judged by it
    if data.conditional and real.labels is None:
        raise UserError(
            f"data.conditional needs labels, and {data.path} has none: use class subfolders or a label column"
        )
    with run.progress("train", base.images) as advance:
        trained = train_base(
            real if data.conditional else real.without_labels(),
            network,
            sampler,
            base.train,
            run.path / "training",
            images=base.images,
            seed=derive_seed("base", seed),
            snapshots=tuple(max(1, round(base.images * share)) for share in base.snapshots),
            accelerator=run.accelerator,
            advance=advance,
            log=run.log,
        )
    if run.is_main:
        load(trained.last).save(target)
    run.log(f"trained on {trained.images:,} images of {real.name}: the model is {target}")


def synthesize(
    model: Model | str | Path,
    out: str | Path,
    count: int = 10_000,
    *,
    first_seed: int = 0,
    label: int | None = None,
    sampler: SamplerOptions | Table | None = None,
    batch_size: int = 500,
    quiet: bool = False,
) -> Dataset:
    """Samples of seeds ``first_seed`` to ``first_seed + count - 1`` as a store in ``out``; continues one.

    Errors: UserError for seeds outside 0 .. 2^32 - 1, a label the model does not have, samples that are not finite,
    or a folder that holds something else.
    """
    at_least(1, count=count, batch_size=batch_size)
    at_least(0, first_seed=first_seed)
    if first_seed + count > NUM_SEEDS:
        raise UserError(
            f"the last seed is {first_seed + count - 1:,}: it must be below {NUM_SEEDS:,}, lower first_seed"
        )
    accelerator = Accelerator()
    model = model.to(accelerator.device) if isinstance(model, Model) else load(model, accelerator.device)
    denoiser = model.denoiser
    guided = isinstance(denoiser, Extrapolate)
    with progress("synthesize", count, quiet=quiet or not accelerator.is_main_process) as advance:
        return synthesis.synthesize(
            model,
            Path(out),
            range(first_seed, first_seed + count),
            method=str(model.provenance.get("method") or ("guided" if guided else "base")),
            w=denoiser.w if isinstance(denoiser, Extrapolate) else 0.0,
            sampler=None if sampler is None else override(model.sampler, _plain(sampler), "sampler."),
            batch_size=batch_size,
            labels=label,
            accelerator=accelerator,
            advance=advance,
        )


def evaluate(
    samples: Model | Dataset | str | Path,
    reference: str | Path = "digits",
    *,
    data: DataOptions | Table | None = None,
    evaluation: EvaluationOptions | Table | None = None,
    seed: int = 0,
    split_seed: int = 0,
    batch_size: int = 500,
    cache: str | Path = "runs/references",
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a model or samples against real data; the result can be written as JSON.

    ``samples`` is a model (sampled ``draws`` times on the evaluation seeds), or a store or any data source (one draw).
    ``reference`` is a data source, or the ``references`` folder of a run. ``metrics`` maps each figure to mean, low
    and high (95 %); ``floor`` is the same figure of real against real: train against test; ``rows`` has one entry per
    figure and draw with all it was measured with. Errors: UserError for too few samples, samples of another shape
    than the reference, or unreadable data.
    """
    at_least(1, batch_size=batch_size)
    how = _options(DataOptions, data, "data.")
    options = _options(EvaluationOptions, evaluation, "evaluation.")
    device = Accelerator().device
    subject = _subject(samples, how, device)
    judge = _judge(reference, how, options, split_seed, Path(cache), device, subject)
    name = str(samples) if isinstance(samples, str | Path) else getattr(samples, "name", "model")
    about: Table = {"samples": name}
    if isinstance(subject, Model):
        about |= {"model": subject.hash, "sampler": to_dict(subject.sampler)}
        seeds = seed_range("evaluation", seed, options.draws * options.samples)
        parts = [seeds[first : first + options.samples] for first in range(0, len(seeds), options.samples)]
        draws = []
        with progress("evaluate", len(seeds), quiet=quiet) as advance:
            for part in parts:
                draws.append(draw_samples(subject, part, judge, batch_size=batch_size))
                advance(len(part))
    else:
        mixed = subject.subset(np.random.default_rng(0).permutation(len(subject)))  # some figures look at the first
        parts, draws = [_seeds_of(subject)], [judge.measure(*mixed.all())]
    draws = [dataclasses.replace(draw, scores=judge.scores(draw)) for draw in draws]
    rows = [row for i, draw in enumerate(draws) for row in judge.rows(draw, parts[i], draw=i, **about)]
    return clean({**about, **_described(judge, draws), "rows": rows})


def _described(judge: Judge, draws: Sequence[Draw]) -> Table:
    """What was measured and with what, but for the rows."""
    scores = [draw.scores for draw in draws]
    references = {"train": judge.train, "test": judge.test}
    return {
        "draws": len(draws),
        "samples_per_draw": len(draws[0].features),
        "extractor": judge.about(),
        "check_extractor": judge.second.about() if judge.second else None,
        "reference": {
            part: {"name": r.name, "hash": r.hash, "count": r.moments.count} for part, r in references.items() if r
        },
        "metrics": {metric: interval([one[metric] for one in scores]) for metric in scores[0]},
        "floor": floors(judge),
    }


def floors(judge: Judge) -> dict[str, float]:
    """Every figure of real against real: held-out images against the training data, the reverse for ``*_test``."""
    if judge.test is None or judge.train.features is None or judge.test.features is None:
        return {} if judge.floor is None else {"fd_train": judge.floor, "fd_test": judge.floor}
    if min(len(judge.train.features), len(judge.test.features)) < _FEWEST:
        return {}
    second, nothing = judge.second, np.zeros(0)
    tests = (judge.test.features, second.test.features if second and second.test else None)
    trains = (judge.train.features, second.train.features if second else None)
    nearest = nothing if judge.test_nearest is None else judge.test_nearest
    held_out = judge.scores(Draw(_mixed(tests[0]), nearest, _mixed(tests[1])))
    reverse = judge.scores(Draw(_mixed(trains[0]), nothing, _mixed(trains[1])))
    return {name: (reverse if name.endswith("_test") else held_out)[name] for name in held_out}


def _mixed(features: np.ndarray | None) -> Any:
    """All features in a fixed random order: some figures look at the first of a draw."""
    return None if features is None else some(features, len(features))


def _subject(samples: Model | Dataset | str | Path, how: DataOptions, device: Any) -> Model | Dataset:
    """What is to be scored: a model, or data with enough samples."""
    if isinstance(samples, Model):
        return samples.to(device)
    if not isinstance(samples, Dataset):
        path = Path(samples)
        if (path / "model.json").is_file():
            return load(path, device)
        if (path / "config.json").is_file():
            models = sorted(str(found.parent) for found in path.glob("*/model.json"))
            hint = f"give one of its models: {', '.join(models)}" if models else "it has no finished model yet"
            raise UserError(f"{path} is a run directory: {hint}")
        samples = _sampled_folder(path, how) or sources.load(samples, options=how.source)
    if len(samples) < _FEWEST:
        raise UserError(
            f"{samples.name} has {len(samples)} sample(s): at least {_FEWEST} are needed (thousands for useful figures)"
        )
    return samples


def _sampled_folder(path: Path, how: DataOptions) -> Dataset | None:
    """The images of a folder that ``sims sample`` wrote, without the contact sheet beside them."""
    names = {file.name for file in path.iterdir()} if path.is_dir() else set()
    if "grid.png" not in names or not all(re.fullmatch(r"\d{6,}\.png", name) for name in names - {"grid.png"}):
        return None
    images = sorted(names - {"grid.png"})
    found = Pictures("folder", path.name, images, lambda i: (path / images[i]).read_bytes())
    return sources.dataset_of(found, how.source) if images else None


def _judge(
    reference: str | Path,
    how: DataOptions,
    options: EvaluationOptions,
    split_seed: int,
    cache: Path,
    device: Any,
    subject: Model | Dataset,
) -> Judge:
    """Extractor and references, from a run or made and kept under ``cache`` by the content of the data."""
    for folder in (Path(reference), Path(reference) / "references"):
        if (folder / "judge.json").is_file():
            judge = load_judge(folder, None, None, options, device)
            e = judge.extractor
            _same_shape(subject, e.network.data_shape if isinstance(e, ClassifierExtractor) else e.data_shape, folder)
            return judge
    train, test = sources.load_pair(
        reference, how.test, how.test_fraction, split_seed, options=how.source, limit=how.limit
    )
    _same_shape(subject, train.data_shape, reference)
    if len(train) < _FEWEST:
        raise UserError(f"the reference {reference} has {len(train)} images: at least {_FEWEST} are needed")
    sizes = ("draws", "samples", "manifold_samples")  # what these references do not depend on
    settings = {name: value for name, value in to_dict(options).items() if name not in sizes}
    folder = cache / digest(train.fingerprint, test.fingerprint, settings)[:16]
    make_references(folder, train, test, options)
    return load_judge(folder, train, test, options, device)


def _same_shape(subject: Model | Dataset, shape: tuple[int, ...], reference: str | Path) -> None:
    if len(shape) != 3:
        raise UserError(f"the reference {reference} has shape {tuple(shape)}: only images (C, H, W) can be compared")
    if tuple(subject.data_shape) != tuple(shape):
        raise UserError(
            f"the samples have shape {tuple(subject.data_shape)}, the reference {reference} {tuple(shape)}: "
            "give a reference of the same shape, or --data.source.size and --data.source.grayscale"
        )


def _seeds_of(data: Dataset) -> range:
    """The seeds of a store's samples where they follow one another; empty for other data."""
    seeds = data.columns.get("seed")
    if seeds is None or len(seeds) != int(seeds[-1]) - int(seeds[0]) + 1:
        return range(0)
    return range(int(seeds[0]), int(seeds[-1]) + 1)


def at_least(least: int, **counts: int) -> None:
    """UserError naming the first count that is too low."""
    for name, value in counts.items():
        if value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")


def _options(kind: type[T], given: T | Table | None, where: str) -> T:
    """Options as they are, from a table of some of them, or the defaults."""
    return given if isinstance(given, kind) else override(kind(), _plain(given or {}), where)


def _plain(value: Any) -> Any:
    """Tables, options and paths as the plain values that a recipe has."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return str(value) if isinstance(value, Path) else value


def progress(title: str, total: int, *, quiet: bool = False) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar on stderr; a line every ten seconds where there is no terminal."""
    return runs.progress(Console(stderr=True, quiet=quiet), title, total)
