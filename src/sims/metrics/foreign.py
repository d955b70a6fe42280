"""Reference statistics of other projects: the mean and covariance that their files hold, and what they say of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sims import safe_pickle
from sims.arrays import array_names, read_arrays
from sims.errors import UserError
from sims.files import digest_file
from sims.metrics.frechet import Moments
from sims.metrics.matrices import Array

EXTRACTORS = {"fid": "inception", "fd_dinov2": "dinov2"}  # EDM2's names of metrics
UNKNOWN_COUNT = 0
_ASYMMETRY = 1e-4  # of the largest entry: what summing in float32 leaves


@dataclass(frozen=True)
class ForeignStatistics:
    """Moments that another project measured.

    `moments.count` is 0 where the file does not say of how many images. `metric` is 'fid' or 'fd_dinov2', `extractor`
    the name of the feature extractor that it implies: not which port of its weights nor which resizing, for the files
    say neither. `name` is the file's name without suffix, `hash` 16 hex digits over its content.
    """

    moments: Moments
    name: str
    metric: str
    extractor: str
    hash: str


def read_foreign_statistics(path: Path | str, metric: str | None = None) -> ForeignStatistics:
    """Read an .npz with `mu` and `sigma` (EDM, StyleGAN, pytorch-fid, clean-fid) or a .pkl of EDM2's, running no code.

    An .npz holds 'fid'. `metric` picks one of several; it may be left out where there is one. UserError where the file
    is neither, lacks the metric (the message lists what it has), or mu (D,) and sigma (D, D) do not fit together, are
    not finite, or sigma is not symmetric.
    """
    path = Path(path)
    digits = digest_file(path)[:16]
    with open(path, "rb") as file:
        zipped = file.read(2) == b"PK"
    found, count = _from_npz(path) if zipped else _from_pickle(path)
    has = ", ".join(found)
    if metric is None:
        if len(found) > 1:
            names = " or ".join(EXTRACTORS[name] for name in found)
            raise UserError(f"{path} has statistics for {has}: say which with option 'extractor' {names}")
        metric = next(iter(found))
    if metric not in found:
        raise UserError(f"{path} has no statistics for {metric!r}, only for {has}: choose that or give another file")
    mean, covariance = checked_moments(f"{path} ({metric})", *found[metric])
    return ForeignStatistics(Moments(mean, covariance, count), path.stem, metric, EXTRACTORS[metric], digits)


def _from_npz(path: Path) -> tuple[dict[str, tuple[Any, Any]], int]:
    arrays = read_arrays(path, ("mu", "sigma"))
    if len(arrays) < 2:
        has = ", ".join(array_names(path)[:20]) or "none"
        raise UserError(f"{path} lacks the arrays mu and sigma (it has {has}): give a file of reference statistics")
    return {"fid": (arrays["mu"], arrays["sigma"])}, UNKNOWN_COUNT


def _from_pickle(path: Path) -> tuple[dict[str, tuple[Any, Any]], int]:
    content = safe_pickle.load(path)
    entries = content if isinstance(content, dict) else {}
    found = {
        metric: (entry["mu"], entry["sigma"])
        for metric in EXTRACTORS
        if isinstance(entry := entries.get(metric), Mapping) and {"mu", "sigma"} <= entry.keys()
    }
    if not found:
        has = ", ".join(ascii(key)[:40] for key in list(entries)[:10]) or f"a {type(content).__name__}"
        raise UserError(
            f"{path} holds {has} and not mu and sigma of {' or '.join(EXTRACTORS)}: give a file of reference statistics"
        )
    count = entries.get("num_images")
    return found, int(count) if isinstance(count, int | np.integer) and count > 1 else UNKNOWN_COUNT


def checked_moments(where: str, mu: Any, sigma: Any) -> tuple[Array, Array]:
    """mu (D,) and sigma (D, D) in float64; UserError where they are none."""
    for name, value in (("mu", mu), ("sigma", sigma)):
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise UserError(f"{where}: {name} is {kind} and not an array of real numbers: give another file")
    if mu.ndim != 1 or len(mu) == 0 or sigma.shape != (len(mu), len(mu)):
        raise UserError(
            f"{where}: mu has shape {mu.shape} and sigma {sigma.shape}, not (D,) and (D, D): give another file"
        )
    mean, covariance = mu.astype(np.float64), sigma.astype(np.float64)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{where}: mu or sigma holds NaN or infinity: make the statistics again")
    gap, largest = np.abs(covariance - covariance.T).max(), np.abs(covariance).max()
    if gap > _ASYMMETRY * largest:
        raise UserError(
            f"{where}: sigma differs from its transpose by up to {gap:.3g} (largest entry {largest:.3g}), so it is no "
            "covariance: give another file"
        )
    return mean, covariance
