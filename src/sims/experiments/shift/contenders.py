"""Everything that is judged: the steered model and its variants; rejection, the classifier's gradient, fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from sims import methods
from sims.config import JSON, to_dict
from sims.errors import UserError
from sims.experiments.shift.measuring import Meter, Sample, Seen
from sims.experiments.shift.options import ShiftOptions
from sims.experiments.shift.proportion_solver import rejection_ratio
from sims.experiments.shift.steering import accepted
from sims.guidance.classifier_gradient import GradientGuide
from sims.methods import BASE, DISTILLED, SIMS, VARIANTS
from sims.metrics.proportions import called_shares
from sims.model import Model
from sims.results.common import Cost, Look
from sims.results.shift import CLASSIFIER, FINE_TUNING, REJECTION, STEERED
from sims.sampling import SeededNoise, nfe, sample_seeds, shares_to_draw
from sims.seeds import seed_range

Array = np.ndarray
CACHED = f"{STEERED} (cached)"
LOOKS = {  # label of a contender -> its look
    BASE.name: replace(BASE.look, title=BASE.name),
    STEERED: replace(SIMS.look, title=STEERED),
    CACHED: replace(VARIANTS[methods.CACHED], title=CACHED),
    DISTILLED.name: replace(DISTILLED.look, title=DISTILLED.name),
    CLASSIFIER: Look(CLASSIFIER, "#7a6244", "#cdb18a", "h"),
    FINE_TUNING: Look(FINE_TUNING, "#3d7f7a", "#7cc9c2", ">"),
    REJECTION: Look(REJECTION, "#8a4fa0", "#d29ae6", "8"),
}


@dataclass(frozen=True)
class Contender:
    """A way to sample: its cost per sample in network evaluations, and what making it cost.

    ``key`` names all that its samples depend on; ``model`` is None where it is no model of its own.
    """

    label: str
    sample: Sample
    key: tuple[JSON, ...]
    nfe: float
    cost: Cost = field(default_factory=Cost)
    model: Model | None = None
    w: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Judged:
    """What was seen of a contender's evaluation samples, draw by draw, and each draw's distances to the real data.

    ``drawn``: how many samples rejection drew for them.
    """

    contender: Contender
    seen: Seen
    draws: Sequence[Seen]
    distances: Sequence[dict[str, float]]
    drawn: int | None = None

    @classmethod
    def by(
        cls, meter: Meter, contender: Contender, seen: Seen, draws: Sequence[Seen], drawn: int | None = None
    ) -> Judged:
        """With the distances that the meter finds."""
        return cls(contender, seen, draws, [meter.distances(draw) for draw in draws], drawn)

    @property
    def label(self) -> str:
        return self.contender.label


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
        shares = shares_to_draw(options, model)
        classes = SeededNoise(seeds, guide.data_shape, model.num_classes, shares).labels()
        labels = guide.wanted(seeds, classes)
        return sample_seeds(guide, seeds, options, labels, meter.batch_size, device=meter.run.device)[0]

    key = ("gradient", model.hash, to_dict(options), meter.steering.hash, meter.target.tolist(), scale)
    note = f"scale {scale:g}; a backward pass through the network counts as two evaluations"
    return Contender(CLASSIFIER, sample, key, nfe(guide, options), note=note)


def has_gradient(meter: Meter, shape: Sequence[int]) -> bool:
    """Whether the steering classifier gives log-probabilities that can be differentiated by the image."""
    x = torch.zeros(1, *shape, device=meter.run.device).requires_grad_()
    try:
        with torch.enable_grad():
            log_probs = meter.steering.log_probs(x)
            if log_probs is None or not log_probs.requires_grad:
                return False
            return torch.autograd.grad(log_probs.sum(), x, allow_unused=True)[0] is not None
    except (RuntimeError, UserError):  # what runs outside of torch, or in whole numbers, has none
        return False


def best_scale(model: Model, meter: Meter, options: ShiftOptions) -> tuple[Contender, dict[str, float]]:
    """Classifier guidance at the scale with the least total variation on the selection seeds; and all tried."""
    seeds = seed_range("selection", options.seed, options.solver.samples)
    contenders = [of_gradient(model, meter, scale) for scale in options.baselines.scales]
    away = [
        meter.steered_tv(meter.measure(each.key, each.sample, model.codec, seeds, each.label)) for each in contenders
    ]
    evaluations = sum(round(len(seeds) * each.nfe) for each in contenders)
    cost = Cost(0, evaluations, len(seeds) * len(contenders))
    tried = {f"{scale:g}": tv for scale, tv in zip(options.baselines.scales, away)}
    return replace(contenders[int(np.argmin(away))], cost=cost), tried


def rejection(base: Judged, meter: Meter, options: ShiftOptions, seeds: range) -> Judged | None:
    """Samples of the base, accepted by what the steering classifier calls them, in the target's proportions.

    Its errors are known, and what it must call them follows (``called_shares``). ``base`` has the base's evaluation
    samples, of ``seeds``; more are drawn, of further seeds, until as many are accepted or the limit is reached. None
    where not even two are.
    """
    seen, wanted, contender = base.seen, len(base.seen), base.contender
    assert contender.model is not None
    shares = np.asarray(meter.shares(seen.steering, judged=False).values)
    called = called_shares(meter.target, shares, meter.steering.confusion)
    counts = np.bincount(seen.steering, minlength=len(meter.target))
    ratio = rejection_ratio(called, np.maximum(counts, 1) / wanted)
    total = min(math.ceil(1.1 * ratio * wanted), max(options.baselines.limit, wanted))
    if total > wanted:
        more = range(seeds.stop, seeds.stop + total - wanted)
        codec = contender.model.codec
        seen = Seen.joined([seen, meter.measure(contender.key, contender.sample, codec, more, REJECTION)])
    positions = accepted(seen.steering, called, wanted)
    if len(positions) < 2:
        return None
    # What lies behind the last one that was needed was drawn in vain, and is not counted.
    drawn = int(positions[-1]) + 1 if len(positions) == wanted else len(seen)
    note = f"{len(positions):,} of the base's {drawn:,} samples"
    cost_each = contender.nfe * drawn / len(positions)
    delivered = Contender(REJECTION, contender.sample, contender.key, cost_each, w=contender.w, note=note)
    seen = seen[positions]
    return Judged.by(meter, delivered, seen, _draws_of(seen, options.evaluation.samples), drawn)


def _draws_of(seen: Seen, size: int) -> list[Seen]:
    """Draws of what rejection delivered: every value is spread over all of them, in the order of delivery."""
    count = max(1, round(len(seen) / size))
    order = np.argsort(seen.steering, kind="stable")
    return [seen[np.sort(order[first::count])] for first in range(count)]


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
