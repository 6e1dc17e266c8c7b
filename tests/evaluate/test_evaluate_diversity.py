"""Measures of diversity from embeddings, by hand and against their definitions."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.evaluate.diversity import (
    effective_diversity,
    first_of_class,
    mean_pairwise_distance,
    utility,
    vendi_score,
)

SHAPES = st.integers(0, 2**32), st.integers(1, 5), st.integers(2, 7), st.integers(2, 40)


def unit_vectors(seed: int, prompts: int, k: int, width: int) -> np.ndarray:
    raw = np.random.default_rng(seed).normal(size=(prompts, k, width)) + 0.3
    return (raw / np.linalg.norm(raw, axis=2, keepdims=True)).astype(np.float32)


def at(*degrees: float) -> np.ndarray:
    """Stories of one prompt in a plane, each in its direction."""
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)[None].astype(np.float32)


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
def test_distance_by_hand(vectors: list[list[float]], expected: float) -> None:
    assert mean_pairwise_distance(np.array([vectors], np.float32)) == pytest.approx([expected], abs=1e-7)


@pytest.mark.parametrize(
    ("vectors", "distance", "vendi", "distinct"),
    [
        ([[0, 0], [0, 0]], 0.0, 1.0, 0),
        ([[1, 0], [0, 0]], 0.0, 1.0, 1),
        # Six pairs, of which only the one of the two told stories has a distance. Shares of the eigenvalues: 3/4 and 1/4.
        ([[1, 0], [0, 1], [0, 0], [0, 0]], 1 / 6, 4 / 3**0.75, 2),
        ([[0, 0], [0, 1], [1, 0], [0, 1]], 2 / 6, 4 / 3**0.75, 2),
    ],
)
def test_an_empty_story_never_adds_diversity(vectors: list[list[float]], distance: float, vendi: float, distinct: int) -> None:
    given_vectors = np.array([vectors], np.float32)
    assert mean_pairwise_distance(given_vectors) == pytest.approx([distance], abs=1e-7)
    assert vendi_score(given_vectors) == pytest.approx([vendi])
    assert first_of_class(given_vectors, 0.5).sum() == distinct


@given(*SHAPES)
def test_distance_equals_the_double_loop(seed: int, prompts: int, k: int, width: int) -> None:
    unit = unit_vectors(seed, prompts, k, width)
    loops = [np.mean([1 - a.astype(float) @ b.astype(float) for a, b in permutations(told, 2)]) for told in unit]
    assert mean_pairwise_distance(unit) == pytest.approx(loops, abs=1e-5)


def test_vendi_by_hand() -> None:
    # K / n of a pair with cosine c has the eigenvalues (1 + c) / 2 and (1 - c) / 2; here c = 0.6: 0.8 and 0.2.
    pair = np.array([[[1, 0], [0.6, 0.8]]])
    assert vendi_score(pair) == pytest.approx([1 / (0.8**0.8 * 0.2**0.2)])
    # Two and two alike: as two. All alike: as one. All at right angles: as four. Opposite ones are alike to K's eigenvalues.
    assert vendi_score(at(0, 90, 0, 90)) == pytest.approx([2])
    assert vendi_score(at(30, 30, 30, 30)) == pytest.approx([1], abs=1e-5)
    assert vendi_score(np.eye(4)[None]) == pytest.approx([4])
    assert vendi_score(at(0, 180)) == pytest.approx([1], abs=1e-5)


@given(*SHAPES)
def test_vendi_equals_the_entropy_of_singular_values(seed: int, prompts: int, k: int, width: int) -> None:
    unit = unit_vectors(seed, prompts, k, width)
    shares = np.linalg.svd(unit.astype(float), compute_uv=False) ** 2 / k
    expected = np.exp(-np.sum(shares * np.log(np.maximum(shares, 1e-300)), axis=1))
    score = vendi_score(unit)
    assert score == pytest.approx(expected, abs=1e-4)
    assert ((score >= 1 - 1e-6) & (score <= min(k, width) + 1e-6)).all()


def test_classes_by_hand() -> None:
    # cos 30 = 0.87, cos 60 = 0.5. The third is like the second, which opened no class, but not like the first.
    assert first_of_class(at(0, 30, 60, 0), 0.8).tolist() == [[True, False, True, False]]
    # In another order the middle one comes first, and all are like it.
    assert first_of_class(at(30, 0, 60, 0), 0.8).tolist() == [[True, False, False, False]]
    assert first_of_class(at(0, 30, 60, 0), 0.9).tolist() == [[True, True, True, False]]
    # The very same vector is alike at any threshold.
    assert first_of_class(unit_vectors(3, 1, 1, 384).repeat(3, axis=1), 1.0).sum() == 1


@given(*SHAPES, st.floats(0.1, 1))
def test_classes_cover_all_and_their_first_are_unlike(seed: int, prompts: int, k: int, width: int, similarity: float) -> None:
    unit = unit_vectors(seed, prompts, k, width)
    for told, first in zip(unit.astype(float), first_of_class(unit, similarity), strict=True):
        cosines = told @ told.T
        assert first[0]
        between = cosines[np.ix_(first, first)][~np.eye(first.sum(), dtype=bool)]
        assert (between < similarity).all()
        assert (cosines[:, first].max(axis=1) >= similarity - 1e-5).all()


def test_utility_by_hand() -> None:
    first, worth = np.array([[True, False, True]]), np.array([[0.5, 0.9, 1.0]])
    # (1 - 0.5) / (1 - 0.125) * (0.5 + 0.25 * 1.0); the second repeats the first.
    assert utility(first, worth, 0.5) == pytest.approx([0.5 / 0.875 * 0.75])
    assert utility(first, worth, 1.0) == pytest.approx([0.5])
    assert utility(first, worth, 0.0) == pytest.approx([0.5])


@given(st.integers(0, 2**32), st.integers(1, 8), st.floats(0, 1))
def test_utility_is_bounded_by_worth(seed: int, k: int, patience: float) -> None:
    worth = np.random.default_rng(seed).random((3, k))
    everything, nothing = np.ones((3, k), bool), np.zeros((3, k), bool)
    best = utility(everything, worth, patience)
    assert (best <= worth.max(axis=1) + 1e-12).all()
    assert (best >= worth.min(axis=1) - 1e-12).all()
    assert (utility(nothing, worth, patience) == 0).all()


def test_effective_diversity_by_hand() -> None:
    vectors = at(0, 90, 0).repeat(4, axis=0)
    good = np.array([[True, True, True], [True, True, False], [True, False, True], [False, True, False]])
    # Of three pairs, two are 1 apart; then one of them counts; then only the pair of equals; then none.
    assert effective_diversity(vectors, good) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=1e-7)


@given(*SHAPES)
def test_effective_diversity_lies_between_nothing_and_all(seed: int, prompts: int, k: int, width: int) -> None:
    unit = unit_vectors(seed, prompts, k, width)
    good = np.random.default_rng(seed).random((prompts, k)) < 0.6
    everything = mean_pairwise_distance(unit)
    assert effective_diversity(unit, np.ones((prompts, k), bool)) == pytest.approx(everything)
    effective = effective_diversity(unit, good)
    assert (effective <= everything + 1e-6).all()
    assert (effective[good.sum(axis=1) < 2] <= 1e-6).all()
