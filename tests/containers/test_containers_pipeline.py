"""The whole graph in containers: MLflow on PostgreSQL with artifacts in S3, the sample stories from git and S3."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.closing.close import FAILURE
from components.lineage import PRODUCED, digest
from components.provenance import ENGINE_TAG
from tests.containers.conftest import SAMPLE, Workspace, runs_of
from tests.containers.test_containers_images import head
from tests.e2e import parity, workspace

pytestmark = pytest.mark.slow


def kill_sft(contained: Workspace, run: subprocess.Popen[str]) -> None:
    """Kills SFT's container once there is a checkpoint from which it can go on."""
    while run.poll() is None and not list((contained.folder / ".work" / "train").glob("sft-*/checkpoint-*")):
        time.sleep(0.05)
    assert run.poll() is None, contained.log.read_text(encoding="utf-8")[-5000:]
    listed = ["docker", "ps", "--quiet", "--filter", "ancestor=polyphony-model"]
    (name,) = subprocess.run(listed, env=contained.environment, check=True, capture_output=True, text=True).stdout.split()
    subprocess.run(["docker", "kill", name], env=contained.environment, check=True, capture_output=True)


def test_the_same_as_with_dvc(contained: Workspace, sampled: Path, server: str, checkout: Path) -> None:
    """Digests, metrics, lineage and version, though a training is killed on the way, which its retry takes up again."""
    run = contained.start()
    kill_sft(contained, run)
    status, said = run.wait(), contained.log.read_text(encoding="utf-8")
    assert status == 0, said[-8000:]
    assert "The container was killed" in said and "going on from" in said
    made = contained.made()
    model = workspace.locked(sampled)["artifacts/models/ddpo"]
    assert parity.digests_of_tasks(made) == parity.digests_of_stages(sampled)
    assert parity.metrics_of_tasks(made) == parity.metrics_of_stages(sampled)
    assert parity.lineage(server, model) == parity.lineage(f"sqlite:///{sampled}/mlflow.db", model)
    store = MlflowClient(server)
    told = json.loads((made / "register" / "version").read_text(encoding="utf-8"))
    registered = store.get_model_version(told["name"], str(told["version"]))
    assert registered.tags["data.digest"] == digest(sampled / SAMPLE)
    assert registered.tags["model.digest"] == model
    runs = runs_of(server, store.get_run(str(registered.run_id)).data.tags[ENGINE_TAG])
    (killed,) = (run for run in runs if run.info.status != "FINISHED")
    assert killed.info.status == "KILLED" and killed.data.tags[FAILURE]
    assert not [tag for tag in killed.data.tags if tag.startswith(PRODUCED)]
    assert len(runs) == len(parity.TASKS) + 1
    assert {run.data.tags["commit"] for run in runs} == {head(checkout)}


def test_the_same_as_plain_processes(contained: Workspace, sampled: Path) -> None:
    """The same inputs, the repository of stories among them, and no server."""
    status, said = contained.pipeline("subprocess", MLFLOW_TRACKING_URI="")
    assert status == 0, said[-8000:]
    model = workspace.locked(sampled)["artifacts/models/ddpo"]
    assert parity.digests_of_tasks(contained.made()) == parity.digests_of_stages(sampled)
    assert parity.metrics_of_tasks(contained.made()) == parity.metrics_of_stages(sampled)
    stores = (f"sqlite:///{folder}/mlflow.db" for folder in (contained.folder, sampled))
    ours, theirs = (parity.lineage(store, model) for store in stores)
    assert ours == theirs
