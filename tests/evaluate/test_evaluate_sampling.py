"""The sampler gives what Transformers' own chain gives, and draws as often as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from components.evaluate.params import Params
from components.evaluate.sampling import Sampler, candidates, draw

VOCABULARY = 60


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.2, 0.95, 1.0]),
    st.sampled_from([0, 1, 7, 59, 200]),
    st.sampled_from([1.0, 1.1, 2.0]),
)
def test_the_distribution_is_transformers_own(
    seed: int, temperature: float, top_p: float, top_k: int, repetition_penalty: float
) -> None:
    params = Params(temperature=temperature, top_p=top_p, top_k=top_k, repetition_penalty=repetition_penalty)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, VOCABULARY, generator=generator) * 3
    said = torch.randint(VOCABULARY, (3, 10), generator=generator)
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or VOCABULARY)])
    if repetition_penalty != 1:
        chain.insert(0, RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    theirs = chain(said, logits.clone()).softmax(-1)
    tokens, probabilities = candidates(logits, said, params)
    ours = torch.zeros(3, VOCABULARY).scatter(1, tokens, probabilities.float())
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2, 0.0]], dtype=torch.float64).repeat(20_000, 1)
    uniforms = torch.from_numpy(np.random.default_rng(0).random(20_000))
    shares = draw(probabilities, uniforms).bincount(minlength=4) / 20_000
    assert shares.tolist() == pytest.approx([0.5, 0.3, 0.2, 0.0], abs=0.02)
    assert shares[3] == 0


def test_draws_at_the_ends() -> None:
    probabilities = torch.tensor([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert draw(probabilities, torch.zeros(2, dtype=torch.float64)).tolist() == [0, 1]
    nearly = torch.full((2,), float(np.nextafter(1, 0)), dtype=torch.float64)
    assert draw(probabilities, nearly).tolist() == [1, 1]


def test_filled_up_places_are_not_penalised() -> None:
    """The token that fills up is also the one that ends a story: to penalise it would lengthen the short prompts' stories."""
    params = Params(temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=2.0)
    scores = torch.tensor([[1.0, 0.9, 0.0]])
    uniforms = np.zeros((1, 1))
    alone = Sampler(params, torch.tensor([[1]]), uniforms)(torch.tensor([[2]]), scores)
    padded = Sampler(params, torch.tensor([[0, 0, 1]]), uniforms)(torch.tensor([[0, 0, 2]]), scores)
    assert torch.equal(alone, padded)
    assert alone.argmax().item() == 0
    said = Sampler(params, torch.tensor([[1, 1, 1]]), uniforms)(torch.tensor([[0, 0, 2]]), scores)
    assert said.argmax().item() == 1
