"""The images, made by a real engine from a clean clone, and the services that containers talk to."""

from __future__ import annotations

import json
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
SAMPLE = "data/sample/stories.jsonl"


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
def language(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for real stories, which its tokenizer cuts into little more than letters."""
    folder = tmp_path_factory.mktemp("language") / "model"
    shutil.copytree(tiny_model, folder)
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 2048}))
    return folder


@pytest.fixture(scope="session")
def sampled(tmp_path_factory: pytest.TempPathFactory, language: Path) -> Path:
    """A workspace in which DVC has run the whole graph on the sample stories; who changes it copies it first."""
    # SFT is to last until the test that kills it has seen it at work.
    values = {"ingest.source": SAMPLE, "models.max_tokens": 2048, "train.sft.epochs": 3}
    folder = workspace.make(tmp_path_factory.mktemp("sampled"), language, **values)
    workspace.dvc(folder, "repro")
    return folder


@pytest.fixture(scope="session")
def stories(sampled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The sample stories, tracked by DVC in a git repository, with their content in S3 that asks for credentials."""
    with Store.running() as store:
        store.track(sampled / SAMPLE, tmp_path_factory.mktemp("stories"))
        yield store


class Workspace:
    """A folder of parameters from which the pipeline runs in containers."""

    def __init__(self, folder: Path, engine: dict[str, str], server: str, stories: Store, model: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.mounts = (stories.repository, model)
        # What fails shall not be tried for minutes.
        patience = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "AWS_MAX_ATTEMPTS": "2"}
        self.environment = workspace.environment() | engine | stories.credentials | patience | {"MLFLOW_TRACKING_URI": server}

    def start(self, runner: str = "docker", **environment: str) -> subprocess.Popen[str]:
        """`polyphony pipeline run` under way, outputs under `runs`; what it says is in `log`."""
        command = ["polyphony", "pipeline", "run", "--runner", runner, "--root", "runs", "--overrides", "params.yaml"]
        command += [word for folder in self.mounts for word in ("--mount", str(folder))]
        with self.log.open("w") as log:
            return subprocess.Popen(
                command, cwd=self.folder, env=self.environment | environment, stdout=log, stderr=subprocess.STDOUT, text=True
            )

    def pipeline(self, runner: str = "docker", **environment: str) -> tuple[int, str]:
        """Exit status and log of a run."""
        status = self.start(runner, **environment).wait()
        return status, self.log.read_text(encoding="utf-8")

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
def contained(images: dict[str, str], server: str, sampled: Path, stories: Store, language: Path, tmp_path: Path) -> Workspace:
    """The parameters of `sampled`, with the same stories from the git repository."""
    shutil.copy(sampled / "params.yaml", tmp_path)
    workspace.set_params(tmp_path, **{"ingest.source": stories.source})
    return Workspace(tmp_path, images, server, stories, language)
