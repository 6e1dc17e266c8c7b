"""What is measured of each system, prompt by prompt, and how systems compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.evaluate.bootstrap import intervals
from components.evaluate.diversity import Floats, mean_pairwise_distance
from components.evaluate.stories import Story

# Values of each prompt by metric, (prompts,), NaN where the prompt has none.
ByPrompt = Mapping[str, Floats]


def by_prompt(stories: Sequence[Story], rewards: Floats, vectors: Mapping[str, Any], place: Mapping[str, int]) -> ByPrompt:
    """A system's metrics for each prompt.

    Args:
        stories: k for each prompt that has any, those of a prompt together.
        rewards: (stories,).
        vectors: by embedder, (stories, width).
        place: row of each prompt.
    """
    rows = list(dict.fromkeys(place[story.prompt_id] for story in stories))

    def table(values: Any) -> Any:
        return np.asarray(values, np.float64).reshape(len(rows), -1, *np.shape(values)[1:])

    measured = {
        "reward": table(rewards).mean(axis=1),
        **{f"{kind}_diversity": mean_pairwise_distance(table(values)) for kind, values in vectors.items()},
        "words": table([story.words for story in stories]).mean(axis=1),
        "cut_share": table([story.finish_reason == "length" for story in stories]).mean(axis=1),
    }
    whole = {metric: np.full(len(place), np.nan) for metric in measured}
    for metric, values in measured.items():
        whole[metric][rows] = values
    return whole


def compare(systems: Mapping[str, ByPrompt], seed: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Means and intervals of every system, and of the differences a - b of every two, paired by prompt.

    Returns:
        `systems`: system -> metric -> {mean, low, high}; `differences`: "a-b" -> the same, over the prompts that both have.
    """
    columns: dict[tuple[str, str, str], Floats] = {}
    for name, values in systems.items():
        columns |= {("systems", name, metric): column for metric, column in values.items()}
    for a, of_a in systems.items():
        for b, of_b in systems.items():
            if a != b:
                columns |= {("differences", f"{a}-{b}", metric): of_a[metric] - of_b[metric] for metric in of_a}
    result = intervals(np.stack(list(columns.values()), axis=1), seed)
    document: dict[str, Any] = {"systems": {}, "differences": {}}
    for (part, name, metric), mean, low, high in zip(columns, *(values.tolist() for values in result), strict=True):
        document[part].setdefault(name, {})[metric] = {"mean": mean, "low": low, "high": high}
    return document


def count(stories: Sequence[Story]) -> dict[str, int]:
    """How a system's stories ended, and how many hold no text."""
    reasons = Counter(story.finish_reason for story in stories)
    return {
        "stories": len(stories),
        **{reason: reasons[reason] for reason in ("stop", "length", "human")},
        "empty": sum(story.empty for story in stories),
    }
