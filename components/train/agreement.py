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
        pair_accuracy_of_length: what ranking by length alone, longest first, would get there.
        pair_accuracy_gain: how much better the model ranks than length alone, longest first or shortest first, whichever is
            right more often.
        pair_accuracy_gain_error: standard error of that, prompts being the sample: of a ratio of sums over prompts, linearised
            (Cochran 1977, section 6.4).
        mae: mean absolute error, on the scale of the targets.
        length_correlation: rank correlation of prediction and length, over all responses.
    """
    groups = _groups(prompt_ids)
    by_model, pairs = _ranked(groups, votes, predicted)
    by_length, _ = _ranked(groups, votes, words)
    by_either = max(by_length, pairs - by_length, key=np.sum)
    within = [value for rows in groups if (value := spearman(votes[rows], predicted[rows])) is not None]
    return {
        "spearman": float(np.mean(within)) if within else None,
        "spearman_pooled": spearman(votes, predicted),
        "pair_accuracy": _ratio(by_model, pairs),
        "pair_accuracy_of_length": _ratio(by_length, pairs),
        "pair_accuracy_gain": _ratio(by_model - by_either, pairs),
        "pair_accuracy_gain_error": _ratio_error(by_model - by_either, pairs),
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


def _ranked(groups: Sequence[Sequence[int]], votes: Floats, predicted: Floats) -> tuple[Floats, Floats]:
    """For each prompt, (prompts,), how many pairs with different votes are ranked as the votes do, and how many there are."""
    right, pairs = np.zeros((2, len(groups)))
    for prompt, rows in enumerate(groups):
        better = votes[rows][:, None] > votes[rows][None, :]
        difference = (predicted[rows][:, None] - predicted[rows][None, :])[better]
        right[prompt] = (difference > 0).sum() + 0.5 * (difference == 0).sum()
        pairs[prompt] = difference.size
    return right, pairs


def _ratio(values: Floats, pairs: Floats) -> float | None:
    return float(values.sum() / pairs.sum()) if pairs.sum() else None


def _ratio_error(values: Floats, pairs: Floats) -> float | None:
    """Standard error of `_ratio`; None for fewer than two prompts that have pairs."""
    n = int((pairs > 0).sum())
    if n < 2:
        return None
    residuals = values - pairs * (values.sum() / pairs.sum())
    return float(np.sqrt(n / (n - 1) * (residuals**2).sum()) / pairs.sum())
