"""Interpolants: how much of the data and of the noise there is at every time of a network's training.

A network is trained on x_t = alpha(t) x0 + s(t) n. Our state is x = x0 + sigma n, so x_t = alpha(t) x with
sigma = s(t) / alpha(t): an interpolant says which noise levels there are, how to scale x, and which time to tell.

    interpolant            alpha(t)                               s(t)                    times
    linear, scaled linear  sqrt(prod_{i <= t} (1 - beta_i))       sqrt(1 - alpha^2)       0 ... T - 1, or 1 ... T
    cosine                 the same with its betas                sqrt(1 - alpha^2)       likewise
    rectified flow         1 - t (or t, where t = 1 is the data)  t (or 1 - t)            [0, 1]
    trigonometric          cos(pi t / 2) (or sin)                 sin(pi t / 2) (or cos)  [0, 1]
    VP-SDE                 exp(-t^2 (b1 - b0) / 4 - t b0 / 2)     sqrt(1 - alpha^2)       (0, 1]
    VE-SDE                 1                                      low (high / low)^t      [0, 1]
    EDM                    1                                      t                       told as ln(t) / 4
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sims.config import JSON, nearest
from sims.errors import UserError

Curve = Callable[[Tensor], Tensor]
MOST_TIMES = 1_000_000
_BISECTIONS = 60  # after which a float64 interval cannot be halved
_SNAP = 1e-3  # times this close to a whole one are meant to be it: float32 noise levels miss it by that much


@dataclass(frozen=True, eq=False)
class Interpolant:
    """x_t = alpha(t) x0 + s(t) n, for times from ``clean``, where sigma = s / alpha is least, to ``noisy``.

    ``alpha`` and ``s`` map float64 tensors (B,) to such. ``count`` is the number of whole times that there are, None
    where time is continuous; noise levels in between are rounded to whole times, unless ``between``. ``time_of`` is the
    inverse of sigma(t), where it is known. The network is told ``scale`` t, or ``told(t)``. ``settings`` make it again;
    None where nothing but the code can.
    """

    alpha: Curve
    s: Curve
    clean: float
    noisy: float
    count: int | None = None
    between: bool = False
    scale: float = 1.0
    told: Curve | None = None
    time_of: Curve | None = None
    settings: Mapping[str, JSON] | None = None
    sigma_min: float = field(init=False)
    sigma_max: float = field(init=False)

    def __post_init__(self) -> None:
        times = torch.linspace(self.clean, self.noisy, min(self.count or 257, 4096), dtype=torch.float64, device="cpu")
        sigmas = self.s(times) / self.alpha(times)
        if not (bool(torch.isfinite(sigmas).all()) and float(sigmas[0]) > 0 and bool((sigmas.diff() > 0).all())):
            raise UserError(
                f"s(t) / alpha(t) must be finite, above 0, and increase from the clean time {self.clean:g} to the "
                f"noisy one {self.noisy:g}; it goes from {float(sigmas[0]):.4g} to {float(sigmas[-1]):.4g}: leave out "
                "ends where alpha or s is 0, or turn the time around"
            )
        object.__setattr__(self, "sigma_min", float(sigmas[0]))
        object.__setattr__(self, "sigma_max", float(sigmas[-1]))

    def sigma(self, time: Tensor) -> Tensor:
        """Noise levels of times (B,), float64: s / alpha."""
        time = time.to(torch.float64)
        return self.s(time) / self.alpha(time)

    def time(self, sigma: Tensor) -> Tensor:
        """Times (B,) of noise levels (B,), float64: the inverse of ``sigma``; beyond the ends, the ends."""
        wanted = sigma.detach().to(torch.float64).clamp(self.sigma_min, self.sigma_max)
        time = self._bisected(wanted) if self.time_of is None else self.time_of(wanted)
        if self.count is None:
            return time
        whole = time.round()
        return torch.where((time - whole).abs() < _SNAP, whole, time) if self.between else whole

    def _bisected(self, wanted: Tensor) -> Tensor:
        clean, noisy = torch.full_like(wanted, self.clean), torch.full_like(wanted, self.noisy)
        for _ in range(_BISECTIONS):
            middle = (clean + noisy) / 2
            above = self.sigma(middle) > wanted
            clean, noisy = torch.where(above, clean, middle), torch.where(above, middle, noisy)
        return (clean + noisy) / 2

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise level that the network knows, like sigma."""
        if self.count is not None and not self.between:
            return self.sigma(self.time(sigma)).to(sigma)
        return sigma.clamp(self.sigma_min, self.sigma_max)

    def tell(self, time: Tensor) -> Tensor:
        """What the network is told of times."""
        return self.scale * time if self.told is None else self.told(time)

    def slopes(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """(d alpha / dt, ds / dt) at times (B,), float64; UserError for whole times, which have no slopes."""
        if self.count is not None:
            raise UserError("a velocity needs continuous time, and this schedule has whole times: choose eps, v or x0")
        with torch.enable_grad():
            t = time.detach().to(torch.float64).requires_grad_()
            values = self.alpha(t), self.s(t)
            slopes = [torch.autograd.grad(v.sum(), t)[0] if v.requires_grad else torch.zeros_like(v) for v in values]
        return slopes[0].detach(), slopes[1].detach()

    def draw(self, uniform: Tensor) -> Tensor:
        """Noise levels like ``uniform`` (B,) in [0, 1): of times drawn evenly, as such networks are trained."""
        share = uniform.to(torch.float64)
        if self.count is not None:
            share = (share * self.count).floor().clamp(max=self.count - 1) / (self.count - 1)
        return self.sigma(self.clean + (self.noisy - self.clean) * share).to(uniform)


# -- whole times: a table of alphas ------------------------------------------------------------------------------------


def of_alphas_cumprod(
    alphas_cumprod: Sequence[float] | Tensor, *, first: int = 0, between: bool = False, scale: float = 1.0
) -> Interpolant:
    """alpha(t)^2 in a table of whole times ``first``, ``first + 1``, ...; the noisier end may stand first.

    Where nothing is left of the data (zero terminal SNR), the last time is left out. Errors: UserError for values that
    do not lie between 0 and 1 in order.

    >>> import sims
    >>> schedule = sims.interpolants.of_alphas_cumprod([0.9, 0.5, 0.1])
    >>> round(schedule.sigma_min, 3), round(schedule.sigma_max, 3)
    (0.333, 3.0)
    """
    squared = torch.as_tensor(alphas_cumprod, dtype=torch.float64, device="cpu").reshape(-1)
    if len(squared) > MOST_TIMES:
        raise UserError(f"alphas_cumprod has {len(squared):,} times: at most {MOST_TIMES:,} are read")
    backwards = len(squared) > 1 and bool(squared[0] < squared[-1])
    kept = squared.flip(0) if backwards else squared
    kept = kept[: len(kept) - int((kept == 0).sum())]
    if len(kept) < 2 or not bool((kept < 1).all() and (kept > 0).all() and (kept.diff() < 0).all()):
        raise UserError(
            f"alphas_cumprod must fall from below 1 towards 0, one for each of at least two times; got {len(squared)} "
            "values: give the products of (1 - beta), or the betas to of_betas"
        )
    logs = ((1 - kept) / kept).log() / 2  # ln sigma, ascending
    last, step = len(kept) - 1, -1 if backwards else 1
    clean = first + len(squared) - 1 if backwards else first

    def sigma(time: Tensor) -> Tensor:
        place, table = ((time - clean) * step).clamp(0, last), logs.to(time.device)
        below = place.floor().long().clamp(max=last - 1)
        return torch.lerp(table[below], table[below + 1], place - below).exp()

    def time_of(wanted: Tensor) -> Tensor:
        table = logs.to(wanted.device)
        below = (torch.bucketize(wanted.log(), table) - 1).clamp(0, last - 1)
        share = (wanted.log() - table[below]) / (table[below + 1] - table[below])
        return clean + step * (below + share)

    return Interpolant(
        lambda time: (1 + sigma(time) ** 2).rsqrt(),
        lambda time: sigma(time) * (1 + sigma(time) ** 2).rsqrt(),
        clean, clean + step * last, len(kept), between, scale, time_of=time_of,
        settings={"name": "of_alphas_cumprod", "alphas_cumprod": squared.tolist(), **_times(first, between, scale)},
    )  # fmt: skip


def of_betas(
    betas: Sequence[float] | Tensor, *, first: int = 0, between: bool = False, scale: float = 1.0
) -> Interpolant:
    """alpha(t)^2 = prod_{i <= t} (1 - beta_i): Ho et al. 2020 (DDPM), equation 4."""
    factors = 1 - torch.as_tensor(betas, dtype=torch.float64, device="cpu").reshape(-1)
    return of_alphas_cumprod(factors.cumprod(0), first=first, between=between, scale=scale)


def linear(steps: int = 1000, start: float = 1e-4, end: float = 0.02, **times: Any) -> Interpolant:
    """Betas evenly spaced from ``start`` to ``end``: Ho et al. 2020, section 4; ``times`` as for ``of_betas``.

    >>> import sims
    >>> round(sims.interpolants.linear().sigma_max, 1)
    157.4
    """
    made = of_betas(torch.linspace(start, end, _counted(steps), dtype=torch.float64, device="cpu"), **times)
    return _named(made, "linear", steps=steps, start=start, end=end, **times)


def scaled_linear(steps: int = 1000, start: float = 0.00085, end: float = 0.012, **times: Any) -> Interpolant:
    """Betas whose roots are evenly spaced: latent diffusion (Rombach et al. 2022); ``times`` as for ``of_betas``."""
    roots = torch.linspace(start**0.5, end**0.5, _counted(steps), dtype=torch.float64, device="cpu")
    return _named(of_betas(roots**2, **times), "scaled_linear", steps=steps, start=start, end=end, **times)


def cosine(
    steps: int = 1000, offset: float = 0.008, low: float = 0.0, high: float | None = 0.999, **times: Any
) -> Interpolant:
    """alpha^2 = f(t + 1) / f(0), f(t) = cos^2((t / T + offset) / (1 + offset) pi / 2): Nichol & Dhariwal 2021, eq. 17.

    Betas are cut to [``low``, ``high``], as there; without ``high`` alpha^2 is left as it is, and its last time, where
    it is 0, left out. ``times`` as for ``of_betas``.
    """
    place = torch.arange(_counted(steps) + 1, dtype=torch.float64, device="cpu") / steps
    f = ((place + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    if high is None:
        alphas = f[1:] / f[0]
        made = of_alphas_cumprod(torch.where(alphas < 1e-12, 0.0, alphas), **times)
    else:
        made = of_betas((1 - f[1:] / f[:-1]).clamp(low, high), **times)
    return _named(made, "cosine", steps=steps, offset=offset, low=low, high=high, **times)


# -- continuous time ---------------------------------------------------------------------------------------------------


def rectified_flow(
    data_at: int = 0, *, scale: float = 1.0, sigma_min: float = 0.002, sigma_max: float = 500.0
) -> Interpolant:
    """x_t = (1 - t) x0 + t n, or with ``data_at`` 1, where time runs to the data, t x0 + (1 - t) n: Liu et al. 2023.

    sigma = t / (1 - t) (or its inverse); ``sigma_min`` and ``sigma_max`` keep away from the ends, where it is 0 and
    infinite. The network is told ``scale`` t.

    >>> import torch, sims
    >>> sims.interpolants.rectified_flow().time(torch.tensor([1.0]))
    tensor([0.5000], dtype=torch.float64)
    """
    if data_at not in (0, 1):
        raise UserError(f"data_at is {data_at!r}: the data are at time 0 or 1")
    low, high = (sigma / (1 + sigma) for sigma in _ends(sigma_min, sigma_max))
    settings = {"data_at": data_at, "scale": scale, "sigma_min": sigma_min, "sigma_max": sigma_max}
    if data_at == 0:
        made = Interpolant(lambda t: 1 - t, lambda t: t, low, high, scale=scale, time_of=lambda s: s / (1 + s))
    else:
        made = Interpolant(lambda t: t, lambda t: 1 - t, 1 - low, 1 - high, scale=scale, time_of=lambda s: 1 / (1 + s))
    return _named(made, "rectified_flow", **settings)


def trigonometric(
    data_at: int = 0, *, scale: float = 1.0, sigma_min: float = 0.002, sigma_max: float = 500.0
) -> Interpolant:
    """x_t = cos(pi t / 2) x0 + sin(pi t / 2) n, or with ``data_at`` 1 the other way: Albergo and Vanden-Eijnden 2023.

    sigma = tan(pi t / 2). The network is told ``scale`` t.
    """
    if data_at not in (0, 1):
        raise UserError(f"data_at is {data_at!r}: the data are at time 0 or 1")
    low, high = (2 / math.pi * math.atan(sigma) for sigma in _ends(sigma_min, sigma_max))
    quarter = math.pi / 2
    rising, falling = (lambda t: (quarter * t).sin()), (lambda t: (quarter * t).cos())
    if data_at == 0:
        made = Interpolant(falling, rising, low, high, scale=scale, time_of=lambda s: s.atan() / quarter)
    else:
        made = Interpolant(rising, falling, 1 - low, 1 - high, scale=scale, time_of=lambda s: 1 - s.atan() / quarter)
    return _named(made, "trigonometric", data_at=data_at, scale=scale, sigma_min=sigma_min, sigma_max=sigma_max)


def vp_sde(beta_min: float = 0.1, beta_max: float = 20.0, *, epsilon: float = 1e-3, scale: float = 1.0) -> Interpolant:
    """alpha = exp(-t^2 (beta_max - beta_min) / 4 - t beta_min / 2), t in [``epsilon``, 1]: Song et al. 2021, eq. 33."""
    d = beta_max - beta_min

    def log_alpha(t: Tensor) -> Tensor:
        return -(t**2) * d / 4 - t * beta_min / 2

    def time_of(sigma: Tensor) -> Tensor:
        return ((beta_min**2 + 2 * d * (sigma**2).log1p()).sqrt() - beta_min) / d

    made = Interpolant(
        lambda t: log_alpha(t).exp(), lambda t: (-torch.expm1(2 * log_alpha(t))).sqrt(), epsilon, 1.0, scale=scale,
        time_of=time_of,
    )  # fmt: skip
    return _named(made, "vp_sde", beta_min=beta_min, beta_max=beta_max, epsilon=epsilon, scale=scale)


def ve_sde(sigma_min: float = 0.01, sigma_max: float = 50.0, *, scale: float = 1.0) -> Interpolant:
    """x_t = x0 + sigma_min (sigma_max / sigma_min)^t n for t in [0, 1]: Song et al. 2021, equation 30."""
    low, high = _ends(sigma_min, sigma_max)
    ratio = math.log(high / low)
    made = Interpolant(
        torch.ones_like, lambda t: low * (ratio * t).exp(), 0.0, 1.0, scale=scale,
        time_of=lambda s: (s / low).log() / ratio,
    )  # fmt: skip
    return _named(made, "ve_sde", sigma_min=sigma_min, sigma_max=sigma_max, scale=scale)


def edm(sigma_min: float = 0.002, sigma_max: float = 80.0, *, told: str = "log", scale: float = 1.0) -> Interpolant:
    """x_t = x0 + t n, the state of Karras et al. 2022; the network is told ln(t) / 4 ("log"), or t ("sigma").

    Either times ``scale``: 1000 in the teachers of consistency models (Song et al. 2023).
    """
    if told not in ("log", "sigma"):
        raise UserError(f"told is {told!r}: the network is told 'log', ln(sigma) / 4, or 'sigma'")
    low, high = _ends(sigma_min, sigma_max)
    tell = (lambda t: scale * t.log() / 4) if told == "log" else None
    made = Interpolant(torch.ones_like, lambda t: t, low, high, scale=scale, told=tell, time_of=lambda s: s)
    return _named(made, "edm", sigma_min=sigma_min, sigma_max=sigma_max, told=told, scale=scale)


NAMED: dict[str, Callable[..., Interpolant]] = {
    "linear": linear,
    "scaled_linear": scaled_linear,
    "cosine": cosine,
    "of_alphas_cumprod": of_alphas_cumprod,
    "rectified_flow": rectified_flow,
    "trigonometric": trigonometric,
    "vp_sde": vp_sde,
    "ve_sde": ve_sde,
    "edm": edm,
}


def interpolant(settings: Mapping[str, JSON] | str) -> Interpolant:
    """The interpolant of a name, or of a table with its ``name`` and arguments; UserError for others.

    >>> import sims
    >>> sims.interpolants.interpolant({"name": "cosine", "steps": 100}).count
    100
    """
    table = {"name": settings} if isinstance(settings, str) else dict(settings)
    name = str(table.pop("name", ""))
    if name not in NAMED:
        raise UserError(f"unknown schedule {name!r}{nearest(name, NAMED)}")
    try:
        return NAMED[name](**table)
    except TypeError as error:
        raise UserError(f"schedule {name!r}: {error}") from None


def _named(made: Interpolant, name: str, **settings: Any) -> Interpolant:
    return replace(made, settings={"name": name, **settings})


def _times(first: int, between: bool, scale: float) -> dict[str, JSON]:
    return {"first": first, "between": between, "scale": scale}


def _counted(steps: int) -> int:
    if not 2 <= steps <= MOST_TIMES:
        raise UserError(f"a schedule of {steps} steps: 2 to {MOST_TIMES:,} are needed")
    return steps


def _ends(low: float, high: float) -> tuple[float, float]:
    if not 0 < low < high < math.inf:
        raise UserError(f"noise levels need 0 < sigma_min < sigma_max; got {low} and {high}")
    return low, high
