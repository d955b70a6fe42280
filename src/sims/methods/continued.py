"""Control: the base trained on, on real data, for as much compute as the leading method spends beyond the base."""

from __future__ import annotations

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.methods.contract import Artefact, Base, Fixed, Method
from sims.methods.guided import replace
from sims.methods.settings import Expected, Settings
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.work import Training, Work, training_work
from sims.training.trainer import Trainer


def images_for(cost: Cost) -> int:
    """Further training images for the compute of ``cost``."""
    return max(1, cost.total // 3)


def train_on(base: Base, real: Dataset, images: int, run: Run) -> Artefact:
    """The base trained on for so many images, exactly as if its training had been that much longer."""
    if images < 1:
        raise UserError(f"training on for {images} images: at least 1 is needed")
    rated = with_rate(base.model, lambda: real, real.fingerprint, base.train, base.seed, run)
    folder = run.artefact("continued", base.key, real.fingerprint, images, to_dict(rated.options), base.seed)
    total = base.images + images
    trainer = Trainer(
        base.model, real, rated.options, folder,
        images=total, seed=base.seed, earlier=base.training, accelerator=run.accelerator,
    )  # fmt: skip
    with run.progress("train the base on", total) as advance:
        trained = trainer.run(advance, run.log)
    return Artefact(folder.name, {images: trained.last}, Cost(images + rated.images), rated.said)


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    assert real is not None and settings.leader is not None
    return train_on(base, real, images_for(settings.leader.cost), run)


def _work(expected: Expected) -> Work:
    return training_work("", Training("base", expected.train), images_for(expected.leader), leaves="continued")


CONTINUED = Method(
    "continued",
    "control: the base trained on, on real data",
    Look("Continued training", "#96690a", "#e3b64b", "P"),
    Fixed(1.0),
    _prepare,
    replace,
    _work,
    needs_real=True,
    prepared_as="continued",
    budget="only",
    follows_leader=True,
)
