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
    """

    @functools.wraps(forward)
    def padded(network: Any, x: Tensor, *more: Any, **named: Any) -> Tensor:
        height, width = x.shape[2:]
        down, right = -height % network.multiple, -width % network.multiple
        if not down and not right:
            return forward(network, x, *more, **named)
        top, left = down // 2, right // 2
        x = F.pad(x, (left, right - left, top, down - top), mode="reflect")
        return forward(network, x, *more, **named)[:, :, top : top + height, left : left + width]

    return padded
