"""Two versions compared, prompt by prompt, on what is the same for both."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from components.champion.versions import Version
from components.contracts import EXAMPLES, MEASUREMENTS, InputError
from components.evaluate.bootstrap import intervals
from components.register.registry import ARTIFACT

Interval = dict[str, float]
# Of a differing evaluation, what a reader sees first.
_SHOWN = 3


class DifferentSetsError(InputError):
    """The versions were measured on different things."""


@dataclass(frozen=True)
class Side:
    """A system in an evaluation's folder."""

    system: str
    evaluation: Path

    def values(self) -> dict[str, dict[str, float]]:
        """metric -> prompt -> value."""
        rows = MEASUREMENTS.read(self.evaluation / "measurements.parquet").to_pylist()
        found: dict[str, dict[str, float]] = {}
        for row in rows:
            if row["system"] == self.system:
                found.setdefault(row["metric"], {})[row["prompt_id"]] = row["value"]
        return found

    def stories(self) -> dict[str, tuple[str, list[str]]]:
        """prompt -> its text and the stories."""
        told: dict[str, tuple[str, list[str]]] = {}
        for row in EXAMPLES.read(self.evaluation / "examples.parquet").to_pylist():
            if row["system"] == self.system:
                told.setdefault(row["prompt_id"], (row["prompt"], []))[1].append(row["text"])
        return told


def sides(one: Version, other: Version) -> tuple[Side, Side]:
    """Where both were measured alike: in one evaluation that has both, or else in two on the same set.

    Raises:
        DifferentSetsError: if there is neither; says what differs.
    """
    for evaluated in (one, other):
        if (a := _system(one, evaluated)) and (b := _system(other, evaluated)):
            return Side(a, evaluated.evaluation), Side(b, evaluated.evaluation)
    sets = [version.record["evaluation"]["set"] for version in (one, other)]
    differing = [key for key in sorted(sets[0].keys() | sets[1].keys()) if sets[0].get(key) != sets[1].get(key)]
    if differing:
        shown = "; ".join(f"{key}: {sets[0].get(key, 'none')} and {sets[1].get(key, 'none')}" for key in differing[:_SHOWN])
        more = f", and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise DifferentSetsError(f"{one.name} and {other.name} were measured on different evaluation sets ({shown}{more}).")
    return Side(one.record["system"], one.evaluation), Side(other.record["system"], other.evaluation)


def baseline(version: Version) -> Side:
    """What the version was gated against when it was registered."""
    return Side(version.record["verdict"]["baseline"], version.evaluation)


def own(version: Version) -> Side:
    return Side(version.record["system"], version.evaluation)


def differences(one: Side, other: Side) -> dict[str, Interval]:
    """Metric -> mean and 95 % interval of one - other, paired by prompt, over the prompts that both have.

    Raises:
        InputError: if they share no prompt.
    """
    a, b = one.values(), other.values()
    metrics = [metric for metric in a if metric in b and a[metric].keys() & b[metric].keys()]
    prompts = sorted({prompt for metric in metrics for prompt in a[metric].keys() & b[metric].keys()})
    if not prompts:
        raise InputError(f"{one.system} and {other.system} were measured on no prompt in common.")
    nothing = float("nan")
    paired = [[a[m].get(prompt, nothing) - b[m].get(prompt, nothing) for m in metrics] for prompt in prompts]
    found = intervals(np.array(paired), seed=0)
    rows = zip(metrics, found.mean.tolist(), found.low.tolist(), found.high.tolist(), strict=True)
    return {metric: {"mean": mean, "low": low, "high": high} for metric, mean, low, high in rows}


def measured(side: Side) -> Mapping[str, Any]:
    """The system's means with intervals, as its evaluation found them."""
    document = json.loads((side.evaluation / "metrics.json").read_text(encoding="utf-8"))
    found: Mapping[str, Any] = document["systems"][side.system]
    return found


def _system(version: Version, evaluated: Version) -> str | None:
    """What the evaluation of `evaluated` calls `version`, known by the digest of its training's files or of all that is
    registered; None where it is not in it."""
    systems = evaluated.record["evaluation"]["systems"]
    known = {version.record["digests"]["model"], version.tags[ARTIFACT]}
    return next((name for name, value in systems.items() if value in known), None)
