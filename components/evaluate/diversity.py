"""How much the stories of a prompt differ by their embeddings, for many prompts at once.

Vectors are (prompts, k, width), each of length 1, or 0 for a story without text, which has no direction. Writing nothing must
not look diverse: each measure says how it counts such a story.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Vectors = NDArray[np.floating[Any]]
# Float32 vectors of one text are 1 apart from themselves only to about this.
_ROUNDING = 1e-6


def mean_pairwise_distance(vectors: Vectors) -> Floats:
    """Mean cosine distance between two stories of a prompt (Chung et al. 2025).

    For k unit vectors it is (k^2 - |S|^2) / (k (k - 1)), S = their sum. A story without text counts as no different from any
    other.

    Args:
        vectors: k >= 2.

    Returns:
        (prompts,) in [0, 2].
    """
    k = vectors.shape[1]
    wide = vectors.astype(np.float64)
    told = np.rint((wide**2).sum(axis=2)).sum(axis=1)
    together = (wide.sum(axis=1) ** 2).sum(axis=1)
    return np.clip((told**2 - together) / (k * (k - 1)), 0.0, 2.0)


def effective_diversity(vectors: Vectors, good: Bools) -> Floats:
    """Mean over all pairs of a prompt of their cosine distance, which counts as 0 unless both stories are good.

    Effective semantic diversity is the diversity of what meets a quality threshold (Shypula et al. 2025, arXiv 2504.12522).
    All pairs are in the denominator, so that a prompt with fewer than two good stories has 0, and a system whose few good
    stories happen to differ does not outdo one with many.

    Args:
        good: (prompts, k) whether a story reaches the threshold.

    Returns:
        (prompts,) in [0, 2].
    """
    return mean_pairwise_distance(np.where(good[:, :, None], vectors, 0.0))


def vendi_score(vectors: Vectors) -> Floats:
    """The Vendi score: how many entirely different stories would be as diverse (Friedman & Dieng 2023, arXiv 2210.02410).

    exp(-sum_i l_i ln l_i), l_i = the eigenvalues of K / n, K = the cosines of the n stories; 0 ln 0 = 0. A story without text
    counts as a copy of the prompt's first that has one.

    Returns:
        (prompts,) in [1, min(k, width)]; 1 where no story has text.
    """
    told = _told(vectors)
    wide = vectors.astype(np.float64)
    first = wide[np.arange(len(wide)), told.argmax(axis=1)]
    wide = np.where(told[:, :, None], wide, first[:, None, :])
    eigenvalues = np.clip(np.linalg.eigvalsh(wide @ wide.transpose(0, 2, 1)), 0.0, None)
    total = eigenvalues.sum(axis=1, keepdims=True)
    shares = np.divide(eigenvalues, total, out=np.zeros_like(eigenvalues), where=total > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    return np.exp(-(shares * logs).sum(axis=1))


def first_of_class(vectors: Vectors, similarity: float) -> Bools:
    """Which stories tell something that none before them of their prompt told: the first of each equivalence class.

    NoveltyBench (Zhang et al. 2025, arXiv 2504.05228) asks a trained classifier whether two texts are equivalent; here, where
    none is at hand, they are when their cosine is at least `similarity`. Classes are formed greedily, as there: a story joins
    a class when it is equivalent to the class's first story, and opens one otherwise. (Connected components would join two
    unlike stories by a chain of others.) The cosines of different classes' first stories all lie below `similarity`.

    Returns:
        (prompts, k); False for a story without text.
    """
    wide = vectors.astype(np.float64)
    alike = wide @ wide.transpose(0, 2, 1) >= similarity - _ROUNDING
    first = _told(vectors)
    for story in range(1, vectors.shape[1]):
        first[:, story] &= ~(alike[:, story, :story] & first[:, :story]).any(axis=1)
    return first


def utility(first: Bools, worth: Floats, patience: float) -> Floats:
    """utility_k of NoveltyBench: what a reader gets who asks for the next story with probability `patience`.

    (1 - p) / (1 - p^k) * sum_i p^(i-1) * [story i is the first of its class] * worth_i; its limit, the mean, where p is 1.

    Args:
        first: (prompts, k), see `first_of_class`.
        worth: (prompts, k) in [0, 1]; NoveltyBench's is 1 to 10.
        patience: p, in [0, 1].

    Returns:
        (prompts,) in [0, 1].
    """
    discount = patience ** np.arange(first.shape[1])
    return (first * worth) @ (discount / discount.sum())


def _told(vectors: Vectors) -> Bools:
    return (vectors != 0).any(axis=2)
