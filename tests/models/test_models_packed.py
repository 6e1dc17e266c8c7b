"""Packed log-probabilities are those of each sequence by itself, and so are their gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from components.contracts import InputError
from components.models.packed import completion_logps, pack, prepare, token_logps

Sequences = list[tuple[list[int], list[int]]]


def sequences(seed: int, count: int = 5) -> Sequences:
    generator = torch.Generator().manual_seed(seed)

    def ids(least: int, most: int) -> list[int]:
        return torch.randint(
            0, 300, (int(torch.randint(least, most, (1,), generator=generator)),), generator=generator
        ).tolist()

    return [(ids(1, 20), ids(1, 40)) for _ in range(count)]


def one_by_one(model: Any, of: Sequences) -> torch.Tensor:
    """The definition: full logits of one sequence at a time, through the model's own forward."""
    sums = []
    for prompt, completion in of:
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0].float()
        logps = logits.log_softmax(-1)[torch.arange(len(prompt) - 1, len(prompt) + len(completion) - 1), completion]
        sums.append(logps.sum())
    return torch.stack(sums)


def with_adapter(model: Any) -> Any:
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return adapted.train()


def gradients(model: Any, value: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_equals_one_by_one(tiny_model: Path) -> None:
    of = sequences(0)
    model = with_adapter(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32))
    expected = one_by_one(model, of)
    factors = torch.linspace(-1, 2, len(of))
    plain = gradients(model, (expected * factors).sum())
    prepare(model)
    packed = completion_logps(model, pack(of))
    torch.testing.assert_close(packed, expected, atol=1e-5, rtol=1e-5)
    ours = gradients(model, (packed * factors).sum())
    assert plain.keys() == ours.keys() != set()
    for name in plain:
        torch.testing.assert_close(ours[name], plain[name], atol=1e-5, rtol=1e-5)


def test_sliding_windows_and_biases() -> None:
    torch.manual_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    for model in (
        MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=5)),
        LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=1, attention_bias=True, tie_word_embeddings=False)),
    ):
        of = sequences(2)
        with torch.no_grad():
            expected = one_by_one(model, of)
            model.requires_grad_(False)
            prepare(model)
            torch.testing.assert_close(completion_logps(model, pack(of)), expected, atol=1e-5, rtol=1e-5)


@given(st.integers(0, 1000), st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_any_split_into_batches_is_the_same(seed: int, parts: int) -> None:
    torch.manual_seed(3)
    shape = {"vocab_size": 300, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**shape)).requires_grad_(False)
    prepare(model)
    of = sequences(seed, 6)
    whole = completion_logps(model, pack(of))
    split = torch.cat([completion_logps(model, pack(of[start : start + parts])) for start in range(0, 6, parts)])
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-5)


def test_token_logps_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.models.packed._CHUNK", 7)
    torch.manual_seed(0)
    hidden, head = torch.randn(30, 8, requires_grad=True), torch.randn(50, 8)
    targets, upstream = torch.randint(0, 50, (30,)), torch.randn(30)
    expected = (hidden @ head.T).log_softmax(-1)[torch.arange(30), targets]
    (slope,) = torch.autograd.grad((expected * upstream).sum(), hidden)
    got = token_logps(hidden, head, targets)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(torch.autograd.grad((got * upstream).sum(), hidden)[0], slope)


def test_what_would_be_wrong_is_refused() -> None:
    with pytest.raises(ValueError, match="frozen"):
        token_logps(torch.zeros(1, 2), torch.zeros(3, 2, requires_grad=True), torch.tensor([0]))
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    config.final_logit_softcapping = 30.0
    with pytest.raises(InputError, match="final_logit_softcapping"):
        prepare(LlamaForCausalLM(config))
