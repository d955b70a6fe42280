"""What was found of an adapter: how well a network denoises real pictures, and whether another reading fits better."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LevelError:
    """Mean squared error at a noise level, in units of the data's variance; all in model space.

    network   of the model's estimate
    linear    of the best linear denoiser (the Wiener filter of the data's covariance)
    nearest   of the posterior mean over other pictures of the data
    """

    sigma: float
    network: float
    linear: float
    nearest: float


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another reading of the network: what to write, how many times smaller its error is (mean over levels)."""

    words: str
    times: float


@dataclass(frozen=True, kw_only=True)
class AdapterCheck:
    """Whether a network is read rightly.

    levels     the errors, by noise level
    better     what fits better than the model as it is, the best first; empty where nothing does
    swapped    class of the model -> class of the data that its label draws, where these differ
    problems   what is likely wrong, in sentences; empty = right
    remarks    what else is to be said
    """

    model: str
    data: str
    num_images: int
    levels: tuple[LevelError, ...]
    better: tuple[Alternative, ...] = ()
    swapped: dict[str, str] | None = None
    problems: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
