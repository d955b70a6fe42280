"""Sizes of a job that suit its data and machine, or a text-to-image model, where they were left at their defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from sims.config import JSON, is_open, override, plain, suited
from sims.experiments.options import BaseOptions, CommonOptions, ImproveOptions
from sims.methods import METHODS, default_methods
from sims.networks.usual import PLAIN, Sizes, usual
from sims.runs.directory import Run
from sims.sampling import SamplerOptions
from sims.training.options import TrainOptions

C = TypeVar("C", bound=CommonOptions)
WARM = 100  # batches
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
    images, evaluation, search = base.length(data_shape, latent), options.evaluation, options.search
    auxiliary = options.auxiliary.settled(images, sizes.budgets)
    distilled = options.distilled.settled(images, sizes.distilled)
    return replace(
        options,
        network=options.network.settled(data_shape, latent),
        base=base,
        sampler=sampler,
        auxiliary=replace(
            auxiliary,
            samples=suited(auxiliary.samples, sizes.own),
            train=_train(auxiliary.train, sizes),
        ),
        distilled=replace(distilled, train=_train(distilled.train, sizes)),
        evaluation=replace(
            evaluation,
            samples=suited(evaluation.samples, sizes.judged),
            draws=suited(evaluation.draws, sizes.draws),
        ),
        search=replace(search, rungs=suited(search.rungs, sizes.rungs), limit=suited(search.limit, sizes.limit)),
        batch_size=suited(options.batch_size, sizes.at_once),
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
    train, rate = _train(base.train, row.sizes), dict[str, Any]()
    if train.lr is None and train.decay == "constant":
        rate = {"lr": row.sizes.lr}
        if row.sizes.decay_batches is not None:
            rate |= {"decay": "sqrt", "decay_batches": row.sizes.decay_batches}
    if is_open(sampler.solver) and is_open(sampler.steps):  # steps are of a solver
        sampler = replace(sampler, solver=row.sizes.solver, steps=row.sizes.steps)
    return replace(base, images=base.images or row.length(count), train=replace(train, **rate)), sampler


def sized_base(options: C, data_shape: Sequence[int], latent: bool, count: int | None) -> C:
    """The options of any experiment that trains a base on such data: how that is trained, and sampled."""
    base, sampler = sized_training(options.base, options.sampler, data_shape, latent, count, options.network.type)
    return replace(options, base=base, sampler=sampler)


def _train(train: TrainOptions, sizes: Sizes) -> TrainOptions:
    if sizes.batch == PLAIN.batch:
        return train
    batch = suited(train.batch, sizes.batch)
    return replace(train, batch=batch, warmup=suited(train.warmup, WARM * batch))


def said(options: ImproveOptions) -> str:
    """The sizes of a job in words."""
    train = options.base.train if options.model is None else options.auxiliary.train
    search, evaluation = options.search, options.evaluation
    budgets = ", ".join(f"{budget:,}" for budget in options.auxiliary.budgets)
    rate = f", learning rate {train.learning_rate:g}" if options.model is None else ""
    judged = (
        f"; searched with {'/'.join(map(str, search.rungs))} samples; judged on {evaluation.draws} x "
        f"{evaluation.samples:,}"
    )
    return (
        f"batch {train.batch}{rate}, warm-up {train.warmup:,} images; {options.auxiliary.samples:,} own samples, "
        f"budgets {budgets}{judged if options.is_judged else ''}"
    )


def sized_for_text(options: ImproveOptions) -> ImproveOptions:
    """The sizes that suit such a model, whose samples are dear, wherever they were left at their defaults."""
    if not options.is_text:
        return options
    auxiliary, evaluation, search, train = (
        options.auxiliary,
        options.evaluation,
        options.search,
        options.auxiliary.train,
    )
    usable = tuple(name for name in options.methods if METHODS[name].of_text)
    return replace(
        options,
        methods=usable if options.methods == default_methods() else options.methods,
        auxiliary=replace(
            auxiliary,
            samples=suited(auxiliary.samples, 2_000),
            budgets=auxiliary.budgets or PROMPTED_BUDGETS,
            train=replace(train, batch=suited(train.batch, 16), warmup=suited(train.warmup, 800)),
        ),
        search=replace(search, rungs=suited(search.rungs, (100, 200, 400)), limit=suited(search.limit, 4_000)),
        guidance=replace(options.guidance, pilot=suited(options.guidance.pilot, 32)),
        evaluation=replace(evaluation, samples=suited(evaluation.samples, 1_000), draws=suited(evaluation.draws, 3)),
        batch_size=suited(options.batch_size, 8),
    )
