"""The verbs as functions with plain arguments: what ``import sims`` offers and the commands call.

Wherever options are taken, so is a plain table with some of them, as in a recipe: ``sampler={"steps": 32}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from torch import Tensor

from sims.config import load_recipe, override, to_dict
from sims.data import sources
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.improve.job import improve as run_improve
from sims.experiments.options import BaseOptions, DataOptions, ImproveOptions
from sims.experiments.shift.command import shift as run_shift
from sims.experiments.shift.options import ShiftOptions
from sims.guidance import Guide
from sims.metrics.comparison import ScoreRow
from sims.metrics.extractors import Extractor
from sims.model import Model, load
from sims.networks.options import NetworkOptions
from sims.processes import join
from sims.report.record import clean
from sims.runs import synthesize as synthesis
from sims.runs.directory import Run
from sims.runs.directory import progress as progress_bar
from sims.sampling import SamplerOptions
from sims.sampling.noise import NUM_SEEDS
from sims.scoring.differences import paired, require_alike
from sims.scoring.suite import CACHE, ScoreOptions, Suite
from sims.seeds import derive_seed
from sims.training.base import train_base

T = TypeVar("T")
Table = dict[str, Any]


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
    return run_improve(_settings(options or ImproveOptions(), recipe, overrides), quiet=quiet)


def shift(
    options: ShiftOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> dict[str, Any]:
    """Move the proportions that a model generates to a target; returns what ``summary.json`` holds.

    ``overrides`` are fields of ShiftOptions, ``target`` and ``attributes`` among them, and otherwise as for
    ``improve``. Errors: UserError for unknown or bad options, data, targets or classifiers, or a run directory of
    another configuration.
    """
    return run_shift(_settings(options or ShiftOptions(), recipe, overrides), quiet=quiet)


def _settings(options: T, recipe: str | None, overrides: Table) -> T:
    if recipe is not None:
        options = override(options, load_recipe(recipe))
    if isinstance(overrides.get("data"), str | Path):
        overrides["data"] = {"path": overrides["data"]}
    return override(options, _plain(overrides))


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
    config = {"command": "train", **{name: to_dict(part) for name, part in parts.items()}, "seed": seed}
    run = Run(out, config, quiet=quiet)
    target = Path(out) / "model"
    try:
        if (target / "model.json").is_file():
            run.log(f"{out} is finished; delete it, or choose another run directory, to start anew")
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
    accelerator = join()
    model = model.to(accelerator.device) if isinstance(model, Model) else load(model, accelerator.device)
    denoiser = model.denoiser
    guided = isinstance(denoiser, Guide)
    with progress("synthesize", count, quiet=quiet or not accelerator.is_main_process) as advance:
        return synthesis.synthesize(
            model,
            Path(out),
            range(first_seed, first_seed + count),
            method=str(model.provenance.get("method") or ("guided" if guided else "base")),
            w=denoiser.w if isinstance(denoiser, Guide) else 0.0,
            sampler=None if sampler is None else override(model.sampler, _plain(sampler), "sampler."),
            batch_size=batch_size,
            labels=label,
            accelerator=accelerator,
            advance=advance,
        )


def evaluate(
    samples: Model | Dataset | str | Path,
    reference: str | Path | Dataset = "digits",
    *,
    held_out: str | Path | Dataset | None = None,
    extractor: Extractor | Callable[[Tensor], Tensor] | None = None,
    options: ScoreOptions | Table | None = None,
    cache: str | Path = CACHE,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score a model or samples against real data; the result can be written as JSON.

    ``samples`` is a model (sampled on the evaluation seeds), or a store, folder, zip, parquet, npz or statistics file;
    ``reference`` likewise, or the ``references`` folder of a run. ``held_out`` are real images that no model was
    trained on: they give the floor, and are needed for memorization. ``extractor`` takes a callable in place of
    ``options.extractor``. ``metrics`` maps each figure to mean, low and high (95 %) and where the interval comes from;
    ``floor`` is the same figure of real images against real ones; ``rows`` has one entry per figure and draw with all
    it was measured with. Errors: UserError for too few samples, features that are not finite, samples that do not fit
    the reference or the extractor, or unreadable data.
    """
    return clean(_suite(reference, held_out, extractor, options, cache, quiet).score(samples).to_json())


def compare(
    samples: Sequence[Model | Dataset | str | Path],
    reference: str | Path | Dataset = "digits",
    *,
    held_out: str | Path | Dataset | None = None,
    extractor: Extractor | Callable[[Tensor], Tensor] | None = None,
    options: ScoreOptions | Table | None = None,
    cache: str | Path = CACHE,
    statistics: str | Path | None = None,
    earlier: Sequence[ScoreRow] = (),
    differences: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Score several models or sets of samples, as `evaluate` does, and say whether two of them differ.

    ``scores`` has what `evaluate` returns for each; ``differences`` has for every figure of two the difference, first
    minus second, with its 95 % interval, paired by seed where the samples are, and a verdict in words. ``earlier`` are
    rows that the scores shall stand beside; ``statistics`` is a file to write the reference's statistics to. Errors: as
    `evaluate`, and UserError naming the fields where scores differ in what they were measured with, unless
    ``options.force``.
    """
    suite = _suite(reference, held_out, extractor, options, cache, quiet)
    if statistics is not None:
        suite.save_reference(Path(statistics))
    scores = [suite.score(one) for one in samples]
    require_alike(scores, earlier, suite.options.force)
    found = paired(scores[0], scores[1], suite.options) if differences and len(scores) == 2 else []
    return clean({"scores": [score.to_json() for score in scores], "differences": found})


def _suite(reference: Any, held_out: Any, extractor: Any, options: Any, cache: str | Path, quiet: bool) -> Suite:
    settings = _options(ScoreOptions, options, "")
    accelerator = join()
    silent = quiet or not accelerator.is_main_process

    def bar(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(title, total, quiet=silent)

    return Suite(reference, held_out, settings, Path(cache), accelerator, bar, extractor)


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
    return progress_bar(Console(stderr=True, quiet=quiet), title, total)
