"""Checked conversion of features to float64 matrices, and Euclidean distances in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError

Array = np.ndarray
WIDE = 256  # features from which on float32 pays
BLOCK_ELEMENTS = 1 << 20  # distances held at once: 8 MiB of float64, which caches hold


def as_matrix(values: Array | Tensor, name: str = "features", minimum: int = 1) -> Array:
    """Flatten rows: (N, ...) -> (N, D) float64, C-ordered; UserError unless N >= minimum and every value is finite."""
    array = values.detach().cpu().double().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    if array.ndim < 2:
        raise UserError(f"{name} have shape {array.shape}; expected one row per sample, (N, D).")
    if len(array) < minimum:
        raise UserError(f"{len(array)} rows of {name}; at least {minimum} are needed: use more samples.")
    array = np.require(array.reshape(len(array), int(np.prod(array.shape[1:]))), requirements=["C", "W"])
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array).all(axis=1)).sum())
        raise UserError(f"{bad} of {len(array)} rows of {name} hold NaN or infinity; remove those samples.")
    return array


def float64_device(device: str | torch.device) -> torch.device:
    """The device itself, or the CPU where it has no float64 (Apple's MPS)."""
    found = torch.device(device)
    return torch.device("cpu") if found.type == "mps" else found


def working_type(*given: Array | Tensor) -> torch.dtype:
    """In what to multiply features (N, D): float32 where all of them are that, and wide; else float64.

    Products of wide features take long, and neighbours in many dimensions lie far enough apart for float32.
    """
    narrow = (str(values.dtype).removeprefix("torch.") == "float32" for values in given)
    return torch.float32 if all(narrow) and given[0].shape[-1] >= WIDE else torch.float64


def same_width(a: Array, b: Array) -> None:
    """Raise UserError unless a (N, D) and b (M, D) have equally many columns."""
    if a.shape[1] != b.shape[1]:
        raise UserError(
            f"Rows of {a.shape[1]} and of {b.shape[1]} numbers cannot be compared; "
            "measure both sides with the same extractor (or at the same image size)."
        )


def distance_blocks(
    a: Array,
    b: Array,
    rows: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances between a (N, D) and b (M, D), some rows of a at a time: yields (rows, (n, M) of dtype).

    Both are shifted by b's mean first, which leaves distances alone and keeps the expanded square accurate. b and the
    blocks lie on `device`.
    """
    rows = rows or max(1, BLOCK_ELEMENTS // max(1, len(b)))
    place = float64_device(device)
    centre = torch.from_numpy(b.mean(axis=0)).to(place)
    right = (torch.from_numpy(b).to(place) - centre).to(dtype)
    right_norms = right.square().sum(dim=1)  # (M,)
    for start in range(0, len(a), rows):
        part = slice(start, min(start + rows, len(a)))
        left = (torch.from_numpy(a[part]).to(place) - centre).to(dtype)
        squares = torch.addmm(right_norms[None, :], left, right.T, alpha=-2.0)  # (n, M)
        squares += left.square().sum(dim=1, keepdim=True)
        yield part, squares.clamp_(min=0).sqrt_()
