"""What a training will need, before it starts: memory of each process, and time. Arithmetic alone; it loads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from components.train.throughput import Shape, shape_of

# Share of the hardware's matrix products per second that a training reaches.
UTILISATION = 0.4
# Positions whose logits are held at once, see components/models/packed.py.
_CHUNK = 512
# What activations take beyond what is kept of them: short-lived copies, gaps between them. Measured on a CPU.
_SLACK = 1.25
# What a process holds besides, in bytes: Python, the libraries, the context of a GPU.
_BESIDES = 0.8e9


@dataclass(frozen=True)
class Model:
    """A language model with its adapter, as far as its cost goes.

    Attributes:
        weights: numbers in the frozen model.
        stored: bytes that they take.
        trained: numbers in the adapter.
        dtype: bytes of a number computed.
        width, vocabulary, layers: of the decoder.
        kept: bytes that one token leaves behind in one layer for the backward pass.
        shape: what determines the operations.
    """

    weights: int
    stored: float
    trained: int
    dtype: int
    width: int
    vocabulary: int
    layers: int
    kept: int
    shape: Shape


@dataclass(frozen=True)
class Lengths:
    """Of all examples, in tokens. Attributes: prompts: (examples,) int64; completions: (examples, sequences) int64."""

    prompts: NDArray[np.int64]
    completions: NDArray[np.int64]

    @property
    def sequences(self) -> NDArray[np.int64]:
        """(examples, sequences): each is the prompt and a completion."""
        return self.prompts[:, None] + self.completions

    @property
    def examples(self) -> NDArray[np.int64]:
        """(examples,): all sequences of an example."""
        return self.sequences.sum(1)


@dataclass(frozen=True)
class Data:
    """What is trained on, in tokens.

    Attributes:
        examples: their number.
        tokens, completion_tokens, squared_lengths: of all sequences, once through; the last is the sum of their squares.
        longest: tokens of the longest example.
        largest: tokens of the largest pass through the model.
    """

    examples: int
    tokens: int
    completion_tokens: int
    squared_lengths: int
    longest: int
    largest: int


@dataclass(frozen=True)
class Hardware:
    """Attributes: memory: bytes for a process; speed: operations a second, of matrix products in the precision of the model."""

    name: str
    memory: int
    speed: float


def measure_model(model: Any, *, four_bits: bool = False) -> Model:
    """The costs of a PEFT model with LoRA; its weights may be on the meta device.

    Args:
        four_bits: whether the linear layers of its decoder will be kept in 4 bits, and 0.127 for their scales.

    What a token leaves behind in a layer, in bytes, with bfloat16 (d: 2 bytes) and width h, feed-forward f, keys k: two norms
    keep their input in float32 twice (16 h less what they share: 8 h); attention keeps queries and output, keys and values
    (2 d h + 2 d k); the gated feed-forward network three tensors (3 d f); each adapter its own hidden layer, and its input,
    which those that share it keep once.
    """
    base = model.get_base_model()
    config = base.config.get_text_config()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    dtype = next(p for p in model.parameters() if not p.requires_grad).element_size()
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = head * (getattr(config, "num_key_value_heads", None) or heads)
    adapters = {name: module for name, module in model.named_modules() if name.endswith(("lora_A.default", "lora_B.default"))}
    hidden = sum(module.in_features for name, module in adapters.items() if name.endswith("lora_B.default"))
    inputs = {_shared_input(name): module.in_features for name, module in adapters.items() if name.endswith("lora_A.default")}
    kept = 8 * config.hidden_size + 2 * dtype * (heads * head + keys) + 3 * dtype * config.intermediate_size
    weights, shape = sum(p.numel() for p in model.parameters()) - trained, shape_of(model)
    return Model(
        weights=weights,
        stored=dtype * (weights - shape.frozen) + 4.127 / 8 * shape.frozen if four_bits else dtype * weights,
        trained=trained,
        dtype=dtype,
        width=config.hidden_size,
        vocabulary=config.vocab_size,
        layers=config.num_hidden_layers,
        kept=kept + dtype * (hidden + sum(inputs.values())) // config.num_hidden_layers,
        shape=shape,
    )


def _shared_input(adapter: str) -> str:
    """A name of what the adapter reads: the same for those that read the same tensor."""
    names = {"q_proj": "attention", "k_proj": "attention", "v_proj": "attention", "gate_proj": "network", "up_proj": "network"}
    layer, name = adapter.removesuffix(".lora_A.default").rsplit(".", 1)
    return f"{layer}.{names.get(name, name)}"


def memory(model: Model, largest: int, *, share_of_weights: float = 1.0, checkpointing: bool = False) -> dict[str, float]:
    """Bytes that one process needs at most, by what needs them.

    Args:
        largest: tokens of its largest pass.
        share_of_weights: of the frozen weights that the process holds; less than 1 where they are sharded.
        checkpointing: whether layers keep their input alone, and compute the rest again in the backward pass.
    """
    layers = model.layers * model.dtype * model.width if checkpointing else model.layers * model.kept
    # One layer's more for what the backward pass computes on its way, and the log-probabilities' slopes.
    activations = _SLACK * largest * (layers + model.kept + 4 * model.dtype * model.width)
    return {
        "weights": model.stored * share_of_weights,
        # Weight, gradient and the two moments of Adam, in float32.
        "adapter": 16.0 * model.trained,
        "activations": activations,
        # Logits, in whose place their exponentials come.
        "head": float(min(largest, _CHUNK) * model.vocabulary * model.dtype),
        "besides": _BESIDES,
    }


def seconds(
    model: Model, data: Data, epochs: int, hardware: Hardware, processes: int = 1, *, checkpointing: bool = False
) -> float:
    """Time of the training itself, at `UTILISATION` of the hardware."""
    operations = model.shape.flops(data.tokens, data.completion_tokens, data.squared_lengths)
    if checkpointing:
        operations += model.shape.forward(data.tokens, 0, data.squared_lengths)
    return epochs * operations / (hardware.speed * UTILISATION * processes)


def measure_data(lengths: Lengths, batch_size: int, tokens_per_pass: int) -> Data:
    """The sizes of examples; the largest pass is the longest example, or as much of the longest ones as may go together."""
    examples, sequences = lengths.examples, lengths.sequences
    longest = int(examples.max())
    return Data(
        examples=len(examples),
        tokens=int(examples.sum()),
        completion_tokens=int(lengths.completions.sum()),
        squared_lengths=int((sequences**2).sum()),
        longest=longest,
        largest=max(longest, min(tokens_per_pass, int(np.sort(examples)[-batch_size:].sum()))),
    )


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
