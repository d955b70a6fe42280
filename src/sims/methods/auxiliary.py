"""The auxiliary network of SIMS: a network trained on the base's own samples (or, as a control, on real data)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from sims.config import JSON, to_dict
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, as_denoiser
from sims.errors import UserError
from sims.guidance.guide import innermost
from sims.methods.contract import Artefact, Base
from sims.methods.settings import AuxiliarySettings, Expected, Settings
from sims.methods.unguided import BASE
from sims.model import Model, load, reinitialized
from sims.results.common import Cost
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.synthesize import synthesize
from sims.runs.work import Leaves, Training, Work, training_work
from sims.sampling import SamplerOptions, nfe
from sims.seeds import derive_seed, seed_range
from sims.training.trainer import Trainer, read_trained

Prepare = Callable[[Base, Dataset | None, Settings, Run], Artefact]
Count = Callable[[Expected], Work]

TRAINED_HERE = as_denoiser(lambda x, sigma: x, (1,))  # has the noise levels of a base that is to be trained


def own_sampler(denoiser: Denoiser, sampler: SamplerOptions, options: AuxiliarySettings) -> SamplerOptions:
    """How the base draws its own samples. UserError for a level to stop at that it never comes to."""
    if options.synthesis == "full":
        return sampler
    high, *others = sampler.sigmas(denoiser)[:-1].tolist()
    if not others:
        raise UserError(
            "samples that take a single step cannot end early: draw them in full (auxiliary.synthesis), and leave out "
            "methods that truncate"
        )
    low = others[-1]
    if not low <= options.stop < high:
        raise UserError(
            f"auxiliary.stop is {options.stop:g}, and samples go from noise level {high:g} to {low:g}: "
            "choose one in between, such as their geometric mean, " + f"{math.sqrt(high * low):.2g}"
        )
    return sampler.stopped(denoiser, options.stop)


def samples_folder(base: Base, settings: Settings, run: Run) -> tuple[Path, range]:
    """Where the base's own samples lie, and their seeds."""
    seeds = seed_range("synthesis", settings.seed, settings.auxiliary.samples, settings.round)
    sampler = to_dict(own_sampler(base.model, base.model.sampler, settings.auxiliary))
    return run.artefact("synthetic", base.key, sampler, [seeds.start, seeds.stop], settings.batch_size), seeds


def own_samples(base: Base, settings: Settings, run: Run) -> Dataset:
    """The base's own samples, drawn once for all methods."""
    folder, seeds = samples_folder(base, settings, run)
    sampler = own_sampler(base.model, base.model.sampler, settings.auxiliary)
    with run.progress("synthesize", len(seeds)) as advance:
        return synthesize(
            base.model, folder, seeds, method=BASE.name, sampler=sampler, batch_size=settings.batch_size,
            accelerator=run.accelerator, advance=advance,
        )  # fmt: skip


def samples_cost(base: Base, settings: Settings) -> Cost:
    """What drawing the own samples costs."""
    sampler = own_sampler(base.model, base.model.sampler, settings.auxiliary)
    return Cost(evaluations=settings.auxiliary.samples * nfe(base.model, sampler))


def prepare_auxiliary(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    """Trained on the base's own samples: step 3 of SIMS (Alemohammad et al. 2024), shared with Neon."""
    folder, _ = samples_folder(base, settings, run)
    trained = train_auxiliary(base, lambda: own_samples(base, settings, run), folder.name, settings, run)
    return replace(trained, cost=trained.cost + samples_cost(base, settings))


def auxiliary_work(expected: Expected) -> Work:
    """What ``prepare_auxiliary`` counts."""
    return _and_own_samples(_training_work(expected, "auxiliary"), expected)


def with_samples(trained: Work, expected: Expected) -> Work:
    """What a training on own samples counts; where the leading method goes before, it has drawn them."""
    return trained if expected.leader.total else _and_own_samples(trained, expected)


def _and_own_samples(trained: Work, expected: Expected) -> Work:
    known, each = expected.sampling, expected.nfe
    if known is not None:
        each = nfe(known.denoiser, own_sampler(known.denoiser, known.options, expected.settings.auxiliary))
    return _and_samples(trained, expected, each, "own samples, before compression")


def guided_work(expected: Expected) -> Work:
    """What an auxiliary counts that is trained on guided samples."""
    trained = _training_work(expected, "auxiliary")
    return _and_samples(trained, expected, expected.guided, "guided samples, before compression")


def _and_samples(trained: Work, expected: Expected, each: int, kind: str) -> Work:
    count = expected.settings.auxiliary.samples
    leaves = (Leaves(kind, samples=count), *trained.leaves)
    return replace(trained, evaluations=trained.evaluations + count * each, samples=count, leaves=leaves)


def altered(change: Callable[[AuxiliarySettings], AuxiliarySettings]) -> tuple[Prepare, Count]:
    """``prepare_auxiliary`` and what it counts, with other settings of the auxiliary."""

    def settled(settings: Settings) -> Settings:
        return replace(settings, auxiliary=change(settings.auxiliary))

    def prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
        return prepare_auxiliary(base, real, settled(settings), run)

    def work(expected: Expected) -> Work:
        return auxiliary_work(replace(expected, settings=settled(expected.settings)))

    return prepare, work


def prepare_placebo(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    """The same training on real data, at the same rate: what guidance away from *any* fine-tune would do."""
    assert real is not None
    return train_auxiliary(base, lambda: real, real.fingerprint, settings, run, "placebo")


def placebo_work(expected: Expected) -> Work:
    """What ``prepare_placebo`` counts."""
    return _training_work(expected, "placebo")


def _training_work(expected: Expected, leaves: str) -> Work:
    options = expected.settings.auxiliary
    training, budgets = Training("auxiliary", options.train), {*options.budgets}
    images = max(budgets) + expected.probe(options.train)
    return training_work("", training, images, leaves=leaves, snapshots=len(budgets))


def train_auxiliary(
    base: Base, data: Callable[[], Dataset], data_key: str, settings: Settings, run: Run, name: str = "auxiliary"
) -> Artefact:
    """Trained on any data, for which ``data_key`` stands, at the learning rate that suits the base's own samples."""
    options = settings.auxiliary
    seed = derive_seed("auxiliary", settings.seed, settings.round)
    budgets = sorted(options.budgets)
    start, more = _start(base, options, seed)
    own = samples_folder(base, settings, run)[0].name
    rated = with_rate(start, lambda: own_samples(base, settings, run), own, options.train, seed, run)
    folder = run.artefact(name, base.key, data_key, options.init, to_dict(rated.options), budgets, seed, *more)
    trained = read_trained(folder)
    if trained is None:
        trainer = Trainer(
            start, data(), rated.options, folder,
            images=budgets[-1], seed=seed, snapshots=tuple(budgets), accelerator=run.accelerator,
        )  # fmt: skip
        with run.progress(f"train the {name}", budgets[-1]) as advance:
            trained = trainer.run(advance, run.log)
    return Artefact(folder.name, trained.snapshots, Cost(budgets[-1] + rated.images), rated.said)


def trainable(model: Model, options: AuxiliarySettings, seed: int) -> Model:
    """What is trained of a model: the single network inside; of a pipeline's, whose weights stay, a new LoRA on it."""
    single = innermost(model.denoiser)
    if (adapted := getattr(single, "adapted", None)) is not None:
        single = adapted(options.lora, seed)
    return model.with_denoiser(single)


def _start(base: Base, options: AuxiliarySettings, seed: int) -> tuple[Model, list[JSON]]:
    """What training begins with, a single network, and what its name must tell besides: the LoRA, where it is one."""
    single = trainable(base.model, options, seed)
    if single.denoiser is not innermost(base.model.denoiser):
        return single, [to_dict(options.lora)]
    if options.init == "base":
        return single, []
    if options.init == "scratch":
        return reinitialized(single, seed), []
    if not base.snapshots:
        raise UserError("auxiliary.init = 'snapshot' needs earlier snapshots of the base: a given model has none")
    return load(base.snapshots[min(base.snapshots)]), []
