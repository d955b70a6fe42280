"""How much disk a job takes, at most."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sims.experiments.cost.bounds import search_bound
from sims.experiments.cost.described import Known
from sims.experiments.cost.work import SHARED, budgets_of, is_judged, methods_of
from sims.experiments.options import ImproveOptions
from sims.methods import METHODS, Continuous
from sims.runs.work import Work
from sims.training.loop import TrainOptions

FEATURES = {"inception": 2048, "dinov2": 1024, "clip": 512, "efficientnet-lite0": 1280}  # others: about 64
AVERAGES = 32  # stored power-function averages of a run, unless ema_every says otherwise


def _averages(train: TrainOptions) -> int:
    return len(train.ema_rel) if train.ema == "power" else 1


def training_folder(train: TrainOptions, images: int, snapshots: int, weights: int) -> int:
    """Bytes of a training folder: snapshots, state to resume from, stored averages."""
    stored = 0
    if train.ema == "power":
        every = train.ema_every or max(1, images // AVERAGES)
        stored = min(math.ceil(images / train.batch), images // every + 1)
    return (snapshots + 3 + _averages(train) + stored * _averages(train)) * weights


def disk_of(options: ImproveOptions, known: Known, weights: int, work: Sequence[Work]) -> list[tuple[str, int]]:
    """Bytes of what a run leaves, at most, by kind."""
    methods, aux = methods_of(options), options.auxiliary
    image = known.values * known.itemsize
    rounds, longest = options.rounds, max(aux.budgets)
    budgets = len({*aux.budgets})
    parts = []
    if options.model is None:
        base = options.base
        parts.append(("base", training_folder(base.train, base.images, len({*base.snapshots}) + 1, weights)))
    trained = training_folder(aux.train, longest, budgets, weights)
    if set(methods) & set(SHARED):
        parts.append(("own samples, before compression", rounds * aux.samples * image))
        parts.append(("auxiliary", rounds * trained))
    if "placebo" in methods:
        parts.append(("placebo", trained))
    if "continued" in methods:
        images = next(entry.images for entry in work if entry.stage.startswith("continue"))
        parts.append(("continued", training_folder(options.base.train, images, 1, weights)))
    if "distilled" in methods:
        own = options.distilled
        parts.append(("guided samples, before compression", rounds * own.samples * image))
        parts.append(("distilled", rounds * training_folder(own.train, own.images, 1, weights)))
    parts.append(("results", (2 if "sims" in methods else 0) * weights + ("distilled" in methods) * weights))
    features = 4 * FEATURES.get(options.evaluation.extractor.partition(":")[0], 64)
    parts.append(("features of samples", features * _judged_samples(options, methods)))
    return [(name, size) for name, size in parts if size]


def _judged_samples(options: ImproveOptions, methods: Sequence[str]) -> int:
    """Samples whose features are kept, at most: searches and draws."""
    if not is_judged(options):
        return 0
    count = 0
    for name in methods:
        strengths = METHODS[name].strengths
        if isinstance(strengths, Continuous):
            count += search_bound(options.search, budgets_of(options, name), strengths.start)
    return options.rounds * (count + (len(methods) + 2) * options.evaluation.draws * options.evaluation.samples)
