"""Inception Score and its like: how sure and how varied a classifier's answers are (Salimans et al. 2016)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import xlogy
from torch import Tensor

from sims.errors import UserError
from sims.metrics.arrays import Array, as_matrix

SUM_TOLERANCE = 1e-2  # of a row of probabilities, which half precision may have rounded


@dataclass(frozen=True)
class InceptionScore:
    """Mean and standard deviation (divided by the number) of the score over splits; each lies in [1, K]."""

    mean: float
    std: float
    num_splits: int


def inception_score(probabilities: Array | Tensor, num_splits: int = 10) -> InceptionScore:
    """exp(E_x KL(p(y|x) || p(y))) of class probabilities (N, K), over consecutive splits of the samples as they come.

    p(y) is the mean within a split, so the score grows with the samples per split: compare it at equal numbers only.
    Sums and logarithms in float64. UserError where N < num_splits or rows are no probabilities.
    """
    p = as_matrix(probabilities, "class probabilities")
    if not 1 <= num_splits <= len(p):
        raise UserError(f"{num_splits} splits of {len(p)} samples; give between 1 and {len(p)}.")
    sums = p.sum(axis=1)
    if (p < 0).any() or np.abs(sums - 1).max() > SUM_TOLERANCE:
        raise UserError(
            f"Rows of class probabilities sum to {sums.min():.4g} up to {sums.max():.4g} with least entry "
            f"{p.min():.4g}; they must be at least 0 and sum to 1: apply a softmax to logits first."
        )
    p = p / sums[:, None]
    scores = []
    for part in np.array_split(p, num_splits):
        entropy = -xlogy(part, part).sum(axis=1).mean()  # of the answers
        mean = part.mean(axis=0)
        scores.append(np.exp(-xlogy(mean, mean).sum() - entropy))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)), num_splits)
