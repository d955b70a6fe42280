"""Whether samples of a text-to-image model show what their prompts ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sims.config import JSON
from sims.files import digest

Array = np.ndarray


@dataclass(frozen=True)
class Asked:
    """What prompts ask for, by label: the class (P,) of each, -1 = none; or its embedding (P, D) beside features.

    With classes, a sample is faithful (1) where a classifier sees the class that was asked for, else not (0); with
    embeddings, as far as the cosine of its features with that of its prompt says, times 100 (CLIP score).
    """

    classes: Array | None = None
    embedded: Array | None = None
    class_names: tuple[str, ...] = ()

    @property
    def key(self) -> JSON:
        """All that the fidelity of given samples depends on."""
        return digest(*[None if one is None else one.tobytes() for one in (self.classes, self.embedded)])[:16]

    @property
    def figure(self) -> str:
        """What its mean is called."""
        return "prompt_agreement" if self.embedded is None else "clip_score"

    def intended(self, labels: Array) -> Array | None:
        """The class (n,) that was asked for of samples with these labels; None where prompts have no classes."""
        return None if self.classes is None else self.classes[labels]

    def fidelity(self, labels: Array, features: Array, predicted: Array | None) -> Array | None:
        """Of samples (n,), NaN where nothing can be said; None where nothing can be said of any."""
        if self.embedded is not None:
            asked = self.embedded[labels]
            length = np.linalg.norm(features, axis=1) * np.linalg.norm(asked, axis=1)
            return (100 * (features * asked).sum(1) / np.maximum(length, 1e-12)).astype(np.float32)
        intended = self.intended(labels)
        if intended is None or predicted is None:
            return None
        return np.where(intended < 0, np.nan, predicted == intended).astype(np.float32)


def is_lost(change: Array) -> bool:
    """Whether samples are less faithful than others of the same seeds and prompts, by two standard errors of the mean.

    ``change`` (n,) is their fidelity less that of the others; 0 where nothing is known.
    """
    return len(change) > 1 and bool(change.mean() < -2 * change.std(ddof=1) / len(change) ** 0.5)
