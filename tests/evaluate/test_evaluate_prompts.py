"""Which prompts are used, and which of people's stories are Gold."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.contracts import RESPONSES, InputError
from components.evaluate.params import Params
from components.evaluate.prompts import Prompt, choose_prompts, gold
from tests.conftest import response_rows


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "many.parquet"
    RESPONSES.write(path, response_rows(prompts=12, responses=3, test=9))
    return path


def test_only_test_prompts_and_all_of_their_stories(table: Path) -> None:
    rows = RESPONSES.read(table).to_pylist()
    prompts = choose_prompts(table, Params())
    assert {p.id for p in prompts} == {row["prompt_id"] for row in rows if row["split"] == "test"}
    for prompt in prompts:
        assert list(prompt.responses) == [row["response"] for row in rows if row["prompt_id"] == prompt.id]
        assert prompt.text == next(row["prompt"] for row in rows if row["prompt_id"] == prompt.id)


def test_fewer_prompts_are_the_first_of_more(table: Path) -> None:
    everything = choose_prompts(table, Params())
    assert choose_prompts(table, Params(max_prompts=4, seed=9)) == everything[:4]
    ids = [prompt.id for prompt in everything]
    assert ids != sorted(ids)


def test_no_test_prompt(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    RESPONSES.write(path, response_rows(test=0))
    with pytest.raises(InputError, match="no test prompt"):
        choose_prompts(path, Params())


def test_gold_is_k_different_stories_by_seed() -> None:
    prompt = Prompt("ab", "Write.", tuple(f"story {i}" for i in range(9)))
    chosen = gold(prompt, Params(samples=4))
    assert len(set(chosen)) == 4
    assert set(chosen) <= set(prompt.responses)
    assert chosen == gold(prompt, Params(samples=4))
    assert len({tuple(gold(prompt, Params(samples=4, seed=seed))) for seed in range(8)}) > 1


def test_too_few_stories_are_no_gold() -> None:
    three = Prompt("ab", "Write.", ("one", "two", "three"))
    assert gold(three, Params(samples=4)) == []
    assert gold(three, Params(samples=3)) == ["one", "two", "three"]
