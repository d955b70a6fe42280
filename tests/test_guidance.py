"""Extrapolation against closed forms and moment equations; the cache rule's plans, counts and exactness."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, Stateless, device_of
from sims.errors import UserError
from sims.gaussians import GaussianMixture
from sims.guidance import CacheRule, Extrapolate, Recorder, Step, cache
from sims.sampling import SamplerOptions, edm_sigmas, nfe, sample, sample_seeds


def gaussian(mean: list[float], covariance: list[list[float]]) -> GaussianMixture:
    return GaussianMixture([1.0], torch.tensor([mean]), torch.tensor([covariance]))


def mixture(shift: float = 0.0, spread: float = 1.0) -> GaussianMixture:
    means = torch.tensor([[1.0 + shift, 0.5], [-1.0, shift]])
    covariances = spread * torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.6, -0.2], [-0.2, 0.4]]])
    return GaussianMixture([0.4, 0.6], means, covariances)


class Counted(Stateless):
    """A denoiser that counts its calls and refuses a trajectory other than the one it was told of."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner = inner
        self.data_shape, self.num_classes = inner.data_shape, inner.num_classes
        self.sigma_min, self.sigma_max = inner.sigma_min, inner.sigma_max
        self.calls = 0

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        return self.inner(x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        levels = iter(sigmas.tolist())

        def evaluate(x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            assert float(sigma[0]) == pytest.approx(next(levels), rel=1e-6)
            return self(x, sigma, labels)

        return evaluate


def pilot_rule(refreshes: int = 8, w: float = 1.0) -> CacheRule:
    records: list[tuple[float, Tensor]] = []
    guided = Extrapolate(mixture(), mixture(0.2, 1.4), w)
    sample_seeds(Recorder(guided, records), range(64), SamplerOptions())
    return CacheRule.from_corrections(*zip(*records), sigma_data=1.0, refreshes=refreshes)


RULE = pilot_rule()

# ---- what guidance samples


def affine_map(guided: Denoiser, sigmas: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The sampler's map noise -> A noise + b for linear denoisers, exactly: A (D, D), b (D,)."""
    dim = guided.data_shape[0]
    noise = torch.cat([torch.zeros(1, dim), torch.eye(dim)])
    x = sample(guided, noise, sigmas).double().numpy()
    return (x[1:] - x[0]).T, x[0]


@pytest.mark.parametrize("w", [0.0, 0.5, 1.0, 3.0])
def test_equal_means_and_commuting_covariances_sample_the_extrapolated_covariance(w: float) -> None:
    """The guided flow ends in Sigma_r^(1+w) Sigma_s^-w for sigma_max -> infinity (not in the product density)."""
    turn = torch.tensor([[0.8, -0.6], [0.6, 0.8]], dtype=torch.float64)
    real, synthetic = torch.tensor([1.0, 0.3]).double(), torch.tensor([1.5, 0.35]).double()
    base, aux = (GaussianMixture([1.0], torch.ones(1, 2), turn @ v.diag() @ turn.T[None]) for v in (real, synthetic))
    a, b = affine_map(Extrapolate(base, aux, w), edm_sigmas(300, 0.002, 400.0))
    expected = turn @ (real ** (1 + w) * synthetic ** (-w)).diag() @ turn.T
    np.testing.assert_allclose(a @ a.T, expected.numpy(), rtol=2e-3, atol=2e-3)
    np.testing.assert_allclose(b, 1.0, atol=1e-2)


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_other_gaussians_follow_the_moment_equations(w: float) -> None:
    """Unequal means, non-commuting covariances: dm/dt = m - D(m), dA/dt = (I - J) A over t = ln sigma, integrated."""
    cov_r, cov_s = np.array([[1.0, 0.4], [0.4, 0.5]]), np.array([[0.9, -0.2], [-0.2, 1.2]])
    mean_r, mean_s = np.array([0.5, -1.0]), np.array([0.0, 0.3])
    low, high, eye = 0.002, 40.0, np.eye(2)

    def jacobians(sigma: float) -> tuple[np.ndarray, np.ndarray]:
        return tuple(c @ np.linalg.inv(c + sigma**2 * eye) for c in (cov_r, cov_s))  # type: ignore[return-value]

    def slope(t: float, state: np.ndarray) -> np.ndarray:
        mean, a = state[:2], state[2:].reshape(2, 2)
        j_r, j_s = jacobians(math.exp(t))
        denoised = (1 + w) * (mean_r + j_r @ (mean - mean_r)) - w * (mean_s + j_s @ (mean - mean_s))
        return np.concatenate([mean - denoised, (a - ((1 + w) * j_r - w * j_s) @ a).ravel()])

    start = np.concatenate([np.zeros(2), (high * eye).ravel()])
    end = solve_ivp(slope, (math.log(high), math.log(low)), start, method="DOP853", rtol=1e-10, atol=1e-12).y[:, -1]
    guided = Extrapolate(gaussian([0.5, -1.0], cov_r.tolist()), gaussian([0.0, 0.3], cov_s.tolist()), w)
    a, b = affine_map(guided, edm_sigmas(300, low, high))
    expected = end[2:].reshape(2, 2)
    np.testing.assert_allclose(b, end[:2], atol=2e-3)
    np.testing.assert_allclose(a @ a.T, expected @ expected.T, atol=2e-3)


# ---- Extrapolate


def test_w_zero_is_the_base_bit_for_bit_and_at_its_cost() -> None:
    base, aux = Counted(mixture()), Counted(mixture(0.2, 1.4))
    guided, options = Extrapolate(base, aux, 0.0, cache=RULE), SamplerOptions(steps=5)
    x, _ = sample_seeds(guided, range(4), options)
    assert torch.equal(x, sample_seeds(base, range(4), options)[0])
    y, sigma = torch.randn(4, 2), torch.ones(4)
    assert torch.equal(guided(y, sigma), base(y, sigma))
    assert aux.calls == 0
    assert nfe(guided, options) == nfe(base, options) == 9


def test_the_formula_and_the_interval_hold_per_sample() -> None:
    base, aux = mixture(), mixture(0.2, 1.4)
    x, sigma = torch.randn(4, 2), torch.tensor([0.1, 0.5, 2.0, 2.1])
    guided = Extrapolate(base, aux, 1.5, interval=(0.1, 2.0))(x, sigma)
    expected = base(x, sigma) + 1.5 * (base(x, sigma) - aux(x, sigma))
    assert torch.equal(guided[[1, 2]], expected[[1, 2]])
    assert torch.equal(guided[[0, 3]], base(x, sigma)[[0, 3]])


def test_outside_the_interval_the_auxiliary_is_never_called() -> None:
    aux = Counted(mixture(0.2, 1.4))
    guided = Extrapolate(mixture(), aux, 1.0, interval=(1e3, 1e4))
    x, _ = sample_seeds(guided, range(3), SamplerOptions(steps=4))
    assert torch.equal(x, sample_seeds(mixture(), range(3), SamplerOptions(steps=4))[0]) and aux.calls == 0


class _Other(Counted):
    def __init__(self, inner: Denoiser, **changes: object) -> None:
        super().__init__(inner)
        vars(self).update(changes)


@pytest.mark.parametrize(
    ("aux", "w", "interval"),
    [
        (mixture(), math.nan, (0.0, 1.0)),
        (mixture(), -math.inf, (0.0, 1.0)),
        (mixture(), 1.0, (1.0, 1.0)),
        (mixture(), 1.0, (math.nan, 1.0)),
        (_Other(mixture(), data_shape=(3,)), 1.0, (0.0, 1.0)),
        (_Other(mixture(), num_classes=4), 1.0, (0.0, 1.0)),
    ],
)
def test_bad_guidance_is_a_user_error(aux: Denoiser, w: float, interval: tuple[float, float]) -> None:
    with pytest.raises(UserError):
        Extrapolate(mixture(), aux, w, interval)


def test_an_auxiliary_without_classes_gets_no_labels() -> None:
    class Strict(Counted):
        def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
            assert labels is None
            return super().__call__(x, sigma)

    base = GaussianMixture([0.5, 0.5], torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.eye(2).expand(2, 2, 2), [0, 1])
    guided = Extrapolate(base, Strict(mixture()), 1.0)
    assert isinstance(guided, Denoiser) and guided.num_classes == 2 and device_of(guided).type == "cpu"
    x, labels = sample_seeds(guided, range(4), SamplerOptions(steps=3))
    assert torch.isfinite(x).all() and labels is not None
    guided(x, torch.ones(4), labels)


# ---- the cache

OPTIONS = [
    SamplerOptions(),
    SamplerOptions(steps=11, solver="dpmpp2m"),
    SamplerOptions(steps=9, s_churn=3.0),
    SamplerOptions(steps=12, sigma_min=0.05, sigma_max=20.0),
]


@pytest.mark.parametrize("interval", [(0.0, math.inf), (0.05, 3.0)])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("refreshes", [None, 1, 5, 1000])
def test_evaluations_are_what_is_counted(
    options: SamplerOptions, refreshes: int | None, interval: tuple[float, float]
) -> None:
    base, aux = Counted(mixture()), Counted(mixture(0.2, 1.4))
    cache = None if refreshes is None else RULE.with_refreshes(refreshes)
    guided = Extrapolate(base, aux, 1.0, interval, cache)
    sample_seeds(guided, range(2), options)
    assert nfe(guided, options) == base.calls + aux.calls
    assert cache is None or aux.calls <= cache.refreshes


def test_guided_denoisers_nest() -> None:
    """Base and auxiliary may be guided and cached themselves; their trajectories see only their own levels."""
    a, b, c = Counted(mixture()), Counted(mixture(0.2, 1.4)), Counted(mixture(-0.2, 1.2))
    inner = Extrapolate(b, c, 0.5, interval=(0.01, 5.0), cache=RULE.with_refreshes(3))
    for guided in (Extrapolate(a, inner, 1.0, cache=RULE.with_refreshes(6)), Extrapolate(inner, a, 1.0, (0.1, 9.0))):
        a.calls = b.calls = c.calls = 0
        x, _ = sample_seeds(guided, range(2), SamplerOptions())
        assert torch.isfinite(x).all()
        assert nfe(guided, SamplerOptions()) == a.calls + b.calls + c.calls


class Everywhere(CacheRule):
    """Refreshes at each evaluation, through the cache's own path."""

    def plan(self, sigmas: Tensor) -> list[Step]:
        return [Step(True, 1.0)] * len(sigmas)


@pytest.mark.parametrize("solver", ["heun", "dpmpp2m"])
def test_refreshing_everywhere_is_no_cache_bit_for_bit(solver: str) -> None:
    base, aux = mixture(), mixture(0.2, 1.4)
    options = SamplerOptions(solver=solver)  # type: ignore[arg-type]
    plain, _ = sample_seeds(Extrapolate(base, aux, 1.0), range(8), options)
    every = Everywhere(RULE.sigmas, RULE.gram, RULE.sigma_data, 1)
    assert torch.equal(plain, sample_seeds(Extrapolate(base, aux, 1.0, cache=every), range(8), options)[0])
    if solver == "dpmpp2m":  # no level repeats: a rule with enough refreshes leaves none out
        cached = Extrapolate(base, aux, 1.0, cache=RULE.with_refreshes(options.steps))
        assert torch.equal(plain, sample_seeds(cached, range(8), options)[0])


def test_nothing_survives_a_trajectory_and_batches_do_not_influence_each_other() -> None:
    guided, options = Extrapolate(mixture(), mixture(0.2, 1.4), 1.0, cache=RULE.with_refreshes(4)), SamplerOptions()
    x, _ = sample_seeds(guided, range(8), options)
    assert torch.equal(x, sample_seeds(guided, range(8), options)[0])
    torch.testing.assert_close(x, sample_seeds(guided, range(8), options, batch_size=3)[0], atol=1e-5, rtol=1e-5)
    one, two = (guided.trajectory(torch.tensor([1.0, 0.5])) for _ in range(2))  # interleaved runs
    y, sigma = torch.randn(2, 2), torch.ones(2)
    assert torch.equal(one(y, sigma), two(y, sigma)) and torch.equal(one(y, sigma / 2), two(y, sigma / 2))


def predicted_error(rule: CacheRule, refreshes: int, sigmas: torch.Tensor) -> float:
    """The weighted error of reusing, relative to the whole correction: 0 = none, 1 = unguided."""
    levels, _ = cache._grouped(sigmas)
    if not levels:
        return 0.0
    gram, weights = rule._interpolated(levels), cache._weights(levels, rule.sigma_data)
    total = float(weights @ np.sqrt(np.maximum(np.diagonal(gram), 0.0)))
    return cache._place(gram, weights, refreshes)[1] / total if total > 0 else 0.0


def test_more_refreshes_come_closer() -> None:
    """The samples approach the uncached ones, and the rule predicted it; 8 of 35 keep nearly everything."""
    base, aux, options = mixture(), mixture(0.2, 1.4), SamplerOptions()
    full, _ = sample_seeds(Extrapolate(base, aux, 1.0), range(256), options)
    plain, _ = sample_seeds(base, range(256), options)
    planned = options.planned(base)
    errors = []
    for k in (2, 4, 8, 18):
        x, _ = sample_seeds(Extrapolate(base, aux, 1.0, cache=RULE.with_refreshes(k)), range(256), options)
        errors.append(float((x - full).square().mean().sqrt() / (plain - full).square().mean().sqrt()))
    predicted = [predicted_error(RULE, k, planned) for k in (2, 4, 8, 18)]
    assert errors == sorted(errors, reverse=True) and predicted == sorted(predicted, reverse=True)
    assert errors[2] < 0.15 and errors[3] < 0.05, errors
    assert predicted[0] < 1 and predicted[3] == pytest.approx(0.0, abs=1e-6)


@st.composite
def rules(draw: st.DrawFn) -> CacheRule:
    size, batch = draw(st.integers(1, 6)), draw(st.integers(1, 4))
    levels = sorted(draw(st.lists(st.floats(1e-3, 100), min_size=size, max_size=size, unique=True)), reverse=True)
    seed = draw(st.integers(0, 2**31))
    values = torch.randn(size, batch, 3, generator=torch.Generator().manual_seed(seed)) * draw(st.sampled_from([0, 1]))
    return CacheRule.from_corrections(levels, list(values), 0.5, draw(st.integers(1, 12)))


@settings(max_examples=80, deadline=None)
@given(rules(), st.lists(st.floats(1e-4, 200), min_size=0, max_size=24))
def test_plans_hold_together(rule: CacheRule, levels: list[float]) -> None:
    """Any levels, in any order (churn): one step each, no more refreshes than allowed, none used before it is made."""
    steps = rule.plan(torch.tensor(levels, dtype=torch.float64))
    assert len(steps) == len(levels)
    assert sum(step.refresh for step in steps) <= rule.refreshes
    fresh = False
    for step in steps:
        fresh = fresh or step.refresh
        assert math.isfinite(step.scale)
        assert step.scale == 1.0 if step.refresh else fresh or step.scale == 0.0
    assert steps == rule.plan(torch.tensor(levels, dtype=torch.float64))
    error = predicted_error(rule, rule.refreshes, torch.tensor(levels, dtype=torch.float64))
    assert 0 <= error <= 1 + 1e-9


def test_the_placement_is_optimal() -> None:
    """Against all choices of 3 of 8 levels, by brute force over the same costs."""
    from itertools import combinations

    levels = [50.0, 20.0, 8.0, 3.0, 1.0, 0.3, 0.1, 0.01]
    gram, weights = RULE._interpolated(levels), cache._weights(levels, 1.0)
    misses, sizes = cache._misses(gram), np.sqrt(np.diagonal(gram))

    def cost(chosen: tuple[int, ...]) -> float:
        latest = [max((i for i in chosen if i <= j), default=-1) for j in range(8)]
        return float(sum(weights[j] * (sizes[j] if i < 0 else misses[i, j]) for j, i in enumerate(latest)))

    best = min((c for n in range(4) for c in combinations(range(8), n)), key=cost)
    chosen, value = cache._place(gram, weights, 3)
    assert value == pytest.approx(cost(best)) and tuple(chosen) == best


def test_levels_that_repeat_share_one_computation() -> None:
    steps = RULE.with_refreshes(100).plan(torch.tensor([4.0, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64))
    assert [step.refresh for step in steps] == [True, True, False, True, False]
    assert [step.scale for step in steps] == [1.0] * 5


def test_a_pilot_is_what_a_recorder_records() -> None:
    guided = Extrapolate(mixture(), mixture(0.2, 1.4), 1.0, cache=RULE.with_refreshes(2))  # its own rule plays no part
    assert CacheRule.from_pilot(guided, range(64), SamplerOptions(), RULE.refreshes, sigma_data=1.0) == RULE
    assert CacheRule.from_pilot(guided, range(4)).sigma_data == 0.5
    with pytest.raises(UserError, match="one correction per level"):
        CacheRule.from_pilot(guided.limited((1e3, 1e4)), range(4))


def test_a_rule_survives_json_bit_for_bit() -> None:
    again = CacheRule.from_json(json.loads(json.dumps(RULE.to_json())))
    assert again == RULE


@pytest.mark.parametrize(
    "change",
    [
        {"sigmas": [1.0]},
        {"gram": [[math.nan] * len(RULE.sigmas)] * len(RULE.sigmas)},
        {"sigma_data": 0.0},
        {"refreshes": 0},
    ],
)
def test_broken_rules_are_user_errors(change: dict) -> None:
    with pytest.raises(UserError):
        CacheRule.from_json(RULE.to_json() | change)
    with pytest.raises(UserError):
        CacheRule.from_corrections([1.0, 0.5], [torch.zeros(1, 2)], 0.5, 1)


def test_recording_changes_nothing() -> None:
    records: list[tuple[float, Tensor]] = []
    guided, options = Extrapolate(mixture(), mixture(0.2, 1.4), 1.0, (0.05, 3.0)), SamplerOptions()
    recorder = Recorder(guided, records)
    assert isinstance(recorder, Denoiser) and nfe(recorder, options) == nfe(guided, options)
    x, _ = sample_seeds(recorder, range(4), options)
    assert torch.equal(x, sample_seeds(guided, range(4), options)[0])
    inside = [s for s in options.planned(guided).tolist() if 0.05 < s <= 3.0]
    assert [s for s, _ in records] == inside and all(c.shape == (4, 2) for _, c in records)
