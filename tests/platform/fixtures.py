"""A platform of the tests' own, on PostgreSQL and on S3 that fails when told to; all tests share it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.platform import Platform, postgres
from tests.platform.proxy import Proxy

KEYS = {"AWS_ACCESS_KEY_ID": "tests", "AWS_SECRET_ACCESS_KEY": "tests", "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="session")
def reachable() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not: PostgreSQL does not run as root."""
    if not os.environ.get("CI") and not postgres.installed():
        pytest.skip("PostgreSQL is not installed")
    folder = Path(tempfile.mkdtemp(prefix="polyphony-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def s3_proxy() -> Iterator[Proxy]:
    """S3 with the bucket `mlflow`, behind a proxy."""
    from pipelines.platform.processes import answers, free_port

    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not answers(port):
            assert process.poll() is None
            time.sleep(0.1)
        with Proxy(f"http://127.0.0.1:{port}").running() as proxy:
            client(proxy).create_bucket(Bucket="mlflow")
            yield proxy
        process.terminate()


def client(proxy: Proxy) -> Any:
    """A client of what is behind the proxy."""
    import boto3

    return boto3.client(
        "s3", endpoint_url=proxy.target, region_name="us-east-1", aws_access_key_id="tests", aws_secret_access_key="tests"
    )


@pytest.fixture(scope="session")
def trial(reachable: Path, s3_proxy: Proxy) -> Iterator[Platform]:
    """A platform on PostgreSQL and S3."""
    from pipelines import platform

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "MLFLOW_S3_ENDPOINT_URL": s3_proxy.uri, "AWS_MAX_ATTEMPTS": "2"}.items():
            patch.setenv(name, value)
        with platform.start(reachable / "trial", artifacts="s3://mlflow", workers=2) as running:
            yield running


@pytest.fixture(scope="session")
def mlflow_proxy(trial: Platform) -> Iterator[Proxy]:
    """That platform's MLflow, behind a proxy."""
    with Proxy(trial.uri).running() as proxy:
        yield proxy
