"""One document of all parameters from typed settings and overrides, and each task's own part of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from components.params import SECTIONS, ParameterError, check, parse

_OTHER_MODELS = ("models.reward", "models.semantic", "models.style")


@dataclass(frozen=True)
class Part:
    """The sections that a task reads, `without` the parameters that cannot change its result.

    Named is what is left out, so that a parameter new to a section reaches all who read the section.
    """

    sections: tuple[str, ...]
    without: tuple[str, ...] = ()


# Another learning rate must not invalidate embeddings that a cache holds: the parts are those of the stages in dvc.yaml.
TASKS: Mapping[str, Part] = {
    "ingest": Part(("ingest", "models"), (*_OTHER_MODELS, "models.dtype")),
    "validate": Part(("validate",)),
    "embed": Part(
        ("embed", "models"), ("models.language", "models.tokenizer", "models.reward", "models.max_tokens", "models.dtype")
    ),
    "weight": Part(("weight",)),
    "reward": Part(
        ("train", "models"),
        (
            *("train.objectives", "train.processes", "train.sharding", "train.tokens_per_pass", "train.lora"),
            *("train.sft", "train.preference", "train.orpo"),
            *("models.language", "models.tokenizer", "models.semantic", "models.style", "models.max_tokens", "models.dtype"),
        ),
    ),
    "sft": Part(("train", "models"), ("train.objectives", "train.preference", "train.orpo", "train.reward", *_OTHER_MODELS)),
    "reference": Part(("models",), _OTHER_MODELS),
    "preference": Part(("train", "models"), ("train.objectives", "train.sft", "train.reward", *_OTHER_MODELS)),
    "evaluate": Part(("evaluate", "models")),
    "register": Part(("register",)),
}


def merge(settings: Sequence[str], overrides: str, processes: int | None = None) -> dict[str, Any]:
    """All parameters, complete and checked: defaults, then settings, then overrides.

    A form always has a value, so overrides win over a setting that is only the default; over any other they would silently
    undo what somebody set.

    Args:
        settings: each `section.parameter=value`; the value is taken as it stands, up to the end.
        overrides: sections in YAML or JSON, or nothing but white space.
        processes: `train.processes`, where it follows from the GPUs.

    Raises:
        ParameterError: naming all mistakes.
    """
    form: dict[str, Any] = {name: {} for name in SECTIONS}
    paths = []
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator:
            raise ParameterError(f"--set {setting}: expected SECTION.PARAMETER=VALUE.")
        *sections, key = path.split(".")
        place = form
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
        paths.append(path)
    if processes is not None:
        form["train"] |= {"processes": processes, "sharding": "ddp" if processes > 1 else "none"}
    document = copy.deepcopy(form)
    if overrides.strip():
        _lay_over(document, parse(overrides, "overrides"))
    merged, asked, default = _complete(document), _complete(form), _complete({name: {} for name in SECTIONS})
    if undone := [p for p in paths if _at(default, p) != _at(asked, p) != _at(merged, p)]:
        told = [f"{path}: {_at(asked, path)!r} in the form, {_at(merged, path)!r} in overrides" for path in undone]
        raise ParameterError("\n  ".join([f"parameters: {len(undone)} set twice:", *told]))
    if processes not in (None, merged["train"]["processes"]):
        raise ParameterError(
            f"train.processes: {merged['train']['processes']} in overrides, and each of {processes} GPU(s) has one: "
            "change `gpus` in the form, and leave out train.processes, which follows from it."
        )
    return merged


def _complete(document: Mapping[str, Any]) -> dict[str, Any]:
    checked = check(document, "parameters")
    return {name: checked[name].model_dump(mode="json") for name in SECTIONS}


def _at(document: Mapping[str, Any], path: str) -> Any:
    value: Any = document
    for key in path.split("."):
        value = value[key]
    return value


def part(document: Mapping[str, Any], of: Part) -> str:
    """A task's part of a complete document as JSON text, the same for the same values."""
    selected = {
        section: {key: value for key, value in document[section].items() if f"{section}.{key}" not in of.without}
        for section in of.sections
    }
    return json.dumps(selected, sort_keys=True, ensure_ascii=False)


def _lay_over(document: dict[str, Any], upper: Mapping[Any, Any]) -> None:
    for key, value in upper.items():
        below = document.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            _lay_over(below, value)
        else:
            document[key] = value
