"""Lengths, repetition and joins: what the expectations look at."""

from __future__ import annotations

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.contracts import PAIRS, RESPONSES, content_id
from components.validate.features import (
    distinct_share,
    in_order,
    pair_features,
    pair_identities,
    prompt_features,
    response_features,
)
from tests.conftest import response_rows, story


def batch(rows: list[dict[str, object]]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(rows, RESPONSES.schema().empty_table().schema)


@given(st.text(max_size=300))
def test_distinct_share_is_a_share(text: str) -> None:
    assert 0 < distinct_share(text) <= 1


@given(st.text(min_size=1, max_size=60), st.integers(2, 30))
def test_a_loop_has_no_more_passages_than_its_period(period: str, times: int) -> None:
    passages = len(period) * times - 19
    assert distinct_share(period * times) <= min(1.0, len(period) / max(passages, 1))


@pytest.mark.parametrize("text", [story(1, 300), "".join(chr(0x4E00 + i * 7 % 5000) for i in range(900))])
def test_texts_that_do_not_loop(text: str) -> None:
    assert distinct_share(text) > 0.9


def test_a_text_that_loops_at_its_end_only() -> None:
    assert distinct_share(story(1, 100) + story(2, 10) * 30) < 0.7


def test_response_features_hold_no_texts() -> None:
    rows = response_rows()
    features = response_features(batch(rows))
    assert list(features["response"]) == [content_id(row["response"]) for row in rows]
    assert list(features["content"]) == [row["response_id"] for row in rows]
    assert list(features["response_characters"]) == [len(row["response"]) for row in rows]
    longest = max(len(str(value)) for value in features.to_numpy().ravel())
    assert longest < min(len(row["response"]) for row in rows)


def test_missing_texts_are_null_and_blank() -> None:
    rows = [{**response_rows()[0], "response": None, "prompt": " \n "}]
    nullable = pa.schema([field.with_nullable(True) for field in RESPONSES.schema()])
    features = response_features(pa.RecordBatch.from_pylist(rows, nullable))
    assert features["response"].isna().all()
    assert features[["prompt_characters", "response_characters"]].to_numpy().tolist() == [[0, 0]]


def test_order() -> None:
    rows = response_rows()
    swapped = [rows[1], rows[0], *rows[2:]]
    assert in_order(response_features(batch(rows))).all()
    assert list(in_order(response_features(batch(swapped)))) == [True, False] + [True] * (len(rows) - 2)


def test_prompt_features() -> None:
    rows = response_rows(prompts=2, responses=3, test=1)
    rows[0] |= {"split": "test" if rows[0]["split"] == "train" else "train"}
    features = prompt_features(response_features(batch(rows))).set_index("prompt_id")
    both, one = features.loc[rows[0]["prompt_id"]], features.loc[rows[-1]["prompt_id"]]
    assert (both["responses"], both["splits"], one["splits"], one["texts"], one["scores"]) == (3, 2, 1, 1, 3)
    assert one["train"] + one["test"] == 1


def test_pair_features_are_null_where_the_tables_do_not_know_the_response() -> None:
    rows = response_rows(prompts=1, responses=3)
    pair = {
        "prompt_id": rows[0]["prompt_id"],
        "prompt": rows[0]["prompt"],
        "chosen_id": rows[0]["response_id"],
        "rejected_id": "unknown",
        "chosen": rows[0]["response"],
        "rejected": "?",
        "chosen_score": 1.0,
        "rejected_score": 0.0,
        "split": "test",
    }
    pairs = pair_identities(pa.RecordBatch.from_pylist([pair, {**pair, "rejected_id": rows[1]["response_id"]}], PAIRS.schema()))
    deviations = pd.DataFrame({"response_id": [rows[1]["response_id"]], "weight": [2.0]})
    features = pair_features(pairs, response_features(batch(rows)), deviations)
    assert list(features["known_rejected_response"].isna()) == [True, False]
    assert list(features["known_chosen_response"]) == [content_id(rows[0]["response"])] * 2
    assert features["chosen_weight"].isna().all()
    assert list(features["uses"]) == [2, 2]
