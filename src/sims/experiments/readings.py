"""Readings of a network: the same module with another prediction, schedule, time or range of data."""

from __future__ import annotations

import inspect
import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from sims import interpolants
from sims.errors import UserError
from sims.interpolants import Interpolant
from sims.preconditioning import PREDICTIONS, InterpolantPrecond

RANGES = ((-1.0, 1.0), (0.0, 1.0), (0.0, 255.0))
SIGN = "the sign of the output turned (in call)"
REMEMBERED = 1 << 26  # bytes of a network's outputs
NAME = "sims.interpolants"
TIMES = {"first": 0, "between": False, "scale": 1.0}  # what schedules of whole times have unless told otherwise


@dataclass(frozen=True, eq=False)
class Reading:
    """How a network may be read; ``words`` say what differs from the adapter as it is, as one would write it."""

    schedule: Interpolant
    prediction: object
    data_range: tuple[float, float]
    sign: float = 1.0
    words: tuple[str, ...] = ()

    def denoiser(self, given: InterpolantPrecond, network: nn.Module | None = None) -> InterpolantPrecond:
        """The network of an adapter, or another in its place, read this way; UserError where that makes no sense."""
        read = network or given.network
        made = _Signed(
            read, given.data_shape, given.num_classes, self.schedule, self.prediction, self.data_range,  # type: ignore[arg-type]
            given.sigma_data,
        )  # fmt: skip
        made.sign = self.sign
        return made.eval().requires_grad_(False)

    def others(self) -> Iterator[Reading]:
        """Every reading that differs in one respect."""
        for prediction in PREDICTIONS:
            if prediction != self.prediction:
                yield self.changed(f"prediction={prediction!r}", prediction=prediction)
        yield self.changed(SIGN, sign=-self.sign)
        for span in RANGES:
            if span != self.data_range:
                yield self.changed(f"data_range=({span[0]:g}, {span[1]:g})", data_range=span)
        for words, schedule in _schedules(self.schedule):
            if words not in self.words:  # 1000 times as large twice is not that once
                yield self.changed(words, schedule=schedule)

    def combined(self) -> Iterator[Reading]:
        """Readings that differ in kind of schedule, unit of time, range, prediction and sign at once."""
        kind = _kind(self.schedule)
        others = [made for made in _schedules(self.schedule) if _kind(made[1]) != kind]
        others += [unit for _, made in [("", self.schedule), *others] for unit in _units(made)]
        schedules = [self.changed(words, schedule=made) for words, made in others]
        spans = dict.fromkeys((self.data_range, *RANGES))
        predictions = dict.fromkeys((self.prediction, *PREDICTIONS))
        uses = [*itertools.product(predictions, (self.sign, -self.sign))]  # of what the network gives once
        for reading in (self, *schedules):
            for span in spans:
                for prediction, sign in uses:
                    made = reading
                    if span != self.data_range:
                        made = made.changed(f"data_range=({span[0]:g}, {span[1]:g})", data_range=span)
                    if prediction != self.prediction:
                        made = made.changed(f"prediction={prediction!r}", prediction=prediction)
                    if sign != self.sign:
                        made = made.changed(SIGN, sign=sign)
                    if made.makes_sense:
                        yield made

    def time_words(self) -> set[str]:
        """The words of readings that differ in the origin of whole times alone."""
        settings = dict(self.schedule.settings or {})
        return {
            words for words, made in _schedules(self.schedule) if _origin_alone(settings, dict(made.settings or {}))
        }

    @property
    def makes_sense(self) -> bool:
        """Whether there are such networks: EDM's is given EDM's times, and no velocity belongs to whole times."""
        if self.prediction == "edm":
            return (self.schedule.settings or {}).get("name") == "edm"
        return self.prediction != "velocity" or self.schedule.count is None

    def changed(self, words: str, **changes: object) -> Reading:
        """The same but for one respect; what a respect was changed to before is forgotten.

        Another schedule tells times of its own, and forgets how the times of the last one were told. What is turned
        twice is as it was.
        """
        respect = words.partition("=")[0]
        kept = tuple(
            text
            for text in self.words
            if text.partition("=")[0] != respect and not (respect == "schedule" and text.startswith("the time"))
        )
        back = "=" not in words and words in self.words
        return replace(self, words=kept if back else (*kept, words), **changes)  # type: ignore[arg-type]


class _Signed(InterpolantPrecond):
    """A reading with the sign of the output turned."""

    sign = 1.0

    def _scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c_skip, c_out, c_in, time = super()._scalings(sigma)
        return c_skip, self.sign * c_out, c_in, time


class Remembering(nn.Module):
    """A network that does not compute again what it was asked for lately: other predictions are other uses of it."""

    keeps_layout = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.lately = network, OrderedDict[tuple[int, ...], Tensor]()

    def forward(self, x: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        key = tuple(hash(asked.cpu().numpy().tobytes()) for asked in (x, time, labels) if asked is not None)
        if key not in self.lately:
            self.lately[key] = self.network(x, time, labels)
        self.lately.move_to_end(key)
        while len(self.lately) > 1 and sum(output.nbytes for output in self.lately.values()) > REMEMBERED:
            self.lately.popitem(last=False)
        return self.lately[key]


def _kind(schedule: Interpolant) -> tuple[object, ...] | None:
    """A schedule but for the times it tells; None for one that is code."""
    settings = schedule.settings
    return None if settings is None else tuple(settings.get(key) for key in ("name", "data_at", "high", "told"))


def _origin_alone(given: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(given) and {**given, "first": 0} == {**other, "first": 0} and given != other


def reading_of(given: InterpolantPrecond) -> Reading:
    """How an adapter reads its network."""
    return Reading(given.schedule, given.prediction, given.data_range)


def _schedules(given: Interpolant) -> Iterator[tuple[str, Interpolant]]:
    """Other schedules: of the same times, of the same kind with other times, and of the usual kinds."""
    settings = dict(given.settings or {})
    for changed in _others(given, settings):
        try:
            made = interpolants.interpolant(changed)
        except UserError:  # such as the whole times of what has none
            continue
        name = changed["name"]
        usual = inspect.signature(interpolants.NAMED[name]).parameters
        arguments = ", ".join(
            f"{key}={value!r}"
            for key, value in changed.items()
            if key != "name" and value != TIMES.get(key, usual[key].default if key in usual else None)
        )
        if name == "of_alphas_cumprod":
            arguments = ", ".join(f"{key}={changed.get(key, TIMES[key])!r}" for key in ("first", "scale"))
            arguments = f"..., {arguments}"
        yield f"schedule={NAME}.{name}({arguments})", made
    if not settings or settings["name"] not in ("rectified_flow", "trigonometric"):
        ends = given.clean + given.noisy
        yield "the time told in the other direction (in call)", _retold(given, lambda t: given.tell(ends - t))
    if not settings:
        for factor in (1000.0, 1e-3):
            words = f"the time told {factor:g} times as large (in call)"
            yield words, _retold(given, lambda t, factor=factor: factor * given.tell(t))  # type: ignore[misc]


def _units(given: Interpolant) -> Iterator[tuple[str, Interpolant]]:
    """The same times told up to about 1 or 1000, where they are told up to the other."""
    for words, made in _schedules(given):
        scale = (made.settings or {}).get("scale", 1.0)
        usual = (1.0, 1000.0) if made.count is None else (1.0, 1 / made.count)
        if _kind(made) == _kind(given) and scale != (given.settings or {}).get("scale", 1.0) and scale in usual:
            yield words, made


def _retold(given: Interpolant, told: Callable[[Tensor], Tensor]) -> Interpolant:
    return replace(given, told=told, settings=None)


def _others(given: Interpolant, settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name = settings.get("name")
    times: dict[str, Any] = {key: settings[key] for key in ("first", "between", "scale") if key in settings}
    count = given.count or 1000
    if name is not None:
        if given.count is not None:
            first = int(settings.get("first", 0))
            for other in {0, 1, first + 1, first - 1} - {first, -1}:
                yield {**settings, "first": other}
        scale = float(settings.get("scale", 1.0))
        if name != "edm":
            factors = {1000.0, 1.0, 1 / 1000, *((float(count), 1 / count) if given.count else (999.0,))} - {scale}
            for factor in sorted(factors):
                yield {**settings, "scale": factor}
    if name in ("rectified_flow", "trigonometric"):
        yield {**settings, "data_at": 1 - int(settings.get("data_at", 0))}
    if given.count is not None:
        same: dict[str, Any] = {"steps": count, **times}
        for kind in ("linear", "scaled_linear", "cosine"):
            if kind != name:
                yield {"name": kind, **same}
        yield {"name": "cosine", **same, "high": None}
    scale = settings.get("scale", 1.0) if given.count is None else 1.0
    for at in (0, 1):
        for kind in ("rectified_flow", "trigonometric"):
            if kind != name:
                yield {"name": kind, "data_at": at, "scale": scale}
    for kind in ("vp_sde", "ve_sde"):
        if kind != name:
            yield {"name": kind, "scale": scale}
    for told in ("log", "sigma"):
        if name != "edm" or settings.get("told", "log") != told:
            yield {"name": "edm", "told": told}
    if given.count is None:
        for kind in ("linear", "scaled_linear", "cosine"):
            yield {"name": kind}
