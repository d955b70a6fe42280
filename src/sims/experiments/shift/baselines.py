"""What the steered model is compared with: rejection, guidance by the classifier's gradient, plain fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims.config import to_dict
from sims.errors import UserError
from sims.experiments.shift.measuring import Meter, Sample, Seen
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.proportion_solver import rejection_ratio
from sims.experiments.shift.steering import Cost, accepted
from sims.guidance.classifier import GradientGuide
from sims.metrics.proportions import called_shares
from sims.model import Model
from sims.sampling import SeededNoise, nfe, sample_seeds
from sims.seeds import seed_range

Array = np.ndarray


@dataclass(frozen=True)
class Contender:
    """A way to sample: its cost per sample in network evaluations, and what making it cost.

    ``key`` names all that its samples depend on; ``model`` is None where it is no model of its own.
    """

    label: str
    sample: Sample
    key: tuple[Any, ...]
    nfe: float
    cost: Cost = field(default_factory=Cost)
    model: Model | None = None
    w: float | None = None
    note: str = ""


def of_model(
    label: str, model: Model, batch_size: int, cost: Cost, w: float | None = None, note: str = ""
) -> Contender:
    """A model as it is sampled."""

    def sample(seeds: range) -> Tensor:
        return model.sample(seeds, batch_size=batch_size)

    key = (model.hash, to_dict(model.sampler))
    return Contender(label, sample, key, nfe(model, model.sampler), cost, model, w, note)


def of_gradient(model: Model, meter: Meter, scale: float) -> Contender:
    """Classifier guidance (Dhariwal and Nichol 2021): every sample is steered to a value drawn from the target.

    The classes of a conditional base are those that its seeds draw anyway.
    """
    guide = GradientGuide(model.denoiser, meter.steering.log_probs, meter.target.tolist(), scale)
    options = model.sampler

    def sample(seeds: range) -> Tensor:
        labels = guide.wanted(seeds, SeededNoise(seeds, guide.data_shape, model.num_classes).labels())
        return sample_seeds(guide, seeds, options, labels, meter.batch_size, device=meter.run.device)[0]

    key = ("gradient", model.hash, to_dict(options), meter.steering.hash, meter.target.tolist(), scale)
    note = f"scale {scale:g}; a backward pass through the network counts as two evaluations"
    return Contender("classifier guidance", sample, key, nfe(guide, options), note=note)


def has_gradient(meter: Meter, shape: Sequence[int]) -> bool:
    """Whether the steering classifier gives log-probabilities that can be differentiated by the image."""
    x = torch.zeros(1, *shape, device=meter.run.device).requires_grad_()
    try:
        with torch.enable_grad():
            found = meter.steering.log_probs(x)
            if found is None or not found.requires_grad:
                return False
            return torch.autograd.grad(found.sum(), x, allow_unused=True)[0] is not None
    except (RuntimeError, UserError):  # what runs outside of torch, or in whole numbers, has none
        return False


def best_scale(model: Model, meter: Meter, options: ShiftOptions) -> tuple[Contender, dict[str, float]]:
    """Classifier guidance at the scale with the least total variation on the selection seeds; and all tried."""
    seeds = seed_range("selection", options.seed, options.solver.samples)
    tried: dict[str, float] = {}
    found: list[tuple[float, Contender]] = []
    cost = Cost()
    for scale in options.baselines.scales:
        contender = of_gradient(model, meter, scale)
        seen = meter.measure(contender.key, contender.sample, model.codec, seeds, contender.label)
        tv = float(meter.shares(seen.steering, judged=False)["tv"]["value"])
        tried[f"{scale:g}"] = tv
        found.append((tv, contender))
        cost += Cost(0, round(len(seeds) * contender.nfe), len(seeds))
    best = min(found, key=lambda entry: entry[0])[1]
    return Contender(best.label, best.sample, best.key, best.nfe, cost, None, None, best.note), tried


@dataclass(frozen=True)
class Rejected:
    """What rejection sampling delivered: samples, how many were drawn for them, and evaluations for each delivered."""

    seen: Seen
    drawn: int
    nfe: float


def rejection(base: Contender, first: Seen, meter: Meter, options: ShiftOptions, seeds: range, codec: Any) -> Rejected:
    """Samples of the base, accepted by what the steering classifier calls them, in the target's proportions.

    Its errors are known, and what it must call them follows (``called_shares``). ``first`` are the base's evaluation
    samples; more are drawn, of further seeds, until as many are accepted or the limit is reached.
    """
    wanted = len(first)
    count = len(meter.target)
    shares = np.asarray(meter.shares(first.steering, judged=False)["values"])
    called = called_shares(meter.target, shares, meter.steering.confusion)
    ratio = rejection_ratio(called, np.maximum(np.bincount(first.steering, minlength=count), 1) / wanted)
    total = min(math.ceil(1.1 * ratio * wanted), max(options.baselines.limit, wanted))
    seen = first
    if total > wanted:
        more = range(seeds.stop, seeds.stop + total - wanted)
        seen = Seen.joined([first, meter.measure(base.key, base.sample, codec, more, "rejection")])
    positions = accepted(seen.steering, called, wanted)
    # What lies behind the last one that was needed was drawn in vain, and is not counted.
    drawn = int(positions[-1]) + 1 if len(positions) == wanted else len(seen)
    return Rejected(seen[positions], drawn, base.nfe * drawn / max(1, len(positions)))


def ratio_within(target: Array, shares: Array, tv: float) -> float:
    """Candidates that rejection needs for one sample where a total variation ``tv`` to the target is allowed.

    The least c >= 1 with sum_k min(target_k, c shares_k) >= 1 - tv: no value may be drawn more than c times as often as
    the base draws it, and what the target lacks then is the total variation.
    """
    if tv <= 0:
        return rejection_ratio(target, shares)
    if float(target[shares <= 0].sum()) > tv:  # what the base never draws
        return math.inf
    low, high = 1.0, 1.0
    while np.minimum(target, high * shares).sum() < 1 - tv - 1e-12:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if np.minimum(target, middle * shares).sum() >= 1 - tv else (middle, high)
    return high
