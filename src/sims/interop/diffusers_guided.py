"""Two networks of diffusers that answer as one, for sampling loops of diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sims.denoiser import expand
from sims.errors import UserError
from sims.guidance import Extrapolate, Step


class Output(NamedTuple):
    """What a call returns; like the outputs of diffusers, by name or by place."""

    sample: Tensor


class GuidedNetwork(nn.Module):
    """F = F_base + w (F_base - F_aux), with the call of a UNet2DModel (or DiTTransformer2DModel).

    Both networks have one parameterization, D = c_skip x + c_out F with factors that depend on sigma alone, whether F
    is epsilon, v, x0 or a flow. So D_base + w (D_base - D_aux) = c_skip x + c_out (F_base + w (F_base - F_aux)):
    guiding the outputs is guiding the denoisers. Channels after those of the data (a learned variance) are the base's.

    Called as it is, it guides at every noise level of the interval. With a cache rule, ``trajectory(timesteps)`` is the
    module for one sampling run over these timesteps, in this order, which computes the correction only where the rule
    says, and holds it between: as D_base - D_aux = c_out (F_base - F_aux), the quantity that changes slowly.
    """

    def __init__(self, guided: Extrapolate, timesteps: Tensor | Sequence[float] | None = None) -> None:
        super().__init__()
        base: Any = guided.base
        aux: Any = guided.aux
        self.base, self.aux = base.network.model, aux.network.model
        self.guided, self.schedule, self.channels = guided, base.schedule, int(base.data_shape[0])
        self._steps: list[Step | None] | None = None
        if timesteps is not None:
            times = torch.as_tensor(timesteps).detach().to("cpu", torch.float64)
            self._steps = guided.steps(self.schedule.sigma(times))
        self._position = 0
        self._held: tuple[Tensor, Tensor] | None = None  # F_base - F_aux of the last refresh, and c_out there

    @property
    def config(self) -> Any:
        """The base's configuration, which pipelines ask for sizes."""
        return self.base.config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.base.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def trajectory(self, timesteps: Tensor | Sequence[float]) -> GuidedNetwork:
        """The same networks for one sampling run (``scheduler.timesteps``); sample every batch with a fresh one."""
        return GuidedNetwork(self.guided, timesteps)

    @torch.no_grad()
    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Output | tuple[Tensor]:
        """sample (B, C, H, W), as the scheduler scales it; timestep () or (B,) -> ``.sample``, of the same shape."""
        options = {} if class_labels is None else {"class_labels": class_labels}
        output = self.base(sample, timestep, return_dict=False, **options)[0]  # (B, C or 2 C, H, W)
        sigma = self.schedule.sigma(torch.as_tensor(timestep, device=sample.device).reshape(-1))  # (1,) or (B,)
        ours = output[:, : self.channels]
        correction = self._correction(sample, timestep, sigma, ours, options)
        if correction is not None:
            ours = ours + self.guided.w * correction
            output = torch.cat([ours, output[:, self.channels :]], dim=1)
        return Output(output) if return_dict else (output,)

    def _correction(
        self, sample: Tensor, timestep: Tensor | float, sigma: Tensor, ours: Tensor, options: dict[str, Tensor]
    ) -> Tensor | None:
        """What is added to the base's output, before w; None = nothing."""
        if self._steps is None:
            low, high = self.guided.interval
            active = (low < sigma) & (sigma <= high)  # (1,) or (B,)
            if self.guided.w == 0 or not bool(active.any()):
                return None
            return self._fresh(sample, timestep, ours, options) * expand(active, ours)
        if self._position == len(self._steps):
            raise UserError(
                f"this trajectory has {len(self._steps)} timesteps, and all are done: "
                "call trajectory(scheduler.timesteps) anew for every batch"
            )
        step = self._steps[self._position]
        self._position += 1
        if step is None:
            return None
        c_out = self.schedule.scalings(sigma)[1]
        if step.refresh:
            self._held = self._fresh(sample, timestep, ours, options), c_out
        if self._held is None:  # a plan may begin without any correction
            return None
        correction, at = self._held
        return expand(step.scale * at / c_out, ours).to(ours.dtype) * correction

    def _fresh(self, sample: Tensor, timestep: Tensor | float, ours: Tensor, options: dict[str, Tensor]) -> Tensor:
        if self.guided.aux.num_classes == 0:
            options = {}
        return ours - self.aux(sample, timestep, return_dict=False, **options)[0][:, : self.channels]
