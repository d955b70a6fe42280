"""Some replicas of a loop in two dimensions, all arms side by side: every generation trained and sampled at once.

Slice ``a * R + r`` of a batched network is arm a of replica r. Replica r starts from the same weights, and has the same
real points, training noise and sampling noise, in every arm, so that arms differ by nothing but what they do. None of
it depends on which other replicas run beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sims.config import read_as
from sims.data.codec import Codec
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.experiments.loop.affine import AffineReplicas
from sims.experiments.loop.options import LoopOptions
from sims.experiments.loop.remedies import EQUAL, STEPS, is_guided
from sims.experiments.loop.schedule import Counts, Plan, passed_on, schedule
from sims.experiments.loop.toys import TOYS, ReplicaData, ReplicaNoise, Ruler, Toy, sampling_noise
from sims.files import atomic_path, write_arrays, write_json
from sims.methods import METHODS
from sims.model import Model, load
from sims.networks import MLP, ReplicaMLP
from sims.preconditioning import EDMPrecond, Preconditioned
from sims.results.common import Cost
from sims.results.loop import Arm
from sims.results.summaries import to_json
from sims.sampling import SamplerOptions, nfe, sample
from sims.seeds import derive_seed
from sims.training.trainer import Trainer, TrainOptions, read_trained

UNCLIPPED = 1e9  # a common gradient norm would tie the slices to each other; Adam needs none
SHOWN, SHOWN_REPLICAS = 2_000, 2  # points kept of every generation, for pictures


@dataclass(frozen=True)
class PointGeneration:
    """What a finished generation leaves: arm -> figure -> the value of each replica; arm -> samples that diverged."""

    figures: dict[str, dict[str, list[float]]]
    diverged: dict[str, int]


@dataclass(frozen=True)
class ReplicaGroup:
    """Replicas (by number) of a loop of points, all arms side by side; ``device`` is where the networks are."""

    options: LoopOptions
    folder: Path
    arms: tuple[Arm, ...]
    replicas: tuple[int, ...]
    generations: int
    device: str = "cpu"

    @cached_property
    def toy(self) -> Toy:
        return TOYS[self.options.data.path]()

    @cached_property
    def plan(self) -> Plan:
        return schedule(self.options.kind, self.options.counts, self.generations)

    @property
    def guided(self) -> list[Arm]:
        return [arm for arm in self.arms if is_guided(arm.method)]

    @property
    def equal(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.method == EQUAL]

    @property
    def plain(self) -> list[Arm]:
        return [arm for arm in self.arms if arm.method != EQUAL]

    def run(self, advance: Callable[[int], None] = lambda count: None) -> list[PointGeneration]:
        """Every generation: computed, continued, or read; ``advance`` counts generations."""
        entries = []
        for generation in range(self.generations + 1):
            file = self._folder(generation) / "done.json"
            if not file.is_file():
                self._generation(generation)
            self._forget(generation)
            entries.append(read_as(file, PointGeneration))
            advance(1)
        return entries

    def cost(self, arm: Arm) -> Cost:
        """What one generation of an arm costs before its samples are drawn."""
        options = self.options
        if options.affine:
            return Cost()
        spent = Cost(options.base.length(()))
        if arm.method == EQUAL:
            return spent + Cost(self._extra())
        if not is_guided(arm.method):
            return spent
        return spent + Cost(options.auxiliary.budgets[0], options.auxiliary.samples * self._nfe())

    def evaluations(self, arm: Arm) -> int:
        """Network evaluations of one sample of an arm's model."""
        networks = METHODS[arm.method].networks if is_guided(arm.method) else 1
        return self._nfe(self._sampler(arm)) * networks

    def _sampler(self, arm: Arm) -> SamplerOptions:
        sampler = self.options.sampler
        return replace(sampler, steps=2 * sampler.steps) if arm.method == STEPS else sampler

    def _extra(self) -> int:
        """Images that standard training gets for what sims spends: its auxiliary, own samples, and costlier samples."""
        options = self.options
        passed = max(sum(entry.synthetic.values()) for entry in self.plan[:2])
        return Cost(options.auxiliary.budgets[0], (options.auxiliary.samples + passed) * self._nfe()).total // 3

    def _nfe(self, sampler: SamplerOptions | None = None) -> int:
        network = self.options.network
        anything = AffineReplicas(torch.zeros(2, 1, 2), network.sigma_min, network.sigma_max)
        return nfe(anything, sampler or self.options.sampler)

    # -- one generation ------------------------------------------------------------------------------------------------

    def _generation(self, generation: int) -> None:
        folder = self._folder(generation)
        bases = self._bases(generation)
        improved = self._improved(generation, bases)
        passing = improved if self.options.passed_on == "improved" else bases
        count = passed_on(self.plan, generation)
        if count:
            passed = [self._sample(passing[arm.name], "passed", generation, count) for arm in self.arms]
            with atomic_path(folder / "passed.npy") as temporary, open(temporary, "wb") as file:
                np.save(file, torch.cat(passed, dim=1).numpy())
        figures, diverged, shown = {}, {}, {}
        for arm in self.arms:
            points = self._sample(improved[arm.name], "measured", generation, self.options.evaluation.samples)
            figures[arm.name] = self._measure(points)
            diverged[arm.name] = int((~torch.isfinite(points).all(dim=2)).sum())
            shown[arm.name] = points[:SHOWN, :SHOWN_REPLICAS].numpy()
        write_arrays(folder / "points.npz", shown)
        write_json(folder / "done.json", to_json(PointGeneration(figures, diverged)))

    def _bases(self, generation: int) -> dict[str, Model]:
        """The trained model of every arm."""
        images = self.options.base.length(())
        models = self._trained(generation, "base", self.plain, images)
        return models | self._trained(generation, "equal", self.equal, images + self._extra())

    def _trained(self, generation: int, name: str, arms: list[Arm], images: int) -> dict[str, Model]:
        if not arms:
            return {}

        def start() -> Model:
            if generation == 0 or self.options.start == "scratch":
                return self._new(generation, len(arms))
            return self._load(generation - 1, name)

        def data() -> Tensor:
            return torch.cat([self._data(generation, arm) for arm in arms], dim=1)

        model = self._fit(generation, name, len(arms), start, data, self.options.base.train, images)
        parts = {arm.name: self._part(model, [place]) for place, arm in enumerate(arms)}
        return {arm.name: replace(parts[arm.name], sampler=self._sampler(arm)) for arm in arms}

    def _improved(self, generation: int, bases: dict[str, Model]) -> dict[str, Model]:
        """The models that are measured: a guided arm's base steered away from a fine-tune on its own samples."""
        if not self.guided:
            return bases
        options = self.options.auxiliary

        def start() -> Model:
            if options.init == "scratch":
                return self._new(generation, len(self.guided), "auxiliary")
            base = self._load(generation, "base")
            return self._part(base, [self.plain.index(arm) for arm in self.guided])

        def data() -> Tensor:
            own = [self._sample(bases[arm.name], "own", generation, options.samples) for arm in self.guided]
            return torch.cat(own, dim=1)

        count = len(self.guided)
        auxiliary = self._fit(generation, "auxiliary", count, start, data, options.train, options.budgets[0])
        models = dict(bases)
        for place, arm in enumerate(self.guided):
            base, own = bases[arm.name], self._part(auxiliary, [place])
            models[arm.name] = base.with_denoiser(METHODS[arm.method].build(base, own, arm.w))
        return models

    def _data(self, generation: int, arm: Arm) -> Tensor:
        """The training points (N, R, 2) of an arm."""
        counts: Counts = self.plan[generation]
        parts = [self._real[: counts.real]]
        if counts.fresh:
            parts.append(self._exact(counts.fresh, "fresh", generation))
        place, size = self.arms.index(arm), len(self.replicas)
        for earlier, count in counts.synthetic.items():
            passed = _read(self._folder(earlier) / "passed.npy")
            parts.append(torch.from_numpy(np.array(passed[:count, place * size : (place + 1) * size])))
        return torch.cat(parts)

    @cached_property
    def _real(self) -> Tensor:
        """The fixed real points (n, R, 2)."""
        return self._exact(self.plan[0].real, "real")

    def _exact(self, count: int, *key: object) -> Tensor:
        seed = self.options.seed
        return torch.stack([self.toy.draw(count, seed, *key, replica) for replica in self.replicas], dim=1)

    def _measure(self, points: Tensor) -> dict[str, list[float]]:
        rows = [self._ruler.measure(points[:, index], self._real[:, index]) for index in range(points.shape[1])]
        return {name: [row[name] for row in rows] for name in rows[0]}

    @cached_property
    def _ruler(self) -> Ruler:
        return Ruler(self.toy)

    # -- networks ------------------------------------------------------------------------------------------------------

    def _fit(
        self,
        generation: int,
        name: str,
        arms: int,
        start: Callable[[], Model],
        data: Callable[[], Tensor],
        options: TrainOptions,
        images: int,
    ) -> Model:
        """A model of arms * R slices trained on data() (N, arms * R, 2), found again where it was trained before."""
        if self.options.affine:
            network = self.options.network
            return self._model(AffineReplicas(data(), network.sigma_min, network.sigma_max))
        folder = self._folder(generation) / name
        if read_trained(folder) is None:
            seed = derive_seed("auxiliary" if name == "auxiliary" else "base", self.options.seed, generation)
            noise = ReplicaNoise(seed, self.replicas, arms)
            options = replace(options, clip=UNCLIPPED)
            trainer = Trainer(start(), ReplicaData(data()), options, folder, images=images, seed=seed, noise=noise)
            trainer.run()
        return self._load(generation, name)

    def _load(self, generation: int, name: str) -> Model:
        trained = read_trained(self._folder(generation) / name)
        assert trained is not None
        return load(trained.last, self.device)

    def _new(self, generation: int, arms: int, purpose: str = "weights") -> Model:
        """Newly drawn weights, a replica's the same in every arm."""
        network = self.options.network.settled((2,))
        assert network.width is not None and network.blocks is not None
        sizes = {"width": network.width, "blocks": network.blocks, "embedding": network.embedding}
        singles = []
        with torch.random.fork_rng(devices=[]):
            for replica in self.replicas:
                torch.manual_seed(derive_seed(purpose, self.options.seed, generation, replica))
                singles.append(MLP((2,), **sizes))
            shape = (arms * len(singles), 2)
            batched = ReplicaMLP(shape, **sizes)
        batched.load(singles * arms)
        sigma_data = network.sigma_data or self.toy.sigma_data
        return self._model(EDMPrecond(batched, shape, 0, sigma_data, network.sigma_min, network.sigma_max))

    def _part(self, model: Model, arms: Sequence[int]) -> Model:
        """The model of some of the arms in a batched one."""
        size = len(self.replicas)
        slices = [arm * size + replica for arm in arms for replica in range(size)]
        whole = model.denoiser
        if isinstance(whole, AffineReplicas):
            return model.with_denoiser(whole.select(slices))
        assert isinstance(whole, Preconditioned) and isinstance(whole.network, ReplicaMLP)
        part = type(whole)(whole.network.select(slices), (len(slices), 2), 0, **whole.config)  # type: ignore[call-arg,arg-type]
        return model.with_denoiser(part.eval().requires_grad_(False))

    def _model(self, denoiser: Denoiser) -> Model:
        return Model(denoiser, Codec("identity", -1e3, 1e3, "float32"), self.options.sampler)

    def _sample(self, model: Model, purpose: str, generation: int, count: int) -> Tensor:
        """Samples (count, R, 2) on the CPU; other purposes and generations have other noise, arms have the same."""
        noise = sampling_noise(self.replicas, count, self.options.seed, purpose, generation)
        sampler = model.sampler
        sigmas = sampler.sigmas(model)
        parts = noise.to(self.device).split(self.options.batch_size)
        return torch.cat([sample(model, part, sigmas, solver=sampler.solver).cpu() for part in parts])

    # -- files ---------------------------------------------------------------------------------------------------------

    def _folder(self, generation: int) -> Path:
        return self.folder / f"{generation:03d}"

    def _forget(self, generation: int) -> None:
        """Remove what no later generation needs, once this one is done."""
        keep = 1 if self.options.start == "continued" else 0  # the last weights
        folder = self._folder(generation)
        shutil.rmtree(folder / "auxiliary", ignore_errors=True)
        for earlier in range(max(0, generation - keep - 1), generation + 1 - keep):
            shutil.rmtree(self._folder(earlier) / "base", ignore_errors=True)
            shutil.rmtree(self._folder(earlier) / "equal", ignore_errors=True)
        needed = {earlier for entry in self.plan[generation + 1 :] for earlier in entry.synthetic}
        for earlier in range(generation):
            if earlier not in needed:
                (self._folder(earlier) / "passed.npy").unlink(missing_ok=True)


def _read(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r")
    except (OSError, ValueError):
        raise UserError(
            f"the samples that a generation passed on ({file}) are missing or damaged: delete {file.parent.parent}, "
            "and the same command computes these replicas again"
        ) from None
