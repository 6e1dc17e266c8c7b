"""The whole graph in containers: MLflow on PostgreSQL with artifacts in S3, stories from git and S3."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.lineage import digest
from components.provenance import ENGINE_TAG
from tests.containers.conftest import Workspace, runs_of
from tests.containers.test_containers_images import head
from tests.e2e import parity, workspace

pytestmark = pytest.mark.slow


def test_the_same_as_with_dvc(contained: Workspace, finished: Path, server: str, checkout: Path) -> None:
    """Digests, metrics, lineage and version; tests/pipelines has the same of plain processes."""
    done = contained.pipeline()
    assert done.returncode == 0, done.stdout[-8000:]
    made = contained.made()
    lock = workspace.locked(finished)
    assert parity.digests_of_tasks(made) == parity.digests_of_stages(finished)
    assert parity.metrics_of_tasks(made) == parity.metrics_of_stages(finished)
    model = lock["artifacts/models/ddpo"]
    assert parity.lineage(server, model) == parity.lineage(f"sqlite:///{finished}/mlflow.db", model)
    store = MlflowClient(server)
    told = json.loads((made / "register" / "version").read_text(encoding="utf-8"))
    registered = store.get_model_version(told["name"], str(told["version"]))
    assert registered.tags["data.digest"] == digest(finished / "stories.jsonl")
    assert registered.tags["model.digest"] == model
    runs = runs_of(server, store.get_run(str(registered.run_id)).data.tags[ENGINE_TAG])
    assert len(runs) == len(parity.TASKS)
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert {run.data.tags["commit"] for run in runs} == {head(checkout)}
