"""What decides: models drawn on the selection seeds, and the rule that accepts a round."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sims.config import to_dict
from sims.experiments.improve.improvement import Choice, Context
from sims.experiments.improve.search import half_width
from sims.files import digest
from sims.metrics.frechet import Moments, frechet_distance
from sims.processes import agree
from sims.runs.measure import draw_and_measure, sampled
from sims.scoring.fidelity import is_lost
from sims.scoring.judge import Draw
from sims.seeds import Purpose, seed_range


@dataclass(frozen=True)
class Selection:
    """A choice on the selection seeds: features, distance to the training and the test data, and a perfect model's."""

    features: np.ndarray
    fd: float
    half_width: float | None
    fd_held_out: float | None
    perfect: float


def draws_folder(context: Context, choice: Choice, size: int, round_: int, purpose: Purpose) -> Path:
    """Where the draws of a choice lie: named by all that they depend on but their seeds."""
    key = [choice.model.hash, to_dict(choice.model.sampler), context.needed_judge.key, size, purpose]
    return context.run.path / "draws" / f"{choice.method}-{digest(*key, context.options.batch_size, round_)[:12]}"


def select(context: Context, choice: Choice, round_: int) -> Selection:
    """What the last rung of a search would measure: on its seeds, with its number of samples.

    The distance to the training data of what shows less of its prompts than the base is infinite: it is no choice.
    """
    judge, draw = context.needed_judge, _drawn(context, choice, round_)
    features = draw.features
    half = half_width([features], judge.frechet)
    test = None if judge.test is None else frechet_distance(Moments.of(features), judge.test.moments)
    fd = distance(context, with_change(context, [draw]))
    fd, half, test, perfect = agree((fd, half, test, judge.perfect(len(features))))
    return Selection(features, fd, half, test, perfect)


def faithful(context: Context, base: Choice, round_: int) -> np.ndarray | None:
    """How well the base's samples of the selection seeds show what their prompts ask for; None where nothing tells."""
    if context.judge is None or not context.options.is_text:
        return None
    found = None if context.judge.asked is None else _drawn(context, base, round_).fidelity
    if found is None:
        context.run.log(
            "nothing tells whether samples show their prompts, so no strength is refused for it: a classifier of "
            "labels beside the captions, or evaluation.extractor clip, would"
        )
    return found


def with_change(context: Context, draws: Sequence[Draw], first: int = 0) -> np.ndarray:
    """Features (n, D) of the selection seeds from the ``first`` on; where prompts count, their change behind them.

    That is the fidelity less the base's, so that parts and tenths of the samples keep it.
    """
    features = np.concatenate([draw.features for draw in draws])
    if context.faithful is None:
        return features
    fidelity = np.concatenate([draw.fidelity for draw in draws if draw.fidelity is not None])
    return np.column_stack([features, np.nan_to_num(fidelity - context.faithful[first : first + len(fidelity)])])


def distance(context: Context, found: np.ndarray) -> float:
    """Of ``with_change``, to the training data; infinite where samples show less of their prompts than the base's."""
    frechet = context.needed_judge.frechet
    if context.faithful is None:
        return frechet(found)
    return math.inf if is_lost(found[:, -1]) else frechet(found[:, :-1])


def _drawn(context: Context, choice: Choice, round_: int) -> Draw:
    """A choice's samples of the selection seeds."""
    judge, options, count = context.needed_judge, context.options, max(context.options.search.rungs)
    seeds = seed_range("selection", options.seed, count, round_)
    with context.run.progress(f"select {choice.label}", count) as advance:
        (draw,) = draw_and_measure(
            context.run, draws_folder(context, choice, count, round_, "selection"), [seeds],
            lambda part: sampled(choice.model, part, batch_size=options.batch_size),
            lambda samples: judge.only_features(samples.x, samples.labels), Draw, advance,
        )  # fmt: skip
    return draw


def noise_of(context: Context, before: Selection, after: Selection) -> float:
    """Half of the 95 % interval of the difference of their distances, paired by seed; 0 where it is not known."""
    frechet = context.needed_judge.frechet
    return half_width([before.features, after.features], lambda a, b: frechet(a) - frechet(b)) or 0.0


def accept(before: Selection | None, after: Selection | None, noise: float, first: bool) -> tuple[bool, str]:
    """Whether a round made the model better, on the selection seeds, and why: the rule that stops before one harms.

    A round counts if the Fréchet distance to the training data falls by more than ``noise``, half the 95 % interval of
    the difference. From the second round on, it must not fall below what a perfect model would score (from there on it
    measures memorization, not quality), and the distance to held-out data, where there are any, must not rise.
    """
    if before is None or after is None:
        return True, "accepted without verification: there is nothing to judge it by"
    if after.fd == math.inf:
        return False, "stopped: at every strength that was tried, samples show less of their prompts than the base's do"
    change = f"FD to train {before.fd:.2f} -> {after.fd:.2f} on the selection seeds"
    if after.fd + noise >= before.fd:
        return False, f"stopped: {change} is no improvement beyond the noise of {noise:.2f}"
    if not first and after.fd < after.perfect:
        return False, f"stopped: {change}, below the {after.perfect:.2f} of a perfect model"
    old, new = before.fd_held_out, after.fd_held_out
    if not first and old is not None and new is not None and new > old:
        return False, f"stopped: FD to held-out data rises, {old:.2f} -> {new:.2f} on the selection seeds"
    return True, f"accepted: {change}"
