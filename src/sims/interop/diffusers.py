"""Models of diffusers (UNet2DModel, DiTTransformer2DModel: without text) in and out.

    model = load_diffusers("ddpm-cifar10-32")                      # a folder on this machine
    save_diffusers(improved, "improved", like="ddpm-cifar10-32")
    DDPMPipeline.from_pretrained("improved")                       # one network: ordinary diffusers
    unet = load_guided("improved")                                 # a guided pair, in a sampling loop of diffusers

Weights are read from safetensors alone, and no code from a folder is run. The network inside stays the module of
diffusers, so that it can be trained, averaged, extrapolated and written like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from sims.config import JSON, fitted, read_as
from sims.data.codec import UINT8, Codec
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.files import write_json
from sims.guidance import RULES, Extrapolate, Guide
from sims.interop.diffusers_folder import (
    NOTES,
    Layout,
    Notes,
    aux_component,
    copy_rest,
    find_layout,
    fresh_folder,
)
from sims.interop.diffusers_guided import GuidedNetwork
from sims.interop.diffusers_network import ARCHITECTURES, DIT, UNET, DiffusersDenoiser, DiffusersNetwork, Timesteps
from sims.interop.diffusers_weights import pretrained
from sims.interop.latents import latent_codec
from sims.interop.text_pipelines import is_text_pipeline
from sims.model import Model
from sims.sampling import SamplerOptions

__all__ = [
    "DiffusersDenoiser",
    "DiffusersNetwork",
    "GuidedNetwork",
    "is_diffusers",
    "load_diffusers",
    "load_guided",
    "save_diffusers",
]

HIGHEST = 160.0  # where sampling starts by default if the levels go far beyond: the usual linear schedule ends at 157
HABITS = (11, 101, 201, 366, 1001)  # classes of usual data sets and one more, which often stands for "no class"
# Settings of a scheduler that only its own sampler obeys; kept in the provenance.
IGNORED = ("clip_sample", "clip_sample_range", "thresholding", "sample_max_value", "variance_type", "timestep_spacing")


def is_diffusers(folder: Path | str) -> bool:
    """Whether a folder looks like a model of diffusers; a run directory has a config.json too, without a class name."""
    folder = Path(folder)
    config = folder / "config.json"
    return (folder / "model_index.json").is_file() or (
        config.is_file() and "_class_name" in read_as(config, dict[str, JSON])
    )


def load_diffusers(folder: Path | str, *, timesteps: Timesteps | None = None, null_class: bool | None = None) -> Model:
    """Read a pipeline folder (model_index.json), or a folder of one network with scheduler_config.json in or beside it.

    ``timesteps`` as in ``DiffusersDenoiser``; ``null_class``: the last class of a UNet2DModel stands for "no class"
    (a DiT always has one). The codec of a latent model names the autoencoder of its folder (``open_vae`` makes pixels).
    A guided pair that ``save_diffusers`` wrote is read as one. UserError for text-conditional models, weights that are
    not safetensors, and missing parts.
    """
    if is_text_pipeline(Path(folder)):
        raise UserError(
            f"{folder} draws pictures of texts: give it to `sims improve` as option 'model', with prompts or captioned "
            "pictures; what that leaves is opened like any model"
        )
    layout = find_layout(Path(folder))
    notes, scheduler = layout.notes, read_as(layout.scheduler, dict[str, JSON])
    null_class = notes.null_class if null_class is None else null_class
    sigma_data = notes.sigma_data if notes.sigma_data is not None else 0.5 if layout.vae is None else 1.0

    remarks: dict[str, JSON] = {}

    def denoiser(place: Path) -> DiffusersDenoiser:
        network, prefix = _network(place, null_class)
        if prefix:
            remarks["weights"] = f"their names are read without {prefix!a}, which all begin with"
        steps = timesteps or notes.timesteps
        made = DiffusersDenoiser(network, network.data_shape, network.num_classes, scheduler, steps, sigma_data)
        return made.eval().requires_grad_(False)

    single = denoiser(layout.network)
    whole: Denoiser = single
    if notes.kind in RULES:
        whole = _guided({"base": single, "aux": denoiser(layout.aux)}, notes, layout.folder / NOTES)
    ignored = {key: scheduler[key] for key in IGNORED if key in scheduler}
    if single.network.architecture == UNET and not single.network.null_class and single.num_classes in HABITS:
        remarks["classes"] = (
            f"all {single.num_classes} are drawn; where the last one stands for 'no class', import it with option "
            "'null_class'"
        )
    return Model(
        whole,
        _codec(layout, single.data_shape),
        SamplerOptions(sigma_max=HIGHEST if single.sigma_max > 1.25 * HIGHEST else None),
        _class_names(layout.index, single.num_classes),
        {"imported": "diffusers", "folder": str(folder), "scheduler": single.scheduler, "ignored": ignored, **remarks},
    )


def _codec(layout: Layout, data_shape: tuple[int, ...]) -> Codec:
    """8-bit pixels, or latents with the autoencoder that lies beside the network; without one, values as they are."""
    if layout.vae is not None:
        if not layout.vae.is_dir():
            raise UserError(
                f"{layout.folder} lists an autoencoder as {layout.vae.name}, and has no such folder: copy it whole, or "
                f"strike {layout.vae.name!r} from model_index.json to sample latents alone"
            )
        return latent_codec(layout.vae)
    return UINT8 if data_shape[0] in (1, 3) else Codec("identity", -3.0, 3.0, "float32")


def load_guided(folder: Path | str) -> GuidedNetwork:
    """The guided pair that ``save_diffusers`` wrote, as one module for a sampling loop of diffusers."""
    guided = load_diffusers(folder).denoiser
    if not isinstance(guided, Guide) or not guided.guides_outputs:
        raise UserError(f"{folder} holds a single network, not a guided pair: load it with diffusers itself")
    return GuidedNetwork(cast(Extrapolate, guided))


def save_diffusers(model: Any, folder: Path | str, like: Path | str | None = None) -> Path:
    """Write a model whose networks are of diffusers (base, Neon, distilled, SIMS) as a folder of diffusers.

    ``like`` is the folder the base was read from: its scheduler, model index and autoencoder are copied; without it
    the scheduler is written, and for a UNet2DModel the index of a DDPMPipeline. Of a guided pair, diffusers itself sees
    the base alone; the auxiliary lies beside it, and ``load_guided`` (or ``load_diffusers``) opens both.
    UserError if the folder is not empty, or the model or ``like`` are of another kind.
    """
    whole, folder = _inner(model), Path(folder)
    if isinstance(whole, Guide) and not whole.guides_outputs:
        raise UserError(
            f"{whole.kind or type(whole).__name__} cannot be exported: in a loop of diffusers only the outputs of "
            "two networks can be guided; export a single network, such as 'distilled' of a run"
        )
    base = _single(whole.base if isinstance(whole, Guide) else whole)
    layout = None if like is None else find_layout(Path(like))
    if layout is not None:
        _check_like(base, layout)
    component = layout.component if layout is not None else ("unet" if base.network.architecture == UNET else "")
    notes = Notes(null_class=base.network.null_class, timesteps=base.timesteps, sigma_data=base.sigma_data)
    with fresh_folder(folder) as temporary:
        base.network.model.save_pretrained(temporary / component)
        if isinstance(whole, Guide):
            aux = _single(getattr(whole, whole.children[1]))
            if aux.scheduler != base.scheduler:
                raise UserError("base and auxiliary have different schedulers: make the auxiliary from this base")
            aux.network.model.save_pretrained(temporary / aux_component(component))
            notes = replace(notes, kind=whole.kind, settings=whole.settings())
        write_json(temporary / NOTES, notes.to_json())
        copy_rest(temporary, component, base.scheduler, layout)
    return folder


def _guided(children: dict[str, Denoiser], notes: Notes, file: Path) -> Guide:
    try:
        return RULES[notes.kind].from_settings(children, notes.settings)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file} does not describe a guided pair ({error!r}): restore it") from error


@dataclass(frozen=True)
class _Facts:
    """What counts here of a network's configuration, under the names that it has there."""

    in_channels: int
    out_channels: int | None = None
    sample_size: int | tuple[int, int] | None = None
    num_class_embeds: int | None = None
    num_embeds_ada_norm: int | None = None


def network_config(folder: Path) -> tuple[str, dict[str, JSON]]:
    """The architecture and the configuration of a network's folder; UserError for one that cannot be read."""
    config = read_as(folder / "config.json", dict[str, JSON])
    architecture = config.get("_class_name")
    if architecture == "Transformer2DModel" and config.get("norm_type") == "ada_norm_zero":
        architecture = DIT  # its first name
    if architecture not in ARCHITECTURES:
        raise UserError(
            f"{folder} holds a {architecture}, and only {' and '.join(ARCHITECTURES)} (without text) can be read: "
            "choose an unconditional or a class-conditional model"
        )
    if config.get("class_embed_type") is not None:
        raise UserError(
            f"{folder} has class_embed_type {config['class_embed_type']!r}: only a table of classes (num_class_embeds) "
            "can be read, choose another model"
        )
    return str(architecture), config


def _network(folder: Path, null_class: bool) -> tuple[DiffusersNetwork, str]:
    """The network of a folder, and the prefix that the names of its weights had."""
    architecture, _ = network_config(folder)
    model: Any
    model, prefix = pretrained(architecture, folder)
    settings = {key: _plain(value) for key, value in dict(model.config).items() if not key.startswith("_")}
    facts: _Facts = fitted(settings, _Facts, str(folder / "config.json"), rest=True)
    if facts.sample_size is None:
        raise UserError(f"{folder / 'config.json'} has no sample_size: write the height and width of its images there")
    size = facts.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    classes = (facts.num_embeds_ada_norm if architecture == DIT else facts.num_class_embeds) or 0
    if null_class and classes < 2:
        raise UserError(
            f"null_class for a network of {classes} classes: the last of at least 2 can stand for 'no class', so leave "
            "out option 'null_class'"
        )
    null_class = classes > 0 and (null_class or architecture == DIT)
    classes -= int(null_class and architecture == UNET)
    shape = (facts.in_channels, height, width)
    if (outputs := facts.out_channels or shape[0]) not in (shape[0], 2 * shape[0]):
        raise UserError(
            f"{folder} maps {shape[0]} channels to {outputs}: it is made for another task than to denoise its input, "
            "choose another model"
        )
    network = DiffusersNetwork(shape, classes, architecture, settings, null_class, model)
    network.check_shapes()
    return network, prefix


def _plain(value: Any) -> Any:
    """A setting as JSON keeps it."""
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _class_names(index: Mapping[str, JSON], num_classes: int) -> tuple[str, ...]:
    names = index.get("id2label")
    keys = [str(i) for i in range(num_classes)]
    return (
        tuple(str(names[key]) for key in keys) if isinstance(names, dict) and set(names) >= set(keys) else tuple(keys)
    )


def _inner(model: Any) -> Any:
    """The denoiser inside a Model, or what was given."""
    return _inner(model.denoiser) if hasattr(model, "denoiser") else model


def _single(denoiser: Any) -> Any:
    denoiser = _inner(denoiser)
    if isinstance(denoiser, DiffusersDenoiser):
        return denoiser
    raise UserError(
        f"a {type(denoiser).__name__} is no network of diffusers: only what came from load_diffusers, and guided pairs "
        "of that, can be written for diffusers (save() writes any model)"
    )


def _check_like(base: Any, layout: Layout) -> None:
    """UserError if the original is another network."""
    config = read_as(layout.network / "config.json", dict[str, JSON])
    for key, value in base.network.settings.items():
        theirs = config.get(key, value)
        if _plain(theirs) != _plain(value):
            raise UserError(f"{layout.folder} is another network ({key}: {theirs}, not {value}): give the original")
