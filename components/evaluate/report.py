"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.evaluate import plane
from components.evaluate.browser import browse
from components.evaluate.catalogue import ARROWS, BY_KEY, METRICS
from components.evaluate.statements import number, ordered, statements
from components.evaluate.stories import GOLD, Story
from components.pages import page

_TEMPLATE = Path(__file__).parent / "report.html.j2"
# Prompts whose stories the page shows: it must open on a phone.
BROWSED = 100
# Comparisons that are seen at once; the rest unfolds.
STATEMENTS = 10
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
    ("pair_accuracy_gain", "better than length, longest or shortest first, by", "0 or less: no better than length"),
    ("pair_accuracy_gain_error", "standard error of that", "a gain below twice as much may be chance"),
    ("mae", "mean absolute error, on the scale of the reward", "0 is perfect"),
    ("length_correlation", "Spearman correlation of reward and length", "far from 0: the reward is partly length"),
)


# What a training says of itself, and how it is called.
_TRAINING = (
    ("examples", "examples", 0),
    ("zero_weight_share", "of weight 0", 3),
    ("effective_sample_share", "effective share", 3),
    ("loss", "weighted loss", 4),
    ("unweighted_loss", "unweighted loss", 4),
    ("rewards/accuracies", "pairs ranked right", 3),
)


def write(
    path: Path,
    measured: Mapping[str, Any],
    prompts: Mapping[str, str],
    stories: Sequence[Story],
    rewards: Sequence[float],
    semantic: Any,
    trainings: Mapping[str, Mapping[str, Any]],
    settings: Sequence[tuple[str, str]],
) -> None:
    """Writes the page.

    Args:
        measured: the evaluation's `metrics.json`.
        prompts: id -> text, in the order in which they are shown.
        semantic: (stories, width), the stories' semantic embeddings.
        trainings: system -> what its training.json says, of those that were trained.
        settings: what is said of how the stories were made, as names and values.
    """
    quality = measured["reward_model"]
    # The policy of the page names the one script that may run by its digest: text of a story never is one.
    script = (Path(__file__).parent / "report.js").read_text(encoding="utf-8")
    names = [name for part in ordered(measured) for name in part]
    values = {
        "measured": measured,
        "gold": GOLD,
        "few": measured["prompts"] < FEW_PROMPTS,
        "colours": plane.colours(list(measured["systems"])),
        "light": plane.LIGHT,
        "dark": plane.DARK,
        "panels": plane.panels(measured["systems"]),
        "plane": plane,
        "columns": COLUMNS,
        "statements": statements(measured),
        "at_once": STATEMENTS,
        "quality": [(name, quality[key], hint) for key, name, hint in _QUALITY if quality.get(key) is not None],
        "metrics": METRICS,
        "arrows": ARROWS,
        "training_columns": [heading for _, heading, _ in _TRAINING],
        "trainings": _trainings(trainings),
        "browser": browse(list(prompts)[:BROWSED], stories, rewards, semantic),
        "beside": (names[-1], names[-2] if len(names) > 1 else GOLD),
        "script": script,
        "script_digest": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "prompts": prompts,
        "settings": settings,
    }
    path.write_text(page(_TEMPLATE, values, {"number": number}), encoding="utf-8")


def _trainings(records: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """system -> its cells of the table of trainings, `—` where a training did not say."""

    def cells(record: Mapping[str, Any]) -> list[str]:
        metrics = record.get("metrics", {})
        found = [(metrics.get(key), digits) for key, _, digits in _TRAINING]
        return ["—" if value is None else number(value, digits) for value, digits in found]

    return {name: [str(record.get("objective", "—")), *cells(record)] for name, record in records.items()}
