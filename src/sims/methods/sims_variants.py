"""SIMS with another auxiliary: on samples whose synthesis ends early, on guided samples, or from random weights."""

from __future__ import annotations

from dataclasses import replace

from sims.data.dataset import Dataset
from sims.guidance import ClassifierFree
from sims.methods.auxiliary import altered, auxiliary_work, guided_work, prepare_auxiliary, train_auxiliary
from sims.methods.contract import Artefact, Base, Continuous, Method
from sims.methods.distilled import guided_samples
from sims.methods.guided import extrapolate, extrapolate_conditional
from sims.methods.settings import Settings
from sims.results.common import Cost, Look
from sims.runs.directory import Run
from sims.sampling import nfe
from sims.seeds import seed_range


def _prepare_guided(base: Base, real: Dataset | None, settings: Settings, run: Run) -> Artefact:
    leader = settings.leader
    assert leader is not None
    seeds = seed_range("synthesis", settings.seed, settings.auxiliary.samples, settings.round)
    folder, data = guided_samples(base, seeds, settings, run)
    trained = train_auxiliary(base, data, folder.name, settings, run)
    drawn = Cost(evaluations=len(seeds) * nfe(leader.model, leader.model.sampler))
    return replace(trained, cost=trained.cost + drawn + leader.cost)


_prepare_truncated, _truncated_work = altered(lambda options: replace(options, synthesis="truncated"))
_prepare_scratch, _scratch_work = altered(lambda options: replace(options, init="scratch"))

# Self-NPO (arXiv 2505.11777) spares most of the synthesis; a negative model need not see finished samples.
TRUNCATED = Method(
    "sims-truncated",
    "sims, on samples whose synthesis ends early",
    Look("SIMS, truncated synthesis", "#3f7fa8", "#86c1e6", "s"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    _prepare_truncated,
    extrapolate,
    _truncated_work,
    networks=2,
    prepared_as="truncated auxiliary",
    of_text=True,
    default=False,
)
CONDITIONAL = Method(
    "sims-conditional",
    "sims, in the conditional pass alone",
    Look("SIMS, conditional pass", "#4a5ac0", "#98a4f0", "D"),
    Continuous(usual=2.5),
    prepare_auxiliary,
    extrapolate_conditional,
    auxiliary_work,
    networks=2,
    prepared_as="auxiliary",
    fits=lambda base: None if isinstance(base, ClassifierFree) else "its base has no classifier-free guidance",
    of_text=True,
    default=False,
)
GUIDED = Method(
    "sims-guided",
    "sims, on guided samples",
    Look("SIMS, guided samples", "#3a4fb5", "#93a4f5", "^"),
    Continuous(usual=2.5),
    _prepare_guided,
    extrapolate,
    guided_work,
    networks=2,
    prepared_as="guided auxiliary",
    follows_leader=True,
    default=False,
)
SCRATCH = Method(
    "sims-scratch",
    "sims, its auxiliary from random weights",
    Look("SIMS, from scratch", "#4a6b8f", "#9db9d6", "v"),
    Continuous(start=(0.25, 0.5, 1.0), usual=0.5),
    _prepare_scratch,
    extrapolate,
    _scratch_work,
    networks=2,
    prepared_as="auxiliary from scratch",
    default=False,
)
