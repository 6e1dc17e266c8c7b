"""The MLflow model registry: one complete version per content, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

from components.lineage import digest

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
# Where in the version's run its files lie, and its evaluation.
MODEL, EVALUATION = "model", "evaluation"
# The tags with the digest of all that a version holds, its card included, and with that of each file (JSON, path -> digest).
ARTIFACT, FILES = "artifact.digest", "files"
# The tag by which a version is found again.
_KEY = "content"


def register(
    client: MlflowClient,
    name: str,
    key: str,
    folders: Mapping[str, Path],
    tags: Mapping[str, str],
    description: str,
    candidate: bool,
) -> ModelVersion:
    """Registers `folders[MODEL]` under `name` as a version identified by `key`; finds it where that was done before.

    The artifacts are complete before the version is, and the version is created at once with all its tags: whatever a killed
    run left behind, the next ends with one complete version. Only an alias can come after it.

    Args:
        folders: what is kept with the version, name -> folder.
        candidate: whether the alias `candidate` is to point to the version.
    """
    _create_model(client, name)
    found = client.search_model_versions(f"name = '{name}' AND tags.`{_KEY}` = '{key}'")
    version = found[0] if found else _create_version(client, name, folders, {**tags, _KEY: key}, description)
    if candidate:
        client.set_registered_model_alias(name, CANDIDATE, version.version)
    return client.get_model_version(name, version.version)


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder, by its path there."""
    return {file.relative_to(folder).as_posix(): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(
    client: MlflowClient, name: str, folders: Mapping[str, Path], tags: dict[str, str], description: str
) -> ModelVersion:
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("registering needs an open MLflow run to hold the artifacts")
    for place, folder in folders.items():
        client.log_artifacts(run.info.run_id, str(folder), place)
    return client.create_model_version(
        name, f"{run.info.artifact_uri}/{MODEL}", run.info.run_id, tags=tags, description=description
    )
