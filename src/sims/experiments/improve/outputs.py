"""What a finished improvement leaves to look at: rows of figures, sample grids, models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from sims.config import JSON
from sims.data.codec import finite
from sims.data.dataset import Dataset, View
from sims.experiments.facts import GRID
from sims.experiments.improve.improvement import Context
from sims.experiments.improve.rows import Measured
from sims.experiments.options import ImproveOptions
from sims.files import write_arrays
from sims.guidance import CorrectionGuide, Extrapolate
from sims.interop.latents import to_images
from sims.interop.text_export import write_pair
from sims.methods import CACHED, FAST, LEADER, METHODS, NEON, Expected, Method
from sims.metrics.copies import nearest
from sims.runs.work import Leaves, Work
from sims.seeds import seed_range

if TYPE_CHECKING:
    from sims.experiments.improve.rounds import RoundOutcome

GRIDS = "grids"
ADAPTERS = "text-to-image"


def write_metrics(context: Context, table: Sequence[Measured]) -> None:
    """``metrics.jsonl``: a row for every figure of every draw, with all that it was measured with."""
    rows: list[dict[str, JSON]] = []
    for line in table:
        choice = line.choice
        for index, (draw, seeds) in enumerate(zip(line.draws, line.seeds)):
            rows += draw.described(
                seeds, draw=index, method=choice.method, label=choice.label, w=choice.w, budget=choice.budget,
                nfe=choice.nfe,
            )  # fmt: skip
    context.run.write_rows(rows)


def write_grids(context: Context, outcome: RoundOutcome) -> None:
    """The same seeds for every method, and for the leading one across w; and the nearest training image of each."""
    seeds, real, device = seed_range("figures", context.options.seed, GRID), context.real, context.run.device
    arrays: dict[str, np.ndarray] = {"seeds": np.asarray(seeds)}
    codec = outcome.base.model.codec
    for choice in (line.choice for line in outcome.table):
        shown = context.shown(choice.model)
        x, _ = finite(shown.sample(seeds, batch_size=GRID))
        arrays[f"{choice.label}@{choice.w:g}"] = to_images(codec, x, device)
        guided = choice.model.denoiser
        if choice.label == LEADER.name and isinstance(guided, CorrectionGuide):
            for w in (0.5 * choice.w, 2.0 * choice.w):
                other = shown.with_denoiser(guided.with_cache(None).with_strength(w))
                others, _ = finite(other.sample(seeds, batch_size=GRID))
                arrays[f"{choice.label}@{w:g}"] = to_images(codec, others, device)
            if real is not None:
                some = real.batch(np.random.default_rng(0).permutation(len(real))[:GRID])[0]
                arrays["real"] = to_images(codec, some, device)
                arrays["nearest"] = to_images(codec, _nearest(x, real), device)
    write_arrays(context.run.path / "grids.npz", arrays)


def _nearest(x: torch.Tensor, real: Dataset) -> torch.Tensor:
    return real.batch(nearest(x, View(real)).indices)[0]  # type: ignore[arg-type]


def save_models(context: Context, outcome: RoundOutcome) -> None:
    """``improved``: the best within the cost on the selection seeds, whatever its name; single networks; the leader.

    The leader has the cheapest sampler that was found to keep its gain.

    A method that runs in the first round only leaves its network there.
    """
    if not context.run.is_main:
        return
    saved = {"improved": outcome.choice(outcome.improved)}
    saved |= {name: outcome.choice(name) for name, method in METHODS.items() if method.saved}
    saved[LEADER.name] = outcome.choice(FAST) or outcome.choice(CACHED) or outcome.choice(LEADER.name)
    for name, choice in saved.items():
        if choice is not None:
            model = choice.model.with_denoiser(choice.model.denoiser, method=choice.label)
            model.save(context.run.path / name)


def save_adapters(context: Context, outcome: RoundOutcome) -> None:
    """``text-to-image``: the LoRAs that a run on a text-to-image pipeline made, as other programs read them.

    The one that the leading method guides away from, its strength and its cached corrections; Neon's, which is added.
    """
    leader, neon = outcome.choice(LEADER.name), outcome.choice(NEON.name)
    if not context.run.is_main or leader is None or not isinstance(leader.model.denoiser, Extrapolate):
        return
    cached = outcome.choice(CACHED)
    opposite = neon.model.denoiser if neon is not None and neon.w else None
    write_pair(
        context.run.path / ADAPTERS, leader.model.denoiser, None if cached is None else cached.model.denoiser, opposite
    )


def grids_work(options: ImproveOptions, methods: Sequence[Method], expected: Expected) -> Work:
    """What ``write_grids`` counts, and the models that a run leaves."""
    evaluations = sum(expected.evaluations(method.networks) for method in methods)
    evaluations += (2 + bool(options.guidance.cache_cost)) * expected.guided  # the leader at other w; cached
    networks = 2 * LEADER.networks * (LEADER in methods) + sum(method.saved for method in methods)
    return Work(GRIDS, evaluations=GRID * evaluations, leaves=(Leaves("results", networks=networks),))
