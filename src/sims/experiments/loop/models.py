"""What a generation is made of: its base, a remedy, what that costs, and how good the result is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.experiments.loop.options import EQUAL, STANDARD, STEPS, CommonOptions
from sims.files import read_json, write_json
from sims.methods import METHODS, Artefact, Base
from sims.methods.auxiliary import Settings
from sims.methods.continued import train_on
from sims.metrics.per_class import class_shares
from sims.model import Model, load
from sims.runs.directory import Run
from sims.runs.synthesize import synthesize
from sims.sampling import nfe
from sims.scoring.judge import Judge
from sims.seeds import derive_seed, seed_range
from sims.training.base import new_model
from sims.training.loop import Trained, Trainer, read_trained

GRID = 64  # samples shown of every model


@dataclass(frozen=True)
class Arm:
    """One side of a comparison: a remedy and, where it has one, a strength."""

    name: str
    remedy: str
    w: float = 0.0

    @property
    def method(self) -> str:
        """The method that it is, as METHODS has it."""
        return {STANDARD: "base", STEPS: "base", EQUAL: "continued"}.get(self.remedy, self.remedy)


@dataclass(frozen=True)
class Cost:
    """Compute: images that networks were trained on, and network evaluations besides (three are worth one image)."""

    images: int = 0
    evaluations: int = 0

    @property
    def total(self) -> int:
        """All of it in training images."""
        return self.images + self.evaluations // 3

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.images + other.images, self.evaluations + other.evaluations)

    def to_json(self) -> dict[str, int]:
        return {"training_images": self.images, "evaluations": self.evaluations, "total": self.total}


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

    def __init__(self, run: Run, options: CommonOptions, judge: Judge, seed: int) -> None:
        self.run, self.options, self.judge, self.seed = run, options, judge, seed

    def base(self, data: Dataset, generation: int, start: Model | None = None) -> Base:
        """The model of one generation: trained on this data from scratch, or from the weights of ``start``."""
        options, run = self.options, self.run
        seed = derive_seed("generation", self.seed, generation)
        images, train = options.base.images, options.base.train
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
        return self.opened(trained, folder, seed)

    def opened(self, trained: Trained, folder: Path, seed: int) -> Base:
        """A finished training as the base of a method."""
        model = load(trained.last, self.run.device)
        earlier = {budget: path for budget, path in trained.snapshots.items() if budget < trained.images}
        return Base(model, model.hash, earlier, folder, trained.images, seed, self.options.base.train)

    def extra(self, base: Base, passed_on: int) -> Cost:
        """What sims costs beyond standard training: own samples, the auxiliary, and ``passed_on`` guided samples.

        Guided samples cost the base's evaluations a second time.
        """
        auxiliary = self.options.auxiliary
        return Cost(auxiliary.budgets[0], (auxiliary.samples + passed_on) * nfe(base.model, base.model.sampler))

    def artefact(self, method: str, base: Base, generation: int) -> Artefact:
        """What a guided method needs, prepared from the base's own samples; no real data takes part."""
        settings = Settings(self.options.auxiliary, self.seed, generation, self.options.batch_size)
        found = METHODS[method].prepare(base, None, settings, self.run)
        assert found is not None
        return found

    def guided(self, method: str, base: Base, artefact: Artefact, w: float) -> Model:
        """The base with a method at strength w."""
        auxiliary = artefact.load(min(artefact.variants), self.run.device)
        denoiser = METHODS[method].build(base.model, auxiliary, w)
        return base.model.with_denoiser(denoiser, method=method, w=w)

    def made(self, arm: Arm, base: Base, data: Dataset, generation: int, passed_on: int) -> Made:
        """The model of an arm, ``passed_on`` guided samples of which go to the next generation."""
        assert base.training is not None
        spent, weights = Cost(base.images), read_trained(base.training)
        assert weights is not None
        if arm.remedy == STANDARD:
            return Made(base.model, spent, weights.last)
        if arm.remedy == EQUAL:
            more = self.extra(base, passed_on).total
            trained = train_on(base, data, more, self.run)
            return Made(trained.load(more, self.run.device), spent + Cost(more), trained.variants[more])
        artefact = self.artefact(arm.method, base, generation)
        model = self.guided(arm.method, base, artefact, arm.w)
        return Made(model, spent + Cost(artefact.images, artefact.evaluations), weights.last)

    def passed_on(self, model: Model, arm: Arm, generation: int, count: int, w: float) -> Path:
        """The store of the samples that a generation passes on. Their seeds are used for nothing else."""
        seeds = seed_range("distillation", self.seed, count, generation)
        sampler, size = to_dict(model.sampler), self.options.batch_size
        folder = self.run.artefact("passed-on", model.hash, sampler, [seeds.start, seeds.stop], size, w)
        with self.run.progress(f"samples of generation {generation}", count) as advance:
            synthesize(
                model, folder, seeds, method=arm.method if w else "base", w=w, batch_size=size,
                accelerator=self.run.accelerator, advance=advance,
            )  # fmt: skip
        return folder

    def samples(self, model: Model, seeds: range) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Samples rounded to the data's own format, and labels; what diverges is a bad sample, not an error."""
        x, labels = model.sample_labelled(seeds, batch_size=self.options.batch_size)
        return model.codec.encode(model.codec.decode(x.nan_to_num(0.0, 1e3, -1e3))), labels

    def measure(self, model: Model, generation: int, name: str) -> dict[str, Any]:
        """Every figure of a model (the mean over its draws), the recognized classes' shares, and its sampling cost.

        ``rows`` say of every single figure what it was measured with.
        The draws are shared out over the processes, and no other purpose uses their seeds.
        """
        options, run, size = self.options.evaluation, self.run, self.options.evaluation.samples
        seeds = seed_range("evaluation", self.seed, options.draws * size, generation)
        parts = [seeds[first : first + size] for first in range(0, len(seeds), size)]
        folder = run.artefact("scores", model.hash, to_dict(model.sampler), self.judge.key, self.options.batch_size)

        def file(part: range) -> Path:
            return folder / f"{part.start}-{part.stop}.json"

        def work(part: range) -> None:
            draw = self.judge.measure(*self.samples(model, part))
            draw = replace(draw, scores=self.judge.scores(draw))
            count = getattr(self.judge.extractor, "num_classes", 0)
            shares = [] if draw.predicted is None else class_shares(draw.predicted, count).tolist()
            rows = self.judge.rows(draw, part, draw=parts.index(part))
            write_json(file(part), {"figures": draw.scores, "shares": shares, "rows": rows})
            advance(len(part) * run.num_processes)

        with run.progress(f"measure {name}", len(seeds)) as advance:
            run.spread(parts, file, work)
        found = [read_json(file(part)) for part in parts]
        figures = {key: float(np.mean([entry["figures"][key] for entry in found])) for key in found[0]["figures"]}
        shares = np.mean([entry["shares"] for entry in found], axis=0).tolist()
        rows = [row for entry in found for row in entry["rows"]]
        return {"figures": figures, "shares": shares, "nfe": nfe(model, model.sampler), "rows": rows}

    def pictures(self, model: Model) -> np.ndarray:
        """The samples that are shown, uint8 (n, H, W, C), of the same seeds for every model of the repeat."""
        seeds = seed_range("figures", self.seed, GRID)
        return model.codec.to_images(model.sample(seeds, batch_size=GRID))

    def forget(self) -> None:
        """Remove what no later generation needs: states to resume finished trainings from."""
        if self.run.is_main:
            folder = self.run.path / "artefacts"
            for state in folder.glob("*/state.safetensors"):
                if (state.parent / "done.json").is_file():
                    state.unlink()
        self.run.barrier()
