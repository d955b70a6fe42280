"""A network of one's own: every prediction and schedule against the exact denoiser, said in that parameterization."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sims
from sims import interpolants as flows
from sims.errors import UserError
from sims.gaussians import GaussianMixture
from sims.interpolants import Interpolant

SHAPE = (1, 2, 2)


def mixture() -> GaussianMixture:
    """Two classes in [-1, 1], as far apart as pictures are."""
    generator = torch.Generator().manual_seed(0)
    means = 0.5 * torch.randn(3, *SHAPE, generator=generator)
    roots = 0.15 * torch.randn(3, 4, 4, generator=generator)
    return GaussianMixture([0.5, 0.2, 0.3], means, roots @ roots.mT + 0.01 * torch.eye(4), [0, 1, 1])


# alpha(t) and s(t) of every schedule as its paper has them, written down again, and what a network is told of t.
def betas_of(kind: str, steps: int) -> Tensor:
    if kind == "linear":
        return torch.linspace(1e-4, 0.02, steps, dtype=torch.float64)
    if kind == "coarse":
        return torch.linspace(1e-4, 0.2, steps, dtype=torch.float64)
    if kind == "scaled":
        return torch.linspace(0.00085**0.5, 0.012**0.5, steps, dtype=torch.float64) ** 2
    bars = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in itertools.pairwise(bars)], dtype=torch.float64)


def table(kind: str, steps: int) -> Tensor:
    if kind == "unclipped":
        return torch.tensor(
            [
                math.cos(((i + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
                / math.cos(0.008 / 1.008 * math.pi / 2) ** 2
                for i in range(steps)
            ],
            dtype=torch.float64,
        )
    return torch.cumprod(1 - betas_of(kind, steps), 0)


Curves = tuple[
    Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]
]  # alpha, s, time of what is told


def discrete(kind: str, steps: int, first: int = 0, scale: float = 1.0) -> Curves:
    bars = table(kind, steps)

    def alpha(t: Tensor) -> Tensor:
        return bars[(t - first).round().long()].sqrt()

    return alpha, lambda t: (1 - alpha(t) ** 2).sqrt(), lambda told: told / scale


SCHEDULES: dict[str, tuple[Interpolant, Curves]] = {
    "linear": (flows.linear(), discrete("linear", 1000)),
    "linear, 1 to T": (flows.linear(first=1), discrete("linear", 1000, 1)),
    "linear, T = 100, told in [0, 1)": (flows.linear(100, end=0.2, scale=0.01), discrete("coarse", 100, scale=0.01)),
    "scaled linear": (flows.scaled_linear(), discrete("scaled", 1000)),
    "cosine": (flows.cosine(), discrete("cosine", 1000)),
    "cosine, not clipped": (flows.cosine(400, high=None), discrete("unclipped", 400)),
    "alphas": (flows.of_alphas_cumprod(table("linear", 1000).float()), discrete("linear", 1000)),
    "alphas, noise first": (flows.of_alphas_cumprod(table("cosine", 500).flip(0)), (
        lambda t: table("cosine", 500).flip(0)[t.round().long()].sqrt(),
        lambda t: (1 - table("cosine", 500).flip(0)[t.round().long()]).sqrt(),
        lambda told: told,
    )),
    "betas": (flows.of_betas(betas_of("cosine", 1000).tolist()), discrete("cosine", 1000)),
    "rectified flow": (flows.rectified_flow(), (lambda t: 1 - t, lambda t: t, lambda told: told)),
    "rectified flow to the data, x 1000": (flows.rectified_flow(1, scale=1000), (
        lambda t: t, lambda t: 1 - t, lambda told: told / 1000)),
    "trigonometric": (flows.trigonometric(), (
        lambda t: torch.cos(math.pi * t / 2), lambda t: torch.sin(math.pi * t / 2), lambda told: told)),
    "trigonometric to the data": (flows.trigonometric(1), (
        lambda t: torch.sin(math.pi * t / 2), lambda t: torch.cos(math.pi * t / 2), lambda told: told)),
    "VP-SDE": (flows.vp_sde(scale=999), (
        lambda t: torch.exp(-0.25 * t**2 * 19.9 - 0.5 * t * 0.1),
        lambda t: torch.sqrt(1 - torch.exp(-0.5 * t**2 * 19.9 - t * 0.1)),
        lambda told: told / 999,
    )),
    "VE-SDE": (flows.ve_sde(), (lambda t: torch.ones_like(t), lambda t: 0.01 * 5000.0**t, lambda told: told)),
    "EDM": (flows.edm(), (lambda t: torch.ones_like(t), lambda t: t, lambda told: (4 * told).exp())),
    "your own": (Interpolant(lambda t: 1 - t**2, lambda t: t, 0.01, 0.99), (
        lambda t: 1 - t**2, lambda t: t, lambda told: told)),
}  # fmt: skip
WHOLE = [name for name, (schedule, _) in SCHEDULES.items() if schedule.count is not None]


class Exact(nn.Module):
    """A network that is right: it knows the mixture, and says what a network of this prediction would say."""

    def __init__(self, exact: GaussianMixture, curves: Curves, prediction: str, span: tuple[float, float]) -> None:
        super().__init__()
        self.exact, self.curves, self.prediction = exact, curves, prediction
        self.half, self.middle = (span[1] - span[0]) / 2, (span[1] + span[0]) / 2
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x_t: Tensor, told: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, s, time_of = self.curves
        t = time_of(told.double())
        a, b = (curve(t).reshape(-1, 1, 1, 1) for curve in (alpha, s))
        y = None if y is None else torch.where(y == 2, -1, y)  # the network's own "no class"
        data = 0.25
        if self.prediction == "edm":  # what it is given is c_in x
            x_t = x_t.double() * (b**2 + (2 * data * self.half) ** 2).sqrt()
        state = x_t.double() / a  # x0 + sigma n, in the network's own range
        x0 = self.exact((state - self.middle) / self.half, (b / a / self.half).flatten(), y) * self.half + self.middle
        n = (x_t - a * x0) / b
        if self.prediction == "velocity":
            h = 1e-6
            slopes = [((curve(t + h) - curve(t - h)) / (2 * h)).reshape(-1, 1, 1, 1) for curve in (alpha, s)]
            return (
                (slopes[0] * x0 + slopes[1] * n).to(x_t)
                if x_t.dtype == torch.float64
                else (slopes[0] * x0 + slopes[1] * n).float()
            )
        if self.prediction == "edm":
            d = 2 * data * self.half
            c_skip, c_out = d**2 / (b**2 + d**2), b * d * (b**2 + d**2).rsqrt()
            return ((x0 - c_skip * x_t) / c_out).float()
        return {"x0": x0, "eps": n, "v": a * n - b * x0, "score": -n / b}[self.prediction].float()


CASES = [
    (prediction, name)
    for name in SCHEDULES
    for prediction in ("x0", "eps", "v", "velocity", "score")
    if not (prediction == "velocity" and name in WHOLE)
] + [("edm", "EDM")]


@pytest.mark.parametrize("span", [(-1.0, 1.0), (0.0, 1.0)])
@pytest.mark.parametrize("prediction, name", CASES)
def test_every_prediction_and_schedule(prediction: str, name: str, span: tuple[float, float]) -> None:
    """The wrapped network's estimate is the mixture's own, at levels that it knows, with and without a class."""
    exact, (schedule, curves) = mixture(), SCHEDULES[name]
    model = sims.wrap(
        Exact(exact, curves, prediction, span), data_shape=SHAPE, prediction=prediction, schedule=schedule,
        data_range=span, num_classes=2, null_class=2,
    )  # fmt: skip
    low, high = max(model.sigma_min, 0.02), min(model.sigma_max, 60.0)
    sigma = model.round_sigma(torch.logspace(math.log10(low), math.log10(high), 12))
    generator = torch.Generator().manual_seed(1)
    x = exact.sample(12, generator) + sigma.reshape(-1, 1, 1, 1) * torch.randn(12, *SHAPE, generator=generator)
    labels = torch.tensor([0, 1, -1] * 4)
    # Predictions of noise lose the digits of x0 where the noise is large, as any network's do in float32.
    tolerance = 1e-5 * (1 + (sigma if prediction in ("eps", "velocity", "score", "v") else 0 * sigma))
    error = (model(x.float(), sigma, labels) - exact(x, sigma, labels)).abs().flatten(1).amax(1)
    assert (error <= tolerance).all(), (error / tolerance).tolist()


@pytest.mark.parametrize("name", SCHEDULES)
def test_times_and_levels_are_inverse(name: str) -> None:
    schedule, (alpha, s, time_of) = SCHEDULES[name]
    times = torch.linspace(schedule.clean, schedule.noisy, 50, dtype=torch.float64)
    if schedule.count is not None:
        times = times.round()
    sigma = schedule.sigma(times)
    torch.testing.assert_close(
        sigma, s(times) / alpha(times), rtol=1e-3 if name == "alphas" else 1e-9, atol=0
    )  # those are float32
    torch.testing.assert_close(schedule.time(sigma), times, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(time_of(schedule.tell(times)), times, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.round_sigma(sigma), sigma)
    drawn = schedule.draw(torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    assert drawn.min() >= schedule.sigma_min * (1 - 1e-5)
    assert drawn.max() <= schedule.sigma_max * (1 + 1e-5)


@pytest.mark.parametrize("name", [name for name in SCHEDULES if SCHEDULES[name][0].settings is not None])
def test_a_schedule_is_made_again_from_what_is_written_down(name: str) -> None:
    schedule = SCHEDULES[name][0]
    again = flows.interpolant(schedule.settings)
    times = torch.linspace(schedule.clean, schedule.noisy, 9, dtype=torch.float64)
    torch.testing.assert_close(again.sigma(times), schedule.sigma(times), rtol=1e-12, atol=0)
    torch.testing.assert_close(again.tell(times), schedule.tell(times))
    assert (again.count, again.between) == (schedule.count, schedule.between)


@pytest.mark.parametrize(
    "name",
    ["linear", "cosine, not clipped", "rectified flow", "rectified flow to the data, x 1000", "VP-SDE", "your own"],
)
def test_samples_have_the_right_moments(name: str) -> None:
    exact, (schedule, curves) = mixture(), SCHEDULES[name]
    prediction = "eps" if name in WHOLE else "velocity"
    model = sims.wrap(
        Exact(exact, curves, prediction, (0.0, 1.0)), data_shape=SHAPE, prediction=prediction, schedule=schedule,
        data_range=(0.0, 1.0), sampler=sims.SamplerOptions(steps=24),
    )  # fmt: skip
    x = model.sample(range(3000)).double().flatten(1)
    truth = exact.weights @ exact.means
    spread = torch.einsum(
        "k,kde->de", exact.weights, exact.covariances + torch.einsum("kd,ke->kde", exact.means, exact.means)
    )
    spread = spread - torch.outer(truth, truth)
    assert (x.mean(0) - truth).abs().max() < 0.05
    assert (x.T.cov() - spread).abs().max() < 0.05


def test_bad_schedules() -> None:
    for make, words in {
        lambda: flows.of_alphas_cumprod([0.5]): "at least two times",
        lambda: flows.of_alphas_cumprod([0.9, 0.95, 0.5]): "must fall",
        lambda: flows.of_betas([0.1, float("nan")]): "must fall",
        lambda: flows.linear(1): "2 to",
        lambda: flows.linear(10**9): "2 to",
        lambda: flows.rectified_flow(2): "time 0 or 1",
        lambda: flows.edm(1.0, 0.5): "sigma_min < sigma_max",
        lambda: flows.interpolant("cosin"): "did you mean 'cosine'",
        lambda: flows.interpolant({"name": "cosine", "stepps": 3}): "stepps",
        lambda: Interpolant(lambda t: 1 - t, lambda t: t, 0.9, 0.1): "turn the time around",
        lambda: Interpolant(lambda t: 1 - t, lambda t: t, 0.0, 1.0): "leave out ends",
    }.items():
        with pytest.raises(UserError, match=words):
            make()


class Net(nn.Module):
    def __init__(self, output: Callable[..., object] = lambda x, t, y=None: x) -> None:
        super().__init__()
        self.output, self.weight = output, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, t: Tensor, *y: Tensor) -> object:
        return self.output(self.weight * x, t, *y)


@pytest.mark.parametrize(
    "network, options, words",
    [
        (Net(lambda x, t: (x, x)), {}, "a tuple of 2"),
        (Net(lambda x, t: {"sample": x}), {}, "a dict with sample"),
        (Net(lambda x, t: x[:, :, 1:]), {}, "it must give x's shape"),
        (Net(lambda x, t: x.repeat(1, 3, 1, 1)), {}, "it must give x's shape"),
        (Net(lambda x, t: x * float("nan")), {}, "not finite"),
        (Net(lambda x, t: x @ torch.ones(7, 7)), {}, "cannot be called"),
        (Net(lambda x, t: x), {"num_classes": 3}, "cannot be called"),
        (Net(), {"prediction": "noise"}, "unknown prediction 'noise'"),
        (Net(), {"prediction": "velocity"}, "continuous time"),
        (Net(), {"data_range": (1, 0)}, "data_range"),
        (Net(), {"data_shape": (8, 8)}, "channels, height and width"),
        (Net(lambda x, t, y: x), {"num_classes": 3, "null_class": 2}, "one of the 3 classes"),
        (Net(), {"null_class": 2}, "number of real classes"),
        (Net(lambda x, t, y: x), {"num_classes": 3, "class_names": ("a",)}, "1 class_names for 3"),
    ],
)
def test_bad_adapters(network: nn.Module, options: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        sims.wrap(network, **{"data_shape": SHAPE, "prediction": "eps", "schedule": "linear", **options})


def test_labels_without_a_null_class() -> None:
    model = sims.wrap(
        Net(lambda x, t, y: x * (y >= 0).all()), data_shape=SHAPE, prediction="x0", schedule="linear", num_classes=3
    )
    model.sample(range(4))
    with pytest.raises(UserError, match="without null_class"):
        model.sample(range(2), labels=-1)


def test_a_learned_variance_is_left_out() -> None:
    model = sims.wrap(
        Net(lambda x, t: torch.cat([0 * x, 1e6 + x], 1)), data_shape=SHAPE, prediction="eps", schedule="linear"
    )
    assert model.sample(range(2)).abs().max() < 1e4


def test_a_prediction_of_ones_own() -> None:
    exact, (schedule, curves) = mixture(), SCHEDULES["rectified flow"]
    model = sims.wrap(  # the network says -n / 2
        Exact(exact, curves, "eps", (-1.0, 1.0)), data_shape=SHAPE, schedule=schedule,
        call=lambda net, x, t, y: -net(x, t) / 2, prediction=lambda out, x_t, alpha, s: (x_t + 2 * s * out) / alpha,
    )  # fmt: skip
    sigma = torch.tensor([0.1, 1.0, 5.0])
    x = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(0)) * sigma.reshape(-1, 1, 1, 1)
    torch.testing.assert_close(model(x, sigma), exact(x, sigma), rtol=1e-4, atol=1e-4)
