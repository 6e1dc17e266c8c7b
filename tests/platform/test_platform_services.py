"""The platform starts, survives what happens to servers, and stops."""

from __future__ import annotations

from pathlib import Path

import boto3
import psycopg2
import pytest
from mlflow import MlflowClient

from pipelines import platform

pytestmark = pytest.mark.slow


def test_artifacts_lie_in_s3_and_runs_in_postgresql(trial: platform.Platform, tmp_path: Path) -> None:
    client = MlflowClient(trial.uri)
    run = client.create_run(client.create_experiment("platform"))
    (tmp_path / "story.txt").write_text("Once.", encoding="utf-8")
    client.log_artifact(run.info.run_id, str(tmp_path / "story.txt"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    assert trial.artifacts == "s3://mlflow"
    s3 = boto3.client(
        "s3", endpoint_url=trial.s3, region_name="us-east-1", aws_access_key_id="any", aws_secret_access_key="any"
    )
    kept = [item["Key"] for item in s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(run.info.run_id in key and key.endswith("story.txt") for key in kept)
    with psycopg2.connect(trial.database.replace("+psycopg2", ""), passfile=trial.password_file) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT count(*) FROM runs WHERE run_uuid = %s", [run.info.run_id])
        assert cursor.fetchone() == (1,)
