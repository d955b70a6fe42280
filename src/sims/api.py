"""The verbs as functions with plain arguments: what ``import sims`` offers and the commands call.

Wherever options are taken, so is a plain table with some of them, as in a recipe: ``sampler={"steps": 32}``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from torch import Tensor, nn

from sims.config import load_recipe, override, to_dict
from sims.data import sources
from sims.data.arrays import ArrayLike, of_array
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.job import improve as run_improve
from sims.experiments.loop.jobs import loop as run_loop
from sims.experiments.loop.jobs import pollution as run_pollution
from sims.experiments.loop.options import LoopOptions, PollutionOptions, defaults_for
from sims.experiments.options import BaseOptions, DataOptions, ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift_job import shift as run_shift
from sims.guidance import Guide
from sims.metrics.extractors import Extractor
from sims.model import Model, load
from sims.networks.options import NetworkOptions
from sims.processes import join
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.scores import ScoreRow, Scores, ScoreTable
from sims.results.shift import ShiftResult
from sims.runs import synthesize as synthesis
from sims.runs.directory import Run
from sims.runs.directory import progress as progress_bar
from sims.sampling import SamplerOptions
from sims.sampling.noise import NUM_SEEDS
from sims.scoring.differences import paired, require_alike
from sims.scoring.options import ScoreOptions
from sims.scoring.subjects import Given
from sims.scoring.suite import CACHE, Suite
from sims.seeds import derive_seed
from sims.training.base import train_base
from sims.training.loop import Trainer
from sims.training.options import TrainOptions

T = TypeVar("T")
Table = dict[str, Any]


def load_data(
    source: str | Path | ArrayLike,
    labels: ArrayLike | Sequence[int] | None = None,
    *,
    data_range: tuple[float, float] | None = None,
    class_names: Sequence[str] = (),
    grayscale: bool = False,
    size: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """A data set: a folder of images, zip, parquet, npz, store, a built-in name such as digits, or an array or tensor.

    Arrays are images (N, C, H, W), (N, H, W, C) or (N, H, W), or points (N, 2), with ``labels`` (N,), -1 = none, if
    there are any; ``data_range`` are the values of black and white, which only uint8 need not be told (0, 255). Errors:
    UserError, one sentence naming the file, for anything missing, broken or inconsistent.

    >>> import numpy, sims
    >>> data = sims.load_data(numpy.random.rand(20, 8, 8, 3), labels=[0, 1] * 10, data_range=(0, 1))
    >>> len(data), data.data_shape, data.num_classes
    (20, (3, 8, 8), 2)
    """
    options = sources.SourceOptions(grayscale, size)
    if isinstance(source, str | Path):
        if labels is not None or data_range is not None or class_names:
            raise UserError(f"{source} has its own labels and range: labels, data_range and class_names go with arrays")
        return sources.load(source, options=options, limit=limit)
    data = of_array(source, labels, data_range=data_range, class_names=class_names)
    return sources.limited(sources.transformed(data, options), limit)


def improve(
    options: ImproveOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> ImproveResult | Estimate:
    """Improve a model with its own samples, or continue doing so; the result, which ``summary.json`` holds.

    ``overrides`` are fields of ImproveOptions; ``data`` may also be the path alone. They override ``recipe``, which
    overrides ``options``. With ``dry_run=True`` nothing is run: what it would cost is returned, and ``print`` shows it
    as a table. Errors: UserError for unknown or bad options, bad data, or a run directory of another configuration.

    >>> import sims
    >>> result = sims.improve(run="runs/mine", data="my/images", rounds=2, auxiliary={"samples": 20_000}, quiet=True)
    """
    return run_improve(_settings(options or ImproveOptions(), recipe, overrides), quiet=quiet)


def shift(
    options: ShiftOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> ShiftResult | Estimate:
    """Move the proportions that a model generates to a target; the result, which ``summary.json`` holds.

    ``overrides`` are fields of ShiftOptions, ``target`` and ``attributes`` among them, and otherwise as for
    ``improve``. Errors: UserError for unknown or bad options, data, targets or classifiers, or a run directory of
    another configuration.

    >>> import sims
    >>> result = sims.shift(run="runs/even", data="my/images", target="uniform", quiet=True)
    """
    return run_shift(_settings(options or ShiftOptions(), recipe, overrides), quiet=quiet)


def loop(
    options: LoopOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> LoopResult:
    """Train generation after generation on earlier generations' samples, with and without remedies; the result.

    ``overrides`` are fields of LoopOptions, and otherwise as for ``improve``; ``data="gaussian"`` or ``"mixture"`` are
    loops of points, with defaults of their own. Errors: as ``improve``.

        result = sims.loop(run="runs/points", data="gaussian", generations=20, repeats=20)
        print(result.headline, result.curves["w2"]["sims"][-1])
    """
    if options is None:
        data = overrides.get("data", {})
        path = data if isinstance(data, str | Path) else _plain(data).get("path")
        options = defaults_for([f"--data.path={path}"] if path else [], load_recipe(recipe) if recipe else {})
    return run_loop(_settings(options, recipe, overrides), quiet=quiet)


def pollution(
    options: PollutionOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> PollutionResult:
    """Train on real data polluted by an earlier model's samples, with and without remedies; the result.

    ``overrides`` are fields of PollutionOptions, and otherwise as for ``improve``. Errors: as ``improve``.

        result = sims.pollution(run="runs/polluted", data="my/images", levels=(0, 50, 100))
        print(result.headline, result.curves["fd"]["sims"])
    """
    return run_pollution(_settings(options or PollutionOptions(), recipe, overrides), quiet=quiet)


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

    >>> import sims
    >>> small, short = {"width": 16, "blocks": 1, "embedding": 16}, {"images": 256, "train": {"batch": 64}}
    >>> how = {"network": small, "base": short, "sampler": {"steps": 5}}
    >>> model = sims.train(FOLDER + "/base", "digits", quiet=True, **how)
    >>> model.sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
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


def fine_tune(
    model: Model,
    samples: Dataset | ArrayLike | str | Path,
    *,
    images: int,
    labels: ArrayLike | Sequence[int] | None = None,
    lr: float = 1e-3,
    batch: int = 256,
    train: TrainOptions | Table | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Model:
    """A copy of a model trained further on ``samples`` for ``images`` images: the auxiliary of SIMS (its step 3).

    ``samples`` are a data set or the path of one, a tensor in model space as ``model.sample`` gives it, or an array in
    the data's own format as ``model.images`` does; both with ``labels`` (N,) where the model has classes. Returns the
    averaged weights. ``train`` are further options; ``folder`` keeps the training's state, to continue what was
    interrupted: without one it lies in a temporary folder. Errors: UserError for a model that is no single network,
    samples that do not fit it or are not finite, bad options, or a folder of another training.

    >>> import sims
    >>> model = sims.load(EXAMPLE)
    >>> x, labels = model.sample_labelled(range(64))
    >>> auxiliary = sims.fine_tune(model, x, labels=labels, images=128, batch=32, quiet=True)
    >>> model.guided(auxiliary, w=1.0).sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
    """
    at_least(1, images=images, batch=batch)
    if not isinstance(model.denoiser, nn.Module):
        raise UserError(f"a {type(model.denoiser).__name__} cannot be fine-tuned: give a model of a single network")
    data = _fitting(model, samples, labels)
    options = override(TrainOptions(lr=lr, batch=batch, ema_rampup=0.5), _plain(train or {}), "train.")
    config: Table = {"command": "fine_tune", "model": model.hash, "data": data.fingerprint, "images": images}
    config |= {"train": to_dict(options), "seed": seed}
    with ExitStack() as stack:
        if folder is None:
            if join().num_processes > 1:
                raise UserError("several processes need a folder that all of them see: give folder")
            folder = stack.enter_context(TemporaryDirectory())
        run = Run(folder, config, quiet=quiet)
        stack.callback(run.close)
        trainer = Trainer(model, data, options, run.path / "training", images=images, seed=seed)
        with run.progress("fine-tune", images) as advance:
            trained = trainer.run(advance, run.log)
        return load(trained.last, run.device)


def _fitting(model: Model, samples: Dataset | ArrayLike | str | Path, labels: Any) -> Dataset:
    """Samples as data that this model can be trained on."""
    if isinstance(samples, Dataset | str | Path):
        if labels is not None:
            raise UserError("these samples have their own labels: labels go with arrays and tensors")
        data = samples if isinstance(samples, Dataset) else sources.load(samples)
    else:
        codec, raw = model.codec, np.asarray(samples.detach().cpu() if isinstance(samples, Tensor) else samples)
        if isinstance(samples, Tensor):  # in model space, where there is nothing to decode
            codec, raw = Codec("identity", -1.0, 1.0, "float32"), raw.astype(np.float32)
        if not np.isfinite(raw).all():
            raise UserError("samples hold values that are not finite: the model diverges, leave these samples out")
        data = Dataset(raw, None if labels is None else np.asarray(labels), codec, model.class_names, "samples")
    if data.data_shape != model.data_shape:
        raise UserError(f"samples of shape {data.data_shape} do not fit a model of {model.data_shape}: give its own")
    if model.num_classes == 0:
        return data.without_labels()
    if data.num_classes != model.num_classes:
        raise UserError(
            f"the samples have {data.num_classes} classes and the model {model.num_classes}: give the labels, such as "
            "model.sample_labelled returns"
        )
    return data


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

    >>> import sims
    >>> samples = sims.synthesize(EXAMPLE, FOLDER + "/samples", count=20, quiet=True)
    >>> len(samples), samples.data_shape
    (20, (1, 8, 8))
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
    samples: Given | ArrayLike,
    reference: str | Path | Dataset | ArrayLike = "digits",
    *,
    held_out: str | Path | Dataset | ArrayLike | None = None,
    extractor: Extractor | Callable[[Tensor], Tensor] | None = None,
    options: ScoreOptions | Table | None = None,
    cache: str | Path = CACHE,
    quiet: bool = False,
) -> Scores:
    """Score a model or samples against real data.

    ``samples`` is a model (sampled on the evaluation seeds), a data set or array of uint8 (``load_data`` takes others),
    or a store, folder, zip, parquet, npz or statistics file; ``reference`` likewise, or the ``references`` folder of a
    run. ``held_out`` are real images that no model was trained on: they give the floor, and are needed for
    memorization. ``extractor`` takes a callable in place of ``options.extractor``. Of the result, ``figures`` maps
    names to mean, low and high (95 %) and where the interval comes from; ``floor`` has the same figures of real images
    against real ones; ``rows`` one entry per figure and draw with all it was measured with; ``to_json()`` is what
    `sims evaluate --json` prints. Samples that diverge are counted, as bad ones. Errors: UserError for too few samples,
    features that are not finite, samples that do not fit the reference or the extractor, or unreadable data.

    >>> import numpy, sims
    >>> rng = numpy.random.default_rng(0)
    >>> a, b = (rng.integers(0, 256, (200, 8, 8, 1), numpy.uint8) for _ in range(2))
    >>> scores = sims.evaluate(a, b, options={"extractor": "pca", "metrics": ["fd"]}, cache=FOLDER, quiet=True)
    >>> list(scores.figures), scores.figures["fd"].mean > 0
    (['fd'], True)
    """
    return _suite(reference, held_out, extractor, options, cache, quiet).score(_given(samples)).result


def compare(
    samples: Sequence[Given | ArrayLike],
    reference: str | Path | Dataset | ArrayLike = "digits",
    *,
    held_out: str | Path | Dataset | ArrayLike | None = None,
    extractor: Extractor | Callable[[Tensor], Tensor] | None = None,
    options: ScoreOptions | Table | None = None,
    cache: str | Path = CACHE,
    statistics: str | Path | None = None,
    earlier: Sequence[ScoreRow] = (),
    differences: bool = True,
    quiet: bool = False,
) -> ScoreTable:
    """Score several models or sets of samples, as `evaluate` does, and say whether two of them differ.

    ``scores`` has what `evaluate` returns for each; ``differences`` has for every figure of two the difference, first
    minus second, with its 95 % interval, paired by seed where the samples are, and a verdict in words. ``earlier`` are
    rows that the scores shall stand beside; ``statistics`` is a file to write the reference's statistics to. Errors: as
    `evaluate`, and UserError naming the fields where scores differ in what they were measured with, unless
    ``options.force``.

    >>> import numpy, sims
    >>> rng = numpy.random.default_rng(0)
    >>> real, a, b = (rng.integers(0, 256, (200, 8, 8, 1), numpy.uint8) for _ in range(3))
    >>> how = {"extractor": "pca", "metrics": ["fd"]}
    >>> both = sims.compare([a, b], real, options=how, cache=FOLDER, quiet=True)
    >>> [difference.metric for difference in both.differences]
    ['fd']
    """
    suite = _suite(reference, held_out, extractor, options, cache, quiet)
    if statistics is not None:
        suite.save_reference(Path(statistics))
    scores = [suite.score(_given(one)) for one in samples]
    require_alike(scores, earlier, suite.options.force)
    found = paired(scores[0], scores[1], suite.options) if differences and len(scores) == 2 else ()
    return ScoreTable(scores=tuple(score.result for score in scores), differences=found)


def _suite(reference: Any, held_out: Any, extractor: Any, options: Any, cache: str | Path, quiet: bool) -> Suite:
    settings = _options(ScoreOptions, options, "")
    accelerator = join()
    silent = quiet or not accelerator.is_main_process

    def bar(title: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        return progress(title, total, quiet=silent)

    return Suite(_given(reference), _given(held_out), settings, Path(cache), accelerator, bar, extractor)


def _given(subject: Any) -> Any:
    """Arrays as data sets; all else as it is."""
    return of_array(subject) if isinstance(subject, np.ndarray | Tensor) else subject


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
