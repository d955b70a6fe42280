"""Arrays and tensors as data sets: their value range is said, never guessed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from sims.data.codec import UINT8, Codec
from sims.data.dataset import Dataset
from sims.data.readers import channels_first
from sims.errors import UserError

ArrayLike = np.ndarray | Tensor


def of_array(
    values: ArrayLike,
    labels: ArrayLike | Sequence[int] | None = None,
    *,
    data_range: tuple[float, float] | None = None,
    class_names: Sequence[str] = (),
    name: str = "array",
) -> Dataset:
    """Images (N, C, H, W), (N, H, W, C) or (N, H, W), or points (N, 2), as a data set.

    ``data_range`` are the values of black and white; uint8 has (0, 255) unless stated, and points have none. Of images
    whose channels could be first or last, those that leave square pictures are. Errors: UserError for other shapes,
    types or values, and for images of another type than uint8 without a range.
    """
    raw = channels_first(_numpy(values), name)
    if raw.dtype.kind not in "fiu" or not np.isfinite(raw).all():
        raise UserError(f"{name} ({raw.dtype}) holds values that are no finite numbers: remove or convert them")
    if raw.dtype not in (np.uint8, np.uint16, np.float32):
        raw = raw.astype(np.float32)
    if raw.ndim == 2:
        raw = raw.astype(np.float32)
        codec = Codec("identity", float(raw.min()), float(max(raw.max(), raw.min() + 1e-6)), "float32")
    elif data_range is not None:
        if len(data_range) != 2:
            raise UserError(f"data_range is {data_range}: give the values of black and white, such as (0, 255)")
        low, high = (float(end) for end in data_range)
        codec = Codec("pixels", low, high, raw.dtype.name)
        if raw.min() < low or raw.max() > high:
            raise UserError(
                f"{name} has values from {raw.min():g} to {raw.max():g}, outside data_range ({low:g}, {high:g}): "
                "clip them, or give the range they have"
            )
    elif raw.dtype == np.uint8:
        codec = UINT8
    else:
        raise UserError(
            f"{name} holds {raw.dtype} images: say which values are black and white, such as data_range=(0, 1) or "
            "data_range=(-1, 1)"
        )
    return Dataset(raw, None if labels is None else _numpy(labels), codec, tuple(class_names), name)


def _numpy(values: ArrayLike | Sequence[int]) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
