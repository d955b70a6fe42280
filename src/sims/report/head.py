"""The head of the page: the verdict, in the words that the figures allow and no stronger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sims.report.blocks import Drawn, Fact, Images
from sims.report.numbers import count, duration, sentence
from sims.results.common import Result

POINTS = (2,)  # the shape of points in the plane


@dataclass(frozen=True)
class Opening:
    """What is seen first: one plain sentence (empty: the headline is it), and a picture where there is any."""

    sentence: str
    picture: Images | Drawn | None = None


@dataclass(frozen=True, kw_only=True)
class Head:
    """What stands above the sections; ``convincing``: the interval beside the big figure shows what is claimed."""

    title: str
    data: str
    headline: str
    warnings: Sequence[str] = ()
    big: str = ""
    big_label: str = ""
    big_interval: str = ""
    convincing: bool = False
    verdict: str = ""
    facts: Sequence[Fact] = ()
    verified: bool = True
    opening: Opening = Opening("")

    @classmethod
    def of(cls, result: Result, diverged: Sequence[str], said: Sequence[str] | None = None, **more: Any) -> Self:
        """The head of a result: its warnings, or as they are ``said``, and one wherever samples diverged."""
        said = [sentence(text) for text in (*(result.warnings if said is None else said), *diverged)]
        known = {"title": result.title, "data": data_text(result), "headline": result.headline.replace(" -> ", " → ")}
        return cls(**{**known, "warnings": said, **more})


def data_text(result: Result) -> str:
    """What the run was about: data, shape, classes, time."""
    data = result.data
    if data.shape == POINTS:
        return f"{data.name} · {count(data.num_train)} real points in two dimensions"
    parts = [data.name]
    if data.num_train:
        test = f" + {count(data.num_test)} test" if data.num_test else ""
        parts.append(f"{count(data.num_train)} training{test} images")
    if data.shape:
        parts.append("×".join(str(side) for side in (*data.shape[1:], data.shape[0])))
    if data.num_classes:
        parts.append(f"{data.num_classes} classes, {'class-conditional' if data.conditional else 'unconditional'}")
    if result.reproduction.seconds:
        parts.append(f"ran {duration(result.reproduction.seconds)}")
    return " · ".join(parts)
