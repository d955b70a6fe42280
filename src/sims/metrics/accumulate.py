"""What can be kept of features that stream by: moments in one pass, and a uniform subset that no order changes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sims.errors import UserError
from sims.metrics.frechet import Moments
from sims.metrics.matrices import Array, float64_device

ROWS = 8192  # converted to float64 at once


class MomentAccumulator:
    """Mean and scatter of features, added batch by batch in float64; memory does not grow with the number of rows.

    Each batch is centred at its own mean before it is squared, and batches are joined by the update of Chan, Golub and
    LeVeque (1979), so a mean far from zero costs no digits. The batches' sizes change rounding only.
    """

    def __init__(self, num_features: int, device: str | torch.device = "cpu") -> None:
        if num_features < 1:
            raise UserError(f"num_features is {num_features}; it must be at least 1.")
        place = float64_device(device)
        self.count = 0
        self.mean = torch.zeros(num_features, dtype=torch.float64, device=place)  # (D,)
        self.scatter = torch.zeros(num_features, num_features, dtype=torch.float64, device=place)  # (D, D)

    def update(self, features: Array | Tensor) -> None:
        """Add features (n, D), n >= 0; UserError where the width differs or a value is not finite."""
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise UserError(f"Features of shape {tuple(features.shape)}; expected (n, {len(self.mean)}).")
        for start in range(0, len(features), ROWS):
            part = features[start : start + ROWS]
            part = part.detach() if isinstance(part, Tensor) else torch.from_numpy(np.array(part, np.float64))
            rows = part.to(self.mean.device, torch.float64)
            if not bool(rows.isfinite().all()):
                bad = int((~rows.isfinite().all(dim=1)).sum())
                raise UserError(f"{bad} of {len(rows)} rows of features hold NaN or infinity; remove those samples.")
            mean = rows.mean(dim=0)
            rows = rows - mean
            self._join(len(rows), mean, rows.T @ rows)

    def _join(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.count + count
        shift = mean - self.mean
        self.mean += shift * (count / total)
        self.scatter += scatter
        self.scatter.addr_(shift, shift, alpha=self.count * count / total)
        self.count = total

    def moments(self) -> Moments:
        """The moments of everything added so far; UserError below two rows."""
        if self.count < 2:
            raise UserError(f"{self.count} rows of features; at least 2 are needed: use more samples.")
        return Moments(self.mean.cpu().numpy().copy(), (self.scatter / (self.count - 1)).cpu().numpy(), self.count)


def sample_keys(seed: int, indices: Array) -> Array:
    """Random numbers (n,) uint64 that depend on the seed and on the sample's index (n,) alone.

    The finalizer of SplitMix64 (Steele, Lea and Flood 2014), applied to the seed and then to the index; it is a
    bijection, so no two indices share a key.
    """

    def mix(z: Array) -> Array:
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))

    golden = np.uint64(0x9E3779B97F4A7C15)
    start = mix(np.array([seed % 2**64], np.uint64) + golden)
    return mix((np.asarray(indices).astype(np.uint64) ^ start) + golden)


class Reservoir:
    """A uniform subset of at most `size` samples: those with the smallest keys (bottom-k sampling).

    Which samples it holds follows from the seed and the indices it was offered, whatever their order, the batch size
    or the number of processes; an index offered twice counts once. A smaller reservoir is a subset of a larger one.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        if size < 1:
            raise UserError(f"A subset of {size} samples; at least 1 is needed.")
        self.size, self.seed = size, seed
        self._keys, self._indices = np.empty(0, np.uint64), np.empty(0, np.int64)
        self._rows: Array | None = None

    def update(self, indices: Array, rows: Array | Tensor) -> None:
        """Offer samples: global indices (n,) >= 0 and rows (n, ...), any dtype; only what is kept is copied."""
        offered = np.asarray(indices, np.int64)
        if offered.shape != (len(rows),) or (offered < 0).any():
            raise UserError(f"{len(rows)} rows with indices of shape {offered.shape}; give one index >= 0 per row.")
        values = rows.detach().cpu().numpy() if isinstance(rows, Tensor) else np.asarray(rows)
        keys = sample_keys(self.seed, offered)
        if len(self._keys) == self.size:
            good = np.flatnonzero(keys < self._keys[-1])
            keys, offered, values = keys[good], offered[good], values[good]
        keys, first = np.unique(keys, return_index=True)
        keys, first = keys[: self.size], first[: self.size]
        if self._rows is None:
            self._keys, self._indices, self._rows = keys, offered[first], values[first].copy()
        elif len(keys):
            joined, kept = np.unique(np.concatenate([self._keys, keys]), return_index=True)
            kept = kept[: self.size]
            self._keys = joined[: self.size]
            self._indices = np.concatenate([self._indices, offered[first]])[kept]
            self._rows = np.concatenate([self._rows, values[first]])[kept]

    @property
    def indices(self) -> Array:
        """The global indices (n,) int64 of the samples held, ascending."""
        return np.sort(self._indices)

    @property
    def rows(self) -> Array:
        """The samples held (n, ...), in the order of `indices`; UserError before the first update."""
        if self._rows is None:
            raise UserError("There are no samples; a subset needs at least one.")
        return self._rows[np.argsort(self._indices)]
