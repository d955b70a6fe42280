"""A network of your own as a model: how it is called, what its output means, with which noise it was trained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sims.config import JSON, to_dict
from sims.data.codec import UINT8, Codec
from sims.errors import UserError
from sims.files import atomic_path, digest, digest_file
from sims.guidance import Guide
from sims.guidance.guide import innermost
from sims.interop.state_dicts import read_state_dict, unlike
from sims.interpolants import Interpolant
from sims.model import Model
from sims.networks import DDPUNet, DiT, GuidedUNet
from sims.preconditioning import InterpolantPrecond
from sims.sampling import SamplerOptions
from sims.user_code import guarded, named_function

PUBLISHED = DiT | GuidedUNet | DDPUNet  # networks of others, under the names that these have
Call = Callable[[Any, Tensor, Tensor, Tensor | None], Any]


@dataclass(frozen=True)
class Source:
    """The code that makes a network: a file's name, its function and the hash of its text.

    Without a file, ``sha256`` is of what can be said of a module that was wrapped in a session of Python.
    """

    file: str
    function: str
    sha256: str


class WrappedNetwork(nn.Module):
    """Another's module as F(x_t, time, labels): (B, *data_shape), (B,) or (1,), (B,) or None -> like x_t.

    ``call`` gets the module, x_t, times (B,) and classes (B,) int64 (None without classes). ``null_class`` is the
    number that the module knows "no class" by, which labels of -1 become; without one they are a UserError. Channels
    beyond the data's, up to twice as many, are a learned variance, and left out. UserError for any other output.
    ``source`` says which code makes it, and ``beside`` has that code, to be kept beside the weights.
    """

    kind = "code"
    keeps_layout = True  # a stranger's module may reshape in ways that another memory layout forbids
    source: Source

    def __init__(
        self,
        module: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: int | None = None,
        call: Call | None = None,
    ) -> None:
        super().__init__()
        self.module, self.data_shape, self.num_classes = module, tuple(data_shape), num_classes
        self.null_class, self.call = null_class, call
        self.beside: dict[str, bytes] = {}

    @property
    def config(self) -> dict[str, JSON]:
        """What ``model.json`` says of it: the code that makes it."""
        return {**to_dict(self.source), "null_class": self.null_class}

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        time, classes = time.expand(len(x)), self._classes(labels, x)
        if self.call is not None:
            output = self.call(self.module, x, time, classes)
        else:
            output = self.module(x, time) if classes is None else self.module(x, time, classes)
        self._check(output, x)
        return output  # type: ignore[no-any-return]

    def _classes(self, labels: Tensor | None, x: Tensor) -> Tensor | None:
        if self.num_classes == 0:
            return None
        if labels is None:
            labels = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
        none = labels < 0
        if self.null_class is None and bool(none.any()):
            raise UserError(
                "this network was wrapped without null_class, so it knows nothing for 'no class': give a label for "
                "every sample, or null_class, the number of its class for none"
            )
        return labels if self.null_class is None else torch.where(none, self.null_class, labels)

    def _check(self, output: object, x: Tensor) -> None:
        if not isinstance(output, Tensor):
            what = f"a {type(output).__name__}"
            if isinstance(output, tuple | list):
                what += f" of {len(output)}"
            elif isinstance(output, Mapping):
                what += f" with {', '.join(map(str, list(output)[:5]))}"
            raise UserError(
                f"the network gives {what}, and one tensor is needed: choose it with call, such as "
                "call=lambda net, x, t, y: net(x, t)[0]"
            )
        wide = output.ndim == x.ndim and x.shape[1] < output.shape[1] <= 2 * x.shape[1]
        if output.shape != x.shape and not (wide and output.shape[2:] == x.shape[2:] and len(output) == len(x)):
            raise UserError(
                f"the network gives {tuple(output.shape)} for {tuple(x.shape)}: it must give x's shape (or more "
                "channels, of which the first are taken): correct data_shape, or choose with call"
            )


def wrap(
    network: nn.Module,
    *,
    data_shape: tuple[int, ...],
    prediction: str | Callable[..., Tensor],
    schedule: Interpolant | Mapping[str, JSON] | str,
    data_range: tuple[float, float] = (-1.0, 1.0),
    num_classes: int = 0,
    null_class: int | None = None,
    call: Call | None = None,
    sampler: SamplerOptions | None = None,
    codec: Codec | None = None,
    class_names: tuple[str, ...] = (),
    sigma_data: float = 0.5,
) -> Model:
    """A network of your own as a model, which everything that takes one then takes.

    network      a module that is called as network(x_t, t), or network(x_t, t, y) with classes; ``call`` changes that:
                 call=lambda net, x, t, y: net(x, timesteps=t, class_labels=y).sample
    data_shape   of one sample, such as (3, 32, 32)
    prediction   what it gives: "x0", "eps", "v", "velocity", "score", "edm", or a function
                 prediction(output, x_t, alpha, s) -> x0 (``InterpolantPrecond`` has the equations)
    schedule     what it was trained with, from ``sims.interpolants``, or its name there: "linear", "scaled_linear",
                 "cosine", "rectified_flow", "trigonometric", "vp_sde", "ve_sde", "edm". It says which times the network
                 knows: linear(first=1) has 1 to 1000, rectified_flow(data_at=1, scale=1000) has 0 (noise) to 1000.
                 Our noise levels are sigma = s / alpha, and a network of whole times has them rounded
    data_range   the values that it knows black and white by
    num_classes  0 = unconditional; ``null_class``: the number that stands for "no class", where it has one
    codec        how samples are stored: 8-bit pixels unless stated

    The network is put into evaluation mode and tried once. Errors: UserError for an output that is no tensor of the
    data's shape, or not finite, unknown names, and schedules whose noise does not increase.

    >>> import torch, sims
    >>> class Net(torch.nn.Module):
    ...     def forward(self, x, t):  # the noise in x_t; this one knows of none
    ...         return 0 * x
    >>> model = sims.wrap(Net(), data_shape=(1, 8, 8), prediction="eps", schedule="cosine")
    >>> model.images(seeds=range(4)).shape
    (4, 1, 8, 8)
    """
    shape = tuple(map(int, data_shape))
    if len(shape) not in (1, 3) or min(shape, default=0) < 1:
        raise UserError(f"data_shape is {list(data_shape)}: give channels, height and width, such as (3, 32, 32)")
    if num_classes < 0 or (null_class is not None and num_classes == 0):
        raise UserError(f"num_classes is {num_classes} and null_class {null_class}: give the number of real classes")
    if null_class is not None and 0 <= null_class < num_classes:
        raise UserError(f"null_class {null_class} is one of the {num_classes} classes: it stands for none of them")
    wrapped = WrappedNetwork(network.eval(), shape, num_classes, null_class, call)
    denoiser = InterpolantPrecond(wrapped, shape, num_classes, schedule, prediction, data_range, sigma_data)
    denoiser.eval().requires_grad_(False)
    _try(denoiser)
    wrapped.source = Source("", "", _said_of(denoiser))
    if codec is None:
        codec = UINT8 if len(shape) == 3 else Codec("identity", -3.0, 3.0, "float32")
    names = class_names or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise UserError(f"{len(names)} class_names for {num_classes} classes: give one for each")
    provenance: dict[str, JSON] = {"wrapped": type(network).__name__}
    return registered(Model(denoiser, codec, sampler or SamplerOptions(), names, provenance))


def _said_of(denoiser: InterpolantPrecond) -> str:
    """A hash of what can be said of a module and of how it is called, the same in another session."""
    network = denoiser.network
    assert isinstance(network, WrappedNetwork)
    functions = [type(network.module).forward, network.call, denoiser.prediction]
    codes = [getattr(function, "__code__", None) for function in functions]
    said = [(code.co_code.hex(), [*map(str, code.co_names)]) for code in codes if code is not None]
    return digest(type(network.module).__qualname__, str(network.module), denoiser.config, said)


@torch.no_grad()
def _try(denoiser: InterpolantPrecond) -> None:
    """One evaluation of two samples, at the lowest, a middle and the highest noise level."""
    device = next((weight.device for weight in denoiser.parameters()), torch.device("cpu"))
    labels = torch.zeros(2, dtype=torch.int64, device=device) if denoiser.num_classes else None
    ends = torch.tensor([denoiser.sigma_min, denoiser.sigma_max], device=device)
    for sigma in (ends[0], ends.log().mean().exp(), ends[1]):
        x = sigma * torch.randn(2, *denoiser.data_shape, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            denoised = denoiser(x, denoiser.round_sigma(sigma.expand(2)), labels)
        except (RuntimeError, TypeError, IndexError, ValueError, AttributeError) as error:
            raise UserError(
                f"the network cannot be called with x {tuple(x.shape)}, t (2,)"
                f"{' and classes (2,)' if labels is not None else ''} ({' '.join(str(error).split())[:300]}): correct "
                "data_shape and num_classes, or say with call how it is called"
            ) from error
        if not bool(torch.isfinite(denoised).all()):
            raise UserError(
                f"the network gives values that are not finite at sigma {float(sigma):.4g}: are its weights loaded?"
            )


# -- models made by code, and who may run it ---------------------------------------------------------------------------

MADE: dict[tuple[str, str], Model] = {}
"""What this process has wrapped, by the hash of its code and the function: no directory makes code run."""


def registered(model: Model) -> Model:
    """A wrapped model that can be read back from its directory in this process."""
    network = _wrapped(model)
    MADE[network.source.sha256, network.source.function] = model
    return model


def from_code(name: str, weights: Path | None = None) -> Model:
    """The model that a function of a file makes, ``my_model.py:make``, with ``sims.wrap``: runs that file.

    ``weights`` is a file of its state dict, under the module's own names. Directories that the model is saved in can be
    loaded from now on, in this process. Errors: UserError for a file or function that is missing or fails, for another
    result, and weights that lack or exceed what the module has.
    """
    place, _, function = name.rpartition(":")
    path = Path(place).expanduser()
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"no code {name!r}: give a file of Python and a function in it, such as my_model.py:make")
    content = path.read_bytes()
    made = guarded(named_function(name, "code"), f"code {name}", place)
    if not isinstance(made, Model) or not isinstance(getattr(made.denoiser, "network", None), WrappedNetwork):
        raise UserError(f"code {name} gives a {type(made).__name__}: it must return what sims.wrap returns")
    network = _wrapped(made)
    network.source, network.beside = Source(path.name, function, digest(content)), {path.name: content}
    if weights is not None:
        made = load_weights(made, weights)
    return registered(replace(made, provenance={**made.provenance, "code": f"{path.name}:{function}"}))


def load_weights(model: Model, file: Path) -> Model:
    """A wrapped model with the weights of a file (safetensors, .pt, .pth, .ckpt), read without running anything."""
    network = _wrapped(model)
    own = network.module.state_dict()
    tensors, notes = read_state_dict(file, list(own))
    if problem := unlike(tensors, own):
        raise UserError(f"{file} does not fit {type(network.module).__name__}: {problem}")
    network.module.load_state_dict({key: tensor.to(own[key]) for key, tensor in tensors.items()})
    _try(model.denoiser)  # type: ignore[arg-type]
    said: dict[str, JSON] = {"weights": file.name, "sha256": digest_file(file), "notes": list(notes)}
    return replace(model, provenance={**model.provenance, **said})


def named_denoiser(
    data_shape: tuple[int, ...], num_classes: int, network: Mapping[str, Any], precond: Mapping[str, JSON], folder: Path
) -> InterpolantPrecond:
    """A copy of the denoiser that named code has made; UserError where the code has not been named, or has changed."""
    file, function, sha256 = (str(network[name]) for name in ("file", "function", "sha256"))
    made = MADE.get((sha256, function))
    if made is None and file:
        raise UserError(
            f"{folder} needs the code that makes its network, and no directory makes code run: look at "
            f"{folder / file}, and name it with option 'code' ({folder / file}:{function}); it must be unchanged "
            f"(sha256 {sha256[:12]}...)"
        )
    if made is None:
        raise UserError(
            f"{folder} holds a network that was wrapped in a session of Python: before loading it, wrap the same "
            "module in the same way again"
        )
    denoiser = copy.deepcopy(made.denoiser)
    assert isinstance(denoiser, InterpolantPrecond)
    same = (denoiser.data_shape, denoiser.num_classes, denoiser.config) == (data_shape, num_classes, dict(precond))
    if not same or _wrapped(made).null_class != network["null_class"]:
        raise UserError(f"{folder} was saved with another shape, prediction or schedule than its code says now")
    return denoiser


def _wrapped(model: Model) -> WrappedNetwork:
    network = getattr(model.denoiser, "network", None)
    if not isinstance(network, WrappedNetwork):
        raise UserError("this model was not made by sims.wrap: give one that was")
    return network


def keeps_its_names(model: Model) -> bool:
    """Whether it is a single network with the names that its own code has for its tensors, or guides one."""
    return isinstance(getattr(innermost(model.denoiser), "network", None), WrappedNetwork | PUBLISHED)


def export_state_dict(model: Model, out: Path) -> None:
    """Write the module's state dict, under its own names, to a .safetensors file; UserError for a guided pair."""
    if isinstance(model.denoiser, Guide):
        raise UserError("a guided pair is two networks: export its folders base and aux, one by one")
    if out.suffix != ".safetensors" or out.exists():
        raise UserError(f"{out} must be a new file that ends in .safetensors")
    network: Any = getattr(model.denoiser, "network", None)
    own = network.module if isinstance(network, WrappedNetwork) else network
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in own.state_dict().items()}
    with atomic_path(out) as temporary:
        save_file(tensors, temporary)
