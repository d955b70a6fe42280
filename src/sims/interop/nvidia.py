"""NVIDIA's EDM and EDM2 snapshots (.pkl): read without running their code, and rebuilt with this package's networks.

A snapshot records the class of its network, the arguments it was made with, and its tensors; its source code is left
unread. What became of such a network goes back as tensors under NVIDIA's names, which their own class loads.
EDM: Karras et al. 2022; EDM2: Karras et al. 2024.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from sims.config import JSON, convert, nearest
from sims.data.codec import EDM2_LATENTS, UINT8, Codec, Latents
from sims.errors import UserError
from sims.files import atomic_path, digest_file
from sims.guidance import Guide, innermost
from sims.interop.recognize import refuse_others
from sims.interop.state_dicts import not_finite, some
from sims.model import Model, make_network
from sims.networks import NETWORKS
from sims.networks.layers import filter_kernel
from sims.preconditioning import Preconditioned
from sims.safe_pickle import PersistentObject, load
from sims.sampling import SamplerOptions

SIGMA_MIN, SIGMA_MAX = 0.002, 80.0  # EDM's sampler starts and ends here where a network sets no limits (section 5)
_SHOWN = 3  # tensors that a message names
_REQUIRED = ("img_resolution", "img_channels")


@dataclass(frozen=True)
class _Class:
    """A class of theirs: our preconditioning, its arguments after _REQUIRED in order with their defaults."""

    preconditioning: str
    arguments: dict[str, JSON]
    prefixes: dict[str, str]


_EDM_PREFIXES = {"model.": "network."}
_CLASSES: dict[str, _Class] = {
    "EDMPrecond": _Class(
        "edm",
        {
            "label_dim": 0,
            "use_fp16": False,
            "sigma_min": 0.0,
            "sigma_max": math.inf,
            "sigma_data": 0.5,
            "model_type": "DhariwalUNet",
        },
        _EDM_PREFIXES,
    ),
    "VPPrecond": _Class(
        "vp",
        {
            "label_dim": 0,
            "use_fp16": False,
            "beta_d": 19.9,
            "beta_min": 0.1,
            "M": 1000,
            "epsilon_t": 1e-5,
            "model_type": "SongUNet",
        },
        _EDM_PREFIXES,
    ),
    "VEPrecond": _Class(
        "ve",
        {"label_dim": 0, "use_fp16": False, "sigma_min": 0.02, "sigma_max": 100.0, "model_type": "SongUNet"},
        _EDM_PREFIXES,
    ),
    "iDDPMPrecond": _Class(
        "iddpm",
        {"label_dim": 0, "use_fp16": False, "C_1": 0.001, "C_2": 0.008, "M": 1000, "model_type": "DhariwalUNet"},
        _EDM_PREFIXES,
    ),
    "Precond": _Class(
        "edm2",
        {"label_dim": 0, "use_fp16": True, "sigma_data": 0.5, "logvar_channels": 128},
        {"unet.": "network.", "logvar_fourier.": "loss_head.fourier.", "logvar_linear.": "loss_head.linear."},
    ),
}
_ALIASES = {"edm2.Precond": "Precond"}
_NETWORKS = {"SongUNet": "song_unet", "DhariwalUNet": "adm_unet"}  # EDM's model_type


@dataclass(frozen=True)
class Snapshot:
    """What a file holds: the network's class, its arguments with their defaults, its tensors under NVIDIA's names.

    ``encoder`` is the class that maps EDM2's latents or pixels, and its settings; None where the file names none.
    """

    class_name: str
    init: dict[str, JSON]
    state: dict[str, Tensor]
    encoder: str | None
    source_hash: str
    encoder_settings: dict[Any, object] = field(default_factory=dict)


def read(path: Path | str) -> tuple[str, dict[str, JSON], dict[str, Tensor]]:
    """Class name, constructor arguments (defaults included) and tensors of a snapshot's averaged network.

    Raises UserError for a file that cannot be read, asks for more than data, or holds no network known here.
    """
    snapshot = open_snapshot(path)
    return snapshot.class_name, snapshot.init, snapshot.state


def open_snapshot(path: Path | str) -> Snapshot:
    """Like ``read``, with all that is known of the file."""
    path = Path(path)
    refuse_others(path)
    content = load(path)
    network = content
    if isinstance(content, dict):
        network = next((content[key] for key in ("ema", "net") if content.get(key) is not None), None)
    if not isinstance(network, PersistentObject):
        held = ascii(sorted(map(str, content))) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} holds no network under 'ema' or 'net', but {held[:200]}: give a .pkl of EDM or EDM2")
    init = _arguments(network.class_name, network.init_args, network.init_kwargs)
    encoder = content.get("encoder") if isinstance(content, dict) else None
    name, settings = (encoder.class_name, encoder.init_kwargs) if isinstance(encoder, PersistentObject) else (None, {})
    state = dict(_tensors(network, "", set()))
    if (size := sum(tensor.nbytes for tensor in state.values())) > path.stat().st_size:  # one storage many times
        raise UserError(f"{path} is said to hold tensors of {size:,} bytes, more than it has: the file is damaged")
    return Snapshot(network.class_name, init, state, name, network.source_hash, settings)


def build(class_name: str, init: Mapping[str, object], state: dict[str, Tensor]) -> Preconditioned:
    """The denoiser that these arguments and tensors describe, in float32, ready to sample.

    ``init`` and ``state`` as ``read`` gives them; arguments left out have NVIDIA's defaults; use_fp16 has no effect.
    Raises UserError for an unknown class or argument, and for tensors that are missing, unknown or of another shape.
    """
    cls = _class(class_name)
    values = _arguments(class_name, (), init)
    channels, side, classes = (_whole(values, name) for name in (*reversed(_REQUIRED), "label_dim"))
    try:
        with torch.device("meta"):  # the tensors come from the snapshot
            denoiser = make_network((channels, side, side), classes, *_tables(cls, values))
    except (TypeError, ValueError, ArithmeticError, AttributeError, RuntimeError) as error:
        raise UserError(f"{class_name} cannot be made with these arguments ({error}): {values}") from error
    tensors = _matched(denoiser, cls, state)
    if broken := not_finite(tensors):
        raise UserError(f"the snapshot holds values that are not finite in {some(broken)}: download or copy it again")
    denoiser.load_state_dict(tensors, assign=True)
    return denoiser.eval().requires_grad_(False)


def import_model(path: Path | str) -> Model:
    """A snapshot as a model: with codec, the published sampler, classes by number, and where it comes from."""
    return to_model(open_snapshot(path), Path(path))


def to_model(snapshot: Snapshot, path: Path) -> Model:
    """A snapshot that was read from this file, as a model."""
    denoiser = build(snapshot.class_name, snapshot.init, snapshot.state)
    provenance = {
        "imported": path.name,
        "sha256": digest_file(path),
        "class": snapshot.class_name,
        "source_hash": snapshot.source_hash,
        "encoder": snapshot.encoder,
    }
    names = tuple(str(index) for index in range(denoiser.num_classes))
    return Model(denoiser, _codec(snapshot), _sampler(snapshot, denoiser), names, provenance)


def has_their_network(model: Model) -> bool:
    """Whether a model, or the base of a guided one, is a network that a class of NVIDIA's is made of."""
    denoiser = innermost(model.denoiser)
    kinds = tuple(NETWORKS[name] for name in (*_NETWORKS.values(), "edm2_unet"))
    theirs = {entry.preconditioning for entry in _CLASSES.values()}
    return getattr(denoiser, "kind", None) in theirs and isinstance(denoiser.network, kinds)


def export_tensors(model: Model, file: Path | str) -> Path:
    """Write a network's tensors under NVIDIA's names (.safetensors): what ``load_state_dict`` of their class takes.

    Raises UserError for a guided model, another network than EDM's and EDM2's, pictures that are not square, another
    suffix, or a file that is there.
    """
    file, denoiser = Path(file), model.denoiser
    if isinstance(denoiser, Guide):
        folders = " and ".join(repr(name) for name in denoiser.children)
        raise UserError(
            f"this model is guided ({denoiser.kind}), and a class of NVIDIA's holds one network: export 'distilled' "
            f"of the run, or the folders {folders} within the model, one at a time"
        )
    if not has_their_network(model):
        raise UserError(f"a {type(denoiser).__name__} is no network of EDM or EDM2: only these have tensors to export")
    if file.suffix != ".safetensors" or file.exists():
        wrong = "exists" if file.exists() else "is no .safetensors file"
        raise UserError(f"{file} {wrong}: give a new file that ends in .safetensors, for the network's tensors")
    assert isinstance(denoiser, Preconditioned)
    _require_square(denoiser)
    cls = next(entry for entry in _CLASSES.values() if entry.preconditioning == denoiser.kind)
    theirs = {ours: name for name, ours in cls.prefixes.items()}
    tensors = {_renamed(name, theirs): t.detach().cpu().contiguous() for name, t in denoiser.state_dict().items()}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)
    return file


def _require_square(denoiser: Preconditioned) -> None:
    """UserError for pictures that no ``img_resolution`` describes: not square, padded or cut within the network."""
    _, height, width = denoiser.data_shape
    network: Any = denoiser.network
    if network.space_to_depth > 1:
        raise UserError(
            f"this network sees patches of {network.space_to_depth} pixels a side as one pixel, and the classes of EDM "
            "and EDM2 know none: use the model directory itself, whose model.safetensors has the tensors"
        )
    if height != width or height % network.multiple:
        raise UserError(
            f"this model makes pictures of {height}x{width} pixels (height, width), and the classes of EDM and EDM2 "
            f"know squares alone, here with sides that are multiples of {network.multiple}: use the model directory "
            "itself, whose model.safetensors has the tensors"
        )


def _class(name: str) -> _Class:
    short = _ALIASES.get(name, name)
    if short not in _CLASSES:
        raise UserError(f"unknown class {name!r}{nearest(name, _CLASSES)}")
    return _CLASSES[short]


def _arguments(class_name: str, args: tuple[object, ...], kwargs: Mapping[Any, object]) -> dict[str, JSON]:
    """All arguments by name, defaults of the preconditioning included; UserError naming one that is unknown."""
    defaults = _class(class_name).arguments
    order = (*_REQUIRED, *defaults)
    if len(args) > len(order):
        raise UserError(f"{class_name} was made with {len(args)} arguments: it takes {len(order)} by position")
    given = {**dict(zip(order, args)), **kwargs}
    values: dict[str, JSON] = {**defaults, **{name: _plain(value, name) for name, value in given.items()}}
    for name in _REQUIRED:
        if name not in values:
            raise UserError(f"{class_name} lacks the argument {name!r}: the file is damaged or of another version")
    names = {*order, *_options(_network(values))}
    for name in values:
        if name not in names:
            raise UserError(f"{class_name} has an unknown argument {name!r}{nearest(str(name), names)}")
    return values


def _network(values: Mapping[str, JSON]) -> str:
    """Our name of the network inside."""
    if "model_type" not in values:
        return "edm2_unet"
    kind = str(values["model_type"])
    if kind not in _NETWORKS:
        raise UserError(f"unknown model_type {kind!r}{nearest(kind, _NETWORKS)}")
    return _NETWORKS[kind]


def _options(network: str) -> set[str]:
    parameters = inspect.signature(NETWORKS[network]).parameters
    return set(parameters) - {"data_shape", "num_classes", "out_channels"}


def _whole(values: Mapping[str, JSON], name: str) -> int:
    """An argument that is a whole number."""
    value = values[name]
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"the argument {name!r} is {value!r}: it must be a whole number, so the file is damaged")
    return value


def _plain(value: Any, name: str) -> JSON:
    """numpy's numbers and arrays as Python's, tuples as lists: what JSON can hold; UserError for anything else."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple) and all(isinstance(item, int | float) for item in value):
        return list(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise UserError(f"the argument {name!r} is a {type(value).__name__}: numbers, words and lists of numbers are known")


def _tables(cls: _Class, values: Mapping[str, JSON]) -> tuple[dict[str, JSON], dict[str, JSON]]:
    """The two tables of ``model.json``: network and preconditioning."""
    kind = _network(values)
    network: dict[str, JSON] = {"type": kind, **{name: values[name] for name in _options(kind) & values.keys()}}
    if cls.preconditioning == "iddpm":
        network["out_channels"] = 2 * _whole(values, "img_channels")
    own = cls.arguments.keys() - {"label_dim", "use_fp16", "model_type"}
    preconditioning: dict[str, JSON] = {"type": cls.preconditioning, **{name: values[name] for name in own}}
    if cls.preconditioning == "edm":
        low, high = (convert(values[name], float, name, "argument") for name in ("sigma_min", "sigma_max"))
        preconditioning |= {"sigma_min": max(low, SIGMA_MIN), "sigma_max": min(high, SIGMA_MAX)}
    return network, preconditioning


def _tensors(module: PersistentObject, prefix: str, seen: set[int]) -> Iterator[tuple[str, Tensor]]:
    """Parameters and persistent buffers of a module and those within it, by their full names."""
    if id(module) in seen:
        raise UserError(f"the module {prefix.rstrip('.') or module.class_name} appears twice: the file is damaged")
    seen.add(id(module))
    transient = module.state.get("_non_persistent_buffers_set")
    hidden = transient if isinstance(transient, set) else set()
    for name, value in (*_members(module, "_parameters"), *_members(module, "_buffers")):
        if isinstance(value, Tensor) and name not in hidden:
            yield f"{prefix}{name}", value
    for name, child in _members(module, "_modules"):
        if isinstance(child, PersistentObject):
            yield from _tensors(child, f"{prefix}{name}.", seen)


def _members(module: PersistentObject, kind: str) -> list[tuple[Any, object]]:
    """What a module's ``_parameters``, ``_buffers`` or ``_modules`` hold, by name."""
    members = module.state.get(kind)
    return list(members.items()) if isinstance(members, dict) else []


@torch.no_grad()
def _matched(denoiser: Preconditioned, cls: _Class, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under our names, float32; UserError naming those that are missing, unknown or do not fit."""
    theirs = {ours: name for name, ours in cls.prefixes.items()}
    wanted = {_renamed(name, theirs): value for name, value in denoiser.state_dict().items()}
    lists = {
        "missing": [name for name in wanted if name not in state],
        "unknown": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
            for name, value in wanted.items()
            if name in state and state[name].shape != value.shape
        ],
        "another filter than resample_filter says": _other_filters(denoiser, state),
    }
    wrong = {what: names for what, names in lists.items() if names}
    if wrong:
        told = "; ".join(
            f"{len(names)} {what} ({ascii(', '.join(names[:_SHOWN]))[1:-1]}{', ...' if len(names) > _SHOWN else ''})"
            for what, names in wrong.items()
        )
        raise UserError(f"the tensors do not fit the network that the arguments describe: {told}")
    # Copies, because snapshots can hold half precision, and views of one storage.
    return {
        _renamed(name, cls.prefixes): state[name].detach().to(torch.float32, copy=True).contiguous() for name in wanted
    }


def _other_filters(denoiser: Preconditioned, state: dict[str, Tensor]) -> list[str]:
    network: Any = denoiser.network
    expected = filter_kernel(network.config.get("resample_filter", (1, 1)))
    filters = {name: value for name, value in state.items() if name.endswith(".resample_filter")}
    return [
        name
        for name, value in filters.items()
        if value.shape == expected.shape and not torch.allclose(value.float().cpu(), expected, atol=1e-3)
    ]


def _renamed(name: str, prefixes: dict[str, str]) -> str:
    """A tensor's name with its first matching prefix replaced."""
    for old, new in prefixes.items():
        if name.startswith(old):
            return new + name[len(old) :]
    return name


def _codec(snapshot: Snapshot) -> Codec:
    """8-bit pixels; for latents, which have standard deviation 0.5, how they are scaled where the file says so."""
    if snapshot.encoder is None:
        latents = snapshot.init["img_channels"] not in (1, 3)
    else:
        latents = snapshot.encoder != "StandardRGBEncoder"
    if snapshot.encoder == "StabilityVAEEncoder":
        return Codec("latents", -1.5, 1.5, "float32", _scaling(snapshot.encoder_settings))
    return Codec("identity", -1.5, 1.5, "float32") if latents else UINT8


def _numbers(value: Any, name: str) -> JSON:
    plain = _plain(value, name)
    if isinstance(plain, str | dict):
        raise UserError(f"the argument {name!r} is {plain!r}: numbers are known, so the file is damaged")
    return plain


def _scaling(settings: Mapping[Any, object]) -> Latents:
    """EDM2's own statistics of the latents, or those that the file was made with."""
    names = ("raw_mean", "raw_std", "final_mean", "final_std")
    own: list[Any] = [_numbers(settings.get(name), name) for name in names]
    if not any(value is not None for value in own):
        return EDM2_LATENTS
    default = ((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28), 0.0, 0.5)
    mean, std, centre, width = (
        np.asarray(value if value is not None else usual, np.float64).ravel() for value, usual in zip(own, default)
    )
    if 0 in std or {len(mean), len(std), len(centre), len(width)} - {1, 4}:
        raise UserError("the encoder's statistics of latents are not those of four channels: the file is damaged")
    scale = width / std
    return Latents(tuple(mean - centre / scale), tuple(scale + 0 * mean), EDM2_LATENTS.pixels)


def _sampler(snapshot: Snapshot, denoiser: Preconditioned) -> SamplerOptions:
    """The sampler of the published scores (Karras et al. 2022, table 2 and appendix E; Karras et al. 2024)."""
    kind, side = _class(snapshot.class_name).preconditioning, _whole(snapshot.init, "img_resolution")
    if kind == "edm2":
        return SamplerOptions(steps=32)
    if kind == "edm":
        if side == 64 and snapshot.init["model_type"] == "DhariwalUNet":
            return SamplerOptions(steps=256, s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
        return SamplerOptions(steps=18 if side <= 32 else 40)
    low, high = max(denoiser.sigma_min, SIGMA_MIN), min(denoiser.sigma_max, SIGMA_MAX)
    return SamplerOptions(steps=18 if side <= 32 else 40, sigma_min=low, sigma_max=high)
