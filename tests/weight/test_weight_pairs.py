"""Which responses are paired."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from components.weight.pairs import by_gap, choose, divpo, every
from components.weight.params import Params

scores = st.lists(st.integers(0, 30).map(float), min_size=0, max_size=14).map(np.array)


@given(scores, st.integers(0, 100), st.sampled_from([0.0, 5.0, 12.0]))
@settings(max_examples=150, deadline=None)
def test_gap_pairs_are_disjoint_ordered_and_exhaustive(values: np.ndarray, seed: int, gap: float) -> None:
    pairs = by_gap(values, gap, np.random.default_rng(seed))
    used = [i for pair in pairs for i in pair]
    assert len(used) == len(set(used))
    assert all(values[winner] > values[loser] for winner, loser in pairs)
    assert len(set(values[[i for i in range(len(values)) if i not in used]])) <= 1
    # Once a pair falls short of the gap, no later pair could have reached it.
    wide = [values[winner] - values[loser] >= gap for winner, loser in pairs]
    assert wide == sorted(wide, reverse=True)


def test_gap_draws_uniformly_among_admissible_pairs() -> None:
    values = np.array([0.0, 6.0, 7.0, 13.0])
    drawn = Counter(by_gap(values, 5, np.random.default_rng(seed))[0] for seed in range(3000))
    assert set(drawn) == {(1, 0), (2, 0), (3, 0), (3, 1), (3, 2)}
    assert max(drawn.values()) < 1.3 * min(drawn.values())


@given(scores, st.integers(1, 10))
@settings(max_examples=60, deadline=None)
def test_every_pair_up_to_the_cap(values: np.ndarray, cap: int) -> None:
    pairs = every(values, cap, np.random.default_rng(0))
    possible = sum(a > b for a in values for b in values)
    assert len(set(pairs)) == len(pairs) == min(cap, possible)
    assert all(values[winner] > values[loser] for winner, loser in pairs)


def test_divpo_by_hand() -> None:
    values = np.array([1.0, 9, 2, 8, 5, 5, 3, 7])
    deviant = np.array([0.4, 0.1, 0.2, 0.6, 0, 0, 0.9, 0.3])
    # Best quarter 9 and 8, the more deviant first; worst quarter 1 and 2, the less deviant first.
    assert divpo(values, deviant, 0.25) == [(3, 2), (1, 0)]
    assert divpo(np.array([3.0, 3.0]), np.array([0.0, 1.0]), 0.25) == []
    assert divpo(np.array([3.0]), np.array([0.0]), 0.25) == []


def test_a_prompt_draws_for_itself() -> None:
    values, deviant = np.arange(10.0), np.zeros(10)
    assert choose(values, deviant, Params(), "a") == choose(values, deviant, Params(), "a")
    drawn = {tuple(choose(values, deviant, Params(seed=seed), name)) for seed in range(3) for name in "ab"}
    assert len(drawn) > 1


def test_high_quality_winners() -> None:
    values = np.array([1.0, 2, 3, 3])
    pairs = choose(values, np.zeros(4), Params(pairs="all", high_quality_winners=True), "p")
    assert sorted(pairs) == [(2, 0), (2, 1), (3, 0), (3, 1)]
