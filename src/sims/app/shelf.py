"""The models of a run that can be looked at, built for any strength from what the run has prepared."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from sims.app.overview import RunState
from sims.config import JSON, from_dict, read_as
from sims.errors import UserError
from sims.experiments.options import GuidanceOptions
from sims.guidance import ClassifierFree, Extrapolate, Guide, innermost
from sims.guidance.guide import limited
from sims.methods import BASE, HEIR, LEADER, METHODS, Continuous, Extra, Fixed, Method
from sims.model import Model, load
from sims.results.improve import Chosen, ImproveResult
from sims.runs.prepared import Prepared, prepared
from sims.sampling import SamplerOptions

IMPROVED = "improved"
KEPT = 6  # models that are kept in memory


@dataclass(frozen=True)
class Strength:
    """A strength that can be moved: what was chosen, the end of the scale, the setting beside it and its value."""

    chosen: float
    most: float
    least: float = 0.0
    extra: Extra | None = None
    value: float | None = None
    budgets: tuple[int, ...] = ()
    budget: int | None = None


@dataclass(frozen=True)
class Entry:
    """A model that can be looked at; ``build`` makes it at a strength, an extra setting and a budget."""

    name: str
    title: str
    build: Callable[[float, float | None, int | None], Model]
    strength: Strength | None = None


@dataclass(frozen=True)
class Shelf:
    """All that can be looked at of one run, or of one model."""

    path: Path
    entries: dict[str, Entry]

    def entry(self, name: str) -> Entry:
        """UserError for a name that is not there."""
        if not self.entries:
            raise UserError(f"{self.path} has no model yet: its base is still to be trained")
        if name not in self.entries:
            raise UserError(f"{self.path} has no model {name[:100]!r} to look at: choose one of those listed")
        return self.entries[name]


def shelf_of(state: RunState) -> Shelf:
    """The models of a run: base, what was saved, every method, every other model directory; however far it is."""
    run = state.path
    result = state.result if isinstance(state.result, ImproveResult) else None
    known = prepared(run)
    entries = [*_base(run, known), *_saved(run), *_methods(run, known, result), *_others(run)]
    found: dict[str, Entry] = {}
    for entry in entries:
        found.setdefault(entry.name, entry)
    first = [name for name in (BASE.name, IMPROVED, HEIR.name) if name in found]
    return Shelf(run, {name: found[name] for name in dict.fromkeys([*first, *found])})


def shelf_of_model(path: Path) -> Shelf:
    """A model that stands alone, and its base."""
    entries = [_directory(path, path.name or str(path))]
    if entries[0].strength is not None:
        build = entries[0].build
        entries.append(Entry(BASE.name, "its base", lambda w, extra, budget: build(0.0, None, None)))
    return Shelf(path, {entry.name: entry for entry in entries})


def of_method(name: str) -> str:
    """The name of a method's entry; that alone may be the name of a folder."""
    return f"method {name}"


def write(shelf: Shelf, name: str, model: Model, folder: str) -> Path:
    """Save a model as a folder of its run. UserError for a name that is no plain one, or is taken."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}", folder):
        raise UserError(
            f"{folder[:80]!r} is no name for the model's folder: letters, digits, dots, dashes and underscores, "
            "beginning with a letter or digit"
        )
    if not (shelf.path / "config.json").is_file():
        raise UserError(f"{shelf.path} is no run and is left as it is: sims sample takes another w")
    target = shelf.path / folder
    if target.is_symlink() or target.exists():
        raise UserError(f"{target} is there already: give another name")
    strength = f", w = {model.denoiser.w:g}" if isinstance(model.denoiser, Guide) else ""
    method = f"{name.removeprefix(of_method(''))}{strength}, chosen by eye"  # no row of the run's tables is about it
    return replace(model, provenance={**model.provenance, "method": method}).save(target)


def _base(run: Path, known: Prepared) -> Iterator[Entry]:
    """The base as a run samples it, where that is known; else its last snapshot."""
    build = _base_of(run, known)
    if build is not None:
        yield Entry(BASE.name, BASE.name, lambda w, extra, budget: build())


def _base_of(run: Path, known: Prepared) -> Callable[[], Model] | None:
    snapshots = sorted(run.glob("base/snapshots/*/model.json"))
    if known.base:
        folder = run / known.base
    elif snapshots:
        folder = snapshots[-1].parent
    elif (inside := run / LEADER.name / Extrapolate.children[0] / "model.json").is_file():  # of a model that was given
        folder = inside.parent
    elif (run / IMPROVED / "model.json").is_file():
        folder = run / IMPROVED
    else:
        return None

    def build() -> Model:
        model = _load(folder)
        sampler = from_dict(SamplerOptions, known.sampler, "sampler.") if known.sampler else model.sampler
        denoiser = innermost(model.denoiser) if folder.name == IMPROVED else model.denoiser
        return replace(model, denoiser=denoiser, sampler=sampler)

    return build


def _saved(run: Path) -> Iterator[Entry]:
    for file in sorted(run.glob("*/model.json")):
        yield _directory(file.parent, file.parent.name)


def _others(run: Path) -> Iterator[Entry]:
    """Snapshots of the base, generations of loops, steered models."""
    for file in sorted(run.glob("**/model.json")):
        folder = file.parent
        inside = [parent for parent in folder.parents if parent.is_relative_to(run) and parent != run]
        if folder.is_relative_to(run / "artefacts") or folder.parent == run:
            continue  # what methods are made from; what is there already
        if any((parent / "model.json").is_file() for parent in inside):
            continue
        yield _directory(folder, str(folder.relative_to(run)))


def _directory(folder: Path, name: str) -> Entry:
    """A model directory, at another strength where it is guided."""
    strength = None
    about = read_as(folder / "model.json", dict[str, JSON])
    own = about.get("kind") == ClassifierFree.kind  # the scale of a pipeline, which is how its base is sampled
    if about.get("children") and not own and isinstance(w := about.get("w"), int | float):
        strength = Strength(float(w), _scale(float(w)))

    def build(w: float, extra: float | None, budget: int | None) -> Model:
        if extra is not None or budget is not None:
            raise UserError(f"{folder} is one finished model: of it the strength alone can be changed")
        model = _load(folder)
        return model if strength is None else model.at_strength(w)

    return Entry(name, name, build, strength)


def _methods(run: Path, known: Prepared, result: ImproveResult | None) -> Iterator[Entry]:
    """Every method that a run has prepared, at any strength."""
    searched = result.search.chosen if result is not None and result.search is not None else {}
    base = _base_of(run, known)
    interval = _interval(run) if known.methods else (0.0, math.inf)
    for name, networks in known.methods.items():
        method = METHODS.get(name)
        if method is None or base is None or method.saved or method is BASE:
            continue
        if method.budget != "none" and not networks:
            continue
        folders = {int(budget): run / path for budget, path in networks.items()}
        strength = _strength(method, tuple(folders), searched.get(name))
        build = _builder(method, base, folders, strength, interval)
        yield Entry(of_method(name), f"{name}, as searched" if strength else name, build, strength)


def _strength(method: Method, budgets: tuple[int, ...], chosen: Chosen | None) -> Strength | None:
    """What of a method can be moved, beginning with what was chosen; None where it has one strength."""
    if not isinstance(method.strengths, Continuous):
        return None
    extra, w = method.extra, method.strengths.usual if chosen is None else chosen.w
    value = None if extra is None else extra.usual
    if chosen is not None and chosen.extra is not None:
        value = chosen.extra
    budget = chosen.budget if chosen is not None and chosen.budget in budgets else max(budgets, default=None)
    least = min((0.0, *method.strengths.start))
    return Strength(w, _scale(w), least, extra, value, tuple(sorted(budgets)), budget)


def _scale(w: float) -> float:
    """Where a scale ends on which a strength stands well."""
    return float(max(1.0, math.ceil(2 * abs(w))))


def _builder(
    method: Method,
    base: Callable[[], Model],
    folders: Mapping[int, Path],
    strength: Strength | None,
    interval: tuple[float, float],
) -> Callable[[float, float | None, int | None], Model]:
    usual = strength or Strength(0.0, 0.0, budget=max(folders, default=None))

    def build(w: float, extra: float | None, budget: int | None) -> Model:
        model, aux = base(), None
        if folders:
            chosen = usual.budget if budget is None else budget
            if chosen is None or chosen not in folders:
                raise UserError(f"there is no network of {budget} images: there are {', '.join(map(str, folders))}")
            aux = _load(folders[chosen])
        w = method.strengths.w if isinstance(method.strengths, Fixed) else w
        denoiser = method.build(model, aux, w, usual.value if extra is None else extra)
        return model.with_denoiser(limited(denoiser, model.denoiser, interval))

    return build


def _interval(run: Path) -> tuple[float, float]:
    """The noise levels at which the rules of an improvement guide."""
    table = read_as(run / "config.json", dict[str, JSON]).get("guidance")
    guidance = from_dict(GuidanceOptions, table if isinstance(table, dict) else {}, "guidance.")
    return guidance.sigma_low, guidance.sigma_high


def _load(folder: Path) -> Model:
    """A model directory, read again when it has changed."""
    file = folder / "model.json"
    return _kept(folder, file.stat().st_mtime_ns) if file.is_file() else load(folder)


@functools.lru_cache(maxsize=KEPT)
def _kept(folder: Path, changed: int) -> Model:
    return load(folder)
