"""Direct discriminative optimization: the base itself learns to tell data from its own samples (arXiv 2503.01103).

One network, at the base's sampling cost: its likelihood over that of the base it began as is the discriminator.
"""

from __future__ import annotations

import dataclasses

from sims.config import to_dict
from sims.data.dataset import Dataset
from sims.methods.auxiliary import own_samples, samples_cost, samples_folder, with_samples
from sims.methods.contract import Artefact, Base, Fixed, Method
from sims.methods.guided import replace
from sims.methods.settings import Expected, Settings
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.runs.learning_rate import with_rate
from sims.runs.work import Training, Work, training_work
from sims.seeds import derive_seed
from sims.training.discrimination import DirectLoss, RealAndOwn
from sims.training.options import TrainOptions
from sims.training.trainer import Trainer, read_trained

LOSS = DirectLoss()


def _training(settings: Settings) -> TrainOptions:
    """That of the auxiliary, on images as they are: the frozen network is told of no augmentation."""
    return dataclasses.replace(settings.auxiliary.train, augment=0.0)


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    assert real is not None
    images = max(settings.auxiliary.budgets)
    seed = derive_seed("ddo", settings.seed, settings.round)
    own = samples_folder(base, settings, run)[0].name
    rated = with_rate(base.model, lambda: own_samples(base, settings, run), own, _training(settings), seed, run)
    folder = run.artefact("ddo", base.key, real.fingerprint, own, to_dict(rated.options), to_dict(LOSS), images, seed)
    trained = read_trained(folder)
    if trained is None:
        trainer = Trainer(
            base.model, RealAndOwn(real, own_samples(base, settings, run)), rated.options, folder,
            images=images, seed=seed, teacher=base.model.denoiser, objective=LOSS, accelerator=run.accelerator,
        )  # fmt: skip
        with run.progress("train by discrimination", images) as advance:
            trained = trainer.run(advance, run.log)
    # Every training image costs an evaluation of the frozen base as well.
    cost = samples_cost(base, settings) + Cost(images + rated.images, images)
    return Artefact(folder.name, {images: trained.last}, cost, rated.said)


def _work(expected: Expected) -> Work:
    options = _training(expected.settings)
    images = max(expected.settings.auxiliary.budgets)
    trained = training_work("", Training("auxiliary", options), images + expected.probe(options), leaves="ddo")
    return with_samples(dataclasses.replace(trained, evaluations=images), expected)


DDO = Method(
    "ddo",
    "trained to tell data from its own samples",
    Look("Direct discriminative optimization", "#8c4a2f", "#d99b7c", "D"),
    Fixed(1.0),
    _prepare,
    replace,
    _work,
    needs_real=True,
    prepared_as="ddo",
    budget="only",
    saved=True,
    default=False,
)
