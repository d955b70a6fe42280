"""Is a network read rightly? Its errors on real pictures, against simple denoisers and against other readings of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sims.data.dataset import Dataset
from sims.denoiser import Denoiser, device_of
from sims.errors import UserError
from sims.experiments.readings import Reading, reading_of
from sims.model import Model
from sims.preconditioning import InterpolantPrecond
from sims.results.adapter import AdapterCheck, Alternative, LevelError

LEVELS = 12
LOWEST, HIGHEST = 0.01, 30.0  # noise levels that pictures are looked at between, in model space
MIDDLE = (0.2, 5.0)  # between them every network that has learned something beats the best linear denoiser
WORSE = 1.2  # times the linear error, at half of the middle levels: likely wrong
LEAST = 0.01  # least gain in ln(error), mean over levels, that another reading is named for
ERRORS = 4.0  # and its standard errors
STEPS = 4  # respects in which a reading may differ
FEW = 16  # pictures that every other reading is tried on; the best ones see all
ABSURD = 1e6
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

    @cached_property
    def variance(self) -> float:
        return float(self.others.var()) or 1.0

    def part(self, count: int) -> Sight:
        """The first pictures alone."""
        labels = None if self.labels is None else self.labels[:count]
        return Sight(self.x[:count], labels, self.noise[:count], self.others, self.sigmas)

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
        except (RuntimeError, IndexError, ValueError):  # such as a time beyond a table of the network's
            return np.full((len(self.sigmas), len(self.x)), ABSURD)


def check_adapter(model: Model, data: Dataset, name: str, images: int = 128, seed: int = 0) -> AdapterCheck:
    """Errors of a model on real pictures, and whether another reading of its network has smaller ones.

    ``data`` are in the model's shape, with its classes where it has any. Errors: UserError for data of another shape,
    or too few.
    """
    sight, single = look(model, data, images, seed), model.denoiser
    errors = sight.of(model)
    levels = _levels(sight, errors)
    better: tuple[Alternative, ...] = ()
    best: Denoiser = model
    if isinstance(single, InterpolantPrecond):
        better, best = _better(sight, single, errors)
    problems = [f"{better[0].words} fits {better[0].times:.3g} times better"] if better else []
    swapped = _swapped(sight, best, model.class_names)
    if swapped:
        told = ", ".join(f"{ours!r} is the data's {theirs!r}" for ours, theirs in list(swapped.items())[:5])
        problems.append(f"its labels mean other classes than the data's: {told}; give the classes in its order")
    if not problems and (bad := worse_than_linear(levels)):
        problems.append(bad)
    return AdapterCheck(
        model=name, data=data.name, num_images=len(sight.x), levels=levels, better=better, swapped=swapped or None,
        problems=tuple(problems), remarks=tuple(_remarks(sight, best, levels)),
    )  # fmt: skip


def look(model: Model, data: Dataset, images: int, seed: int, levels: int = LEVELS) -> Sight:
    """Pictures of the data with noise at levels that the model knows."""
    if data.data_shape != model.data_shape:
        raise UserError(f"{data.name} has data of {data.data_shape}, the model makes {model.data_shape}: give its data")
    if len(data) < 2 * FEW:
        raise UserError(
            f"{data.name} has {len(data)} pictures: at least {2 * FEW} are needed to tell errors from chance"
        )
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
    linear = sight.errors(linear_denoiser(sight.others)).mean(1)
    nearest = sight.errors(posterior_mean(sight.others)).mean(1)
    rows = zip(sight.sigmas.tolist(), errors.mean(1).tolist(), linear.tolist(), nearest.tolist())
    return tuple(LevelError(sigma=s, network=e, linear=w, nearest=n) for s, e, w, n in rows)


def _score(errors: Array) -> float:
    """ln(mean error), mean over levels."""
    return float(np.log(errors.mean(1)).mean())


def _gain(now: Array, other: Array) -> tuple[float, float]:
    """By how much the score of another reading is smaller, and the standard error of that over pictures."""
    shares = [errors / errors.mean(1, keepdims=True) for errors in (now, other)]
    difference = (shares[0] - shares[1]).mean(0)
    return _score(now) - _score(other), float(difference.std(ddof=1) / math.sqrt(len(difference)))


def _better(
    sight: Sight, given: InterpolantPrecond, errors: Array
) -> tuple[tuple[Alternative, ...], InterpolantPrecond]:
    """Readings with smaller errors, the best first, and its denoiser: one respect changes after another."""
    found: list[Alternative] = []
    reading, now, best = reading_of(given), errors, given
    few, start = sight.part(FEW), errors
    for _ in range(STEPS):
        tried = [(other, _tried(few, other, given)) for other in reading.others()]
        tried.sort(key=lambda pair: _score(pair[1]))
        whole = [(other, _tried(sight, other, given)) for other, part in tried[:5] if part.min() < ABSURD]
        whole.sort(key=lambda pair: _score(pair[1]))
        if not whole:
            break
        (other, seen), *_ = whole
        gain, error = _gain(now, seen)
        if gain < max(LEAST, ERRORS * error):
            break
        reading, now, best = other, seen, other.denoiser(given)
        found.insert(0, Alternative(words=" and ".join(reading.words), times=math.exp(_score(start) - _score(now))))
    return tuple(found), best


def _tried(sight: Sight, reading: Reading, given: InterpolantPrecond) -> Array:
    try:
        return sight.of(reading.denoiser(given))
    except UserError:  # a reading that makes no sense
        return np.full((len(sight.sigmas), len(sight.x)), ABSURD)


def _swapped(sight: Sight, denoiser: Denoiser, names: Sequence[str]) -> dict[str, str]:
    """Classes of the model whose label denoises pictures of another class of the data better than its own."""
    count, labels = denoiser.num_classes, sight.labels
    if count < 2 or labels is None or count > MANY_CLASSES:
        return {}
    middle = torch.tensor([level for level in sight.sigmas if 0.5 <= level <= 10], device=sight.sigmas.device)
    part = Sight(sight.x, labels, sight.noise, sight.others, middle if len(middle) else sight.sigmas)
    told = [part.of(denoiser, torch.full_like(labels, label)) for label in range(count)]
    by_image = np.stack([np.log(errors).mean(0) for errors in told])  # (K, n)
    means = np.stack([by_image[:, (labels == k).cpu().numpy()].mean(1) for k in range(count) if (labels == k).any()], 1)
    seen = [k for k in range(count) if (labels == k).any()]
    rows, columns = linear_sum_assignment(means)
    own = float(np.mean([means[k, i] for i, k in enumerate(seen)]))
    difference = by_image[labels.cpu().numpy(), np.arange(len(labels))]
    best = np.empty(len(labels))
    for label, column in zip(rows, columns):
        mask = (labels == seen[column]).cpu().numpy()
        best[mask] = by_image[label, mask]
    spread = float((difference - best).std(ddof=1) / math.sqrt(len(best)))
    if own - float(means[rows, columns].mean()) < max(LEAST / 2, ERRORS * spread):
        return {}
    named = names or tuple(map(str, range(count)))
    return {named[label]: named[seen[column]] for label, column in zip(rows, columns) if label != seen[column]}


def _remarks(sight: Sight, denoiser: Denoiser, levels: Sequence[LevelError]) -> list[str]:
    if denoiser.num_classes and sight.labels is None:
        return ["the data have no labels, so classes were left out; what they mean is not checked"]
    return []
