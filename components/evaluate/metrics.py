"""What is measured of each system, prompt by prompt, and how systems compare."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from components.evaluate import texts
from components.evaluate.bootstrap import holm, intervals
from components.evaluate.catalogue import BY_KEY
from components.evaluate.diversity import (
    Floats,
    Vectors,
    effective_diversity,
    first_of_class,
    mean_pairwise_distance,
    utility,
    vendi_score,
)
from components.evaluate.params import Metrics
from components.evaluate.quality import Scale
from components.evaluate.stories import Story

# Values of each prompt by metric, (prompts,), NaN where the prompt has none.
ByPrompt = Mapping[str, Floats]


def by_prompt(
    stories: Sequence[Story],
    rewards: Floats,
    vectors: Mapping[str, Vectors],
    beginnings: Mapping[str, Vectors],
    place: Mapping[str, int],
    scale: Scale,
    params: Metrics,
) -> ByPrompt:
    """A system's metrics for each prompt; catalogue.METRICS tells what they are.

    Diversity at matched length: all measures of diversity favour short texts or long ones, and a language model's stories are
    rarely as long as another's or as people's. So every story is cut to the same number of words, `params.matched_words`, and
    measured again. What differs then, differs at equal length. The number is the same for all systems, prompts and runs: the
    length of the shortest story of a comparison would change every figure with each system that joins, and a regression on
    length would have to guess its form and mistake for length what makes a system's stories long. The price is that only
    beginnings are compared, and that a story with fewer words stays shorter (metrics.json counts these).

    Args:
        stories: k for each prompt that has any, those of a prompt together.
        rewards: (stories,).
        vectors: by embedder, (stories, width).
        beginnings: the same of the stories cut to `params.matched_words`.
        place: row of each prompt.
        scale: what the rewards are worth.
    """
    rows = list(dict.fromkeys(place[story.prompt_id] for story in stories))

    def table(values: Any, dtype: Any = np.float64) -> Any:
        return np.asarray(values, dtype).reshape(len(rows), -1, *np.shape(values)[1:])

    prompts = table([story.text for story in stories], object).tolist()
    short = [[texts.shortened(text, params.matched_words) for text in told] for told in prompts]
    semantic, scores = table(vectors["semantic"]), table(rewards)
    first = first_of_class(semantic, params.similarity)
    measured = {
        "reward": scores.mean(axis=1),
        **{f"{kind}_diversity": mean_pairwise_distance(table(values)) for kind, values in vectors.items()},
        "vendi_score": vendi_score(semantic),
        "distinct_k": first.sum(axis=1),
        "utility_k": utility(first, scale.worth(scores), params.patience),
        "effective_semantic_diversity": effective_diversity(semantic, scale.good(scores)),
        **_repetition(prompts),
        "homogenisation": [texts.homogenisation([texts.words(text) for text in told]) for told in prompts],
        **{f"{kind}_diversity_matched": mean_pairwise_distance(table(values)) for kind, values in beginnings.items()},
        **{f"{metric}_matched": values for metric, values in _repetition(short).items()},
        "words": table([story.words for story in stories]).mean(axis=1),
        "cut_share": table([story.finish_reason == "length" for story in stories]).mean(axis=1),
        "empty_share": table([story.empty for story in stories]).mean(axis=1),
    }
    whole = {metric: np.full(len(place), np.nan) for metric in measured}
    for metric, values in measured.items():
        whole[metric][rows] = values
    return whole


def _repetition(prompts: Sequence[Sequence[str]]) -> dict[str, list[float]]:
    return {
        "ngram_diversity": [texts.ngram_diversity([texts.words(text) for text in told]) for told in prompts],
        "compression_ratio": [texts.compression_ratio(told) for told in prompts],
    }


def compare(systems: Mapping[str, ByPrompt], seed: int) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """Means and intervals of every system, and of the differences a - b of every two, paired by prompt.

    p is that of the mean difference being 0; `p_adjusted` is corrected by Holm for all comparisons of the family
    (catalogue.Metric): its metrics times the pairs of systems. Intervals are not corrected. A metric without any value, in a
    system or in the prompts that two systems share, is left out.

    Returns:
        `systems`: system -> metric -> {mean, low, high}; `differences`: "a-b" -> metric -> {mean, low, high, p, p_adjusted},
        over the prompts that both have.
    """
    names = list(systems)
    pairs = [(a, b) for i, b in enumerate(names) for a in names[i + 1 :]]
    columns: dict[tuple[str, str, str], Floats] = {
        (name, "", metric): column for name, values in systems.items() for metric, column in values.items()
    }
    columns |= {(a, b, metric): systems[a][metric] - systems[b][metric] for a, b in pairs for metric in systems[a]}
    columns = {key: column for key, column in columns.items() if not np.isnan(column).all()}
    result = intervals(np.stack(list(columns.values()), axis=1), seed)
    adjusted = _adjusted(list(columns), result.p)
    document: dict[str, Any] = {
        "systems": {name: {} for name in names},
        "differences": {f"{a}-{b}": {} for a in names for b in names if a != b},
    }
    numbers = zip(*(values.tolist() for values in (*result, adjusted)), strict=True)
    for (a, b, metric), (mean, low, high, p, p_adjusted) in zip(columns, numbers, strict=True):
        if b:
            tested = {"p": p, "p_adjusted": p_adjusted}
            document["differences"][f"{a}-{b}"][metric] = {"mean": mean, "low": low, "high": high, **tested}
            document["differences"][f"{b}-{a}"][metric] = {"mean": -mean, "low": -high, "high": -low, **tested}
        else:
            document["systems"][a][metric] = {"mean": mean, "low": low, "high": high}
    return document


def _adjusted(keys: Sequence[tuple[str, str, str]], p: Floats) -> Floats:
    """p-values corrected within each family; NaN for what is no difference."""
    families = np.array([BY_KEY[metric].family if b else "" for _, b, metric in keys])
    adjusted = np.full(len(p), np.nan)
    for family in set(families.tolist()) - {""}:
        rows = families == family
        adjusted[rows] = holm(p[rows])
    return adjusted


def count(stories: Sequence[Story], matched_words: int) -> dict[str, int]:
    """How a system's stories ended, how many hold no text, and how many are too short for `matched_words`."""
    reasons = Counter(story.finish_reason for story in stories)
    return {
        "stories": len(stories),
        **dict.fromkeys(("stop", "length", "human"), 0),
        **reasons,
        "empty": sum(story.empty for story in stories),
        "shorter": sum(story.words < matched_words for story in stories),
    }
