"""Confidence intervals of figures measured in independent repeats."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import special

from sims.errors import UserError
from sims.metrics.matrices import Array
from sims.results.common import Interval

__all__ = ["Interval", "error_interval", "paired_interval", "paired_ratio_interval", "share_interval", "t_interval"]

Values = Sequence[float] | Array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise UserError(f"Confidence level {level} must lie between 0 and 1, for example 0.95.")


def _checked(values: Values, level: float) -> Array:
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or len(array) < 2:
        raise UserError(f"{array.size} value(s); an interval needs at least 2 independent repeats: run more repeats.")
    if not np.isfinite(array).all():
        raise UserError(f"Values {array.tolist()} hold NaN or infinity; an interval needs finite values.")
    _check_level(level)
    return array


def _pair(a: Values, b: Values, level: float) -> tuple[Array, Array]:
    if len(a) != len(b):
        raise UserError(f"{len(a)} and {len(b)} values; a paired interval needs one of each per repeat.")
    return _checked(a, level), _checked(b, level)


def error_interval(
    value: float, standard_error: float, level: float = 0.95, num_values: int = 0, freedom: float = np.inf
) -> Interval:
    """The interval around an estimate with a known standard error; Student's t with `freedom` degrees, else normal."""
    _check_level(level)
    half = float(special.stdtrit(freedom, (1 + level) / 2)) * standard_error
    return Interval(value, value - half, value + half, level, num_values)


def share_interval(share: float, count: float, level: float = 0.95) -> Interval:
    """The share of successes in `count` independent trials (or as many as they are worth), by Wilson's score interval.

    Wilson 1927, eq. 5; it stays within [0, 1] and does not shrink to a point at shares of 0 and 1.
    """
    _check_level(level)
    if not (0 <= share <= 1 and count > 0):
        raise UserError(f"A share of {share} in {count} trials; give a share between 0 and 1 and at least one trial.")
    z = float(special.ndtri((1 + level) / 2))
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * float(np.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), level, int(count))


def t_interval(values: Values, level: float = 0.95) -> Interval:
    """Student's t-interval of the mean of independent values; UserError below two values."""
    array = _checked(values, level)
    mean = float(array.mean())
    half = float(special.stdtrit(len(array) - 1, (1 + level) / 2) * array.std(ddof=1) / np.sqrt(len(array)))
    return Interval(mean, mean - half, mean + half, level, len(array))


def paired_interval(a: Values, b: Values, level: float = 0.95) -> Interval:
    """t-interval of the difference a - b, where a[i] and b[i] come from the same repeat i."""
    left, right = _pair(a, b, level)
    return t_interval(left - right, level)


def paired_ratio_interval(a: Values, b: Values, level: float = 0.95) -> Interval:
    """t-interval of the relative change from b to a in percent, 100 (a/b - 1) per repeat; b > 0, else UserError."""
    left, right = _pair(a, b, level)
    if (right <= 0).any():
        raise UserError(f"Baselines {right.tolist()} must be positive for a relative change; use paired_interval.")
    return t_interval(100 * (left / right - 1), level)
