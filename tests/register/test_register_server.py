"""Registration with MLflow as a server, which answers with types of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.lineage import step_run
from components.register.params import Params
from components.register.step import run
from tests.register.conftest import Pipeline


@pytest.fixture
def server(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server on the store that has the pipeline's runs."""
    del pipeline
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # The client tries again until it answers.
        yield f"http://127.0.0.1:{port}"
        process.terminate()


@pytest.mark.slow
def test_a_server_registers_as_a_file_does(server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    paths = {name: tmp_path / name for name in ("evaluation", "version")}
    with step_run("register", {}, {}):
        metrics = run(register=Params(), model=tmp_path / "ddpo", **paths)
    told = json.loads(paths["version"].read_text(encoding="utf-8"))
    assert metrics == {"passed": 1, "version": 1}
    assert told["status"] == "candidate" and told["alias"] == ["candidate"]
    client = MlflowClient(server)
    version = client.get_model_version_by_alias("polyphony", "candidate")
    assert version.version == "1" and version.tags["validation_status"] == "candidate"
    kept = {Path(file.path).name for file in client.list_artifacts(version.run_id, "model")}
    assert {"adapter_model.safetensors", "README.md", "lineage.json"} <= kept
