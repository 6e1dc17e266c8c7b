"""Measures of a reward model, by hand and against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from components.train.agreement import agreement, spearman

few = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=20)


@given(few)
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, float).T
    found = spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic)


def test_by_hand() -> None:
    prompts = ["a", "a", "a", "b", "b", "c"]
    votes = np.array([1.0, 2.0, 3.0, 50.0, 0.0, 7.0])
    predicted = np.array([0.1, 0.3, 0.2, 0.5, -0.5, 0.0])
    targets = np.zeros(6)
    words = np.array([10.0, 10.0, 20.0, 5.0, 9.0, 1.0])
    found = agreement(prompts, votes, targets, predicted, words)
    assert found["spearman"] == pytest.approx((0.5 + 1) / 2)
    # a: 1 < 2 right, 1 < 3 right, 2 < 3 wrong; b: right.
    assert found["pair_accuracy"] == pytest.approx(3 / 4)
    # a: tie, right, right; b: wrong.
    assert found["pair_accuracy_of_length"] == pytest.approx(2.5 / 4)
    assert found["pair_accuracy_gain"] == pytest.approx(0.5 / 4)
    # a: 2 - 2.5 of 3 pairs; b: 1 - 0 of 1; each less its pairs times 1 / 8.
    residuals = [-0.5 - 3 / 8, 1 - 1 / 8]
    assert found["pair_accuracy_gain_error"] == pytest.approx(np.sqrt(2 * np.square(residuals).sum()) / 4)
    assert found["mae"] == pytest.approx(1.6 / 6)
    assert found["spearman_pooled"] == pytest.approx(spearmanr(votes, predicted).statistic)
    assert found["length_correlation"] == pytest.approx(spearmanr(words, predicted).statistic)


def test_the_gain_is_over_the_better_order_of_lengths() -> None:
    """Votes for short responses: the model must rank better than shortest first."""
    prompts = np.repeat([f"p{i}" for i in range(6)], 3).tolist()
    votes, words = np.tile([3.0, 2.0, 1.0], 6), np.tile([10.0, 20.0, 15.0], 6)
    found = agreement(prompts, votes, votes, votes, words)
    assert found["pair_accuracy_of_length"] == pytest.approx(1 / 3)
    assert found["pair_accuracy_gain"] == pytest.approx(1 / 3)
    assert found["pair_accuracy_gain_error"] == pytest.approx(0)


def test_the_error_of_the_gain_is_how_far_it_strays() -> None:
    """Of 400 draws of 50 prompts each, with between two and six responses."""
    rng = np.random.default_rng(0)
    gains, errors = [], []
    for _ in range(400):
        prompts = np.repeat([f"p{i}" for i in range(50)], rng.integers(2, 7, size=50)).tolist()
        votes, noise, words = rng.normal(size=(3, len(prompts)))
        found = agreement(prompts, votes, votes, votes + 2 * noise, votes + 3 * words)
        gains.append(found["pair_accuracy_gain"])
        errors.append(found["pair_accuracy_gain_error"])
    assert np.mean(errors) == pytest.approx(np.std(gains), rel=0.2)


def test_equal_votes_are_no_pair_and_no_correlation() -> None:
    found = agreement(["a", "a", "b"], np.array([1.0, 1.0, 1.0]), np.zeros(3), np.array([0.0, 1.0, 2.0]), np.arange(3.0))
    assert (found["spearman"], found["spearman_pooled"], found["pair_accuracy"]) == (None, None, None)
    assert found["mae"] == pytest.approx(1)


def test_nothing_to_measure_on() -> None:
    empty = np.empty(0)
    assert set(agreement([], empty, empty, empty, empty).values()) == {None}


@given(few, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_does_not_matter(pairs: list[tuple[int, int]], random: object) -> None:
    votes, predicted = np.array(pairs, float).T
    prompts = [f"p{i % 3}" for i in range(len(pairs))]
    order = list(range(len(pairs)))
    random.shuffle(order)  # type: ignore[attr-defined]
    one = agreement(prompts, votes, votes, predicted, predicted)
    other = agreement([prompts[i] for i in order], votes[order], votes[order], predicted[order], predicted[order])
    assert other == {key: value if value is None else pytest.approx(value) for key, value in one.items()}
