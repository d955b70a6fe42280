"""What can be scored or compared with: samples in any form, a model, or statistics made earlier."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from sims.config import to_dict
from sims.data import hub, sources, stream
from sims.data.codec import UINT8
from sims.data.dataset import Dataset, at_once
from sims.data.pictures import SourceOptions
from sims.data.readers import Pictures
from sims.data.store import is_store
from sims.data.stream import Stream
from sims.denoiser import device_of
from sims.errors import UserError
from sims.files import digest
from sims.interop.hub_models import PREFIX, HubName
from sims.interop.latents import Autoencoder, has_vae, open_vae, with_vae
from sims.interop.opening import load
from sims.interop.text_export import is_on_pipeline
from sims.model import Model
from sims.scoring.options import ScoreOptions
from sims.scoring.statistics import Statistics, is_statistics, read_statistics
from sims.seeds import seed_range

Given = Model | Dataset | str | Path


def open_subject(
    given: Given, how: ScoreOptions, device: torch.device | str = "cpu", extractor: str = "auto"
) -> list[Stream] | Statistics:
    """The independent draws of what is to be scored; UserError for whatever cannot be.

    A model makes ``draws`` (5 unless stated) draws of ``samples`` on the evaluation seeds. A set of samples is one
    draw, or as many of ``samples`` each as stated: consecutive where they have seeds, else drawn at random.
    """
    if isinstance(given, Model):
        return _draws_of_model(given.to(device), "model", how)
    if isinstance(given, Dataset):
        return _draws_of_dataset(given, how)
    path = Path(given)
    if _is_of_hub(str(given), how):
        return _draws_of_model(load(path, device, download=how.download), str(given), how)
    if (path / "model.json").is_file():
        return _draws_of_model(load(path, device), str(given), how)
    refuse_run(path)
    if is_statistics(path):
        return read_statistics(path, extractor)
    found = _pictures(given, how)
    if found is None:
        return _draws_of_dataset(sources.load(given, options=how.source), how, how.source)
    by_chance = in_order_of_chance(stream.seeds_in_names(found), found.labels)
    chosen = _chosen(len(found.names), how, found.name, by_chance)
    return [stream.of_pictures(_some(found, part), how.source) for part in chosen]


def refuse_run(path: Path) -> None:
    """UserError for a run directory, whose models are meant."""
    if (path / "config.json").is_file() and not (path / "model.json").is_file():
        models = sorted(str(found.parent) for found in path.glob("*/model.json"))
        hint = f"give one of its models: {', '.join(models)}" if models else "it has no finished model yet"
        raise UserError(f"{path} is a run directory: {hint}")


def _is_of_hub(given: str, how: ScoreOptions) -> bool:
    """Whether ``hf:owner/name`` is a model: so it is unless a data set of this name is here, or may be fetched."""
    asked = HubName.parse(given) if given.startswith(PREFIX) else None
    if asked is None or how.source.download or hub.is_here(given, how.source):
        return False
    if not how.download and asked.copy() is None:
        raise UserError(
            f"{given} is neither a model nor a data set on this machine: give option 'download' to fetch a model of "
            "this name, or option 'source.download' to fetch a data set"
        )
    return True


def open_reference(given: str | Path | Dataset, how: ScoreOptions) -> tuple[Stream, Stream | None]:
    """All images of a reference (its train part, where it has parts), and its own held-out part where it has one."""
    if isinstance(given, Dataset):
        return stream.of_dataset(given), None
    if str(given) == "digits":
        return _pair(*sources.load_pair("digits", options=how.source), how.source)
    path = Path(given)
    if str(given) not in sources.BUILT_IN and not is_store(path):
        opened = sources.open_path(given, how.source)
        if opened is None or opened.held_out is not None:
            if opened is not None and isinstance(opened.train, Pictures) and isinstance(opened.held_out, Pictures):
                notes = tuple(opened.notes)
                train, test = (stream.of_pictures(part, how.source) for part in (opened.train, opened.held_out))
                train = replace(train, name=f"{train.name} (train)", notes=(*train.notes, *notes))
                return train, replace(test, name=f"{test.name} (test)")
            return _pair(*sources.load_pair(given, options=how.source), how.source)
    found = _pictures(given, how)
    if found is not None:
        return stream.of_pictures(found, how.source), None
    return stream.of_dataset(sources.load(given, options=how.source), how.source), None


def _pair(train: Dataset, test: Dataset, loaded: SourceOptions) -> tuple[Stream, Stream]:
    named = (replace(train, name=f"{train.name} (train)"), replace(test, name=f"{test.name} (test)"))
    return stream.of_dataset(named[0], loaded), stream.of_dataset(named[1], loaded)


def _pictures(given: str | Path, how: ScoreOptions) -> Pictures | None:
    """The encoded pictures at a path; None for what is read as arrays."""
    if str(given) in sources.BUILT_IN:
        return None
    path = sources.resolve(given, how.source)
    if is_store(path):
        return None
    if path.is_dir() and (found := _sampled_folder(path)):
        return found
    opened = sources.open_path(given, how.source)
    if opened is None or not isinstance(opened.train, Pictures) or opened.train.names[0].lower().endswith(".npy"):
        return None
    return replace(opened.train, notes=tuple(opened.notes))


def _sampled_folder(path: Path) -> Pictures | None:
    """The images of a folder that ``sims sample`` wrote, without the contact sheet beside them."""
    names = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    if "grid.png" not in names or not all(re.fullmatch(r"\d{6,}\.png", name) for name in names - {"grid.png"}):
        return None
    images = sorted(names - {"grid.png"})
    return Pictures("folder", path.name, images, lambda i: (path / images[i]).read_bytes()) if images else None


def in_order_of_chance(seeds: np.ndarray | None, labels: Sequence[int] | np.ndarray | None) -> bool:
    """Whether consecutive samples are as good as drawn at random: they have seeds and are not sorted by class."""
    if seeds is None or labels is None:
        return seeds is not None
    found = np.asarray(labels)
    return not (found[0] < found[-1] and (np.diff(found) >= 0).all())


def _chosen(count: int, how: ScoreOptions, name: str, by_chance: bool) -> list[np.ndarray]:
    """Which samples of a set make up each draw."""
    if how.limit is not None and how.limit < 2:
        raise UserError(f"limit is {how.limit}: at least 2 samples are needed, thousands are useful")
    if how.draws is None or how.draws == 1:
        every = np.arange(count)
        if how.limit is None or how.limit >= count:
            return [every]
        return [np.sort(np.random.default_rng(0).permutation(count)[: how.limit])]
    if how.limit is not None:
        raise UserError(
            f"limit is {how.limit} and draws {how.draws}: leave out one, option 'samples' says how many of {name} a "
            "draw has"
        )
    if how.draws * how.samples > count:
        raise UserError(
            f"{how.draws} draws of {how.samples:,} need {how.draws * how.samples:,} samples, and {name} has {count:,}: "
            "lower option 'draws' or option 'samples'"
        )
    # Folders often come class by class: consecutive parts of one would be draws of different classes.
    order = np.arange(count) if by_chance else np.random.default_rng(0).permutation(count)
    return [np.sort(order[draw * how.samples : (draw + 1) * how.samples]) for draw in range(how.draws)]


def _some(found: Pictures, chosen: Sequence[int] | np.ndarray) -> Pictures:
    if len(chosen) == len(found.names):
        return found
    names = [found.names[i] for i in chosen]
    labels = None if found.labels is None else found.labels[np.asarray(chosen)]
    return replace(found, names=names, read=lambda i: found.read(int(chosen[i])), labels=labels)


def _draws_of_dataset(data: Dataset, how: ScoreOptions, loaded: SourceOptions = stream.AS_THEY_ARE) -> list[Stream]:
    parts = _chosen(len(data), how, data.name, in_order_of_chance(data.columns.get("seed"), data.labels))
    chosen = [data if len(part) == len(data) else data.subset(part) for part in parts]
    pixels = how.vae is None or data.codec.kind == "pixels"
    codec = data.codec if pixels else with_vae(data.codec, how.vae, data.data_shape)  # type: ignore[arg-type]
    if has_vae(codec):
        return [decoded(stream.of_dataset(one, loaded), open_vae(codec)) for one in chosen]
    return [stream.of_dataset(one, loaded) for one in chosen]


def decoded(latents: Stream, decoder: Autoencoder) -> Stream:
    """The pixels of latents."""

    def read(part: range) -> stream.Part:
        found = latents.read(part)
        return replace(found, x=decoder.pixels(found.x))

    return replace(
        latents,
        data_shape=decoder.pixel_shape(latents.data_shape),
        dtype="uint8",
        digest=lambda part: digest(latents.digest(part), decoder.hash),
        read=read,
        at_once=at_once(decoder.pixel_shape(latents.data_shape)),
    )


def _draws_of_model(model: Model, name: str, how: ScoreOptions) -> list[Stream]:
    if how.vae is not None:
        model = replace(model, codec=with_vae(model.codec, how.vae, model.data_shape))
    if how.class_shares:
        model = replace(model, sampler=replace(model.sampler, class_shares=how.class_shares))
    decoder = open_vae(model.codec, device_of(model.denoiser)) if has_vae(model.codec) else None
    codec, shape = model.codec, tuple(model.data_shape)
    draws = 5 if how.draws is None else how.draws
    seeds = seed_range("evaluation", how.seed, draws * how.samples)
    key = digest(model.hash, to_dict(model.sampler), how.sample_batch, *([decoder.hash] if decoder else []))
    if decoder:
        codec, shape = UINT8, decoder.pixel_shape(shape)
    shown = decoder.pixels if decoder else None

    prompted = is_on_pipeline(model)

    def sample(part: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor | None]:
        x, labels = model.sample_labelled(part, batch_size=how.sample_batch)
        return x, None if prompted else labels  # prompts are no classes of a reference

    parts = [seeds[draw * how.samples : (draw + 1) * how.samples] for draw in range(draws)]
    return [
        stream.of_samples(name, sample, codec, part, shape, key, model.class_names, how.sample_batch, shown)
        for part in parts
    ]
