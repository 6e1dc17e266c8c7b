"""Continuous batching: a fixed number of sequences is generated at once, and where one ends the next takes its place.

The sequences end in the same column of the key-value cache, each reaching as far to the left as it is long. So the model
sees what it sees in any batch filled up on the left, whatever its architecture makes of positions and windows; and memory is
written in place, where a growing cache is copied at every step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from components.contracts import InputError
from components.evaluate.params import Params
from components.evaluate.sampling import candidates, draw

# Columns beyond the longest sequence: the wider, the more seldom everything moves to the left.
_SLACK = 128


@dataclass(frozen=True)
class Request:
    """One story to be written.

    Attributes:
        key: what the caller knows it by.
        ids: the prompt, at least one token.
        room: how many tokens may follow, at least 1.
        seed: of its own random numbers, which depend neither on its neighbours nor on what was written before.
    """

    key: int
    ids: tuple[int, ...]
    room: int
    seed: int


@dataclass
class Told:
    """What was written so far; `ended` by itself, not at its limit. The token that ends a story is not part of it."""

    request: Request
    tokens: list[int] = field(default_factory=list)
    ended: bool = False

    @property
    def length(self) -> int:
        """Columns in the cache: the last token is not there yet."""
        return len(self.request.ids) + len(self.tokens) - 1


# Told of tokens as they are written.
Progress = Callable[[int], object]


@dataclass
class _Place:
    """Which columns of all layers are in use."""

    capacity: int
    start: int = 0
    end: int = 0


class _Layer(CacheLayerMixin):
    """Keys and values of one layer, (rows, heads, capacity, width)."""

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, place: _Place) -> None:
        super().__init__()
        self._place = place

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Not left as found: what is masked is still multiplied, by 0, and there are numbers whose product with 0 is none.
        self.keys = key_states.new_zeros(*key_states.shape[:2], self._place.capacity, key_states.shape[3])
        self.values = value_states.new_zeros(*value_states.shape[:2], self._place.capacity, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        place, end = self._place, self._place.end + key_states.shape[2]
        self.keys[:, :, place.end : end] = key_states
        self.values[:, :, place.end : end] = value_states
        return self.keys[:, :, place.start : end], self.values[:, :, place.start : end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return self._place.end - self._place.start

    def get_max_length(self) -> int:
        return -1


class Slots:
    """The generation of many sequences by one model.

    Args:
        model: a decoder of Transformers, in evaluation mode.
        ends: tokens that end a story.
        size: sequences generated at once.
    """

    def __init__(self, model: Any, ends: Sequence[int], pad: int, params: Params, size: int) -> None:
        self._model, self._ends, self._pad, self._params, self._size = model, set(ends), pad, params, size
        self._device = model.device
        self._layers = model.config.get_text_config().num_hidden_layers
        self._rows: list[Told | None] = []

    def write(self, requests: Sequence[Request], progress: Progress) -> Iterator[Told]:
        """Each story as it ends. The same requests in the same order are computed alike, to the bit."""
        self._progress = progress
        # Longest first: a prompt must not need more columns than those in use, and what does not fit fails at once.
        waiting = deque(sorted(requests, key=lambda request: -len(request.ids)))
        size = min(self._size, len(requests))
        capacity = max(len(request.ids) + request.room for request in requests)
        self._place = _Place(capacity + _SLACK)
        self._cache = self._new_layers(self._place)
        self._rows = [None] * size
        self._uniforms = torch.zeros(size, capacity, dtype=torch.float64)
        # Everything that a sequence has said, filled up with what it said first: for the repetition penalty.
        self._said = torch.zeros(size, capacity + 1, dtype=torch.long, device=self._device)
        while waiting or any(self._rows):
            free = [row for row, told in enumerate(self._rows) if told is None]
            with torch.inference_mode():
                if waiting and (len(free) >= max(1, size // 8) or len(free) == len(self._rows)):
                    ended = self._admit(free, waiting)
                else:
                    if not waiting and 2 * len(free) >= len(self._rows):
                        self._shrink()
                    ended = self._step()
            yield from ended

    def _new_layers(self, place: _Place) -> list[_Layer]:
        return [_Layer(place) for _ in range(self._layers)]

    def _admit(self, free: Sequence[int], waiting: deque[Request]) -> list[Told]:
        """Reads the prompts of as many requests as there are free rows, each prompt once, and draws their first tokens."""
        pairs = [(row, waiting.popleft()) for row in free[: len(waiting)]]
        prompts = list(dict.fromkeys(request.ids for _, request in pairs))
        width = max(map(len, prompts))
        ids = torch.tensor([[self._pad] * (width - len(prompt)) + list(prompt) for prompt in prompts])
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        place = _Place(width)
        read = self._new_layers(place)
        logits = self._forward(ids, lengths, width, read)
        place.end = width
        if not any(self._rows):
            self._place.start, self._place.end = 0, width
        of = {prompt: number for number, prompt in enumerate(prompts)}
        chosen = torch.tensor([of[request.ids] for _, request in pairs], device=self._device)
        rows = torch.tensor([row for row, _ in pairs], device=self._device)
        self._copy(read, chosen, rows, width)
        for row, request in pairs:
            self._rows[row] = Told(request)
            self._uniforms[row, : request.room] = torch.from_numpy(np.random.default_rng(request.seed).random(request.room))
            self._said[row] = request.ids[0]
            self._said[row, : len(request.ids)] = torch.tensor(request.ids)
        return self._draw(logits[chosen], [row for row, _ in pairs])

    def _copy(self, read: Sequence[_Layer], chosen: torch.Tensor, rows: torch.Tensor, width: int) -> None:
        """The columns of prompts just read become the last ones of their rows."""
        for source, target in zip(read, self._cache, strict=True):
            if not source.is_initialized:
                continue
            if not target.is_initialized:
                shape = (len(self._rows), *source.keys.shape[1:])
                target.lazy_initialization(
                    source.keys.new_empty(shape), source.values.new_empty((*shape[:3], source.values.shape[3]))
                )
            columns = slice(self._place.end - width, self._place.end)
            target.keys[rows, :, columns] = source.keys[chosen]
            target.values[rows, :, columns] = source.values[chosen]

    def _step(self) -> list[Told]:
        """One token more of every sequence. A row without one computes along, and nobody reads what."""
        active = [row for row, told in enumerate(self._rows) if told is not None]
        longest = max(told.length for told in self._rows if told is not None)
        place = self._place
        if place.end + 1 > place.capacity:
            self._move(place.end - longest)
        place.start = place.end - longest
        last = torch.tensor([[told.tokens[-1] if told else self._pad] for told in self._rows])
        lengths = torch.tensor([told.length + 1 if told else 1 for told in self._rows])
        logits = self._forward(last, lengths, longest + 1, self._cache)
        place.end += 1
        return self._draw(logits[active] if len(active) < len(self._rows) else logits, active)

    def _move(self, by: int) -> None:
        """All columns in use to the left."""
        place = self._place
        for layer in self._cache:
            if layer.is_initialized:
                for values in (layer.keys, layer.values):
                    values[:, :, : place.end - by] = values[:, :, by : place.end].clone()
        place.start, place.end = place.start - by, place.end - by

    def _shrink(self) -> None:
        """Gives up the free rows, when nobody waits for them."""
        kept = [row for row, told in enumerate(self._rows) if told is not None]
        rows = torch.tensor(kept, device=self._device)
        for layer in self._cache:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[rows], layer.values[rows]
        self._said, self._uniforms = self._said[rows], self._uniforms[kept]
        self._rows = [self._rows[row] for row in kept]

    def _forward(self, ids: torch.Tensor, lengths: torch.Tensor, width: int, layers: Sequence[_Layer]) -> torch.Tensor:
        """(rows, vocabulary) float32 logits behind the last column.

        Args:
            ids: (rows, tokens) what is not in the cache yet, filled up on the left.
            lengths: (rows,) tokens of each sequence with these.
            width: columns in use with these.
        """
        ids, lengths = ids.to(self._device), lengths.to(self._device)
        columns = torch.arange(width, device=self._device)
        mask = columns >= width - lengths[:, None]
        positions = (columns[-ids.shape[1] :] - (width - lengths[:, None])).clamp(min=0)
        result = self._model(
            input_ids=ids,
            attention_mask=mask.long(),
            position_ids=positions,
            past_key_values=Cache(layers=list(layers)),
            use_cache=True,
            logits_to_keep=1,
        )
        logits: torch.Tensor = result.logits[:, -1]
        return logits.float()

    def _draw(self, logits: torch.Tensor, rows: Sequence[int]) -> list[Told]:
        """Draws the next token of each of the rows; returns the sequences that end with it, whose rows are then free."""
        stories = [self._rows[row] for row in rows]
        uniforms = self._uniforms[list(rows), [len(told.tokens) for told in stories if told]]
        lengths = [told.length + 1 for told in stories if told]
        tokens, probabilities = candidates(logits, self._said[list(rows), : max(lengths)], self._params)
        picked = tokens.gather(1, draw(probabilities, uniforms.to(self._device))[:, None])[:, 0]
        self._said[list(rows), lengths] = picked
        ended = []
        for row, told, token in zip(rows, stories, picked.tolist(), strict=True):
            assert told is not None  # noqa: S101
            if token in self._ends:
                told.ended = True
            else:
                told.tokens.append(token)
            if told.ended or len(told.tokens) == told.request.room:
                self._rows[row] = None
                ended.append(told)
        self._progress(len(rows) - sum(told.ended for told in ended))
        return ended


def require_attention(model: Any, name: str) -> None:
    """Refuses a model that keeps more of its past than keys and values.

    Raises:
        InputError: if it does.
    """
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    if getattr(model, "_is_stateful", False) or kinds - {"full_attention", "sliding_attention", "chunked_attention"}:
        raise InputError(
            f"model {name!r} is not a plain transformer (it keeps a state beside keys and values). Serve it, with vLLM say, "
            "and name it as an endpoint."
        )
