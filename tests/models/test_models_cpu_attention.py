"""The attention of packed sequences against torch's own, sequence by sequence."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from components.models import cpu_attention
from components.models.cpu_attention import packed_attention

# Shorter and longer than a block, and just as long.
BOUNDS = [0, 1, 8, 24, 25, 46]
SCALE = 0.3
Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def torchs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    parts = [
        F.scaled_dot_product_attention(
            *(tensor[:, :, start:end] for tensor in (query, key, value)), is_causal=True, scale=SCALE, enable_gqa=True
        )
        for start, end in itertools.pairwise(BOUNDS)
    ]
    return torch.cat(parts, 2).transpose(1, 2)


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return packed_attention(query, key, value, BOUNDS, SCALE)


def outputs(attention: Attention, groups: int, dtype: torch.dtype, spread: float = 1.0) -> list[torch.Tensor]:
    """The result for fixed random inputs, and the gradients."""
    generator = torch.Generator().manual_seed(0)
    # As a model makes them: (tokens, heads, width), seen with the heads first; values that bfloat16 holds.
    tensors = [spread * torch.randn(1, BOUNDS[-1], heads, 16, generator=generator) for heads in (6, groups, groups)]
    inputs = [tensor.bfloat16().to(dtype).transpose(1, 2).requires_grad_() for tensor in tensors]
    result = attention(*inputs)
    upstream = torch.randn(result.shape, generator=generator).bfloat16().to(dtype)
    return [result.detach(), *torch.autograd.grad(result, inputs, upstream)]


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_equals_torchs(monkeypatch: pytest.MonkeyPatch, groups: int) -> None:
    monkeypatch.setattr(cpu_attention, "_BLOCK", 8)
    for found, expected in zip(outputs(ours, groups, torch.float32), outputs(torchs, groups, torch.float32), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_in_bfloat16_it_rounds_no_worse_than_torchs() -> None:
    """By more than a factor of three in no gradient, with large scores and small ones."""
    exact = outputs(torchs, 2, torch.float32, 3.0)

    def errors(attention: Attention) -> list[float]:
        found = outputs(attention, 2, torch.bfloat16, 3.0)
        return [float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)]

    mine, theirs = errors(ours), errors(torchs)
    assert mine[0] == theirs[0]
    assert all(0 < a < 3 * b for a, b in zip(mine, theirs, strict=True)), (mine, theirs)
    assert max(mine) < 0.02
