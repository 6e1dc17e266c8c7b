"""The intervals and p-values: what must hold of any bootstrap, known cases, and how often they are wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import bootstrap, ttest_1samp

from components.evaluate.bootstrap import RESAMPLES, holm, intervals

NUMBERS = st.floats(-100, 100, allow_nan=False, width=32)
TABLES = arrays(np.float64, st.tuples(st.integers(1, 30), st.integers(1, 3)), elements=NUMBERS)
SEEDS = st.integers(0, 2**31)
P = arrays(np.float64, st.integers(1, 40), elements=st.floats(0, 1))


@settings(max_examples=15, deadline=None)
@given(TABLES, SEEDS)
def test_an_interval_holds_its_mean(values: np.ndarray, seed: int) -> None:
    mean, low, high, p = intervals(values, seed)
    assert mean == pytest.approx(values.mean(axis=0), abs=1e-9)
    assert (low <= mean + 1e-9).all()
    assert (mean <= high + 1e-9).all()
    assert (values.min(axis=0) <= low + 1e-9).all()
    assert (high <= values.max(axis=0) + 1e-9).all()
    assert ((p > 0) & (p <= 1)).all()


@settings(max_examples=15, deadline=None)
@given(TABLES, SEEDS)
def test_p_says_what_the_interval_says(values: np.ndarray, seed: int) -> None:
    # Shifted, so that some intervals end near 0.
    _, low, high, p = intervals(values - values.mean(axis=0) * 0.5, seed)
    assert not ((p <= 0.05) & (low <= 0) & (high >= 0)).any()


def test_p_is_the_level_of_the_interval() -> None:
    """On columns moved step by step across 0, p passes 0.05 where the interval's end passes 0."""
    noise = np.random.default_rng(2).normal(size=(40, 1))
    _, low, high, p = intervals(noise - noise.mean() + np.linspace(-0.6, 0.6, 241), seed=4)
    assert ((p <= 0.05) == ((low > 0) | (high < 0))).all()
    assert 0 < (p <= 0.05).sum() < 241
    assert p[:121] == pytest.approx(np.sort(p[:121]))
    assert p[120] > 0.9


def test_equal_values_give_no_width() -> None:
    mean, low, high, p = intervals(np.full((7, 2), 0.1), seed=3)
    assert mean.tolist() == low.tolist() == high.tolist()
    assert mean == pytest.approx([0.1, 0.1])
    assert p == pytest.approx([2**-6, 2**-6])


def test_no_difference_and_a_single_prompt_show_nothing() -> None:
    zero = intervals(np.zeros((30, 1)), seed=0)
    assert [part.item() for part in zero] == [0, 0, 0, 1]
    single = intervals(np.array([[3.0, -0.001, 0.0]]), seed=0)
    assert single.low.tolist() == single.high.tolist() == [3.0, -0.001, 0.0]
    assert single.p.tolist() == [1, 1, 1]


def test_few_prompts_never_claim_more_than_flips_of_sign_could() -> None:
    values = np.random.default_rng(0).uniform(1, 2, size=(5, 50))
    assert (intervals(values, seed=0).p >= 2 / 2**5).all()
    values[4] = 0.0
    assert (intervals(values, seed=0).p >= 2 / 2**4).all()


@pytest.mark.parametrize("prompts", [10, 40, 200])
def test_p_is_uniform_where_nothing_differs(prompts: int) -> None:
    """Shares of false claims among 600 columns of noise; with Student's test, each would lie within these bounds."""
    values = np.random.default_rng(prompts).normal(size=(prompts, 600))
    p = intervals(values, seed=1).p
    for level in (0.05, 0.2, 0.5, 0.8):
        assert (p <= level).mean() == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 600))
    assert (p <= 0.01).mean() < 0.025
    theirs = ttest_1samp(values, 0).pvalue
    assert np.corrcoef(p, theirs)[0, 1] > 0.99


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    values = np.random.default_rng(8).exponential(size=(40, 600))
    _, low, high, _ = intervals(values, seed=2)
    assert 0.90 < ((low <= 1) & (high >= 1)).mean() < 0.97


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    first, again, other = intervals(values, 1), intervals(values, 1), intervals(values, 2)
    assert np.array_equal(first, again)
    assert not np.array_equal(first.low, other.low)
    assert first.low == pytest.approx(other.low, abs=0.05)


def test_against_scipy_and_theory() -> None:
    values = np.random.default_rng(5).normal(3, 2, size=400)
    _, low, high, p = intervals(values[:, None], seed=0)
    theirs = bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=np.random.default_rng(1))
    assert low[0] == pytest.approx(theirs.confidence_interval.low, abs=0.02)
    assert high[0] == pytest.approx(theirs.confidence_interval.high, abs=0.02)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert p[0] < 3 / RESAMPLES


def test_a_prompt_without_a_value_is_left_out() -> None:
    values = np.array([[1.0, 1.0], [2.0, np.nan], [4.0, 3.0], [np.nan, np.nan]])
    mean, low, high, p = intervals(values, seed=0)
    assert mean == pytest.approx([7 / 3, 2.0])
    assert low.tolist() == [1.0, 1.0]
    assert high.tolist() == [4.0, 3.0]
    assert (p >= [0.25, 0.5]).all()


def test_missing_prompts_change_a_column_as_if_it_were_alone() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(0.4, 1, size=(60, 1))
    gaps = np.vstack([values, np.full((40, 1), np.nan)])
    alone, among = intervals(values, seed=0), intervals(gaps, seed=0)
    assert among.mean == pytest.approx(alone.mean)
    assert among.low == pytest.approx(alone.low, abs=0.02)
    assert among.high == pytest.approx(alone.high, abs=0.02)
    assert among.p == pytest.approx(alone.p, abs=0.01)


def test_columns_share_their_resamples() -> None:
    """What pairing means: the intervals of a - b are those of the column of differences, not of independent draws."""
    a = np.random.default_rng(0).normal(size=50)
    result = intervals(np.stack([a, a + 1, (a + 1) - a, -a], axis=1), seed=0)
    assert result.low[1] - result.low[0] == pytest.approx(1)
    assert result.high[2] - result.low[2] == pytest.approx(0, abs=1e-12)
    assert result.low[3] == pytest.approx(-result.high[0])
    assert result.p[3] == pytest.approx(result.p[0])


def test_how_many_columns_there_are_changes_none() -> None:
    """Columns are taken in blocks; which block one falls into must not matter."""
    values = np.random.default_rng(6).normal(0.2, 1, size=(25, 300))
    many, few = intervals(values, seed=9), intervals(values[:, 250:251], seed=9)
    assert [part[250] for part in many] == pytest.approx([part[0] for part in few])


def test_holm_by_hand() -> None:
    # 4 x 0.01, 3 x 0.02, 2 x 0.03 (smaller than the one before: raised), 1 x 0.9.
    assert holm(np.array([0.03, 0.01, 0.9, 0.02])) == pytest.approx([0.06, 0.04, 0.9, 0.06])
    assert holm(np.array([0.2])) == pytest.approx([0.2])
    assert holm(np.array([0.5, 0.6])) == pytest.approx([1.0, 1.0])


@given(P, st.randoms())
def test_holm_keeps_the_order_and_never_helps(p: np.ndarray, random: object) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(p * len(p), 1) + 1e-12).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(adjusted[order]) >= 0).all()
    mixed = list(range(len(p)))
    random.shuffle(mixed)  # type: ignore[attr-defined]
    assert holm(p[mixed]) == pytest.approx(adjusted[mixed])
