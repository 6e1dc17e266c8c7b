"""Which test prompts are used, and which of people's stories stand for Gold."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from components.contracts import RESPONSES, InputError, content_id
from components.evaluate.params import Params


@dataclass(frozen=True)
class Prompt:
    """A test prompt and what people wrote to it."""

    id: str
    text: str
    responses: tuple[str, ...]


def choose_prompts(responses: Path, params: Params) -> list[Prompt]:
    """At most `max_prompts` test prompts, in the order of a hash: more prompts never exchange the ones that were there.

    Raises:
        InputError: if there is no test prompt.
    """
    texts: dict[str, str] = {}
    for batch in RESPONSES.batches(responses, ["prompt_id", "prompt", "split"]):
        rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
        texts.update((prompt_id, text) for prompt_id, text, split in rows if split == "test")
    if not texts:
        raise InputError(f"{responses}: no test prompt to evaluate on. Raise ingest.test_share, or give it more prompts.")
    chosen = sorted(texts, key=lambda prompt_id: content_id("evaluate", prompt_id))[: params.max_prompts]
    written: dict[str, list[str]] = {prompt_id: [] for prompt_id in chosen}
    for batch in RESPONSES.batches(responses, ["prompt_id", "response"]):
        for prompt_id, response in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            if prompt_id in written:
                written[prompt_id].append(response)
    return [Prompt(prompt_id, texts[prompt_id], tuple(written[prompt_id])) for prompt_id in chosen]


def gold(prompt: Prompt, params: Params) -> list[str]:
    """As many of people's stories as a system writes, drawn by seed; none where people wrote fewer.

    Mean pairwise distance does not depend on the number of stories, but its spread does, as do most other measures of
    diversity: Gold must not have more of them than the systems, and a prompt with fewer has no Gold at all.
    """
    if len(prompt.responses) < params.samples:
        return []
    rng = np.random.default_rng(int(content_id(str(params.seed), prompt.id, "gold"), 16))
    chosen = np.sort(rng.choice(len(prompt.responses), params.samples, replace=False))
    return [prompt.responses[i] for i in chosen]
