"""What goes wrong in containers says why in the run's own log, and leaves nothing that looks finished or registered."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.contracts import RESPONSES
from pipelines.platform.processes import free_port
from tests.containers.conftest import Workspace
from tests.e2e import workspace

pytestmark = pytest.mark.slow
NAME = "never-registered"


@pytest.fixture(autouse=True)
def own_name(contained: Workspace) -> None:
    workspace.set_params(contained.folder, **{"register.name": NAME})


def nothing_registered(server: str) -> bool:
    return not MlflowClient(server).search_model_versions(f"name = '{NAME}'")


def tasks(made: Path) -> set[str]:
    """Tasks that wrote anything."""
    return {path.relative_to(made).parts[0] for path in made.rglob("*") if path.is_file()}


def test_wrong_credentials_of_the_store(contained: Workspace, server: str) -> None:
    status, said = contained.pipeline(AWS_ACCESS_KEY_ID="AKIAUNKNOWN", AWS_SECRET_ACCESS_KEY="wrong")
    assert status == 1
    assert "Check the address, the network and the credentials" in said
    assert "Forbidden" in said
    assert tasks(contained.made()) == {"configure"}
    assert nothing_registered(server)


def test_mlflow_away(contained: Workspace, server: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    status, said = contained.pipeline(MLFLOW_TRACKING_URI=address)
    assert status == 1
    assert f"MLflow at MLFLOW_TRACKING_URI='{address}' does not answer" in said
    assert not [path for path in (contained.folder / "runs").rglob("*") if path.is_file()]
    assert nothing_registered(server)


def test_an_image_that_is_not_there(contained: Workspace, engine: dict[str, str]) -> None:
    subprocess.run(["docker", "tag", "polyphony-model", "kept"], env=os.environ | engine, check=True)
    subprocess.run(["docker", "rmi", "polyphony-model"], env=os.environ | engine, check=True, capture_output=True)
    try:
        status, said = contained.pipeline()
    finally:
        subprocess.run(["docker", "tag", "kept", "polyphony-model"], env=os.environ | engine, check=True)
        subprocess.run(["docker", "rmi", "kept"], env=os.environ | engine, check=True, capture_output=True)
    assert status == 1
    assert "there is no image 'polyphony-model' here. Build it: `make images`." in said
    assert not (contained.folder / "runs").exists()


def test_data_that_fails_validation(contained: Workspace, server: str) -> None:
    """Data that was damaged after `ingest`: the run ends at the gate, before anything costly, and the report is kept."""
    run = contained.start()
    while run.poll() is None and not list(contained.folder.glob("runs/*/ingest/executor_output.json")):
        time.sleep(0.05)
    responses = contained.made() / "ingest" / "responses"
    RESPONSES.write(responses, list(reversed(RESPONSES.read(responses).to_pylist())))
    status, said = run.wait(), contained.log.read_text(encoding="utf-8")
    assert status == 1
    assert "critical: Rows are sorted by prompt_id" in said
    assert "did not pass validation: does not hold: Rows are sorted by prompt_id" in said
    made = contained.made()
    assert tasks(made) == {"configure", "ingest", "validate"}
    assert (made / "validate" / "data_docs").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not json.loads((made / "validate" / "validation" / "results.json").read_text(encoding="utf-8"))["passed"]
    assert nothing_registered(server)
