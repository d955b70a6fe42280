"""Guidance away from own samples as a guider of diffusers' modular pipelines.

    from sims.interop.modular_guider import SelfImprovingGuidance

    pipeline.unet.load_lora_adapter("improved/negative.safetensors", prefix="unet", adapter_name="sims_negative")
    guider = SelfImprovingGuidance.from_folder("improved", pipeline.scheduler)
    pipeline.update_components(guider=guider)

The class is made when it is first asked for: importing this module does not need diffusers.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sims.errors import UserError
from sims.interop.parameterizations import library, read_schedule
from sims.interop.text_guidance import ADAPTER, adapter_used, read_guidance

_CLASS = "SelfImprovingGuidance"
_PREDICTIONS = ("pred_cond", "pred_uncond", "pred_cond_negative", "pred_uncond_negative")
_NEGATIVE = "_negative"


def __getattr__(name: str) -> Any:
    if name == _CLASS:
        return _guider()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@functools.cache
def _guider() -> Any:
    library()
    from diffusers.configuration_utils import register_to_config
    from diffusers.guiders import BaseGuidance

    class SelfImprovingGuidance(_Predictions, BaseGuidance):
        """D_cfg + w (D_cfg - D_cfg,LoRA), where the LoRA is an adapter that the network carries.

        guidance_scale  classifier-free guidance in diffusers' convention; 1 = none
        w               strength of the guidance away from the LoRA; 0 = classifier-free guidance alone
        condition_only  whether only the prediction with the prompt is guided away from the LoRA's
        adapter_name    the adapter, loaded from negative.safetensors
        timesteps       (low, high], where to guide away from the LoRA; None at either end = no limit
        start, stop     the same as fractions of the steps
        """

        _input_predictions: Any = list(_PREDICTIONS)  # noqa: RUF012 (diffusers asks for a list)

        @register_to_config
        def __init__(
            self,
            guidance_scale: float = 5.0,
            w: float = 1.0,
            condition_only: bool = False,
            adapter_name: str = ADAPTER,
            timesteps: tuple[float | None, float | None] | None = None,
            start: float = 0.0,
            stop: float = 1.0,
            enabled: bool = True,
        ) -> None:
            super().__init__(start, stop, enabled)
            self.guidance_scale, self.w, self.condition_only = guidance_scale, w, condition_only
            self.adapter_name = adapter_name
            self.timesteps = (timesteps[0], timesteps[1]) if timesteps else (None, None)
            self._used = ExitStack()

        def forward(
            self,
            pred_cond: Tensor,
            pred_uncond: Tensor | None = None,
            pred_cond_negative: Tensor | None = None,
            pred_uncond_negative: Tensor | None = None,
        ) -> Any:
            from diffusers.guiders.guider_utils import GuiderOutput

            cond = self._away(pred_cond, pred_cond_negative)
            uncond = None if pred_uncond is None else self._away(pred_uncond, pred_uncond_negative)
            pred = cond if uncond is None else uncond + self.guidance_scale * (cond - uncond)
            return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    SelfImprovingGuidance.__module__, SelfImprovingGuidance.__qualname__ = __name__, _CLASS
    return SelfImprovingGuidance


class _Predictions:
    """Which predictions a step needs, and the adapter for each: all but the interface of diffusers."""

    guidance_scale: float
    w: float
    condition_only: bool
    adapter_name: str
    timesteps: tuple[float | None, float | None]
    _used: ExitStack
    _enabled: bool
    _start: float
    _stop: float
    _step: Any
    _num_inference_steps: Any
    _timestep: Any
    _count_prepared: int

    @classmethod
    def from_folder(cls, folder: Path | str, scheduler: Any, **others: Any) -> Any:
        """The guider for what a run left in ``folder``; ``scheduler`` says which timestep has which noise level.

        Errors: UserError for a folder without guidance, one whose correction is reused between steps, and a scheduler
        that cannot be read.
        """
        settings = read_guidance(folder)
        if settings.refresh is not None and "w" not in others:
            raise UserError(
                f"{folder} reuses the correction between steps, which a guider cannot: use guide_pipeline, or pass "
                f"w={settings.w:g} to compute it at every step"
            )
        schedule = read_schedule({**scheduler.config, "_class_name": type(scheduler).__name__})
        low, high = settings.interval
        times = schedule.timestep(schedule.clamp(torch.tensor([low, high], dtype=torch.float64))).tolist()
        # An end beyond the scheduler's levels is no limit.
        limits = (times[0] if low >= schedule.sigma_min else None, times[1] if high < schedule.sigma_max else None)
        given = {"guidance_scale": settings.scale, "w": settings.w, "condition_only": settings.condition_only}
        return cls(**{**given, "timesteps": limits, **others})

    def needed(self) -> list[str]:
        """The predictions of this step, in the order in which they are computed."""
        kinds = ["pred_cond"]
        if self._enabled and self.guidance_scale != 1:
            kinds.append("pred_uncond")
        if not self._is_away():
            return kinds
        return kinds + [kind + _NEGATIVE for kind in (kinds[:1] if self.condition_only else kinds)]

    def _is_away(self) -> bool:
        if not self._enabled or self.w == 0:
            return False
        if self._num_inference_steps is not None:
            first, last = (int(part * self._num_inference_steps) for part in (self._start, self._stop))
            if not first <= self._step < last:
                return False
        if self._timestep is None:
            return True
        time, (low, high) = float(self._timestep), self.timesteps
        return (low is None or low < time) and (high is None or time <= high)

    def _away(self, pred: Tensor, negative: Tensor | None) -> Tensor:
        return pred if negative is None else pred + self.w * (pred - negative)

    # -- the interface of diffusers ------------------------------------------------------------------------------------

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Switch the adapter on for its predictions, and off for the others."""
        self._count_prepared += 1
        if self.w != 0 or self.adapter_name in getattr(denoiser, "peft_config", {}):
            kind = self.needed()[self._count_prepared - 1]
            self._used.enter_context(adapter_used(denoiser, self.adapter_name, kind.endswith(_NEGATIVE)))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        self._used.close()

    def prepare_inputs(self, data: Any) -> list[Any]:
        return [self._prepare_batch(data, int("uncond" in kind), kind) for kind in self.needed()]  # type: ignore[attr-defined]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Any) -> list[Any]:
        prepare = self._prepare_batch_from_block_state  # type: ignore[attr-defined]
        return [prepare(input_fields, data, int("uncond" in kind), kind) for kind in self.needed()]

    @property
    def is_conditional(self) -> bool:
        return "uncond" not in self.needed()[max(0, self._count_prepared - 1)]

    @property
    def num_conditions(self) -> int:
        return len(self.needed())
