"""Evaluate samples against real data: extraction, figures, floors, self-describing rows, and paired differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from sims.data.dataset import Dataset
from sims.data.stream import UNCHANGED
from sims.errors import UserError
from sims.metrics.comparison import ScoreRow
from sims.metrics.extractors import Extractor
from sims.metrics.infinity import PARTS
from sims.metrics.per_class import per_class_table
from sims.scoring.features import FeatureSet
from sims.scoring.figures import Figures, Floor, Settings, figures, floor_sets, over_draws
from sims.scoring.reference import FITTED, Bench, Progress, Reference, ScoreOptions, measure_reference
from sims.scoring.subjects import Given, Statistics, open_subject

__all__ = ["CACHE", "Score", "ScoreOptions", "Suite"]

CACHE = "runs/cache"
ENOUGH = 2  # samples per feature in the smallest part of an extrapolation


@dataclass(frozen=True)
class Score:
    """The scores of one set of samples: figures over its draws, floors, one row per figure and draw."""

    name: str
    reference: Reference
    sets: list[FeatureSet]
    draws: list[Figures]
    floor: Floor | None
    floors: Figures
    rows: list[ScoreRow]
    notes: list[str]
    classes: list[dict[str, Any]]
    device: torch.device | str = "cpu"

    @property
    def figures(self) -> Figures:
        return over_draws(self.draws)

    def to_json(self) -> dict[str, Any]:
        """Everything but the features."""
        r, e = self.reference, self.reference.extractor
        sides = {"train": r.train, "held_out": r.held_out}
        return {
            "samples": self.name,
            "draws": len(self.draws),
            "samples_per_draw": self.sets[0].count,
            "extractor": {"name": e.name, "hash": e.hash, "num_features": e.num_features},
            "reference": {k: {"name": v.name, "hash": v.hash, "count": v.count} for k, v in sides.items() if v},
            "metrics": {
                name: {
                    "mean": f.value,
                    "low": f.limits.low if f.limits else None,
                    "high": f.limits.high if f.limits else None,
                    "interval": f.interval,
                    "samples": f.count,
                    **f.settings,
                }
                for name, f in self.figures.items()
            },
            "floor": {name: f.value for name, f in self.floors.items()},
            "floor_of": self.floor.words if self.floor else None,
            "classes": self.classes,
            "notes": self.notes,
            "rows": [row.to_json() for row in self.rows],
        }


class Suite:
    """Scores sets of samples against one reference; what was extracted is kept in ``cache`` and not computed again."""

    def __init__(
        self,
        reference: str | Path | Dataset,
        held_out: str | Path | Dataset | None,
        options: ScoreOptions,
        cache: Path,
        accelerator: Accelerator,
        progress: Progress,
        extractor: Extractor | Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        if cache.exists() and not cache.is_dir():
            raise UserError(f"the cache {cache} is a file: give a folder with --cache")
        self.options, self.accelerator = options, accelerator
        self.bench = Bench(options, cache, accelerator, progress, extractor)
        self.reference = measure_reference(self.bench, reference, held_out)
        self.floors: dict[int, tuple[Floor | None, Figures]] = {}

    def save_reference(self, file: Path) -> None:
        """Write the reference's statistics to a safetensors file."""
        if self.accelerator.is_main_process:
            self.reference.save(file)
        self.accelerator.wait_for_everyone()

    def score(self, given: Given) -> Score:
        """All figures of a model or a set of samples. UserError where they cannot be compared with the reference."""
        e, name = self.reference.extractor, str(given) if isinstance(given, str | Path) else getattr(given, "name", "")
        opened = open_subject(given, self.options.sampling, self.accelerator.device, e.name)
        if isinstance(opened, Statistics):
            if not opened.measured_with(e):
                raise UserError(
                    f"{name} was measured with {opened.extractor_name}, the reference with {e.name}: give the samples"
                )
            sets = [opened.features]
        else:
            want = "inception_score" in self.options.metrics
            sets = [self.bench.features(part, e, "samples", want) for part in opened]
        return self._scored(name or "model", sets)

    def _scored(self, name: str, sets: list[FeatureSet]) -> Score:
        r, options = self.reference, self.options
        how = Settings(options.neighbours, options.resamples, 0, self.accelerator.device, self._scale())
        draws = [figures(found, r.train, r.held_out, options.metrics, how, len(sets) == 1) for found in sets]
        floor, floors = self._floor(sets[0].count, how)
        score = Score(
            name, r, sets, draws, floor, floors, [], self._notes(sets, draws, floor), self._classes(sets), how.device
        )
        for draw, found in zip(draws, sets):
            score.rows.extend(self._rows(name, draw, found, floor, floors))
        return score

    def _scale(self) -> float:
        """The features' root mean variance over the reference, for extractors that have no scale of their own."""
        r = self.reference
        if not isinstance(r.extractor, FITTED):
            return 1.0
        return float(np.sqrt(np.trace(r.train.moments.covariance) / r.extractor.num_features)) or 1.0

    def _floor(self, count: int, how: Settings) -> tuple[Floor | None, Figures]:
        if count not in self.floors:
            r = self.reference
            floor = floor_sets(r.train, r.held_out, count or 5_000)
            names = [name for name in self.options.metrics if name not in ("memorization", "inception_score")]
            found = {} if floor is None else figures(floor.samples, floor.reference, None, names, how, False)
            if floor is not None and self._bends(floor.samples.count):
                found.pop("fd_infinity", None)
            self.floors[count] = (floor, found)
        return self.floors[count]

    def _bends(self, count: int) -> bool:
        """Whether the smallest parts of so many samples are too small for a straight line in 1/n."""
        used = min(count, 2 * self.options.neighbours)
        return used < PARTS[-1] * ENOUGH * self.reference.extractor.num_features

    def _notes(self, sets: list[FeatureSet], draws: list[Figures], floor: Floor | None) -> list[str]:
        r, first, notes = self.reference, sets[0], list(self.reference.notes)
        width, count = r.extractor.num_features, first.count
        if 0 < count <= width:
            notes.append(
                f"WARNING: {count:,} samples for {width:,} features: their covariance has no full rank and the Fréchet "
                "distance is biased upwards; compare it at equal numbers only, or take more samples"
            )
        if 0 < r.train.count <= width:
            notes.append(f"WARNING: {r.train.count:,} reference images for {width:,} features: biased likewise")
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
                f"samples, too few for a straight line: take more samples, and --neighbours {most}"
            )
        if first.format != r.train.format and "jpeg" in (first.format, r.train.format):
            notes.append(
                f"WARNING: the samples are {first.format}, the reference is {r.train.format}: what JPEG leaves in "
                "images is part of what is compared"
            )
        if "memorization" in self.options.metrics and "copied" not in draws[0] and r.train.kept is not None:
            lacks = (
                "images that no model was trained on (--held-out)" if r.held_out is None else "every reference image"
            )
            notes.append(f"memorization is left out: it needs {lacks}")
        unreadable = sum(found.unreadable for found in (*sets, r.train, *([r.held_out] if r.held_out else [])))
        if unreadable:
            notes.append(f"WARNING: {unreadable} pictures could not be read and were left out")
        if floor is not None and floor.samples.count < count:
            notes.append(
                f"real against real is of {floor.samples.count:,} images, fewer than the samples: its FD is too high "
                f"and its coverage too low for {count:,}"
            )
        return notes

    def _classes(self, sets: list[FeatureSet]) -> list[dict[str, Any]]:
        """Figures per class, where the reference has labels and the samples' classes are intended or recognized."""
        train = self.reference.train
        chosen = [(found.kept, found.classes) for found in sets]
        if train.kept is None or train.labels is None or any(x is None or y is None for x, y in chosen):
            return []
        if sets[0].labels is not None and train.class_names and sets[0].class_names != train.class_names:
            return []  # classes of another kind
        kept, classes = (np.concatenate([pair[i] for pair in chosen]) for i in (0, 1))  # type: ignore[misc]
        names = train.class_names or tuple(str(i) for i in range(int(train.labels.max()) + 1))
        device = self.accelerator.device
        rows = per_class_table(kept, classes, train.kept, train.labels, len(names), device=device)
        told = "recognized" if sets[0].labels is None else "intended"
        return [{"class": name, "told_by": told, **asdict(row)} for name, row in zip(names, rows)]

    def _rows(
        self, name: str, draw: Figures, found: FeatureSet, floor: Floor | None, floors: Figures
    ) -> list[ScoreRow]:
        r, e = self.reference, self.reference.extractor
        seeds = _range_of(found.seeds)
        forced = {"reference_extractor": r.measured_with} if r.measured_with else {}
        rows = []
        for metric, figure in draw.items():
            against = r.held_out if metric.endswith("_held_out") and r.held_out else r.train
            base = floors.get(metric)
            rows.append(
                ScoreRow(
                    metric=metric,
                    value=figure.value,
                    extractor_name=e.name,
                    extractor_hash=e.hash,
                    reference_name=against.name,
                    reference_hash=against.hash,
                    num_samples=figure.count,
                    seeds=seeds,
                    resize=e.resize,
                    format=found.format,
                    dtype=found.dtype,
                    samples=name,
                    samples_hash=found.hash,
                    images=found.images,
                    unreadable=found.unreadable,
                    low=figure.limits.low if figure.limits else None,
                    high=figure.limits.high if figure.limits else None,
                    interval=figure.interval,
                    floor=base.value if base else None,
                    floor_samples=floor.samples.count if base and floor else 0,
                    num_reference=against.count,
                    settings={key: value for key, value in figure.settings.items() if key != "p_value"} | forced,
                )
            )
        return rows


def _range_of(seeds: np.ndarray | None) -> tuple[int, int]:
    """The half-open range of seeds that follow one another; (0, 0) for others."""
    if seeds is None:
        return (0, 0)
    first, last = int(seeds.min()), int(seeds.max()) + 1
    return (first, last) if last - first == len(seeds) else (0, 0)
