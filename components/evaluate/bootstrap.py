"""Percentile bootstrap over prompts (Efron 1979), of many means at once."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 10_000
CONFIDENCE = 0.95
# Resamples drawn at a time, to bound memory.
_CHUNK = 500


class Intervals(NamedTuple):
    """Mean and interval of each column, (columns,) each."""

    mean: Floats
    low: Floats
    high: Floats


def intervals(values: Floats, seed: int) -> Intervals:
    """Means over the prompts, with their intervals.

    All columns are resampled together: a difference of two systems is a column of differences by prompt. A resample is a
    row of how often it drew each prompt, so that all its means are one matrix product.

    Args:
        values: (prompts, columns), NaN where a prompt has no value; every column has a value somewhere.
    """
    prompts, columns = values.shape
    known = ~np.isnan(values)
    # Counted from the smallest, a column of equal values gives an interval of exactly no width.
    least = np.nanmin(values, axis=0)
    above = np.where(known, values - least, 0.0)
    terms = np.hstack([above, known])
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, columns))
    for start in range(0, RESAMPLES, _CHUNK):
        size = min(_CHUNK, RESAMPLES - start)
        drawn = rng.integers(prompts, size=(size, prompts)) + prompts * np.arange(size)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=size * prompts).reshape(size, prompts)
        sums = counts.astype(np.float64) @ terms
        with np.errstate(invalid="ignore"):
            # A resample may draw no prompt that has a value; it then says nothing about that column.
            means[start : start + size] = sums[:, :columns] / sums[:, columns:]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(means, [tail, 1 - tail], axis=0)
    return Intervals(least + above.sum(axis=0) / known.sum(axis=0), least + low, least + high)
