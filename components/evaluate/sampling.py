"""Sampling over the likeliest tokens alone.

Transformers' own chain sorts and draws over the whole vocabulary, which on a processor costs as much as a small model
itself. Here only the `top_k` likeliest tokens are looked at, and every sequence has random numbers of its own, so that what
it says depends on its seed and not on its neighbours in the batch.
"""

from __future__ import annotations

import torch

from components.evaluate.params import Params


def candidates(logits: torch.Tensor, said: torch.Tensor, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may come next and their probabilities, in the order in which Transformers applies its own.

    Repetition penalty (Keskar et al. 2019) on every token said so far, temperature, the `top_k` likeliest, of those the least
    set whose probability reaches `top_p` (Holtzman et al. 2020), and of those the ones at least `min_p` times as probable as
    the likeliest (Nguyen et al. 2024, arXiv 2407.01082).

    Args:
        logits: (sequences, vocabulary) float32.
        said: (sequences, tokens) prompt and story so far; what is there twice counts once.

    Returns:
        (sequences, k) token ids, likeliest first, and (sequences, k) float64 probabilities, 0 for those outside the nucleus.
    """
    known = logits.gather(1, said)
    known = torch.where(known < 0, known * params.repetition_penalty, known / params.repetition_penalty)
    logits = logits.scatter(1, said, known) / params.temperature
    k = min(params.top_k or logits.shape[1], logits.shape[1])
    values, tokens = logits.topk(k)
    probabilities = values.double().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    left_out = (before >= params.top_p) | (probabilities < params.min_p * probabilities[:, :1])
    kept = probabilities.masked_fill(left_out, 0.0)
    return tokens, kept / kept.sum(-1, keepdim=True)


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(sequences,) column drawn in each row, by the inverse of the distribution function.

    Args:
        probabilities: (sequences, k) float64.
        uniforms: (sequences,) float64 in [0, 1).
    """
    reached = probabilities.cumsum(-1)
    return (reached <= (uniforms * reached[:, -1])[:, None]).sum(-1)
