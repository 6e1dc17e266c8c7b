"""The report: one page that needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.evaluate import plane
from components.evaluate.catalogue import BY_KEY
from components.evaluate.statements import number, statements
from components.evaluate.stories import GOLD, Story

# Prompts whose stories the page shows: it must open on a phone.
BROWSED = 100
# Below so many prompts, bootstrap intervals are known to be too narrow.
FEW_PROMPTS = 20
# What the table shows: metric, heading, digits.
COLUMNS = tuple(
    (key, BY_KEY[key].title, BY_KEY[key].digits) for key in ("reward", "semantic_diversity", "style_diversity", "words")
)
_QUALITY = (
    ("spearman", "Spearman correlation with the votes, within a prompt", "1 is perfect, 0 is chance"),
    ("pair_accuracy", "pairs of stories ranked as the voters did", "1 is perfect, 0.5 is chance"),
    ("pair_accuracy_of_length", "pairs ranked right by length alone", "what the model must beat"),
    ("mae", "mean absolute error, on the scale of the reward", "0 is perfect"),
    ("length_correlation", "Spearman correlation of reward and length", "far from 0: the reward is partly length"),
)


@dataclass(frozen=True)
class Shown:
    """A story as the page shows it."""

    story: Story
    reward: float


def write(
    path: Path,
    measured: Mapping[str, Any],
    prompts: Mapping[str, str],
    stories: Sequence[Story],
    rewards: Sequence[float],
    settings: Sequence[tuple[str, str]],
) -> None:
    """Writes the page.

    Args:
        measured: the evaluation's `metrics.json`.
        prompts: id -> text, in the order in which they are shown.
        settings: what is said of how the stories were made, as names and values.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        # Stories, prompts and names of systems are untrusted.
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["number"] = number
    quality = measured["reward_model"]
    page = environment.get_template("report.html.j2").render(
        measured=measured,
        gold=GOLD,
        few=measured["prompts"] < FEW_PROMPTS,
        colours=plane.colours(list(measured["systems"])),
        light=plane.LIGHT,
        dark=plane.DARK,
        panels=plane.panels(measured["systems"]),
        plane=plane,
        columns=COLUMNS,
        statements=statements(measured),
        quality=[(name, quality[key], hint) for key, name, hint in _QUALITY if quality.get(key) is not None],
        browser=_browser(list(prompts)[:BROWSED], stories, rewards),
        prompts=prompts,
        settings=settings,
    )
    path.write_text(page, encoding="utf-8")


def _browser(
    prompt_ids: Sequence[str], stories: Sequence[Story], rewards: Sequence[float]
) -> dict[str, dict[str, list[Shown]]]:
    """prompt -> system -> its stories."""
    shown: dict[str, dict[str, list[Shown]]] = {prompt_id: {} for prompt_id in prompt_ids}
    for story, reward in zip(stories, rewards, strict=True):
        if story.prompt_id in shown:
            shown[story.prompt_id].setdefault(story.system, []).append(Shown(story, reward))
    return shown
