"""Writes a study: what annotators get, and the key, which they must not see."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from components.contracts import GENERATIONS, InputError, atomic
from components.pages import page
from components.study.tasks import SIDES, TIE, Passage, Stories, Task, make_tasks, order

KEY, TASKS, PAGE = "key.json", "tasks.json", "study.html"
LABEL_STUDIO, LABEL_STUDIO_CONFIG = "label-studio.json", "label-studio.xml"
# (system, prompt_id, sample) -> summary
Summaries = Mapping[tuple[str, str, int], str]
QUESTIONS = {"best": "Which single story is the best?", "diverse": "Which set of stories is more diverse?"}


def plan(
    generations: Path, systems: tuple[str, str], *, count: int, annotators: Sequence[str], per_task: int, seed: int
) -> list[Task]:
    """The tasks of a study over the stories of an evaluation; see `make_tasks`.

    Raises:
        InputError: if a system has no stories, or no prompt has as many of both.
    """
    if systems[0] == systems[1]:
        raise InputError(f"a study compares two systems, not {systems[0]} with itself.")
    if len(set(annotators)) < len(annotators):
        raise InputError(f"annotators: {', '.join(annotators)}: each name may stand there once.")
    try:
        return make_tasks(passages(generations, systems), systems, count, annotators, per_task, seed)
    except ValueError as error:
        raise InputError(f"{generations}: {error}.") from None


def export(tasks: Sequence[Task], output: Path, seed: int, summaries: Summaries | None = None) -> None:
    """Writes the folder `output`: `study.html` for a small team, tasks for Label Studio, and `key.json`.

    The key says which set is whose. Everything else carries its digest, so that answers can later be read with no other key.

    Args:
        seed: of the order in which each annotator meets the tasks.
        summaries: shown above the stories.

    Raises:
        InputError: if the folder is there already, or the summary of a story is missing.
    """
    if output.exists():
        raise InputError(
            f"{output} is there already. Name another folder: answers to a study are worth nothing without its key."
        )
    if summaries is not None:
        tasks = [_summarised(task, summaries) for task in tasks]
    shown = {task.id: _shown(task) for task in tasks}
    study = hashlib.sha256(json.dumps(shown, sort_keys=True).encode()).hexdigest()[:16]
    annotators = sorted({name for task in tasks for name in task.annotators})
    key = {
        "study": study,
        "systems": sorted(tasks[0].systems),
        "per_task": len(tasks[0].annotators),
        # Without it the digest could be found by trying all keys.
        "salt": secrets.token_hex(16),
        "assigned": {name: order(tasks, name, seed) for name in annotators},
        "tasks": {task.id: _hidden(task) for task in tasks},
    }
    key_text = json.dumps(key, indent=2) + "\n"
    document = {
        "study": study,
        "key_digest": hashlib.sha256(key_text.encode()).hexdigest(),
        "questions": QUESTIONS,
        "assigned": key["assigned"],
        "tasks": shown,
    }
    files = {
        KEY: key_text,
        TASKS: json.dumps(document, indent=2, ensure_ascii=False) + "\n",
        # `tojson` escapes what could end the script element; the page shows stories as text alone.
        PAGE: page(Path(__file__).parent / "page.html.j2", {"document": document}),
        LABEL_STUDIO: json.dumps(label_studio(document), indent=2, ensure_ascii=False) + "\n",
        LABEL_STUDIO_CONFIG: _label_studio_config(len(tasks[0].sets[0])),
    }
    with atomic(output) as folder:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")


def passages(generations: Path, systems: Sequence[str]) -> Stories:
    """The stories of the systems, by prompt.

    Raises:
        InputError: if a system has none.
    """
    found: dict[tuple[str, str], dict[str, list[Passage]]] = {}
    seen: set[str] = set()
    for batch in GENERATIONS.batches(generations, ["system", "prompt_id", "prompt", "sample", "text"]):
        for row in batch.to_pylist():
            seen.add(row["system"])
            if row["system"] in systems:
                by_system = found.setdefault((row["prompt_id"], row["prompt"]), {})
                by_system.setdefault(row["system"], []).append(Passage(row["sample"], row["text"]))
    if missing := [name for name in systems if name not in seen]:
        raise InputError(f"{generations}: no stories by {', '.join(missing)}; it has {', '.join(sorted(seen))}.")
    return found


def _summarised(task: Task, summaries: Summaries) -> Task:
    def with_summary(system: str, passage: Passage) -> Passage:
        summary = summaries.get((system, task.prompt_id, passage.sample))
        if not summary:
            raise InputError(f"summaries: none of story {passage.sample} by {system} for prompt {task.prompt_id}.")
        return replace(passage, summary=summary)

    first, second = (
        tuple(with_summary(system, passage) for passage in told) for system, told in zip(task.systems, task.sets, strict=True)
    )
    return replace(task, sets=(first, second))


def _shown(task: Task) -> dict[str, Any]:
    """What an annotator may see of a task."""
    return {"prompt": task.prompt} | {
        side: [{"text": passage.text} | ({"summary": passage.summary} if passage.summary else {}) for passage in told]
        for side, told in zip(SIDES, task.sets, strict=True)
    }


def _hidden(task: Task) -> dict[str, Any]:
    return {
        "prompt_id": task.prompt_id,
        **dict(zip(SIDES, task.systems, strict=True)),
        "samples": {side: [p.sample for p in told] for side, told in zip(SIDES, task.sets, strict=True)},
    }


def label_studio(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Tasks in Label Studio's import format: fields of text, and what leads back to the study."""
    tasks = []
    for task_id, task in document["tasks"].items():
        data = {"task": task_id, "study": document["study"], "key_digest": document["key_digest"], "prompt": task["prompt"]}
        for side in SIDES:
            for number, story in enumerate(task[side], 1):
                summary = f"{story['summary']}\n\n" if "summary" in story else ""
                data[f"{side}{number}"] = summary + story["text"]
        tasks.append({"data": data})
    return tasks


def _label_studio_config(stories: int) -> str:
    """Label Studio's labelling interface for sets of so many stories."""
    numbers = range(1, stories + 1)
    texts = ""
    for side in SIDES:
        fields = [f"{side}{n}" for n in numbers]
        told = "".join(f'    <Header size="5" value="{at}"/><Text name="text-{at}" value="${at}"/>\n' for at in fields)
        texts += f'  <View style="flex: 1">\n    <Header value="Set {side}"/>\n{told}  </View>\n'
    best = [f"{side}{n}" for side in SIDES for n in numbers] + [TIE]

    def choices(name: str, values: Sequence[str]) -> str:
        options = "".join(f'<Choice value="{value}"/>' for value in values)
        return (
            f'  <Header value="{QUESTIONS[name]}"/>\n'
            f'  <Choices name="{name}" toName="prompt" choice="single" required="true" showInline="true">{options}</Choices>'
        )

    return (
        '<View>\n  <Text name="prompt" value="$prompt"/>\n  <View style="display: flex; gap: 2em">\n'
        f"{texts}  </View>\n{choices('best', best)}\n{choices('diverse', [*SIDES, TIE])}\n</View>\n"
    )
