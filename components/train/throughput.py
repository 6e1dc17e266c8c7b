"""How much of the hardware a training uses: real tokens a second, and on a GPU the share of its peak and its memory."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

# Dense bfloat16 matrix products of a GPU, 1e12 operations a second, from the data sheets; the first name that fits counts.
_PEAKS = {"B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "L40S": 362, "L4": 121}

# Names of what a `Meter` reads.
MEASURED = ("tokens_per_second", "mfu", "peak_memory_gib")


@dataclass(frozen=True)
class Shape:
    """What of a model determines the cost of a step.

    Attributes:
        frozen, trained: weights in the linear layers of the decoder.
        head: vocabulary times width.
        attention: layers times heads times width of a head.
    """

    frozen: int
    trained: int
    head: int
    attention: int

    def flops(self, tokens: int, completion_tokens: int, squared_lengths: int) -> int:
        """Operations of forward and backward passes over packed sequences; what checkpointing computes again is not counted.

        A weight costs 2 a token forward, 2 backward for the gradient of its input, and 2 more where it is trained. Causal
        attention costs 2 s^2 a layer and channel forward (half of its two products), twice that backward. The head sees the
        tokens before completion tokens alone, and is frozen.

        Args:
            squared_lengths: sum of s^2 over the sequences.
        """
        sizes = (tokens, completion_tokens, squared_lengths)
        return self.forward(*sizes) + self.backward(*sizes)

    def forward(self, tokens: int, completion_tokens: int, squared_lengths: int) -> int:
        """Operations of the forward pass; see `flops`. Without completion tokens, of what checkpointing does once more."""
        linear = 2 * (self.frozen + self.trained) * tokens + 2 * self.head * completion_tokens
        return linear + 2 * self.attention * squared_lengths

    def backward(self, tokens: int, completion_tokens: int, squared_lengths: int) -> int:
        """Operations of the backward pass; see `flops`."""
        linear = (2 * self.frozen + 4 * self.trained) * tokens + 2 * self.head * completion_tokens
        return linear + 4 * self.attention * squared_lengths


def shape_of(model: Any) -> Shape:
    """The shape of a causal language model, with or without an adapter."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    weights = {True: 0, False: 0}
    for module in base.get_decoder().modules():
        if isinstance(module, torch.nn.Linear):
            weights[module.weight.requires_grad] += module.in_features * module.out_features
    config, head = base.config.get_text_config(), base.get_output_embeddings()
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        frozen=weights[False],
        trained=weights[True],
        head=head.in_features * head.out_features,
        attention=config.num_hidden_layers * config.num_attention_heads * width,
    )


def peak(device: str) -> float | None:
    """Operations a second that a GPU of that name can do at best; None where that is not known."""
    for name, tera in _PEAKS.items():
        if all(re.search(rf"\b{word}\b", device) for word in name.split()):
            return tera * 1e12
    return None


class Meter:
    """Adds up what is computed, by all processes, and reads the means over the time since the last reading."""

    def __init__(self, model: Any) -> None:
        self._shape = shape_of(model)
        self._peak = peak(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        self._since: float | None = None
        self._tokens = self._flops = 0

    def add(self, size: Sequence[int], forward_only: Sequence[int] = (0, 0, 0)) -> None:
        """Counts a step that begins now.

        Args:
            size: its tokens, completion tokens and sum of squared lengths, as `Shape.flops` takes them.
            forward_only: the same of the part that has no backward pass.
        """
        if self._since is None:
            self._since = time.perf_counter()
        self._tokens += size[0]
        self._flops += self._shape.flops(*size) - self._shape.backward(*forward_only)

    def read(self, processes: int) -> dict[str, float]:
        """tokens_per_second; on a GPU also `mfu`, the share of its peak, and peak_memory_gib."""
        now = time.perf_counter()
        seconds = now - self._since if self._since is not None else 0.0
        if seconds <= 0:
            return {}
        values = {"tokens_per_second": self._tokens / seconds}
        if self._peak is not None:
            values["mfu"] = self._flops / seconds / (self._peak * processes)
        if torch.cuda.is_available():
            values["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self._since, self._tokens, self._flops = now, 0, 0
        return values
