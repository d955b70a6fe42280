"""Figures per class of class-conditional samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments, frechet_distance
from sims.metrics.matrices import Array, as_matrix, same_width
from sims.metrics.precision_recall import manifolds
from sims.results.scores import ClassRow

UNLIKELY = 0.001  # p-value below which two mixtures are not of the same shares


def _labels(labels: Array | Tensor, count: int, name: str) -> Array:
    array = np.asarray(labels.detach().cpu() if isinstance(labels, Tensor) else labels).astype(np.int64)
    if array.shape != (count,):
        raise UserError(f"{name} have shape {array.shape}; expected one per row, ({count},).")
    return array


def per_class_table(
    features: Array | Tensor,
    labels: Array | Tensor,
    reference_features: Array | Tensor,
    reference_labels: Array | Tensor,
    num_classes: int,
    k: int | None = 3,
    device: str | torch.device = "cpu",
) -> tuple[ClassRow, ...]:
    """One row per class for samples' features (N, D) with labels (N,), intended or predicted, and a reference (M, D).

    The Fréchet distance is biased upwards at few images per class, so compare models at equal numbers only. k = None
    leaves out precision and recall, which take longer.
    """
    x, y = as_matrix(features), as_matrix(reference_features, "reference features")
    same_width(x, y)
    ours, real = _labels(labels, len(x), "labels"), _labels(reference_labels, len(y), "reference labels")
    rows = []
    for index in range(num_classes):
        a, b = x[ours == index], y[real == index]
        least = min(len(a), len(b))
        pair = manifolds(b, a, (k,), device=device)[k] if k is not None and least > max(k, 1) else None
        rows.append(
            ClassRow(
                index=index,
                count=len(a),
                share=len(a) / len(x),
                reference_count=len(b),
                reference_share=len(b) / len(y),
                frechet=frechet_distance(Moments.of(a), Moments.of(b), device=device) if least >= 2 else None,
                precision=None if pair is None else pair.precision,
                recall=None if pair is None else pair.recall,
            )
        )
    return tuple(rows)


def class_agreement(predicted: Array | Tensor, labels: Array | Tensor, num_classes: int) -> tuple[float | None, ...]:
    """Share of each class' samples (intended: (N,), N >= 1) that are predicted (N,) to be of it; None: no sample."""
    intended = _labels(labels, len(labels), "labels")
    hits = _labels(predicted, len(intended), "predicted classes") == intended
    return tuple(
        float(hits[intended == index].mean()) if (intended == index).any() else None for index in range(num_classes)
    )


def class_distance(counts: Array, reference_counts: Array) -> float:
    """Total variation distance of two mixtures of K classes, by the number (K,) of each in both."""
    return float(np.abs(counts / counts.sum() - reference_counts / reference_counts.sum()).sum() / 2)


def beyond_chance(counts: Array, reference_counts: Array) -> bool:
    """Whether the numbers (K,) of two mixtures differ by more than chance: chi-squared test of homogeneity at 0.1 %."""
    from scipy.stats import chi2_contingency  # here, because importing it takes a second

    table = np.stack([counts, reference_counts])[:, counts + reference_counts > 0]
    return table.shape[1] > 1 and bool(chi2_contingency(table, correction=False).pvalue < UNLIKELY)


def class_shares(predicted: Array | Tensor, num_classes: int) -> Array:
    """Share (num_classes,) of samples in each predicted class (N,), N >= 1."""
    if len(predicted) == 0:
        raise UserError("There are no samples; class shares need at least one.")
    classes = _labels(predicted, len(predicted), "predicted classes")
    return np.bincount(classes, minlength=num_classes)[:num_classes] / len(classes)
