"""Preconditioning: a raw network becomes a denoiser (Karras et al. 2022, table 1)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sims.config import JSON, nearest
from sims.denoiser import Stateless, device_of, expand
from sims.errors import UserError
from sims.interpolants import Interpolant, interpolant
from sims.networks import LossHead
from sims.networks.compiling import compile_network
from sims.networks.layout import laid_out

MOST_VALUES, MOST_CLASSES = 1 << 28, 10_000_000  # of a sample (8192 x 8192 x 3), and of a network
Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]  # c_skip, c_out, c_in, c_noise, each (B,)


class Preconditioned(Stateless, nn.Module, ABC):
    """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise): Karras et al. 2022 (EDM), equation 7.

    ``network`` maps (B, *data_shape), c_noise (B,), labels (B,) to (B, *data_shape). ``loss_head``, where there is one,
    estimates the log-variance of the error; nothing but the loss asks for it.
    """

    kind: ClassVar[str]
    class_shares: tuple[float, ...] = ()
    """The classes' shares of the data it was trained on, by which classes are drawn; () where that is not known."""
    unit = 1.0  # of its network's values, in those of x

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int,
        sigma_min: float,
        sigma_max: float,
    ) -> None:
        super().__init__()
        if not data_shape or min(data_shape) < 1 or math.prod(data_shape) > MOST_VALUES:
            raise UserError(f"samples of shape {tuple(data_shape)}: they have from 1 to {MOST_VALUES:,} values")
        if not 0 <= num_classes <= MOST_CLASSES:
            raise UserError(f"a network of {num_classes:,} classes: there are from 0 to {MOST_CLASSES:,}")
        self.network = laid_out(network)
        self.data_shape = tuple(data_shape)
        self.num_classes = num_classes
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.loss_head: nn.Module | None = None

    arguments: ClassVar[tuple[str, ...]]
    """The names of what makes this preconditioning again, beyond network, shape and classes."""

    @property
    def config(self) -> dict[str, JSON]:
        """The arguments and their values."""
        return {name: getattr(self, name) for name in self.arguments}

    @abstractmethod
    def coefficients(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in, c_noise at noise levels (B,)."""

    def output_scale(self, sigma: Tensor) -> Tensor:
        """How far the estimate moves with the network's output, at noise levels (B,)."""
        return self.coefficients(sigma)[1] / self.unit

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error at noise levels (B,): 1 / c_out^2, so that all outputs F weigh the same.

        That is lambda(sigma) of Karras et al. 2022, section 5 and table 1, in every column: for a network that predicts
        the noise, the loss it was published with.
        """
        return self.coefficients(sigma)[1] ** -2

    def training_sigma(self, normal: Tensor, p_mean: float, p_std: float) -> Tensor:
        """Noise levels to train on from standard normal numbers (B,): ln sigma ~ N(p_mean, p_std^2), table 1."""
        return (normal * p_std + p_mean).exp()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor,
        labels: Tensor | None = None,
        *,
        augment: Tensor | None = None,
        log_variance: bool = False,
    ) -> Any:
        """The estimate of the clean data, like x; with ``log_variance`` a pair: the estimate, and u(sigma), (B,).

        ``augment`` (B, augment_dim) says what was done to the training images; nothing is said when sampling.
        Raises UserError for ``augment`` where the network has no place for it.
        """
        if sigma.device.type == "cpu" and not torch.is_grad_enabled() and bool((sigma == sigma[0]).all()):
            sigma = sigma[:1]  # (1,): samplers give the whole batch one level, which need be embedded only once
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        more = {} if augment is None else {"augment": self._checked(augment)}
        output = self.network(expand(c_in, x) * x, c_noise, labels, **more)
        output = output[:, : x.shape[1]]  # some networks predict variances too
        denoised = expand(c_skip, x) * x + expand(c_out, x) * output.to(x.dtype)
        if not log_variance:
            return denoised
        assert self.loss_head is not None
        return denoised, self.loss_head(c_noise)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in torch; weights that take the place of others are laid out as those were."""
        result = super().load_state_dict(*args, **kwargs)
        laid_out(self.network)
        return result

    def compile_networks(self, graphs: bool = False) -> None:
        """Let torch compile the network: see ``compile_network`` in sims.networks.compiling."""
        compile_network(self.network, device_of(self), graphs)

    def _checked(self, augment: Tensor) -> Tensor:
        width = self.network.config.get("augment_dim", 0)  # type: ignore[operator,union-attr]
        if not width:
            raise UserError("this network takes no augmentation labels: leave them out")
        if augment.shape[1:] != (width,):
            raise UserError(f"augmentation labels have shape {tuple(augment.shape)}: this network takes (B, {width})")
        return augment


class EDMPrecond(Preconditioned):
    """The preconditioning of Karras et al. 2022 (EDM), table 1, last column.

    ``sigma_data`` is the standard deviation of the data in model space.
    """

    kind = "edm"
    arguments: ClassVar[tuple[str, ...]] = ("sigma_data", "sigma_min", "sigma_max")

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__(network, data_shape, num_classes, sigma_min, sigma_max)
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        total = sigma**2 + self.sigma_data**2  # (B,) variance of the noisy data
        return self.sigma_data**2 / total, sigma * self.sigma_data * total.rsqrt(), total.rsqrt(), sigma.log() / 4

    def loss_weight(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class EDM2Precond(EDMPrecond):
    """EDM's preconditioning with the head that EDM2's loss is weighted by (Karras et al. 2024, equation 21).

    ``logvar_channels`` is the width of the head.
    """

    kind = "edm2"
    arguments = ("sigma_data", "sigma_min", "sigma_max", "logvar_channels")

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
    ) -> None:
        super().__init__(network, data_shape, num_classes, sigma_data, sigma_min, sigma_max)
        self.loss_head = LossHead(logvar_channels)
        self.logvar_channels = logvar_channels


class ConsistencyPrecond(EDMPrecond):
    """A consistency function f(x, sigma), which is x at sigma_min: Song et al. 2023, appendix C, equation 9 onwards.

    One evaluation at sigma_max makes a sample. The network is told ``scale`` ln(sigma): 250 in published models, 0.25
    where it was distilled from a network of EDM.
    """

    kind = "consistency"
    arguments = ("sigma_data", "sigma_min", "sigma_max", "scale")

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        sigma_data: float = 0.5,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        scale: float = 250.0,
    ) -> None:
        super().__init__(network, data_shape, num_classes, sigma_data, sigma_min, sigma_max)
        self.scale = scale

    def coefficients(self, sigma: Tensor) -> Coefficients:
        data, above = self.sigma_data, sigma - self.sigma_min
        c_in = (sigma**2 + data**2).rsqrt()
        return data**2 / (above**2 + data**2), above * data * c_in, c_in, self.scale * sigma.log()


class RatioPrecond(EDMPrecond):
    """What tells noised data of two kinds apart, as the denoiser of their density ratio: x + sigma^2 grad_x logit.

    logit = sigma_data c_in sum(F (1 + c_in x)) / sqrt(D), of the D values of F(c_in x, c_noise): with F of one size,
    what is added to x falls with sigma^2 at low noise, as D_1 - D_2 does. The product has slopes from the first step.
    """

    kind = "ratio"

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, *, logit: bool = False, **_: Any) -> Any:
        """Like x; with ``logit`` that itself, (B,): above 0 where x is rather of the first kind."""
        c_in, c_noise = self.coefficients(sigma)[2:]
        with torch.enable_grad():
            given = x if logit else x.detach().requires_grad_()
            scaled = expand(c_in, x) * given
            terms = self.network(scaled, c_noise, labels).to(x.dtype) * (1 + scaled)
            found = self.sigma_data * c_in * terms.flatten(1).sum(1) / x[0].numel() ** 0.5
            return found if logit else x + expand(sigma**2, x) * torch.autograd.grad(found.sum(), given)[0]

    def evaluations(self, sigmas: Tensor) -> int:
        return 2 * len(sigmas)  # a pass, and the way back to x


class VPPrecond(Preconditioned):
    """Variance preserving (Song et al. 2021), column VP of table 1.

    sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t from ``epsilon_t`` to 1, told as (M - 1) t; not rounded.
    """

    kind = "vp"
    arguments = ("beta_d", "beta_min", "M", "epsilon_t")

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        M: int = 1000,
        epsilon_t: float = 1e-5,
    ) -> None:
        low, high = (math.sqrt(math.expm1(beta_d * t**2 / 2 + beta_min * t)) for t in (epsilon_t, 1.0))
        super().__init__(network, data_shape, num_classes, low, high)
        self.beta_d, self.beta_min, self.M, self.epsilon_t = beta_d, beta_min, M, epsilon_t

    def coefficients(self, sigma: Tensor) -> Coefficients:
        log = (1 + sigma**2).log()  # (B,)
        time = ((self.beta_min**2 + 2 * self.beta_d * log).sqrt() - self.beta_min) / self.beta_d  # (B,) t of sigma
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), (self.M - 1) * time


class VEPrecond(Preconditioned):
    """Variance exploding (Song et al. 2021), column VE of table 1."""

    kind = "ve"
    arguments = ("sigma_min", "sigma_max")

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
    ) -> None:
        super().__init__(network, data_shape, num_classes, sigma_min, sigma_max)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return torch.ones_like(sigma), sigma, torch.ones_like(sigma), (sigma / 2).log()


class IDDPMPrecond(Preconditioned):
    """The M discrete noise levels u_j of Nichol & Dhariwal 2021, column iDDPM + DDIM of table 1.

    The network is given the number of the level nearest to sigma. It has 2 C outputs: the second half predicts
    variances, which denoising does not need.
    """

    kind = "iddpm"
    arguments = ("C_1", "C_2", "M")
    u: Tensor  # (M + 1,) decreasing, the last one 0

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        C_1: float = 0.001,
        C_2: float = 0.008,
        M: int = 1000,
    ) -> None:
        if not 2 <= M <= 100_000:
            raise UserError(f"M is {M}: the number of noise levels must be 2 to 100,000")
        levels = _iddpm_levels(C_1, C_2, M)
        super().__init__(network, data_shape, num_classes, levels[M - 1], levels[0])
        self.C_1, self.C_2, self.M = C_1, C_2, M
        self.register_buffer("u", torch.tensor(levels, dtype=torch.float32))

    def index(self, sigma: Tensor) -> Tensor:
        """The number j of the level u_j nearest to each noise level: sigma's shape, int64; M stands for no noise."""
        ascending = self.u.flip(0).to(sigma.device)  # (M + 1,)
        between = (ascending[1:] + ascending[:-1]) / 2  # (M,)
        return self.M - torch.bucketize(sigma.to(ascending.dtype), between)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest u_j; never 0 for noise above 0."""
        index = torch.where(sigma > 0, self.index(sigma).clamp(max=self.M - 1), self.M)
        return self.u.to(sigma.device)[index].to(sigma.dtype)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.M - 1 - self.index(sigma)).to(sigma.dtype)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise


def _iddpm_levels(C_1: float, C_2: float, M: int) -> list[float]:
    """u_j, j = 0 ... M: u_M = 0, u_(j-1) = sqrt((u_j^2 + 1) / max(alpha_(j-1) / alpha_j, C_1) - 1) (table 1)."""

    def alpha(j: int) -> float:
        return math.sin(math.pi / 2 * j / (M * (C_2 + 1))) ** 2

    u = [0.0] * (M + 1)
    for j in range(M, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(alpha(j - 1) / alpha(j), C_1) - 1)
    return u


class InterpolantPrecond(Preconditioned):
    """Any prediction about x_t = alpha x0 + s n of an interpolant: D(x, sigma) of what the network gives.

    Our state is x = x0 + sigma n with sigma = s / alpha, so the network is given x_t = alpha x and the time of sigma.
    Its output F means

        x0        the clean data                            D = F
        eps       the noise n                               D = x - sigma F
        v         alpha n - s x0 (Salimans and Ho 2022)     D = (alpha x - sigma F) / (alpha + s sigma)
        velocity  dx_t/dt = alpha' x0 + s' n                D = (s' x - sigma F) / (s' - sigma alpha')
        score     grad log p(x_t) = -n / s                  D = x + s sigma F
        edm       Karras et al. 2022, equation 7            D = c_skip x + c_out F, and c_in x is what is given

    or ``prediction(output, x_t, alpha, s)`` gives x0, affine in output and x_t, alpha and s (B, 1, ...).
    ``data_range`` are the values that the network knows black and white by: where they are not -1 and 1, x is moved
    there and the estimate back, and noise levels with them. ``sigma_data`` is the data's deviation in model space.
    """

    kind = "interpolant"

    def __init__(
        self,
        network: nn.Module,
        data_shape: tuple[int, ...],
        num_classes: int = 0,
        schedule: Interpolant | Mapping[str, JSON] | str = "linear",
        prediction: str | Callable[..., Tensor] = "eps",
        data_range: tuple[float, float] = (-1.0, 1.0),
        sigma_data: float = 0.5,
    ) -> None:
        self.schedule = schedule if isinstance(schedule, Interpolant) else interpolant(schedule)
        low, high = map(float, data_range)
        if not -math.inf < low < high < math.inf:
            raise UserError(f"data_range is {list(data_range)}: give the values of black and white, such as 0 and 1")
        if not callable(prediction) and prediction not in PREDICTIONS:
            raise UserError(f"unknown prediction {prediction!r}{nearest(prediction, PREDICTIONS)}")
        self.unit, self.middle = (high - low) / 2, (high + low) / 2
        super().__init__(
            network, data_shape, num_classes, self.schedule.sigma_min / self.unit, self.schedule.sigma_max / self.unit
        )
        self.prediction, self.data_range, self.sigma_data = prediction, (low, high), sigma_data
        self._scalings(
            torch.tensor([self.sigma_max * self.unit], dtype=torch.float64, device="cpu")
        )  # what cannot be is said now

    @property
    def config(self) -> dict[str, JSON]:
        """What makes it again; of a schedule that is code some values, which can only be compared."""
        times = torch.linspace(self.schedule.clean, self.schedule.noisy, 9, dtype=torch.float64, device="cpu")
        values: list[JSON] = [curve(times).tolist() for curve in (self.schedule.alpha, self.schedule.s)]
        known = self.schedule.settings
        return {
            "schedule": {"name": "code", "values": values} if known is None else dict(known),
            "prediction": self.prediction if isinstance(self.prediction, str) else "code",
            "data_range": list(self.data_range),
            "sigma_data": self.sigma_data,
        }

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.schedule.round_sigma(sigma * self.unit) / self.unit

    def training_sigma(self, normal: Tensor, p_mean: float, p_std: float) -> Tensor:
        """Times drawn evenly, as such networks are trained, unless p_mean or p_std are other than EDM's defaults."""
        if self.prediction == "edm" or (p_mean, p_std) != EDM_LEVELS:
            return super().training_sigma(normal, p_mean, p_std)
        return self.schedule.draw(torch.special.ndtr(normal)) / self.unit

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """As for every preconditioning, in the network's own range: unit D + middle = c_skip (unit x + middle) + ..."""
        c_skip, c_out, c_in, time = self._scalings(sigma.to(torch.float64) * self.unit)
        return tuple(value.to(sigma) for value in (c_skip, c_out, c_in, self.schedule.tell(time)))  # type: ignore[return-value]

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None, **more: Any) -> Any:
        if self.data_range == (-1.0, 1.0):
            return super().forward(x, sigma, labels, **more)
        return (super().forward(x * self.unit + self.middle, sigma, labels, **more) - self.middle) / self.unit

    def _scalings(self, sigma: Tensor) -> Coefficients:
        """c_skip, c_out, c_in and the time, (B,) float64, of noise levels in the network's own range."""
        time = self.schedule.time(sigma)
        alpha = self.schedule.alpha(time)
        s, one = alpha * sigma, torch.ones_like(sigma)
        if callable(self.prediction):
            c_skip, c_out = self.prediction(0 * one, alpha, alpha, s), self.prediction(one, 0 * one, alpha, s)
            return c_skip, c_out, alpha, time
        if self.prediction == "velocity":
            alpha_slope, s_slope = self.schedule.slopes(time)
            below = s_slope - sigma * alpha_slope
            return s_slope / below, -sigma / below, alpha, time
        if self.prediction == "edm":
            data = self.sigma_data * self.unit
            total = sigma**2 + data**2
            return data**2 / total, sigma * data * total.rsqrt(), total.rsqrt(), time
        c_skip, c_out = {
            "x0": (0 * one, one),
            "eps": (one, -sigma),
            "v": (alpha / (alpha + s * sigma), -sigma / (alpha + s * sigma)),
            "score": (one, s * sigma),
        }[self.prediction]
        return c_skip, c_out, alpha, time


PREDICTIONS = ("x0", "eps", "v", "velocity", "score", "edm")
EDM_LEVELS = (-1.2, 1.2)  # mean and standard deviation of ln(sigma) in training: Karras et al. 2022, table 1

PRECONDITIONINGS: dict[str, Callable[..., Preconditioned]] = {
    one.kind: one
    for one in (
        *(EDMPrecond, EDM2Precond, ConsistencyPrecond, RatioPrecond),
        *(VPPrecond, VEPrecond, IDDPMPrecond, InterpolantPrecond),
    )
}
