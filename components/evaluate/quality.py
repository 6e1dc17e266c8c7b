"""What a reward is worth beside those of other stories, and how far the reward model itself can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.evaluate.diversity import Bools, Floats


@dataclass(frozen=True)
class Scale:
    """Rewards read against those of a reference, people's stories where there are any: a reward model's own scale says little.

    Attributes:
        reference: (n,) rewards, sorted.
        bar: reward from which a story is good.
    """

    reference: Floats
    bar: float

    @classmethod
    def of(cls, rewards: Floats, share: float) -> Scale:
        """Of the reference's rewards; `share` of them lie below the bar: with 0.5 it is their median."""
        return cls(np.sort(rewards), float(np.quantile(rewards, share)))

    def good(self, rewards: Floats) -> Bools:
        return rewards >= self.bar

    def worth(self, rewards: Floats) -> Floats:
        """Share of the reference with less reward, in [0, 1]; an equal one counts half."""
        sides = [np.searchsorted(self.reference, rewards, side) for side in ("left", "right")]
        return (sides[0] + sides[1]) / (2 * len(self.reference))


def doubts(agreement: Mapping[str, Any]) -> list[str]:
    """Why the reward model may not be worth listening to, by its agreement with votes that it was not trained on.

    Chance and ranking by length alone are what it has to beat, and by more than two standard errors to have shown it.

    Args:
        agreement: what the training of the reward model recorded of held-out prompts (train.agreement); None or missing where
            not known.
    """
    accuracy, by_length = agreement.get("pair_accuracy"), agreement.get("pair_accuracy_of_length")
    gain, error = agreement.get("pair_accuracy_gain"), agreement.get("pair_accuracy_gain_error")
    if accuracy is None:
        return ["Nothing is known of how well the reward model agrees with votes: take no reward here for quality."]
    ranks = f"it ranks {accuracy:.3f} of the pairs of held-out stories as the votes do"
    if by_length is not None:
        order, best = ("longer", by_length) if by_length >= 0.5 else ("shorter", 1 - by_length)
        beside = f"{ranks}, and putting the {order} story first {best:.3f}"
        if accuracy <= best:
            return [f"The reward model is no better than length: {beside}. Take no reward here for quality."]
        if gain is not None and (error is None or gain <= 2 * error):
            known = "from a single prompt" if error is None else f"with a standard error of the difference of {error:.3f}"
            return [f"The reward model is not shown to be better than length: {beside}, {known}."]
    if accuracy <= 0.5:
        return [f"The reward model is no better than chance: {ranks}. Take no reward here for quality."]
    return []
