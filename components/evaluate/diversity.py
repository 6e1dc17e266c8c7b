"""How much the stories of a prompt differ."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def mean_pairwise_distance(vectors: NDArray[np.floating[Any]]) -> Floats:
    """Mean cosine distance between two stories of a prompt, for many prompts at once.

    For k unit vectors it is (k^2 - |S|^2) / (k (k - 1)), S = their sum. A story without direction, the zero vector of an
    empty text, counts as no different from any other: writing nothing must not look diverse.

    Args:
        vectors: (prompts, k, width), each of length 1 or 0; k >= 2.

    Returns:
        (prompts,) in [0, 2].
    """
    k = vectors.shape[1]
    wide = vectors.astype(np.float64)
    told = np.rint((wide**2).sum(axis=2)).sum(axis=1)
    together = (wide.sum(axis=1) ** 2).sum(axis=1)
    return np.clip((told**2 - together) / (k * (k - 1)), 0.0, 2.0)
