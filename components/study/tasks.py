"""Tasks of a study: a prompt and two blinded sets of stories (Chung et al. 2025, human evaluation).

For each task an annotator says which single story is best, which gives its set the point for quality, and which set is more
diverse. Ties are allowed in both.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# The two sets as an annotator sees them.
SIDES = ("A", "B")
TIE = "tie"


@dataclass(frozen=True)
class Passage:
    """A story as generated: which sample of its system, its text, and a summary to read first, if there is one."""

    sample: int
    text: str
    summary: str = ""


@dataclass(frozen=True)
class Task:
    """A prompt and its two sets. `systems` and the samples are for the key alone."""

    id: str
    prompt_id: str
    prompt: str
    systems: tuple[str, str]
    sets: tuple[tuple[Passage, ...], tuple[Passage, ...]]
    annotators: tuple[str, ...]


# (prompt_id, prompt) -> system -> passages
Stories = Mapping[tuple[str, str], Mapping[str, Sequence[Passage]]]


def make_tasks(
    stories: Stories, systems: tuple[str, str], count: int, annotators: Sequence[str], per_task: int, seed: int
) -> list[Task]:
    """At most `count` tasks over prompts drawn at random, blinded and balanced.

    Each system is on each side as often as on the other (to one), for every annotator too; stories are shuffled within
    their set; ids are hashes. The same arguments give the same tasks.

    Args:
        stories: of each prompt; prompts that lack a system, or have fewer stories of one than of the other, are left out.
        per_task: how many annotators answer each task; every annotator gets as many tasks as any other (to `per_task`).

    Raises:
        ValueError: if no prompt has stories of both systems, or there are fewer annotators than `per_task`.
    """
    if per_task > len(annotators):
        raise ValueError(f"{per_task} annotators a task, but only {len(annotators)} in all")
    first, second = ({prompt: len(told.get(name, ())) for prompt, told in stories.items()} for name in systems)
    usable = sorted(prompt for prompt in stories if 0 < first[prompt] == second[prompt])
    if not usable:
        raise ValueError(f"no prompt has as many stories by {systems[0]} as by {systems[1]}")
    rng = random.Random(seed)  # noqa: S311, no secret
    chosen = rng.sample(usable, min(count, len(usable)))
    tasks = []
    for i, (prompt_id, prompt) in enumerate(chosen):
        # Sides alternate among the tasks of an annotator, and over all.
        block, place = divmod(i, len(annotators))
        sides = systems if (block + place) % 2 == 0 else (systems[1], systems[0])
        left, right = (tuple(rng.sample(told, len(told))) for told in (stories[prompt_id, prompt][name] for name in sides))
        who = tuple(annotators[(i + j) % len(annotators)] for j in range(per_task))
        task_id = "t" + hashlib.sha256(f"{seed} {prompt_id}".encode()).hexdigest()[:10]
        tasks.append(Task(task_id, prompt_id, prompt, sides, (left, right), who))
    return tasks


def order(tasks: Sequence[Task], annotator: str, seed: int) -> list[str]:
    """Ids of an annotator's tasks, in an order of their own, so that weariness does not meet the same tasks for all."""
    mine = [task.id for task in tasks if annotator in task.annotators]
    random.Random(f"{seed} {annotator}").shuffle(mine)  # noqa: S311, no secret
    return mine
