"""S3 on this machine that asks for credentials, with data that DVC tracks in a git repository."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import requests
from moto.server import ThreadedMotoServer

from tests.e2e import workspace

_BUCKET = "stories"
_ANYTHING = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


@dataclass
class Store:
    """
    Attributes:
        credentials: environment variables of who may read.
        repository: the git repository, once something is tracked.
        source: that as `ingest.source` names it.
    """

    endpoint: str
    credentials: dict[str, str] = field(default_factory=dict)
    repository: Path = Path()
    source: str = ""

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[Store]:
        """A store with a user, who alone is let in."""
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        store = cls(f"http://{host}:{port}")
        try:
            store._open()
            yield store
        finally:
            requests.post(f"{store.endpoint}/moto-api/reset-auth", data=b"Infinity", timeout=30)
            server.stop()

    def _open(self) -> None:
        def client(service: str) -> Any:
            return boto3.client(
                service, endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
            )

        client("s3").create_bucket(Bucket=_BUCKET)
        identity = client("iam")
        identity.create_user(UserName="reader")
        identity.put_user_policy(UserName="reader", PolicyName="all", PolicyDocument=json.dumps(_ANYTHING))
        key = identity.create_access_key(UserName="reader")["AccessKey"]
        self.credentials = {
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        # From here on, who is not known is refused.
        requests.post(f"{self.endpoint}/moto-api/reset-auth", data=b"0", timeout=30).raise_for_status()

    def track(self, file: Path, folder: Path) -> None:
        """Puts the file under DVC in a new git repository in `folder`, and its content nowhere but into the store."""
        self.repository = folder
        shutil.copy(file, folder)
        commands = (
            "git init --quiet",
            "dvc init --quiet",
            f"dvc remote add --quiet --default store s3://{_BUCKET}/dvc",
            f"dvc remote modify --quiet store endpointurl {self.endpoint}",
            f"dvc add --quiet {file.name}",
            "dvc push --quiet",
            "git add --all",
            "git -c user.name=t -c user.email=t@example.org commit --quiet --message stories",
        )
        for command in commands:
            subprocess.run(command.split(), cwd=folder, env=workspace.environment() | self.credentials, check=True)
        shutil.rmtree(folder / ".dvc" / "cache")
        (folder / file.name).unlink()
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True).stdout
        self.source = f"git+file://{folder}@{commit.strip()}#{file.name}"
