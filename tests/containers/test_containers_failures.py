"""What goes wrong in containers says why in the run's own log, and leaves nothing that looks finished or registered."""

from __future__ import annotations

import json
import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from components.lineage import PRODUCED, digest
from components.provenance import ENGINE_RUN, ENGINE_TAG
from pipelines.platform.processes import free_port
from tests.containers.conftest import Workspace
from tests.e2e import workspace

pytestmark = pytest.mark.slow
NAME = "never-registered"


@pytest.fixture(autouse=True)
def own_name(contained: Workspace) -> None:
    workspace.set_params(contained.folder, **{"register.name": NAME})


def runs_of(server: str, engine_run: str) -> list[Run]:
    store = MlflowClient(server)
    experiments = [found.experiment_id for found in store.search_experiments()]
    return list(store.search_runs(experiments, f"tags.`{ENGINE_TAG}` = '{engine_run}'"))


def last_engine_run(server: str) -> str:
    store = MlflowClient(server)
    (last,) = store.search_runs([found.experiment_id for found in store.search_experiments()], max_results=1)
    return str(last.data.tags[ENGINE_TAG])


def nothing_registered(server: str) -> bool:
    return not MlflowClient(server).search_model_versions(f"name = '{NAME}'")


def tasks(made: Path) -> set[str]:
    """Tasks that wrote anything."""
    return {path.relative_to(made).parts[0] for path in made.rglob("*") if path.is_file()}


def test_data_that_fails_validation_ends_the_run_at_the_gate(contained: Workspace, server: str) -> None:
    workspace.set_params(contained.folder, **{"validate.max_zero_weight": 0.1})
    done = contained.pipeline()
    assert done.returncode == 1
    assert "the data did not pass validation: does not hold: The pair teaches something" in done.stdout
    made = contained.made()
    assert not [task for task in tasks(made) if task.startswith(("for-loop-3", "evaluate", "register"))]
    results = json.loads((made / "validate-weights" / "validation" / "results.json").read_text(encoding="utf-8"))
    assert results["passed"] is False
    assert (made / "validate-weights" / "data_docs").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert {run.info.status for run in runs_of(server, last_engine_run(server))} == {"FINISHED"}
    assert nothing_registered(server)


def test_wrong_credentials_of_the_store(contained: Workspace, server: str) -> None:
    done = contained.pipeline(AWS_ACCESS_KEY_ID="AKIAUNKNOWN", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 1
    assert "Check the address, the network and the credentials" in done.stdout
    assert "ccess" in done.stdout.split("cannot be read")[1]
    assert tasks(contained.made()) == {"configure"}
    assert nothing_registered(server)


def test_mlflow_away(contained: Workspace, server: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = contained.pipeline(MLFLOW_TRACKING_URI=address)
    assert done.returncode == 1
    assert f"MLflow at MLFLOW_TRACKING_URI='{address}' does not answer" in done.stdout
    assert not tasks(contained.made())
    assert nothing_registered(server)


def test_an_image_that_is_not_there(contained: Workspace, engine: dict[str, str]) -> None:
    subprocess.run(["docker", "tag", "polyphony-model", "kept"], env=os.environ | engine, check=True)
    subprocess.run(["docker", "rmi", "polyphony-model"], env=os.environ | engine, check=True, capture_output=True)
    try:
        done = contained.pipeline()
    finally:
        subprocess.run(["docker", "tag", "kept", "polyphony-model"], env=os.environ | engine, check=True)
        subprocess.run(["docker", "rmi", "kept"], env=os.environ | engine, check=True, capture_output=True)
    assert done.returncode == 1
    assert "there is no image 'polyphony-model' here. Build it: `make images`." in done.stdout
    assert not (contained.folder / "runs").exists()


class Training:
    """`train --objective sft` in a container, as a user that the image does not know, with its checkpoints on a volume."""

    def __init__(self, contained: Workspace, tiny_model: Path) -> None:
        self.folder = contained.folder
        workspace.set_params(self.folder, **{"train.sft.epochs": 60, "train.checkpoint_minutes": 1e-6})
        self.out = open_folder(self.folder / "out")
        self.engine_run = f"killed-{uuid.uuid4()}"
        self.environment = contained.environment | {ENGINE_RUN: self.engine_run}
        self.options = ["--network", "host", "--user", "12345:12345"]
        for place in (self.folder, tiny_model):
            # pytest's folders are closed to others.
            place.chmod(0o755)
            self.options += ["--volume", f"{place}:{place}"]
        for name in (*(name for name in self.environment if name.startswith("MLFLOW_")), ENGINE_RUN):
            self.options += ["--env", name]

    def container(self, model: str) -> str:
        return f"{self.engine_run}-{model}"

    def start(self, model: str, work: Path) -> subprocess.Popen[str]:
        own = ["--volume", f"{work}:/polyphony/.work/train", "--name", self.container(model)]
        given = ["--params", str(self.folder / "params.yaml"), "--objective", "sft", "--model", str(self.out / model)]
        given += ["--responses", str(self.folder / "responses"), "--validation", str(self.folder / "validation")]
        return subprocess.Popen(
            ["docker", "run", "--rm", *self.options, *own, "polyphony-model", "python", "-m", "components.train", *given],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def docker(self, *words: str) -> None:
        subprocess.run(["docker", *words], env=self.environment, check=True, capture_output=True)


def open_folder(path: Path) -> Path:
    path.mkdir()
    path.chmod(0o777)
    return path


def test_a_killed_training_goes_on_from_its_checkpoint(
    contained: Workspace, finished: Path, server: str, tiny_model: Path, tmp_path: Path
) -> None:
    for artifact, place in (("responses", "responses.parquet"), ("validation", "validation/responses")):
        subprocess.run(["cp", "-r", str(finished / "artifacts" / place), str(contained.folder / artifact)], check=True)
    training = Training(contained, tiny_model)
    work, other = open_folder(tmp_path / "work"), open_folder(tmp_path / "other")
    first = training.start("first", work)
    while first.poll() is None and not list(work.rglob("*.safetensors")):
        time.sleep(0.05)
    training.docker("kill", training.container("first"))
    said, _ = first.communicate()
    assert first.returncode == 137, said
    assert not list(training.out.iterdir())

    # What Kubeflow runs last, with the reason that it has.
    status = json.dumps({"state": "FAILED", "error": {"message": "OOMKilled"}})
    training.docker(
        "run", "--rm", *training.options, "polyphony-light", "python", "-m", "components.closing", "--status", status
    )
    (killed,) = runs_of(server, training.engine_run)
    assert (killed.info.status, killed.data.tags["failure"]) == ("FAILED", "OOMKilled")
    assert not [tag for tag in killed.data.tags if tag.startswith(PRODUCED)]

    said, _ = training.start("again", work).communicate()
    assert "going on from" in said
    said, _ = training.start("whole", other).communicate()
    assert "going on from" not in said
    assert digest(training.out / "again") == digest(training.out / "whole")
    assert not list(work.rglob("*.safetensors"))
