"""The MLflow model registry: one complete version per content, or none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CANDIDATE = "candidate"
# Tags by which a version is found again and known to be complete.
_KEY, _STATE = "content", "state"
_COMPLETE = "complete"


def register(
    client: MlflowClient, name: str, key: str, folder: Path, tags: Mapping[str, str], description: str, candidate: bool
) -> ModelVersion:
    """Registers `folder` under `name` as a version identified by `key`; finds it where that was done before.

    The artifacts are complete before the version is created, and the version carries `state: complete` last: what a killed
    run left behind is finished by the next, never registered twice.

    Args:
        candidate: whether the version gets the alias `candidate`.
    """
    _create_model(client, name)
    found = client.search_model_versions(f"name = '{name}' AND tags.`{_KEY}` = '{key}'")
    version = found[0] if found else _create_version(client, name, key, folder, description)
    if version.tags.get(_STATE) != _COMPLETE:
        for tag, value in tags.items():
            client.set_model_version_tag(name, version.version, tag, value)
        if candidate:
            client.set_registered_model_alias(name, CANDIDATE, version.version)
        client.set_model_version_tag(name, version.version, _STATE, _COMPLETE)
    return client.get_model_version(name, version.version)


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _create_version(client: MlflowClient, name: str, key: str, folder: Path, description: str) -> ModelVersion:
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("registering needs an open MLflow run to hold the artifacts")
    client.log_artifacts(run.info.run_id, str(folder), "model")
    return client.create_model_version(
        name, f"{run.info.artifact_uri}/model", run.info.run_id, tags={_KEY: key}, description=description
    )
