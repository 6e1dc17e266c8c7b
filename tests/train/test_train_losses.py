"""The objectives on numbers that can be checked by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from components.train.losses import diversified, dorpo_released, dpo, implicit_rewards, log_odds_ratio, orpo

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


def test_orpo_by_hand() -> None:
    """Probabilities of a token 1/2 and 1/4: odds 1 and 1/3, ratio 3; sigma(log 3) = 3/4."""
    chosen, rejected = torch.tensor([0.5, 0.25]).log()[:, None]
    ratio = log_odds_ratio(chosen, rejected)
    assert ratio.exp().item() == pytest.approx(3)
    loss = orpo(chosen, ratio, 0.25)
    assert loss.item() == pytest.approx(math.log(2) - 0.25 * math.log(3 / 4))
    assert diversified(loss, torch.tensor([2.0])).item() == pytest.approx(2 * loss.item())
    # A weight of 2 squares the ratio: sigma(log 9) = 9/10.
    released = dorpo_released(chosen, ratio, torch.tensor([2.0]), torch.tensor(1.5), 0.25)
    assert released.item() == pytest.approx(1.5 * math.log(2) - 0.25 * math.log(9 / 10))


@given(st.floats(-40, 0), st.floats(-40, 0), st.floats(0, 1))
def test_orpo_properties(chosen: float, rejected: float, odds_weight: float) -> None:
    """Also where a probability is 1, or next to nothing."""
    sides = [torch.tensor([value], requires_grad=True) for value in (chosen, rejected)]
    ratio = log_odds_ratio(*sides)
    assert (ratio.item() > 0) == (sides[0].item() > sides[1].item()) or ratio.item() == pytest.approx(0, abs=1e-5)
    torch.testing.assert_close(log_odds_ratio(*reversed(sides)), -ratio)
    loss = orpo(sides[0], ratio, odds_weight)
    assert loss.item() >= -sides[0].item()
    one = torch.ones(1)
    torch.testing.assert_close(dorpo_released(sides[0], ratio, one, one.mean(), odds_weight), loss)
    loss.backward()
    assert all(side.grad is None or torch.isfinite(side.grad).all() for side in sides)
