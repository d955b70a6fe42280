"""Evaluate samples against real data: extraction, figures, floors, and notes on what to mind."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from sims.data.pictures import LOSSY
from sims.data.stream import UNCHANGED
from sims.errors import UserError
from sims.metrics.infinity import PARTS
from sims.metrics.per_class import beyond_chance, per_class_table
from sims.results.scores import ClassScores, ScoreFigures, Scores, SetFacts, class_words, diverged_words
from sims.scoring.features import FeatureSet
from sims.scoring.figures import METRICS, Settings, facts, figures, over_draws
from sims.scoring.floors import FloorSets, floor_sets
from sims.scoring.options import ScoreOptions
from sims.scoring.reference import OWN_SCALE, AnyExtractor, Bench, Given, Progress, Reference, measure_reference
from sims.scoring.statistics import Statistics
from sims.scoring.subjects import Given as Samples
from sims.scoring.subjects import open_subject

CACHE = "runs/cache"
ENOUGH = 2  # samples per feature in the smallest part of an extrapolation


@dataclass(frozen=True)
class Score:
    """One set of samples that was scored: the features and the figures of each draw, and what was said of them."""

    name: str
    reference: Reference
    sets: list[FeatureSet]
    draws: list[ScoreFigures]
    result: Scores
    device: torch.device | str = "cpu"

    @property
    def figures(self) -> ScoreFigures:
        return self.result.figures


class Suite:
    """Scores sets of samples against one reference; what was extracted is kept in ``cache`` and not computed again."""

    def __init__(
        self,
        reference: Given,
        held_out: Given | None,
        options: ScoreOptions,
        cache: Path,
        accelerator: Accelerator,
        progress: Progress,
        extractor: AnyExtractor | None = None,
    ) -> None:
        if cache.exists() and not cache.is_dir():
            raise UserError(f"the cache {cache} is a file: give a folder as option 'cache'")
        self.options, self.accelerator = options, accelerator
        self.bench = Bench(options, cache, accelerator, progress, extractor)
        self.reference = measure_reference(self.bench, reference, held_out)
        self.floors: dict[int, tuple[FloorSets | None, ScoreFigures]] = {}

    def save_reference(self, file: Path) -> None:
        """Write the reference's statistics to a safetensors file."""
        if self.accelerator.is_main_process:
            self.reference.save(file)
        self.accelerator.wait_for_everyone()

    def score(self, given: Samples) -> Score:
        """All figures of a model or a set of samples. UserError where they cannot be compared with the reference."""
        e, name = self.reference.extractor, str(given) if isinstance(given, str | Path) else getattr(given, "name", "")
        opened = open_subject(given, self.options, self.accelerator.device, e.name)
        if isinstance(opened, Statistics):
            if not opened.measured_with(e):
                raise UserError(
                    f"{name} was measured with {opened.extractor_name}, the reference with {e.name}: give the samples"
                )
            sets = [opened.features]
        else:
            want = any("probabilities" in METRICS[metric].needs for metric in self.options.metrics)
            sets = [self.bench.features(part, e, "samples", want) for part in opened]
        return self._scored(name or "model", sets)

    def _scored(self, name: str, sets: list[FeatureSet]) -> Score:
        r, options = self.reference, self.options
        how = self._settings(limits=len(sets) == 1)
        draws = [r.figures(part, options.metrics, how) for part in sets]
        floor, floors = self._floor(sets[0].count)
        size = floor.samples.count if floor else 0
        rows = [row for draw, part in zip(draws, sets) for row in r.rows(draw, part, floors, size)]
        held_out = r.held_out
        result = Scores(
            samples=name,
            draws=len(sets),
            samples_per_draw=sets[0].count,
            extractor=r.facts(),
            reference=SetFacts(r.train.name, r.train.hash, r.train.count),
            held_out=SetFacts(held_out.name, held_out.hash, held_out.count) if held_out else None,
            figures=over_draws(draws),
            facts=facts(options.metrics),
            floor={metric: figure.mean for metric, figure in floors.items()},
            floor_of=floor.words if floor else None,
            classes=self._classes(sets),
            notes=tuple(self._notes(sets, draws, floor)),
            rows=tuple(replace(row, samples=name) for row in rows),
        )
        return Score(name, r, sets, draws, result, how.device)

    def _settings(self, limits: bool) -> Settings:
        """Features of an extractor that has no scale of its own are measured in the reference's."""
        options = self.options
        scale = self.reference.scale if isinstance(self.reference.extractor, OWN_SCALE) else 1.0
        return Settings(options.neighbours, options.resamples, 0, self.accelerator.device, scale, limits)

    def _floor(self, count: int) -> tuple[FloorSets | None, ScoreFigures]:
        if count not in self.floors:
            r = self.reference
            floor = floor_sets(r.train, r.held_out, count or 5_000)
            found: ScoreFigures = {}
            if floor is not None:
                found = figures(floor.samples, floor.reference, None, self.options.metrics, self._settings(False))
                if self._bends(floor.samples.count):
                    found.pop("fd_infinity", None)
            self.floors[count] = (floor, found)
        return self.floors[count]

    def _bends(self, count: int) -> bool:
        """Whether the smallest parts of so many samples are too small for a straight line in 1/n."""
        used = min(count, 2 * self.options.neighbours)
        return used < PARTS[-1] * ENOUGH * self.reference.extractor.num_features

    def _notes(self, sets: list[FeatureSet], draws: list[ScoreFigures], floor: FloorSets | None) -> list[str]:
        r, first, notes = self.reference, sets[0], list(self.reference.notes)
        width, count = r.extractor.num_features, first.count
        if diverged := sum(part.diverged for part in sets):
            notes.append(diverged_words(diverged, sum(part.count for part in sets)))
        notes += self._mixtures(sets)
        if 0 < count <= width:
            notes.append(
                f"WARNING: {count:,} samples for {width:,} features: their covariance has no full rank and the Fréchet "
                "distance is biased upwards; compare it at equal numbers only, or take more samples"
            )
        if 0 < r.train.count <= width + 1:  # principal components are never more than the images less one
            notes.append(f"WARNING: {r.train.count:,} reference images for {width:,} features: biased likewise")
        for part in (first, r.train):
            notes += [f"WARNING: {part.name}: {note}" for note in part.notes]
        for found in (first, r.train):
            if found.images not in (UNCHANGED, "unknown"):
                notes.append(f"{found.name}: {found.images} for {r.extractor.name}")
        if first.data_shape and r.train.data_shape and first.data_shape[1:] != r.train.data_shape[1:]:
            ours, theirs = ("x".join(map(str, found.data_shape[1:])) for found in (first, r.train))
            notes.append(
                f"WARNING: samples of {ours} pixels against a reference of {theirs}: both are resized, so the "
                "resizing is part of what is compared"
            )
        if "fd_infinity" in draws[0] and self._bends(count):
            most = PARTS[-1] * ENOUGH * width // 2
            notes.append(
                f"WARNING: the distance for n to infinity is carried on from parts of fewer than {ENOUGH} x {width:,} "
                f"samples, too few for a straight line: take more samples, and option 'neighbours' {most}"
            )
        formats = (first.format, r.train.format)
        if len({*formats}) > 1 and any(word in LOSSY for name in formats for word in name.split(" and ")):
            notes.append(
                f"WARNING: the samples are {formats[0]}, the reference is {formats[1]}: what lossy compression leaves "
                "in images is part of what is compared"
            )
        for metric in (METRICS[name] for name in self.options.metrics):
            if "held_out" in metric.needs and not metric.figures.keys() & draws[0].keys() and r.train.kept is not None:
                lacks = (
                    "images that no model was trained on (option 'held_out')"
                    if r.held_out is None
                    else "every reference image"
                )
                notes.append(f"{metric.name} is left out: it needs {lacks}")
        unreadable = sum(found.unreadable for found in (*sets, r.train, *([r.held_out] if r.held_out else [])))
        if unreadable:
            notes.append(f"WARNING: {unreadable} pictures could not be read and were left out")
        if floor is not None and floor.samples.count < count:
            notes.append(
                f"real against real is of {floor.samples.count:,} images, fewer than the samples: its FD is too high "
                f"and its coverage too low for {count:,}"
            )
        return notes

    def _mixtures(self, sets: list[FeatureSet]) -> list[str]:
        """Of samples whose classes were meant: a warning where their shares are not the reference's."""
        train, first = self.reference.train, sets[0]
        if first.labels is None:
            return []
        every = replace(first, labels=np.concatenate([part.labels for part in sets if part.labels is not None]))
        counts = every.class_counts(train)
        if counts is None:
            lack = "has no labels" if train.labels is None else "has other classes"
            return [f"whether the samples' class shares are the reference's is not known: it {lack}"]
        if not beyond_chance(*counts):
            return []
        names = train.class_names or first.class_names or tuple(map(str, range(len(counts[0]))))
        ours, theirs = (found / found.sum() for found in counts)
        return [f"WARNING: {class_words(names, ours.tolist(), theirs.tolist(), 'class_shares')}"]

    def _classes(self, sets: list[FeatureSet]) -> tuple[ClassScores, ...]:
        """Figures per class, where the reference has labels and the samples' classes are intended or recognized."""
        train = self.reference.train
        chosen = [(part.kept, part.classes) for part in sets]
        if train.kept is None or train.labels is None or any(x is None or y is None for x, y in chosen):
            return ()
        if sets[0].labels is not None and train.class_names and sets[0].class_names != train.class_names:
            return ()  # classes of another kind
        kept, classes = (np.concatenate([pair[i] for pair in chosen]) for i in (0, 1))  # type: ignore[misc]
        names = train.class_names or tuple(str(i) for i in range(int(train.labels.max()) + 1))
        device = self.accelerator.device
        rows = per_class_table(kept, classes, train.kept, train.labels, len(names), device=device)
        told = "recognized" if sets[0].labels is None else "intended"
        return tuple(ClassScores(name=name, told_by=told, **asdict(row)) for name, row in zip(names, rows))
