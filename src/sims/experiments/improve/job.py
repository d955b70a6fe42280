"""The main job: a diffusion model improves itself, and the report says by how much.

base -> synthesize -> auxiliary at several budgets -> choose (budget, w) -> judge on fresh seeds -> distil -> report.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from sims.config import to_dict
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.experiments.cost.estimate import estimate
from sims.experiments.cost.fit import fitted
from sims.experiments.cost.memory import is_out_of_memory
from sims.experiments.data import open_judge, read_images, same_data
from sims.experiments.improve.outputs import write_outputs
from sims.experiments.improve.search import Found
from sims.experiments.improve.stages import Choice, Selection, Stages, figures
from sims.experiments.improve.summary import summarize
from sims.experiments.improve.trusted import read_trusted
from sims.experiments.latents import decoder_of, latent_space, to_latents, with_given_vae
from sims.experiments.options import ImproveOptions
from sims.files import read_json
from sims.guidance import Guide
from sims.interop.diffusers import is_diffusers, load_diffusers
from sims.interop.latents import Autoencoder
from sims.interop.nvidia import import_model
from sims.methods import METHODS, Base
from sims.metrics.extractors import extract
from sims.model import Model, load
from sims.processes import agree, join
from sims.report import closing_table, write_report
from sims.runs.directory import Run
from sims.sampling import SamplerOptions
from sims.scoring.judge import Draw, Judge, load_judge
from sims.seeds import derive_seed

RESULTS = ("improved", "distilled", "neon")  # model directories that a run leaves, where it ran the method


def improve(options: ImproveOptions, *, quiet: bool = False) -> dict[str, Any]:
    """Run or continue the main job in ``options.run``; returns the summary that ``summary.json`` holds.

    With ``options.dry_run`` nothing is run or written: what the job would cost is printed, and returned.

    Errors: UserError for bad options or data, or a run directory of another configuration or in use.
    """
    if options.dry_run:
        return _dry_run(options, quiet)
    config = to_dict(options)
    free = ("run", "dry_run", "fit_memory")  # of no consequence for what a run computes
    run = Run(options.run, {key: value for key, value in config.items() if key not in free}, quiet=quiet)
    try:
        if (run.path / "summary.json").is_file():
            run.log(f"{run.path} is finished; delete it, or choose another --run, to start anew")
            summary = read_json(run.path / "summary.json")
        else:
            summary = _improve(run, options)
        if run.is_main:
            if not (run.path / "report.html").is_file():
                write_report(run.path)
            run.console.print(closing_table(summary))
            run.console.print(summary["headline"], highlight=False)
            made = [str(run.path / name) for name in RESULTS if (run.path / name / "model.json").is_file()]
            run.console.print(f"report: {run.path / 'report.html'}   models: {', '.join(made)}", highlight=False)
        return summary
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            f"memory did not suffice ({str(error).splitlines()[0]}); nothing is lost: run the same command again with "
            "--fit-memory, which samples fewer at once and splits training batches"
        ) from None
    finally:
        run.close()


def _dry_run(options: ImproveOptions, quiet: bool) -> dict[str, Any]:
    accelerator = join()
    model = given_model(options, accelerator.device)
    return estimate(options, model, accelerator.device, accelerator.num_processes).told(quiet)


def _improve(run: Run, options: ImproveOptions) -> dict[str, Any]:
    _check_parts(options, run.num_processes)
    model = given_model(options, run.device)
    options = fitted(run, options, model)
    space = latent_space(options, model)
    real, test, pictures = _data(run, options, model, space)
    trusted = None
    if options.trusted is not None and real is not None:
        trusted = read_trusted(str(options.trusted), pictures[0] if pictures else real, options.data.source)
    if model is not None and real is not None and model.codec.kind == real.codec.kind == "pixels":
        model = replace(model, codec=real.codec)  # its samples are rounded to the values that the data can have
    conditional = options.data.conditional if model is None else model.num_classes > 0
    stages = Stages(run, options, real if real is None or conditional else real.without_labels())
    with stages.timed("references"):
        stages.judge = _judge(run, options, (real, test), pictures, decoder_of(space, run))
        if trusted is not None:
            assert stages.judge is not None
            stages.trusted = extract(stages.judge.extractor, trusted.all()[0].to(run.device))
    with stages.timed("train base"):
        base = stages.base(model)
    rounds: list[dict[str, Any]] = []
    first: dict[str, Any] = {}
    for round_ in range(options.rounds):
        methods = options.methods if round_ == 0 else ("base", "sims", "distilled")
        result = _round(stages, base, methods, round_, options)
        first = first or result
        verdict = agree(_accept(result["before"], result["after"], result["noise"], first=round_ == 0))
        rounds.append({"round": round_ + 1, "rows": result["rows"], **verdict})
        run.log(f"round {round_ + 1}: {verdict['reason']}")
        accepted = all(entry["accepted"] for entry in rounds)
        if accepted or round_ == 0:
            _save_improved(run, result)
        if not accepted and not options.keep_going:
            break
        if round_ + 1 < options.rounds:
            base = _next_base(result, options, round_)
    summary = summarize(run, options, stages, first, rounds, real, test)
    if run.is_main:
        write_outputs(stages, first, summary)
    run.barrier()
    return summary


def _check_parts(options: ImproveOptions, num_processes: int) -> None:
    """UserError where a batch cannot be split over the processes: now, not after hours."""
    if options.model is None or "continued" in options.methods:
        options.base.train.check_parts(num_processes)
    options.auxiliary.train.check_parts(num_processes)
    if "distilled" in options.methods:
        options.distilled.train.check_parts(num_processes)


def given_model(options: ImproveOptions, device: Any) -> Model | None:
    """The model to improve, where one is given, with the sampler asked for; its own where that is the default."""
    if options.model is None:
        return None
    if options.model.is_file() and options.model.suffix == ".pkl":
        model = import_model(options.model).to(device)
    else:
        foreign = not (options.model / "model.json").is_file() and is_diffusers(options.model)
        model = load_diffusers(options.model).to(device) if foreign else load(options.model, device)
    if isinstance(model.denoiser, Guide):
        raise UserError(
            f"{options.model} is a guided model, and only a single network can be improved: "
            "give the folder 'distilled' of its run"
        )
    model = with_given_vae(model, options.vae)
    return model if options.sampler == SamplerOptions() else replace(model, sampler=options.sampler)


Pair = tuple[Dataset, Dataset]


def _data(
    run: Run, options: ImproveOptions, model: Model | None, space: Codec | None
) -> tuple[Dataset | None, Dataset | None, Pair | None]:
    """Training and held-out data in the space of the model; and the pictures that were encoded, if any were."""
    data = options.data
    if data.path == "none":
        return None, None, None
    train, test = read_images(run, data, options.seed)
    pictures = None
    if space is not None:
        pictures = (train, test) if train.codec.kind == "pixels" else None
        train, test = (to_latents(run, options, space, part) for part in (train, test))
    if model is not None and model.data_shape != train.data_shape:
        raise UserError(
            f"the model {options.model} makes data of shape {model.data_shape}, {data.path} has {train.data_shape}: "
            "give the data it was trained on (--data.source.size and --data.source.grayscale change pictures)"
        )
    if model is not None and model.num_classes and model.num_classes != train.num_classes:
        raise UserError(
            f"the model {options.model} has {model.num_classes} classes, but {data.path} has {train.num_classes}: "
            "give the labelled data it was trained on"
        )
    same_data(run, {"train": train.fingerprint, "test": test.fingerprint}, data.path)
    return train, test, pictures


def _judge(
    run: Run,
    options: ImproveOptions,
    real: tuple[Dataset | None, Dataset | None],
    pictures: Pair | None,
    decoder: Autoencoder | None,
) -> Judge | None:
    if options.reference is not None:
        return load_judge(options.reference, *real, options.evaluation, run.device, decoder)
    return None if real[0] is None else open_judge(run, real[0], real[1], options.evaluation, pictures, decoder)


def _round(
    stages: Stages, base: Base, methods: tuple[str, ...], round_: int, options: ImproveOptions
) -> dict[str, Any]:
    """All methods of one round, chosen and judged."""
    choices: list[Choice] = []
    searches: dict[str, Found] = {}
    sims: Choice | None = None
    order = sorted(methods, key=lambda name: name != "sims")  # the controls follow from what sims chose
    for name in order:
        if reason := _impossible(name, base, stages):
            stages.run.log(f"{name} is left out: {reason}")
            continue
        choice, found = stages.choose(name, base, round_, sims)
        choices.append(choice)
        if found is not None:
            searches[name] = found
            by = ""
            if found.trusted is not None:
                by = f", by {found.trusted['size']:,} trusted images; by the training data {found.trusted['by_data']:g}"
            stages.run.log(
                f"{name}: budget {found.budget:,} images, w = {found.w:g} ({found.samples:,} samples searched){by}"
            )
        if name == "sims":
            sims = choice
    choices.sort(key=lambda choice: methods.index(choice.method))
    cheapest: list[dict[str, Any]] = []
    improved = "sims"
    before = after = None
    if sims is not None and "sims" in searches:
        start = Choice("base", "base", base.model, 0.0, None)
        with stages.timed("cheapest sampler"):
            before = stages.selection(start, round_)
            distilled = next((choice for choice in choices if choice.method == "distilled"), sims)
            after = stages.selection(distilled, round_)
            full_fd = searches["sims"].fd
            quick = stages.cheapest(sims, before.fd, full_fd, round_) if round_ == 0 else None
            if cached := stages.cached(sims, round_):
                choices.insert(choices.index(sims) + 1, cached)
                if before.fd - stages.selection(cached, round_).fd >= 0.95 * (before.fd - full_fd):
                    improved = cached.label
        if quick is not None:
            choices.insert(choices.index(cached or sims) + 1, quick[0])
            cheapest = quick[1]
    result: dict[str, Any] = {"choices": choices, "searches": searches, "cheapest": cheapest, "base": base}
    noise = stages.noise(before, after) if before is not None and after is not None else 0.0
    result |= {"before": before, "after": after, "noise": noise, "improved": improved, "draws": {}}
    result["rows"] = [_row(stages, choice, round_, options, result["draws"]) for choice in choices]
    return result


def _impossible(name: str, base: Base, stages: Stages) -> str | None:
    if METHODS[name].needs_real and stages.real is None:
        return "it needs the real training data"
    if name == "autoguidance" and not base.snapshots:
        return "it needs earlier snapshots of the base's training, and a given model has none"
    return None


def _row(
    stages: Stages, choice: Choice, round_: int, options: ImproveOptions, kept: dict[str, list[Draw]]
) -> dict[str, Any]:
    """One line of the table."""
    row: dict[str, Any] = {
        "method": choice.method,
        "label": choice.label,
        "w": choice.w,
        "budget": choice.budget,
        "nfe": choice.nfe,
        "extra_training_images": choice.extra_images + choice.extra_evaluations // 3,
        "note": choice.note,
    }
    empty = {"mean": None, "low": None, "high": None}
    if stages.judge is None:
        return {**row, "fd": empty, "fd_held_out": empty, "draws": 0, "samples_per_draw": 0, "per_class": []}
    with stages.timed(f"evaluate {choice.label}"):
        draws = stages.draws(choice, round_)
    kept[choice.label] = draws
    evaluation = options.evaluation
    return {
        **row,
        "fd_held_out": empty,
        **figures(draws),
        "draws": evaluation.draws,
        "samples_per_draw": evaluation.samples,
        "seconds_per_1000": round(1000 * float(np.median([draw.seconds for draw in draws])) / evaluation.samples, 3),
        "per_class": stages.judge.per_class(draws, choice.model.class_names or _names(stages.judge)),
    }


def _names(judge: Judge) -> tuple[str, ...]:
    count = getattr(judge.extractor, "num_classes", 0)
    return tuple(str(index) for index in range(count))


def _accept(before: Selection | None, after: Selection | None, noise: float, first: bool) -> dict[str, Any]:
    """Whether a round made the model better, on the selection seeds; the rule that stops before one makes it worse.

    A round counts if the Fréchet distance to the training data falls by more than ``noise``, half the 95 % interval of
    the difference. From the second round on, it must not fall below what a perfect model would score (from there on it
    measures memorization, not quality), and the distance to held-out data, where there are any, must not rise.
    """
    if before is None or after is None:
        return {"accepted": True, "reason": "accepted without verification: there is nothing to judge it by"}
    change = f"FD to train {before.fd:.2f} -> {after.fd:.2f} on the selection seeds"
    if after.fd + noise >= before.fd:
        return {"accepted": False, "reason": f"stopped: {change} is no improvement beyond the noise of {noise:.2f}"}
    if not first and after.fd < after.perfect:
        return {"accepted": False, "reason": f"stopped: {change}, below the {after.perfect:.2f} of a perfect model"}
    old, new = before.fd_held_out, after.fd_held_out
    if not first and old is not None and new is not None and new > old:
        text = f"stopped: FD to held-out data rises, {old:.2f} -> {new:.2f} on the selection seeds"
        return {"accepted": False, "reason": text}
    return {"accepted": True, "reason": f"accepted: {change}"}


def _next_base(result: dict[str, Any], options: ImproveOptions, round_: int) -> Base:
    model = next(choice.model for choice in result["choices"] if choice.method == "distilled")
    seed = derive_seed("base", options.seed, round_ + 1)
    return Base(model, model.hash, seed=seed, train=options.base.train)


def _save_improved(run: Run, result: dict[str, Any]) -> None:
    """``improved``: SIMS, cached if the cache keeps the gain on the selection seeds; ``distilled``: one network.

    ``neon``: one network too; it runs in the first round only.
    """
    if not run.is_main:
        return
    choices = {choice.label: choice for choice in result["choices"]}
    if "sims" in choices:
        label = result["improved"]
        choices[label].model.with_denoiser(choices[label].model.denoiser, method=label).save(run.path / "improved")
    for name in ("distilled", "neon"):
        if name in choices:
            choices[name].model.with_denoiser(choices[name].model.denoiser, method=name).save(run.path / name)
