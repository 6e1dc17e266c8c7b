"""What dvc.yaml says of a step: its stage, the code that it depends on, the paths of its outputs."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise, product
from typing import Any

import yaml

_ITEM = re.compile(r"\$\{item\.(\w+)\}")
_PARAMETER = re.compile(r"\$\{(\w+(?:\.\w+)+)\}")


@dataclass(frozen=True)
class Stage:
    """A stage; `options` are what its command gives to the step, without the dashes."""

    name: str
    room: str
    options: dict[str, str]
    code: tuple[str, ...]

    @property
    def step(self) -> str:
        """The step's name as its runs record it."""
        return "-".join([self.room, *(self.options[key] for key in ("suite", "objective") if key in self.options)])


def stages(text: str, parameters: Mapping[str, Any]) -> dict[str, Stage]:
    """The stages of a dvc.yaml by the names of their steps; of a matrix, each combination.

    Args:
        parameters: the content of params.yaml, which dvc.yaml refers to.
    """
    found = {}
    filled = _PARAMETER.sub(lambda name: _parameter(parameters, name), text)
    for name, stage in (yaml.safe_load(filled) or {}).get("stages", {}).items():
        for full_name, values in _combinations(name, stage.get("matrix", {})):
            words = shlex.split(_ITEM.sub(partial(_value, values), stage["cmd"]))
            if words[:2] != ["python", "-m"]:
                continue
            options = {key[2:]: value for key, value in pairwise(words[3:]) if key.startswith("--")}
            code = tuple(path for path in stage.get("deps", []) if path.startswith("components"))
            made = Stage(full_name, words[2].rpartition(".")[2], options, code)
            found[made.step] = made
    return found


def _parameter(parameters: Mapping[str, Any], name: re.Match[str]) -> str:
    """A parameter as it stands in YAML's flow style; what is none, such as a matrix' item, stays."""
    value: Any = parameters
    for key in name[1].split("."):
        if not isinstance(value, Mapping) or key not in value:
            return name[0]
        value = value[key]
    return value if isinstance(value, str) else json.dumps(value)


def _value(values: Mapping[str, Any], item: re.Match[str]) -> str:
    return str(values[item[1]])


def _combinations(name: str, matrix: Mapping[str, list[Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for chosen in product(*matrix.values()):
        yield (f"{name}@{'-'.join(map(str, chosen))}" if matrix else name), dict(zip(matrix, chosen, strict=True))


def locked(text: str) -> dict[str, str]:
    """The digests of all outputs in a dvc.lock, by path."""
    found = (yaml.safe_load(text) or {}).get("stages", {}).values()
    return {out["path"]: out["md5"] for stage in found for out in stage.get("outs", []) if "md5" in out}
