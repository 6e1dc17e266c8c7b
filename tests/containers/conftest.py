"""The images, made by a real engine from a clean clone, and the services that containers talk to."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from components.provenance import ENGINE_TAG
from pipelines import platform
from tests.containers import engine as docker
from tests.containers.store import Store
from tests.e2e import workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def engine() -> Iterator[dict[str, str]]:
    """What `docker` needs in its environment; the engine has the base image."""
    if reason := docker.missing():
        # CI is where containers are proved.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with docker.running() as environment:
        docker.base(environment)
        yield environment


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of what is committed."""
    folder = tmp_path_factory.mktemp("clone") / "polyphony"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def images(engine: dict[str, str], checkout: Path) -> dict[str, str]:
    """The engine's environment, when `make images` has been through."""
    make_images(engine, checkout)
    return engine


def make_images(engine: dict[str, str], checkout: Path, *names: str) -> None:
    words = [f"BUILD_FLAGS=--network host --build-arg BASE_IMAGE={docker.BASE}"]
    if "PIP_FIND_LINKS" in os.environ:
        # There lies torch for CPUs.
        words.append("CPU_TORCH=")
    if names:
        words.append(f"IMAGES={' '.join(names)}")
    done = subprocess.run(
        ["make", "images", *words], cwd=checkout, env=os.environ | engine,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Address of an MLflow server on PostgreSQL, with artifacts in S3."""
    # PostgreSQL does not run as root, and pytest's folders are closed to others.
    folder = Path(tempfile.mkdtemp(prefix="polyphony-"))
    folder.chmod(0o711)
    with platform.start(folder / "platform", artifacts="trial", workers=1) as running:
        yield running.uri
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def stories(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The stories of `finished`, tracked by DVC in a git repository, with their content in S3 that asks for credentials."""
    with Store.running() as store:
        store.track(finished / "stories.jsonl", tmp_path_factory.mktemp("stories"))
        yield store


class Workspace:
    """A folder of parameters from which the pipeline runs in containers."""

    def __init__(self, folder: Path, engine: dict[str, str], server: str, stories: Store, model: Path) -> None:
        self.folder = folder
        self.mounts = (stories.repository, model)
        # What fails shall not be tried for minutes.
        patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "AWS_MAX_ATTEMPTS": "2"}
        self.environment = workspace.environment() | engine | stories.credentials | patience | {"MLFLOW_TRACKING_URI": server}

    def pipeline(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """`polyphony pipeline run --runner docker`, outputs under `runs`."""
        command = ["polyphony", "pipeline", "run", "--runner", "docker", "--root", "runs", "--overrides", "params.yaml"]
        command += [word for folder in self.mounts for word in ("--mount", str(folder))]
        return subprocess.run(
            [*command, *words], cwd=self.folder, env=self.environment | environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def made(self) -> Path:
        """The outputs of the only run."""
        (folder,) = (self.folder / "runs").iterdir()
        return folder


def runs_of(server: str, engine_run: str) -> list[Run]:
    """The MLflow runs of one run of the pipeline, among those of other tests on the same server."""
    store = MlflowClient(server)
    experiments = [found.experiment_id for found in store.search_experiments()]
    return list(store.search_runs(experiments, f"tags.`{ENGINE_TAG}` = '{engine_run}'"))


@pytest.fixture
def contained(
    images: dict[str, str], server: str, finished: Path, stories: Store, tiny_model: Path, tmp_path: Path
) -> Workspace:
    """The parameters of `finished`, with the same stories from the git repository."""
    shutil.copy(finished / "params.yaml", tmp_path)
    workspace.set_params(tmp_path, **{"ingest.source": stories.source})
    return Workspace(tmp_path, images, server, stories, tiny_model)
