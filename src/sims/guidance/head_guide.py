"""Guidance away from what a light head on the base's middle layer makes of half a pass; both share one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sims.denoiser import Denoiser, Evaluate, expand
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide
from sims.networks.feature_head import FeatureHead
from sims.networks.middle import watched


class SharedPass:
    """One pass of a base after the other, each read by a head; what was read last lives here and nowhere else.

    ``base`` evaluates the base and keeps what its network was given, what its layer gave and what came out; ``head``
    then makes D_head = D + c_out (F_head - F) of it, with the base's own c_out: c_skip x is the same in both.
    Errors: UserError for a base that is not a single network with that layer.
    """

    def __init__(self, base: Any, head: FeatureHead) -> None:
        self._base, self._head = base, head
        if not isinstance(base, nn.Module) or not hasattr(base, "output_scale"):
            raise UserError(
                f"guidance by a head needs a base that is a single network, and a {type(base).__name__} is none: "
                "choose another method"
            )
        hooks = {"network": self._see_network, f"network.{head.layer}": self._see_layer}
        try:
            self._watched = watched(base, hooks)
        except AttributeError:
            raise UserError(f"the base has no layer {head.layer!r}: this head was trained on another base") from None

    def base(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any) -> Tensor:
        """The base's own estimate, bit for bit as it is without a head."""
        self._features: Tensor | None = None
        self._denoised: Tensor = self._watched(x, sigma, labels, **more)
        if self._features is None:
            raise UserError(
                f"no pass of the base comes by its layer {self._head.layer!r}: guidance by a head cannot read a "
                "network that was compiled in parts, or calls its layers by other ways"
            )
        return self._denoised

    def head(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The head's estimate, of the pass that was last."""
        assert self._features is not None
        level = sigma[: self._levels].log() / 4
        moved = self._head(self._given, level, self._features).to(x.dtype) - self._output.to(x.dtype)
        return self._denoised + expand(self._base.output_scale(sigma), x).to(x.dtype) * moved

    def _see_network(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self._given: Tensor = given[0]
        self._levels = len(given[1])  # one, where the whole batch has the same
        self._output = output[:, : given[0].shape[1]]  # some networks predict variances too

    def _see_layer(self, module: nn.Module, given: Any, output: Tensor) -> None:
        self._features = output


@dataclass(frozen=True, eq=False)
class HeadGuide(CorrectionGuide, kind="head"):
    """D = D_base + w (D_base - D_head), where a light head reads the base's middle layer (SSG, arXiv 2607.29122).

    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute the correction D_base - D_head; None = everywhere

    Both come of one pass of the base, and evaluations are the base's: the head is counted as none. Measured on one
    core, a sample takes 1.00 to 1.03 times as long as the base's with U-Nets and transformers (head: 0.1 to 1.2 % of
    the weights), 1.11 times with the perceptron of the digits (3 %). w = 0 is the base, bit for bit. The base is not
    compiled, since nothing can be read inside what is.
    Errors: UserError for a base that is not a single network, or not the one that the head was trained on.
    """

    children = (*CorrectionGuide.children, "head")
    calls = CorrectionGuide.children

    base: Denoiser
    head: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(getattr(self.head, "network", None), FeatureHead):
            raise UserError(f"a {type(self.head).__name__} is no head on a layer of a base: give one that was trained")
        self.evaluators()

    def evaluators(self, *levels: Tensor) -> list[Evaluate]:
        """The base, and the head on the base's last pass; each list is one pass after the other, and no other's."""
        shared = SharedPass(self.base, self.head.network)  # type: ignore[attr-defined]
        return [shared.base, shared.head]

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D_base - D_head."""
        return denoised - others[0](x, sigma, labels)

    def compile_networks(self, graphs: bool = False) -> None:
        """Nothing: a compiled network shows nothing of its inside."""
