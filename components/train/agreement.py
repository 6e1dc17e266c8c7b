"""How well a reward model agrees with the votes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from components.train.votes import Floats


def agreement(
    prompt_ids: Sequence[str], votes: Floats, targets: Floats, predicted: Floats, words: Floats
) -> dict[str, float | None]:
    """Measures of agreement over the responses of some prompts; None where a measure is not defined.

    Args:
        votes: (n,) votes as they were cast.
        targets: (n,) votes on the scale that the model was trained on.
        predicted: (n,) what the model says.
        words: (n,) lengths of the responses.

    Returns:
        spearman: rank correlation of prediction and votes within a prompt, mean over the prompts in which both differ.
        spearman_pooled: the same over all responses as one group.
        pair_accuracy: share of the pairs of a prompt with different votes that are ranked as the votes do; a tie counts half.
        pair_accuracy_of_length: what ranking by length alone would get there.
        mae: mean absolute error, on the scale of the targets.
        length_correlation: rank correlation of prediction and length, over all responses.
    """
    groups = _groups(prompt_ids)
    within = [value for rows in groups if (value := spearman(votes[rows], predicted[rows])) is not None]
    return {
        "spearman": float(np.mean(within)) if within else None,
        "spearman_pooled": spearman(votes, predicted),
        "pair_accuracy": _pair_accuracy(groups, votes, predicted),
        "pair_accuracy_of_length": _pair_accuracy(groups, votes, words),
        "mae": float(np.mean(np.abs(targets - predicted))) if len(targets) else None,
        "length_correlation": spearman(words, predicted),
    }


def spearman(a: Floats, b: Floats) -> float | None:
    """Spearman's rank correlation, tied values at their mean rank; None where either does not vary."""
    if len(a) < 2:
        return None
    ranks = np.stack([rankdata(a), rankdata(b)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    spread = np.sqrt((ranks**2).sum(axis=1).prod())
    return float(ranks[0] @ ranks[1] / spread) if spread else None


def _groups(prompt_ids: Sequence[str]) -> list[list[int]]:
    groups: dict[str, list[int]] = {}
    for row, prompt_id in enumerate(prompt_ids):
        groups.setdefault(prompt_id, []).append(row)
    return list(groups.values())


def _pair_accuracy(groups: Sequence[Sequence[int]], votes: Floats, predicted: Floats) -> float | None:
    right = pairs = 0.0
    for rows in groups:
        better = votes[rows][:, None] > votes[rows][None, :]
        difference = (predicted[rows][:, None] - predicted[rows][None, :])[better]
        right += float((difference > 0).sum() + 0.5 * (difference == 0).sum())
        pairs += difference.size
    return right / pairs if pairs else None
