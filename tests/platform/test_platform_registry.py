"""Registration on PostgreSQL and S3 while servers restart, S3 fails and processes are killed: one whole version, or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow as ml
import pytest

from components.contracts import InputError
from components.lineage import digest, tracking_client
from components.register import patience
from components.register.registry import register
from pipelines import platform
from pipelines.platform import services
from tests.platform.fixtures import client as s3_client
from tests.platform.proxy import FAIL, HANG, Proxy, first, killed

pytestmark = pytest.mark.slow
UPLOAD, VERSION, ALIAS = (
    "PUT /api/2.0/mlflow-artifacts",
    "POST /api/2.0/mlflow/model-versions/create",
    "/registered-models/alias",
)


@pytest.fixture
def name(mlflow_proxy: Proxy, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A name of its own for the test's model; clients go through the proxies, and lose patience soon."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr(patience, "PAUSES", (0.2, 2.0))
    monkeypatch.setattr(patience, "WHOLE", 60.0)
    yield f"model-{uuid.uuid4().hex[:8]}"
    mlflow_proxy.reset()
    s3_proxy.reset()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
        (tmp_path / "model" / file).write_text(file * 100, encoding="utf-8")
    return tmp_path / "model"


def do(name: str, folder: Path, key: str = "key") -> str:
    """Registers as the step does, in a run of its own."""
    client = tracking_client()
    run = client.create_run("0")
    with ml.start_run(run.info.run_id):
        return str(register(client, name, key, {"model": folder}, {"of": key}, "why", True).version)


def whole(name: str, folder: Path, version: str = "1") -> None:
    """There is this version alone, it holds all of the folder, and it is the candidate."""
    client = tracking_client()
    (found,) = client.search_model_versions(f"name = '{name}'")
    assert found.version == version
    assert client.get_model_version_by_alias(name, "candidate").version == version
    assert digest(Path(ml.artifacts.download_artifacts(f"models:/{name}/{version}"))) == digest(folder)


def nothing(name: str) -> None:
    assert not tracking_client().search_model_versions(f"name = '{name}'")


@pytest.mark.parametrize("number", [1, 5])
def test_s3_fails_for_a_while(name: str, folder: Path, s3_proxy: Proxy, number: int) -> None:
    s3_proxy.before = first(number, FAIL, "PUT")
    assert do(name, folder) == "1"
    whole(name, folder)


@pytest.mark.parametrize("fate", [FAIL, HANG])
def test_s3_fails_for_good(name: str, folder: Path, s3_proxy: Proxy, fate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "WHOLE", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    s3_proxy.before = first(10_000, fate, "PUT")
    with pytest.raises(InputError, match=r"MLflow or its storage failed while storing the model, .* run it again") as told:
        do(name, folder)
    assert "\n" not in str(told.value)
    nothing(name)
    s3_proxy.reset()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert do(name, folder) == "1"
    whole(name, folder)


def meanwhile(proxy: Proxy, at: str, action: Callable[[], None]) -> threading.Thread:
    """Does `action` when the first request that contains `at` arrives, and lets the request go on at once."""
    thread = threading.Thread(target=action)
    lock = threading.Lock()

    def before(request: str) -> str:
        with lock:
            if at in request and thread.ident is None:
                thread.start()
                # So that the server is away when the request gets there.
                time.sleep(0.5)
        return "pass"

    proxy.before = before
    return thread


def restart(trial: platform.Platform, name: str) -> None:
    """Kills a server of the platform, and starts it again."""
    found = services.server(trial.folder, name)
    os.kill(found.pid, signal.SIGKILL)
    while found.running:
        time.sleep(0.01)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("MLFLOW_TRACKING_URI", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
            patch.delenv(variable)
        platform.start(trial.folder, artifacts="s3://mlflow")


@pytest.mark.parametrize("server", ["postgresql", "mlflow"])
@pytest.mark.parametrize("at", [UPLOAD, VERSION])
def test_a_server_restarts(
    name: str, folder: Path, mlflow_proxy: Proxy, trial: platform.Platform, server: str, at: str
) -> None:
    thread = meanwhile(mlflow_proxy, at, lambda: restart(trial, server))
    assert do(name, folder) == "1"
    thread.join()
    whole(name, folder)


def test_what_a_failed_try_left_in_s3_is_removed_by_the_next(
    name: str, folder: Path, mlflow_proxy: Proxy, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int:
        pages = s3_client(s3_proxy).get_paginator("list_objects_v2").paginate(Bucket="mlflow")
        return sum(item["Key"].endswith("/model/adapter_config.json") for page in pages for item in page.get("Contents", ()))

    before = kept()
    with monkeypatch.context() as patch:
        patch.setattr(patience, "WHOLE", 1.0)
        mlflow_proxy.before = first(10_000, FAIL, VERSION)
        with pytest.raises(InputError, match="failed while creating the version"):
            do(name, folder, name)
    assert kept() == before + 1
    nothing(name)
    mlflow_proxy.reset()
    assert do(name, folder, name) == "1"
    whole(name, folder)
    assert kept() == before + 1


PROGRAM = """
import sys
from pathlib import Path
from tests.platform.test_platform_registry import do
do(sys.argv[1], Path(sys.argv[2]))
"""


@pytest.mark.parametrize("at", [UPLOAD, VERSION, ALIAS])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed(name: str, folder: Path, mlflow_proxy: Proxy, at: str, when: str) -> None:
    """SIGKILL before the server gets a request, and after it has answered."""
    process = subprocess.Popen([sys.executable, "-c", PROGRAM, name, str(folder)], cwd=Path(__file__).parents[2])
    assert killed(process, mlflow_proxy, when, at) == -signal.SIGKILL
    if (at, when) in ((UPLOAD, "before"), (UPLOAD, "after"), (VERSION, "before")):
        nothing(name)
    assert do(name, folder) == "1"
    whole(name, folder)
    assert do(name, folder) == "1"


def test_many_at_once(name: str, folder: Path) -> None:
    """200 versions, 20 readers, 5 registrations of different content and 5 of the same."""
    client = tracking_client()
    do(name, folder, "0")
    (version,) = client.search_model_versions(f"name = '{name}'")
    for number in range(1, 200):
        client.create_model_version(name, version.source, version.run_id, tags={"content": str(number)})
    done = threading.Event()

    def read(_: int) -> int:
        count = 0
        while not (done.is_set() and count):
            assert client.get_model_version_by_alias(name, "candidate").tags["content"]
            assert len(client.search_model_versions(f"name = '{name}'", max_results=1000)) >= 200
            count += 1
        return count

    def write(number: int) -> str:
        return do(name, folder, "same" if number % 2 else f"different {number}")

    with ThreadPoolExecutor(20) as readers, ThreadPoolExecutor(10) as writers:
        reading = [readers.submit(read, number) for number in range(20)]
        try:
            written = list(writers.map(write, range(10)))
        finally:
            done.set()
        reads = sum(reader.result() for reader in reading)
    assert reads >= 20
    found: list[Any] = client.search_model_versions(f"name = '{name}'", max_results=1000)
    contents = Counter(version.tags["content"] for version in found)
    assert contents.most_common(1)[0][1] == 1, "no content is there twice"
    assert set(contents) == {str(number) for number in range(200)} | {"same"} | {f"different {n}" for n in range(0, 10, 2)}
    assert len({written[number] for number in range(1, 10, 2)}) == 1
    by_version = {str(version.version): version.tags["content"] for version in found}
    assert all(by_version[written[number]] == f"different {number}" for number in range(0, 10, 2))
