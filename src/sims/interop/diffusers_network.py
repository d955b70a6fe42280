"""A network of diffusers as a denoiser, with the module of diffusers inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sims.config import JSON, check_arguments
from sims.errors import UserError
from sims.interop.diffusers_weights import make_module
from sims.interop.parameterizations import read_schedule
from sims.preconditioning import EDM_LEVELS, Coefficients, Preconditioned

UNET, DIT = ARCHITECTURES = ("UNet2DModel", "DiTTransformer2DModel")

Timesteps = Literal["interpolated", "nearest"]


class DiffusersNetwork(nn.Module):
    """A network of diffusers as F(x, timestep, labels): (B, C, H, W), (B,), (B,) or None -> (B, C or 2 C, H, W).

    ``null_class`` says that the class after the last is the one of "no class", where labels of -1 go; without it they
    are a UserError. Channels after the first C are a learned variance, which training does not look after.
    ``model`` is a ready module of that architecture; otherwise one is made from ``settings``, freshly drawn.
    """

    kind = "diffusers"

    def __init__(
        self,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        architecture: str = UNET,
        settings: dict[str, JSON] | None = None,
        null_class: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.data_shape, self.num_classes, self.null_class = tuple(data_shape), num_classes, null_class
        self.architecture, self.settings = architecture, dict(settings or {})
        if model is None:
            if architecture not in ARCHITECTURES:
                raise UserError(f"unknown architecture {architecture!r}: it is {' or '.join(ARCHITECTURES)}")
            model = make_module(architecture, self.settings, empty=torch.empty(0).is_meta)
        self.model = model

    @property
    def config(self) -> dict[str, JSON]:
        return {"architecture": self.architecture, "settings": self.settings, "null_class": self.null_class}

    @property
    def whole_timesteps(self) -> bool:
        """Whether it looks timesteps up in a table, which has nothing between them."""
        return self.settings.get("time_embedding_type") == "learned"

    def train(self, mode: bool = True) -> DiffusersNetwork:
        """Training mode, but without DiT's random loss of labels: every block would draw its own."""
        super().train(mode)
        for module in self.model.modules():
            if type(module).__name__ == "LabelEmbedding":
                module.eval()
        return self

    def forward(self, x: Tensor, timestep: Tensor, labels: Tensor | None = None) -> Tensor:
        if self.whole_timesteps:
            timestep = timestep.round().long()
        options = {"class_labels": self._classes(labels, x)} if self.num_classes else {}
        return self.model(x, timestep, return_dict=False, **options)[0]

    def check_shapes(self) -> None:
        """UserError where the module takes no batch of its own shape; nothing is computed."""
        planned = DiffusersNetwork(self.data_shape, self.num_classes, self.architecture, self.settings).to("meta")
        some = torch.ones(2, dtype=torch.int64, device="meta")
        options = {"class_labels": some} if self.num_classes else {}
        x = torch.empty(2, *self.data_shape, device="meta")
        try:
            outputs = planned.model(x, some if self.whole_timesteps else some.float(), return_dict=False, **options)[0]
        except Exception as error:  # what a library makes of a configuration that it does not check can fail in any way
            reason = ascii(" ".join(str(error).split())[:200])[1:-1]
            raise UserError(
                f"the {self.architecture} of config.json takes no images of {self.data_shape} ({reason}): correct it"
            ) from error
        if outputs.shape[2:] != x.shape[2:]:
            raise UserError(
                f"the {self.architecture} of config.json makes {tuple(outputs.shape[1:])} of {self.data_shape}: "
                "correct it"
            )

    def _classes(self, labels: Tensor | None, x: Tensor) -> Tensor:
        if labels is None:
            labels = torch.full((len(x),), -1, dtype=torch.int64, device=x.device)
        if not self.null_class and bool((labels < 0).any()):
            raise UserError(
                f"this {self.architecture} knows {self.num_classes} classes and nothing for 'no class': give a label "
                "for every sample (or load it with null_class=True if the last of its classes stands for none)"
            )
        return torch.where(labels < 0, self.num_classes, labels)


class DiffusersDenoiser(Preconditioned):
    """D(x, sigma) = c_skip x + c_out F(c_in x, timestep) with the parameterization of a scheduler: see schedules.py.

    ``timesteps`` is "interpolated" (between the levels of training, linear in ln sigma: the default, as in k-diffusion)
    or "nearest" (the nearest level, as with quantize=True there); ``round_sigma`` rounds accordingly. ``sigma_data``
    weights the loss in training; an EDM scheduler has its own.
    """

    kind = "diffusers"

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        scheduler: dict[str, JSON] | None = None,
        timesteps: Timesteps | None = None,
        sigma_data: float = 0.5,
    ) -> None:
        # Without diffusers' own bookkeeping, but with the name of the class.
        self.scheduler = {k: v for k, v in (scheduler or {}).items() if k == "_class_name" or not k.startswith("_")}
        self.schedule = read_schedule(self.scheduler)
        super().__init__(network, data_shape, num_classes, self.schedule.sigma_min, self.schedule.sigma_max)
        whole = bool(getattr(network, "whole_timesteps", False))
        self.timesteps: Timesteps = timesteps or ("nearest" if whole else "interpolated")
        if self.timesteps not in ("interpolated", "nearest"):
            raise UserError(f"timesteps is {self.timesteps!r}: it is interpolated or nearest")
        if whole and self.timesteps == "interpolated":
            raise UserError("this network has learned a table of whole timesteps: use timesteps='nearest'")
        known = network.settings.get("num_train_timesteps") if whole and isinstance(network, DiffusersNetwork) else None
        if isinstance(known, int) and (self.schedule.family == "edm" or self.schedule.num_timesteps > known):
            raise UserError(
                f"this network has learned {known:,} timesteps, and its scheduler has others "
                f"({self.schedule.num_timesteps:,}): give the scheduler that it was trained with"
            )
        self.sigma_data = self.schedule.sigma_data if self.schedule.family == "edm" else sigma_data

    @property
    def config(self) -> dict[str, JSON]:
        return {"scheduler": self.scheduler, "timesteps": self.timesteps, "sigma_data": self.sigma_data}

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.schedule.round(sigma) if self.timesteps == "nearest" else self.schedule.clamp(sigma)

    def training_sigma(self, normal: Tensor, p_mean: float, p_std: float) -> Tensor:
        """Uniform over the timesteps, as diffusers trains, unless p_mean or p_std are other than EDM's (the default).

        EDM's levels hardly ever lie where a schedule of DDPM has half of its timesteps, and there a network that is
        trained further would drift unseen. An EDM scheduler has no timesteps to draw from.
        """
        if self.schedule.family == "edm" or (p_mean, p_std) != EDM_LEVELS:
            return super().training_sigma(normal, p_mean, p_std)
        levels = self.schedule.levels.to(normal.device, normal.dtype)
        return levels[(torch.special.ndtr(normal) * len(levels)).long().clamp(max=len(levels) - 1)]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """The scalings of sigma as it is, also between levels, because the noise is what it is; and the timestep."""
        return *self.schedule.scalings(sigma), self.schedule.timestep(self.round_sigma(sigma))


def make_denoiser(
    data_shape: tuple[int, ...],
    num_classes: int,
    network: dict[str, Any],
    preconditioning: dict[str, Any],
    folder: Path,
) -> DiffusersDenoiser:
    """A freshly drawn network from the two tables of the ``model.json`` in a ``folder``."""
    check_arguments(DiffusersNetwork, network, "network")
    check_arguments(DiffusersDenoiser, preconditioning, "preconditioning")
    raw = DiffusersNetwork(data_shape, num_classes, **network)
    return DiffusersDenoiser(raw, data_shape, num_classes, **preconditioning)
