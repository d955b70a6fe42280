"""A model: a denoiser with weights, codec, sampler defaults and provenance, and the directory it lives in.

A model directory is recursive: ``model.json`` names its kind. A ``network`` has its weights in
``model.safetensors``; a rule of guidance, such as ``extrapolation``, has its children as folders and its settings in
``model.json``. Nothing in it is a pickle.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sims import notebook
from sims.config import JSON, check_arguments, fitted, from_dict, nearest, read_as, to_dict
from sims.data.codec import Codec
from sims.data.pictures import as_picture, contact_sheet
from sims.denoiser import Denoiser, Wrapped
from sims.errors import UserError
from sims.files import atomic_path, digest, digest_file, write_atomic, write_json
from sims.guidance import RULES, CacheRule, Extrapolate, Guide
from sims.networks import NETWORKS
from sims.preconditioning import PRECONDITIONINGS, Preconditioned
from sims.sampling import Callback, Labels, SamplerOptions, nfe, sample_seeds
from sims.sampling.noise import checked_shares

FORMAT = 1
# Networks of other libraries and of users' code, which lie on a higher floor, and heads, which read others: the module,
# imported only for such a model, and its function, which takes what make_network takes.
PLUGINS = {
    "feature_head": ("sims.heads", "make_head"),
    "diffusers": ("sims.interop.diffusers_network", "make_denoiser"),
    "text": ("sims.interop.text_network", "make_denoiser"),
    "code": ("sims.interop.wrapping", "named_denoiser"),
}


@dataclass(frozen=True)
class Model(Wrapped):
    """A denoiser and what is needed to use it; itself a denoiser.

    ``sample`` returns model space (images: [-1, 1]), ``images`` the data's own format.

    >>> import sims
    >>> model = sims.load(EXAMPLE)
    >>> model.images(seeds=range(4)).shape, model.num_classes, model.sampler.steps
    ((4, 1, 8, 8), 10, 5)
    """

    denoiser: Denoiser
    codec: Codec
    sampler: SamplerOptions = field(default_factory=SamplerOptions)
    class_names: tuple[str, ...] = ()
    provenance: Mapping[str, JSON] = field(default_factory=dict)

    @property
    def inside(self) -> Denoiser:
        return self.denoiser

    def sample(
        self,
        seeds: Sequence[int],
        *,
        labels: Labels = None,
        sampler: SamplerOptions | None = None,
        batch_size: int = 500,
        progress: Callable[[int], None] | None = None,
        callback: Callback | None = None,
    ) -> Tensor:
        """Sample i from seed i alone: (len(seeds), *data_shape) float32 in model space, on the CPU.

        ``labels`` fixes the classes of a class-conditional model; otherwise they are drawn from the seeds. ``progress``
        receives the number of samples just finished, ``callback`` a ``SamplingStep`` at every step.

        >>> import sims
        >>> model = sims.load(EXAMPLE)
        >>> spread = []
        >>> x = model.sample(seeds=range(4), labels=[7], callback=lambda step: spread.append(step.denoised.std()))
        >>> x.shape, len(spread)
        (torch.Size([4, 1, 8, 8]), 5)
        """
        return self.sample_labelled(
            seeds, labels=labels, sampler=sampler, batch_size=batch_size, progress=progress, callback=callback
        )[0]

    def sample_labelled(
        self,
        seeds: Sequence[int],
        *,
        labels: Labels = None,
        sampler: SamplerOptions | None = None,
        batch_size: int = 500,
        progress: Callable[[int], None] | None = None,
        callback: Callback | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Like ``sample``, and the labels (N,) int64 (None for an unconditional model)."""
        options = sampler or self.sampler
        return sample_seeds(self.denoiser, seeds, options, labels, batch_size, progress=progress, callback=callback)

    def images(self, seeds: Sequence[int], **options: Any) -> np.ndarray:
        """Samples in the format of the training data, (N, C, H, W), values as ``codec`` says."""
        return self.codec.decode(self.sample(seeds, **options))

    def sheet(self, seeds: Sequence[int], *, columns: int | None = None, **options: Any) -> Image.Image:
        """Samples on one picture, nearly square or ``columns`` side by side, small ones enlarged; a notebook shows it.

        ``options`` are those of ``sample``. Errors: UserError for data that are no images.

        >>> import sims
        >>> sims.load(EXAMPLE).sheet(seeds=range(8), columns=4).size
        (262, 130)
        """
        return as_picture(contact_sheet(self.codec.to_images(self.sample(seeds, **options)), columns))

    def with_denoiser(self, denoiser: Denoiser, **provenance: Any) -> Model:
        """The same codec, sampler and classes around another denoiser."""
        return replace(self, denoiser=denoiser, provenance={**self.provenance, **provenance})

    def guided(
        self, aux: Denoiser, w: float, interval: tuple[float, float] = (0.0, math.inf), cache: CacheRule | None = None
    ) -> Model:
        """This model steered away from ``aux`` with strength ``w``: Alemohammad et al. 2024, D + w (D - D_aux).

        >>> import sims
        >>> guided = sims.load(EXAMPLE).guided(sims.load(OTHER), w=0.5)
        >>> sims.load(guided.save(FOLDER + "/model")).hash == guided.hash
        True
        """
        aux = aux.denoiser if isinstance(aux, Model) else aux
        return self.with_denoiser(Extrapolate(self.denoiser, aux, w, interval, cache))

    def at_strength(self, w: float) -> Model:
        """This guided model at another strength; 0 = its base. UserError for one that is not finite, or no guidance.

        >>> import sims
        >>> sims.load(GUIDED).at_strength(0.5).denoiser.w
        0.5
        """
        if not math.isfinite(w):
            raise UserError(f"w is {w}: the strength of guidance must be a finite number, such as 1 (0 = the base)")
        if isinstance(self.denoiser, Guide):
            return self.with_denoiser(self.denoiser.with_strength(w))
        if w != 0:
            raise UserError(f"w is {w:g}, but the model is not guided: leave out option 'w', or give a guided model")
        return self

    def to(self, device: torch.device | str) -> Model:
        """The model on another device."""
        for network in self.networks:
            network.to(device)
        return self

    @property
    def hash(self) -> str:
        """Content hash of weights and settings, independent of provenance and of sampler defaults."""
        return _hash(self.denoiser)

    def _repr_html_(self) -> str:
        """What a notebook shows: what the model is and how it is sampled; nothing is drawn for it."""
        weights = sum(weight.numel() for network in self.networks for weight in network.parameters())
        names = ", ".join(self.class_names[:10]) + ", ..." * (len(self.class_names) > 10)
        sampler = f"{self.sampler.solver}, {self.sampler.steps} steps, {nfe(self.denoiser, self.sampler)} evaluations"
        try:
            content = self.hash
        except UserError:  # a rule of one's own, say, that has no kind
            content = "none: it cannot be saved"
        rows: list[tuple[str, object]] = [
            ("denoiser", getattr(self.denoiser, "kind", "") or type(self.denoiser).__name__),
            ("shape", " × ".join(map(str, self.data_shape))),
            ("classes", f"{self.num_classes}: {names}" if self.num_classes else "none"),
            ("parameters", f"{weights:,}"),
            ("noise levels", f"{self.sigma_min:g} to {self.sigma_max:g}"),
            ("sampler", sampler),
            ("hash", content),
            *((name, str(value)[:60]) for name, value in self.provenance.items() if value is not None),
        ]
        return notebook.table("sims.Model", [], rows)

    def save(self, path: Path | str) -> Path:
        """Write the model directory; ``model.json`` last, so that a killed process leaves no half model."""
        path, content = Path(path), self.hash  # first, because what cannot be stored has none
        path.mkdir(parents=True, exist_ok=True)
        (path / "model.json").unlink(missing_ok=True)
        inside = _save_denoiser(self.denoiser, path, self)
        about: dict[str, JSON] = {"codec": self.codec.to_json(), "sampler": to_dict(self.sampler)}
        about |= {"class_names": list(self.class_names), "provenance": dict(self.provenance), "hash": content}
        assert not inside.keys() & about.keys(), "a rule's setting has the name of something else in model.json"
        write_json(path / "model.json", {"format": FORMAT, **inside, **about})
        return path


def _hash(denoiser: Denoiser) -> str:
    if isinstance(denoiser, Model):
        return denoiser.hash
    if isinstance(denoiser, Guide) and denoiser.kind:
        children = [_hash(getattr(denoiser, name)) for name in denoiser.children]
        return digest(denoiser.kind, *children, denoiser.fingerprint())[:16]
    if not isinstance(denoiser, Preconditioned):
        raise UserError(f"a {type(denoiser).__name__} cannot be saved: it is neither a network nor a rule of a kind")
    uneven = len({*denoiser.class_shares}) > 1  # even ones, and none, draw the same samples
    weights = [(name, t.detach().cpu().contiguous().numpy().tobytes()) for name, t in denoiser.state_dict().items()]
    parts = [part for named in weights for part in named] + [list(denoiser.class_shares)] * uneven
    return digest(_describe(denoiser), *parts)[:16]


def _tables(denoiser: Preconditioned) -> tuple[dict[str, JSON], dict[str, JSON]]:
    """What makes the network and its preconditioning again."""
    names: dict[type, str] = {cls: name for name, cls in NETWORKS.items()}
    network = denoiser.network
    kind = names.get(type(network)) or network.kind
    return {"type": kind, **network.config}, {"type": denoiser.kind, **denoiser.config}  # type: ignore[dict-item]


def _describe(denoiser: Preconditioned) -> dict[str, JSON]:
    network, preconditioning = _tables(denoiser)
    tables: dict[str, JSON] = {"kind": "network", "network": network, "preconditioning": preconditioning}
    return {**tables, "data_shape": list(denoiser.data_shape), "num_classes": denoiser.num_classes}


def _save_denoiser(denoiser: Denoiser, path: Path, model: Model) -> dict[str, JSON]:
    if isinstance(denoiser, Guide):
        for name in denoiser.children:
            child = getattr(denoiser, name)
            whole = child if isinstance(child, Model) else replace(model, denoiser=child)
            whole.save(path / name)
        return {"kind": denoiser.kind, "children": {name: name for name in denoiser.children}, **denoiser.settings()}
    assert isinstance(denoiser, Preconditioned)
    file = path / "model.safetensors"
    tensors = {name: t.detach().cpu().contiguous() for name, t in denoiser.state_dict().items()}
    with atomic_path(file) as temporary:
        save_file(tensors, temporary)
    for name, text in getattr(denoiser.network, "beside", {}).items():  # such as the code of a network of one's own
        write_atomic(path / name, text)
    return {**_describe(denoiser), "class_shares": list(denoiser.class_shares), "weights_sha256": digest_file(file)}


@dataclass(frozen=True)
class Described:
    """What ``model.json`` says of any model; a rule's own settings stand beside it."""

    format: int
    kind: str
    codec: Codec
    sampler: dict[str, JSON]
    class_names: tuple[str, ...]
    provenance: dict[str, JSON]
    children: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.format > FORMAT:
            raise UserError(f"it has model format {self.format}, this version reads up to {FORMAT}: update sims")
        for child in self.children.values():
            if Path(child).name != child or child in ("", ".."):
                raise UserError(f"children {child!r}: a child is a folder in the model's own")


@dataclass(frozen=True)
class DescribedNetwork:
    """What ``model.json`` says of a single network."""

    data_shape: tuple[int, ...]
    num_classes: int
    network: dict[str, JSON]
    preconditioning: dict[str, JSON]
    weights_sha256: str
    class_shares: tuple[float, ...] = ()


def load(path: Path | str, device: torch.device | str = "cpu") -> Model:
    """Open a model directory. UserError: no model there, truncated weights, or an unknown kind.

    >>> import sims
    >>> sims.load(EXAMPLE).data_shape
    (1, 8, 8)
    """
    path = Path(path)
    if not (path / "model.json").is_file():
        raise UserError(
            f"no model at {path}: a model directory has a model.json (an unfinished run has none yet; `sims import` "
            "makes one of a .pkl or a folder of diffusers)"
        )
    file = path / "model.json"
    try:
        model = _load(read_as(file, dict[str, JSON]), path)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise UserError(f"{file} does not describe a model: {_reason(error)} is missing or wrong") from None
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{file} does not describe a model: {error}") from None
    return model.to(device)


def _reason(error: Exception) -> str:
    return ascii(repr(error)[:200])[1:-1]


def _load(entry: dict[str, JSON], path: Path) -> Model:
    about: Described = fitted(entry, Described, "", rest=True)
    sampler = from_dict(SamplerOptions, about.sampler, "sampler.")
    rest = (about.codec, sampler, about.class_names, about.provenance)
    if (kind := about.kind) in RULES:
        rule = RULES[kind]
        children = {name: load(path / about.children[name]).denoiser for name in rule.children}
        return Model(rule.from_settings(children, entry), *rest)
    if kind != "network":
        hint = nearest(kind, ["network", *RULES])
        raise UserError(
            f"{path} holds a model of unknown kind {kind!r}{hint}; a rule of your own must be imported first"
        )
    return Model(_load_network(entry, path), *rest)


def _load_network(entry: dict[str, JSON], path: Path) -> Preconditioned:
    about: DescribedNetwork = fitted(entry, DescribedNetwork, "", rest=True)
    tables, file = (dict(about.network), dict(about.preconditioning)), path / "model.safetensors"
    try:
        with torch.device("meta"):  # the weights come from the file: nothing is drawn, nothing held twice
            denoiser = make_network(about.data_shape, about.num_classes, *tables, path)
    except (AttributeError, RuntimeError) as error:
        raise UserError(f"no network can be made of its numbers ({_reason(error)})") from None
    try:
        damaged = digest_file(file) != about.weights_sha256
        tensors = {} if damaged else load_file(file)
    except (OSError, SafetensorError):
        damaged = True
    if damaged:
        raise UserError(f"{file} is missing, truncated or altered: restore it, or make the model again")
    kept = denoiser.state_dict()
    other = [name for name, tensor in tensors.items() if name in kept and tensor.dtype != kept[name].dtype]
    if other:
        kinds = f"{tensors[other[0]].dtype} and not {kept[other[0]].dtype}"
        raise UserError(f"{file} has {other[0]} in {kinds}: write it as the network has it")
    # Copied, because a file's tensors may lie at any address, and the last bits of a product depend on alignment.
    try:
        denoiser.load_state_dict({name: tensor.clone() for name, tensor in tensors.items()}, assign=True)
    except RuntimeError as error:
        raise UserError(f"{file} does not fit the network that model.json describes ({_reason(error)})") from None
    denoiser.class_shares = checked_shares(about.class_shares, denoiser.num_classes)
    return denoiser.eval().requires_grad_(False)


def reinitialized(model: Model, seed: int) -> Model:
    """A model like this one, a single network, with newly drawn weights."""
    assert isinstance(model.denoiser, Preconditioned)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make_network(model.data_shape, model.num_classes, *_tables(model.denoiser))
    made.class_shares = model.class_shares
    return model.with_denoiser(made)


def make_network(
    data_shape: tuple[int, ...],
    num_classes: int,
    network: dict[str, JSON],
    preconditioning: dict[str, JSON],
    folder: Path = Path(),
) -> Preconditioned:
    """A freshly initialized network with preconditioning, from the two tables of a ``folder``'s ``model.json``."""
    kind, precond = (str(table.pop("type")) for table in (network, preconditioning))
    if kind in PLUGINS:
        module, function = PLUGINS[kind]
        make: Callable[..., Preconditioned] = getattr(importlib.import_module(module), function)
        return make(data_shape, num_classes, network, preconditioning, folder)
    if kind not in NETWORKS:
        raise UserError(f"unknown network {kind!r}{nearest(kind, NETWORKS)}")
    if precond not in PRECONDITIONINGS:
        raise UserError(f"unknown preconditioning {precond!r}{nearest(precond, PRECONDITIONINGS)}")
    inner, outer = NETWORKS[kind], PRECONDITIONINGS[precond]
    check_arguments(inner, network, "network")
    check_arguments(outer, preconditioning, "preconditioning")
    raw = inner(data_shape, num_classes, **network)
    return outer(raw, data_shape, num_classes, **preconditioning)
