"""A registered version as others get it: found by name, fetched, and checked against its digests before anything reads it."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import InputError
from components.lineage import digest
from components.register.patience import patiently
from components.register.registry import ARTIFACT, EVALUATION, FILES, MODEL, digests

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

# What a version may hold: weights without code, texts, and a picture.
_SAFE = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model", ".png"}
# What registration adds to the files of the training.
ADDED = ("README.md", "lineage.json", "record.json", "plane.png")
_NAME = re.compile(r"(?P<model>[\w. -]+)(?:@(?P<alias>[\w-]+)|/(?P<version>\d+))")


class AbsentError(InputError):
    """The registry has no version of that name."""


@dataclass(frozen=True)
class Version:
    """A registered version, with the folders that were fetched of it.

    Attributes:
        aliases: those that point to it.
        folder: its files: adapter, tokenizer, card, record.
        evaluation: the evaluation that it was registered by.
        record: see components.register.record.
    """

    model: str
    number: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    run_id: str
    folder: Path
    evaluation: Path
    record: Mapping[str, Any] = field(repr=False)

    @property
    def name(self) -> str:
        return f"{self.model} version {self.number}"

    @property
    def short(self) -> str:
        """A name for tables: the version, and what it is."""
        return f"v{self.number}" + "".join(f" @{alias}" for alias in self.aliases)


def find(client: MlflowClient, name: str) -> ModelVersion:
    """The version called `model@alias` or `model/number`.

    Raises:
        AbsentError: if there is none of that name; says which there are.
        InputError: if that is no name, or the registry does not answer.
    """
    from mlflow.exceptions import MlflowException

    parts = _NAME.fullmatch(name)
    if parts is None:
        raise InputError(f"{name!r} names no version: write model@alias, such as polyphony@champion, or model/number.")
    model = parts["model"]
    try:
        registered = patiently("reading the model", partial(client.get_registered_model, model))
        number = parts["version"] or registered.aliases.get(parts["alias"])
        if number is None:
            known = ", ".join(f"{model}@{alias}" for alias in sorted(registered.aliases)) or "none"
            raise AbsentError(f"{name}: no version has that alias. Aliases: {known}. By number: {model}/1.")
        return patiently("reading the version", partial(client.get_model_version, model, str(number)))
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise AbsentError(f"{name}: the registry at {client.tracking_uri} has no such version.") from None


@contextmanager
def opened(client: MlflowClient, *names: str) -> Iterator[list[Version]]:
    """The versions of these names, fetched into a folder that lasts as long as the context.

    Raises:
        InputError: if there is no such version, or what was fetched is not what was registered.
    """
    with tempfile.TemporaryDirectory(prefix="polyphony-") as scratch:
        yield [_open(find(client, name), Path(scratch) / str(place)) for place, name in enumerate(names)]


def _open(found: ModelVersion, place: Path) -> Version:
    name = f"{found.name} version {found.version}"
    if FILES not in found.tags or not (found.run_id and found.source):
        raise InputError(f"{name} was not registered by this pipeline, or by one that kept no digests. Register it again.")
    place.mkdir()
    root = found.source.rpartition("/")[0]
    fetched = {part: _fetch(root, part, place, name) for part in (MODEL, EVALUATION)}
    _check_files(fetched[MODEL], found.tags, name)
    if (measured := digest(fetched[EVALUATION])) != found.tags["evaluation.digest"]:
        raise InputError(
            f"{name}: its evaluation was changed after it was registered ({measured} is there). Nothing is read of it."
        )
    record = json.loads((fetched[MODEL] / "record.json").read_text(encoding="utf-8"))
    return Version(
        *(found.name, str(found.version), tuple(sorted(found.aliases)), dict(found.tags), found.run_id),
        *(fetched[MODEL], fetched[EVALUATION], record),
    )


def _fetch(root: str, part: str, place: Path, name: str) -> Path:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    # Progress of some small files tells nobody anything.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        # Not by the run, of which MLflow tells no failure of the store from a folder that is not there.
        store = get_artifact_repository(root)
        there = patiently(f"looking for the {part} of {name}", partial(store.list_artifacts, part))
        fetch = partial(store.download_artifacts, part, str(place))
        folder = Path(patiently(f"fetching the {part} of {name}", fetch)) if there else place / part
    except (MlflowException, OSError) as error:
        raise InputError(f"{name}: its folder {part!r} cannot be fetched: {error}") from error
    if not folder.is_dir():
        raise InputError(f"{name}: its folder {part!r} is missing in the artifact store.")
    return folder


def _check_files(folder: Path, tags: Mapping[str, str], name: str) -> None:
    wanted, found = json.loads(tags[FILES]), digests(folder)
    wrong = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
    if wrong or digest(folder) != tags[ARTIFACT]:
        state = [f"{path} ({_state(path, wanted, found)})" for path in wrong]
        raise InputError(f"{name}: not what was registered: {', '.join(state) or 'its digests differ'}. Nothing is read of it.")
    if unsafe := sorted(path for path in found if Path(path).suffix not in _SAFE):
        raise InputError(f"{name}: {', '.join(unsafe)} may hold code. Nothing is read of it.")


def _state(path: str, wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    return "missing" if path not in found else "added" if path not in wanted else "changed"
