"""Control: the base trained on, on real data, for as much compute as SIMS spends beyond the base."""

from __future__ import annotations

from dataclasses import dataclass

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.methods.contract import Artefact, Base, Fixed, Method
from sims.methods.guided import replace
from sims.results.common import Look
from sims.runs.directory import Run
from sims.training.loop import Trainer


@dataclass(frozen=True)
class ContinuedSettings:
    """How long to train on."""

    images: int
    """Further training images."""


def _prepare(base: Base, real: Dataset | None, settings: ContinuedSettings, run: Run) -> Artefact:
    if settings.images < 1:
        raise UserError(f"training on for {settings.images} images: at least 1 is needed")
    assert real is not None
    folder = run.artefact("continued", base.key, real.fingerprint, settings.images, to_dict(base.train), base.seed)
    total = base.images + settings.images
    trainer = Trainer(
        base.model,
        real,
        base.train,
        folder,
        images=total,
        seed=base.seed,
        earlier=base.training,
        accelerator=run.accelerator,
    )
    with run.progress("train the base on", total) as advance:
        trained = trainer.run(advance, run.log)
    return Artefact(folder.name, {settings.images: trained.last}, images=settings.images)


CONTINUED = Method(
    "continued",
    "control: the base trained on, on real data",
    Look("Continued training", "#96690a", "#e3b64b", "P"),
    Fixed(1.0),
    _prepare,
    replace,
    needs_real=True,
    prepared_as="continued",
    follows_leader=True,
)
