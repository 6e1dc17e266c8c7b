"""The objectives on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.train.losses import diversified, dpo, implicit_rewards

logps = st.lists(st.floats(-500, 0), min_size=4, max_size=4)


def test_the_formula_by_hand() -> None:
    # beta * ((-10 - -12) - (-20 - -19)) = 0.1 * 3; log sigma(0.3) = -log(1 + e^-0.3)
    pair = (torch.tensor([value]) for value in (-10.0, -20.0, -12.0, -19.0))
    rewards = implicit_rewards(*pair, beta=0.1)
    assert rewards.chosen.item() == pytest.approx(0.2)
    assert rewards.rejected.item() == pytest.approx(-0.1)
    assert dpo(rewards).item() == pytest.approx(math.log1p(math.exp(-0.3)))
    assert diversified(dpo(rewards), torch.tensor([2.5])).item() == pytest.approx(2.5 * math.log1p(math.exp(-0.3)))


@given(logps, st.floats(0.01, 1), st.floats(0, 5))
def test_properties(values: list[float], beta: float, weight: float) -> None:
    chosen, rejected, ref_chosen, ref_rejected = (torch.tensor([v], dtype=torch.float64) for v in values)
    rewards = implicit_rewards(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = dpo(rewards)
    assert loss.item() >= 0
    # A policy that is the reference prefers nothing.
    assert dpo(implicit_rewards(chosen, rejected, chosen, rejected, beta)).item() == pytest.approx(math.log(2))
    # -log sigma(x) + x = -log sigma(-x)
    swapped = dpo(implicit_rewards(rejected, chosen, ref_rejected, ref_chosen, beta))
    assert (swapped - loss).item() == pytest.approx((rewards.chosen - rewards.rejected).item(), abs=1e-9)
    weights = torch.tensor([weight], dtype=torch.float64)
    torch.testing.assert_close(diversified(loss, weights), weight * loss)
