"""How far samples are from real data: functions of features (N, D), and of images by way of an extractor.

    import sims
    sims.metrics.frechet_distance(a, b)  # features, as arrays or tensors, or Moments of them
    sims.metrics.frechet_distance(x, y, extractor="efficientnet-lite0")  # images (N, C, H, W) in [-1, 1]
    a, b = (sims.metrics.features(images, "efficientnet-lite0") for images in (x, y))
    sims.metrics.manifold(a, b).recall

Names are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sims.metrics.copies import memorization, nearest_distances
    from sims.metrics.frechet import Moments, frechet_distance
    from sims.metrics.inception import inception_score
    from sims.metrics.infinity import frechet_infinity
    from sims.metrics.kernel import kernel_distance
    from sims.metrics.precision_recall import manifold
    from sims.metrics.pretrained import features, get_extractor
    from sims.metrics.two_sample import two_sample_test

__all__ = [
    "Moments",
    "features",
    "frechet_distance",
    "frechet_infinity",
    "get_extractor",
    "inception_score",
    "kernel_distance",
    "manifold",
    "memorization",
    "nearest_distances",
    "two_sample_test",
]

if not TYPE_CHECKING:
    _HOMES = {
        "copies": "memorization nearest_distances",
        "frechet": "Moments frechet_distance",
        "inception": "inception_score",
        "infinity": "frechet_infinity",
        "kernel": "kernel_distance",
        "precision_recall": "manifold",
        "pretrained": "features get_extractor",
        "two_sample": "two_sample_test",
    }

    def __getattr__(name: str) -> Any:
        from importlib import import_module

        for home, names in _HOMES.items():
            if name in names.split():
                return getattr(import_module(f"sims.metrics.{home}"), name)
        raise AttributeError(f"module 'sims.metrics' has no attribute {name!r}")
