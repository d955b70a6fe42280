"""Proportions of an attribute among samples that a fallible classifier labelled, and how far they are from a target.

A classifier that calls true value i predicted value j with probability M_ij shows shares q = M^T p of the true shares
p. M is known from held-out samples. The estimate maximizes the likelihood of the observed counts over the simplex. It
is M^-T q where that has no negative entry (for two values the estimate of Rogan and Gladen 1978, and the point estimate
of CLEAM: Teo et al., NeurIPS 2023), and otherwise found by EM. CLEAM takes M as known; here its counts are finite, and
the intervals include their error, which at many samples is most of it.

What remains an assumption: the classifier errs on samples as it does on held-out data of the same value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.intervals import _check_level
from sims.metrics.matrices import Array, as_matrix

ValueLowHigh = tuple[float, float, float]
DRAWS = 1000
_EM_STEPS, _EM_TOLERANCE, _EM_CLEANED = 2000, 1e-9, 20
_SINGULAR = 0.02  # smallest singular value of M below which a correction multiplies noise by 50


@dataclass(frozen=True)
class Proportions:
    """Shares (K,) of the values among n samples, with intervals; ``raw`` are the classifier's own counts over n."""

    values: Array
    low: Array
    high: Array
    raw: Array
    n: int


def confusion(true: Array, predicted: Array, num: int) -> Array:
    """Counts (num, num) int64 of held-out samples by true value (n,) (row) and predicted value (n,) (column).

    Samples without a known value, true = -1, are left out. UserError where a value lies outside 0 .. num - 1.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if true.shape != predicted.shape or true.ndim != 1:
        raise UserError(f"{true.shape} true and {predicted.shape} predicted values: give one of each per sample")
    known = true != -1
    _checked(true[known], num, "true")
    _checked(predicted[known], num, "predicted")
    return np.bincount(true[known] * num + predicted[known], minlength=num * num).reshape(num, num)


def proportions(
    predicted: Array,
    confusion: Array,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
    draws: int = DRAWS,
) -> Proportions:
    """Shares of K values among samples with predicted values (n,) int, corrected by confusion counts (K, K).

    Intervals are per value, at ``level``: percentiles of ``draws`` estimates with the samples' counts and the rows of
    the confusion matrix drawn anew from their Dirichlet posteriors. UserError where the classifier is no better than
    chance for a pair of values, which it names (``names``: of the values).
    """
    _check_level(level)
    counts, rows = _counted(predicted, confusion, names)
    estimate, raw = _estimate(counts, rows), counts / counts.sum()
    drawn = _maximum_likelihood(*_redrawn(counts, rows, seed, draws))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Proportions(estimate, np.minimum(low, estimate), np.maximum(high, estimate), raw, len(predicted))


def total_variation(p: Array, q: Array) -> float:
    """Half the sum of |p - q| of shares p and q (K,)."""
    return float(_total_variation(np.asarray(p, np.float64), np.asarray(q, np.float64)))


def kl(p: Array, q: Array) -> float:
    """KL(p || q) in nats of shares p and q (K,); infinite where p has what q lacks."""
    return float(_kl(np.asarray(p, np.float64), np.asarray(q, np.float64)))


def distances_to(
    target: Array,
    predicted: Array,
    confusion: Array,
    level: float = 0.95,
    seed: int = 0,
    names: Sequence[str] | None = None,
    draws: int = DRAWS,
) -> tuple[ValueLowHigh, ValueLowHigh]:
    """Total variation and KL(shares || target) in nats of the corrected shares to a target (K,): value, low, high each.

    Shares are redrawn as in ``proportions``. A distance of noisy shares is too large on average, and that of redrawn
    ones too large twice over. So the upper limit is that of the basic bootstrap, 2 value - quantile (Davison and
    Hinkley 1997, eq. 5.6), which subtracts this; but a value that is small by luck says no more than that the distance
    is within the shares' errors, so it is never less than what these make up. The lower limit is the value minus that,
    hence 0 where they can make up all of it. The divergence is too skewed for the basic bootstrap alone: its upper
    limit is the larger of the two kinds, and infinite where the target has a share of 0.
    """
    _check_level(level)
    counts, rows = _counted(predicted, confusion, names)
    target = _shares(target, "target")
    if len(target) != len(rows):
        raise UserError(f"a target of {len(target)} shares for an attribute of {len(rows)} values: give one for each")
    estimate = _estimate(counts, rows)
    free = _solved(*_redrawn(counts, rows, seed, draws))
    errors = free - np.median(free, axis=0)  # around the estimate: what never erred in few samples must not shift it
    noise = float(np.quantile(_total_variation(errors, np.zeros(len(target))), level))
    value, below, above = _redrawn_distance(_total_variation, estimate, errors, target, level)
    apart = total_variation(estimate, target) - noise  # at least so far from the target: the triangle inequality
    tv = value, max(0.0, apart), min(1.0, max(value, 2 * value - below, noise))
    value, below, above = _redrawn_distance(_kl, estimate, errors, target, level)
    if math.isinf(above):  # a share of zero is wanted
        return tv, (value, 0.0 if math.isfinite(value) else math.inf, math.inf)
    low = min(value, below, 2 * value - above) if apart > 0 else 0.0
    return tv, (value, max(0.0, low), max(value, above, 2 * value - below))


def _redrawn_distance(
    distance: Callable[[Array, Array], Array], estimate: Array, errors: Array, target: Array, level: float
) -> ValueLowHigh:
    """A distance of the estimate, and its quantiles with errors (B, K); the upper one infinite where any is."""
    redrawn = distance(estimate + errors, target)
    if not np.isfinite(redrawn).all():
        return float(distance(estimate, target)), 0.0, math.inf
    below, above = np.quantile(redrawn, [(1 - level) / 2, (1 + level) / 2])
    return float(distance(estimate, target)), float(below), float(above)


def called_shares(target: Array, shares: Array, confusion: Array) -> Array:
    """Shares (K,) that samples must have by a fallible classifier's calls, to have the target's in truth.

    ``shares`` (K,) are the true ones among candidates, accepted by what the classifier calls them: those called j with
    the weight a_j. The accepted then have the true shares p_i sum_j M_ij a_j, the target's t for a = M^-1 (t / p).
    Weights below zero, which a weak classifier asks for, are zero: it then cannot quite reach the target.
    """
    rates = np.asarray(confusion, np.float64) / np.sum(confusion, axis=1, keepdims=True)
    weights = np.clip(np.linalg.solve(rates, target / np.maximum(shares, 1e-4)), 0, None)
    called = (shares @ rates) * weights
    return called / called.sum()


def weights_to(target: Array, labels: Array, names: Sequence[str] | None = None) -> Array:
    """Weights (n,), sum 1, by which labelled real samples (n,), -1 = unknown, have the target's shares (K,).

    UserError where the target asks for a value that no real sample has.
    """
    target, labels = _shares(target, "target"), np.asarray(labels)
    known = labels != -1
    _checked(labels[known], len(target), "real")
    counts = np.bincount(labels[known], minlength=len(target))
    missing = np.flatnonzero((target > 0) & (counts == 0))
    if len(missing):
        raise UserError(
            f"the target asks for {target[missing[0]]:.3g} of {_name(names, missing[0])}, which no real sample has: "
            "give real samples of it, or a target without it"
        )
    each = np.divide(target, counts, out=np.zeros_like(target), where=counts > 0)
    return np.where(known, each[np.where(known, labels, 0)], 0.0)


def weighted_moments(features: Array | Tensor, weights: Array) -> Moments:
    """Moments of features (n, D) with weights (n,) >= 0, float64; with equal weights those of ``Moments.of``.

    With weights of sum 1 the covariance is divided by 1 - sum w^2, which makes it unbiased; the count is Kish's
    effective number 1 / sum w^2, rounded. UserError where fewer than two samples have a weight.
    """
    x, w = as_matrix(features, minimum=2), np.asarray(weights, np.float64)
    if w.shape != (len(x),) or not np.isfinite(w).all() or (w < 0).any():
        raise UserError(f"weights of shape {w.shape} for {len(x)} rows: give one finite weight >= 0 for each")
    if (w > 0).sum() < 2:
        raise UserError(f"{int((w > 0).sum())} sample(s) have a weight above 0: a covariance needs at least 2")
    w = w / w.sum()
    mean = w @ x
    centred = (x - mean) * np.sqrt(w)[:, None]
    squares = float(w @ w)
    return Moments(mean, centred.T @ centred / (1 - squares), round(1 / squares))


def _estimate(counts: Array, rows: Array) -> Array:
    """The maximum of the likelihood (K,) for predicted counts (K,) and confusion counts (K, K)."""
    return _maximum_likelihood((counts / counts.sum())[None], (rows / rows.sum(axis=1, keepdims=True))[None])[0]


def _redrawn(counts: Array, rows: Array, seed: int, draws: int) -> tuple[Array, Array]:
    """Shares (draws, K) and confusion rates (draws, K, K) as they may be, given the counts: Dirichlet posteriors."""
    if draws < 100:
        raise UserError(f"{draws} draws for an interval: at least 100 are needed, better {DRAWS}")
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(counts + 0.5, size=draws)  # Jeffreys: what was never seen can still be there
    # One held-out sample's worth of doubt per row, whatever K; more would invent errors where rows are short.
    rates = np.stack([rng.dirichlet(row + 1 / len(rows), size=draws) for row in rows], axis=1)
    return shares, rates


def _solved(shares: Array, rates: Array) -> Array:
    """p (B, K) with rates^T p = shares, which may leave the simplex."""
    return np.linalg.solve(rates.transpose(0, 2, 1), shares[:, :, None])[:, :, 0]


def _maximum_likelihood(shares: Array, rates: Array) -> Array:
    """The p (B, K) on the simplex that maximize sum_j shares_j log (rates^T p)_j: shares (B, K), rates (B, K, K)."""
    found = _solved(shares, rates)
    outside = np.flatnonzero((found < 0).any(axis=1))
    if len(outside):
        q, m = shares[outside], rates[outside]
        start = np.clip(found[outside], 0, None) + 1e-3
        found[outside] = _em(q, m, start / start.sum(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


def _em(shares: Array, rates: Array, p: Array) -> Array:
    """Expectation maximization from p (B, K) > 0; each step raises the likelihood and stays on the simplex.

    Shares that shrink to zero take forever; every so often those below 0.001 are set to zero where, there, the
    likelihood would not gain by raising them (the condition of Karush, Kuhn and Tucker).
    """
    active = np.arange(len(p))
    for step in range(1, _EM_STEPS + 1):
        q, m, old = shares[active], rates[active], p[active]
        new = old * _gradient(q, m, old)
        done = np.abs(new - old).max(axis=1) <= _EM_TOLERANCE
        if step % _EM_CLEANED == 0 or done.any():
            zeroed = np.where(new < 1e-3, 0.0, new)
            zeroed = np.where((new < 1e-3) & (_gradient(q, m, zeroed) > 1), new, zeroed)
            new = zeroed / zeroed.sum(axis=1, keepdims=True)
        p[active] = new
        active = active[~done]
        if not len(active):
            break
    return p


def _gradient(shares: Array, rates: Array, p: Array) -> Array:
    """d/dp_i of sum_j shares_j log (rates^T p)_j (B, K): 1 at the maximum where p_i > 0, at most 1 where p_i = 0."""
    shown = np.einsum("bi,bij->bj", p, rates)
    ratio = np.divide(shares, shown, out=np.zeros_like(shares), where=shown > 0)
    return np.einsum("bij,bj->bi", rates, ratio)


def _counted(predicted: Array, confusion: Array, names: Sequence[str] | None) -> tuple[Array, Array]:
    """Counts (K,) of predicted values and the confusion counts (K, K) as float64; UserError where they are no use."""
    rows = np.asarray(confusion, np.float64)
    if rows.ndim != 2 or rows.shape[0] != rows.shape[1] or len(rows) < 2 or not (np.isfinite(rows) & (rows >= 0)).all():
        raise UserError(f"confusion counts of shape {rows.shape}: give counts >= 0 (K, K) of at least two values")
    predicted = np.asarray(predicted)
    if predicted.ndim != 1 or not len(predicted):
        raise UserError(f"predicted values of shape {predicted.shape}: give one per sample, of at least one sample")
    _checked(predicted, len(rows), "predicted")
    check_confusion(rows, names)
    return np.bincount(predicted, minlength=len(rows)).astype(np.float64), rows


def check_confusion(confusion: Array, names: Sequence[str] | None = None) -> None:
    """UserError where confusion counts (K, K) show a classifier that is no better than chance, naming the worst pair.

    For every pair, value j must be called j more often than value i is, by more than two standard errors.
    """
    rows = np.asarray(confusion, np.float64)
    totals = rows.sum(axis=1)
    if (totals == 0).any():
        empty = _name(names, int(np.argmin(totals)))
        raise UserError(f"no held-out sample has {empty}: label some, or leave the value out")
    rates = rows / totals[:, None]
    gain = rates.diagonal()[None, :] - rates  # (i, j): how much more often a true j is called j than a true i is
    pooled = (rows.diagonal()[None, :] + rows) / (totals[:, None] + totals[None, :])
    error = np.sqrt(pooled * (1 - pooled) * (1 / totals[:, None] + 1 / totals[None, :]))
    margin = gain - 2 * error
    np.fill_diagonal(margin, np.inf)
    i, j = np.unravel_index(int(margin.argmin()), margin.shape)
    if margin[i, j] > 0:
        apart = np.abs(rates[:, None] - rates[None]).sum(axis=2) / 2
        np.fill_diagonal(apart, np.inf)
        if np.linalg.svd(rates, compute_uv=False)[-1] >= _SINGULAR:
            return
        i, j = np.unravel_index(int(apart.argmin()), apart.shape)
    one, other = _name(names, int(j)), _name(names, int(i))
    raise UserError(
        f"the classifier is no better than chance at telling {one} from {other}: of {totals[j]:.0f} held-out samples "
        f"of {one} it calls {rates[j, j]:.0%} {one}, and of {totals[i]:.0f} of {other} {rates[i, j]:.0%}: give a "
        "better classifier or more labelled samples, or merge the two values"
    )


def _total_variation(p: Array, q: Array) -> Array:
    return np.abs(p - q).sum(axis=-1) / 2


def _kl(p: Array, q: Array) -> Array:
    """The divergence for p and q (..., K) of any sum, p < 0 counting as 0: sum p log (p / q) - p + q."""
    p, q = np.maximum(p, 0.0), np.broadcast_to(q, p.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(p > 0, p * (np.log(p) - np.log(q)), 0.0)
    return np.maximum((terms - p + q).sum(axis=-1), 0.0)


def _shares(values: Array, what: str) -> Array:
    found = np.asarray(values, np.float64)
    if found.ndim != 1 or not (np.isfinite(found) & (found >= 0)).all() or abs(found.sum() - 1) > 1e-6:
        raise UserError(f"the {what} {found.tolist()} does not consist of shares: give numbers >= 0 that sum to 1")
    return found


def _checked(values: Array, num: int, what: str) -> None:
    if values.dtype.kind not in "iu":
        raise UserError(f"{what} values of type {values.dtype}: give whole numbers from 0 to {num - 1}")
    if len(values) and not 0 <= values.min() <= values.max() < num:
        bad = values.min() if values.min() < 0 else values.max()
        raise UserError(f"a {what} value is {bad}: an attribute of {num} values has 0 to {num - 1}")


def _name(names: Sequence[str] | None, index: int) -> str:
    return f"'{names[index]}'" if names is not None else f"value {index}"
