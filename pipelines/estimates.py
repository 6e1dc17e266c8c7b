"""Memory and time of the trainings that a parameter file describes, on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.params import Section

# Trainings: section of the parameters, sequences of an example.
_TRAININGS = (("sft", 1), ("preference", 2), ("orpo", 2))
# Sum of squared lengths over what it were if all were equally long; of r/WritingPrompts stories about this.
_UNEVEN = 1.4


@dataclass(frozen=True)
class Sizes:
    """What earlier steps found. Attributes: examples: by sequences of an example; mean, longest: tokens of a sequence."""

    examples: Mapping[int, int]
    mean: float
    longest: int


def sizes(metrics: Path) -> Sizes | None:
    """From the metrics of ingest and weight; None where ingest has not run."""
    ingest, weight = _read(metrics / "ingest.json"), _read(metrics / "weight.json")
    if ingest is None:
        return None
    stories = ingest["responses_of"]["train"]
    # Each response is in at most one pair, unless all pairs are wanted.
    pairs = weight["pairs"]["train"] if weight is not None else stories // 2
    tokens = ingest["tokens"]
    return Sizes({1: stories, 2: pairs}, tokens["sum"] / ingest["responses"], tokens["max"])


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def estimates(sections: Mapping[str, Section], metrics: Path | None) -> Iterator[str]:
    """A line for each training.

    Args:
        metrics: the folder of earlier steps' metrics; None where they are of other data.

    Raises:
        InputError: if the language model's settings are out of reach.
    """
    from components.train.estimate import Data
    from components.train.outlook import describe, hardware, needed, plan_model

    models: Any = sections["models"]
    train: Any = sections["train"]
    model, found = plan_model(train, models), sizes(metrics) if metrics is not None else None
    machine = hardware(model)
    yield f"{models.language}: {model.weights / 1e6:,.0f} million weights, {model.trained / 1e6:,.1f} million trained"
    for name, sequences in _TRAININGS:
        settings = getattr(train, name)
        if found is None:
            largest = _largest(settings.batch_size, train.tokens_per_pass, sequences * models.max_tokens)
            most = sum(needed(model, largest, train).values())
            yield f"{name}: at most about {most / 1e9:.1f} GB a process; the time is known when ingest has run"
            continue
        examples = found.examples[sequences]
        tokens = examples * sequences * found.mean
        longest = sequences * found.longest
        # The prompt is taken for none of the tokens: what predicts its own is spared, little beside the story's.
        data = Data(
            examples=examples,
            tokens=round(tokens),
            completion_tokens=round(tokens),
            squared_lengths=round(_UNEVEN * tokens * found.mean),
            longest=longest,
            largest=_largest(settings.batch_size, train.tokens_per_pass, longest),
        )
        yield f"{name}: {describe(model, data, settings, train, machine)}"


def _largest(batch_size: int, tokens_per_pass: int, longest: int) -> int:
    """Tokens of the largest pass, if every example were as long as the longest."""
    return max(longest, min(tokens_per_pass, batch_size * longest))
