"""A run of the graph that Kubeflow runs, on a server with accounts, PostgreSQL and S3, with secrets in its environment.

It makes what `dvc repro` makes, says no secret, and what it registers goes to production and back as any other version does.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from components.lineage import digest, tracking_client
from pipelines import platform
from pipelines.platform import accounts
from tests.e2e import parity, workspace
from tests.platform.fixtures import client as s3_client
from tests.platform.proxy import Proxy
from tests.test_redaction import SECRETS, leaks, written

pytestmark = pytest.mark.slow
# Where a training's files lie in the run's folder.
MODEL = "for-loop-3-iteration-1/train-preference/model"


@dataclass(frozen=True)
class Run:
    """What the run left: its workspace, the folder of its tasks, what it printed, and the platform that recorded it."""

    folder: Path
    tasks: Path
    printed: str
    platform: platform.Platform

    def account(self, name: str) -> dict[str, str]:
        return accounts.environment(self.platform.folder, name)

    def polyphony(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """A command as somebody gives it in the workspace."""
        environment = workspace.environment() | SECRETS | self.account(name)
        return subprocess.run(["polyphony", *words], cwd=self.folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, finished: Path, reachable: Path, s3_proxy: Proxy) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("platform") / "workspace"
    shutil.copytree(finished, folder, ignore=shutil.ignore_patterns("artifacts", "mlflow.db", ".work"))
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name, value in SECRETS.items():
            # The server's own way into PostgreSQL is a file.
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("MLFLOW_S3_ENDPOINT_URL", s3_proxy.target)
        with platform.start(reachable / "whole", artifacts="s3://mlflow/whole", with_accounts=True) as running:
            environment = workspace.environment() | SECRETS | accounts.environment(running.folder, accounts.TRAINER)
            done = subprocess.run(
                ["polyphony", "pipeline", "run", "--overrides", "params.yaml", "--root", "runs"],
                cwd=folder, env=environment, capture_output=True, text=True,
            )  # fmt: skip
            printed = done.stdout + done.stderr
            assert done.returncode == 0, printed[-5000:]
            (tasks,) = (folder / "runs").iterdir()
            yield Run(folder, tasks, printed, running)


def test_the_same_as_with_dvc(run: Run, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in run.account(accounts.TRAINER).items():
        monkeypatch.setenv(name, value)
    made = run.tasks
    found = parity.digests_of_tasks(made)
    assert found == parity.digests_of_stages(finished)
    assert parity.metrics_of_tasks(made) == parity.metrics_of_stages(finished)
    model = found["artifacts/models/ddpo"]
    assert parity.lineage(run.platform.uri, model) == parity.lineage(f"sqlite:///{finished}/mlflow.db", model)
    assert (made / "validate" / "data_docs").read_text(encoding="utf-8").startswith("<!doctype html>")
    told = json.loads((made / "ingest" / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    assert told["metrics"]["artifacts"][0]["metadata"]["responses"] == 24
    assert told["responses"]["artifacts"][0]["metadata"]["digest"] == found["artifacts/responses.parquet"]
    version = json.loads((made / "register" / "version").read_text(encoding="utf-8"))
    tags = tracking_client().get_model_version(version["name"], str(version["version"])).tags
    assert tags["data.digest"] == digest(run.folder / "stories.jsonl")


def objects(proxy: Proxy, prefix: str) -> dict[str, bytes]:
    store = s3_client(proxy)
    pages = store.get_paginator("list_objects_v2").paginate(Bucket="mlflow", Prefix=prefix)
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    return {key: store.get_object(Bucket="mlflow", Key=key)["Body"].read() for key in keys}


def tables(running: platform.Platform, database: str) -> Iterator[bytes]:
    """The content of every table of a database."""
    address = running.database.replace("+psycopg2", "").removesuffix("mlflow") + database
    with psycopg2.connect(address, passfile=running.password_file) as connection:
        cursor: Any = connection.cursor()
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for (name,) in cursor.fetchall():
            copy = io.BytesIO()
            cursor.copy_expert(sql.SQL("COPY {} TO STDOUT").format(sql.Identifier(name)), copy)
            yield copy.getvalue()


def test_no_secret_is_in_files_logs_tables_or_objects(run: Run, s3_proxy: Proxy) -> None:
    kept = objects(s3_proxy, "whole")
    dump = [*tables(run.platform, "mlflow"), *tables(run.platform, "accounts")]
    logs = [path.read_bytes() for path in run.platform.folder.rglob("*.log")]
    # What is looked through is the real thing.
    assert any(key.endswith("README.md") for key in kept) and any(b"gate.reasons" in table for table in dump) and any(logs)
    password = run.account(accounts.TRAINER)["MLFLOW_TRACKING_PASSWORD"]
    everything = [run.printed.encode(), *written(run.folder), *kept.values(), *dump, *logs]
    assert not leaks(*everything)
    assert not any(password.encode() in content for content in everything)


def register_again(run: Run) -> None:
    """Under another gate, which is another version of the same model."""
    command = [sys.executable, "-m", "components.register", "--params", json.dumps({"register": {"quality_tolerance": 0.7}})]
    command += ["--model", str(run.tasks / MODEL), "--evaluation", str(run.tasks / "evaluate" / "evaluation")]
    command += ["--version", "version.json"]
    environment = workspace.environment() | run.account(accounts.TRAINER)
    done = subprocess.run(command, cwd=run.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def move(run: Run, *words: str, by: str = accounts.PROMOTER) -> subprocess.CompletedProcess[str]:
    return run.polyphony(by, words[0], "--model", "polyphony", "--reason", "r", *words[1:])


def test_promoted_and_back(run: Run) -> None:
    register_again(run)
    refused = move(run, "promote", "--version", "1", "--yes", "--force", by=accounts.TRAINER)
    assert refused.returncode == 1 and "does not let this account" in refused.stderr
    for version in ("1", "2"):
        promoted = move(run, "promote", "--version", version, "--yes", "--force")
        assert promoted.returncode == 0, promoted.stderr
    assert "quality (reward)" in promoted.stdout
    back = move(run, "rollback")
    assert back.returncode == 0 and "version 1 is the champion again" in back.stdout, back.stderr
    told = json.loads(run.polyphony(accounts.TRAINER, "history", "--model", "polyphony", "--json").stdout)
    assert [one["version"] for one in told["moves"] if not one["void"]] == ["1", "2", "1"]
    assert not leaks(refused.stderr, promoted.stdout, promoted.stderr, back.stdout, back.stderr)


def test_its_lineage_names_the_whole_run(run: Run) -> None:
    shown = run.polyphony(accounts.TRAINER, "lineage", "show", "polyphony/1", "--json")
    assert shown.returncode == 0, shown.stderr
    told: Mapping[str, Any] = json.loads(shown.stdout)
    assert not told["problems"]
    steps = {made["step"] for made in told["runs"].values()}
    assert {"ingest", "embed", "weight", "train-ddpo", "evaluate", "register"} <= steps
    assert told["runs"][told["version"]["run"]]["step"] == "register"
    (engine,) = {(made["engine"], made["engine_run"]) for made in told["runs"].values()}
    assert engine[0] == "kfp.local" and engine[1].startswith("local-")


def test_what_lies_in_s3_is_hashed_again(run: Run, s3_proxy: Proxy) -> None:
    def verify() -> tuple[int, str]:
        done = run.polyphony(accounts.TRAINER, "lineage", "verify", "polyphony/1")
        return done.returncode, done.stdout

    status, told = verify()
    assert status == 0 and "0 problem(s)" in told and "files in mlflow-artifacts:/" in told, told
    store = s3_client(s3_proxy)
    registered = json.loads(run.polyphony(accounts.TRAINER, "lineage", "show", "polyphony/1", "--json").stdout)["version"][
        "run"
    ]
    ours = [key for key in objects(s3_proxy, "whole") if registered in key]
    (key,) = (key for key in ours if key.endswith("model/adapter_model.safetensors"))
    sound = store.get_object(Bucket="mlflow", Key=key)["Body"].read()
    try:
        store.put_object(Bucket="mlflow", Key=key, Body=sound[:-1] + b"x")
        status, told = verify()
        assert status == 1 and "polyphony version 1: adapter_model.safetensors: differs from what was registered" in told
        store.delete_object(Bucket="mlflow", Key=key)
        status, told = verify()
        assert status == 1 and "polyphony version 1: adapter_model.safetensors: missing" in told
    finally:
        store.put_object(Bucket="mlflow", Key=key, Body=sound)
