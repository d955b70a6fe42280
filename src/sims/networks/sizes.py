"""Pictures of any height and width for networks that halve their sides, or cut them into patches."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import functional as F


def rounded_up(sides: Sequence[int], multiple: int) -> tuple[int, int]:
    """Height and width, each the next multiple: what a network sees of pictures with these sides."""
    height, width = (side + -side % multiple for side in sides)
    return height, width


def any_size(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The ``forward`` of a network for pictures (B, C, H, W) whose sides are no multiples of its ``multiple``.

    They are continued by their mirror images to the next multiple, as evenly on both ends as it goes (an odd pixel goes
    to the bottom and to the right), and the result is cut to their size again. A mirrored border has the mean and the
    noise level of the picture, which zeros would not: norms over all pixels, and layers that count on unit variance,
    see what they know. A picture of fitting sides is passed on as it is.

    A network with a ``space_to_depth`` p above 1 is given, and gives, each patch of p x p pixels as one pixel of p^2
    times as many channels: (B, p^2 C, H / p, W / p). That is a rotation, so noise stays what it is.
    """

    @functools.wraps(forward)
    def padded(network: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
        height, width = x.shape[2:]
        down, right = -height % network.multiple, -width % network.multiple
        if not down and not right:
            return cut(network, x, *more, **named)
        top, left = down // 2, right // 2
        x = F.pad(x, (left, right - left, top, down - top), mode="reflect")
        return cut(network, x, *more, **named)[:, :, top : top + height, left : left + width]

    def cut(network: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
        patch = getattr(network, "space_to_depth", 1)
        if patch == 1:
            return forward(network, x, *more, **named)
        return F.pixel_shuffle(forward(network, F.pixel_unshuffle(x, patch), *more, **named), patch)

    return padded
