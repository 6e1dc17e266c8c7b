"""Stories from a registered version, as those who use it get them."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

from components.champion.base import models
from components.champion.tables import plain
from components.champion.versions import Version
from components.contracts import InputError
from components.models.endpoint import without_thinking

_SEMANTIC, _STYLE = "semantic_diversity", "style_diversity"


def tell(
    version: Version, prompt: str, k: int, *, seed: int | None, max_new_tokens: int | None, remote_code: Collection[str]
) -> dict[str, Any]:
    """`k` stories for a prompt, sampled as in the version's evaluation, and how much they differ.

    Args:
        seed: of the sampling; drawn where left out, and told.

    Returns:
        `version`, `base_model`, `seed`, `sampling`; `stories`: [{text, tokens, ended}]; `diversity`: metric -> the mean cosine
        distance between two of them, in [0, 2], empty for one story; `evaluated`: the same metrics in the evaluation.

    Raises:
        InputError: if the prompt is empty or leaves no room for a story.
    """
    import torch
    from transformers import GenerationConfig, set_seed

    from components.models.language import load_model, load_tokenizer, prompt_text

    if not prompt.strip() or k < 1:
        raise InputError("a prompt is needed, and at least one story of it (-k 1).")
    chosen = models(version, remote_code)
    tokenizer = load_tokenizer(chosen)
    model: Any = load_model(chosen, version.folder).eval()
    ids = tokenizer(prompt_text(tokenizer, prompt), add_special_tokens=False, return_tensors="pt").to(model.device)
    given = _sampling(version)
    length = ids["input_ids"].shape[1]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = min(max_new_tokens or given.pop("max_new_tokens"), (context or 2**31) - length)
    given.pop("max_new_tokens", None)
    if room < 1:
        raise InputError(f"the prompt takes {length} tokens and leaves no room in the model's context of {context}.")
    ends = model.generation_config.eos_token_id
    stops = sorted({*([ends] if isinstance(ends, int) else ends or []), tokenizer.eos_token_id})
    seed = random.SystemRandom().randrange(2**31) if seed is None else seed
    set_seed(seed)
    model.generation_config = GenerationConfig(eos_token_id=stops, pad_token_id=tokenizer.pad_token_id)
    with torch.inference_mode():
        written = model.generate(**ids, do_sample=True, num_return_sequences=k, max_new_tokens=room, **given)
    stories = []
    for tokens in written[:, length:].tolist():
        end = next((place for place, token in enumerate(tokens) if token in stops), None)
        text = without_thinking(str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip())
        stories.append({"text": text, "tokens": len(tokens[:end]), "ended": end is not None})
    measured = version.record["measured"]["systems"][version.record["system"]]
    return {
        "version": version.name,
        "base_model": chosen.language,
        "prompt": prompt,
        "seed": seed,
        "sampling": {**given, "max_new_tokens": room},
        "stories": stories,
        "diversity": _diversity([str(story["text"]) for story in stories], version, remote_code),
        "evaluated": {metric: measured[metric]["mean"] for metric in (_SEMANTIC, _STYLE) if metric in measured},
    }


def as_text(told: Mapping[str, Any]) -> str:
    lines = [f"{told['version']} (of {told['base_model']}), seed {told['seed']}"]
    for number, story in enumerate(told["stories"], 1):
        ended = "" if story["ended"] else ", cut"
        lines += ["", f"--- {number} ({len(story['text'].split())} words{ended})", plain(story["text"]) or "(empty)"]
    lines.append("")
    for metric, value in told["diversity"].items():
        lines.append(
            f"{metric.replace('_', ' ')}: {value:.3f} (in its evaluation {told['evaluated'].get(metric, float('nan')):.3f})"
        )
    return "\n".join(lines)


def _sampling(version: Version) -> dict[str, Any]:
    """How its stories were sampled in its evaluation."""
    given = version.record["evaluation"]["set"]
    kinds: dict[str, Any] = {
        "temperature": float,
        "top_p": float,
        "top_k": int,
        "min_p": float,
        "repetition_penalty": float,
        "max_new_tokens": int,
    }
    defaults = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "max_new_tokens": 256}
    return {name: kind(given.get(f"evaluate.{name}", defaults[name])) for name, kind in kinds.items()}


def _diversity(stories: list[str], version: Version, remote_code: Collection[str]) -> dict[str, float]:
    """By the embedders of the version's evaluation; an empty story is no different from any other."""
    import numpy as np

    from components.evaluate.diversity import mean_pairwise_distance
    from components.models.embedders import encode, load_embedder

    if len(stories) < 2:
        return {}
    told = [row for row, text in enumerate(stories) if text]
    found = {}
    for metric, key in ((_SEMANTIC, "models.semantic"), (_STYLE, "models.style")):
        name = version.record["evaluation"]["set"][key]
        embedder = load_embedder(name, remote_code)
        made = encode(embedder, [stories[row] for row in told], name).vectors
        vectors = np.zeros((1, len(stories), made.shape[1]), np.float32)
        vectors[0, told] = made
        found[metric] = float(mean_pairwise_distance(vectors)[0])
    return found
