"""Noise levels and parameterizations of diffusers: how a network made there sees (x, sigma), and what its output means.

Our state is x = x0 + sigma n. A network F of diffusers receives c_in x and a timestep, and in every parameterization
the estimate of the clean data is affine in its output: D = c_skip x + c_out F(c_in x, timestep).

    family  network's input                     sigma of a timestep     prediction     c_skip             c_out
    vp      sqrt(a) x0 + sqrt(1 - a) n          sqrt((1 - a) / a)       epsilon        1                  -sigma
            = x / sqrt(1 + sigma^2)                                     v_prediction   1 / (1 + sigma^2)  -sigma c_in
                                                                        sample         0                  1
    flow    (1 - s) x0 + s n = x / (1 + sigma)  s / (1 - s), s = t / T  flow           c_in               -sigma c_in
    edm     x / sqrt(sigma^2 + sigma_data^2)    exp(4 t)                epsilon        as in EDM, table 1
                                                                        v_prediction   the same, c_out negated

Epsilon is the noise n; v is sqrt(a) n - sqrt(1 - a) x0 (Salimans and Ho 2022); the flow is n - x0.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from sims.config import JSON, check_sizes, convert, fitted
from sims.errors import UserError

Family = Literal["vp", "flow", "edm"]

PREDICTIONS: dict[Family, tuple[str, ...]] = {
    "vp": ("epsilon", "v_prediction", "sample"),
    "flow": ("flow",),
    "edm": ("epsilon", "v_prediction"),
}
EDM_SCHEDULERS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
SNAP = 1e-3  # timesteps this close to a whole number are meant to be one: float32 noise levels miss it by that much


def library() -> Any:
    """The package diffusers; UserError where it is not installed."""
    try:
        return importlib.import_module("diffusers")
    except ImportError as error:
        raise UserError(
            f"models of diffusers need the package diffusers ({error}): pip install 'sims-diffusion[diffusers]'"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Without what diffusers, and transformers where it is loaded, print of what they do not like, and their bars.

    What is wrong is an error here.
    """
    logs = [library().utils.logging]
    if "transformers" in sys.modules:
        logs.append(sys.modules["transformers"].logging)
    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in logs]
    for log in logs:
        log.set_verbosity(log.CRITICAL)
        log.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels a network knows, the timestep of each, and its parameterization.

    ``levels`` (L,) float64 increase with the timestep; of the continuous family edm they are only the two ends.
    """

    family: Family
    prediction: str
    levels: Tensor
    num_timesteps: int
    sigma_data: float = 1.0

    @property
    def sigma_min(self) -> float:
        return float(self.levels[0])

    @property
    def sigma_max(self) -> float:
        return float(self.levels[-1])

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest level in ln sigma, like sigma; for the family edm only moved into its range."""
        if self.family == "edm":
            return self.clamp(sigma)
        levels, wanted = self._table(sigma)
        middles = (levels[1:].log() + levels[:-1].log()) / 2
        return levels[torch.bucketize(wanted.log(), middles)].to(sigma)

    def clamp(self, sigma: Tensor) -> Tensor:
        """The nearest level between the lowest and the highest."""
        return sigma.clamp(self.sigma_min, self.sigma_max)

    def timestep(self, sigma: Tensor) -> Tensor:
        """The timestep of a noise level, like sigma; between the levels of vp linear in ln sigma, as in k-diffusion."""
        levels, wanted = self._table(sigma)
        if self.family == "edm":
            return (wanted.log() / 4).to(sigma)
        if self.family == "flow":
            time = self.num_timesteps * wanted / (1 + wanted)
        else:
            logs = levels.log()
            below = (torch.bucketize(wanted.log(), logs) - 1).clamp(0, len(logs) - 2)
            share = (wanted.log() - logs[below]) / (logs[below + 1] - logs[below])
            time = below + share.clamp(0, 1)
        whole = time.round()
        return torch.where((time - whole).abs() < SNAP, whole, time).to(sigma)

    def sigma(self, timestep: Tensor) -> Tensor:
        """The noise level of a timestep, float64 where the device has it: the inverse of timestep()."""
        levels, time = self._table(timestep)
        if self.family == "edm":
            return (4 * time).exp()
        if self.family == "flow":
            share = time / self.num_timesteps
            return self.clamp(share / (1 - share).clamp(min=1e-12))
        logs = levels.log()
        time = time.clamp(0, len(logs) - 1)
        below = time.floor().long().clamp(max=len(logs) - 2)
        return (logs[below] + (time - below) * (logs[below + 1] - logs[below])).exp()

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in) of D = c_skip x + c_out F(c_in x), each like sigma."""
        if self.family == "flow":
            c_in = 1 / (1 + sigma)
            return c_in, -sigma * c_in, c_in
        c_in = (sigma**2 + self.sigma_data**2).rsqrt()
        if self.family == "edm":
            c_out = sigma * self.sigma_data * c_in
            return (self.sigma_data * c_in) ** 2, -c_out if self.prediction == "v_prediction" else c_out, c_in
        if self.prediction == "epsilon":
            return torch.ones_like(sigma), -sigma, c_in
        if self.prediction == "v_prediction":
            return c_in**2, -sigma * c_in, c_in
        return torch.zeros_like(sigma), torch.ones_like(sigma), c_in

    def _table(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """The levels, and a value, on the value's device in float64; Apple's GPUs have no float64."""
        dtype = torch.float32 if value.device.type == "mps" else torch.float64
        return self.levels.to(value.device, dtype), value.detach().to(dtype)


@dataclass(frozen=True)
class Settings:
    """What counts of a scheduler's configuration, under the names that it has there; None = not said."""

    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    timestep_type: str | None = None
    sigma_data: float = 1.0
    sigma_min: float | None = None
    sigma_max: float | None = None
    shift: float | None = None
    flow_shift: float | None = None
    use_flow_sigmas: bool | None = None
    invert_sigmas: bool | None = None
    rescale_betas_zero_snr: bool | None = None


def read_schedule(config: Mapping[str, JSON]) -> Schedule:
    """The schedule that a ``scheduler_config.json`` describes; UserError for a scheduler of another kind.

    Settings that only steer sampling there (clip_sample, thresholding, timestep spacing, solver order) do not matter.
    """
    name = str(config.get("_class_name"))
    check_sizes(config, "scheduler_config.json")
    fitted(config, Settings, "scheduler_config.json", rest=True)
    if config.get("predict_epsilon") is False and "prediction_type" not in config:  # as diffusers wrote it once
        config = {**config, "prediction_type": "sample"}
    scheduler = _make(name, config)
    said = {entry.name: scheduler.config[entry.name] for entry in fields(Settings) if entry.name in scheduler.config}
    settings = convert(said, Settings, name, what="setting")
    prediction = settings.prediction_type
    family, reader = _family(name, settings, scheduler)
    if family == "flow" and (name.startswith("FlowMatch") or prediction == "flow_prediction"):
        prediction = "flow"
    if prediction not in PREDICTIONS[family]:
        readable = ", ".join(PREDICTIONS[family])
        raise UserError(f"{name} has prediction_type {prediction!r}: only {readable} can be read, so correct the file")
    _check(settings, config, name)
    with torch.device("cpu"):
        levels = reader(settings, scheduler)
    if len(levels) < 2 or not bool((levels.diff() > 0).all() and levels[0] > 0 and levels[-1].isfinite()):
        raise UserError(
            f"the noise levels of {name} do not increase with the timestep from above 0 ({len(levels)} levels): "
            "correct its betas in scheduler_config.json"
        )
    return Schedule(family, prediction, levels, settings.num_train_timesteps, settings.sigma_data)


_FARTHEST = 1e6  # of a noise level, or of what data vary by: far beyond any network's


def _check(settings: Settings, config: Mapping[str, JSON], name: str) -> None:
    """UserError for numbers that no scheduler of a trained network has, each with the name that it has in the file."""
    positive = ("sigma_data", "sigma_max", "shift", "flow_shift")
    for key in positive:
        value = getattr(settings, key)
        if value is not None and not 0 < value <= _FARTHEST:
            raise UserError(f"{key} of the {name} is {value}: it must be above 0 and at most {_FARTHEST:g}")
    if settings.sigma_min is not None and not 0 <= settings.sigma_min <= _FARTHEST:
        raise UserError(f"sigma_min of the {name} is {settings.sigma_min}: it must be 0 or more")
    betas = config.get("trained_betas")
    listed = betas if isinstance(betas, list) else [config.get("beta_start"), config.get("beta_end")]
    for beta in listed:
        if beta is not None and not (isinstance(beta, int | float) and 0 <= beta <= 1):
            raise UserError(f"a beta of the {name} is {ascii(beta)[:80]}: betas are numbers between 0 and 1")


def _make(name: str, config: Mapping[str, JSON]) -> Any:
    diffusers = library()
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if not isinstance(cls, type):
        raise UserError(
            f"{name!r} is no scheduler of diffusers {diffusers.__version__}: correct _class_name, or update"
        )
    try:
        with torch.device("cpu"), quiet():  # its tables, also where networks are made on meta
            return cls.from_config(config)  # type: ignore[attr-defined]
    except MemoryError:
        raise
    except Exception as error:  # the library checks little of it, and may fail in any way
        reason = ascii(" ".join(str(error).split())[:300])[1:-1]
        raise UserError(f"diffusers cannot make the {name} ({reason}): correct scheduler_config.json") from error


Reader = Callable[[Settings, Any], Tensor]


def _family(name: str, settings: Settings, scheduler: Any) -> tuple[Family, Reader]:
    continuous = settings.timestep_type == "continuous" and settings.prediction_type == "v_prediction"
    if name in EDM_SCHEDULERS or (name == "EulerDiscreteScheduler" and continuous):
        return "edm", _edm_ends
    if settings.invert_sigmas:
        raise UserError(f"{name} has invert_sigmas, time that runs backwards, which cannot be read: use another model")
    if name.startswith("FlowMatch") or settings.use_flow_sigmas:
        return "flow", _flow_levels
    if hasattr(scheduler, "alphas_cumprod"):
        return "vp", _vp_levels
    raise UserError(
        f"{name} has a parameterization that cannot be read: it takes a scheduler with alphas_cumprod (DDPM, DDIM, "
        "Euler, DPM-Solver, ...), a FlowMatch scheduler, or an EDM scheduler"
    )


def _edm_ends(settings: Settings, scheduler: Any) -> Tensor:
    low, high = settings.sigma_min, settings.sigma_max
    levels = [float(s) for s in scheduler.sigmas if s > 0]
    ends = [min(levels) if low is None else low, max(levels) if high is None else high]
    return torch.tensor(ends, dtype=torch.float64)


def _flow_levels(settings: Settings, scheduler: Any) -> Tensor:
    """s / (1 - s) for s = i / T, shifted as the scheduler does; s = 1, where nothing of the data is left, is none."""
    count, shift = settings.num_train_timesteps, (settings.shift or settings.flow_shift) or 1.0
    share = torch.arange(1, count, dtype=torch.float64) / count
    share = shift * share / (1 + (shift - 1) * share)
    return share / (1 - share)


def _vp_levels(settings: Settings, scheduler: Any) -> Tensor:
    """sqrt((1 - a) / a); the last level of zero terminal SNR, a = 0, where sigma is infinite, is left out."""
    alphas = scheduler.alphas_cumprod.to("cpu", torch.float64)
    if settings.rescale_betas_zero_snr:
        alphas = alphas[:-1]  # some schedulers put 2^-24 there, which is more than the alpha before
    alphas = alphas[alphas > 0]
    return ((1 - alphas) / alphas).sqrt()
