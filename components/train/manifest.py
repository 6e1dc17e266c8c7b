"""What a training is made of, and the folder that keeps its checkpoints: never those of another training."""

from __future__ import annotations

import fcntl
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic, work_folder
from components.lineage import digest
from components.models.params import Params as Models
from components.models.resolve import resolve
from components.provenance import code_digest
from components.train.params import Optimisation, Params

log = logging.getLogger("polyphony")
_FILE = "manifest.json"
# What computes: the same training goes on to the same end only with the same of these.
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "numpy")
# How often checkpoints are made changes no result.
_NEUTRAL = {"checkpoint_minutes"}

Manifest = dict[str, dict[str, str]]


def manifest(objective: str, section: str, train: Params, models: Models, inputs: Mapping[str, Path]) -> Manifest:
    """All that the result of a training depends on: `made_of` (data, parameters, models) and `made_by` (code, packages).

    Args:
        section: the part of `train` that holds the objective's own parameters.
    """
    parameters = {}
    # The other objectives' sections do not matter, and the reward model has its own adapter and batches.
    others = {name for name in type(train).model_fields if isinstance(getattr(train, name), Optimisation) and name != section}
    others |= {"lora", "tokens_per_pass"} if section == "reward" else set()
    for name, value in train.model_dump(mode="json", exclude=others | _NEUTRAL).items():
        for key, one in value.items() if isinstance(value, dict) else [("", value)]:
            parameters[f"train.{name}.{key}".rstrip(".")] = json.dumps(one)
    name = models.reward if objective == "reward" else models.language
    used = models.settled().model_dump(
        mode="json", exclude={"semantic", "style", "language" if objective == "reward" else "reward"}
    )
    made_of = {
        "objective": objective,
        # A hub model's folder is named for its commit, a package's for its version.
        "model's folder": resolve(name).name,
        **{f"models.{key}": json.dumps(value) for key, value in used.items()},
        **{f"--{name}": digest(path) for name, path in inputs.items()},
        **parameters,
    }
    made_by = {"code of components/train and components/models": _code_digest()}
    made_by |= {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {"made_of": made_of, "made_by": made_by}


def _code_digest() -> str:
    return code_digest("train", "models")


@contextmanager
def claim(wanted: Manifest) -> Iterator[Path]:
    """The work folder of a training, in which its checkpoints lie and its manifest beside them, for one process at a time.

    The folder is named for what the training is made of, so that another training has another folder; checkpoints of others
    are told of, by name and with what differs, and left alone.

    Raises:
        InputError: if the folder's checkpoints were made by other code or other packages, or do not say by which, or the same
            training is under way in another process.
    """
    objective = wanted["made_of"]["objective"]
    key = hashlib.sha256(json.dumps(wanted["made_of"], sort_keys=True).encode()).hexdigest()[:16]
    folder = work_folder("train") / f"{objective}-{key}"
    if os.environ.get("RANK", "0") != "0":
        # The first of a training's processes does this for all.
        yield folder
        return
    folder.mkdir(parents=True, exist_ok=True)
    # The lock goes with its process.
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: this very training is under way in another process. Wait for it to end.") from None
        _check(folder, objective, wanted)
        yield folder


def _check(folder: Path, objective: str, wanted: Manifest) -> None:
    if any(folder.glob("checkpoint-*")):
        found = _read(folder)
        if found != wanted:
            differs = "it does not say what made it" if found is None else difference(found, wanted)
            raise InputError(
                f"{folder}: the checkpoint there is of another version of this training ({differs}). Go on with that "
                f"version, or remove the folder to begin anew: rm -r {folder}"
            )
        return
    for other in sorted(folder.parent.glob(f"{objective}-*")):
        found = _read(other)
        if other != folder and found is not None and any(other.glob("checkpoint-*")):
            log.warning(
                "%s: a checkpoint of another %s training, not used here (%s). Remove it when nobody goes on with it.",
                *(other, objective, difference(found, wanted)),
            )
    with atomic(folder / _FILE) as partial:
        partial.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")


def _read(folder: Path) -> Any:
    try:
        return json.loads((folder / _FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def difference(there: Manifest, here: Manifest) -> str:
    """What differs between two manifests, in words."""
    old, new = ({k: v for part in side.values() for k, v in part.items()} for side in (there, here))
    names = [name for name in dict.fromkeys([*old, *new]) if old.get(name) != new.get(name)]
    return "; ".join(f"{name}: {old.get(name, 'nothing')} there, {new.get(name, 'nothing')} here" for name in names)
