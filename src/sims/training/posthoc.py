"""Weight averages of any width, chosen after training: snapshots of a few averages, and what they combine to.

Karras et al. 2024 (EDM2), section 3.2 and appendix C.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sims.checksum import checksum
from sims.config import fitted
from sims.denoiser import Denoiser
from sims.errors import UserError
from sims.files import atomic_path, parse_json
from sims.model import Model, load
from sims.training.ema import PowerEMA, power_exponent

WORST = 0.5  # share of the wanted profile that may be missed before a reconstruction is refused


@dataclass(frozen=True)
class Stored:
    """Averages stored at one time: their file, the images seen by then, and their widths."""

    file: Path
    seen: int
    sigma_rel: tuple[float, ...]
    crc32: str | None = None  # an older version wrote none


def begin(folder: Path, earlier: Path | None) -> None:
    """Make place for the averages of a new run: none, or those of the ``earlier`` run that it continues."""
    shutil.rmtree(folder / "averages", ignore_errors=True)
    for file in sorted((earlier / "averages").glob("*.safetensors")) if earlier else ():
        (folder / "averages").mkdir(exist_ok=True)
        copy = folder / "averages" / file.name
        try:
            os.link(file, copy)
        except OSError:  # another device, or a file system without links
            shutil.copyfile(file, copy)


def store(folder: Path, ema: PowerEMA, averages: Sequence[nn.Module]) -> None:
    """Write the averages of ``ema`` as they are now to ``folder/averages``, named by the images seen."""
    tensors = {
        f"{index}.{name}": parameter.detach().cpu().contiguous()
        for index, average in enumerate(averages)
        for name, parameter in average.named_parameters()
    }
    about = {"seen": ema.seen, "sigma_rel": list(ema.sigma_rel)}
    with atomic_path(folder / "averages" / f"{ema.seen:012d}.safetensors") as temporary:
        told = {**about, "crc32": checksum(tensors, about)}
        save_file(tensors, temporary, metadata={"averages": json.dumps(told)})


def stored_averages(folder: Path | str) -> list[Stored]:
    """What a training folder holds, by time. Errors: UserError for a truncated file."""
    found = []
    for file in sorted((Path(folder) / "averages").glob("*.safetensors")):
        if file.name.startswith("."):  # the rest of a killed process
            continue
        try:
            with safe_open(file, framework="pt") as opened:
                about = {"file": file, **parse_json(opened.metadata()["averages"], "its header")}
            found.append(fitted(about, Stored, "its header"))
        except (SafetensorError, KeyError, TypeError, OSError, UserError) as error:
            raise UserError(f"the averages {file} cannot be read ({error}): delete the file, others may do") from None
    return sorted(found, key=lambda stored: stored.seen)


def inner_products(t1: np.ndarray, gamma1: np.ndarray, t2: np.ndarray, gamma2: np.ndarray) -> np.ndarray:
    """Integrals of p1 p2 over time, p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t]; arrays broadcast."""
    t = np.minimum(t1, t2)
    powers = (t / t1) ** gamma1 * (t / t2) ** gamma2
    return (gamma1 + 1) * (gamma2 + 1) / (gamma1 + gamma2 + 1) * powers * t / (t1 * t2)


def combination(times: np.ndarray, gammas: np.ndarray, time: float, gamma: float) -> tuple[np.ndarray, float]:
    """The weights of stored averages that come nearest to a wanted one, and how much of its profile they miss.

    Stored profiles (times, gammas), (N,) each; wanted profile (time, gamma). Least squares between profiles in
    float64, as in Karras et al. 2024, appendix C, with one condition more: the weights (N,) sum to 1, so that what
    all stored averages agree on is kept. The miss is relative to the norm of the wanted profile.
    """
    norms = np.sqrt(inner_products(times, gammas, times, gammas))
    norm = float(np.sqrt(inner_products(time, gamma, time, gamma)))  # type: ignore[arg-type]
    gram = inner_products(times[:, None], gammas[:, None], times[None], gammas[None]) / np.outer(norms, norms)
    wanted = inner_products(times, gammas, time, gamma) / (norms * norm)  # type: ignore[arg-type]
    masses = norm / norms  # of the normalized profiles
    # The stationary point of the Lagrangian: gram y + masses * lambda = wanted, masses y = 1.
    system = np.block([[gram, masses[:, None]], [masses[None], np.zeros((1, 1))]])
    y = np.linalg.lstsq(system, np.append(wanted, 1.0), rcond=None)[0][:-1]
    miss = 1 - 2 * y @ wanted + y @ gram @ y
    return y * masses, float(np.sqrt(max(miss, 0.0)))


def reconstruct(folder: Path | str, sigma_rel: float, images: int | None = None) -> Model:
    """The model whose weights are averaged with relative width ``sigma_rel`` up to ``images`` seen.

    ``folder`` is a training folder whose run had ``ema = "power"``; without ``images``, the last time stored. Widths
    between the tracked ones, and times that were stored, come out best; ``provenance["ema"]`` says how much of the
    profile is missed. Errors: UserError for a width outside 0 ... 0.2887, a folder without averages, or a profile that
    the stored averages cannot give.

    >>> import sims
    >>> small = {"width": 16, "blocks": 1, "embedding": 16}
    >>> base = {"images": 1600, "train": {"batch": 32, "ema": "power"}}
    >>> model = sims.train(FOLDER + "/power", network=small, base=base, sampler={"steps": 5}, quiet=True)
    >>> sims.reconstruct(FOLDER + "/power/training", sigma_rel=0.08).sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])
    """
    gamma = power_exponent(sigma_rel)
    stored = stored_averages(folder)
    if not stored:
        raise UserError(f"{folder} holds no averages: train with ema = power, which stores them")
    time = stored[-1].seen if images is None else images
    if not stored[0].seen <= time <= stored[-1].seen:
        raise UserError(
            f"an average at {time:,} images: {folder} has stored some from {stored[0].seen:,} to {stored[-1].seen:,}, "
            "choose a time between"
        )
    enough = next(index for index, entry in enumerate(stored) if entry.seen >= time)
    stored = stored[: enough + 1]  # later ones add little but noise
    times = np.array([entry.seen for entry in stored for _ in entry.sigma_rel], dtype=np.float64)
    gammas = np.array([power_exponent(width) for entry in stored for width in entry.sigma_rel])
    weights, miss = combination(times, gammas, time, gamma)
    if miss > WORST:
        raise UserError(
            f"an average of width {sigma_rel:g} at {time:,} images misses {miss:.0%} of its profile (at most "
            f"{WORST:.0%}): choose a larger width, or a time that was stored, such as {stored[-1].seen:,}"
        )
    model = load(_any_snapshot(Path(folder)))
    network = cast(nn.Module, model.denoiser)
    total = _combined(stored, weights, network)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(total[name])
    about = {"sigma_rel": sigma_rel, "missed": miss, "averages": len(weights)}
    return model.with_denoiser(cast(Denoiser, network), images=time, ema=about)


def _combined(stored: list[Stored], weights: np.ndarray, network: nn.Module) -> dict[str, Tensor]:
    """Sum of weights times stored parameters, in float64; one file is open at a time."""
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in network.named_parameters()}
    remaining = iter(weights.tolist())
    for entry in stored:
        tensors = load_file(entry.file)
        if entry.crc32 not in (None, checksum(tensors, {"seen": entry.seen, "sigma_rel": list(entry.sigma_rel)})):
            raise UserError(f"the averages {entry.file} do not have their checksum: delete the file, others may do")
        for index in range(len(entry.sigma_rel)):
            weight = next(remaining)
            for name, value in total.items():
                value.add_(tensors[f"{index}.{name}"].double(), alpha=weight)
    return total


def _any_snapshot(folder: Path) -> Path:
    """A model of the run, for everything but its parameters: the last that was kept."""
    kept = sorted(path.parent for path in (folder / "snapshots").glob("*/model.json"))
    if not kept:
        raise UserError(
            f"{folder} has averages but no model yet: let the training finish, or ask for snapshots on the way"
        )
    return kept[-1]
