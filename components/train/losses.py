"""The objectives: pure functions of log-probabilities, one number per pair, reduced by nobody here.

`chosen` is the winner y_w of a pair, `rejected` its loser y_l; log-probabilities are sums over completion tokens, in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Rewards(NamedTuple):
    """Implicit rewards of DPO: (pairs,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


def implicit_rewards(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
) -> Rewards:
    """r(x, y) = beta * (log pi(y|x) - log ref(y|x)), Rafailov et al. 2023, arXiv 2305.18290, section 4.

    Args:
        chosen_logps, rejected_logps: (pairs,) under the policy.
        ref_chosen_logps, ref_rejected_logps: (pairs,) under the reference.
    """
    return Rewards(beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps))


def dpo(rewards: Rewards) -> torch.Tensor:
    """- log sigma(r(x, y_w) - r(x, y_l)): (pairs,). Rafailov et al. 2023, equation 7."""
    return -F.logsigmoid(rewards.chosen - rewards.rejected)


def diversified(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """delta_w * loss: (pairs,). Chung et al. 2025, arXiv 2503.17126: DDPO where `losses` are those of `dpo`.

    The weight is the winner's deviation and stands outside log sigma; a pair of weight 0 does not exist for the model, and
    weights of 1 change nothing.
    """
    return weights * losses
