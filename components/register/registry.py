"""The MLflow model registry: one complete version per content, or none."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow.exceptions import MlflowException

from components.lineage import digest
from components.live import short
from components.register.patience import patiently

if TYPE_CHECKING:
    from mlflow import ActiveRun, MlflowClient
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger("polyphony")
CANDIDATE = "candidate"
# Where in the version's run its files lie, and its evaluation.
MODEL, EVALUATION = "model", "evaluation"
# The tags with the digest of all that a version holds, its card included, and with that of each file (JSON, path -> digest).
ARTIFACT, FILES = "artifact.digest", "files"
# The tag by which a version is found again.
_KEY = "content"
_DAY = 24 * 3600


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
    run left behind, the next ends with one complete version. Only an alias can come after it. Two runs that register the
    same at once may both create one; each then keeps the one that was first.

    Args:
        folders: what is kept with the version, name -> folder.
        candidate: whether the alias `candidate` is to point to the version.

    Raises:
        InputError: if MLflow or its storage fails for longer than `patience` lasts, or refuses the account.
    """
    patiently(f"making the model {name!r}", lambda: _create_model(client, name))
    if not _versions(client, name, key):
        # So that the next finds what this one may leave.
        patiently("marking the run", lambda: client.set_tag(_run().info.run_id, _KEY, key))
        _upload(client, folders)
        patiently("creating the version", lambda: _create_version(client, name, key, {**tags, _KEY: key}, description))
    version, *twins = _versions(client, name, key)
    for twin in twins:
        _remove(client, twin)
    if candidate:
        alias = partial(client.set_registered_model_alias, name, CANDIDATE, version.version)
        patiently(f"naming version {version.version} the {CANDIDATE}", alias)
    for run in patiently("looking for earlier tries", partial(_given_up, client, key)):
        _clear(run, folders)
    return patiently("reading the version", lambda: client.get_model_version(name, version.version))


def digests(folder: Path) -> dict[str, str]:
    """The digest of every file of a folder, by its path there."""
    return {file.relative_to(folder).as_posix(): digest(file) for file in sorted(folder.rglob("*")) if file.is_file()}


def _create_model(client: MlflowClient, name: str) -> None:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _versions(client: MlflowClient, name: str, key: str) -> list[ModelVersion]:
    """All versions of this content, the first at first."""
    query = f"name = '{name}' AND tags.`{_KEY}` = '{key}'"
    found = patiently("looking for the version", lambda: client.search_model_versions(query))
    return sorted(found, key=lambda version: int(version.version))


def _upload(client: MlflowClient, folders: Mapping[str, Path]) -> None:
    for place, folder in folders.items():
        patiently(f"storing the {place}", partial(client.log_artifacts, _run().info.run_id, str(folder), place))


def _create_version(client: MlflowClient, name: str, key: str, tags: dict[str, str], description: str) -> None:
    # Also where it was tried before and only the answer was lost.
    if not _versions(client, name, key):
        info = _run().info
        client.create_model_version(name, f"{info.artifact_uri}/{MODEL}", info.run_id, tags=tags, description=description)


def _given_up(client: MlflowClient, key: str) -> list[Run]:
    """Runs that stored this content for a version that they never made: failed ones, and those of a day ago without an end,
    which were killed."""
    here, yesterday = _run().info, (time.time() - _DAY) * 1000
    found = client.search_runs([here.experiment_id], f"tags.{_KEY} = '{key}'", max_results=100)
    return [
        run
        for run in found
        if (run.info.status in ("FAILED", "KILLED") or (run.info.status == "RUNNING" and run.info.start_time < yesterday))
        and run.info.run_id != here.run_id
        and not client.search_model_versions(f"run_id = '{run.info.run_id}'")
    ]


def _clear(run: Run, places: Iterable[str]) -> None:
    """Removes what a run stored, where this account may: nothing refers to it."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        for place in places:
            get_artifact_repository(run.info.artifact_uri).delete_artifacts(place)
    except (MlflowException, OSError) as error:
        log.info("what run %s stored of a version that it never made stays there (%s)", run.info.run_id, short(error))


def _run() -> ActiveRun:
    run = mlflow.active_run()
    if run is None:
        raise RuntimeError("registering needs an open MLflow run to hold the artifacts")
    return run


def _remove(client: MlflowClient, twin: ModelVersion) -> None:
    """Removes a version of which there is an earlier one, unless it was given an alias since."""
    try:
        if not client.get_model_version(twin.name, twin.version).aliases:
            client.delete_model_version(twin.name, twin.version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            log.warning("version %s is registered twice, again as %s: %s", twin.name, twin.version, short(error))
