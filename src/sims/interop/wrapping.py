"""A network of your own as a model: how it is called, what its output means, with which noise it was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sims.config import JSON
from sims.data.codec import UINT8, Codec
from sims.errors import UserError
from sims.files import digest
from sims.interpolants import Interpolant
from sims.model import Model
from sims.preconditioning import InterpolantPrecond
from sims.sampling import SamplerOptions

Call = Callable[[Any, Tensor, Tensor, Tensor | None], Any]


@dataclass(frozen=True)
class Source:
    """The code that makes a network: the name and text of its file, the function, and the hash of the text."""

    file: str
    function: str
    text: bytes

    @property
    def hash(self) -> str:
        return digest(self.text)


class WrappedNetwork(nn.Module):
    """Another's module as F(x_t, time, labels): (B, *data_shape), (B,) or (1,), (B,) or None -> like x_t.

    ``call`` gets the module, x_t, times (B,) and classes (B,) int64 (None without classes). ``null_class`` is the
    number that the module knows "no class" by, which labels of -1 become; without one they are a UserError. Channels
    beyond the data's, up to twice as many, are a learned variance, and left out. UserError for any other output.
    """

    kind = "code"
    keeps_layout = True  # a stranger's module may reshape in ways that another memory layout forbids

    def __init__(
        self,
        module: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        null_class: int | None = None,
        call: Call | None = None,
        source: Source | None = None,
    ) -> None:
        super().__init__()
        self.module, self.data_shape, self.num_classes = module, tuple(data_shape), num_classes
        self.null_class, self.call, self.source = null_class, call, source

    @property
    def config(self) -> dict[str, JSON]:
        """What model.json says of it: that code makes it, and which."""
        source = self.source
        named: dict[str, JSON] = {"module": type(self.module).__name__, "null_class": self.null_class}
        if source is None:
            return named
        return {**named, "file": source.file, "function": source.function, "sha256": source.hash}

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
    if codec is None:
        codec = UINT8 if len(shape) == 3 else Codec("identity", -3.0, 3.0, "float32")
    names = class_names or tuple(map(str, range(num_classes)))
    if len(names) != num_classes:
        raise UserError(f"{len(names)} class_names for {num_classes} classes: give one for each")
    provenance: dict[str, JSON] = {"wrapped": type(network).__name__}
    return Model(denoiser, codec, sampler or SamplerOptions(), names, provenance)


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
