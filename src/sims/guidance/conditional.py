"""Guidance away from an auxiliary in the pass with the condition alone, around classifier-free guidance."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from sims.denoiser import Denoiser, Evaluate
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.classifier_free import ClassifierFree
from sims.guidance.correction import CorrectionGuide
from sims.guidance.extrapolate import Extrapolate


@dataclass(frozen=True, eq=False)
class ConditionalExtrapolate(CorrectionGuide, kind="conditional-extrapolation"):
    """D = D_cfg + w s (D(y) - D_aux(y)): SIMS in the pass with the condition alone, where D_cfg has the scale s.

    That is what classifier-free guidance makes of D(y) + w (D(y) - D_aux(y)) in the place of D(y), while D(none) stays;
    the auxiliary is evaluated once, and never without a condition.

    interval  (low, high]: the noise levels at which to guide; the base alone elsewhere (Kynkaanniemi et al. 2024)
    cache     where along a trajectory to recompute the correction; None = everywhere

    w = 0 is the base, D_cfg. Errors: UserError where the base is not classifier-free guidance.

    >>> import sims, torch
    >>> from sims.guidance import ClassifierFree, ConditionalExtrapolate
    >>> net, call = torch.nn.Embedding(4, 2), lambda net, x, t, y: net(y)
    >>> how = {"prediction": "x0", "schedule": "rectified_flow", "num_classes": 3, "null_class": 3, "call": call}
    >>> model = sims.wrap(net, data_shape=(2,), **how)
    >>> guided = ConditionalExtrapolate(ClassifierFree(model.denoiser, w=0.5), model.denoiser, w=1.0)
    >>> sims.nfe(guided, sims.SamplerOptions(steps=4))  # 14 of the base
    28
    """

    children = Extrapolate.children
    calls = (children[0], "single", children[1])

    base: Denoiser
    aux: Denoiser
    w: float
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.base, ClassifierFree):
            raise UserError(
                "guidance in the conditional pass alone needs a base with classifier-free guidance: "
                "give it a scale above 1, or guide both passes"
            )

    @property
    def single(self) -> Denoiser:
        """What classifier-free guidance is laid around."""
        assert isinstance(self.base, ClassifierFree)
        return self.base.base

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """s (D(y) - D_aux(y))."""
        single, aux = others
        assert isinstance(self.base, ClassifierFree)
        return (1 + self.base.w) * (single(x, sigma, labels) - aux(x, sigma, labels))
