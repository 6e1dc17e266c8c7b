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

from components.contracts import RESPONSES
from components.lineage import PRODUCED, digest
from components.provenance import ENGINE_RUN
from pipelines.platform.processes import free_port
from tests.conftest import response_rows
from tests.containers.conftest import Workspace, runs_of
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
    done = contained.pipeline(AWS_ACCESS_KEY_ID="AKIAUNKNOWN", AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == 1
    assert "Check the address, the network and the credentials" in done.stdout
    assert "Forbidden" in done.stdout
    assert tasks(contained.made()) == {"configure"}
    assert nothing_registered(server)


def test_mlflow_away(contained: Workspace, server: str) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = contained.pipeline(MLFLOW_TRACKING_URI=address)
    assert done.returncode == 1
    assert f"MLflow at MLFLOW_TRACKING_URI='{address}' does not answer" in done.stdout
    assert not [path for path in (contained.folder / "runs").rglob("*") if path.is_file()]
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


class Single:
    """Steps in containers one by one, as a user that the image does not know."""

    def __init__(self, contained: Workspace, tiny_model: Path) -> None:
        self.folder = contained.folder
        self.engine_run = f"single-{uuid.uuid4()}"
        self.environment = contained.environment | {ENGINE_RUN: self.engine_run}
        self.options = ["--network", "host", "--user", "12345:12345"]
        for place in (self.folder, tiny_model):
            # pytest's folders are closed to others, and so are weights as safetensors writes them.
            place.chmod(0o755)
            for file in place.iterdir():
                file.chmod(0o755)
            self.options += ["--volume", f"{place}:{place}"]
        self.out = open_folder(self.folder / "out")
        for name in (*(name for name in self.environment if name.startswith("MLFLOW_")), ENGINE_RUN):
            self.options += ["--env", name]

    def container(self, model: str) -> str:
        return f"{self.engine_run}-{model}"

    def train(self, model: str, work: Path) -> subprocess.Popen[str]:
        """SFT under way, with its checkpoints on the volume `work`."""
        own = ["--volume", f"{work}:/polyphony/.work/train", "--name", self.container(model)]
        given = ["--params", str(self.folder / "params.yaml"), "--objective", "sft", "--model", str(self.out / model)]
        given += ["--responses", str(self.folder / "responses"), "--validation", str(self.folder / "validation")]
        return subprocess.Popen(
            ["docker", "run", "--rm", *self.options, *own, "polyphony-model", "python", "-m", "components.train", *given],
            env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def light(self, room: str, *given: str) -> subprocess.CompletedProcess[str]:
        """A step of the light image."""
        return subprocess.run(
            ["docker", "run", "--rm", *self.options, "polyphony-light", "python", "-m", f"components.{room}", *given],
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
    workspace.set_params(contained.folder, **{"train.sft.epochs": 20, "train.checkpoint_minutes": 1e-6})
    training = Single(contained, tiny_model)
    work, other = open_folder(tmp_path / "work"), open_folder(tmp_path / "other")
    first = training.train("first", work)
    while first.poll() is None and not list(work.rglob("*.safetensors")):
        time.sleep(0.05)
    assert first.poll() is None, first.communicate()[0]
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

    said, _ = training.train("again", work).communicate()
    assert "going on from" in said
    said, _ = training.train("whole", other).communicate()
    assert "going on from" not in said
    assert digest(training.out / "again") == digest(training.out / "whole")
    assert not list(work.rglob("*.safetensors"))


def test_data_that_fails_validation_is_reported_and_stopped_by_the_gate(contained: Workspace, tiny_model: Path) -> None:
    single = Single(contained, tiny_model)
    RESPONSES.write(contained.folder / "responses", list(reversed(response_rows())))
    validation, page = single.out / "validation", single.out / "data_docs"
    given = ["--params", str(contained.folder / "params.yaml"), "--suite", "responses", "--validation", str(validation)]
    given += ["--responses", str(contained.folder / "responses"), "--data-docs", str(page)]
    checked = single.light("validate", *given)
    # The report must outlive its task: Kubeflow keeps nothing of one that fails.
    assert checked.returncode == 0, checked.stdout
    assert "critical: Rows are sorted by prompt_id" in checked.stdout
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    stopped = single.light("gate", "--validation", str(validation))
    assert stopped.returncode == 1
    assert "did not pass validation: does not hold: Rows are sorted by prompt_id" in stopped.stdout
