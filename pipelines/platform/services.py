"""What the platform is made of, and in which order it starts and stops."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit

from components.contracts import InputError, atomic
from pipelines.platform import accounts, postgres
from pipelines.platform.processes import Server, answers, free_port

# In place of an S3 address: a stand-in that keeps objects in memory.
TRIAL = "trial"
_NAMES = ("mlflow", "s3", "postgresql")


@dataclass(frozen=True)
class Platform:
    """A platform that runs.

    Attributes:
        uri: what `MLFLOW_TRACKING_URI` is set to.
        artifacts: where the server keeps artifacts: a folder or an S3 address.
        s3: the endpoint of the S3 stand-in, where one runs.
        database: of MLflow, without its password (`PGPASSFILE` names `password_file`).
    """

    folder: Path
    uri: str
    artifacts: str
    s3: str | None
    database: str
    password_file: Path

    def stop(self) -> None:
        stop(self.folder)

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.stop()


def start(
    folder: Path, *, port: int = 0, artifacts: str | None = None, with_accounts: bool = False, workers: int = 2
) -> Platform:
    """Starts what does not run yet; all of it answers when this returns. Ports and artifacts stay where they were at first.

    Args:
        folder: where all data, secrets and logs lie; made where there is none.
        port: of MLflow, 0 for a free one.
        artifacts: None to keep artifacts in the folder; `s3://bucket/prefix` to keep them there, with the credentials and the
            endpoint that the environment gives (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `MLFLOW_S3_ENDPOINT_URL`);
            `trial` for a stand-in for S3 that forgets everything when it stops: for tests.
        with_accounts: whether MLflow asks for a name and a password; see `accounts`.

    Raises:
        InputError: if something is missing, a port is taken, or a server does not start.
    """
    folder = folder.resolve()
    for inside, mode in (("", 0o711), ("run", 0o700), ("secrets", 0o700), ("artifacts", 0o700)):
        (folder / inside).mkdir(mode=mode, parents=True, exist_ok=True)
    with _alone(folder):
        for server in servers(folder):
            server.end_orphans()
        before = [server for server in servers(folder) if server.running]
        try:
            return _start(folder, _ports(folder, port), _kept(folder, artifacts), with_accounts, workers)
        except BaseException:
            for server in servers(folder):
                if server not in before:
                    server.stop()
            raise


def _start(folder: Path, ports: dict[str, int], artifacts: str, with_accounts: bool, workers: int) -> Platform:
    postgres.start(folder, ports["postgresql"])
    environment = _environment(folder)
    s3 = None
    if artifacts == TRIAL:
        s3 = _start_s3(folder, ports["s3"], environment)
        artifacts = "s3://mlflow"
    elif artifacts.startswith("s3://"):
        _check_s3(artifacts)
    platform = Platform(
        folder=folder,
        uri=f"http://127.0.0.1:{ports['mlflow']}",
        artifacts=artifacts,
        s3=s3,
        database=postgres.uri(ports["postgresql"], "mlflow"),
        password_file=postgres.password_file(folder),
    )
    postgres.create_database(folder, ports["postgresql"], "mlflow")
    if with_accounts:
        postgres.create_database(folder, ports["postgresql"], "accounts")
        environment |= accounts.server_settings(folder, platform.uri, postgres.uri(ports["postgresql"], "accounts"))
    _start_mlflow(platform, ports["mlflow"], with_accounts, workers, environment)
    if with_accounts:
        accounts.create(folder)
    return platform


def stop(folder: Path) -> None:
    """Stops whatever runs there, clients first. The data stays."""
    folder = folder.resolve()
    if (folder / "run").is_dir():
        with _alone(folder):
            for server in servers(folder):
                server.stop()


def status(folder: Path) -> dict[str, str]:
    """What each server does: `running at <port>` or `stopped`. The S3 stand-in is left out where it is not used."""
    folder = folder.resolve()
    if not started_before(folder):
        raise InputError(f"{folder}: no platform was started there.")
    ports = _known_ports(folder)
    used = [server for server in servers(folder) if server.name != "s3" or _kept(folder, None) == TRIAL]
    return {server.name: f"running at 127.0.0.1:{ports[server.name]}" if server.running else "stopped" for server in used}


def started_before(folder: Path) -> bool:
    return bool(_known_ports(folder))


def servers(folder: Path) -> list[Server]:
    """All that may run, in the order in which to stop it."""
    return [server(folder, name) for name in _NAMES]


def server(folder: Path, name: str) -> Server:
    return Server(name, folder / "run", postgres.GOODBYE if name == "postgresql" else Server.goodbye)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One start or stop at a time; the lock goes with its process."""
    with (folder / "run" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _known_ports(folder: Path) -> dict[str, int]:
    path = folder / "run" / "ports.json"
    known: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return known


def _ports(folder: Path, wanted: int) -> dict[str, int]:
    """The ports of the last start, so that addresses stay; free ones at first."""
    known = _known_ports(folder)
    ports = {name: known.get(name) or free_port() for name in _NAMES}
    if wanted:
        ports["mlflow"] = wanted
    for server in servers(folder):
        if server.running and ports[server.name] != known.get(server.name):
            raise InputError(f"{server.name} runs already, at port {known.get(server.name)}. Stop it first.")
        if not server.running and answers(ports[server.name]):
            raise InputError(f"port {ports[server.name]}, for {server.name}, is taken. Choose another with --port.")
    with atomic(folder / "run" / "ports.json") as partial:
        partial.write_text(json.dumps(ports), encoding="utf-8")
    return ports


def _kept(folder: Path, artifacts: str | None) -> str:
    """Where artifacts are kept, from the first start on: what was written must be found again."""
    path = folder / "run" / "artifacts.json"
    if path.exists():
        known: str = json.loads(path.read_text(encoding="utf-8"))
        if artifacts not in (None, known):
            raise InputError(f"{folder} keeps its artifacts in {known}, not in {artifacts}. Copy them, then change {path}.")
        return known
    if artifacts not in (None, TRIAL) and not str(artifacts).startswith("s3://"):
        raise InputError(
            f"{artifacts}: artifacts are kept in the platform's folder (say nothing), s3://bucket/prefix or {TRIAL}."
        )
    kept = artifacts or str(folder / "artifacts")
    with atomic(path) as partial:
        partial.write_text(json.dumps(kept), encoding="utf-8")
    return kept


def _check_s3(address: str) -> None:
    """Now, rather than in the first run that has something to keep."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL")
    impatient = Config(connect_timeout=5, read_timeout=10, retries={"total_max_attempts": 2})
    try:
        boto3.client("s3", endpoint_url=endpoint, config=impatient).head_bucket(Bucket=urlsplit(address).netloc)
    except (BotoCoreError, ClientError) as error:
        raise InputError(
            f"{address} cannot be used ({error}). It needs a bucket that exists, credentials (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or what else boto3 reads) and, where it is not Amazon's, MLFLOW_S3_ENDPOINT_URL."
        ) from error


def _environment(folder: Path) -> dict[str, str]:
    """This process's, without what tells clients of another MLflow where it is."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_TRACKING_")}
    environment.pop("MLFLOW_RUN_ID", None)
    environment |= {
        "PGPASSFILE": str(postgres.password_file(folder)),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Evaluation by language models within the server, which nothing here asks for.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    return environment


def _start_s3(folder: Path, port: int, environment: dict[str, str]) -> str:
    """The stand-in, with a bucket; adds to `environment` what MLflow needs for it."""
    import boto3

    endpoint = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    Server("s3", folder / "run").start(command, lambda: answers(port), environment)
    keys = {"AWS_ACCESS_KEY_ID": "trial", "AWS_SECRET_ACCESS_KEY": secrets.token_hex(8), "AWS_DEFAULT_REGION": "us-east-1"}
    environment.update(keys, MLFLOW_S3_ENDPOINT_URL=endpoint)
    client = boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="mlflow")
    return endpoint


def _start_mlflow(platform: Platform, port: int, with_accounts: bool, workers: int, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    command += ["--backend-store-uri", platform.database]
    command += ["--serve-artifacts", "--artifacts-destination", platform.artifacts]
    if with_accounts:
        command += ["--app-name", "basic-auth"]
    Server("mlflow", platform.folder / "run").start(command, lambda: _healthy(platform.uri), environment)


def _healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:  # noqa: S310 - http, to itself
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
