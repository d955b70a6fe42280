"""The Fréchet distance of 2,048 features against the formula with scipy.linalg.sqrtm, on a CPU.

    python benchmarks/frechet.py --out benchmarks/results/frechet.json

Two sets of Gaussian features whose variances fall over six powers of ten, as those of trained networks do, once with
more samples than features and once with fewer. All rivals are given the same moments. scipy.linalg.sqrtm is what most
implementations of FID call (pytorch-fid, clean-fid, EDM); torch-fidelity and torchmetrics take eigenvalues of the
product instead. Errors are relative to the distance found from the features' QR decompositions, which forms no
covariance. The distance of a set to itself is measured with its rows in another order, since equal moments are zero by
definition, and with its mean moved by a known distance, since what is below zero is cut off.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.linalg import sqrtm, svdvals

from common import save
from sims.metrics.frechet import Moments, frechet_distance

Array = np.ndarray
Distance = Callable[[Moments, Moments], float]


def with_sqrtm(a: Moments, b: Moments) -> float:
    """As pytorch-fid: a matrix root of the product, and 1e-6 on the diagonals where that is not finite."""
    root = sqrtm(a.covariance @ b.covariance)
    if not np.isfinite(root).all():
        ridge = 1e-6 * np.eye(a.num_features)
        root = sqrtm((a.covariance + ridge) @ (b.covariance + ridge))
    return _rest(a, b) - 2 * float(np.trace(root).real)


def with_eigenvalues(a: Moments, b: Moments) -> float:
    """As torch-fidelity: the roots of the product's eigenvalues."""
    values = np.linalg.eigvals(a.covariance @ b.covariance).astype(complex)
    return _rest(a, b) - 2 * float(np.sqrt(values).real.sum())


def _rest(a: Moments, b: Moments) -> float:
    return float(np.square(a.mean - b.mean).sum() + np.trace(a.covariance) + np.trace(b.covariance))


RIVALS: dict[str, Distance] = {
    "sims": frechet_distance,
    "scipy.linalg.sqrtm": with_sqrtm,
    "numpy.linalg.eigvals": with_eigenvalues,
}


def truth(x: Array, y: Array) -> float:
    """The distance from the features: with X = Q R, tr (C_x C_y)^½ is the sum of the singular values of R_x R_y^T."""
    a, b = (np.linalg.qr(z - z.mean(axis=0), mode="r") / np.sqrt(len(z) - 1) for z in (x, y))
    shift = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return float(shift + np.square(a).sum() + np.square(b).sum() - 2 * svdvals(a @ b.T).sum())


def features(count: int, width: int, seed: int) -> tuple[Array, Array]:
    """Two sets (count, width) whose covariances differ a little in directions and in size."""
    rng = np.random.default_rng(seed)
    order = np.arange(1, width + 1)
    spread = np.sqrt(order**-1.0 * np.exp(-order * 6.8 / width))  # deviations along the principal directions
    axes = np.linalg.qr(rng.standard_normal((width, width)))[0]
    turned = np.linalg.qr(axes + 0.3 / np.sqrt(width) * rng.standard_normal((width, width)))[0]
    x = rng.standard_normal((count, width)) * spread @ axes.T
    y = rng.standard_normal((count, width)) * (1.1 * spread) @ turned.T
    return x, y + 0.2 * spread @ axes.T


def measure(count: int, width: int, rounds: int) -> dict[str, Any]:
    """Seconds, values and errors of all rivals at one number of samples."""
    x, y = features(count, width, seed=count)
    a, b, exact = Moments.of(x), Moments.of(y), truth(x, y)
    seconds: dict[str, list[float]] = {name: [] for name in RIVALS}
    values: dict[str, float] = {}
    for _ in range(rounds):
        for name, distance in RIVALS.items():
            begin = time.perf_counter()
            values[name] = distance(a, b)
            seconds[name].append(time.perf_counter() - begin)
    trace = float(np.trace(a.covariance))
    again = Moments.of(x[np.random.default_rng(0).permutation(count)])
    moved = Moments(again.mean + np.sqrt(trace / width), again.covariance, count)  # by trace, squared
    rivals = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "times_sims": statistics.median(s / ours for s, ours in zip(seconds[name], seconds["sims"])),
            "value": values[name],
            "relative_error": abs(values[name] - exact) / exact,
            "self_distance_over_trace": abs(distance(a, moved) / trace - 1),
        }
        for name, distance in RIVALS.items()
    }
    agreement = abs(values["sims"] - values["scipy.linalg.sqrtm"]) / exact
    return {"samples": count, "features": width, "truth": exact, "sims_against_sqrtm": agreement, "rivals": rivals}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=int, default=2048)
    parser.add_argument("--samples", type=int, nargs="+", default=[10_000, 1_000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/frechet.json"))
    options = parser.parse_args()
    measure(100, 50, 1)  # warm up
    rows = []
    for count in options.samples:
        rows.append(measure(count, options.features, options.rounds))
        print(f"{count:,} samples of {options.features:,} features: sims agrees with sqrtm to "
              f"{rows[-1]['sims_against_sqrtm']:.1e}")  # fmt: skip
        for name, row in rows[-1]["rivals"].items():
            print(f"  {name:<22} {row['seconds']:8.2f} s ({row['times_sims']:5.1f} x sims)   relative error "
                  f"{row['relative_error']:.1e}   to itself {row['self_distance_over_trace']:.1e} x trace")  # fmt: skip
    save(options.out, {"benchmark": "frechet", "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
