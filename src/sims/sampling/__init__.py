"""Samplers: pure functions of a denoiser that never learn what is inside it.

options = SamplerOptions(solver="heun", steps=18)
images, labels = sample_seeds(denoiser, range(64), options)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, cast

import torch
from torch import Tensor

from sims.allocator import keep_memory
from sims.config import LATER, left_open
from sims.denoiser import (
    Denoiser,
    Precision,
    as_denoiser,
    class_shares_of,
    compile_networks,
    device_of,
    half_precision,
)
from sims.errors import UserError
from sims.sampling import consistency, euler, heun, multistep, unipc
from sims.sampling.noise import SeededNoise, checked_shares
from sims.sampling.schedules import edm_sigmas
from sims.sampling.solver import Churn, OnStep, SamplingStep, Solver

__all__ = [
    "SOLVERS",
    "Churn",
    "SamplerOptions",
    "SamplingStep",
    "SeededNoise",
    "SolverName",
    "edm_sigmas",
    "nfe",
    "sample",
    "sample_seeds",
    "shares_to_draw",
]

SolverName = Literal["heun", "dpmpp2m", "unipc", "euler", "consistency"]
Callback = Callable[[SamplingStep], object]
Labels = Tensor | Sequence[int] | int | None
SOLVERS: dict[SolverName, Solver] = {
    "heun": cast(Solver, heun),
    "dpmpp2m": cast(Solver, multistep),
    "unipc": cast(Solver, unipc),
    "euler": cast(Solver, euler),
    "consistency": cast(Solver, consistency),
}
FEW = 4  # evaluations that a sample of a distilled generator takes at most


@dataclass(frozen=True)
class SamplerOptions:
    """How to sample: the solver and its noise levels.

    >>> import sims
    >>> options = sims.SamplerOptions(solver="dpmpp2m", steps=4)
    >>> options.sigmas(sims.load(EXAMPLE)).shape  # the last one is 0
    torch.Size([5])
    """

    solver: SolverName = left_open("heun")  # noqa: RUF009
    """heun: 2 steps - 1 evaluations, second order, takes churn. dpmpp2m: one evaluation a step, deterministic; unipc likewise, third order; euler likewise, first order (DDIM). consistency: of consistency models, noise added anew after each of few steps."""  # noqa: E501
    steps: int = left_open(18)
    """Number of steps from sigma_max to 0."""
    sigma_min: float | None = None
    """Lowest noise level before 0; the model's own if not given."""
    sigma_max: float | None = None
    """Noise level to start from; the model's own if not given."""
    rho: float = 7.0
    """Exponent of the schedule: higher values put more steps at low noise."""
    s_churn: float = 0.0
    """Total amount of noise added along the way; 0 = deterministic (heun only)."""
    s_min: float = 0.0
    """Lowest noise level at which noise is added."""
    s_max: float = math.inf
    """Highest noise level at which noise is added."""
    s_noise: float = 1.0
    """Standard deviation of the added noise; slightly above 1 makes up for lost detail."""
    precision: Precision = "fp32"
    """Arithmetic of the network; bf16 is faster where the device has it, fp16 needs a GPU. Guidance multiplies the rounding: of a guided pair's gain in FD, bf16 cost 4 % on the digits (w = 1.5, pixels, 1,000 samples)."""  # noqa: E501
    class_shares: tuple[float, ...] = ()
    """Classes of a class-conditional model are drawn by these weights, such as 9,1 (a single 1: evenly); by their shares of the model's training data if not given."""  # noqa: E501
    compile: bool = False
    """Let torch compile the networks, on a GPU with CUDA graphs: minutes before the first batch. On a CPU no gain was measured."""  # noqa: E501
    levels: tuple[float, ...] = field(default=(), metadata=LATER)
    """Noise levels to step through, falling, in place of those that follow from steps, sigma_min, sigma_max and rho."""

    def __post_init__(self) -> None:
        _solver(self.solver, self.churn)
        low = 0.002 if self.sigma_min is None else self.sigma_min
        edm_sigmas(self.steps, low, 2 * low if self.sigma_max is None else self.sigma_max, self.rho)
        checked_shares(self.class_shares, len(self.class_shares))
        falling = (*self.levels, 0.0)
        if self.levels and not all(math.inf > high > low for high, low in pairwise(falling)):
            raise UserError(f"levels are {list(self.levels)[:8]}: give noise levels that fall and stay above 0")

    @property
    def churn(self) -> Churn:
        return Churn(self.s_churn, self.s_min, self.s_max, self.s_noise)

    def sigmas(self, denoiser: Denoiser) -> Tensor:
        """Noise levels (N + 1,) float64 that the denoiser knows, decreasing, the last one 0.

        N can be below `steps` where a denoiser of discrete levels rounds several to one.
        """
        low = denoiser.sigma_min if self.sigma_min is None else self.sigma_min
        high = denoiser.sigma_max if self.sigma_max is None else self.sigma_max
        if self.levels:
            sigmas = torch.tensor([*self.levels, 0.0], dtype=torch.float64)
        else:
            sigmas = edm_sigmas(self.steps, low, high, self.rho)
        rounded = denoiser.round_sigma(sigmas[:-1]).to(sigmas)
        return torch.cat([rounded.unique_consecutive(), sigmas[-1:]])

    def stopped(self, denoiser: Denoiser, sigma: float) -> SamplerOptions:
        """The steps above a noise level, and one from there to 0, which takes the estimate of the clean data.

        They have the lengths of these steps, in the exponent's scale, or are a little shorter, so that they end there.
        """
        sigmas = self.sigmas(denoiser)[:-1]
        steps = int((sigmas > sigma).sum()) + 1
        if self.levels:
            return replace(self, steps=steps, levels=(*sigmas[sigmas > sigma].tolist(), sigma))
        return replace(self, steps=steps, sigma_min=sigma, s_churn=self.s_churn * steps / len(sigmas))

    def changed(self, solver: SolverName | None, steps: int | None) -> SamplerOptions:
        """With another solver and other steps, where they are given; churn stays with the one solver that takes it."""
        options = self
        if solver is not None:
            options = replace(options, solver=solver, s_churn=self.s_churn if solver == "heun" else 0.0)
        return options if steps is None else replace(options, steps=steps, levels=())

    def planned(self, denoiser: Denoiser) -> Tensor:
        """Noise levels of the denoiser's evaluations, in order: what denoiser.trajectory() receives."""
        return _solver(self.solver, self.churn).planned(self.sigmas(denoiser), self.churn, denoiser.round_sigma)


def nfe(denoiser: Denoiser, options: SamplerOptions) -> int:
    """Network evaluations that one sample costs.

    >>> import sims
    >>> options = sims.SamplerOptions(solver="heun", steps=18)
    >>> sims.nfe(sims.load(EXAMPLE), options), sims.nfe(sims.load(GUIDED), options)
    (35, 70)
    """
    return denoiser.evaluations(options.planned(denoiser))


@torch.no_grad()
def sample(
    denoiser: Denoiser | Callable[..., Tensor],
    noise: Tensor,
    sigmas: Tensor,
    labels: Tensor | None = None,
    *,
    solver: SolverName = "heun",
    churn: Churn = Churn(),  # noqa: B008 (immutable)
    step_noise: Callable[[], Tensor] | None = None,
    precision: Precision = "fp32",
    callback: Callback | None = None,
) -> Tensor:
    """Samples (B, *data_shape) float32 from standard normal noise (B, *data_shape): nothing survives the call.

    denoiser: a Denoiser, or any callable as ``as_denoiser`` takes it;
    sigmas (N + 1,) decreasing to 0, levels the denoiser knows; labels (B,) or None; step_noise() gives the noise of
    the next step, needed if churn.s_churn > 0 and by the solver consistency. The state is float64, the denoiser sees
    float32 and computes with ``precision``. callback(SamplingStep) is told of every step and changes nothing.
    Samples that diverge come back as they are: the caller counts what is not finite. Errors: UserError for levels that
    do not decrease to 0, an unknown solver, or churn without noise.

    >>> import torch, sims
    >>> def shrink(x, sigma):  # E[x0 | x] for standard normal data
    ...     return x / (1 + sigma[:, None] ** 2)
    >>> levels = []
    >>> noise = torch.randn(4, 2)
    >>> x = sims.sample(shrink, noise, sims.edm_sigmas(3, 0.002, 80.0), callback=lambda step: levels.append(step.sigma))
    >>> x.shape, [round(level, 3) for level in levels]
    (torch.Size([4, 2]), [80.0, 2.515, 0.002])
    """
    noise = torch.as_tensor(noise)
    if not isinstance(denoiser, Denoiser):
        denoiser = as_denoiser(denoiser, tuple(noise.shape[1:]))
    keep_memory()
    method = _solver(solver, churn)
    sigmas = torch.as_tensor(sigmas, device="cpu", dtype=torch.float64)
    _check_sigmas(sigmas)
    noisy = churn.s_churn > 0 or method.RENOISES
    if noisy and step_noise is None:
        what = "churn" if churn.s_churn > 0 else f"solver {solver}"
        raise UserError(f"{what} needs noise for each step: pass step_noise, such as SeededNoise(...).step")
    planned = method.planned(sigmas, churn, denoiser.round_sigma)
    evaluate = denoiser.trajectory(planned)
    half = half_precision(precision, noise.device)
    # Apple's GPUs have no float64.
    state_dtype = torch.float32 if noise.device.type == "mps" else torch.float64

    def denoise(x: Tensor, sigma: float) -> Tensor:
        level = torch.full((len(x),), sigma, dtype=torch.float32, device=x.device)
        with torch.autocast(x.device.type, dtype=half, enabled=half is not None):
            return evaluate(x.to(torch.float32), level, labels).to(state_dtype)

    def next_noise() -> Tensor:
        assert step_noise is not None
        return step_noise().to(noise.device, state_dtype)

    x = noise.to(state_dtype) * float(sigmas[0])
    noises, on_step = next_noise if noisy else None, _told(callback, len(sigmas) - 1)
    x = method.solve(denoise, x, sigmas, churn, denoiser.round_sigma, noises, on_step)
    return x.to(torch.float32)


def sample_seeds(
    denoiser: Denoiser,
    seeds: Sequence[int],
    options: SamplerOptions,
    labels: Labels = None,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    progress: Callable[[int], object] | None = None,
    pad: bool = False,
    callback: Callback | None = None,
) -> tuple[Tensor, Tensor | None]:
    """One sample per seed: x (N, *data_shape) float32 and labels (N,) int64 or None, both on the CPU.

    labels (N,) or one class, -1 = none, replace those drawn from the seeds in ``class_shares`` (options or denoiser).
    Noise, labels and churn depend on the seed alone, bit for bit; the denoiser's arithmetic can differ in its last
    bits between batch sizes. So a job cut at multiples of batch_size resumes bit for bit; pad=True also fills the
    last batch up (repeating seeds), so that every batch ever computed has the same size.
    progress receives the number of samples just finished, callback a SamplingStep at every step of every batch. Errors:
    UserError for seeds or labels out of range.

    >>> import sims
    >>> model = sims.load(EXAMPLE)
    >>> x, labels = sims.sample_seeds(model, range(6), sims.SamplerOptions(solver="dpmpp2m", steps=5), labels=3)
    >>> x.shape, labels.tolist()
    (torch.Size([6, 1, 8, 8]), [3, 3, 3, 3, 3, 3])
    """
    if batch_size < 1:
        raise UserError(f"batch_size must be at least 1; got {batch_size}")
    seeds = _listed(seeds)
    device = device_of(denoiser) if device is None else torch.device(device)
    if options.compile:
        compile_networks(denoiser, graphs=True)
        pad = pad or len(seeds) > batch_size  # another size would be compiled anew
    sigmas = options.sigmas(denoiser)
    x = torch.empty(len(seeds), *denoiser.data_shape)
    chosen, shares = _checked_labels(denoiser, labels, len(seeds)), shares_to_draw(options, denoiser)
    for start in range(0, len(seeds), batch_size):
        index = torch.arange(start, min(start + batch_size, len(seeds)))
        count = len(index)
        if pad:
            index = index[torch.arange(batch_size) % count]
        noise = SeededNoise([seeds[i] for i in index.tolist()], denoiser.data_shape, denoiser.num_classes, shares)
        classes = noise.labels() if labels is None or chosen is None else chosen[index]
        batch = sample(
            denoiser,
            noise.initial().to(device),
            sigmas,
            None if classes is None else classes.to(device),
            solver=options.solver,
            churn=options.churn,
            step_noise=noise.step,
            precision=options.precision,
            callback=None if callback is None else functools.partial(_placed, callback, start, count),
        )
        x[start : start + count] = batch[:count].cpu()
        if chosen is not None and classes is not None:
            chosen[start : start + count] = classes[:count]
        if progress is not None:
            progress(count)
    return x, chosen


def shares_to_draw(options: SamplerOptions, source: object) -> tuple[float, ...]:
    """The shares by which classes are drawn: those asked for, else those that a model or data say of themselves."""
    return options.class_shares or class_shares_of(source)


def _told(callback: Callback | None, num_steps: int) -> OnStep:
    """What a solver calls: it copies state and estimate for the callback, so that nothing it does can matter."""

    def on_step(index: int, sigma: float, x: Tensor, denoised: Tensor) -> None:
        if callback is not None:
            x, denoised = (t.to(torch.float32, copy=True) for t in (x, denoised))
            callback(SamplingStep(index, num_steps, sigma, x, denoised))

    return on_step


def _placed(callback: Callback, first: int, count: int, step: SamplingStep) -> None:
    """A step of one batch among all seeds, without what the batch was filled up with."""
    callback(replace(step, x=step.x[:count], denoised=step.denoised[:count], first=first))


def _solver(name: str, churn: Churn) -> Solver:
    if name not in SOLVERS:
        raise UserError(f"unknown solver {name!r}; choose one of {', '.join(SOLVERS)}")
    if churn.s_churn > 0 and not SOLVERS[name].STOCHASTIC:
        raise UserError(f"solver {name} takes no churn: s_churn must be 0, or choose heun")
    return SOLVERS[name]


def _check_sigmas(sigmas: Tensor) -> None:
    decreasing = sigmas.ndim == 1 and len(sigmas) >= 2 and bool((sigmas.diff() < 0).all())
    if not decreasing or sigmas[-1] != 0 or not math.isfinite(float(sigmas[0])):
        raise UserError(f"noise levels must decrease to 0, such as edm_sigmas(...) gives; got {sigmas.tolist()}")


def _listed(seeds: Iterable[int]) -> list[int]:
    if not isinstance(seeds, Iterable):
        raise UserError(f"seeds are {seeds!r}: give several, such as range(4)")
    return list(seeds)


def _checked_labels(denoiser: Denoiser, labels: Labels, count: int) -> Tensor | None:
    """Labels (count,) int64 to fill or as given; None for a denoiser without classes."""
    if denoiser.num_classes == 0:
        if labels is not None and count:
            raise UserError("this model is unconditional: it takes no labels")
        return None
    if labels is None:
        return torch.full((count,), -1, dtype=torch.int64)
    try:
        given = torch.as_tensor(labels).cpu().reshape(-1)
        chosen = given.to(torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"labels are whole numbers, from 0 on, not {str(labels)[:60]!r} ({error})") from None
    if not torch.equal(chosen.to(given.dtype), given):
        raise UserError(f"labels are whole numbers, from 0 on; got {given.tolist()[:8]}")
    chosen = chosen.expand(count).clone() if len(chosen) == 1 else chosen
    if len(chosen) != count:
        raise UserError(f"{len(chosen)} labels for {count} samples: give one label for all, or one for each")
    for label in chosen.tolist():
        if not -1 <= label < denoiser.num_classes:
            limit = denoiser.num_classes - 1
            raise UserError(f"label {label} is outside the classes: they are 0 to {limit} (-1 = no class)")
    return chosen
