"""Classifier two-sample test: can anyone tell samples from real images? (Lopez-Paz and Oquab 2017)"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from torch import Tensor

from sims.errors import UserError
from sims.metrics.intervals import Interval, share_interval
from sims.metrics.matrices import Array, as_matrix, same_width

Kind = Literal["logistic", "neighbours"]
PENALTY = 0.01  # scikit-learn's C: strong, because features are many, correlated and scaled to unit variance


@dataclass(frozen=True)
class TwoSample:
    """Accuracy on held-out rows (0.5: indistinguishable, 1: always told apart), and how likely chance reaches it."""

    accuracy: Interval
    p_value: float
    num_train: int
    num_test: int
    classifier: str


def _classifier(kind: str, num_train: int, seed: int) -> Any:
    if kind == "logistic":
        from sklearn.linear_model import LogisticRegression  # here, because importing it takes a second

        return LogisticRegression(C=PENALTY, max_iter=1000, random_state=seed)
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(int(np.sqrt(num_train)) // 2 * 2 + 1, algorithm="brute")  # odd: no ties


def two_sample_test(
    real: Array | Tensor,
    samples: Array | Tensor,
    classifier: Kind = "logistic",
    limit: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
) -> TwoSample:
    """Train a classifier on half of the features, real (N, D) against samples (M, D), and count its hits on the rest.

    Both sides are cut down at random to the smaller of N, M and `limit`. "logistic" is linear and finds shifted means,
    "neighbours" (√n of them, as in the paper) finds any local difference that distances show. The p-value is one-sided
    binomial: the probability of so many hits if the classifier could only guess. UserError below 20 rows a side.

    >>> import numpy, sims
    >>> a, b = (numpy.random.default_rng(seed).normal(size=(500, 4)) for seed in (0, 1))
    >>> sims.metrics.two_sample_test(a, b + 1).accuracy.low > 0.7
    True
    """
    if classifier not in ("logistic", "neighbours"):
        raise UserError(f"Classifier {classifier!r} is not one of logistic, neighbours.")
    x, y = as_matrix(real, "real features", 20), as_matrix(samples, "samples' features", 20)
    same_width(x, y)
    if limit < 20:
        raise UserError(f"A limit of {limit} rows a side; at least 20 are needed.")
    count = min(len(x), len(y), limit)
    rng = np.random.default_rng(seed)
    x, y = x[rng.permutation(len(x))[:count]], y[rng.permutation(len(y))[:count]]
    half = count // 2
    train, test = np.concatenate([x[:half], y[:half]]), np.concatenate([x[half:], y[half:]])
    mean, scale = train.mean(axis=0), train.std(axis=0)
    scale[scale == 0] = 1
    model = _classifier(classifier, len(train), seed).fit((train - mean) / scale, np.repeat([0, 1], half))
    hits = int((model.predict((test - mean) / scale) == np.repeat([0, 1], count - half)).sum())
    from scipy import stats  # here, because importing it takes half a second

    p_value = float(stats.binomtest(hits, len(test), 0.5, alternative="greater").pvalue)
    accuracy = share_interval(hits / len(test), len(test), level)
    return TwoSample(accuracy, p_value, len(train), len(test), classifier)
