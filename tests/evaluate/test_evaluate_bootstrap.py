"""The intervals: what must hold of any bootstrap, and one known case."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap

from components.evaluate.bootstrap import intervals

NUMBERS = st.floats(-100, 100, allow_nan=False, width=32)


@settings(max_examples=15, deadline=None)
@given(arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=NUMBERS), st.integers(0, 2**31))
def test_an_interval_holds_its_mean(values: np.ndarray, seed: int) -> None:
    mean, low, high = intervals(values, seed)
    assert mean == pytest.approx(values.mean(axis=0), abs=1e-9)
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()
    assert (values.min(axis=0) <= low + 1e-9).all()
    assert (high <= values.max(axis=0) + 1e-9).all()


def test_equal_values_give_no_width() -> None:
    mean, low, high = intervals(np.full((7, 2), 0.1), seed=3)
    assert mean.tolist() == low.tolist() == high.tolist()
    assert mean == pytest.approx([0.1, 0.1])


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    first, again, other = intervals(values, 1), intervals(values, 1), intervals(values, 2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first.low, other.low)
    assert first.low == pytest.approx(other.low, abs=0.05)


def test_against_scipy_and_theory() -> None:
    values = np.random.default_rng(5).normal(3, 2, size=400)
    _, low, high = intervals(values[:, None], seed=0)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.02)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)


def test_a_prompt_without_a_value_is_left_out() -> None:
    values = np.array([[1.0, 1.0], [2.0, np.nan], [4.0, 3.0], [np.nan, np.nan]])
    mean, low, high = intervals(values, seed=0)
    assert mean == pytest.approx([7 / 3, 2.0])
    assert low.tolist() == [1.0, 1.0]
    assert high.tolist() == [4.0, 3.0]


def test_columns_share_their_resamples() -> None:
    """What pairing means: the intervals of a - b are those of the column of differences, not of independent draws."""
    a = np.random.default_rng(0).normal(size=50)
    result = intervals(np.stack([a, a + 1, (a + 1) - a, -a], axis=1), seed=0)
    assert result.low[1] - result.low[0] == pytest.approx(1)
    assert result.high[2] - result.low[2] == pytest.approx(0, abs=1e-12)
    assert result.low[3] == pytest.approx(-result.high[0])
