"""The sampler gives what Transformers' own chain gives, and draws as often as it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from components.evaluate.params import Params
from components.evaluate.sampling import candidates, draw

VOCABULARY = 60


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.2, 0.95, 1.0]),
    st.sampled_from([0, 1, 7, 59, 200]),
    st.sampled_from([0.0, 0.05, 0.5]),
    st.sampled_from([1.0, 1.1, 2.0]),
)
def test_the_distribution_is_transformers_own(
    seed: int, temperature: float, top_p: float, top_k: int, min_p: float, repetition_penalty: float
) -> None:
    params = Params(temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, repetition_penalty=repetition_penalty)
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, VOCABULARY, generator=generator) * 3
    said = torch.randint(VOCABULARY, (3, 10), generator=generator)
    chain = LogitsProcessorList([TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k or VOCABULARY)])
    if repetition_penalty != 1:
        chain.insert(0, RepetitionPenaltyLogitsProcessor(repetition_penalty))
    if top_p < 1:
        chain.append(TopPLogitsWarper(top_p))
    if min_p:
        chain.append(MinPLogitsWarper(min_p))
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
