"""What tensors do not say, and what is taken for it: options, plain values in the file, or what is usual."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeVar

from torch import Tensor

from sims.config import JSON
from sims.errors import UserError
from sims.interop.state_dicts import Content
from sims.model import Model

T = TypeVar("T", int, str, float)


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What a checkpoint of tensors does not say of its network; what is usual is taken, and named, if not given."""

    prediction: str | None = None
    """What the network gives: eps, v, x0, score, velocity, edm, or consistency."""
    schedule: str | None = None
    """The noise that it was trained with, and arguments: linear, cosine:steps=4000,scale=0.25, rectified_flow:data_at=1."""  # noqa: E501
    size: int | None = None
    """Height and width of its images (or latents)."""
    heads: int | None = None
    """Heads of its attention."""
    head_channels: int | None = None
    """Channels of each head, where their number follows from the width."""
    attention_order: Literal["legacy", "new"] | None = None
    """Order of q, k and v in guided-diffusion's attention: head by head (legacy), or all q first (new)."""
    num_classes: int | None = None
    """Real classes; a further row in the table of classes stands for "no class"."""
    data_range: tuple[float, ...] = ()
    """Values that it knows black and white by, such as 0,1; -1,1 if not given."""

    def __post_init__(self) -> None:
        if self.data_range and not (len(self.data_range) == 2 and all(map(math.isfinite, self.data_range))):
            raise UserError(f"option 'data_range' is {list(self.data_range)}: give two values, such as 0,1")
        for name in ("size", "heads", "head_channels", "num_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"option '{name}' is {value}: it must be at least 1")


class Reading:
    """The tensors of one network by its own names, those ``beside`` it, and what is told and assumed of them."""

    def __init__(
        self, content: Content, tensors: dict[str, Tensor], beside: dict[str, Tensor], prefix: str, given: Assumptions
    ) -> None:
        self.content, self.tensors, self.beside, self.prefix, self.given = content, tensors, beside, prefix, given
        self.assumed: list[str] = []
        self._asked: set[str] = set()

    @property
    def file(self) -> str:
        """The file's name, in small letters."""
        return self.content.path.name.lower()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; UserError where it is missing."""
        if name not in self.tensors:
            raise UserError(
                f"{self.content.path} lacks the tensor {name!r}: the file is damaged, or of another network"
            )
        return tuple(self.tensors[name].shape)

    def count(self, start: str) -> int:
        """How many numbered modules there are, such as ``blocks.0.``, ``blocks.1.``."""
        found = (re.match(rf"{re.escape(start)}\.(\d+)\.", name) for name in self.tensors)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    def told(self, *names: str) -> JSON:
        """What the file says under one of these names (``args.num_heads`` is one of ``num_heads``); None otherwise."""
        for key, value in self.content.values.items():
            if key.rpartition(".")[2] in names and isinstance(value, int | str | float):
                return value
        return None

    def ask(self, option: str, usual: T, why: str, names: Sequence[str] = ()) -> T:
        """An option's value where it is given, else what the file says under a name, else what is usual, and why."""
        given, told = self.given_for(option), self.told(*names)
        if given is not None:
            return given  # type: ignore[return-value]
        if isinstance(told, int) and isinstance(usual, int) and told < 1:
            raise UserError(
                f"{self.content.path} says that its {option.replace('_', ' ')} is {told}: give option '{option}'"
            )
        if isinstance(told, type(usual)) and not isinstance(told, bool):
            self.assumed.append(
                f"{option.replace('_', ' ')} is {told}: the file says so (option '{option}' changes it)"
            )
            return told
        self.assumed.append(f"assumed {option.replace('_', ' ')} {usual}: {why} (option '{option}' changes it)")
        return usual

    def given_for(self, option: str) -> object:
        """An option's value; None where it is not given."""
        self._asked.add(option)
        return getattr(self.given, option) or None

    def check_all_asked(self, family: str) -> None:
        """UserError for an option that says nothing of this network."""
        for entry in fields(self.given):
            if getattr(self.given, entry.name) not in (None, ()) and entry.name not in self._asked:
                raise UserError(f"option '{entry.name}' says nothing of {family}: leave it out")


def said(model: Model) -> list[str]:
    """What a model of a checkpoint was recognized by, what was chosen of its file, and what was assumed."""
    about = model.provenance
    assumed = about.get("assumed")
    lines = [f"recognized as {about['recognized']}"] if "recognized" in about else []
    lines += [str(about["weights"])] if lines and about.get("weights") else []
    return lines + [str(one) for one in (assumed if isinstance(assumed, list) else [])]
