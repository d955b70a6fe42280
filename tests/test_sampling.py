"""Samplers against accurate integration of exact denoisers; noise against the reference's; independence of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.integrate import solve_ivp
from torch import Tensor, nn

from sims.denoiser import Denoiser, Evaluate, Stateless, as_denoiser, device_of
from sims.errors import UserError
from sims.gaussians import GaussianMixture
from sims.sampling import Churn, SamplerOptions, SamplingStep, SeededNoise, edm_sigmas, nfe, sample, sample_seeds

GOLDEN = Path(__file__).parents[2] / "shared" / "golden"


def mixture(labels: list[int] | None = None) -> GaussianMixture:
    means = torch.tensor([[1.0, 0.5], [-1.0, 0.0]])
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.6, -0.2], [-0.2, 0.4]]])
    return GaussianMixture([0.4, 0.6], means, covariances, labels, sigma_min=0.01, sigma_max=20.0)


def integrate(denoiser: Denoiser, noise: Tensor, sigma_max: float, sigma_min: float) -> Tensor:
    """The probability-flow ODE dx / d ln sigma = x - D, by scipy at tight tolerance, then x = D at sigma_min."""
    shape = noise.shape

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(flat).reshape(shape)
        return (x - denoiser(x, torch.full((len(x),), math.exp(t), dtype=torch.float64))).flatten().numpy()

    start = (sigma_max * noise.double()).flatten().numpy()
    span = (math.log(sigma_max), math.log(sigma_min))
    end = solve_ivp(slope, span, start, method="DOP853", rtol=1e-9, atol=1e-10).y[:, -1]
    x = torch.from_numpy(end).reshape(shape)
    return denoiser(x, torch.full((len(x),), sigma_min, dtype=torch.float64))


class Counted(Stateless):
    """A denoiser that counts its calls, and trajectories, and remembers the levels it saw."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.data_shape, self.num_classes = inner.data_shape, inner.num_classes
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max
        self.seen: list[float] = []
        self.plans: list[Tensor] = []

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        assert x.dtype == sigma.dtype == torch.float32
        self.seen.append(float(sigma[0]))
        return self.inner(x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        self.plans.append(sigmas)
        return self


class Discrete(Counted):
    """Knows only the levels 0.1, 0.2, ..."""

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return (sigma * 10).round().clamp(min=1) / 10


class Network(nn.Module, Stateless):
    """A small random network: its arithmetic may depend on the batch size in the last bits."""

    data_shape, num_classes, sigma_min, sigma_max = (16,), 3, 0.002, 80.0

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(16, 64, generator=generator) / 4)
        self.last = nn.Parameter(torch.randn(64, 16, generator=generator) / 16)

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        shift = 0 if labels is None else labels[:, None]
        return torch.tanh(x / (1 + sigma[:, None]) @ self.first + shift) @ self.last


# ---- schedules and options


def test_edm_sigmas_are_the_papers() -> None:
    sigmas = edm_sigmas(18, 0.002, 80)
    assert sigmas.dtype == torch.float64 and len(sigmas) == 19
    middle = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose([sigmas[0], sigmas[5], sigmas[17], sigmas[18]], [80, middle, 0.002, 0], rtol=1e-12)
    assert edm_sigmas(1, 0.002, 80).tolist() == pytest.approx([80, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 0},
        {"sigma_min": 0.0},
        {"sigma_min": 2.0, "sigma_max": 1.0},
        {"sigma_max": math.inf},
        {"rho": 0.0},
        {"solver": "ddim"},
        {"s_churn": -1.0},
        {"s_churn": math.nan},
        {"s_churn": 1.0, "solver": "dpmpp2m"},
        {"s_min": 2.0, "s_max": 1.0},
    ],
)
def test_bad_options_are_user_errors(options: dict) -> None:
    with pytest.raises(UserError):
        SamplerOptions(**options)


def test_bad_calls_are_user_errors() -> None:
    g, noise = mixture(), torch.zeros(1, 2)
    with pytest.raises(UserError, match="decrease to 0"):
        sample(g, noise, torch.tensor([1.0, 0.5]))
    with pytest.raises(UserError, match="step_noise"):
        sample(g, noise, edm_sigmas(4, 0.1, 1), churn=Churn(1.0))
    with pytest.raises(UserError, match="takes no labels"):
        sample_seeds(g, [0], SamplerOptions(), labels=1)
    for labels in (2, torch.tensor([0, 1]), torch.tensor([-2])):
        with pytest.raises(UserError, match=r"classes|labels for"):
            sample_seeds(mixture([0, 1]), [0], SamplerOptions(), labels=labels)
    with pytest.raises(UserError, match="batch_size"):
        sample_seeds(g, [0], SamplerOptions(), batch_size=0)


@pytest.mark.parametrize("kind", [Counted, Discrete])
@pytest.mark.parametrize(
    "options",
    [
        SamplerOptions(steps=7),
        SamplerOptions(steps=7, s_churn=3, s_min=0.05, s_max=10),
        SamplerOptions(steps=7, solver="dpmpp2m"),
        SamplerOptions(steps=1),
        SamplerOptions(steps=60, solver="dpmpp2m"),
        SamplerOptions(steps=7, solver="unipc"),
        SamplerOptions(steps=1, solver="unipc"),
        SamplerOptions(steps=7, solver="euler"),
        SamplerOptions(steps=7, solver="consistency"),
        SamplerOptions(steps=1, solver="consistency"),
    ],
)
def test_the_plan_is_what_the_solver_does(kind: type[Counted], options: SamplerOptions) -> None:
    denoiser = kind(mixture())
    x, _ = sample_seeds(denoiser, range(3), options, batch_size=3)
    planned = options.planned(denoiser)
    assert torch.isfinite(x).all()
    np.testing.assert_allclose(denoiser.seen, planned.float(), rtol=1e-6)
    assert len(denoiser.plans) == 1 and torch.equal(denoiser.plans[0], planned)
    assert nfe(denoiser, options) == len(denoiser.seen)
    assert torch.equal(denoiser.round_sigma(planned), planned)
    if kind is Counted:
        steps = options.steps
        assert len(planned) == (2 * steps - 1 if options.solver == "heun" else steps)


# ---- noise


def test_noise_depends_on_the_seed_alone() -> None:
    seeds, shape = [5, 0, 2**32 - 1, 7], (3, 4)
    together = SeededNoise(seeds, shape, num_classes=10)
    churn = [together.step(), together.step()]
    labels = together.labels()
    assert labels is not None and together.initial().dtype == torch.float32
    for i, seed in enumerate(seeds):
        alone = SeededNoise([seed], shape, num_classes=10)
        generator = torch.Generator().manual_seed(seed)  # EDM's convention, spelled out
        assert torch.equal(alone.initial()[0], torch.randn(shape, generator=generator))
        assert torch.equal(alone.initial()[0], together.initial()[i])
        assert alone.labels()[0] == labels[i] == torch.randint(10, (), generator=generator)
        for step in churn:
            expected = torch.randn(shape, generator=generator, dtype=torch.float64)
            assert torch.equal(expected, step[i]) and torch.equal(alone.step()[0], step[i])


def test_no_labels_without_classes() -> None:
    assert SeededNoise([1], (2,)).labels() is None


@pytest.mark.parametrize("seed", [-1, 2**32, 0.5, math.nan, math.inf, "3", None])
def test_bad_seeds_are_user_errors(seed: object) -> None:
    with pytest.raises(UserError, match="seed"):
        SeededNoise([0, seed], (2,))  # type: ignore[list-item]


@pytest.mark.parametrize("name", ["edm-sampler-heun18", "edm2-guided-heun16-w1"])
def test_noise_and_labels_are_the_reference_samplers(name: str) -> None:
    """The networks those runs used are tested elsewhere; the sampler's random numbers are tested here."""
    path = GOLDEN / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"reference run {path.name} is not beside the project (shared/golden)")
    golden = load_file(path)
    noise = SeededNoise(golden["seeds"].tolist(), tuple(golden["noise"].shape[1:]), num_classes=10)
    assert torch.equal(noise.initial(), golden["noise"])
    if "labels" in golden:
        expected = golden["labels"]
        assert torch.equal(noise.labels(), expected if expected.ndim == 1 else expected.argmax(dim=1))


@pytest.mark.parametrize(
    "options", [SamplerOptions(steps=6), SamplerOptions(steps=6, s_churn=4), SamplerOptions("consistency", 3)]
)
def test_samples_do_not_depend_on_their_batch(options: SamplerOptions) -> None:
    network = Network()
    x, labels = sample_seeds(network, range(11), options)
    assert labels is not None and x.dtype == torch.float32 and x.shape == (11, 16)
    for batch_size, pad in ((1, False), (4, False), (4, True)):
        y, again = sample_seeds(network, range(11), options, batch_size=batch_size, pad=pad)
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
        assert torch.equal(labels, again)
    backwards, _ = sample_seeds(network, range(10, -1, -1), options)
    torch.testing.assert_close(x, backwards.flip(0), atol=1e-5, rtol=1e-5)


def test_a_job_cut_at_a_batch_boundary_resumes_bit_for_bit() -> None:
    network, options = Network(), SamplerOptions(steps=6, s_churn=2.0)
    done: list[int] = []
    whole, labels = sample_seeds(network, range(11), options, batch_size=4, progress=done.append)
    first, some = sample_seeds(network, range(4), options, batch_size=4)
    rest, others = sample_seeds(network, range(4, 11), options, batch_size=4)
    assert torch.equal(whole, torch.cat([first, rest])) and torch.equal(labels, torch.cat([some, others]))
    assert done == [4, 4, 3]


def test_choosing_labels_changes_no_noise() -> None:
    network, options = Network(), SamplerOptions(steps=6, s_churn=4.0)
    x, labels = sample_seeds(network, range(6), options)
    y, same = sample_seeds(network, range(6), options, labels=labels)
    assert torch.equal(x, y) and torch.equal(labels, same)
    z, ones = sample_seeds(network, range(6), options, labels=1)
    assert ones.tolist() == [1] * 6
    unchanged = labels == 1
    assert torch.equal(x[unchanged], z[unchanged]) and not torch.equal(x, z)


def test_no_samples_are_fine() -> None:
    x, labels = sample_seeds(Network(), [], SamplerOptions(steps=2))
    assert x.shape == (0, 16) and labels.shape == (0,)


def test_divergence_is_returned_not_hidden() -> None:
    class Diverges(Counted):
        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            return x * math.nan

    x, _ = sample_seeds(Diverges(mixture()), range(2), SamplerOptions(steps=2))
    assert x.isnan().all()


# ---- accuracy


@pytest.mark.parametrize(("solver", "expected"), [("heun", 2), ("dpmpp2m", 2), ("unipc", 3)])
def test_order_of_convergence(solver: str, expected: int) -> None:
    g, noise = mixture(), SeededNoise(range(16), (2,)).initial()
    truth = integrate(g, noise, 20.0, 0.01)
    steps = [24, 48, 96]
    errors = []
    for n in steps:
        x = sample(g, noise, edm_sigmas(n, 0.01, 20.0), solver=solver)  # type: ignore[arg-type]
        errors.append(float((x.double() - truth).square().mean().sqrt()))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert expected - 0.25 < order < expected + 0.6, (order, errors)
    assert errors[-1] < 1e-3


def test_euler_is_first_order_and_ddim() -> None:
    """Against accurate integration; a step is DDIM's, which keeps the noise that the estimate implies."""
    g, noise = mixture(), SeededNoise(range(16), (2,)).initial()
    truth = integrate(g, noise, 20.0, 0.01)
    steps = [48, 96, 192]
    found = [sample(g, noise, edm_sigmas(n, 0.01, 20.0), solver="euler") for n in steps]
    errors = [float((x.double() - truth).square().mean().sqrt()) for x in found]
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.8 < order < 1.2, (order, errors)
    one = sample(g, noise, torch.tensor([20.0, 3.0, 0.0]), solver="euler")
    clean = g(20 * noise, torch.full((16,), 20.0))
    implied = (20 * noise - clean) / 20
    torch.testing.assert_close(one, g(clean + 3 * implied, torch.full((16,), 3.0)))


def test_consistency_sampling_of_an_exact_consistency_function() -> None:
    """Of N(m, v): f carries every level to the data along the flow, so that any number of steps gives N(m, v)."""
    m, v, n = 0.7, 0.25, 4000

    def function(x: Tensor, sigma: Tensor) -> Tensor:
        return m + (x - m) * (v / (v + sigma[:, None] ** 2)) ** 0.5

    exact = as_denoiser(function, (2,), sigma_min=0.002, sigma_max=80.0)
    for steps, low in ((1, None), (2, 0.8), (4, 0.8)):
        options = SamplerOptions("consistency", steps, sigma_min=low)
        x = sample_seeds(exact, range(n), options, batch_size=n)[0].double()
        assert nfe(exact, options) == steps
        assert float((x.mean() - m).abs()) < 0.03 and abs(float(x.var()) - v) < 0.015
    noise = SeededNoise(range(6), (2,))
    x = noise.initial().double() * 80
    for level, following in ((80.0, 0.8), (0.8, 0.0)):
        x = function(x.float(), torch.full((6,), level)).double()
        x = x + following * noise.step() if following else x
    options = SamplerOptions("consistency", 2, sigma_min=0.8)
    torch.testing.assert_close(sample_seeds(exact, range(6), options)[0], x.float())
    with pytest.raises(UserError, match="step_noise"):
        sample(exact, torch.zeros(2, 2), edm_sigmas(2, 0.8, 80.0), solver="consistency")
    with pytest.raises(UserError, match="s_churn must be 0"):
        SamplerOptions("consistency", 2, s_churn=1.0)


def test_one_gaussian_is_sampled_in_closed_form() -> None:
    """N(m, v): x(0) = m + (x(s) - m) sqrt(v / (v + s^2)) for the exact flow."""
    g = GaussianMixture([1.0], torch.tensor([[0.7]]), torch.tensor([[[0.25]]]))
    noise = torch.linspace(-2, 2, 5)[:, None]
    expected = 0.7 + (80 * noise - 0.7) * math.sqrt(0.25 / (0.25 + 80**2))
    for solver in ("heun", "dpmpp2m", "unipc"):
        x = sample(g, noise, edm_sigmas(256, 0.002, 80.0), solver=solver)  # type: ignore[arg-type]
        torch.testing.assert_close(x, expected, atol=3e-4, rtol=0.0)


@pytest.mark.parametrize(
    "options",
    [SamplerOptions(steps=32), SamplerOptions(steps=48, s_churn=16), SamplerOptions(steps=48, s_churn=8, s_max=1.0)],
)
def test_samples_have_the_mixtures_marginal(options: SamplerOptions) -> None:
    """With and without churn: moments and the share of each component, at fixed seeds (5000 samples)."""
    g, n = mixture(), 5000
    x, _ = sample_seeds(g, range(n), options, batch_size=n)
    exact = g.sample(200_000, torch.Generator().manual_seed(0)).numpy()
    got = x.double().numpy()
    np.testing.assert_allclose(got.mean(0), exact.mean(0), atol=5 * exact.std(0).max() / math.sqrt(n))
    np.testing.assert_allclose(np.cov(got.T), np.cov(exact.T), atol=0.08)
    for quantile in (0.05, 0.5, 0.95):
        cut = np.quantile(exact, quantile, axis=0)
        np.testing.assert_allclose((got < cut).mean(0), quantile, atol=5 * 0.5 / math.sqrt(n))


def test_churn_noise_arrives_in_order_whatever_its_range() -> None:
    calls: list[int] = []

    def step_noise() -> Tensor:
        calls.append(1)
        return torch.zeros(1, 2)

    draw: Callable[[], Tensor] = step_noise
    sample(mixture(), torch.ones(1, 2), edm_sigmas(6, 0.01, 20.0), churn=Churn(2.0, s_max=1.0), step_noise=draw)
    assert len(calls) == 6


# ---- the door: any callable, and a callback


@pytest.mark.parametrize("solver", ["heun", "dpmpp2m", "unipc"])
def test_any_callable_is_sampled_as_the_denoiser_it_is(solver: str) -> None:
    g, noise, sigmas = mixture(), torch.randn(5, 2), edm_sigmas(6, 0.01, 20.0)
    expected = sample(g, noise, sigmas, solver=solver)  # type: ignore[arg-type]
    for function in (lambda x, sigma: g(x, sigma), lambda x, sigma, labels=None: g(x, sigma, labels)):
        assert torch.equal(sample(function, noise, sigmas, solver=solver), expected)  # type: ignore[arg-type]
        denoiser = as_denoiser(function, (2,), sigma_min=0.01, sigma_max=20.0)
        assert isinstance(denoiser, Denoiser) and nfe(denoiser, SamplerOptions(steps=6)) == 11
        options = SamplerOptions(steps=6, solver=solver)  # type: ignore[arg-type]
        assert torch.equal(sample_seeds(denoiser, range(5), options)[0], sample_seeds(g, range(5), options)[0])


def test_a_callable_is_given_labels_where_there_are_any_and_checked() -> None:
    seen: list[Tensor] = []

    def function(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return x / 2

    denoiser = as_denoiser(function, (2,), num_classes=3)
    labels = sample_seeds(denoiser, range(4), SamplerOptions(steps=2))[1]
    assert labels is not None and all(torch.equal(given, labels) for given in seen)
    with pytest.raises(UserError, match=r"gives \(4, 1\) for \(4, 2\)"):
        sample(lambda x, sigma: x[:, :1], torch.zeros(4, 2), edm_sigmas(2, 0.1, 1.0))
    with pytest.raises(UserError, match="sigma_min < sigma_max"):
        as_denoiser(function, (2,), sigma_min=2.0, sigma_max=1.0)
    network = nn.Linear(2, 2, device="meta")
    assert device_of(as_denoiser(network, (2,))) == torch.device("meta")


@pytest.mark.parametrize("options", [SamplerOptions(steps=5, s_churn=2.0), SamplerOptions(steps=4, solver="unipc")])
def test_a_callback_is_told_of_every_step_and_changes_nothing(options: SamplerOptions) -> None:
    g = mixture([0, 1])
    steps: list[SamplingStep] = []

    def callback(step: SamplingStep) -> None:
        x, denoised = step.x.clone(), step.denoised.clone()
        steps.append(replace(step, x=x, denoised=denoised))
        step.x.zero_(), step.denoised.zero_()  # whatever it does with them

    expected = sample_seeds(g, range(7), options)
    x, labels = sample_seeds(g, range(7), options, batch_size=3, pad=True, callback=callback)
    assert torch.equal(x, sample_seeds(g, range(7), options, batch_size=3, pad=True)[0])
    torch.testing.assert_close(x, expected[0])
    batches, sigmas = [(0, 3), (3, 3), (6, 1)], options.sigmas(g)
    assert [(s.first, len(s.x)) for s in steps] == [batch for batch in batches for _ in range(options.steps)]
    assert [s.index for s in steps] == list(range(options.steps)) * 3
    for step in steps:
        assert step.num_steps == options.steps and step.sigma >= float(sigmas[step.index])
        classes = None if labels is None else labels[step.first : step.first + len(step.x)]
        level = torch.full((len(step.x),), step.sigma)
        torch.testing.assert_close(step.denoised, g(step.x, level, classes), atol=1e-5, rtol=1e-4)
    last = [step.denoised for step in steps if step.index == options.steps - 1]
    torch.testing.assert_close(torch.cat(last), x)  # the last step, to 0, takes the estimate as it is
