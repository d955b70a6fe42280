"""Autoguidance with earlier snapshots of the base's own training as the weak model (Karras et al. 2024, 2406.02507)."""

from __future__ import annotations

from sims.data.dataset import Dataset
from sims.errors import UserError
from sims.methods.contract import Artefact, Base, Continuous, Method
from sims.methods.guided import extrapolate
from sims.methods.settings import Settings
from sims.results.common import Look
from sims.runs.directory import Run


def _prepare(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    if not base.snapshots:
        raise UserError("method 'autoguidance' needs earlier snapshots of the base's training: a given model has none")
    return Artefact(base.key, dict(base.snapshots))


AUTOGUIDANCE = Method(
    "autoguidance",
    "guided away from its earlier self",
    Look("Autoguidance", "#217a3c", "#5cc77f", "v"),
    Continuous(usual=1.25),
    _prepare,
    extrapolate,
    needs_snapshots=True,
    networks=2,
    budget="snapshots",
)
