"""Votes as targets of the reward model, in [-1, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

# Times that the logarithm is taken.
_TIMES = 100
# Votes that differ by no more are equal: added to 1, they would drown in its rounding.
TOLERANCE = 1e-9


@dataclass(frozen=True)
class VoteScale:
    """Maps the votes of a data set, `minimum` to `maximum`, to [-1, 1] (Chung et al. 2025, arXiv 2503.17126).

        x = votes - minimum + 1;   100 times x <- ln(x + 1);   then linearly so that the ends lie at -1 and 1

    It keeps the order and saturates: of 1 to 30,000 votes, the first ten take -1 to 0.4. The iterates shrink towards 2/100,
    where the ends differ by some 5e-4; float64 resolves that to 1e-13 of the range.
    """

    minimum: float
    maximum: float

    def __call__(self, votes: ArrayLike) -> Floats:
        """Same shape, float64, in [-1, 1]; votes beyond the scale count as its end."""
        low, high = _shrunk(np.array([0.0, self.maximum - self.minimum]))
        shrunk = _shrunk(np.clip(np.asarray(votes, float), self.minimum, self.maximum) - self.minimum)
        return np.clip(2 * (shrunk - low) / (high - low) - 1, -1, 1)


def places(prompt_ids: Sequence[str], votes: ArrayLike) -> Floats:
    """The place of each response among those of its prompt: -1 for the fewest votes, 1 for the most, evenly spaced.

    It is the same for any increasing map of the votes, such as `VoteScale`, so it fits scales of any kind, also when they
    differ from prompt to prompt.

    Returns:
        (n,) float64; equal votes share the mean of their places, the only response of a prompt has 0.
    """
    groups = pd.Series(np.asarray(votes, float)).groupby(np.asarray(prompt_ids))
    last = groups.transform("size").to_numpy() - 1
    return 2 * (groups.rank().to_numpy() - 1 - last / 2) / np.maximum(last, 1)


def _shrunk(above: Floats) -> Floats:
    values = above + 1
    for _ in range(_TIMES):
        values = np.log1p(values)
    return values
