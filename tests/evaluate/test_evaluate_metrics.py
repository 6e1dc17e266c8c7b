"""What is measured of each system, and the comparison of two."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluate.bootstrap import holm
from components.evaluate.catalogue import ARROWS, BY_KEY, METRICS, described
from components.evaluate.metrics import by_prompt, compare, count
from components.evaluate.params import Metrics
from components.evaluate.quality import Scale
from components.evaluate.stories import GOLD, Story

LONG = " ".join(f"word{i}" for i in range(10))


def told(system: str, prompt_id: str, texts: list[str], reason: str = "stop") -> list[Story]:
    return [Story(system, prompt_id, i, text, len(text), reason) for i, text in enumerate(texts)]


def measured(stories: list[Story], rewards: list[float], vectors: Any, beginnings: Any, **params: Any) -> Any:
    scale = Scale(np.array([-1.0, 0.0, 0.2, 1.0]), 0.2)
    return by_prompt(
        stories, np.array(rewards), vectors, beginnings, {"a": 0, "b": 1, "c": 2}, scale, Metrics(patience=0.5, **params)
    )


def test_by_prompt_by_hand() -> None:
    stories = told("dpo", "b", [f"{LONG} and on", f"{LONG} else"]) + told("dpo", "a", ["", "one"], "length")
    vectors = {"semantic": np.array([[1, 0], [0, 1], [0, 0], [1, 0]], np.float32), "style": np.ones((4, 1), np.float32)}
    beginnings = {"semantic": np.array([[1, 0]] * 4, np.float32), "style": np.array([[1, 0], [-1, 0]] * 2, np.float32)}
    found = measured(stories, [0.5, 0.1, -1.0, 0.0], vectors, beginnings, matched_words=10)
    # Prompt a has one word, once told and once left out; b has 10 words twice and 3 others: 13 of 23 are distinct, and so on.
    expected = {
        "reward": [-0.5, 0.3],
        "semantic_diversity": [0.0, 1.0],
        "style_diversity": [0.0, 0.0],
        "vendi_score": [1.0, 2.0],
        "distinct_k": [1.0, 2.0],
        # Worths: 0 of 4 below and one equal, 1.5 of 4; 3 and 2 of 4. The empty story is none, so the other comes second.
        "utility_k": [0.375 / 3, (2 * 0.75 + 0.5) / 3],
        # One of the two reaches the bar.
        "effective_semantic_diversity": [0.0, 0.0],
        "ngram_diversity": [0.5, 13 / 23 + 12 / 21 + 11 / 19 + 10 / 17],
        "homogenisation": [1.0, 20 / 23],
        "semantic_diversity_matched": [0.0, 0.0],
        "style_diversity_matched": [2.0, 2.0],
        "ngram_diversity_matched": [0.5, 2.0],
        "words": [0.5, 11.5],
        "cut_share": [1.0, 0.0],
        "empty_share": [0.5, 0.0],
    }
    compressed = {"compression_ratio", "compression_ratio_matched"}
    assert {metric: values[:2].tolist() for metric, values in found.items() if metric not in compressed} == {
        metric: pytest.approx(values) for metric, values in expected.items()
    }
    assert found["compression_ratio_matched"][1] > found["compression_ratio"][1] > 1
    assert all(np.isnan(values[2]) for values in found.values())
    assert list(found) == [metric.key for metric in METRICS]


def test_measures_use_what_is_above_the_bar_and_alike() -> None:
    stories = told("dpo", "a", ["x y", "x z", "w"])
    vectors = {"semantic": np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32), "style": np.ones((3, 1), np.float32)}
    found = measured(stories, [0.2, 0.1, 0.3], vectors, vectors, similarity=0.75)
    # The second is like the first. The pair of the first and the third, both good, is the one of three that counts.
    assert found["distinct_k"][0] == 2
    assert found["effective_semantic_diversity"][0] == pytest.approx(1 / 3)
    assert measured(stories, [0.2, 0.1, 0.3], vectors, vectors, similarity=0.85)["distinct_k"][0] == 3


def test_differences_are_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    prompt_effect = rng.normal(size=40) * 5
    low, high = prompt_effect + rng.normal(size=40) * 0.1, prompt_effect + 1 + rng.normal(size=40) * 0.1
    document = compare({"dpo": {"reward": low}, "ddpo": {"reward": high}}, seed=0)
    wide, narrow = document["systems"]["ddpo"]["reward"], document["differences"]["ddpo-dpo"]["reward"]
    assert wide["high"] - wide["low"] > 2
    assert narrow["high"] - narrow["low"] < 0.2
    assert narrow["mean"] == pytest.approx(float((high - low).mean()))
    assert narrow["p"] < 0.001
    mirrored = document["differences"]["dpo-ddpo"]["reward"]
    assert mirrored == {**narrow, "mean": -narrow["mean"], "low": -narrow["high"], "high": -narrow["low"]}


def test_equal_systems_do_not_differ() -> None:
    values = {"reward": np.random.default_rng(1).normal(size=12)}
    document = compare({"a": values, "b": values}, seed=0)
    assert document["differences"]["a-b"]["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "p_adjusted": 1.0}
    assert document["systems"]["a"] == document["systems"]["b"]


def test_gold_counts_where_it_is() -> None:
    dpo, gold = np.array([1.0, 2.0, 3.0, 4.0]), np.array([np.nan, 5.0, np.nan, 6.0])
    document = compare({"dpo": {"reward": dpo}, GOLD: {"reward": gold}}, seed=0)
    assert document["systems"][GOLD]["reward"]["mean"] == 5.5
    assert document["systems"]["dpo"]["reward"]["mean"] == 2.5
    difference = document["differences"]["dpo-gold"]["reward"]
    assert [difference[part] for part in ("mean", "low", "high")] == [-2.5, -3.0, -2.0]
    assert difference["p"] >= 0.5


def test_p_is_corrected_within_the_family_over_all_pairs() -> None:
    rng = np.random.default_rng(2)
    metrics = ("reward", "semantic_diversity", "style_diversity", "words")
    systems = {name: {metric: rng.normal(i / 3, 1, size=30) for metric in metrics} for i, name in enumerate("abc")}
    differences = compare(systems, seed=0)["differences"]
    pairs = ("b-a", "c-a", "c-b")
    for family in (("reward",), ("semantic_diversity", "style_diversity"), ("words",)):
        found = [differences[pair][metric] for pair in pairs for metric in family]
        expected = holm(np.array([one["p"] for one in found]))
        assert [one["p_adjusted"] for one in found] == pytest.approx(expected)
        assert max(one["p_adjusted"] / one["p"] for one in found) > 1.5


def test_a_metric_without_any_value_is_left_out() -> None:
    """Such as the compression of a system that wrote nothing."""
    some, none = np.array([1.0, 2.0, 4.0]), np.full(3, np.nan)
    document = compare({"a": {"reward": some, "words": some}, "b": {"reward": some, "words": none}}, seed=0)
    assert set(document["systems"]["a"]) == {"reward", "words"}
    assert set(document["systems"]["b"]) == set(document["differences"]["a-b"]) == {"reward"}


def test_count() -> None:
    stories = told("dpo", "a", ["one", " \n"]) + told("dpo", "b", ["three of them"], "length")
    assert count(stories, 3) == {"stories": 3, "stop": 2, "length": 1, "human": 0, "empty": 1, "shorter": 2}


def test_the_readme_tells_of_each_metric() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").splitlines()
    for metric in METRICS:
        title = f"{metric.title} {ARROWS[metric.better]}".rstrip()
        assert f"| {title} | `{metric.key}` | {metric.meaning} | {metric.unit} |" in readme


def test_the_catalogue_describes_each_metric_once() -> None:
    assert len(BY_KEY) == len(METRICS)
    found = described(["words", "reward"])
    assert list(found) == ["reward", "words"]
    assert found["words"] == {
        "title": "words",
        "meaning": "mean length of a story",
        "unit": "words",
        "better": "neither",
        "family": "length",
        "digits": 0,
    }
