"""A light head on a frozen base as a denoiser of its own: what is trained, and what lies beside the base it guides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from sims.config import JSON, check_arguments
from sims.denoiser import Denoiser, device_of
from sims.errors import UserError
from sims.guidance.head_guide import SharedPass
from sims.networks.feature_head import FeatureHead
from sims.networks.middle import BATCH, Layer, middle_layer, watched
from sims.preconditioning import Coefficients, Preconditioned


class _Kept:
    """The base that a head reads: no part of it, so neither trained, saved nor copied with it."""

    def __init__(self, base: Preconditioned | None) -> None:
        self.base = base

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self


class HeadPrecond(Preconditioned):
    """D_head(x, sigma): c_skip x + c_out F_head(c_in x, ln sigma, features), all but F_head of the base that it reads.

    Read from a file it is a head alone, to be given to ``HeadGuide`` beside its base: then every use of it by itself
    is a UserError.
    """

    kind = "feature_head"
    arguments: ClassVar[tuple[str, ...]] = ("sigma_min", "sigma_max")

    def __init__(
        self,
        network: FeatureHead,
        data_shape: tuple[int, ...],
        num_classes: int,
        sigma_min: float,
        sigma_max: float,
        base: Preconditioned | None = None,
    ) -> None:
        super().__init__(network, data_shape, num_classes, sigma_min, sigma_max)
        self._kept = _Kept(base)

    @property
    def base(self) -> Preconditioned:
        """The denoiser that it reads."""
        if self._kept.base is None:
            raise UserError("a head is no model by itself, since it reads a layer of its base: use the guided model")
        return self._kept.base

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return self.base.coefficients(sigma)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return sigma if self._kept.base is None else self._kept.base.round_sigma(sigma)

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return self.base.loss_weight(sigma)

    def training_sigma(self, normal: Tensor, p_mean: float, p_std: float) -> Tensor:
        return self.base.training_sigma(normal, p_mean, p_std)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any) -> Any:
        shared = SharedPass(self.base, self.network)  # type: ignore[arg-type]
        with torch.no_grad():
            shared.base(x, sigma, labels, **more)
        return shared.head(x, sigma)


def new_head(base: Denoiser, seed: int) -> HeadPrecond:
    """A freshly drawn head on the middle layer of a base, which is put into evaluation mode.

    Errors: UserError where the base is no single network with such a layer, or its data neither vectors nor pictures.
    """
    if not isinstance(base, Preconditioned):
        raise UserError(
            f"guidance by a head needs a base that is a single network, and a {type(base).__name__} is none: leave "
            "this method out"
        )
    if len(base.data_shape) not in (1, 3):
        raise UserError(
            f"a head on data of shape {base.data_shape}: it takes vectors (D,) or pictures (C, H, W), leave this "
            "method out"
        )
    layer = found_layer(base.eval())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = FeatureHead(base.data_shape, base.num_classes, layer.name, layer.shape)
    return HeadPrecond(network, base.data_shape, base.num_classes, base.sigma_min, base.sigma_max, base)


def found_layer(base: Preconditioned) -> Layer:
    """The middle layer of a base's network, by one pass at a middle noise level."""
    device = device_of(base)
    weights = {
        name: weight.detach() for name, weight in base.named_parameters()
    }  # what needs a gradient follows from x
    ends = torch.tensor([base.sigma_min, base.sigma_max], device=device)
    sigma = base.round_sigma(ends.log().mean().exp().expand(BATCH))
    noise = torch.randn(BATCH, *base.data_shape, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.zeros(BATCH, dtype=torch.int64, device=device) if base.num_classes else None
    plain = watched(base, {"network": lambda *_: None})  # as it is uncompiled
    return middle_layer(base.network, lambda x: functional_call(plain, weights, (x, sigma, labels)), sigma[0] * noise)


def make_head(
    data_shape: tuple[int, ...],
    num_classes: int,
    network: dict[str, Any],
    preconditioning: dict[str, JSON],
    folder: Path,
) -> HeadPrecond:
    """A head alone from the two tables of the ``model.json`` in a ``folder``."""
    check_arguments(FeatureHead, network, "network")
    check_arguments(HeadPrecond, preconditioning, "preconditioning")
    raw = FeatureHead(data_shape, num_classes, str(network["layer"]), tuple(network["shape"]))
    low, high = (float(preconditioning[name]) for name in HeadPrecond.arguments)  # type: ignore[arg-type]
    return HeadPrecond(raw, data_shape, num_classes, low, high)
