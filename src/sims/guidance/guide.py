"""What every rule of guidance is: a denoiser made of others, with one estimate, and settings that a file can hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self, SupportsFloat

from torch import Tensor, nn

from sims.config import JSON
from sims.denoiser import Denoiser, Evaluate, Wrapped, compile_networks, networks_of
from sims.errors import UserError

TWICE = ("base", "base")  # what a rule calls that needs nothing but the base
RULES: dict[str, type[Guide]] = {}
"""The rules that can be stored, by the kind that ``model.json`` names."""


class Guide(Wrapped):
    """A denoiser made of others: shape, classes and levels are the base's, and w = 0 is the base bit for bit.

    A rule is a frozen dataclass with its ``children`` and its settings as fields, and ``estimate`` says what it
    computes. Naming its ``kind`` registers it: then models that hold it can be saved, loaded, hashed and inspected.

    >>> from dataclasses import dataclass
    >>> import sims
    >>> from sims.guidance import Guide
    >>> @dataclass(frozen=True, eq=False)
    ... class Sharpened(Guide):  # to store it: class Sharpened(Guide, kind="sharpened")
    ...     base: sims.Denoiser
    ...     w: float
    ...
    ...     def estimate(self, x, sigma, labels, base):
    ...         denoised = base(x, sigma, labels)
    ...         return denoised + self.w * (denoised - x)
    >>> model = sims.load(EXAMPLE)
    >>> model.with_denoiser(Sharpened(model.denoiser, w=0.1)).sample(seeds=range(4)).shape
    torch.Size([4, 1, 8, 8])

    Raises UserError if w is not finite, or the children differ in shape or classes.
    """

    kind: ClassVar[str] = ""
    children: ClassVar[tuple[str, ...]] = ("base",)
    """The fields that hold denoisers, the base first."""
    calls: ClassVar[tuple[str, ...]] = ()
    """The denoisers that an estimate evaluates, one after the other; the children, where it is not said."""
    guides_outputs: ClassVar[bool] = False
    """Whether it is D_base + w (D_base - D_aux), so that two networks of one parameterization can be guided in a
    sampling loop of another library."""
    of_trajectory: ClassVar[bool] = False
    """Whether it lives on what a trajectory remembers, so that a single estimate is the base's."""

    if TYPE_CHECKING:  # fields of the rule

        @property
        def base(self) -> Denoiser: ...
        @property
        def w(self) -> float: ...

    def __init_subclass__(cls, kind: str | None = None, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "calls" not in cls.__dict__:
            cls.calls = cls.children
        if kind is not None:
            cls.kind = kind
            RULES[kind] = cls

    def __post_init__(self) -> None:
        if not isinstance(self.w, SupportsFloat) or not math.isfinite(self.w):
            raise UserError(f"the guidance strength w must be a finite number; got {self.w!r}")
        object.__setattr__(self, "w", float(self.w))
        base = self.base
        for name in self.children[1:]:
            other = getattr(self, name)
            if tuple(base.data_shape) != tuple(other.data_shape):
                raise UserError(f"base and {name} differ in shape: {base.data_shape} and {other.data_shape}")
            if other.num_classes not in (0, base.num_classes):
                raise UserError(f"base and {name} differ in classes: {base.num_classes} and {other.num_classes}")

    def estimate(self, x: Tensor, sigma: Tensor, labels: Tensor | None, base: Evaluate, *others: Evaluate) -> Tensor:
        """The guided estimate, like x; ``base`` and ``others`` evaluate what it ``calls``."""
        raise NotImplementedError

    def unguided(self, base: Evaluate) -> Evaluate:
        """What w = 0 is: the base, whose labels are the rule's own."""
        return base

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """Denoise x (B, *data_shape) at sigma (B,), each sample at its own level; labels (B,) or None."""
        if self.w == 0:
            return self.unguided(self.base)(x, sigma, labels)
        return self.estimate(x, sigma, labels, *self.evaluators())

    def trajectory(self, sigmas: Tensor) -> Evaluate:
        """An evaluator for one run over these levels, made of the children's own."""
        if self.w == 0:
            return self.unguided(self.base.trajectory(sigmas))
        evaluators = self.evaluators(sigmas)
        return lambda x, sigma, labels: self.estimate(x, sigma, labels, *evaluators)

    def evaluations(self, sigmas: Tensor) -> int:
        """Network evaluations per sample: every call at every level."""
        return sum(child.evaluations(sigmas) for child in self.counted()[: 1 if self.w == 0 else None])

    def counted(self) -> list[Denoiser]:
        """What evaluates as much as what it ``calls``."""
        return [getattr(self, name) for name in self.calls]

    def evaluators(self, *levels: Tensor) -> list[Evaluate]:
        """What is called as it is, or for runs over these levels: the base's, the others' (the last given)."""
        made = []
        for index, child in enumerate(self.called()):
            evaluate = child.trajectory(levels[min(index, len(levels) - 1)]) if levels else child
            made.append(evaluate if index == 0 or child.num_classes > 0 else _without_labels(evaluate))
        return made

    def called(self) -> list[Denoiser]:
        """What it ``calls``."""
        return self.counted()

    @property
    def inside(self) -> Denoiser:
        return self.base

    @property
    def networks(self) -> list[nn.Module]:
        return [network for name in self.children for network in networks_of(getattr(self, name))]

    def compile_networks(self, graphs: bool = False) -> None:
        """Let torch compile the networks of all children."""
        for name in self.children:
            compile_networks(getattr(self, name), graphs)

    def with_strength(self, w: float) -> Self:
        """The same rule at another strength; 0 = the base."""
        return dataclasses.replace(self, w=w)  # type: ignore[type-var]

    def limited(self, interval: tuple[float, float]) -> Self:
        """The same rule at the noise levels in (low, high] alone, if it has an interval."""
        return self

    def settings(self) -> dict[str, JSON]:
        """All but the children, as ``model.json`` keeps it."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        return {name: value for name, value in values.items() if name not in self.children}

    @classmethod
    def from_settings(cls, children: Mapping[str, Denoiser], settings: Mapping[str, Any]) -> Self:
        """The inverse of ``settings``; other keys are passed over. Raises KeyError for one that is missing."""
        names = [field.name for field in dataclasses.fields(cls) if field.name not in children]  # type: ignore[arg-type]
        values = {name: settings[name] for name in names}
        return cls(**children, **{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})

    def fingerprint(self) -> JSON:
        """What of the settings goes into a model's hash."""
        return self.settings()

    def describe(self) -> dict[str, str]:
        """What to say of it, line by line."""
        summary = (type(self).__doc__ or self.kind).splitlines()[0]
        return {"kind": f"{self.kind}: {summary}", **{name: str(value) for name, value in self.settings().items()}}


def innermost(denoiser: Any) -> Any:
    """The base of the base, and so on: a denoiser that guides nothing."""
    return innermost(denoiser.base) if isinstance(denoiser, Guide) else denoiser


def around(rule: Any, inner: Denoiser) -> Denoiser:
    """The rules around a denoiser that call nothing but it, such as classifier-free guidance, around another one."""
    if not isinstance(rule, Guide):
        return inner
    return dataclasses.replace(rule, base=around(rule.base, inner))  # type: ignore[type-var]


def limited(denoiser: Denoiser, base: Denoiser, interval: tuple[float, float]) -> Denoiser:
    """All rules that guide a base, at noise levels in (low, high] alone; one that is the base's own stays as it is."""
    if not isinstance(denoiser, Guide) or isinstance(denoiser, type(base)):
        return denoiser
    inner = limited(denoiser.base, base, interval)
    return dataclasses.replace(denoiser, base=inner).limited(interval)  # type: ignore[type-var]


def of_trajectory(denoiser: Any) -> bool:
    """Whether an estimate needs what a trajectory remembers: a single one is then another."""
    if not isinstance(denoiser, Guide) or denoiser.w == 0:
        return False
    return denoiser.of_trajectory or any(of_trajectory(getattr(denoiser, name)) for name in denoiser.children)


def _without_labels(evaluate: Evaluate) -> Evaluate:
    """An auxiliary without classes is given no labels."""
    return lambda x, sigma, labels: evaluate(x, sigma, None)
