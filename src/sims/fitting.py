"""Training by functions with plain arguments: a model of one's own, and the auxiliary that SIMS needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor, nn

from sims.config import JSON, options_of, override, plain, to_dict
from sims.data import sources
from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.data.in_memory import ArrayLike
from sims.errors import UserError
from sims.experiments.data import read_data
from sims.experiments.job_sizes import sized_training
from sims.experiments.options import BaseOptions, DataOptions
from sims.model import Model, load
from sims.networks.options import NetworkOptions
from sims.processes import join
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.tracking import check_trackers
from sims.sampling import SamplerOptions
from sims.seeds import derive_seed
from sims.training.base import train_base
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer

Table = Mapping[str, object]


def train(
    out: str | Path,
    data: str | Path | DataOptions | Table = "digits",
    *,
    network: NetworkOptions | Table | None = None,
    base: BaseOptions | Table | None = None,
    sampler: SamplerOptions | Table | None = None,
    seed: int = 0,
    track: Sequence[str] = (),
    quiet: bool = False,
) -> Model:
    """Train a model, or continue doing so; it is also left in ``out/model``.

    The same data, options and seed give the base that ``improve`` trains. ``track`` names trackers that follow it:
    tensorboard, wandb or trackio. Errors: UserError for bad options or data,
    or a directory that another process uses or that was made with another configuration.

    >>> import sims
    >>> small, short = {"width": 16, "blocks": 1, "embedding": 16}, {"images": 256, "train": {"batch": 64}}
    >>> how = {"network": small, "base": short, "sampler": {"steps": 5}}
    >>> model = sims.train(FOLDER + "/base", "digits", quiet=True, **how)
    >>> model.sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
    """
    table = {"path": str(data)} if isinstance(data, str | Path) else data
    source = options_of(DataOptions, table, "data.")
    net, how = options_of(NetworkOptions, network, "network."), options_of(BaseOptions, base, "base.")
    sampling = options_of(SamplerOptions, sampler, "sampler.")
    parts = {"data": source, "network": net, "base": how, "sampler": sampling}
    check_trackers(track)
    config: dict[str, JSON] = {
        "command": "train",
        **{name: to_dict(part) for name, part in parts.items()},
        "seed": seed,
    }
    run = Run(out, config, quiet=quiet, track=track)
    target = Path(out) / "model"
    try:
        if (target / "model.json").is_file():
            run.log(f"{out} is finished; delete it, or choose another run directory, to start anew")
        else:
            _train(run, target, source, net, how, sampling, seed)
        if run.tracking is not None:
            run.tracking.earlier()
        run.barrier()
        return load(target, run.device)
    finally:
        run.close()


def _train(
    run: Run,
    target: Path,
    data: DataOptions,
    network: NetworkOptions,
    base: BaseOptions,
    sampler: SamplerOptions,
    seed: int,
) -> None:
    if data.path == "none":
        raise UserError("data.path is none: training needs data, such as digits or a folder of images")
    real, _ = read_data(data, seed)  # the held-out part stays unseen, so that the model can be judged by it
    latent = real.codec.latents is not None
    base, sampler = sized_training(base, sampler, real.data_shape, latent, len(real), network.type)
    images = base.length(real.data_shape, latent)
    with run.progress("train", images) as advance:
        trained = train_base(
            real if data.conditional else real.without_labels(),
            network,
            sampler,
            base.train,
            run.path / "training",
            images=images,
            seed=derive_seed("base", seed),
            snapshots=tuple(max(1, round(images * share)) for share in base.snapshots),
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
    lr: float | None = None,
    batch: int = 256,
    train: TrainOptions | Table | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    quiet: bool = False,
) -> Model:
    """A copy of a model trained further on ``samples`` for ``images`` images: the auxiliary of SIMS (its step 3).

    ``samples`` are a data set or the path of one, a tensor in model space as ``model.sample`` gives it, or an array in
    the data's own format as ``model.images`` does; both with ``labels`` (N,) where the model has classes. Returns the
    averaged weights. Without ``lr`` a probe finds one where the model was not trained here, or not at the usual rate.
    ``train`` are further options; ``folder`` keeps the training's state, to continue what was
    interrupted: without one it lies in a temporary folder. Errors: UserError for a model that is no single network,
    samples that do not fit it or are not finite, bad options, or a folder of another training.

    >>> import sims
    >>> model = sims.load(EXAMPLE)
    >>> x, labels = model.sample_labelled(range(64))
    >>> auxiliary = sims.fine_tune(model, x, labels=labels, images=128, batch=32, quiet=True)
    >>> model.guided(auxiliary, w=1.0).sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
    """
    if not isinstance(model.denoiser, nn.Module):
        raise UserError(f"a {type(model.denoiser).__name__} cannot be fine-tuned: give a model of a single network")
    data = _fitting(model, samples, labels)
    options = override(TrainOptions(lr=lr, batch=batch, ema_rampup=0.5), plain(train or {}), "train.")
    config: dict[str, JSON] = {"command": "fine_tune", "model": model.hash, "data": data.fingerprint, "images": images}
    config |= {"train": to_dict(options), "seed": seed}
    with ExitStack() as stack:
        if folder is None:
            if join().num_processes > 1:
                raise UserError("several processes need a folder that all of them see: give folder")
            folder = stack.enter_context(TemporaryDirectory())
        run = Run(folder, config, quiet=quiet)
        stack.callback(run.close)
        options = with_rate(model, lambda: data, data.fingerprint, options, seed, run).options
        trainer = Trainer(model, data, options, run.path / "training", images=images, seed=seed)
        with run.progress("fine-tune", images) as advance:
            trained = trainer.run(advance, run.log)
        return load(trained.last, run.device)


def _fitting(
    model: Model, samples: Dataset | ArrayLike | str | Path, labels: ArrayLike | Sequence[int] | None
) -> Dataset:
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
