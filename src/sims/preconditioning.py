"""Preconditioning: a raw network becomes a denoiser."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sims.denoiser import Stateless, expand


class EDMPrecond(Stateless, nn.Module):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise): Karras et al. 2022 (EDM), equation 7 and table 1.

    ``network`` maps (B, *data_shape), c_noise (B,), labels (B,) to (B, *data_shape).
    ``sigma_data`` is the standard deviation of the data in model space.
    """

    kind = "edm"

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        self.sigma_data = sigma_data
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    @property
    def config(self) -> dict[str, float]:
        return {"sigma_data": self.sigma_data, "sigma_min": self.sigma_min, "sigma_max": self.sigma_max}

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        if sigma.device.type == "cpu" and not torch.is_grad_enabled() and bool((sigma == sigma[0]).all()):
            sigma = sigma[:1]  # (1,): samplers give the whole batch one level, which need be embedded only once
        total = sigma**2 + self.sigma_data**2  # (B,) variance of the noisy data
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data * total.rsqrt()
        c_in = total.rsqrt()
        c_noise = sigma.log() / 4
        output = self.network(expand(c_in, x) * x, c_noise, labels)
        return expand(c_skip, x) * x + expand(c_out, x) * output.to(x.dtype)


PRECONDITIONINGS = {"edm": EDMPrecond}
