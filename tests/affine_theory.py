"""The theory of loops of affine denoisers, fitted exactly in every generation."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special

# A model N(mu, S) is fitted to n_fresh new points of the truth N(m, C) and n_synthetic points of the last generation's
# model. All is said in coordinates where the truth is N(0, I): e = C^-1/2 (mu - m) and A = C^-1/2 S C^-1/2.


@dataclass(frozen=True)
class Expected:
    """Expectations of one generation over all randomness, for a truth N(m, C).

    mean_error: E|mu - m|²; covariance: E[S] as a multiple of C; covariance_error: E|S - C|², Frobenius.
    """

    mean_error: float
    covariance: float
    covariance_error: float


def log_det_law(dimension: int, points: tuple[int, ...]) -> tuple[float, float]:
    """Mean and variance of log det S_t - log det C in a fully synthetic loop whose generations saw these numbers.

    S_0 is the unbiased covariance of points[0] real points, S_t that of points[t] samples of N(mu, S_(t-1)). Given
    S_(t-1), (n - 1) S_t is Wishart, so det S_t / det S_(t-1) is a product of independent chi-square variables of n - 1
    ... n - D degrees of freedom, over (n - 1)^D. For D = 1, S_t is S_0 times a product of chi-squares over their
    degrees. E[S_t] = C for ever, but the mean logarithm falls by about D (D + 1) / 2n a generation: the typical
    volume goes to zero.
    """
    mean = variance = 0.0
    for n in points:
        halves = (n - np.arange(1, dimension + 1)) / 2
        mean += float(special.digamma(halves).sum()) + dimension * math.log(2 / (n - 1))
        variance += float(special.polygamma(1, halves).sum())
    return mean, variance


def expected(covariance: np.ndarray, first: int, fresh: int, synthetic: int, generation: int) -> Expected:
    """Exact expectations at a generation; generation 0 is fitted to ``first`` points of the truth.

    Every later one is fitted to ``fresh`` (0 = a fully synthetic loop) and ``synthetic`` points together.
    """
    matrix = _step(len(covariance), fresh, synthetic)
    moments = np.linalg.matrix_power(matrix, generation) @ _start(len(covariance), first)
    return _in_units(moments, covariance)


def fixed_point(covariance: np.ndarray, fresh: int, synthetic: int) -> Expected:
    """Where the expectations of a loop with fresh data go; without fresh data there is no such point."""
    matrix = _step(len(covariance), fresh, synthetic)
    rest = np.linalg.solve(np.eye(len(matrix) - 1) - matrix[1:, 1:], matrix[1:, 0])  # the first moment is 1
    return _in_units(np.concatenate([[1.0], rest]), covariance)


def _monomials(e: np.ndarray, a: np.ndarray) -> np.ndarray:
    """What the expectations are linear in: 1, |e|², tr A, |e|⁴, |e|² tr A, e'Ae, (tr A)², tr A²."""
    s, t = e @ e, np.trace(a)
    return np.array([1.0, s, t, s * s, s * t, e @ a @ e, t * t, np.trace(a @ a)])


def _wishart(a: np.ndarray, degrees: int) -> tuple[np.ndarray, float, float]:
    """E[W], E[(tr W)²] and E[tr W²] of W ~ Wishart(a, degrees)."""
    t, q = np.trace(a), np.trace(a @ a)
    return degrees * a, degrees**2 * t**2 + 2 * degrees * q, degrees * (degrees + 1) * q + degrees * t**2


def _next(e: np.ndarray, a: np.ndarray, fresh: int, synthetic: int) -> np.ndarray:
    """The expected monomials of a generation, given e and A of the last one.

    With u the new mean, d the difference of the means of fresh and synthetic points, and F, G their scatter matrices,
    (n - 1) A' = F + G + k d d', k = fresh synthetic / n. Moments of products of Gaussians by Isserlis' theorem.
    """
    n, one = fresh + synthetic, np.eye(len(e))
    share, k = synthetic / n, fresh * synthetic / n
    uu = share**2 * np.outer(e, e) + ((1 - share) * one + share * a) / n  # E[u u']
    dd = np.outer(e, e) + (one / fresh if fresh else 0) + a / synthetic  # E[d d']
    ud = (one - a) / n - share * np.outer(e, e)  # E[u d']
    s, tr_u, tr_d = e @ e, np.trace(uu), np.trace(dd)
    u4 = tr_u**2 + 2 * np.trace(uu @ uu) - 2 * share**4 * s**2  # E|u|⁴
    d4 = tr_d**2 + 2 * np.trace(dd @ dd) - 2 * s**2
    u2d2 = tr_u * tr_d + 2 * np.trace(ud @ ud) - 2 * share**2 * s**2  # E|u|²|d|²
    udud = np.trace(uu @ dd) + np.trace(ud) ** 2 + np.trace(ud @ ud) - 2 * share**2 * s**2  # E(u'd)²
    f, f_tt, f_q = _wishart(one, max(fresh - 1, 0))
    g, g_tt, g_q = _wishart(a, synthetic - 1)
    scatter = np.trace(f + g)
    trace = scatter + k * tr_d
    u2_trace = tr_u * scatter + k * u2d2
    u_a_u = np.trace(uu @ (f + g)) + k * udud
    trace_2 = f_tt + g_tt + 2 * np.trace(f) * np.trace(g) + k**2 * d4 + 2 * scatter * k * tr_d
    square = f_q + g_q + 2 * np.trace(f @ g) + k**2 * d4 + 2 * k * np.trace((f + g) @ dd)
    m = n - 1
    return np.array([1.0, tr_u, trace / m, u4, u2_trace / m, u_a_u / m, trace_2 / m**2, square / m**2])


def _step(dimension: int, fresh: int, synthetic: int) -> np.ndarray:
    """The matrix that takes the expected monomials of a generation to those of the next.

    They are linear in the monomials, so the matrix follows from as many generic points as there are monomials.
    """
    rng = np.random.default_rng(0)
    before, after = [], []
    for _ in range(24):
        e, half = rng.normal(size=dimension), rng.normal(size=(dimension, dimension))
        a = half @ half.T
        before.append(_monomials(e, a))
        after.append(_next(e, a, fresh, synthetic))
    return np.linalg.lstsq(np.array(before), np.array(after), rcond=None)[0].T


def _start(dimension: int, first: int) -> np.ndarray:
    """The expected monomials of generation 0: mean and covariance of ``first`` points of N(0, I), independent."""
    d, s = dimension, dimension / first
    _, trace_2, square = _wishart(np.eye(d), first - 1)
    m2 = (first - 1) ** 2
    return np.array([1.0, s, d, d * (d + 2) / first**2, s * d, s, trace_2 / m2, square / m2])


def _in_units(moments: np.ndarray, covariance: np.ndarray) -> Expected:
    """From coordinates where the truth is N(0, I) to those where it is N(m, C).

    A is distributed alike in all directions, so with X = A - I, E[X_ij X_kl] = p δij δkl + q (δik δjl + δil δjk).
    """
    d = len(covariance)
    _, s, t, *_, tt, q2 = moments
    trace_2, square = tt - 2 * d * t + d * d, q2 - 2 * t + d  # E(tr X)² = d² p + 2 d q, E tr X² = d p + d (d + 1) q
    q = (square - trace_2 / d) / (d * (d + 1) - 2) if d > 1 else 0.0
    p = (trace_2 - 2 * d * q) / d**2
    total, squares = float(np.trace(covariance)), float(np.trace(covariance @ covariance))
    return Expected(float(s * total / d), float(t / d), float((p + q) * squares + q * total**2))
