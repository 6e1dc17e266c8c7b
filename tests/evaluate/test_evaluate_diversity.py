"""Diversity of a prompt's stories, by hand and against the double loop."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.diversity import mean_pairwise_distance


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[1, 0], [1, 0]], 0.0),
        ([[1, 0], [0, 1]], 1.0),
        ([[1, 0], [-1, 0]], 2.0),
        # Pairs: the same (0), and twice at a right angle (1, 1).
        ([[1, 0], [1, 0], [0, 1]], 2 / 3),
        # Cosines 0.6, 0.8 and 0.6 * 0.8 + 0.8 * 0.6 = 0.96.
        ([[1, 0], [0.6, 0.8], [0.8, 0.6]], (0.4 + 0.2 + 0.04) / 3),
    ],
)
def test_by_hand(vectors: list[list[float]], expected: float) -> None:
    assert mean_pairwise_distance(np.array([vectors], np.float32)) == pytest.approx([expected], abs=1e-7)


@pytest.mark.parametrize(
    ("vectors", "expected"),
    [
        ([[0, 0], [0, 0]], 0.0),
        ([[1, 0], [0, 0]], 0.0),
        # Six pairs, of which only the one of the two told stories has a distance.
        ([[1, 0], [0, 1], [0, 0], [0, 0]], 1 / 6),
    ],
)
def test_an_empty_story_never_adds_diversity(vectors: list[list[float]], expected: float) -> None:
    assert mean_pairwise_distance(np.array([vectors], np.float32)) == pytest.approx([expected], abs=1e-7)


@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 7), st.integers(2, 40))
def test_equals_the_double_loop(seed: int, prompts: int, k: int, width: int) -> None:
    raw = np.random.default_rng(seed).normal(size=(prompts, k, width)) + 0.3
    unit = (raw / np.linalg.norm(raw, axis=2, keepdims=True)).astype(np.float32)
    loops = [np.mean([1 - a.astype(float) @ b.astype(float) for a, b in permutations(told, 2)]) for told in unit]
    assert mean_pairwise_distance(unit) == pytest.approx(loops, abs=1e-5)
