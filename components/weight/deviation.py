"""Deviation weights (Chung et al. 2025, arXiv 2503.17126, section 3), for all prompts at once.

Rows are responses, sorted so that those of a prompt stand together; `starts` holds the first row of each prompt.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Differences of cosine distances below this are rounding of float32 embeddings, not deviation.
TOLERANCE = 1e-6
# Rows worked on at a time: few enough for their vectors to stay in the processor's cache.
_CHUNK = 1536


def sizes(starts: Ints, rows: int) -> Ints:
    """(prompts,) number of responses of each prompt."""
    return np.diff(np.append(starts, rows))


def mean_distances(embeddings: NDArray[np.float32], starts: Ints) -> Floats:
    """Mean cosine distance of each response to the other responses of its prompt.

        d_i = mean over j != i of (1 - e_i . e_j) = (N - e_i . S) / (N - 1),   S = sum_j e_j

    which costs O(N d) for N responses, not O(N^2 d).

    Args:
        embeddings: (rows, d), unit length.
        starts: (prompts,) first row of each prompt.

    Returns:
        (rows,) in [0, 2], exact to float32; NaN for the only response of a prompt.
    """
    rows = len(embeddings)
    counts = sizes(starts, rows)
    similarity = np.empty(rows)

    def work(first: int, last: int) -> None:
        begin, end = int(starts[first]), int(starts[last]) if last < len(starts) else rows
        _sum_similarities(embeddings[begin:end], starts[first:last] - begin, counts[first:last], similarity[begin:end])

    bounds = [0]
    while bounds[-1] < len(starts):
        bounds.append(max(bounds[-1] + 1, int(np.searchsorted(starts, starts[bounds[-1]] + _CHUNK))))
    # Chunks write to places of their own, and NumPy lets go of the interpreter while it computes.
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        list(threads.map(work, bounds[:-1], bounds[1:]))
    n = np.repeat(counts, counts)
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = np.clip((n - similarity) / (n - 1), 0.0, 2.0)
    return np.where(n == 1, np.nan, distance)


def _sum_similarities(embeddings: NDArray[np.float32], starts: Ints, counts: Ints, out: Floats) -> None:
    """Writes e_i . S of each row to `out`; prompts of one size are computed together."""
    for n in np.unique(counts):
        of_this_size = starts[counts == n]
        if len(of_this_size) == len(starts):
            rows: slice | Ints = slice(None)
            group = embeddings.reshape(-1, n, embeddings.shape[1])
        else:
            rows = (of_this_size[:, None] + np.arange(n)).ravel()
            group = embeddings[rows].reshape(-1, n, embeddings.shape[1])
        out[rows] = np.matmul(group, group.sum(axis=1)[:, :, None]).ravel()


def weights(
    semantic: Floats, style: Floats, starts: Ints, kind: Literal["semantic", "style", "both"] = "both", floor: float = 0.0
) -> Floats:
    """The weight delta of each response.

        m_i = (d_i - min d) / (max d - min d)        per prompt and embedder
        m_i = sqrt(m_i^semantic * m_i^style)         for `both`
        delta_i = m_i / mean_j(m_j)                  so that delta >= 0 and its mean over the prompt is 1

    Weights that would say nothing are 1: prompts of one or two responses, of equal distances, or with every product 0. For
    `both`, an embedder whose distances are all equal is left out of the geometric mean.

    Args:
        semantic, style: (rows,) mean distances.
        starts: (prompts,) first row of each prompt.
        floor: smallest weight; applied last, so that with a floor the mean may exceed 1.

    Returns:
        (rows,)
    """
    rows = len(semantic)
    counts = sizes(starts, rows)
    if kind == "both":
        a, b = _spread(semantic, starts, counts), _spread(style, starts, counts)
        m = np.where(np.isnan(a), b, np.where(np.isnan(b), a, np.sqrt(a * b)))
    else:
        m = _spread(semantic if kind == "semantic" else style, starts, counts)
    m = np.nan_to_num(m, nan=0.0)
    mean = np.add.reduceat(m, starts) / counts
    silent = (counts <= 2) | (np.maximum.reduceat(m, starts) <= TOLERANCE)
    delta = np.where(np.repeat(silent, counts), 1.0, m / np.repeat(np.where(silent, 1.0, mean), counts))
    return np.maximum(delta, floor)


def _spread(distances: Floats, starts: Ints, counts: Ints) -> Floats:
    """Min-max of the distances per prompt, in [0, 1]; NaN where a prompt's distances are all equal."""
    low = np.minimum.reduceat(distances, starts)
    width = np.maximum.reduceat(distances, starts) - low
    width = np.where(width > TOLERANCE, width, np.nan)
    return (distances - np.repeat(low, counts)) / np.repeat(width, counts)


def effective_share(values: Floats) -> float:
    """Effective sample size of weights as a share of their number: (sum w)^2 / (n sum w^2); 0 where all are 0."""
    squares = float(np.sum(values**2))
    return float(np.sum(values)) ** 2 / (len(values) * squares) if squares else 0.0
