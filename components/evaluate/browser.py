"""What the report's browser of prompts shows: the stories of each system, and which two are most and least alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from components.evaluate.stories import Story


@dataclass(frozen=True)
class Shown:
    """A story as the page shows it; `number` counts from 1, `reward` is the reward model's."""

    number: int
    story: Story
    reward: float


@dataclass(frozen=True)
class Pair:
    """Two stories by their numbers, and their semantic cosine distance, in [0, 2]."""

    first: int
    second: int
    distance: float

    def __contains__(self, number: object) -> bool:
        return number in (self.first, self.second)


@dataclass(frozen=True)
class Told:
    """A system's stories for a prompt. `alike` and `different` are None where fewer than two have text."""

    stories: tuple[Shown, ...]
    alike: Pair | None
    different: Pair | None


def browse(
    prompt_ids: Sequence[str], stories: Sequence[Story], rewards: Sequence[float], vectors: Any
) -> dict[str, dict[str, Told]]:
    """prompt -> system -> its stories, in the order given.

    Args:
        rewards: (stories,).
        vectors: (stories, width), semantic, of unit length; 0 where a story has no text.
    """
    rows: dict[str, dict[str, list[int]]] = {prompt_id: {} for prompt_id in prompt_ids}
    for row, story in enumerate(stories):
        if story.prompt_id in rows:
            rows[story.prompt_id].setdefault(story.system, []).append(row)

    def told(of_system: Sequence[int]) -> Told:
        shown = tuple(Shown(n, stories[row], rewards[row]) for n, row in enumerate(of_system, 1))
        return Told(
            shown, *extremes({s.number: vectors[row] for s, row in zip(shown, of_system, strict=True) if not s.story.empty})
        )

    return {prompt_id: {name: told(its) for name, its in systems.items()} for prompt_id, systems in rows.items()}


def extremes(vectors: Mapping[int, Any]) -> tuple[Pair | None, Pair | None]:
    """The pair with the least and the one with the greatest cosine distance; the first such pair where several tie.

    Args:
        vectors: number -> (width,), of unit length.
    """
    pairs = [Pair(a, b, max(0.0, 1.0 - float(np.dot(vectors[a], vectors[b])))) for a, b in combinations(vectors, 2)]
    if not pairs:
        return None, None
    return min(pairs, key=lambda pair: pair.distance), max(pairs, key=lambda pair: pair.distance)
