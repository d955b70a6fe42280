"""What guidance away from a mixture does to the components' weights: the sampler against the exact guided flow.

Base and auxiliary are exact denoisers of mixtures with the same components and other weights, pi_r and pi_s. The
flow dx / d ln sigma = x - D, D = D_r + w (D_r - D_s), is integrated with tight tolerances. In one dimension it keeps
the order of points: a component's weight is the chance that the initial noise falls between the starting points of the
paths that end on its borders, so the weights are exact without any sampling.

They are not those of p_r^(1+w) / p_s^w, which are proportional to pi_r^(1+w) / pi_s^w where components are apart.
``GAINED`` has the share of that formula's change of log-odds that the flow makes: it falls as w and as the distance of
pi_s from pi_r grow, from 0.84 to 0.34 here. Hence a solver has to measure and correct.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.stats import norm

from sims.gaussians import GaussianMixture
from sims.guidance import Extrapolate
from sims.sampling import edm_sigmas, sample

Array = np.ndarray
SIGMA_MIN, SIGMA_MAX = 0.002, 400.0
SAMPLES = 20_000

# Weights of the base and of the auxiliary, standard deviations; components lie at even distances in [-2, 2].
CASES = {
    "rare": ([0.1, 0.9], [0.05, 0.95], [0.4, 0.4]),
    "narrow": ([0.1, 0.9], [0.05, 0.95], [0.1, 0.5]),
    "rarer": ([0.02, 0.98], [0.005, 0.995], [0.4, 0.4]),
    "three": ([0.5, 0.3, 0.2], [0.6, 0.3, 0.1], [0.3, 0.3, 0.3]),
}
#: (case, w) -> share of the formula's change of log-odds, of the first component against the last
GAINED = {
    ("rare", 0.5): 0.780,
    ("rare", 1.0): 0.709,
    ("rare", 2.0): 0.610,
    ("rare", 3.0): 0.541,
    ("narrow", 0.5): 0.787,
    ("narrow", 1.0): 0.715,
    ("narrow", 2.0): 0.615,
    ("narrow", 3.0): 0.544,
    ("rarer", 0.5): 0.569,
    ("rarer", 1.0): 0.490,
    ("rarer", 2.0): 0.394,
    ("rarer", 3.0): 0.335,
    ("three", 0.5): 0.836,
    ("three", 1.0): 0.781,
    ("three", 2.0): 0.696,
    ("three", 3.0): 0.633,
}

#: Share of a component of 2 % that the auxiliary has never seen, at w = 0, 0.5, 1, 2, 3.
LIMIT = [0.0202, 0.0332, 0.0461, 0.0717, 0.0967]


def centres(num: int) -> Array:
    return np.linspace(-2, 2, num)


def pair(case: str, w: float) -> Extrapolate:
    real, synthetic, deviations = CASES[case]
    means = torch.from_numpy(centres(len(real)))[:, None]
    covariances = torch.tensor(deviations, dtype=torch.float64).square()[:, None, None]
    base, aux = (
        GaussianMixture(weights, means, covariances, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
        for weights in (real, synthetic)
    )
    return Extrapolate(base, aux, w)


def flow(guided: Extrapolate, x: Array, start: float, end: float) -> Array:
    """Where the exact flow takes points x (n, D) from one noise level to another, in float64."""

    def velocity(log_sigma: float, flat: Array) -> Array:
        points = torch.from_numpy(flat.reshape(x.shape))
        sigma = torch.full((len(x),), math.exp(log_sigma), dtype=torch.float64)
        return (points - guided(points, sigma)).numpy().ravel()

    span = (math.log(start), math.log(end))
    found = solve_ivp(velocity, span, x.ravel(), method="DOP853", rtol=1e-9, atol=1e-10)
    assert found.success
    return found.y[:, -1].reshape(x.shape)


def borders(num: int) -> Array:
    return (centres(num)[1:] + centres(num)[:-1]) / 2


def exact_weights(guided: Extrapolate, num: int) -> Array:
    """Weights (K,) of what the flow makes of N(0, sigma_max^2): from the paths that end on the borders."""
    start = flow(guided, borders(num)[:, None], SIGMA_MIN, SIGMA_MAX)[:, 0]
    return np.diff(np.concatenate([[0.0], norm.cdf(start / SIGMA_MAX), [1.0]]))


def formula(case: str, w: float) -> Array:
    """pi_r^(1+w) / pi_s^w, normalized."""
    real, synthetic, _ = CASES[case]
    found = np.array(real) ** (1 + w) / np.array(synthetic) ** w
    return found / found.sum()


def log_odds(weights: Array) -> float:
    return math.log(weights[0] / weights[-1])


@pytest.mark.parametrize("w", [0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("case", CASES)
def test_sampled_weights_are_those_of_the_exact_flow(case: str, w: float) -> None:
    real = np.array(CASES[case][0])
    guided, num = pair(case, w), len(real)
    exact = exact_weights(guided, num)
    noise = torch.randn(SAMPLES, 1, generator=torch.Generator().manual_seed(0))
    x = sample(guided, noise, edm_sigmas(48, SIGMA_MIN, SIGMA_MAX))
    sampled = np.bincount(np.digitize(x[:, 0].numpy(), borders(num)), minlength=num) / SAMPLES
    error = np.sqrt(exact * (1 - exact) / SAMPLES)
    assert (np.abs(sampled - exact) < 3.5 * error).all(), (sampled, exact)
    # The error bars tell the flow from the base and from the formula.
    assert (np.abs(exact - real) > 5 * error).any() and (np.abs(exact - formula(case, w)) > error).any()
    gained = (log_odds(exact) - log_odds(real)) / (log_odds(formula(case, w)) - log_odds(real))
    assert gained == pytest.approx(GAINED[case, w], abs=0.003)


def test_without_guidance_the_weights_are_the_base_s() -> None:
    for case, (real, _, _) in CASES.items():
        # The initial noise is not quite the noisy data: sigma_max is finite.
        np.testing.assert_allclose(exact_weights(pair(case, 0.0), len(real)), real, atol=0.002)


def test_each_sample_ends_where_the_exact_flow_takes_its_noise() -> None:
    """In two dimensions, from the same noise: the same component but on a border, the same point to second order."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]], dtype=torch.float64)
    covariances = torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.3, -0.1], [-0.1, 0.2]]])
    base, aux = (
        GaussianMixture(weights, means, covariances, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
        for weights in ([0.1, 0.5, 0.4], [0.03, 0.5, 0.47])
    )
    guided = Extrapolate(base, aux, 2.0)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    coarse, fine = (sample(guided, noise, edm_sigmas(steps, SIGMA_MIN, SIGMA_MAX)).double() for steps in (64, 128))
    end = torch.from_numpy(flow(guided, SIGMA_MAX * noise.double().numpy(), SIGMA_MAX, SIGMA_MIN))
    ends = guided(end, torch.full((300,), SIGMA_MIN, dtype=torch.float64))  # the sampler's last step, to 0
    same = torch.cdist(fine, means).argmin(dim=1) == torch.cdist(ends, means).argmin(dim=1)
    assert int(same.sum()) >= 298
    missed = [float((x - ends).norm(dim=1)[same].median()) for x in (coarse, fine)]
    assert missed[0] < 0.01 and missed[1] < 0.3 * missed[0]


def test_leaving_a_component_out_of_the_auxiliary_gives_it_a_limited_weight() -> None:
    """The furthest that the auxiliary's data can go: even then the strength bounds what can be reached."""
    real, std = [0.02, 0.98], 0.4
    means, covariances = torch.tensor([[-2.0], [2.0]]).double(), torch.full((2, 1, 1), std**2).double()
    base = GaussianMixture(real, means, covariances, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    aux = GaussianMixture([1.0], means[1:], covariances[1:], sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX)
    reached = [float(exact_weights(Extrapolate(base, aux, w), 2)[0]) for w in (0.0, 0.5, 1.0, 2.0, 3.0)]
    assert all(low < high for low, high in itertools.pairwise(reached))
    np.testing.assert_allclose(reached, LIMIT, atol=0.0005)
