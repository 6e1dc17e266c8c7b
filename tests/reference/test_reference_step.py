"""The reference: each number is what the model gives that text by itself; what made it is written beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from components.contracts import PAIRS, REFERENCE
from components.lineage import digest
from components.models.language import fits, load_model, load_tokenizer, token_ids
from components.models.params import Params as Models
from components.reference import step
from components.reference.step import run
from tests.conftest import story


@pytest.fixture
def models(tiny_model: Path) -> Models:
    return Models(language=str(tiny_model), max_tokens=256, dtype="float32")


@pytest.fixture
def sft(tiny_model: Path, tmp_path: Path) -> Path:
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "sft")
    return tmp_path / "sft"


def pair(number: int, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "prompt_id": f"p{number}",
        "prompt": f"Write about number {number}.",
        "chosen_id": f"{number:03d}a",
        "rejected_id": f"{number:03d}b",
        "chosen": chosen,
        "rejected": rejected,
        "chosen_score": 2.0,
        "rejected_score": 1.0,
        "split": "test" if number % 3 == 0 else "train",
    }


def write(path: Path, lengths: list[tuple[int, int]]) -> Path:
    PAIRS.write(path, [pair(i, story(i, a), story(100 + i, b)) for i, (a, b) in enumerate(lengths)])
    return path


def test_each_number_is_the_models_own(models: Models, sft: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever parts and batches the pairs come in, of both splits, in the order of the pairs."""
    monkeypatch.setattr(step, "_PART", 3)
    monkeypatch.setattr(step, "_BATCH_TOKENS", 120)
    pairs = write(tmp_path / "pairs.parquet", [(3, 40), (30, 1), (0, 12), (60, 60), (9, 8)])
    made = run(models=models, pairs=pairs, sft=sft, reference=tmp_path / "reference.parquet")
    tokenizer, model = load_tokenizer(models), load_model(models, sft)
    rows = REFERENCE.read(tmp_path / "reference.parquet").to_pylist()
    sources = PAIRS.read(pairs).to_pylist()
    assert [(row["chosen_id"], row["rejected_id"]) for row in rows] == [(p["chosen_id"], p["rejected_id"]) for p in sources]
    for row, source in zip(rows, sources, strict=True):
        for side in ("chosen", "rejected"):
            prompt, completion = token_ids(tokenizer, source["prompt"], source[side])
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logps = logits.log_softmax(-1)[torch.arange(len(completion)), completion]
            assert row[f"{side}_logp"] == pytest.approx(float(logps.sum()), abs=1e-3)
            assert row[f"{side}_tokens"] == len(completion)
    tokens = sum(row["chosen_tokens"] + row["rejected_tokens"] for row in rows)
    assert (made["pairs"], made["rejected"], made["completion_tokens"]) == (5, 0, tokens)


def test_pairs_that_the_model_cannot_read_are_left_out(
    models: Models, sft: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The longest that fits stays; one token more does not."""
    tokenizer = load_tokenizer(models)
    pairs = write(tmp_path / "pairs.parquet", [(5, 60), (5, 61), (61, 5), (5, 5)])
    sizes = [
        max(sum(map(len, token_ids(tokenizer, row["prompt"], row[side]))) for side in ("chosen", "rejected"))
        for row in PAIRS.read(pairs).to_pylist()
    ]
    limit = sorted(sizes)[1]
    kept = [f"{number:03d}a" for number, size in enumerate(sizes) if size <= limit]
    given = models.model_copy(update={"max_tokens": limit})
    made = run(models=given, pairs=pairs, sft=sft, reference=tmp_path / "reference.parquet")
    assert REFERENCE.read(tmp_path / "reference.parquet").column("chosen_id").to_pylist() == kept
    assert made["rejected"] == 4 - len(kept) > 0
    assert f"{4 - len(kept)} of 4 pairs left out, longer than {limit} tokens" in caplog.text


def test_nothing_left(models: Models, sft: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.parquet", [(50, 5)])
    given = models.model_copy(update={"max_tokens": 20})
    made = run(models=given, pairs=pairs, sft=sft, reference=tmp_path / "reference.parquet")
    assert (made["pairs"], made["rejected"], made["mean_token_logp"]) == (0, 1, 0)
    assert REFERENCE.count(tmp_path / "reference.parquet") == 0


def test_what_made_it_is_written_beside_it(models: Models, sft: Path, tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.parquet", [(3, 4)])
    run(models=models, pairs=pairs, sft=sft, reference=tmp_path / "reference.parquet")
    made_by = REFERENCE.metadata(tmp_path / "reference.parquet")
    assert made_by.keys() == {"sft", "language", "dtype", "max_tokens", "tokenizer", "chat_template"}
    assert made_by["sft"] == digest(sft)
    run(models=models, pairs=pairs, sft=sft, reference=tmp_path / "again.parquet")
    assert digest(tmp_path / "again.parquet") == digest(tmp_path / "reference.parquet")


@given(st.integers(1, 50), st.lists(st.integers(), max_size=60), st.lists(st.lists(st.integers(), max_size=60), min_size=1))
def test_what_fits(limit: int, prompt: list[int], completions: list[list[int]]) -> None:
    wanted = all(completion and len(prompt) + len(completion) <= limit for completion in completions)
    assert fits(limit, prompt, *completions) == bool(wanted)
