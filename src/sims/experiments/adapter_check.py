"""Is a network read rightly? Its errors on real pictures, against simple denoisers and against other readings of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, device_of
from sims.errors import UserError
from sims.experiments.readings import Reading, Remembering, reading_of
from sims.model import Model
from sims.preconditioning import ConsistencyPrecond, InterpolantPrecond
from sims.results.adapter import AdapterCheck, Alternative, LevelError

LEVELS = 12
LOWEST, HIGHEST = 0.01, 30.0  # noise levels that pictures are looked at between, in model space
MIDDLE = (0.2, 5.0)  # between them every network that has learned something beats the best linear denoiser
WORSE = 1.2  # times the linear error, at half of the middle levels: likely wrong
LEAST = 0.01  # least gain in ln(error), mean over levels, that another reading is named for
ERRORS = 4.0  # and its standard errors
STEPS = 3  # respects that change one after another
FEW = 16  # pictures that every other reading is tried on; the best ones see all
GLANCE = 6  # pictures, at half of the levels, that readings are tried on which differ in several respects at once
LOOKS = 3  # times that readings are looked for: once more where labels were found to be wrong
STARTS = 2  # of these, how many are looked at closer
ABSURD = 1e6
LEAST_PICTURES = 2 * FEW
MANY_CLASSES = 40  # above, labels are not compared one by one
Array = np.ndarray


@dataclass(frozen=True)
class Sight:
    """Real pictures x (n, *data_shape) with their labels and noise (n, *data_shape), and others to learn from."""

    x: Tensor
    labels: Tensor | None
    noise: Tensor
    others: Tensor
    sigmas: Tensor

    @property
    def start(self) -> int:
        """The first level at which there is something to denoise."""
        return min(int((self.sigmas < MIDDLE[0]).sum()), len(self.sigmas) - 1)

    @cached_property
    def variance(self) -> float:
        return float(self.others.var()) or 1.0

    @cached_property
    def simple(self) -> tuple[Array, Array]:
        """Errors of the best linear denoiser and of the posterior mean over the others, by noise level."""
        both = linear_denoiser(self.others), posterior_mean(self.others)
        return self.errors(both[0]).mean(1), self.errors(both[1]).mean(1)

    def labelled(self, classes: Mapping[int, int]) -> Sight:
        """The same with other labels for some classes."""
        assert self.labels is not None
        labels = [classes.get(k, k) for k in self.labels.tolist()]
        return replace(self, labels=torch.tensor(labels, device=self.labels.device))

    def part(self, count: int, every: int = 1) -> Sight:
        """The first pictures alone, at every so many levels."""
        labels = None if self.labels is None else self.labels[:count]
        return Sight(self.x[:count], labels, self.noise[:count], self.others, self.sigmas[every // 2 :: every])

    def errors(self, denoise: Callable[[Tensor, Tensor], Tensor]) -> Array:
        """Mean squared errors (S, n) by noise level and picture, in units of the variance; absurd ones are cut."""
        rows = []
        for sigma in self.sigmas:
            noisy = self.x + sigma * self.noise
            error = (denoise(noisy, sigma).to(self.x) - self.x).flatten(1).square().mean(1) / self.variance
            rows.append(error.nan_to_num(ABSURD, ABSURD, ABSURD).clamp(1e-12, ABSURD).double().cpu().numpy())
        return np.stack(rows)

    def of(self, denoiser: Denoiser, labels: Tensor | None = None) -> Array:
        """The errors of a denoiser that is told the labels, or others; absurd ones where it cannot be called so."""
        told = self.labels if labels is None else labels
        told = told if denoiser.num_classes else None
        try:
            return self.errors(lambda x, sigma: denoiser(x, denoiser.round_sigma(sigma.expand(len(x))), told))
        except UserError:
            raise
        except Exception:  # of a network told a time beyond its table, or of what a call makes of that
            return np.full((len(self.sigmas), len(self.x)), ABSURD)


def check_adapter(
    model: Model, data: Dataset, name: str, images: int = 128, seed: int = 0, *, others: bool = True
) -> AdapterCheck:
    """Errors of a model on real pictures; with ``others``, whether another reading of its network has smaller ones.

    ``data`` are in the model's shape, with its classes where it has any. Errors: UserError for data of another shape,
    or too few.
    """
    sight, single = look(model, data, images, seed), model.denoiser
    levels = _levels(sight, sight.of(model))
    better: tuple[Alternative, ...] = ()
    likely: Sequence[Denoiser] = (model,)
    swapped: dict[int, int] = {}
    seen = sight
    for _ in range(LOOKS if others else 0):
        if isinstance(single, InterpolantPrecond):
            better, likely = _better(seen, single)
        before, swapped = swapped, next(filter(None, (_swapped(sight, one) for one in likely)), {})
        if swapped == before:
            break
        seen = sight.labelled(swapped)  # wrong labels hide what else is wrong, and the other way
    problems = [f"{better[0].words} fits {better[0].times:.3g} times better"] if better else []
    bad = "" if isinstance(single, ConsistencyPrecond) else worse_than_linear(levels)
    names = model.class_names or tuple(map(str, range(model.num_classes)))
    classes = {names[label]: names[k] for k, label in swapped.items()}
    if classes:
        told = ", ".join(f"{ours!r} is the data's {theirs!r}" for ours, theirs in list(classes.items())[:5])
        problems.append(f"its labels mean other classes than the data's: {told}; give the classes in its order")
    if bad and not problems:
        problems.append(bad)
    return AdapterCheck(
        model=name, data=data.name, num_images=len(sight.x), levels=levels, better=better, swapped=classes or None,
        problems=tuple(problems), remarks=tuple(_remarks(sight, model)),
    )  # fmt: skip


def look(model: Model, data: Dataset, images: int, seed: int, levels: int = LEVELS) -> Sight:
    """Pictures of the data with noise at levels that the model knows."""
    if data.data_shape != model.data_shape:
        raise UserError(f"{data.name} has data of {data.data_shape}, the model makes {model.data_shape}: give its data")
    if len(data) < LEAST_PICTURES:
        raise UserError(f"{data.name} has {len(data)} pictures: at least {LEAST_PICTURES} tell errors from chance")
    rng, device = np.random.default_rng(seed), device_of(model)
    order = rng.permutation(len(data))
    count = min(images, len(data) // 2)
    x, labels = data.batch(np.sort(order[:count]))
    others, _ = data.batch(np.sort(order[count : count + 4096]))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    low, high = max(model.sigma_min, LOWEST), min(model.sigma_max, HIGHEST)
    sigmas = model.round_sigma(torch.logspace(math.log10(low), math.log10(high), levels)).unique()
    shuffled = torch.from_numpy(rng.permutation(count))
    x, labels = x[shuffled], None if labels is None else labels[shuffled].to(device)
    return Sight(x.to(device), labels, noise.to(device), others.to(device), sigmas.to(device))


def worse_than_linear(levels: Sequence[LevelError]) -> str:
    """A sentence where a network is worse than the best linear denoiser in the middle of its noise levels, else ''."""
    middle = [level for level in levels if MIDDLE[0] <= level.sigma <= MIDDLE[1]]
    bad = [level for level in middle if level.network > WORSE * level.linear]
    if not middle or 2 * len(bad) < len(middle):
        return ""
    worst = max(bad, key=lambda level: level.network / level.linear)
    return (
        f"at sigma {worst.sigma:.3g} its error is {worst.network / worst.linear:.3g} times that of the best linear "
        "denoiser, which every trained network beats: prediction, schedule, range or classes are likely wrong, or "
        "these are not its data"
    )


def linear_denoiser(others: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The Wiener filter of pictures (n, ...): mean + C (C + sigma^2)^-1 (x - mean).

    C is the covariance where there are enough pictures, else one that is diagonal in the discrete cosine transform.
    """
    flat = others.flatten(1).double().cpu()
    mean, dim = flat.mean(0), flat.shape[1]
    if len(flat) >= 2 * dim or dim <= 256:
        _, values, basis = torch.linalg.svd(flat - mean, full_matrices=len(flat) < dim)
        variances = torch.zeros(len(basis), dtype=torch.float64)
        variances[: len(values)] = values**2 / max(1, len(flat) - 1)
        forward, back = (lambda x: x @ basis.T), (lambda z: z @ basis)
    else:
        forward, back = _cosine(others.shape[1:])
        variances = forward(flat - mean).var(0)
    return lambda x, sigma: (
        mean + back(variances / (variances + float(sigma) ** 2) * forward(x.flatten(1).double().cpu() - mean))
    ).reshape(x.shape)


def _cosine(shape: Sequence[int]) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    from scipy.fft import dctn, idctn

    axes = tuple(range(2, 1 + len(shape)))

    def forward(x: Tensor) -> Tensor:
        return torch.from_numpy(dctn(x.reshape(len(x), *shape).numpy(), axes=axes, norm="ortho")).flatten(1)

    def back(z: Tensor) -> Tensor:
        return torch.from_numpy(idctn(z.reshape(len(z), *shape).numpy(), axes=axes, norm="ortho")).flatten(1)

    return forward, back


def posterior_mean(others: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact denoiser of the empirical distribution of pictures (n, ...)."""
    flat = others.flatten(1)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        distances = torch.cdist(x.flatten(1), flat).square()
        return ((-distances / (2 * sigma**2)).softmax(1) @ flat).reshape(x.shape)

    return denoise


def _levels(sight: Sight, errors: Array) -> tuple[LevelError, ...]:
    linear, nearest = sight.simple
    rows = zip(sight.sigmas.tolist(), errors.mean(1).tolist(), linear.tolist(), nearest.tolist())
    return tuple(LevelError(sigma=s, network=e, linear=w, nearest=n) for s, e, w, n in rows)


def _score(errors: Array, start: int = 0) -> float:
    """ln(mean error), mean over levels from ``start`` on."""
    return float(np.log(errors[start:].mean(1)).mean())


def _gain(now: Array, other: Array, start: int) -> float:
    """By how much the score of another reading is smaller; 0 where that may be chance, or is hardly anything."""
    shares = [errors[start:] / errors[start:].mean(1, keepdims=True) for errors in (now, other)]
    difference = (shares[0] - shares[1]).mean(0)
    gain = _score(now, start) - _score(other, start)
    return gain if gain > max(LEAST, ERRORS * float(difference.std(ddof=1)) / math.sqrt(len(difference))) else 0.0


class _Search:
    """Errors of readings of one adapter's network; readings that are the same numbers are evaluated once."""

    def __init__(self, sight: Sight, given: InterpolantPrecond) -> None:
        self.sight, self.given, self.network = sight, given, Remembering(given.network)
        self.few, self.glance = sight.part(FEW), sight.part(GLANCE, every=2)
        self.known: dict[tuple[object, ...], Array] = {}

    def errors(self, reading: Reading, sight: Sight) -> Array:
        """By noise level and picture of this sight, or of a part of it; absurd ones where there is no such network.

        The adapter as it is, which has no words, is looked at whatever it says.
        """
        if reading.words and not reading.makes_sense:
            return np.full((len(sight.sigmas), len(sight.x)), ABSURD)
        made = reading.denoiser(self.given, self.network)
        numbers = torch.stack(made.coefficients(made.round_sigma(sight.sigmas)))
        key = (id(sight), made.data_range, numbers.cpu().numpy().tobytes())
        if key not in self.known:
            self.known[key] = sight.of(made)
        return self.known[key]

    def score(self, reading: Reading, sight: Sight) -> float:
        return _score(self.errors(reading, sight), sight.start)


def _better(sight: Sight, given: InterpolantPrecond) -> tuple[tuple[Alternative, ...], tuple[InterpolantPrecond, ...]]:
    """Readings with smaller errors, the best first; and its denoiser, or several that may be right with other labels.

    Predictions and schedules are tried together on a few pictures; from the best ones, and from the adapter as it is,
    one respect after another changes while that helps. What is worse than the best linear denoiser is no alternative.
    """
    first, search = reading_of(given), _Search(sight, given)
    errors = search.errors(first, sight)
    starts = sorted(first.combined(), key=lambda one: search.score(one, search.glance))[:STARTS]
    found = [_descended(search, start) for start in (first, *starts)]
    scores = {reading: _score(seen, sight.start) for reading, seen in found}
    found.sort(
        key=lambda pair: (
            scores[pair[0]] > min(scores.values()) + LEAST,  # of those that are as good, what changes least
            len(pair[0].words),
            pair[0].schedule.count != given.schedule.count,
            scores[pair[0]],
        )
    )
    kept: dict[float, tuple[Alternative, Reading]] = {}
    for reading, seen in found:
        gain = _gain(errors, seen, 0 if {*reading.words} <= first.time_words() else sight.start)
        if reading.words and gain and not worse_than_linear(_levels(sight, seen)):
            alternative = Alternative(words=" and ".join(reading.words), times=math.exp(gain))
            kept.setdefault(round(gain, 6), (alternative, reading))
    likely = [reading for _, reading in kept.values()][:1] or [first]
    if not kept and not _sound(sight, errors):
        likely += [reading for reading, _ in found if reading.words]
    return tuple(alternative for alternative, _ in kept.values()), tuple(one.denoiser(given) for one in likely)


def _sound(sight: Sight, errors: Array) -> bool:
    return not worse_than_linear(_levels(sight, errors))


def _descended(search: _Search, reading: Reading) -> tuple[Reading, Array]:
    """A reading that no single change improves, and its errors.

    Another unit or origin of time shows at the lowest noise, so there all levels count. Anything else is judged where
    there is something to denoise: at the lowest levels a reading that returns its input is hard to beat.
    """
    sight, now = search.sight, search.errors(reading, search.sight)
    for _ in range(STEPS):
        times = reading.time_words()
        tried = sorted(reading.others(), key=lambda other: search.score(other, search.few))[:3]
        tried += [other for other in reading.others() if times.intersection(other.words[-1:])]
        gains = []
        for other in tried:
            seen = search.errors(other, sight)
            start = 0 if times.intersection(other.words[-1:]) else sight.start
            gains.append((_gain(now, seen, start), other, seen))
        gain, other, seen = max(gains, key=lambda entry: entry[0])
        if not gain:
            break
        reading, now = other, seen
    return reading, now


def _swapped(sight: Sight, denoiser: Denoiser) -> dict[int, int]:
    """Classes of the data and the labels of the model that denoise their pictures better, where these are others.

    Nothing is said where the network is no better than a linear denoiser even then: its labels are the least of it.
    """
    count, labels = denoiser.num_classes, sight.labels
    if count < 2 or labels is None or count > MANY_CLASSES or int((labels >= 0).sum()) < FEW:
        return {}
    known = labels >= 0
    sight = replace(sight, x=sight.x[known], noise=sight.noise[known], labels=labels[known])
    labels = labels[known]
    from scipy.optimize import linear_sum_assignment  # here: no other command needs it

    middle = [level for level in sight.sigmas.tolist() if 0.5 <= level <= 10] or sight.sigmas.tolist()
    part = replace(sight, sigmas=torch.tensor(middle, device=sight.sigmas.device))
    told = [part.of(denoiser, torch.full_like(labels, label)) for label in range(count)]
    by_image = np.stack([np.log(errors).mean(0) for errors in told])  # (K, n): label told, picture
    own, seen = labels.cpu().numpy(), sorted({*labels.tolist()})
    means = np.stack([by_image[:, own == k].mean(1) for k in seen], 1)  # (K, classes of the pictures)
    best_of = {seen[column]: int(label) for label, column in zip(*linear_sum_assignment(means))}
    better = np.array([best_of[k] for k in own])
    gains = by_image[own, np.arange(len(own))] - by_image[better, np.arange(len(own))]
    if gains.mean() < max(LEAST, ERRORS * gains.std(ddof=1) / math.sqrt(len(gains))):
        return {}
    if not _sound(sight, sight.of(denoiser, torch.from_numpy(better).to(labels))):
        return {}
    return {k: label for k, label in best_of.items() if label != k}


def _remarks(sight: Sight, model: Model) -> list[str]:
    said = []
    if model.num_classes and sight.labels is None:
        said.append("the data have no labels, so classes were left out; what they mean is not checked")
    if isinstance(model.denoiser, ConsistencyPrecond):
        said.append("a consistency function gives samples, not means: at high noise its error is above a denoiser's")
    return said
