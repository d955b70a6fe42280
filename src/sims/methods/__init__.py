"""Methods: each turns a base model and its own samples into a denoiser. One small file and one line here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sims.methods.autoguidance import AUTOGUIDANCE
from sims.methods.cfg import CFG
from sims.methods.continued import CONTINUED
from sims.methods.contract import Artefact, Base, Continuous, Extra, Fixed, Method
from sims.methods.ddo import DDO
from sims.methods.discriminator import DISCRIMINATOR
from sims.methods.distilled import DISTILLED
from sims.methods.dropout_guidance import DROPOUT_GUIDANCE
from sims.methods.history import HISTORY
from sims.methods.icg import ICG
from sims.methods.light_head import HEAD
from sims.methods.neon import NEON
from sims.methods.pairs import LOOK, PAIR, Alone, paired
from sims.methods.perturbed_attention import PERTURBED_ATTENTION
from sims.methods.placebo import PLACEBO
from sims.methods.rescaled import RESCALED
from sims.methods.self_trained import SELF_TRAINED
from sims.methods.settings import LENGTH, AuxiliarySettings, DistilledOptions, Expected, Leader, Settings
from sims.methods.sims import SIMS
from sims.methods.sims_variants import CONDITIONAL, GUIDED, SCRATCH, TRUNCATED
from sims.methods.skip_layer import SKIP_LAYER
from sims.methods.time_step import TIME_STEP
from sims.methods.unguided import BASE
from sims.methods.weight_decay import WEIGHT_DECAY
from sims.results.common import Look

METHODS: dict[str, Method] = {
    rule.name: rule
    for rule in (
        *(BASE, CONTINUED, PLACEBO, SELF_TRAINED),
        *(RESCALED, HISTORY, TIME_STEP, SKIP_LAYER, PERTURBED_ATTENTION, DROPOUT_GUIDANCE, ICG, CFG),
        *(AUTOGUIDANCE, WEIGHT_DECAY, HEAD, DISCRIMINATOR, DDO),
        *(SIMS, TRUNCATED, CONDITIONAL, GUIDED, SCRATCH, NEON, DISTILLED),
    )
}
LEADER = SIMS  # the headline is about it, and some of the others follow from what it chose
HEIR = DISTILLED  # the best of them in one network: the next round's base
RIVAL = "rival (cached)"  # the best of the others that cost more, at less cost
CACHED, FAST = f"{LEADER.name} (cached)", f"{LEADER.name} (fast)"  # the leader, sampled at less cost
WITHIN = f"{LEADER.name} (within cost)"  # the best at the base's evaluations, where the fast one takes more
TUNED = " (tuned)"  # behind the name of what has the solver and number of steps that suit it best
VARIANTS = {
    CACHED: Look(f"{LEADER.look.title}, cached", "#0b8496", "#45c6d8", "s"),
    FAST: Look(f"{LEADER.look.title}, fast", "#00699e", "#5fb8e8", "p"),
    WITHIN: Look(f"{LEADER.look.title}, within the cost", "#4a4fa3", "#9da2f2", "p"),
    RIVAL: Look("Best rival, cached", "#58703f", "#a7c08c", "s"),
    PAIR: LOOK,
}


def default_methods() -> tuple[str, ...]:
    """The names of the methods that run unless methods are named."""
    return tuple(name for name, method in METHODS.items() if method.default)


def named(names: Iterable[str]) -> tuple[str, ...]:
    """Names of methods, each once, where ``free``, ``default`` and ``all`` stand for several."""
    groups = {
        "all": [*METHODS],
        "default": default_methods(),
        "free": [name for name, method in METHODS.items() if method.is_free],
    }
    return tuple(dict.fromkeys(one for name in names for one in groups.get(name, [name])))


def listed() -> str:
    """A line for every method: its name, what it is, how many evaluations, whether it trains."""
    lines = []
    for name, method in METHODS.items():
        facts = [
            f"{method.networks}x",
            "no training" if method.is_free else "",
            "" if method.default else "not default",
        ]
        lines.append(f"  {name}: {method.summary} ({', '.join(fact for fact in facts if fact)})")
    return "\n".join(["Methods, and the base's evaluations that a sample takes:", *lines])


def looks_of(names: Iterable[str]) -> dict[str, Look]:
    """The look of every method, or variant of one, of these names."""
    return {name: VARIANTS[name] if name in VARIANTS else _look(name) for name in names}


def _look(name: str) -> Look:
    method = name.removesuffix(TUNED)
    look = METHODS[method].look
    return look if method == name else replace(look, title=f"{look.title}, tuned", marker="p")
