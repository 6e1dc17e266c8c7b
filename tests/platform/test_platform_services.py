"""The platform starts, survives what happens to servers, and stops."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest
from mlflow import MlflowClient

from components.contracts import InputError
from pipelines import platform
from pipelines.platform import postgres, processes
from pipelines.platform.processes import Server, free_port
from tests.platform.fixtures import client as s3_client
from tests.platform.proxy import Proxy


@pytest.mark.slow
def test_artifacts_lie_in_s3_and_runs_in_postgresql(trial: platform.Platform, s3_proxy: Proxy, tmp_path: Path) -> None:
    client = MlflowClient(trial.uri)
    run = client.create_run(client.create_experiment("platform"))
    (tmp_path / "story.txt").write_text("Once.", encoding="utf-8")
    client.log_artifact(run.info.run_id, str(tmp_path / "story.txt"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    kept = [item["Key"] for item in s3_client(s3_proxy).list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(run.info.run_id in key and key.endswith("story.txt") for key in kept)
    with psycopg2.connect(trial.database.replace("+psycopg2", ""), passfile=trial.password_file) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM runs WHERE run_uuid = %s", [run.info.run_id])
        assert cursor.fetchone() == (1,)


def command(folder: Path, action: str, *words: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "pipelines.front_door", "platform", action, "--folder", str(folder), *words]
    return subprocess.run(call, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_started_killed_and_started_again(reachable: Path) -> None:
    folder = reachable / "again"
    port = free_port()
    assert command(folder, "status").returncode == 1
    begun = command(folder, "start", "--port", str(port))
    assert begun.returncode == 0, begun.stderr
    assert f"http://127.0.0.1:{port}" in begun.stdout and str(folder / "secrets" / "trainer.env") in begun.stdout
    recorded = {path: path.read_text() for path in (folder / "run").glob("*.json")}

    twice = command(folder, "start")
    assert twice.returncode == 0 and f"http://127.0.0.1:{port}" in twice.stdout
    assert {path: path.read_text() for path in (folder / "run").glob("*.json")} == recorded, "nothing was started twice"
    elsewhere = command(folder, "start", "--port", str(free_port()))
    assert elsewhere.returncode == 1 and f"runs already, at port {port}" in elsewhere.stderr

    # As a machine that loses power: no server can say goodbye.
    for server in ("mlflow", "postgresql"):
        os.kill(Server(server, folder / "run").pid, signal.SIGKILL)
    assert command(folder, "status").returncode == 1
    again = command(folder, "start")
    assert again.returncode == 0, again.stderr
    assert f"http://127.0.0.1:{port}" in again.stdout
    assert command(folder, "status").returncode == 0

    assert command(folder, "stop").returncode == command(folder, "stop").returncode == 0
    status = command(folder, "status")
    assert status.returncode == 1 and status.stdout.count("stopped") == 2
    assert not processes.answers(port)


def test_a_number_that_another_process_has_got_since(tmp_path: Path) -> None:
    server = Server("other", tmp_path)
    (tmp_path / "other.json").write_text(f'{{"pid": {os.getpid()}, "started": 1.0}}')
    assert not server.running
    server.stop()
    assert not (tmp_path / "other.json").exists()


def test_a_server_that_ends_is_told_with_its_last_words(tmp_path: Path) -> None:
    server = Server("short", tmp_path)
    with pytest.raises(InputError, match=r"short ended as soon as it started.*short\.log, ends so:\nno room left"):
        server.start([sys.executable, "-c", "print('no room left')"], lambda: False)


def test_workers_of_a_killed_server_do_not_stay(tmp_path: Path) -> None:
    """They would hold its port."""
    server, port = Server("parent", tmp_path), free_port()
    worker = f"import http.server; http.server.HTTPServer(('127.0.0.1', {port}), None).serve_forever()"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])"
    server.start([sys.executable, "-c", parent], lambda: processes.answers(port))
    os.kill(server.pid, signal.SIGKILL)
    server.stop()
    assert not processes.answers(port)


def test_without_postgresql_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(postgres, "_PLACES", ())
    with pytest.raises(InputError, match="apt-get install --no-install-recommends postgresql"):
        platform.start(tmp_path / "platform")


@pytest.mark.skipif(os.geteuid() != 0 or not postgres.installed(), reason="only root starts PostgreSQL as another user")
def test_a_folder_that_postgresql_cannot_enter(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(InputError, match=r"who cannot enter .*chmod o\+x"):
        platform.start(closed / "platform")


@pytest.mark.parametrize("artifacts", ["/tmp/elsewhere", "gs://bucket"])  # noqa: S108
def test_artifacts_elsewhere(tmp_path: Path, artifacts: str) -> None:
    with pytest.raises(InputError, match="artifacts are kept in"):
        platform.start(tmp_path / "platform", artifacts=artifacts)
