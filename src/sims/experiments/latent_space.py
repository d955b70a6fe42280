"""A latent model in an experiment: pictures become latents once, and latents become pixels where they are looked at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from sims.data.codec import Codec
from sims.data.dataset import Dataset
from sims.data.sources import load
from sims.errors import UserError
from sims.experiments.options import ImproveOptions
from sims.interop.latents import Autoencoder, has_vae, latent_codec, latent_shape, open_vae, with_vae
from sims.model import Model
from sims.runs.directory import Run

_PIXELS_ONLY = ("inception", "dinov2", "clip", "efficientnet-lite0")


def with_given_vae(model: Model, folder: Path | None) -> Model:
    """The model with the autoencoder that is to decode it; its own where none is given."""
    return model if folder is None else replace(model, codec=with_vae(model.codec, folder, model.data_shape))


def latent_space(options: ImproveOptions, model: Model | None, at_hand: bool) -> Codec | None:
    """The codec of the latents that a model is given or trained in; None for pixels. Data may be ``at_hand``.

    UserError, before anything is computed, where the data or the features asked for do not go with it.
    """
    given = model.codec if model is not None else latent_codec(options.vae) if options.vae is not None else None
    if given is None or given.kind != "latents":
        return None
    what = str(options.model or options.vae)
    if options.evaluation.extractor.partition(":")[0] in _PIXELS_ONLY and not has_vae(given):
        raise UserError(
            f"{options.evaluation.extractor} looks at pixels, and {what} makes latents: give the folder of the "
            "autoencoder that decodes them with option 'vae', or take evaluation.extractor pca"
        )
    if at_hand:
        _check_data(options, given, model, what)
    return given


def _check_data(options: ImproveOptions, codec: Codec, model: Model | None, what: str) -> None:
    """UserError where the first sample of the data does not fit."""
    path = options.data.path
    first = load(path, options=options.data.source, limit=1)
    if first.codec.kind != "pixels":
        ours, theirs = codec.latents, first.codec.latents
        if model and ours and theirs and (ours.shift, ours.scale) != (theirs.shift, theirs.scale):
            raise UserError(
                f"the latents in {path} are scaled otherwise ({theirs.shift}, {theirs.scale}) than those of {what} "
                f"({ours.shift}, {ours.scale}): give the pictures, and they are encoded"
            )
        return
    if not has_vae(codec):
        raise UserError(
            f"{what} makes latents, and {path} holds pictures: give the folder of the autoencoder with option 'vae'"
        )
    shape = latent_shape(codec, first.data_shape)
    if model is not None and shape != model.data_shape:
        raise UserError(
            f"pictures of shape {first.data_shape} in {path} become latents of shape {shape}, and {what} makes "
            f"{model.data_shape}: give pictures of the size it was trained on (data.source.size changes it)"
        )


def decoder_of(codec: Codec | None, run: Run) -> Autoencoder | None:
    """The autoencoder that makes pixels of latents; None for pixels, and where none is at hand."""
    return open_vae(codec, run.device) if codec is not None and has_vae(codec) else None


def to_latents(run: Run, options: ImproveOptions, codec: Codec, pictures: Dataset) -> Dataset:
    """The data in the space of the model: pictures are encoded once and kept in the cache, latents stay as they are."""
    if pictures.codec.kind != "pixels":
        fits = options.model is None and options.vae is not None
        return replace(pictures, codec=with_vae(pictures.codec, options.vae, pictures.data_shape)) if fits else pictures  # type: ignore[arg-type]
    folder = options.data.source.folder / "latents"
    return open_vae(codec, run.device).dataset(pictures, codec, folder, run.log)
