"""Properties of the deviation mathematics."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.weight.deviation import TOLERANCE, effective_share, mean_distances, weights

sizes = st.lists(st.integers(1, 9), min_size=1, max_size=6)
seeds = st.integers(0, 2**32 - 1)


def vectors(rows: int, seed: int, width: int = 7) -> np.ndarray[Any, np.dtype[np.float32]]:
    raw = np.random.default_rng(seed).normal(size=(rows, width))
    return (raw / np.linalg.norm(raw, axis=1, keepdims=True)).astype(np.float32)


def first_rows(counts: list[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.cumsum([0, *counts[:-1]])


def double_loop(embeddings: np.ndarray[Any, Any], counts: list[int]) -> list[float]:
    """The definition, word for word."""
    result = []
    for start, n in zip(first_rows(counts), counts, strict=True):
        for i in range(start, start + n):
            distances = [1 - float(embeddings[i] @ embeddings[j]) for j in range(start, start + n) if j != i]
            result.append(float(np.mean(distances)) if distances else float("nan"))
    return result


@given(sizes, seeds)
@settings(max_examples=60, deadline=None)
def test_equals_the_naive_double_loop(counts: list[int], seed: int) -> None:
    embeddings = vectors(sum(counts), seed)
    np.testing.assert_allclose(mean_distances(embeddings, first_rows(counts)), double_loop(embeddings, counts), atol=1e-6)


def test_chunks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = [3, 1, 8, 2, 5, 9, 1, 4]
    embeddings = vectors(sum(counts), 3)
    whole = mean_distances(embeddings, first_rows(counts))
    monkeypatch.setattr("components.weight.deviation._CHUNK", 5)
    np.testing.assert_array_equal(mean_distances(embeddings, first_rows(counts)), whole)


@given(sizes, seeds, st.sampled_from(["semantic", "style", "both"]))
@settings(max_examples=80, deadline=None)
def test_weights_are_non_negative_and_sum_to_the_number_of_responses(counts: list[int], seed: int, kind: Any) -> None:
    starts = first_rows(counts)
    semantic, style = (mean_distances(vectors(sum(counts), seed + i), starts) for i in (0, 1))
    delta = weights(semantic, style, starts, kind)
    assert (delta >= 0).all()
    np.testing.assert_allclose(np.add.reduceat(delta, starts), counts, rtol=1e-9)
    for start, n in zip(starts, counts, strict=True):
        own = delta[start : start + n]
        if n <= 2:
            np.testing.assert_array_equal(own, 1)
        elif own.max() > own.min():
            assert own.min() == 0


@given(seeds, st.permutations(range(6)), st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_order_and_scale_of_raw_embeddings_do_not_matter(seed: int, order: list[int], scale: float) -> None:
    raw = np.random.default_rng(seed).normal(size=(2, 6, 7))
    start = np.array([0])

    def delta(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        unit = (values / np.linalg.norm(values, axis=2, keepdims=True)).astype(np.float32)
        return weights(mean_distances(unit[0], start), mean_distances(unit[1], start), start)

    np.testing.assert_allclose(delta(raw[:, order] * scale), delta(raw)[order], atol=1e-4)


def test_the_formula_by_hand() -> None:
    start = np.array([0])
    semantic, style = np.array([0.2, 0.4, 0.6]), np.array([0.9, 0.1, 0.5])
    # Min-max: semantic 0, 1/2, 1; style 1, 0, 1/2. Products 0, 0, 1/2.
    np.testing.assert_allclose(weights(semantic, style, start, "semantic"), [0, 1, 2])
    np.testing.assert_allclose(weights(semantic, style, start, "style"), [2, 0, 1])
    np.testing.assert_allclose(weights(semantic, style, start, "both"), [0, 0, 3])
    np.testing.assert_allclose(weights(semantic, style, start, "both", floor=0.2), [0.2, 0.2, 3])


@pytest.mark.parametrize("ulps", [0, 1, 3])
def test_rounding_makes_no_weights(ulps: int) -> None:
    """Distances that differ by float32 rounding alone are equal."""
    value = np.float32(0.5)
    for _ in range(ulps):
        value = np.nextafter(value, np.float32(1))
    distances = np.array([0.5, float(value), 0.5])
    np.testing.assert_array_equal(weights(distances, distances, np.array([0])), 1)


def test_two_responses_and_identical_texts_have_weight_one() -> None:
    same = np.repeat(vectors(1, 0), 4, axis=0)
    pair = vectors(2, 1)
    starts = np.array([0, 4])
    distances = mean_distances(np.concatenate([same, pair]), starts)
    np.testing.assert_allclose(distances[:4], 0, atol=TOLERANCE)
    np.testing.assert_array_equal(weights(distances, distances, starts), 1)


def test_an_embedder_that_says_nothing_is_left_out() -> None:
    start = np.array([0])
    semantic, equal = np.array([0.2, 0.4, 0.6]), np.array([0.5, 0.5, 0.5])
    np.testing.assert_allclose(weights(semantic, equal, start), weights(semantic, equal, start, "semantic"))
    np.testing.assert_allclose(weights(equal, semantic, start), [0, 1, 2])


def test_products_that_are_all_zero_weigh_one() -> None:
    # Each response is the nearest under one of the embedders.
    semantic, style = np.array([0.1, 0.1, 0.9]), np.array([0.5, 0.7, 0.3])
    np.testing.assert_array_equal(weights(semantic, style, np.array([0])), 1)


def test_a_single_response_has_no_distance() -> None:
    assert np.isnan(mean_distances(vectors(1, 0), np.array([0]))).all()


def test_effective_share() -> None:
    assert effective_share(np.ones(5)) == pytest.approx(1)
    assert effective_share(np.array([4.0, 0, 0, 0])) == pytest.approx(0.25)
    assert effective_share(np.zeros(3)) == 0
