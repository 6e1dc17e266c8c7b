"""Every metric of an evaluation: what it is called and what it means, for all who show one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One metric, measured for each prompt and system.

    Attributes:
        meaning: what it measures of a system's k stories for a prompt.
        unit: what 1 stands for, and between which values it lies.
        better: whether more of it is better, less, or neither.
        family: its p-values are corrected together with those of its family.
        digits: after the point.
    """

    key: str
    title: str
    meaning: str
    unit: str
    better: Literal["more", "less", "neither"]
    family: Literal["quality", "diversity", "further", "matched", "length"]
    digits: int = 3


METRICS = (
    Metric("reward", "reward", "mean score by the reward model", "the scale it was trained on, -1 to 1", "more", "quality"),
    Metric(
        "semantic_diversity",
        "semantic diversity",
        "mean distance of two stories in meaning",
        "cosine distance, 0 to 2",
        "more",
        "diversity",
    ),
    Metric(
        "style_diversity",
        "style diversity",
        "mean distance of two stories in style",
        "cosine distance, 0 to 2",
        "more",
        "diversity",
    ),
    Metric(
        "vendi_score",
        "Vendi score",
        "entirely different stories that would be as diverse in meaning",
        "stories, 1 to k",
        "more",
        "further",
        2,
    ),
    Metric(
        "distinct_k", "distinct", "stories that are not like an earlier one in meaning", "stories, 0 to k", "more", "further", 2
    ),
    Metric(
        "utility_k",
        "utility",
        "worth of the distinct stories to one who may stop reading at each; worth is the share of people's with less reward",
        "0 to 1",
        "more",
        "further",
    ),
    Metric(
        "effective_semantic_diversity",
        "effective semantic diversity",
        "semantic diversity, where a pair counts only if both stories reach the quality bar",
        "cosine distance, 0 to 2",
        "more",
        "further",
    ),
    Metric(
        "ngram_diversity",
        "n-gram diversity",
        "share of distinct sequences of n words, summed over n = 1 to 4",
        "0 to 4",
        "more",
        "further",
    ),
    Metric(
        "compression_ratio",
        "compression ratio",
        "size of the stories by their size after gzip",
        "ratio",
        "less",
        "further",
    ),
    Metric("homogenisation", "homogenisation", "mean ROUGE-L F1 of two stories", "0 to 1", "less", "further"),
    Metric(
        "semantic_diversity_matched",
        "semantic diversity, matched",
        "semantic diversity of the stories' beginnings of equal length",
        "cosine distance, 0 to 2",
        "more",
        "matched",
    ),
    Metric(
        "style_diversity_matched",
        "style diversity, matched",
        "style diversity of the stories' beginnings of equal length",
        "cosine distance, 0 to 2",
        "more",
        "matched",
    ),
    Metric(
        "ngram_diversity_matched",
        "n-gram diversity, matched",
        "n-gram diversity of the stories' beginnings of equal length",
        "0 to 4",
        "more",
        "matched",
    ),
    Metric(
        "compression_ratio_matched",
        "compression ratio, matched",
        "compression ratio of the stories' beginnings of equal length",
        "ratio",
        "less",
        "matched",
    ),
    Metric("words", "words", "mean length of a story", "words", "neither", "length", 0),
    Metric("cut_share", "cut", "share of the stories cut at the token limit", "0 to 1", "less", "length"),
    Metric("empty_share", "empty", "share of the stories without text", "0 to 1", "less", "length"),
)
BY_KEY = {metric.key: metric for metric in METRICS}
ARROWS = {"more": "↑", "less": "↓", "neither": ""}


def described(keys: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The metrics of these keys as JSON tells of them, in the order of the table."""
    wanted = set(keys)
    return {metric.key: {k: v for k, v in asdict(metric).items() if k != "key"} for metric in METRICS if metric.key in wanted}
