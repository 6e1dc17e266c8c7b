"""The objectives: pure functions of log-probabilities, one number per pair, reduced by nobody here.

`chosen` is the winner y_w of a pair, `rejected` its loser y_l; log-probabilities are sums over completion tokens, in nats,
or, where they are called means, divided by the number of these tokens. delta_w is the winner's deviation weight.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class Sides(NamedTuple):
    """One number for the winner and one for the loser of each pair: (pairs,) each."""

    chosen: torch.Tensor
    rejected: torch.Tensor


def implicit_rewards(
    chosen_logps: torch.Tensor,
    rejected_logps: torch.Tensor,
    ref_chosen_logps: torch.Tensor,
    ref_rejected_logps: torch.Tensor,
    beta: float,
) -> Sides:
    """r(x, y) = beta * (log pi(y|x) - log ref(y|x)), Rafailov et al. 2023, arXiv 2305.18290, section 4.

    Args:
        chosen_logps, rejected_logps: (pairs,) under the policy.
        ref_chosen_logps, ref_rejected_logps: (pairs,) under the reference.
    """
    return Sides(beta * (chosen_logps - ref_chosen_logps), beta * (rejected_logps - ref_rejected_logps))


def dpo(rewards: Sides) -> torch.Tensor:
    """- log sigma(r(x, y_w) - r(x, y_l)): (pairs,). Rafailov et al. 2023, equation 7."""
    return -F.logsigmoid(rewards.chosen - rewards.rejected)


def diversified(losses: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """delta_w * loss: (pairs,). Chung et al. 2025, arXiv 2503.17126: DDPO where `losses` are those of `dpo`.

    DORPO where they are those of `orpo`. The weight stands outside log sigma; a pair of weight 0 does not exist for the model,
    and weights of 1 change nothing.
    """
    return weights * losses


def log_odds_ratio(chosen_means: torch.Tensor, rejected_means: torch.Tensor) -> torch.Tensor:
    """log odds(y_w|x) - log odds(y_l|x), with odds(y|x) = p / (1 - p) and log p = log pi(y|x) / |y|.

    Hong et al. 2024, arXiv 2403.07691, equations 3 and 4 (there, p is the geometric mean of the tokens' probabilities).

    Args:
        chosen_means, rejected_means: (pairs,) mean log-probability of a completion token.
    """
    return _log_odds(chosen_means) - _log_odds(rejected_means)


def _log_odds(log_p: torch.Tensor) -> torch.Tensor:
    # At p = 1 the odds are infinite; float32 tells no p from 1 that is nearer than this.
    log_p = log_p.clamp(max=-1e-7)
    return log_p - torch.log(-torch.expm1(log_p))


def orpo(chosen_means: torch.Tensor, ratio: torch.Tensor, odds_weight: float) -> torch.Tensor:
    """NLL(y_w|x) + lambda * L_OR, L_OR = - log sigma(ratio): (pairs,). Hong et al. 2024, equations 6 and 7.

    NLL is the mean over the winner's completion tokens, of each pair by itself, as in the paper. TRL's ORPOTrainer takes it
    over the prompt's tokens as well, and over all tokens of a batch together, so that long stories count for more and the loss
    depends on how pairs are batched. For one pair whose prompt is one token both are the same.

    Args:
        chosen_means: (pairs,) mean log-probability of the winner's tokens.
        ratio: (pairs,) from `log_odds_ratio`.
        odds_weight: lambda, which TRL calls beta; 0.25 in Chung et al. 2025.
    """
    return -chosen_means - odds_weight * F.logsigmoid(ratio)


def dorpo_released(
    chosen_means: torch.Tensor, ratio: torch.Tensor, weights: torch.Tensor, mean_weight: torch.Tensor, odds_weight: float
) -> torch.Tensor:
    """mean(delta) * NLL(y_w|x) - lambda * log sigma(delta_w * ratio): (pairs,).

    What the code released with Chung et al. 2025 computes in place of the paper's DORPO (`diversified` of `orpo`): the weight
    stands inside log sigma, and the likelihood has the mean weight of the batch, so a pair of weight 0 still counts. Here the
    batch is the whole step. For comparison; weights of 1 give `orpo`.

    Args:
        weights: (pairs,) delta_w.
        mean_weight: () mean of the weights over the pairs of the step.
    """
    return -mean_weight * chosen_means - odds_weight * F.logsigmoid(weights * ratio)
