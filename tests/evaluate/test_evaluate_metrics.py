"""What is measured of each system, and the comparison of two."""

from __future__ import annotations

import numpy as np
import pytest

from components.evaluate.metrics import by_prompt, compare, count
from components.evaluate.stories import GOLD, Story


def told(system: str, prompt_id: str, texts: list[str], reason: str = "stop") -> list[Story]:
    return [Story(system, prompt_id, i, text, len(text), reason) for i, text in enumerate(texts)]


def test_by_prompt_by_hand() -> None:
    stories = told("dpo", "b", ["one two", "one two three four"]) + told("dpo", "a", ["", "one"], "length")
    vectors = {"semantic": np.array([[1, 0], [0, 1], [0, 0], [1, 0]], np.float32), "style": np.ones((4, 1), np.float32)}
    measured = by_prompt(stories, np.array([0.5, 0.1, -1.0, 0.0]), vectors, {"a": 0, "b": 1, "c": 2})
    expected = {
        "reward": [-0.5, 0.3],
        "semantic_diversity": [0.0, 1.0],
        "style_diversity": [0.0, 0.0],
        "words": [0.5, 3.0],
        "cut_share": [1.0, 0.0],
    }
    assert {metric: values[:2].tolist() for metric, values in measured.items()} == {
        metric: pytest.approx(values) for metric, values in expected.items()
    }
    assert all(np.isnan(values[2]) for values in measured.values())


def test_differences_are_paired_by_prompt() -> None:
    rng = np.random.default_rng(0)
    prompt_effect = rng.normal(size=40) * 5
    low, high = prompt_effect + rng.normal(size=40) * 0.1, prompt_effect + 1 + rng.normal(size=40) * 0.1
    document = compare({"dpo": {"reward": low}, "ddpo": {"reward": high}}, seed=0)
    wide, narrow = document["systems"]["ddpo"]["reward"], document["differences"]["ddpo-dpo"]["reward"]
    assert wide["high"] - wide["low"] > 2
    assert narrow["high"] - narrow["low"] < 0.2
    assert narrow["mean"] == pytest.approx(float((high - low).mean()))
    mirrored = document["differences"]["dpo-ddpo"]["reward"]
    assert [-mirrored["high"], -mirrored["low"]] == pytest.approx([narrow["low"], narrow["high"]])


def test_equal_systems_do_not_differ() -> None:
    values = {"reward": np.random.default_rng(1).normal(size=12)}
    document = compare({"a": values, "b": values}, seed=0)
    assert document["differences"]["a-b"]["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    assert document["systems"]["a"] == document["systems"]["b"]


def test_gold_counts_where_it_is() -> None:
    dpo, gold = np.array([1.0, 2.0, 3.0, 4.0]), np.array([np.nan, 5.0, np.nan, 6.0])
    document = compare({"dpo": {"reward": dpo}, GOLD: {"reward": gold}}, seed=0)
    assert document["systems"][GOLD]["reward"]["mean"] == 5.5
    assert document["systems"]["dpo"]["reward"]["mean"] == 2.5
    assert document["differences"]["dpo-gold"]["reward"] == {"mean": -2.5, "low": -3.0, "high": -2.0}


def test_count() -> None:
    stories = told("dpo", "a", ["one", " \n"]) + told("dpo", "b", ["three"], "length")
    assert count(stories) == {"stories": 3, "stop": 2, "length": 1, "human": 0, "empty": 1}
