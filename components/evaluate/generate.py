"""Stories by an adapter of the language model, in batches across prompts, each kept until all are there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from components.contracts import InputError, atomic, content_id
from components.evaluate.params import Params
from components.evaluate.prompts import Prompt
from components.evaluate.sampling import Sampler
from components.evaluate.stories import Story
from components.models.language import load_model, load_tokenizer, prompt_text
from components.models.params import Params as Models

if TYPE_CHECKING:
    from tqdm import tqdm


class _Request(NamedTuple):
    """One story to be written, with the token ids of its templated prompt."""

    prompt: Prompt
    sample: int
    ids: list[int]


def write_stories(
    system: str, adapter: Path, prompts: Sequence[Prompt], params: Params, models: Models, work: Path, bar: tqdm[Any]
) -> list[Story]:
    """`samples` stories for each prompt, in the order of the prompts.

    Args:
        work: keeps each finished batch; the same call with the same folder goes on after a kill, to the same stories.
        bar: counts tokens; moves on by `max_new_tokens` for every story.

    Raises:
        InputError: if a prompt leaves no room in the model's context.
    """
    tokenizer = load_tokenizer(models)
    requests = [
        _Request(prompt, sample, tokenizer(prompt_text(tokenizer, prompt.text), add_special_tokens=False)["input_ids"])
        for prompt in prompts
        for sample in range(params.samples)
    ]
    # Prompts of like length share a batch, so that little is filled up.
    order = sorted(range(len(requests)), key=lambda index: len(requests[index].ids))
    stories: dict[int, Story] = {}
    writer: _Writer | None = None
    for start in range(0, len(order), params.batch_size):
        rows = order[start : start + params.batch_size]
        part = work / f"{start // params.batch_size}.json"
        if not part.exists():
            writer = writer or _Writer(system, adapter, params, models)
            written = writer.write([requests[row] for row in rows], bar)
            with atomic(part) as partial:
                partial.write_text(json.dumps([asdict(story) for story in written]), encoding="utf-8")
        else:
            bar.update(len(rows) * params.max_new_tokens)
        read = (Story(**fields) for fields in json.loads(part.read_text(encoding="utf-8")))
        stories.update(zip(rows, read, strict=True))
    return [stories[row] for row in range(len(requests))]


class _Writer:
    """The model with its adapter.

    The adapter is not merged: in bfloat16 a change of a weight by less than 1/500 of it is lost in rounding, and preference
    training changes most of them by less.
    """

    def __init__(self, system: str, adapter: Path, params: Params, models: Models) -> None:
        self._system, self._params = system, params
        self._tokenizer = load_tokenizer(models)
        model: Any = load_model(models, adapter)
        self._model = model.get_base_model().eval()
        ends = self._model.generation_config.eos_token_id
        ends = [ends] if isinstance(ends, int) else ends or []
        self._ends = sorted({*ends, self._tokenizer.eos_token_id})
        # The sampling defaults that a checkpoint may carry must not reach a comparison.
        self._model.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=self._ends, pad_token_id=self._tokenizer.pad_token_id
        )
        # `generate` hands on a slice at first, for which a processor's matmul copies the head once per sequence.
        self._model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: (inputs[0].contiguous(),))
        self._context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def write(self, requests: Sequence[_Request], bar: tqdm[Any]) -> list[Story]:
        ids, mask = self._left_padded([request.ids for request in requests])
        room = self._room(requests[-1].prompt, ids.shape[1])
        uniforms = np.stack([self._generator(request).random(room) for request in requests])
        progress = _Progress(bar)
        with torch.inference_mode():
            sequences = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=room,
                logits_processor=LogitsProcessorList([Sampler(self._params, mask, uniforms)]),
                streamer=progress,
            )
        bar.update(len(requests) * self._params.max_new_tokens - progress.tokens)
        new = sequences[:, ids.shape[1] :].tolist()
        return [self._story(request, tokens) for request, tokens in zip(requests, new, strict=True)]

    def _story(self, request: _Request, tokens: list[int]) -> Story:
        end = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        told = tokens[:end]
        text = str(self._tokenizer.decode(told, skip_special_tokens=True)).strip()
        reason = "length" if end is None else "stop"
        return Story(self._system, request.prompt.id, request.sample, text, len(told), reason)

    def _generator(self, request: _Request) -> np.random.Generator:
        """Random numbers of one story's own: they depend neither on the batch nor on what was written before."""
        seed = content_id(str(self._params.seed), self._system, request.prompt.id, str(request.sample))
        return np.random.default_rng(int(seed, 16))

    def _left_padded(self, sequences: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self._tokenizer.pad({"input_ids": list(sequences)}, padding_side="left", return_tensors="pt")
        return batch["input_ids"].to(self._model.device), batch["attention_mask"].to(self._model.device)

    def _room(self, prompt: Prompt, width: int) -> int:
        room = min(self._params.max_new_tokens, (self._context or width + self._params.max_new_tokens) - width)
        if room < 1:
            raise InputError(
                f"test prompt {prompt.id} takes {width} tokens and leaves no room in the model's context of {self._context}; "
                "lower models.max_tokens, so that ingest rejects it."
            )
        return room


class _Progress(BaseStreamer):
    """Tells the bar of every step of `generate`, which first hands over the prompts, then one token of each sequence."""

    def __init__(self, bar: tqdm[Any]) -> None:
        self._bar, self.tokens = bar, 0

    def put(self, value: torch.Tensor) -> None:
        if value.dim() == 1:
            self._bar.update(len(value))
            self.tokens += len(value)

    def end(self) -> None:
        pass
