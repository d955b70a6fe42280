"""The learning rate of a training within a run: as asked for, or found by a probe and kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from sims.config import convert, to_dict
from sims.data.dataset import Dataset
from sims.denoiser import Denoiser
from sims.model import Model
from sims.preconditioning import EDM_LEVELS
from sims.runs.directory import Run
from sims.sampling import FEW, nfe
from sims.training.options import TrainOptions
from sims.training.probe import Probe, is_foreign, is_probed, most_images, probe_rate


@dataclass(frozen=True)
class Rated:
    """Options that have a learning rate; where a probe found it, what is to be said and the images that it took."""

    options: TrainOptions
    said: str = ""
    images: int = 0


def with_rate(
    start: Model,
    data: Callable[[], Dataset],
    data_key: str,
    options: TrainOptions,
    seed: int,
    run: Run,
    teacher: Denoiser | None = None,
) -> Rated:
    """Options to train a model further with: a network that was not trained here gets no rate that was not tried on it.

    A generator of a few evaluations is trained along its schedule, since it is evaluated nowhere but at a few levels.
    ``data_key`` stands for the data, and for the teacher where there is one.
    """
    levels = (options.p_mean, options.p_std)
    if is_foreign(start) and levels == EDM_LEVELS and nfe(start, start.sampler) <= FEW:
        options = replace(options, levels="schedule")
    if not is_probed(start, options):
        return Rated(options)
    decay, options = options.weight_decay, replace(options, weight_decay=0.0)  # which is not there to lower the loss
    file = run.artefact("rate", start.hash, data_key, to_dict(options), seed) / "probe.json"

    def probed() -> object:
        with run.progress("find a learning rate", most_images(options)) as advance:
            found = probe_rate(
                start, data(), options, seed, teacher=teacher, accelerator=run.accelerator, advance=advance
            )
        run.log(found.said())
        return to_dict(found)

    found: Probe = convert(run.once(file, probed, together=True), Probe, str(file), "entry")
    note = f"learning rate {found.rate:g}, found by a probe"
    return Rated(replace(options, lr=found.rate, weight_decay=decay), note, found.images)
