"""The stages of an improvement run: each leaves files and is skipped when they are there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.experiments.improve.search import Features, Found, Search, around, half_width
from sims.experiments.improve.trusted import MOST, Candidates
from sims.experiments.options import ImproveOptions
from sims.files import digest, read_json, write_json
from sims.guidance import CacheRule, CorrectionGuide, Guide
from sims.methods import METHODS, Artefact, Base, Continuous, Leader, Settings
from sims.metrics.frechet import Moments, frechet_distance
from sims.model import Model, load
from sims.processes import agree
from sims.results.common import Cost
from sims.runs.directory import Run
from sims.sampling import SOLVERS, SamplerOptions, SolverName, nfe
from sims.scoring.judge import Draw, Judge, draw_samples, interval
from sims.seeds import Purpose, derive_seed, seed_range
from sims.training.base import train_base


@dataclass(frozen=True)
class Choice:
    """A method ready to be judged: its model, strength and budget, and what it cost beyond the base."""

    method: str
    label: str
    model: Model
    w: float
    budget: int | None
    extra_images: int = 0
    extra_evaluations: int = 0
    sampler: SamplerOptions | None = None
    note: str = ""

    @property
    def options(self) -> SamplerOptions:
        return self.sampler or self.model.sampler

    @property
    def nfe(self) -> int:
        return nfe(self.model, self.options)


class Stages:
    """What ``improve`` is made of; the rounds share it."""

    def __init__(self, run: Run, options: ImproveOptions, real: Dataset | None) -> None:
        self.run, self.options, self.real = run, options, real
        self.judge: Judge | None = None
        self.trusted: np.ndarray | None = None  # features of images that are known to be real
        file = run.path / "seconds.json"
        self.seconds: dict[str, float] = read_json(file) if file.is_file() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add up how long a stage takes, over interruptions (but for the time a killed process lost)."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - begin
            if self.run.is_main:
                write_json(self.run.path / "seconds.json", self.seconds)

    def settings(self, round_: int) -> Settings:
        """What the auxiliary methods are prepared with."""
        return Settings(self.options.auxiliary, self.options.seed, round_, self.options.batch_size)

    def base(self, model: Model | None) -> Base:
        """The model to improve: the one given, or one trained on the real data."""
        options, run = self.options, self.run
        seed = derive_seed("base", options.seed)
        if model is not None:
            return Base(model, model.hash, seed=seed, train=options.base.train)
        assert self.real is not None
        images = options.base.images
        snapshots = tuple(max(1, round(images * share)) for share in options.base.snapshots)
        folder = run.path / "base"
        with run.progress("train the base", images) as advance:
            trained = train_base(
                self.real,
                options.network,
                options.sampler,
                options.base.train,
                folder,
                images=images,
                seed=seed,
                snapshots=snapshots,
                accelerator=run.accelerator,
                advance=advance,
                log=run.log,
            )
        model = load(trained.last, run.device)
        earlier = {budget: path for budget, path in trained.snapshots.items() if budget < images}
        return Base(model, model.hash, earlier, folder, images, seed, options.base.train)

    def search(self, name: str, base: Base, artefact: Artefact, round_: int, budgets: list[int] | None = None) -> Found:
        """Choose (budget, w) of one method on the selection seeds."""
        strengths, judge, run = METHODS[name].strengths, self.judge, self.run
        assert isinstance(strengths, Continuous) and judge is not None
        budgets = budgets or sorted(artefact.variants)
        seeds = seed_range("selection", self.options.seed, max(self.options.search.rungs), round_)
        key: list[Any] = [name, artefact.key, base.key, budgets, to_dict(self.options.search)]
        key += [judge.extractor.hash, judge.train.hash, to_dict(base.model.sampler)]
        key += [[seeds.start, seeds.stop], self.options.batch_size]
        key += [judge.decoder.hash] if judge.decoder else []
        key += [] if self.trusted is None else [np.ascontiguousarray(self.trusted).tobytes()]
        folder = run.path / "search" / f"{name}-{digest(*key, self._interval)[:12]}"
        evaluations = [0]

        def features(budget: int, w: float, first: int, last: int) -> np.ndarray:
            model = self._build(name, base, artefact, budget, w)
            evaluations[0] += (last - first) * nfe(model, model.sampler)
            return self._features(model, folder / f"{budget}-{w:g}", seeds[first:last], advance)

        def advance(count: int) -> None:
            bar(count)

        def choose() -> dict[str, Any]:
            options = self.options.search
            if name == "autoguidance":  # a fixed budget is the auxiliary's; the snapshots of the base have others
                options = replace(options, budget=None)
            # Every process must see the same distances to the last bit, or their ways would part.
            found = Search(features, lambda x: agree(judge.frechet(x)), budgets, strengths.start, options).run()
            if self.trusted is not None:
                self._trust(found, features, len(seeds))
            found.evaluations = evaluations[0]
            return found.to_json()

        with run.progress(f"choose budget and w ({name})", 8 * sum(self.options.search.rungs)) as bar:
            return Found.from_json(run.once(folder / "found.json", choose, together=True))

    def _trust(self, found: Found, features: Features, count: int) -> None:
        """Choose the strength anew, by the trusted images; the budget stays."""
        judge, options = self.judge, self.options.search
        assert judge is not None and self.trusted is not None
        samples = {w: features(found.budget, w, 0, count) for w in around(found.w, options.max_w)}
        polluted = judge.train.require_features()
        some = np.sort(np.random.default_rng(self.options.seed).permutation(len(polluted))[:MOST])
        choice = Candidates(samples, polluted[some]).choose(self.trusted)
        found.trusted = {**choice.to_json(), "size": len(self.trusted), "by_data": found.w}
        found.w, found.fd = agree((choice.w, judge.frechet(samples[choice.w])))
        found.samples += count * len(samples)

    @property
    def _interval(self) -> list[str]:
        return [str(self.options.guidance.sigma_low), str(self.options.guidance.sigma_high)]

    def _build(self, name: str, base: Base, artefact: Artefact | None, budget: int | None, w: float) -> Model:
        aux = artefact.load(budget, self.run.device) if artefact is not None and budget is not None else None
        return base.model.with_denoiser(self._limited(METHODS[name].build(base.model, aux, w)))

    def _limited(self, denoiser: Denoiser) -> Denoiser:
        """The guidance interval applies to whatever guides."""
        limits = (self.options.guidance.sigma_low, self.options.guidance.sigma_high)
        return denoiser.limited(limits) if isinstance(denoiser, Guide) else denoiser

    def _features(self, model: Model, folder: Path, seeds: range, advance: Callable[[int], None]) -> np.ndarray:
        """Features of some seeds, a file per compute batch, shared out over the processes."""
        size = self.options.batch_size
        parts = [seeds[first : first + size] for first in range(0, len(seeds), size)]

        def file(part: range) -> Path:
            return folder / f"{part.start}-{part.stop}.safetensors"

        def work(part: range) -> None:
            assert self.judge is not None
            folder.mkdir(parents=True, exist_ok=True)
            x = model.sample(part, batch_size=size)
            # A strength at which sampling diverges is a bad strength, not an error.
            x = model.codec.encode(model.codec.decode(x.nan_to_num(0.0, 1e3, -1e3)))
            self.judge.only_features(x).save(file(part))
            advance(len(part) * self.run.num_processes)

        self.run.spread(parts, file, work)
        return np.concatenate([Draw.load(file(part)).features for part in parts])

    def draws(
        self, choice: Choice, round_: int, purpose: Purpose = "evaluation", count: int | None = None
    ) -> list[Draw]:
        """Independent draws of fresh samples, measured; a file per draw."""
        options, judge, run = self.options.evaluation, self.judge, self.run
        assert judge is not None
        number = options.draws if count is None else 1
        size = count or options.samples
        key = [choice.model.hash, to_dict(choice.options), judge.key, size, purpose]
        folder = run.path / "draws" / f"{choice.method}-{digest(*key, self.options.batch_size, round_)[:12]}"
        seeds = self.draw_seeds(number, size, round_, purpose)

        def file(part: range) -> Path:
            return folder / f"{part.start}-{part.stop}.safetensors"

        def work(part: range) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            draw = draw_samples(choice.model, part, judge, choice.options, self.options.batch_size)
            if purpose == "evaluation":
                draw = replace(draw, scores=judge.scores(draw))
            draw.save(file(part))
            advance(len(part) * run.num_processes)

        with run.progress(f"evaluate {choice.label}", number * size) as advance:
            run.spread(seeds, file, work)
        return [Draw.load(file(part)) for part in seeds]

    def draw_seeds(self, number: int, size: int, round_: int, purpose: Purpose = "evaluation") -> list[range]:
        """The seeds of each draw: consecutive, and the same for every method."""
        seeds = seed_range(purpose, self.options.seed, number * size, round_)
        return [seeds[first : first + size] for first in range(0, len(seeds), size)]

    def choose(self, name: str, base: Base, round_: int, sims: Choice | None) -> tuple[Choice, Found | None]:
        """Prepare one method, choose its strength, and say what it cost."""
        method = METHODS[name]
        if name == "base":
            return Choice("base", "base", base.model, 0.0, None), None
        settings = self._settings_of(name, round_, sims)
        with self.timed(f"prepare {name}"):
            artefact = method.prepare(base, self.real, settings, self.run)
        assert artefact is not None
        images, evaluations = artefact.images, artefact.evaluations
        if not isinstance(method.strengths, Continuous):
            budget = sims.budget if name == "self-trained" and sims else max(artefact.variants)
            model = self._build(name, base, artefact, budget, method.strengths.w)
            w = sims.w if name == "distilled" and sims else method.strengths.w
            if name == "distilled" and sims:
                images, evaluations = images + sims.extra_images, evaluations + sims.extra_evaluations
            return Choice(name, name, model, w, budget, images, evaluations), None
        if self.judge is None:
            budget, w = default_choice(sorted(artefact.variants))
            model = self._build(name, base, artefact, budget, w)
            return Choice(name, name, model, w, budget, images, evaluations), None
        budgets = [sims.budget] if name == "placebo" and sims and sims.budget else None
        with self.timed(f"search {name}"):
            found = self.search(name, base, artefact, round_, budgets)
        model = self._build(name, base, artefact, found.budget, found.w)
        return Choice(name, name, model, found.w, found.budget, images, evaluations + found.evaluations), found

    def _settings_of(self, name: str, round_: int, sims: Choice | None) -> Any:
        if sims is None:
            return self.settings(round_)
        cost = Cost(sims.extra_images, sims.extra_evaluations)
        leader = Leader(sims.model, sims.w, sims.budget, cost)
        return replace(self.settings(round_), distilled=self.options.distilled, leader=leader)

    def cached(self, sims: Choice, round_: int) -> Choice | None:
        """SIMS with the correction recomputed only where a pilot says; None where caching is off or gains nothing."""
        denoiser, allowed = sims.model.denoiser, self.options.guidance.cache_cost
        if not allowed or not isinstance(denoiser, CorrectionGuide) or denoiser.w == 0:
            return None
        base_cost = denoiser.base.evaluations(sims.options.planned(denoiser.base))
        refreshes = int((allowed - 1) * base_cost + 1e-6)  # 0.2 * 35 is 7, whatever floating point says
        if refreshes < 1 or base_cost + refreshes >= sims.nfe:
            return None
        rule = self.pilot(sims, round_).with_refreshes(refreshes)
        return replace(
            sims,
            label="sims (cached)",
            model=with_cache(sims.model, rule),
            extra_evaluations=sims.extra_evaluations + self._pilot_cost(sims),
            note="correction reused between levels",
        )

    def pilot(self, sims: Choice, round_: int) -> CacheRule:
        """The rule from a short run of full guidance, kept in the run directory."""
        denoiser = sims.model.denoiser
        assert isinstance(denoiser, CorrectionGuide)
        seeds = seed_range("pilot", self.options.seed, self.options.guidance.pilot, round_)

        def measure() -> dict[str, Any]:
            return CacheRule.from_pilot(denoiser, seeds, sims.model.sampler, refreshes=1).to_json()

        key = digest(sims.model.hash, to_dict(sims.model.sampler), [seeds.start, seeds.stop])[:12]
        return CacheRule.from_json(self.run.once(self.run.path / "search" / f"pilot-{key}.json", measure))

    def _pilot_cost(self, sims: Choice) -> int:
        """Network evaluations of the pilot."""
        return self.options.guidance.pilot * sims.nfe

    def selection(self, choice: Choice, round_: int) -> Selection:
        """What the last rung of a search would measure: on its seeds, with its number of samples."""
        judge = self.judge
        assert judge is not None
        features = self.draws(choice, round_, "selection", max(self.options.search.rungs))[0].features
        half = half_width([features], judge.frechet)
        test = None if judge.test is None else frechet_distance(Moments.of(features), judge.test.moments)
        fd, half, test, perfect = agree((judge.frechet(features), half, test, judge.perfect(len(features))))
        return Selection(features, fd, half, test, perfect)

    def noise(self, before: Selection, after: Selection) -> float:
        """Half of the 95 % interval of the difference of their distances, paired by seed; 0 where it is not known."""
        judge = self.judge
        assert judge is not None
        pair = [before.features, after.features]
        return half_width(pair, lambda a, b: judge.frechet(a) - judge.frechet(b)) or 0.0

    def cheapest(
        self, sims: Choice, base_fd: float, full_fd: float, round_: int
    ) -> tuple[Choice, list[dict[str, Any]]] | None:
        """The cheapest sampler setting that keeps 95 % of the gain, sought on the selection seeds with every solver.

        First the number of steps with full guidance, then fewer corrections. None where there is no gain to keep.
        """
        denoiser = sims.model.denoiser
        if full_fd >= base_fd or not self.options.guidance.cache_cost or not isinstance(denoiser, CorrectionGuide):
            return None
        rule = self.pilot(sims, round_)
        dearest = nfe(denoiser.base, sims.options)
        tried: list[dict[str, Any]] = []

        def retained(setting: Setting) -> float:
            choice = fast(sims, rule, setting)
            if nfe(denoiser.base, choice.options) > dearest:
                return math.nan
            kept = (base_fd - self.selection(choice, round_).fd) / (base_fd - full_fd)
            tried.append({**setting._asdict(), "nfe": choice.nfe, "retained": kept})
            return kept

        settings = [fewest(retained, solver, sims.options.steps) for solver in SOLVERS]
        choices = [fast(sims, rule, setting) for setting in settings if setting is not None]
        if not choices:
            return None
        found = min(choices, key=lambda choice: choice.nfe)
        sampled = dearest + sum(entry["nfe"] for entry in tried)  # the base and every setting
        spent = self._pilot_cost(sims) + max(self.options.search.rungs) * sampled
        return replace(found, extra_evaluations=sims.extra_evaluations + spent), tried


@dataclass(frozen=True)
class Selection:
    """A choice on the selection seeds: features, distance to the training and the test data, and a perfect model's."""

    features: np.ndarray
    fd: float
    half_width: float | None
    fd_held_out: float | None
    perfect: float


class Setting(NamedTuple):
    """A sampler setting with cached guidance."""

    solver: SolverName
    steps: int
    refreshes: int


KEPT = 0.96  # of the gain, on the selection seeds: a little above the 95 % that is to remain on fresh ones


def fewest(retained: Callable[[Setting], float], solver: SolverName, steps: int) -> Setting | None:
    """The fewest steps, then corrections, that keep enough of the gain; None if none does. NaN = too dear to try."""
    start = steps
    while not (kept := retained(Setting(solver, steps, steps))) >= KEPT:
        if math.isnan(kept):
            return None
        steps += 4
    while 6 < steps <= start and retained(Setting(solver, steps - 2, steps - 2)) >= KEPT:
        steps -= 2
    refreshes = steps
    while refreshes > 1 and retained(Setting(solver, steps, fewer := int(0.7 * refreshes))) >= KEPT:
        refreshes = fewer
    return Setting(solver, steps, refreshes)


def fast(sims: Choice, rule: CacheRule, setting: Setting) -> Choice:
    """SIMS with another sampler and few corrections."""
    sampler = replace(sims.options, solver=setting.solver, steps=setting.steps, s_churn=0.0)
    model = replace(with_cache(sims.model, rule.with_refreshes(setting.refreshes)), sampler=sampler)
    name = {"heun": "Heun", "dpmpp2m": "DPM-Solver++(2M)"}[setting.solver]
    note = f"{name}, {setting.steps} steps, {setting.refreshes} corrections"
    return replace(sims, label="sims (fast)", model=model, sampler=sampler, note=note)


def with_cache(model: Model, rule: CacheRule) -> Model:
    """The guided model with a cache rule."""
    guided = model.denoiser
    assert isinstance(guided, CorrectionGuide)
    return model.with_denoiser(guided.with_cache(rule))


def default_choice(budgets: list[int]) -> tuple[int, float]:
    """(budget, w) where there is nothing to choose by: the middle budget and w = 1.

    w = 1 made every base measured so far better, though the best w lay between 0.75 and 3.5 (``benchmarks/results``);
    nothing verifies it for another model.
    """
    return budgets[(len(budgets) - 1) // 2], 1.0


def figures(draws: list[Draw]) -> dict[str, Any]:
    """Mean and 95 % interval of every figure over the draws."""
    return {name: interval([draw.scores[name] for draw in draws]) for name in draws[0].scores}
