"""Guidance away from the same network made worse: blocks left out, attention without effect, dropout left on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sims.denoiser import Denoiser, Evaluate, Wrapped, networks_of
from sims.errors import UserError
from sims.guidance.cache import CacheRule
from sims.guidance.correction import CorrectionGuide
from sims.guidance.guide import TWICE, Guide
from sims.networks.perturbation import AttentionIsIdentity, DropoutLeftOn, leave_out, skippable, twin

Way = Literal["blocks", "attention", "dropout"]


@dataclass(frozen=True, eq=False)
class Perturbed(CorrectionGuide, kind="perturbed"):
    """D + w (D - D'), D' the same network made worse for that one pass; nothing is trained.

    way       blocks: some are left out (spatio-temporal skip guidance, arXiv 2411.18664; S^2 guidance, 2508.12880);
              attention: each position attends to itself alone (perturbed-attention guidance, 2403.17377);
              dropout: left on (in-situ autoguidance, 2510.17136)
    blocks    names of the modules to leave out, such as ``blocks_of`` finds them
    at        numbers of the calls of attention that are perturbed, from 0; () = all
    rate      of dropout
    interval  (low, high]: the noise levels at which to guide
    cache     where along a trajectory to recompute the correction; None = everywhere

    The network itself is left alone: D' is of a twin that shares its weights. ``base`` is evaluated twice. Errors:
    UserError where the network has no such blocks, no attention, or no place for dropout.

    >>> import sims
    >>> from sims.guidance import Perturbed, blocks_of
    >>> model = sims.load(EXAMPLE)
    >>> guide = Perturbed(model.denoiser, 0.5, "blocks", blocks=tuple(blocks_of(model.denoiser)[:1]))
    >>> sims.nfe(model.with_denoiser(guide), sims.SamplerOptions(steps=4))
    14
    """

    calls = TWICE

    base: Denoiser
    w: float
    way: Way = "blocks"
    blocks: tuple[str, ...] = ()
    at: tuple[int, ...] = ()
    rate: float = 0.1
    interval: tuple[float, float] = (0.0, math.inf)
    cache: CacheRule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.way not in get_args(Way):
            raise UserError(f"a network is perturbed by one of {', '.join(get_args(Way))}, not by {self.way!r}")
        networks = networks_of(self.base)
        if not networks:
            raise UserError("this denoiser has no network: there is nothing to perturb")
        if self.way == "blocks":
            known = dict(networks[0].named_modules())
            unknown = next((name for name in self.blocks if name not in known), None)
            if unknown is not None or not self.blocks:
                given = "none is named" if unknown is None else f"{unknown!r} is not among its parts"
                raise UserError(f"the network's blocks to leave out: {given}; `blocks_of` names those that it has")
        if self.way == "dropout" and not 0 < self.rate < 1:
            raise UserError(f"the rate of dropout is {self.rate}: it lies between 0 and 1")

    def called(self) -> list[Denoiser]:
        worse = twin(self.base, networks_of(self.base))
        if self.way == "blocks":
            leave_out(networks_of(worse)[0], self.blocks)
            return [self.base, worse]
        return [self.base, _worse(worse, self)]

    def correction(
        self, x: Tensor, sigma: Tensor, labels: Tensor | None, denoised: Tensor, *others: Evaluate
    ) -> Tensor:
        """D - D'."""
        return denoised - others[0](x, sigma, labels)


def _worse(denoiser: Denoiser, rule: Perturbed) -> Denoiser:
    """A twin whose networks are perturbed; where rules make several passes, in each as if it were the only one."""
    if not isinstance(denoiser, Guide):
        return _Worse(denoiser, rule)
    children = {name: _worse(getattr(denoiser, name), rule) for name in denoiser.children}
    return replace(denoiser, **children)  # type: ignore[type-var]


@dataclass(frozen=True, eq=False)
class _Worse(Wrapped):
    """A twin of one network's denoiser, in whose calls functions are replaced."""

    twin: Denoiser
    rule: Perturbed

    @property
    def inside(self) -> Denoiser:
        return self.twin

    @property
    def network(self) -> Any:
        """The twin's, which rules around it ask for classes."""
        return getattr(self.twin, "network", None)

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        return self._called(self.twin, x, sigma, labels)

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        evaluate = self.twin.trajectory(sigmas)
        return lambda x, sigma, labels: self._called(evaluate, x, sigma, labels)

    def _called(self, evaluate: Any, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        rule = self.rule
        mode: AttentionIsIdentity | DropoutLeftOn
        if rule.way == "attention":
            mode = AttentionIsIdentity(rule.at)
        else:
            same = bool((sigma == sigma[0]).all())
            mode = DropoutLeftOn(rule.rate, sigma[:1] if same else sigma)
        with mode:
            denoised: Tensor = evaluate(x, sigma, labels)
        if mode.calls <= max(rule.at, default=0):
            wanted = "self-attention" if rule.way == "attention" else "place for dropout"
            number = f" number {max(rule.at)}" if rule.at else ""
            raise UserError(
                f"this network has no {wanted}{number} that torch's functions compute: perturb it otherwise"
            )
        return denoised


def blocks_of(denoiser: Denoiser) -> list[str]:
    """The names of the blocks of a denoiser's network that can be left out, in order; it is run once."""
    networks = networks_of(denoiser)
    if not networks:
        return []
    worse = twin(denoiser, networks)
    return skippable(networks_of(worse)[0], lambda: _pass(worse))


def attentions_of(denoiser: Denoiser) -> int:
    """How many times one pass of a denoiser attends to its own positions; it is run once."""
    with AttentionIsIdentity() as mode:
        _pass(twin(denoiser, networks_of(denoiser)))
    return mode.calls


def drops(denoiser: Denoiser) -> bool:
    """Whether a denoiser's network has a place for dropout, at whatever rate; it is run once."""
    with DropoutLeftOn(0.5, torch.ones(1)) as mode:
        _pass(twin(denoiser, networks_of(denoiser)))
    return mode.calls > 0


@torch.no_grad()
def _pass(denoiser: Denoiser) -> None:
    """One sample of zeros, at the middle of the noise levels."""
    device = next((weight.device for network in networks_of(denoiser) for weight in network.parameters()), "cpu")
    x = torch.zeros(1, *denoiser.data_shape, device=device)
    level = math.sqrt(denoiser.sigma_min * denoiser.sigma_max)
    sigma = denoiser.round_sigma(torch.full((1,), level, device=device))
    labels = torch.zeros(1, dtype=torch.int64, device=device) if denoiser.num_classes else None
    denoiser(x, sigma, labels)
