"""Votes as targets of the reward model (Chung et al. 2025, arXiv 2503.17126)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Times that the logarithm is taken.
_TIMES = 100
# Votes that differ by no more are equal: added to 1, they would drown in its rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class VoteScale:
    """Maps the votes of a data set, `minimum` to `maximum`, to [-1, 1].

        x = votes - minimum + 1;   100 times x <- ln(x + 1);   then linearly so that the ends lie at -1 and 1

    It keeps the order and saturates: most of the range tells the lowest votes apart (1 to 10 of 30,000 take 0.18 to -1). The
    iterates shrink towards 2/100 and the ends differ by some 5e-4 there, which float64 resolves to 1e-13 of the range.

    Only the range of the votes enters, so any scale will do, also one of two values. Scales that differ from prompt to
    prompt are left as they are: the prompt tells the model which one holds, and comparisons stay within a prompt.
    """

    minimum: float
    maximum: float

    def __call__(self, votes: ArrayLike) -> Floats:
        """Same shape, float64, in [-1, 1]; votes beyond the scale count as its end."""
        low, high = _shrunk(np.array([0.0, self.maximum - self.minimum]))
        shrunk = _shrunk(np.clip(np.asarray(votes, float), self.minimum, self.maximum) - self.minimum)
        return np.clip(2 * (shrunk - low) / (high - low) - 1, -1, 1)


def _shrunk(above: Floats) -> Floats:
    values = above + 1
    for _ in range(_TIMES):
        values = np.log1p(values)
    return values
