"""Sampling as a logits processor: `generate` searches greedily among one token, the drawn one.

Transformers' own chain sorts and draws over the whole vocabulary, which on a processor costs as much as a small model
itself. Here only the `top_k` likeliest tokens are looked at, and every sequence has random numbers of its own, so that what
it says depends on its seed and not on its neighbours in the batch.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LogitsProcessor

from components.evaluate.params import Params


class Sampler(LogitsProcessor):
    """Draws the next token of each sequence and leaves no other possible.

    Args:
        mask: (sequences, tokens of the prompts), 0 where a prompt was filled up on the left.
        uniforms: (sequences, new tokens) in [0, 1), one number per draw.
    """

    def __init__(self, params: Params, mask: torch.Tensor, uniforms: NDArray[np.float64]) -> None:
        self._params, self._mask = params, mask.bool()
        self._uniforms = torch.from_numpy(uniforms)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        width = self._mask.shape[1]
        # A filled-up place counts as the last token of the prompt, which is there anyway.
        prompts = torch.where(self._mask, input_ids[:, :width], input_ids[:, width - 1 : width])
        said = torch.cat([prompts, input_ids[:, width:]], dim=1)
        tokens, probabilities = candidates(scores.float(), said, self._params)
        picked = draw(probabilities, self._uniforms[:, input_ids.shape[1] - width].to(scores.device))
        only = torch.full_like(scores, -torch.inf)
        return only.scatter_(1, tokens.gather(1, picked[:, None]), 0.0)  # type: ignore[return-value]


def candidates(logits: torch.Tensor, said: torch.Tensor, params: Params) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens that may come next and their probabilities, in the order in which Transformers applies its own.

    Repetition penalty (Keskar et al. 2019) on every token said so far, temperature, the `top_k` likeliest, and of those the
    least set whose probability reaches `top_p` (Holtzman et al. 2020).

    Args:
        logits: (sequences, vocabulary) float32.
        said: (sequences, tokens) prompt and story so far.

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
    kept = probabilities.masked_fill(before >= params.top_p, 0.0)
    return tokens, kept / kept.sum(-1, keepdim=True)


def draw(probabilities: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """(sequences,) column drawn in each row, by the inverse of the distribution function.

    Args:
        probabilities: (sequences, k) float64.
        uniforms: (sequences,) float64 in [0, 1).
    """
    reached = probabilities.cumsum(-1)
    return (reached <= (uniforms * reached[:, -1])[:, None]).sum(-1)
