"""One document of all parameters from typed settings and overrides, and each task's own part of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from components.params import SECTIONS, ParameterError, check, parse

# What each task reads, as the `params` of its stage in dvc.yaml say, and beside them what cannot change its result:
# another learning rate must not invalidate embeddings that a cache holds.
TASKS: Mapping[str, tuple[str, ...]] = {
    "ingest": ("ingest", "models.language", "models.max_tokens", "models.remote_code"),
    "validate": ("validate",),
    "embed": ("embed", "models.semantic", "models.style", "models.remote_code"),
    "weight": ("weight",),
    "reward": ("train.seed", "train.checkpoint_minutes", "train.reward", "models.reward", "models.remote_code"),
    "sft": (
        *("train.seed", "train.checkpoint_minutes", "train.lora", "train.sft"),
        *("models.language", "models.max_tokens", "models.remote_code"),
    ),
    "reference": ("models.language", "models.max_tokens", "models.remote_code"),
    "preference": (
        *("train.seed", "train.checkpoint_minutes", "train.preference"),
        *("models.language", "models.max_tokens", "models.remote_code"),
    ),
    "evaluate": ("evaluate", "models"),
    "register": ("register", "models.language"),
}


def merge(settings: Sequence[str], overrides: str) -> dict[str, Any]:
    """All parameters, complete and checked: defaults, then settings, then overrides.

    Args:
        settings: each `section.parameter=value`; the value is taken as it stands, up to the end.
        overrides: sections in YAML or JSON, or nothing but white space.

    Raises:
        ParameterError: naming all mistakes.
    """
    document: dict[str, Any] = {name: {} for name in SECTIONS}
    for setting in settings:
        path, separator, value = setting.partition("=")
        if not separator:
            raise ParameterError(f"--set {setting}: expected SECTION.PARAMETER=VALUE.")
        *sections, key = path.split(".")
        place = document
        for section in sections:
            place = place.setdefault(section, {})
        place[key] = value
    if overrides.strip():
        _lay_over(document, parse(overrides, "overrides"))
    checked = check(document, "parameters")
    return {name: checked[name].model_dump(mode="json") for name in SECTIONS}


def part(document: Mapping[str, Any], names: Sequence[str]) -> str:
    """The named sections and parameters of a complete document as JSON text, the same for the same values."""
    selected: dict[str, Any] = {}
    for name in names:
        section, _, key = name.partition(".")
        if key:
            selected.setdefault(section, {})[key] = document[section][key]
        else:
            selected[section] = document[section]
    return json.dumps(selected, sort_keys=True, ensure_ascii=False)


def _lay_over(document: dict[str, Any], upper: Mapping[Any, Any]) -> None:
    for key, value in upper.items():
        below = document.get(key)
        if isinstance(below, dict) and isinstance(value, Mapping):
            _lay_over(below, value)
        else:
            document[key] = value
