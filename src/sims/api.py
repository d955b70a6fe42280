"""The verbs as functions with plain arguments: what ``import sims`` offers and the commands call.

Wherever options are taken, so is a plain table with some of them, as in a recipe: ``sampler={"steps": 32}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from sims.config import load_recipe, options_of, override, plain
from sims.data import sources
from sims.data.dataset import Dataset
from sims.data.in_memory import ArrayLike, of_array
from sims.errors import UserError
from sims.experiments.cost.table import Estimate
from sims.experiments.improve.job import improve as run_improve
from sims.experiments.loop.jobs import loop as run_loop
from sims.experiments.loop.jobs import pollution as run_pollution
from sims.experiments.loop.options import LoopOptions, PollutionOptions, defaults_for
from sims.experiments.options import ImproveOptions
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.shift_job import shift as run_shift
from sims.guidance import Guide
from sims.interop.opening import load
from sims.metrics.extractors import Extractor
from sims.model import Model
from sims.processes import join
from sims.results.improve import ImproveResult
from sims.results.loop import LoopResult, PollutionResult
from sims.results.scores import ScoreRow, Scores, ScoreTable
from sims.results.shift import ShiftResult
from sims.runs import synthesize as synthesis
from sims.runs.progress import progress as progress_bar
from sims.sampling import SamplerOptions
from sims.scoring.differences import paired, require_alike
from sims.scoring.options import ScoreOptions
from sims.scoring.subjects import Given, refuse_run
from sims.scoring.suite import CACHE, Suite
from sims.screen import Screen
from sims.seeds import NUM_SEEDS

T = TypeVar("T")
Table = Mapping[str, object]


def load_data(
    source: str | Path | ArrayLike,
    labels: ArrayLike | Sequence[int] | None = None,
    *,
    data_range: tuple[float, float] | None = None,
    class_names: Sequence[str] = (),
    grayscale: bool = False,
    size: int | tuple[int, int] | None = None,
    limit: int | None = None,
) -> Dataset:
    """A data set: a folder of images, zip, parquet, npz, store, a built-in name such as digits, or an array or tensor.

    Arrays are images (N, C, H, W), (N, H, W, C) or (N, H, W), or points (N, 2), with ``labels`` (N,), -1 = none, if
    there are any; ``data_range`` are the values of black and white, which only uint8 need not be told (0, 255).
    ``size`` makes them smaller: pixels a side, or (height, width). Errors: UserError, one sentence naming the file, for
    anything missing, broken or inconsistent.

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

    ``overrides`` are fields of ImproveOptions; ``data`` may also be the path alone, and ``model`` a model: it is then
    saved beside the run. They override ``recipe``, which overrides ``options``. With ``dry_run=True`` nothing is run:
    what it would cost is returned, and ``print`` shows it
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

    >>> import sims
    >>> result = sims.loop(run="runs/points", data="gaussian", generations=20, repeats=20)
    """
    if options is None:
        data = overrides.get("data", {})
        path = str(data) if isinstance(data, str | Path) else plain(data).get("path")
        options = defaults_for(path, load_recipe(recipe) if recipe else {})
    return run_loop(_settings(options, recipe, overrides), quiet=quiet)


def pollution(
    options: PollutionOptions | None = None, *, recipe: str | None = None, quiet: bool = False, **overrides: Any
) -> PollutionResult:
    """Train on real data polluted by an earlier model's samples, with and without remedies; the result.

    ``overrides`` are fields of PollutionOptions, and otherwise as for ``improve``. Errors: as ``improve``.

    >>> import sims
    >>> result = sims.pollution(run="runs/polluted", data="my/images", levels=(0, 50, 100))
    """
    return run_pollution(_settings(options or PollutionOptions(), recipe, overrides), quiet=quiet)


def _settings(options: T, recipe: str | None, overrides: Table) -> T:
    if recipe is not None:
        options = override(options, load_recipe(recipe))
    if isinstance(model := overrides.get("model"), Model):
        run = Path(str(overrides.get("run", getattr(options, "run", ""))))
        overrides = {**overrides, "model": model.save(run.with_name(f"{run.name}-given"))}
    data = overrides.get("data")
    table = {**overrides, "data": {"path": data}} if isinstance(data, str | Path) else overrides
    return override(options, plain(table))


def synthesize(
    model: Model | str | Path,
    out: str | Path,
    count: int = 10_000,
    *,
    first_seed: int = 0,
    label: int | None = None,
    sampler: SamplerOptions | Table | None = None,
    batch_size: int = 500,
    download: bool = False,
    quiet: bool = False,
) -> Dataset:
    """Samples of seeds ``first_seed`` to ``first_seed + count - 1`` as a store in ``out``; continues one.

    A ``model`` of the Hugging Face hub (``hf:owner/name``) is fetched only with ``download``.

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
    model = (
        model.to(accelerator.device) if isinstance(model, Model) else load(model, accelerator.device, download=download)
    )
    denoiser = model.denoiser
    guided = isinstance(denoiser, Guide)
    with progress("synthesize", count, quiet=quiet or not accelerator.is_main_process) as advance:
        return synthesis.synthesize(
            model,
            Path(out),
            range(first_seed, first_seed + count),
            method=str(model.provenance.get("method") or ("guided" if guided else "base")),
            w=denoiser.w if isinstance(denoiser, Guide) else 0.0,
            sampler=None if sampler is None else override(model.sampler, plain(sampler), "sampler."),
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
    for one in samples:
        if isinstance(one, str | Path):  # said before anything is measured
            refuse_run(Path(one))
    suite = _suite(reference, held_out, extractor, options, cache, quiet)
    if statistics is not None:
        suite.save_reference(Path(statistics))
    scores = [suite.score(_given(one)) for one in samples]
    require_alike(scores, earlier, suite.options.force)
    found = paired(scores[0], scores[1], suite.options) if differences and len(scores) == 2 else ()
    return ScoreTable(scores=tuple(score.result for score in scores), differences=found)


def _suite(reference: Any, held_out: Any, extractor: Any, options: Any, cache: str | Path, quiet: bool) -> Suite:
    settings = options_of(ScoreOptions, options)
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


def progress(title: str, total: int, *, quiet: bool = False) -> AbstractContextManager[Callable[[int], None]]:
    """A progress bar on stderr; a line every ten seconds where there is no terminal."""
    return progress_bar(Screen(stderr=True, quiet=quiet), title, total)
