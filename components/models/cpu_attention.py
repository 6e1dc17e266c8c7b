"""Causal attention within packed sequences, in bfloat16 on a CPU: torch's forward pass, and a backward pass of matrix products.

Torch's own backward pass takes about twice the time of this one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch

# Queries whose scores are held at once; more would compute more of what lies in a query's future.
_BLOCK = 128


def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int], scale: float
) -> torch.Tensor:
    """softmax(scale q k^T) v, each position seeing those before it in its own sequence, and itself.

    Args:
        query: (1, heads, tokens, width) bfloat16.
        key, value: the same with as many heads, or a divisor of them, each serving as many neighbouring queries' heads.
        bounds: where sequences begin, and the end of the last.

    Returns:
        (1, tokens, heads, width) bfloat16.
    """
    result: torch.Tensor = _PackedAttention.apply(query, key, value, bounds, scale)
    return result


class _PackedAttention(torch.autograd.Function):
    """With P = softmax(S) and D_i = sum_j dO_ij O_ij (Dao et al. 2022, arXiv 2205.14135, appendix B.2):

    dV = P^T dO,   dS = P * (dO V^T - D),   dQ = scale dS K,   dK = scale dS^T Q
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: Sequence[int], scale: float
    ) -> torch.Tensor:
        _, heads, tokens, width = query.shape
        out = query.new_empty(tokens, heads, width)
        # log sum exp of a row's scores.
        normaliser = torch.empty(heads, tokens)
        for start, end in itertools.pairwise(bounds):
            q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
            part, logs = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
            out[start:end] = part[0].transpose(0, 1)
            normaliser[:, start:end] = logs[0]
        ctx.save_for_backward(query, key, value, out, normaliser)
        ctx.bounds, ctx.scale = bounds, scale
        return out[None]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, out, normaliser = ctx.saved_tensors
        _, heads, tokens, width = query.shape
        groups = key.shape[1]

        def grouped(tensor: torch.Tensor) -> torch.Tensor:
            """(heads, tokens, ...) as (groups, heads of a group, tokens, ...)."""
            return tensor.unflatten(0, (groups, heads // groups))

        d_out = gradients[0][0]
        d_sums = (d_out.float() * out.float()).sum(-1).T
        # What is subtracted from a product becomes part of it, so that no pass over the scores is needed for it, and what is
        # rounded is the difference.
        queries = _with_shift(grouped(query[0]), grouped(normaliser / ctx.scale))
        d_outs = _with_shift(grouped(d_out.transpose(0, 1)), grouped(d_sums))
        ones = key.new_ones(groups, tokens, 2)
        keys, values = (torch.cat([tensor[0], ones], -1).transpose(1, 2) for tensor in (key, value))
        d_query = query.new_empty(groups, heads // groups, tokens, width)
        d_key, d_value = torch.zeros(groups, tokens, width), torch.zeros(groups, tokens, width)
        future = torch.ones(_BLOCK, _BLOCK, dtype=torch.bool).triu(1)
        for first, start, end in _blocks(ctx.bounds):
            rows, seen = slice(start, end), slice(first, end)
            q, d = (tensor[:, :, rows].flatten(1, 2) for tensor in (queries, d_outs))
            k, v = keys[:, :, seen], values[:, :, seen]
            p = torch.baddbmm(q.new_empty(groups, q.shape[1], k.shape[2]), q, k, beta=0, alpha=ctx.scale)
            # Of all that is seen, only the block itself may lie in the future.
            p.unflatten(1, (-1, end - start))[..., start - first :].masked_fill_(
                future[: end - start, : end - start], -torch.inf
            )
            p.exp_()
            d_score = (d @ v).mul_(p)
            d_value[:, seen] += p.transpose(1, 2) @ d[..., :width]
            d_key[:, seen] += d_score.transpose(1, 2) @ q[..., :width]
            d_query[:, :, rows] = (d_score @ key[0, :, seen]).unflatten(1, (-1, end - start))
        d_query = d_query.flatten(0, 1).mul_(ctx.scale)
        return d_query[None], d_key.mul_(ctx.scale).to(key.dtype)[None], d_value.to(value.dtype)[None], None, None


def _with_shift(tensor: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`tensor` (..., width) with two more columns that, times 1, subtract `shift` (...): it and what rounding it leaves."""
    high = shift.to(tensor.dtype)
    low = (shift - high.float()).to(tensor.dtype)
    return torch.cat([tensor, -high[..., None], -low[..., None]], -1)


def _blocks(bounds: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Where the sequence of each block of queries begins, and where the block begins and ends."""
    for first, last in itertools.pairwise(bounds):
        for start in range(first, last, _BLOCK):
            yield first, start, min(start + _BLOCK, last)
