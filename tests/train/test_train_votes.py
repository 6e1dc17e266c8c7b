"""Votes as targets: order, range, resolution."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from components.train.votes import TOLERANCE, VoteScale, places

finite = st.floats(-1e9, 1e9)


@given(st.lists(finite, min_size=2, max_size=30))
def test_keeps_the_order_and_the_range(votes: list[float]) -> None:
    votes = sorted(votes)
    assume(votes[-1] - votes[0] > TOLERANCE)
    mapped = VoteScale(votes[0], votes[-1])(votes)
    assert (np.diff(mapped) >= 0).all()
    assert mapped[0] == pytest.approx(-1, abs=1e-6)
    assert mapped[-1] == pytest.approx(1, abs=1e-6)
    assert (np.abs(mapped) <= 1).all()


@given(st.integers(1, 10_000_000), st.integers(-1000, 1000))
def test_tells_neighbouring_votes_apart(top: int, shift: int) -> None:
    """Hundredfold logarithms leave differences of 5e-4 in all; single votes must survive that, also at the top."""
    votes = np.unique(np.concatenate([np.arange(0, min(top, 50) + 1), np.arange(max(top - 50, 0), top + 1)])) + shift
    mapped = VoteScale(votes[0], votes[-1])(votes)
    assert (np.diff(mapped) > 0).all()


@given(st.integers(1, 1000), st.integers(-100_000, 100_000))
def test_only_the_distance_from_the_minimum_counts(width: int, shift: int) -> None:
    votes = np.arange(width + 1)
    assert VoteScale(shift, shift + width)(votes + shift) == pytest.approx(VoteScale(0, width)(votes), abs=1e-9)


def test_by_the_formula() -> None:
    def shrunk(value: float) -> float:
        for _ in range(100):
            value = math.log(value + 1)
        return value

    low, middle, high = shrunk(1), shrunk(4), shrunk(31)
    assert VoteScale(2, 32)([2, 5, 32]) == pytest.approx([-1, 2 * (middle - low) / (high - low) - 1, 1], abs=1e-9)


def test_most_of_the_range_tells_few_votes_apart() -> None:
    mapped = VoteScale(1, 30_000)([1, 10, 100, 30_000])
    assert mapped[1] > 0
    assert mapped[2] > 0.7


@pytest.mark.parametrize(("low", "high"), [(0, 50), (1, 5), (0, 1), (0, 1e-6), (-40, 3e5)])
def test_any_scale(low: float, high: float) -> None:
    mapped = VoteScale(low, high)([low, (low + high) / 2, high])
    assert mapped[[0, 2]] == pytest.approx([-1, 1], abs=1e-9)
    assert 0 <= mapped[1] < 1


def test_votes_beyond_the_scale_count_as_its_end() -> None:
    assert VoteScale(1, 5)([-100, 0, 6, 1e6]) == pytest.approx([-1, -1, 1, 1])


def test_places_by_hand() -> None:
    prompts = ["a", "b", "a", "a", "c", "b", "d", "d"]
    votes = [5, 0, 100, -1, 3, 50, 2, 2]
    assert places(prompts, votes).tolist() == [0, -1, 1, -1, 0, 1, 0, 0]


def test_equal_votes_share_the_mean_of_their_places() -> None:
    assert places(["a"] * 5, [1, 0, 1, 0, 0]) == pytest.approx([0.75, -0.5, 0.75, -0.5, -0.5])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-50, 50)), min_size=2, max_size=30))
def test_places_are_those_of_any_increasing_map(rows: list[tuple[str, int]]) -> None:
    prompts, votes = [name for name, _ in rows], np.array([value for _, value in rows], float)
    found = places(prompts, votes)
    assert (np.abs(found) <= 1).all()
    assert found == pytest.approx(places(prompts, VoteScale(-51, 51)(votes)))
    for name in set(prompts):
        assert np.mean([place for place, other in zip(found, prompts, strict=True) if other == name]) == pytest.approx(0)
