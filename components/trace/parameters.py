"""Which parameters a step depends on, and the parameter file that all steps of a tree ran with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from components.configure.merge import TASKS
from components.origin import Origin
from components.trace.ancestry import flat, given

_TASKS = {"train-reward": "reward", "train-sft": "sft", "validate-responses": "validate", "validate-weights": "validate"}
# Parameters that change how a step runs, not what it makes.
_NEUTRAL = ("train.checkpoint_minutes",)


def depends_on(step: str, parameter: str) -> bool:
    """Whether a step's result depends on a parameter, given by its dotted name."""
    task = TASKS.get(_TASKS.get(step, "preference" if step.startswith("train-") else step))
    left_out = (*_NEUTRAL, *(task.without if task else ()))
    return not any(parameter == name or parameter.startswith(f"{name}.") for name in left_out)


def relevant(origin: Origin) -> dict[str, Any]:
    """The parameters on which the run depended, by their dotted names."""
    return {name: value for name, value in flat(given(origin)) if depends_on(origin.step, name)}


@dataclass
class Merged:
    """The parameters of several runs.

    Attributes:
        document: sections, as in params.yaml.
        conflicts: what no one file can say: a parameter on which two steps depend and that had two values, in words.
        incomplete: steps whose runs recorded no more than texts for people.
    """

    document: dict[str, Any] = field(default_factory=dict)
    conflicts: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)


def merge(origins: Iterable[Origin]) -> Merged:
    """One document from the runs that made the artifacts.

    What only runs say that do not depend on it gives way; of these, the last in order counts.
    """
    merged = Merged()
    binding: dict[str, tuple[Any, str]] = {}
    loose: dict[str, Any] = {}
    for origin in origins:
        assert origin.record is not None  # noqa: S101 - the callers' runs have one
        if "parameters" not in origin.record.tags:
            merged.incomplete.append(origin.step)
            continue
        for name, value in flat(given(origin)):
            if not depends_on(origin.step, name):
                loose[name] = value
            elif name in binding and binding[name][0] != value:
                other, step = binding[name]
                merged.conflicts.append(f"{name}: {other!r} in {step}, {value!r} in {origin.step}")
            else:
                binding.setdefault(name, (value, origin.step))
    for name, value in (loose | {name: value for name, (value, _) in binding.items()}).items():
        _set(merged.document, name.split("."), value)
    return merged


def _set(document: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        document = document.setdefault(key, {})
    document[path[-1]] = value


def differences(document: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `wanted`, by their dotted names, that `document` does not have."""
    there = dict(flat(document))
    return {name: value for name, value in flat(wanted) if there.get(name) != value}
