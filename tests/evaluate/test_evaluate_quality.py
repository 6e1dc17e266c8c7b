"""What a reward is worth, and when it is doubted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import percentileofscore

from components.evaluate.quality import Scale, doubts

REWARDS = arrays(np.float64, st.integers(1, 30), elements=st.integers(-5, 5).map(float))


def test_scale_by_hand() -> None:
    scale = Scale.of(np.array([0.4, -1.0, 0.2, 0.2]), 0.5)
    assert scale.bar == 0.2
    assert scale.good(np.array([0.19, 0.2, 3.0])).tolist() == [False, True, True]
    assert scale.worth(np.array([-2.0, -1.0, 0.2, 0.3, 9.0])).tolist() == [0, 0.125, 0.5, 0.75, 1]
    assert Scale.of(np.array([0.0, 1.0]), 0.25).bar == 0.25


@given(REWARDS, REWARDS)
def test_worth_is_the_percentile(reference: np.ndarray, rewards: np.ndarray) -> None:
    worth = Scale.of(reference, 0.5).worth(rewards)
    assert worth == pytest.approx([percentileofscore(reference, reward, "mean") / 100 for reward in rewards])


@pytest.mark.parametrize(
    ("accuracy", "by_length", "said"),
    [
        (0.65, 0.6, []),
        (0.65, None, []),
        (0.6, 0.6, ["no better than length: it ranks 0.600", "putting the longer story first 0.600"]),
        (0.55, 0.6, ["no better than length"]),
        # Voters who like short stories.
        (0.55, 0.35, ["no better than length", "putting the shorter story first 0.650"]),
        (0.5, 0.5, ["no better than length"]),
        (0.45, None, ["no better than chance"]),
        (None, None, ["Nothing is known"]),
        (None, 0.6, ["Nothing is known"]),
    ],
)
def test_doubts(accuracy: float | None, by_length: float | None, said: list[str]) -> None:
    found = doubts({"pair_accuracy": accuracy, "pair_accuracy_of_length": by_length})
    assert len(found) == bool(said)
    for text in said:
        assert text in found[0]


@pytest.mark.parametrize(
    ("gain", "error", "said"),
    [
        (0.05, 0.02, ""),
        (0.05, 0.03, "not shown to be better than length: it ranks 0.650"),
        (0.05, None, "from a single prompt"),
    ],
)
def test_a_gain_over_length_must_be_more_than_chance(gain: float, error: float | None, said: str) -> None:
    measures = {"pair_accuracy": 0.65, "pair_accuracy_of_length": 0.6}
    found = doubts(measures | {"pair_accuracy_gain": gain, "pair_accuracy_gain_error": error})
    assert len(found) == bool(said)
    assert said in "".join(found)


def test_a_reward_model_without_a_record_is_doubted() -> None:
    assert len(doubts({})) == 1
