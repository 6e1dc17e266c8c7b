"""The step: stories of every system, their scores and embeddings, the comparison and its report."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm import tqdm

from components.contracts import EXAMPLES, GENERATIONS, MEASUREMENTS, InputError, atomic
from components.evaluate import plane, report
from components.evaluate.asking import write_remote
from components.evaluate.bootstrap import CONFIDENCE, RESAMPLES
from components.evaluate.catalogue import described
from components.evaluate.diversity import Floats
from components.evaluate.generate import forget, kept, requests, write_stories
from components.evaluate.metrics import ByPrompt, by_prompt, compare, count
from components.evaluate.params import Params
from components.evaluate.prompts import Prompt, choose_prompts, gold
from components.evaluate.quality import Scale, doubts
from components.evaluate.stories import GOLD, Story
from components.evaluate.systems import ADAPTER, Local, Remote, gather
from components.evaluate.texts import shortened
from components.models.embedders import STYLOMETRIC, encode, load_embedder
from components.models.language import load_tokenizer
from components.models.params import Params as Models
from components.models.resolve import resolve
from components.models.reward import Scores, load_reward

log = logging.getLogger("polyphony")
Vectors = NDArray[np.float32]
# Prompts whose stories the evaluation itself keeps; all are among the generations.
_EXAMPLES = 20


def run(
    *,
    evaluate: Params,
    models: Models,
    responses: Path,
    reward: Path,
    system: dict[str, Path],
    generations: Path,
    evaluation: Path,
) -> dict[str, Any]:
    """Writes `generations` and the folder `evaluation`; returns the means of each system.

    Stories are kept in the work folder, and nobody is asked for them twice: a killed run goes on from the last finished ones,
    and an evaluation of the same systems with other metrics, or beside other systems, takes them from there.

    Raises:
        InputError: if there is no test prompt, no system, an adapter is missing, or a score is not finite.
    """
    _check(reward, models)
    systems = gather(system, evaluate, models)
    prompts = choose_prompts(responses, evaluate)
    tokenizer = load_tokenizer(models)
    asked = {local.name: requests(local, prompts) for local in systems if isinstance(local, Local)}
    stories: dict[str, list[Story]] = {}
    origins: dict[str, dict[str, Any]] = {}
    total = sum(len(prompts) * evaluate.samples * each.params.max_new_tokens for each in systems)
    with tqdm(total=total, unit="token", unit_scale=True, mininterval=1) as bar:
        for each in systems:
            bar.set_description(f"write {each.name}")
            origins[each.name] = dict(each.origin)
            if isinstance(each, Remote):
                stories[each.name], origins[each.name]["usage"] = write_remote(each, prompts, tokenizer, bar)
            else:
                wanted = asked[each.name]
                stories[each.name] = write_stories(each, prompts, wanted, kept(each, wanted), bar)
    forget()
    if people := _gold_stories(prompts, evaluate, tokenizer):
        stories[GOLD] = people
    everything = [story for told in stories.values() for story in told]
    texts = {prompt.id: prompt.text for prompt in prompts}
    scores = _score(everything, texts, models, reward)
    vectors, beginnings, truncated = _embed(everything, models, evaluate.metrics.matched_words)
    scale = _scale(everything, scores.values, evaluate)
    values = _by_prompt(stories, scores.values, vectors, beginnings, prompts, scale, evaluate)
    measured = _measure(stories, values, prompts, scale, evaluate)
    measured["truncated"] = {"reward": scores.truncated, **truncated}
    measured["reward_model"] = _reward_quality(reward)
    measured["origins"] = origins
    measured["warnings"] = doubts(measured["reward_model"])
    for warning in measured["warnings"]:
        log.warning("%s", warning)
    _write_generations(generations, everything, texts, scores.values, vectors)
    with atomic(evaluation) as folder:
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(measured, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        _write_measurements(folder / "measurements.parquet", values, prompts)
        EXAMPLES.write(folder / "examples.parquet", _examples(everything, prompts, scores.values))
        plane.draw(measured["systems"], folder / "plane.png")
        (folder / "plane.json").write_text(json.dumps(plane.rows(measured["systems"]), indent=2) + "\n", encoding="utf-8")
        settings = _settings(evaluate, models, measured["truncated"], len(everything)) + _others(evaluate, origins)
        report.write(
            folder / "report.html",
            measured,
            texts,
            everything,
            scores.values.tolist(),
            vectors["semantic"],
            _trainings(system),
            settings,
        )
    means = {name: {key: value["mean"] for key, value in values.items()} for name, values in measured["systems"].items()}
    for name, origin in origins.items():
        if "usage" in origin:
            means[name]["cost"] = origin["usage"]["cost"]
    return {key: measured[key] for key in ("prompts", "samples", "gold_prompts")} | means


def _check(reward: Path, models: Models) -> None:
    """Finds in the first second what would otherwise fail after all stories are written."""
    if not (reward / ADAPTER).is_file():
        raise InputError(f"{reward}: no reward model here ({ADAPTER} is missing). Run the step that trains it.")
    for model in (models.language, models.reward, models.semantic, models.style):
        if model != STYLOMETRIC:
            resolve(model)


def _gold_stories(prompts: Sequence[Prompt], params: Params, tokenizer: Any) -> list[Story]:
    stories = []
    for prompt in prompts:
        for sample, text in enumerate(gold(prompt, params)):
            tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
            stories.append(Story(GOLD, prompt.id, sample, text, tokens, "human"))
    return stories


def _score(stories: Sequence[Story], prompts: Mapping[str, str], models: Models, reward: Path) -> Scores:
    model = load_reward(models, reward)
    scores = model.score([prompts[story.prompt_id] for story in stories], [story.text for story in stories], "score")
    if broken := int((~np.isfinite(scores.values)).sum()):
        raise InputError(
            f"{reward}: the reward model gives {broken} of {len(stories)} stories no finite score. Train it again."
        )
    return scores


def _embed(
    stories: Sequence[Story], models: Models, beginning: int
) -> tuple[dict[str, Vectors], dict[str, Vectors], dict[str, int]]:
    """By embedder: vectors of the stories, vectors of their first `beginning` words, and how many stories the embedder cut.

    Vectors are (stories, width); an empty text has the zero vector.
    """
    names = {"semantic": models.semantic, "style": models.style}
    told = [row for row, story in enumerate(stories) if not story.empty]
    short = {row: text for row in told if (text := shortened(stories[row].text, beginning)) != stories[row].text}
    vectors: dict[str, Vectors] = {}
    beginnings: dict[str, Vectors] = {}
    truncated: dict[str, int] = {}
    for kind, name in names.items():
        model = load_embedder(name, models.remote_code)
        made = encode(model, [stories[row].text for row in told], f"{kind}, {name}")
        vectors[kind] = np.zeros((len(stories), made.vectors.shape[1]), np.float32)
        vectors[kind][told] = made.vectors
        truncated[kind] = made.truncated
        beginnings[kind] = vectors[kind].copy()
        beginnings[kind][list(short)] = encode(model, list(short.values()), f"{kind}, first {beginning} words").vectors
    return vectors, beginnings, truncated


def _scale(stories: Sequence[Story], rewards: Floats, params: Params) -> Scale:
    """What the rewards are read against: those of people's stories, or of all where people's are missing."""
    people = np.array([story.system == GOLD for story in stories])
    return Scale.of(rewards[people] if people.any() else rewards, params.metrics.quality_bar)


def _by_prompt(
    stories: Mapping[str, Sequence[Story]],
    rewards: Floats,
    vectors: Mapping[str, Vectors],
    beginnings: Mapping[str, Vectors],
    prompts: Sequence[Prompt],
    scale: Scale,
    params: Params,
) -> dict[str, ByPrompt]:
    """Each system's metrics, prompt by prompt."""
    place = {prompt.id: row for row, prompt in enumerate(prompts)}
    values, start = {}, 0
    for name, told in stories.items():
        rows = slice(start, start + len(told))
        whole, short = ({kind: made[rows] for kind, made in both.items()} for both in (vectors, beginnings))
        values[name] = by_prompt(told, rewards[rows], whole, short, place, scale, params.metrics)
        start += len(told)
    return values


def _measure(
    stories: Mapping[str, Sequence[Story]],
    values: Mapping[str, ByPrompt],
    prompts: Sequence[Prompt],
    scale: Scale,
    params: Params,
) -> dict[str, Any]:
    """What `metrics.json` says of the systems; `metrics` tells what the figures mean."""
    people = len(stories.get(GOLD, ()))
    return {
        "prompts": len(prompts),
        "samples": params.samples,
        "gold_prompts": people // params.samples,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "matched_words": params.metrics.matched_words,
        "quality_bar": {"reward": scale.bar, "of": GOLD if people else "all systems", "stories": len(scale.reference)},
        "metrics": described(next(iter(values.values()))),
        **compare(values, params.seed),
        "stories": {name: count(told, params.metrics.matched_words) for name, told in stories.items()},
    }


def _trainings(system: Mapping[str, Path]) -> dict[str, Any]:
    """What the trainings of the systems recorded of themselves."""
    records = {name: adapter / "training.json" for name, adapter in system.items()}
    return {name: json.loads(path.read_text(encoding="utf-8")) for name, path in records.items() if path.is_file()}


def _reward_quality(reward: Path) -> dict[str, Any]:
    """How well the reward model agreed with votes that it was not trained on; empty where its training did not say."""
    record = reward / "training.json"
    if not record.is_file():
        return {}
    # A measure that is not a number is no measure.
    return json.loads(record.read_text(encoding="utf-8"), parse_constant=lambda _: None).get("metrics", {})


def _write_measurements(path: Path, values: Mapping[str, ByPrompt], prompts: Sequence[Prompt]) -> None:
    rows = [
        {"system": system, "prompt_id": prompt.id, "metric": metric, "value": value}
        for system, metrics in values.items()
        for metric, column in metrics.items()
        for prompt, value in zip(prompts, column.tolist(), strict=True)
        if not np.isnan(value)
    ]
    MEASUREMENTS.write(path, rows)


def _examples(stories: Sequence[Story], prompts: Sequence[Prompt], rewards: Floats) -> list[dict[str, Any]]:
    texts = {prompt.id: prompt.text for prompt in prompts[:_EXAMPLES]}
    return [
        {**asdict(story), "prompt": texts[story.prompt_id], "reward": reward}
        for story, reward in zip(stories, rewards.tolist(), strict=True)
        if story.prompt_id in texts
    ]


def _write_generations(
    path: Path, stories: Sequence[Story], prompts: Mapping[str, str], rewards: Floats, vectors: Mapping[str, Vectors]
) -> None:
    columns = {name: [getattr(story, name) for story in stories] for name in ("system", "prompt_id")}
    columns["prompt"] = [prompts[story.prompt_id] for story in stories]
    columns |= {name: [getattr(story, name) for story in stories] for name in ("sample", "text", "tokens", "finish_reason")}
    widths = {kind: values.shape[1] for kind, values in vectors.items()}
    arrays = {
        kind: pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), widths[kind]) for kind, values in vectors.items()
    }
    GENERATIONS.write(path, pa.table({**columns, "reward": rewards, **arrays}), **widths)


def _others(params: Params, origins: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the systems of `evaluate.systems` are, for the report."""
    rows = []
    for name, system in params.systems.items():
        origin = origins[name]
        said = [f"like {system.like}" if system.like else str(origin["model"])]
        said += [
            str(origin[key]) for key in ("version", "revision", "base", "url", "mode") if key in origin and not system.like
        ]
        said += [f"{key} {value:g}" for key, value in system.sampling.given().items()]
        if "usage" in origin:
            said.append(f"cost {origin['usage']['cost']:.2f}")
        rows.append((f"system {name}", ", ".join(said)))
    return rows


def _settings(params: Params, models: Models, truncated: Mapping[str, int], stories: int) -> list[tuple[str, str]]:
    """How the stories were made and measured, for the report."""

    def read(kind: str) -> str:
        return f" (read only the beginning of {truncated[kind]} of {stories} stories)" if truncated[kind] else ""

    return [
        ("language model", models.language),
        (
            "sampling",
            f"temperature {params.temperature:g}, top-p {params.top_p:g}, top-k {params.top_k or 'off'}, repetition penalty "
            f"{params.repetition_penalty:g}, at most {params.max_new_tokens} tokens",
        ),
        ("reward", f"from {models.reward}{read('reward')}"),
        ("semantic embedder", models.semantic + read("semantic")),
        ("style embedder", models.style + read("style")),
        ("seed", str(params.seed)),
    ]
