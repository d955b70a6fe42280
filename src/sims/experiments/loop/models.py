"""What a generation is made of: its base, a remedy, what that costs, and how good the result is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sims.config import to_dict
from sims.data.codec import finite
from sims.data.dataset import Dataset
from sims.experiments.facts import GRID
from sims.experiments.loop.options import RepeatedOptions
from sims.experiments.loop.remedies import EQUAL, STANDARD
from sims.methods import METHODS, Artefact, Base, Settings
from sims.methods.auxiliary import own_sampler
from sims.methods.continued import train_on
from sims.methods.unguided import BASE
from sims.metrics.per_class import class_shares
from sims.model import Model, load
from sims.results.common import Cost
from sims.results.loop import Arm, TrainedOn
from sims.runs.directory import Run
from sims.runs.measure import Samples, draw_and_measure, parts_of, sampled
from sims.runs.synthesize import synthesize
from sims.sampling import nfe
from sims.scoring.judge import Draw, Judge
from sims.seeds import derive_seed, seed_range
from sims.training.base import new_model
from sims.training.trainer import Trainer, read_trained


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model: its figures and the recognized classes' shares (means over draws), evaluations of a sample.

    ``diverged`` of ``samples`` are bad samples; ``rows`` are lines of JSON that say of every figure of every draw what
    it was measured with.
    """

    figures: dict[str, float]
    shares: list[float]
    nfe: float
    samples: int
    diverged: int
    rows: list[str]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What a finished generation of an arm leaves: what it was trained on and cost, how good it is.

    ``base`` is the hash of its base; ``weights`` (to continue from) and ``store`` (the samples that it passes on) are
    paths below the repeat's directory.
    """

    measured: Measured
    cost: Cost
    trained_on: TrainedOn
    base: str
    weights: str
    store: str | None


@dataclass(frozen=True)
class Made:
    """The model of an arm, what making it cost (its base's training included), and the network to continue from."""

    model: Model
    cost: Cost
    weights: Path


class Models:
    """Makes and measures models in one repeat; everything is content-addressed, so equal models are made once.

    ``seed`` is the repeat's: all random numbers follow from it and from the generation.
    """

    def __init__(self, run: Run, options: RepeatedOptions, judge: Judge, seed: int) -> None:
        self.run, self.options, self.judge, self.seed = run, options, judge, seed

    def base(self, data: Dataset, generation: int, start: Model | None = None) -> Base:
        """The model of one generation: trained on this data from scratch, or from the weights of ``start``."""
        options, run = self.options, self.run
        seed = derive_seed("generation", self.seed, generation)
        images, train = options.base.length(data.data_shape), options.base.train
        folder = run.artefact(
            "base", data.fingerprint, to_dict(options.network), to_dict(options.base), start and start.hash, seed
        )
        snapshots = tuple(max(1, round(images * share)) for share in options.base.snapshots)
        trained = read_trained(folder)
        if trained is None:
            fresh = start or new_model(data, options.network, options.sampler, seed, train)
            trainer = Trainer(
                fresh, data, train, folder, images=images, seed=seed, snapshots=snapshots, accelerator=run.accelerator
            )
            with run.progress(f"train generation {generation}", images) as advance:
                trained = trainer.run(advance, run.log)
        model = load(trained.last, run.device)
        earlier = {budget: path for budget, path in trained.snapshots.items() if budget < trained.images}
        return Base(model, model.hash, earlier, folder, trained.images, seed, train)

    def extra(self, base: Base, passed_on: int) -> Cost:
        """What sims costs beyond standard training: own samples, the auxiliary, and ``passed_on`` guided samples.

        Guided samples cost the base's evaluations a second time.
        """
        auxiliary, model = self.options.auxiliary, base.model
        own = auxiliary.samples * nfe(model, own_sampler(model, model.sampler, auxiliary))
        return Cost(auxiliary.budgets[0], own + passed_on * nfe(model, model.sampler))

    def artefact(self, method: str, base: Base, generation: int) -> Artefact:
        """What a guided method needs, prepared from the base's own samples; no real data takes part."""
        settings = Settings(self.options.auxiliary, self.seed, generation, self.options.batch_size)
        artefact = METHODS[method].prepare(base, None, settings, self.run)
        assert artefact is not None
        return artefact

    def guided(self, method: str, base: Base, artefact: Artefact, w: float) -> Model:
        """The base with a method at strength w; 0 is the base itself."""
        if w == 0:
            return base.model
        auxiliary = artefact.load(min(artefact.variants), self.run.device)
        denoiser = METHODS[method].build(base.model, auxiliary, w)
        return base.model.with_denoiser(denoiser, method=method, w=w)

    def made(self, arm: Arm, base: Base, data: Dataset, generation: int, passed_on: int) -> Made:
        """The model of an arm, ``passed_on`` samples of which go to the next generation."""
        assert base.training is not None
        spent, weights = Cost(base.images), read_trained(base.training)
        assert weights is not None
        if arm.method == STANDARD:
            return Made(base.model, spent, weights.last)
        if arm.method == EQUAL:
            more = self.extra(base, passed_on).total // 3
            trained = train_on(base, data, more, self.run)
            return Made(trained.load(more, self.run.device), spent + trained.cost, trained.variants[more])
        artefact = self.artefact(arm.method, base, generation)
        return Made(self.guided(arm.method, base, artefact, arm.w), spent + artefact.cost, weights.last)

    def passed_on(self, model: Model, method: str, generation: int, count: int, w: float) -> Path:
        """The store of the samples that a generation passes on. Their seeds are used for nothing else."""
        seeds = seed_range("distillation", self.seed, count, generation)
        sampler, size = to_dict(model.sampler), self.options.batch_size
        folder = self.run.artefact("passed-on", model.hash, sampler, [seeds.start, seeds.stop], size, w)
        with self.run.progress(f"samples of generation {generation}", count) as advance:
            synthesize(
                model, folder, seeds, method=method if w else BASE.name, w=w, batch_size=size,
                accelerator=self.run.accelerator, advance=advance,
            )  # fmt: skip
        return folder

    def measure(self, model: Model, generation: int, name: str) -> Measured:
        """Every figure of a model, on draws whose seeds no other purpose uses; shared out over the processes."""
        options, judge, batch = self.options.evaluation, self.judge, self.options.batch_size
        seeds = seed_range("evaluation", self.seed, options.draws * options.samples, generation)
        parts = parts_of(seeds, options.samples)
        folder = self.run.artefact("scores", model.hash, to_dict(model.sampler), judge.key, batch)

        def measure(samples: Samples) -> Draw:
            draw = judge.scored(judge.measure(samples.x, samples.labels, samples.diverged))
            return Draw(np.zeros(0), np.zeros(0), predicted=draw.predicted, diverged=draw.diverged, rows=draw.rows)

        def draw(part: range) -> Samples:
            return sampled(model, part, batch_size=batch)

        with self.run.progress(f"measure {name}", len(seeds)) as advance:
            draws = draw_and_measure(self.run, folder, parts, draw, measure, Draw, advance)
        classes = getattr(judge.extractor, "num_classes", 0)
        shares = [class_shares(d.predicted, classes) for d in draws if d.predicted is not None]
        return Measured(
            figures={key: float(np.mean([draw.scores[key] for draw in draws])) for key in draws[0].scores},
            shares=np.mean(shares, axis=0).tolist() if shares else [],
            nfe=nfe(model, model.sampler),
            samples=len(seeds),
            diverged=sum(draw.diverged for draw in draws),
            rows=[json.dumps(row) for i, part in enumerate(parts) for row in draws[i].described(part, draw=i)],
        )

    def features(self, model: Model, count: int) -> np.ndarray:
        """Features (n, D) of ``count`` samples that a strength is chosen by, and that judge nothing."""
        judge, batch = self.judge, self.options.batch_size
        seeds = seed_range("selection", self.seed, count)
        folder = self.run.artefact("selection", model.hash, to_dict(model.sampler), judge.key, batch)
        draws = draw_and_measure(
            self.run,
            folder,
            [seeds],
            lambda part: sampled(model, part, batch_size=batch),
            lambda samples: judge.only_features(samples.x),
            Draw,
            lambda count: None,
        )
        return draws[0].features

    def pictures(self, model: Model) -> np.ndarray:
        """The samples that are shown, uint8 (n, H, W, C), of the same seeds for every model of the repeat."""
        seeds = seed_range("figures", self.seed, GRID)
        x, _ = finite(model.sample(seeds, batch_size=GRID))
        return model.codec.to_images(x)

    def forget(self) -> None:
        """Remove what no later generation needs: states to resume finished trainings from."""
        if self.run.is_main:
            folder = self.run.path / "artefacts"
            for state in folder.glob("*/state.safetensors"):
                if (state.parent / "done.json").is_file():
                    state.unlink()
        self.run.barrier()
