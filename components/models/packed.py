"""Log-probabilities of many completions in one pass that computes no padding and never holds full logits.

The sequences of a batch lie behind one another in one row. Linear layers see one long row; attention stays within each
sequence; only the positions that predict a completion token go through the output head, in chunks.
"""

from __future__ import annotations

import itertools
import types
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from components.contracts import InputError
from components.models.adapters import fuse
from components.models.cpu_attention import packed_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = "polyphony_packed"
# Positions whose logits are held at once: 512 x 128,000 words of bfloat16 are 125 MiB.
_CHUNK = 512
# Words whose probabilities are summed at once.
_WORDS = 4096
# Settings by which some models change their logits behind the output head.
_LOGIT_SETTINGS = ("final_logit_softcapping", "logits_scaling", "logit_scale")

Tokens = Sequence[int]


def pack(sequences: Sequence[tuple[Tokens, Tokens]]) -> dict[str, Any]:
    """One row of all sequences, each a prompt and its completion.

    Returns:
        input_ids, position_ids: (1, tokens) int64; positions begin anew in each sequence.
        cu_seq_lens_q, cu_seq_lens_k: (sequences + 1,) int32, where each sequence begins, and the end of the last.
        max_length_q, max_length_k: int, the longest sequence.
        predictors: (completion tokens,) int64, positions in the row from which a completion token is predicted.
        targets: (completion tokens,) int64, the completion tokens.
        owners: (completion tokens,) int64, the number of the sequence that each belongs to.
    """
    lengths = [len(prompt) + len(completion) for prompt, completion in sequences]
    ends = torch.tensor([0, *lengths]).cumsum(0)
    predictors = [
        torch.arange(end - len(completion), end) - 1 for (_, completion), end in zip(sequences, ends[1:].tolist(), strict=True)
    ]
    return {
        "input_ids": torch.tensor([[*(token for pair in sequences for part in pair for token in part)]]),
        "position_ids": torch.cat([torch.arange(length) for length in lengths])[None],
        "cu_seq_lens_q": ends.int(),
        "cu_seq_lens_k": ends.int(),
        "max_length_q": max(lengths),
        "max_length_k": max(lengths),
        "predictors": torch.cat(predictors),
        "targets": torch.tensor([token for _, completion in sequences for token in completion]),
        "owners": torch.repeat_interleave(torch.tensor([len(completion) for _, completion in sequences])),
    }


def prepare(model: PreTrainedModel) -> None:
    """Makes a language model (with or without an adapter) take the batches of `pack`; do this once, after loading.

    Raises:
        InputError: if the model's output or attention is of a kind that this module does not compute.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    base: Any = getattr(model, "get_base_model", lambda: model)()
    config = base.config.get_text_config()
    if found := [name for name in _LOGIT_SETTINGS if getattr(config, name, None) not in (None, 1.0)]:
        raise InputError(f"model {config.name_or_path!r}: {found[0]} is not supported: it changes the logits behind the head.")
    AttentionInterface.register(ATTENTION, _attention)
    # The mask lies in where the sequences begin.
    AttentionMaskInterface.register(ATTENTION, _no_mask)
    base.set_attn_implementation(ATTENTION)
    fuse(model)
    base.forward = types.MethodType(_forward, base)


def completion_logps(model: PreTrainedModel, batch: dict[str, Any]) -> torch.Tensor:
    """Log-probability of each sequence's completion, in nats.

    Args:
        model: passed through `prepare`.
        batch: from `pack`, on the model's device.

    Returns:
        (sequences,) float32: sums over the completion tokens.
    """
    logps: torch.Tensor = model(**{key: value for key, value in batch.items() if key != "owners"})
    sequences = len(batch["cu_seq_lens_q"]) - 1
    return torch.zeros(sequences, device=logps.device).index_add(0, batch["owners"], logps)


def _forward(self: Any, *, predictors: torch.Tensor, targets: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """In place of the model's own forward, so that wrappers around the model (DDP, FSDP, autocast) work as always."""
    hidden = self.get_decoder()(**inputs, use_cache=False).last_hidden_state[0, predictors]
    return token_logps(hidden, self.get_output_embeddings().weight, targets)


def token_logps(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """log softmax(hidden head^T)[target] of each position.

    Args:
        hidden: (positions, width).
        head: (vocabulary, width), frozen.
        targets: (positions,) int64.

    Returns:
        (positions,) float32, nats. Differentiable with respect to `hidden` alone.
    """
    if head.requires_grad:
        raise ValueError("the output head must be frozen: no gradient reaches it here. Leave it out of the adapter's targets.")
    logps: torch.Tensor = _TokenLogps.apply(hidden, head, targets)
    return logps


class _TokenLogps(torch.autograd.Function):
    """Each log-probability is a number of its own, so its gradient is known, up to a factor, in the forward pass:

        d log p(y) / d h = head[y] - softmax(head h) head

    It is kept instead of the logits: (positions, width) in place of (positions, vocabulary), and nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = hidden.to(head.dtype)
        wanted = ctx.needs_input_grad[0]
        logps = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        slopes = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(targets), _CHUNK):
            rows = slice(start, start + _CHUNK)
            h, rows_of_head = hidden[rows], head[targets[rows]]
            logits = h @ head.T
            # bfloat16 rounds logits by up to 1/16: harmless in the sum over the vocabulary, not in the one that counts.
            of_target = (h.float() * rows_of_head.float()).sum(1)
            top = logits.amax(1, keepdim=True)
            shares = logits.sub_(top).exp_()
            # A sum in float32 of all at once would first copy them.
            total = torch.stack([part.sum(1) for part in shares.split(_WORDS, 1)], 1).float().sum(1)
            logps[rows] = of_target - top[:, 0].float() - total.log()
            if slopes is not None:
                slopes[rows] = rows_of_head - (shares @ head) / total[:, None]
        ctx.save_for_backward(slopes)
        return logps

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (slopes,) = ctx.saved_tensors
        return slopes * gradients[0][:, None].to(slopes.dtype), None, None


def _no_mask(*_: Any, **__: Any) -> None:
    """In place of the mask that Transformers would make."""


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor,
    max_length_q: int,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sequence.

    Args:
        query, key, value: (1, heads, tokens, width); the latter two may have fewer heads.

    Returns:
        (1, tokens, heads, width), as Transformers wants it.
    """
    del attention_mask
    if kwargs.get("softcap") is not None or kwargs.get("s_aux") is not None:
        raise InputError(f"{type(module).__name__}: attention with soft caps or sinks is not supported.")
    grouped = query.shape[1] != key.shape[1]
    # There is none for full precision.
    if query.is_cuda and query.dtype != torch.float32:
        from torch.nn.attention.varlen import varlen_attn

        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        window = (-1 if sliding_window is None else sliding_window - 1, 0)
        bounds, longest = cu_seq_lens_q, max_length_q
        out: Any = varlen_attn(
            q, k, v, bounds, bounds, longest, longest, scale=scaling, window_size=window, enable_gqa=grouped
        )  # fmt: skip
        return out[None], None
    if query.dtype == torch.bfloat16 and torch.is_grad_enabled() and sliding_window is None and not dropout:
        return packed_attention(query, key, value, cu_seq_lens_q.tolist(), scaling or query.shape[-1] ** -0.5), None
    parts = []
    for start, end in itertools.pairwise(cu_seq_lens_q.tolist()):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        mask = None
        if sliding_window is not None and end - start > sliding_window:
            mask = torch.ones(end - start, end - start, dtype=torch.bool).tril().triu(1 - sliding_window)
        parts.append(
            F.scaled_dot_product_attention(
                q, k, v, mask, dropout_p=dropout, is_causal=mask is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(parts, 2).transpose(1, 2), None
