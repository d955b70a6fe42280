"""Sizes of a job that suit its data and machine, or a text-to-image model, where they were left at their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from sims.config import JSON, override, plain
from sims.experiments.improve.search import SearchOptions
from sims.experiments.options import BaseOptions, ImproveOptions
from sims.methods import METHODS, AuxiliarySettings, default_methods
from sims.networks.usual import PLAIN, Sizes, usual
from sims.runs.directory import Run
from sims.sampling import SamplerOptions
from sims.scoring.options import EvaluationOptions
from sims.training.options import TrainOptions

T = TypeVar("T")
WARM = 100  # batches
PROMPTED = TrainOptions(batch=16, warmup=800, ema_rampup=0.5)
PROMPTED_BUDGETS = (2_000, 4_000, 8_000, 16_000)  # images


def sized_for_data(
    options: ImproveOptions, data_shape: Sequence[int], latent: bool = False, count: int | None = None
) -> ImproveOptions:
    """The options for ``count`` training pictures (0, None: not known) of a shape, by ``sims.networks.usual``.

    A model that is given keeps what is usual for such jobs, whatever its pictures.
    """
    if options.model is not None:
        return options
    sizes = usual(data_shape, latent, kind=options.network.type).sizes
    base, sampler = sized_training(options.base, options.sampler, data_shape, latent, count, options.network.type)
    auxiliary, distilled, evaluation = options.auxiliary, options.distilled, options.evaluation
    images = base.images or 1
    shares = () if sizes.budgets == PLAIN.budgets else sizes.budgets
    budgets = tuple(sorted({max(1, round(images * share)) for share in shares}))
    auxiliary = replace(
        auxiliary,
        samples=_instead(auxiliary.samples, PLAIN.own, sizes.own),
        budgets=auxiliary.budgets or budgets,
        train=_train(auxiliary.train, sizes),
    )
    distilled = replace(
        distilled, images=distilled.images or round(images * sizes.distilled), train=_train(distilled.train, sizes)
    )
    if (evaluation.samples, evaluation.draws) == (PLAIN.judged, PLAIN.draws):
        evaluation = replace(evaluation, samples=sizes.judged, draws=sizes.draws)
    search = replace(
        options.search,
        rungs=_instead(options.search.rungs, PLAIN.rungs, sizes.rungs),
        limit=_instead(options.search.limit, PLAIN.limit, sizes.limit),
    )
    return replace(
        options,
        network=options.network.settled(data_shape, latent),
        base=base,
        sampler=sampler,
        auxiliary=auxiliary,
        distilled=distilled,
        evaluation=evaluation,
        search=search,
        batch_size=_instead(options.batch_size, PLAIN.at_once, sizes.at_once),
    )


def kept_sizes(
    run: Run, options: ImproveOptions, data_shape: Sequence[int], latent: bool, count: int | None
) -> ImproveOptions:
    """``sized_for_data`` of the machine that a run began on: ``sizes.json`` keeps it, wherever the run goes on."""
    if options.model is None:

        def changed() -> dict[str, JSON]:
            sized = sized_for_data(options, data_shape, latent, count)
            names = [field.name for field in fields(options)]
            return {
                name: plain(getattr(sized, name)) for name in names if getattr(sized, name) != getattr(options, name)
            }

        options = override(options, run.once(run.path / "sizes.json", changed))
    run.log(f"sizes: {said(options.settled(data_shape, latent))}")
    return options


def sized_training(
    base: BaseOptions,
    sampler: SamplerOptions,
    data_shape: Sequence[int],
    latent: bool = False,
    count: int | None = None,
    kind: str = "auto",
) -> tuple[BaseOptions, SamplerOptions]:
    """How a new model is trained on such data, and sampled."""
    row = usual(data_shape, latent, kind=kind)
    train = _train(base.train, row.sizes)
    if base.train.lr is None and (base.train.decay, base.train.decay_batches) == ("constant", None):
        decay = {} if row.sizes.decay_batches is None else {"decay": "sqrt", "decay_batches": row.sizes.decay_batches}
        train = replace(train, lr=row.sizes.lr, **decay)  # type: ignore[arg-type]
    if (sampler.solver, sampler.steps) == (PLAIN.solver, PLAIN.steps):
        sampler = replace(sampler, solver=row.sizes.solver, steps=row.sizes.steps)
    return replace(base, images=base.images or row.length(count), train=train), sampler


def _train(train: TrainOptions, sizes: Sizes) -> TrainOptions:
    batch = _instead(train.batch, PLAIN.batch, sizes.batch)
    if batch == train.batch and sizes == PLAIN:
        return train
    return replace(train, batch=batch, warmup=_instead(train.warmup, TrainOptions().warmup, WARM * batch))


def said(options: ImproveOptions) -> str:
    """The sizes of a job in words."""
    train, search, evaluation = options.base.train, options.search, options.evaluation
    budgets = ", ".join(f"{budget:,}" for budget in options.auxiliary.budgets)
    rate = f", learning rate {train.learning_rate:g}" if options.model is None else ""
    return (
        f"batch {train.batch}{rate}, warm-up {train.warmup:,} images; {options.auxiliary.samples:,} own samples, "
        f"budgets {budgets}; searched with {'/'.join(map(str, search.rungs))} samples; judged on {evaluation.draws} x "
        f"{evaluation.samples:,}"
    )


def sized_for_text(options: ImproveOptions) -> ImproveOptions:
    """The sizes that suit such a model, whose samples are dear, wherever they were left at their defaults."""
    if not options.is_text:
        return options
    plain = AuxiliarySettings()
    auxiliary = options.auxiliary
    auxiliary = replace(
        auxiliary,
        samples=_instead(auxiliary.samples, plain.samples, 2_000),
        budgets=_instead(auxiliary.budgets, plain.budgets, PROMPTED_BUDGETS),
        train=_instead(auxiliary.train, plain.train, PROMPTED),
    )
    search = _instead(options.search, SearchOptions(), SearchOptions(rungs=(100, 200, 400), limit=4_000))
    guidance = options.guidance
    guidance = replace(guidance, pilot=_instead(guidance.pilot, type(guidance)().pilot, 32))
    evaluation = options.evaluation
    usual = EvaluationOptions()
    if (evaluation.samples, evaluation.draws) == (usual.samples, usual.draws):
        evaluation = replace(evaluation, samples=1_000, draws=3)
    usable = tuple(name for name in options.methods if METHODS[name].of_text)
    return replace(
        options,
        methods=_instead(options.methods, default_methods(), usable),
        auxiliary=auxiliary,
        search=search,
        guidance=guidance,
        evaluation=evaluation,
        batch_size=_instead(options.batch_size, 500, 8),
    )


def _instead(value: T, usual: Any, other: T) -> T:
    return other if value == usual else value
