"""Registrations at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import mlflow
import pytest

from components.lineage import tracking_client
from components.register import registry
from components.register.registry import register
from tests.platform.test_platform_registry import test_many_at_once as many_at_once

NAME = "together"


@pytest.fixture
def folder(tmp_path: Path, store: Path) -> Path:
    del store
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "adapter.txt").write_text("weights", encoding="utf-8")
    return tmp_path / "model"


def once(folder: Path, key: str) -> str:
    client = tracking_client()
    return str(register(client, NAME, key, {"model": folder}, {"of": key}, "why", True).version)


def meet(monkeypatch: pytest.MonkeyPatch, parties: int) -> None:
    """Nobody goes on before all have seen that there is no version yet."""
    barrier, upload = Barrier(parties), registry._upload

    def wait(*given: object) -> None:
        barrier.wait(timeout=60)
        upload(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(registry, "_upload", wait)


def all_at_once(work: Callable[[int], str], parties: int) -> list[str]:
    def in_a_run(number: int) -> str:
        # A run is a thread's own.
        with mlflow.start_run(experiment_id="0"):
            return work(number)

    tracking_client()
    with ThreadPoolExecutor(parties) as threads:
        return list(threads.map(in_a_run, range(parties)))


def test_the_same_content_at_once_is_one_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet(monkeypatch, 4)
    assert all_at_once(lambda _: once(folder, "same"), 4) == ["1"] * 4
    (version,) = tracking_client().search_model_versions(f"name = '{NAME}'")
    assert (int(version.version), version.tags["of"]) == (1, "same")
    assert str(tracking_client().get_model_version_by_alias(NAME, "candidate").version) == "1"


def test_different_contents_at_once_are_all_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meet(monkeypatch, 4)
    got = all_at_once(lambda number: once(folder, str(number)), 4)
    versions = {
        str(version.version): version.tags["of"] for version in tracking_client().search_model_versions(f"name = '{NAME}'")
    }
    assert versions == {version: str(number) for number, version in enumerate(got)}
    assert set(versions) == {"1", "2", "3", "4"}


def test_a_twin_that_was_left_behind_is_removed(folder: Path) -> None:
    """As when one of two was killed between making its version and looking for others."""
    client = tracking_client()
    with mlflow.start_run(experiment_id="0") as run:
        once(folder, "same")
        for alias in ("", "champion"):
            twin = client.create_model_version(
                NAME, f"{run.info.artifact_uri}/model", run.info.run_id, tags={"content": "same"}
            )
            if alias:
                client.set_registered_model_alias(NAME, alias, twin.version)
    with mlflow.start_run(experiment_id="0"):
        assert once(folder, "same") == "1"
    kept = {int(version.version) for version in client.search_model_versions(f"name = '{NAME}'")}
    assert kept == {1, 3}, "what has an alias stays: someone uses it"


@pytest.mark.parametrize("status", ["FAILED", "KILLED", "RUNNING", "FINISHED"])
def test_what_a_failed_try_stored_is_removed_by_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    client = tracking_client()
    # A test before may have chosen another experiment for this process.
    mlflow.set_experiment(experiment_id="0")
    # An old one: since a day nobody has heard of it.
    when = int((time.time() - 2 * 24 * 3600) * 1000)
    tried = client.create_run("0", start_time=when).info
    with monkeypatch.context() as patch, mlflow.start_run(tried.run_id):
        patch.setattr(registry, "_create_version", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            once(folder, "same")
    client.update_run(tried.run_id, status)
    assert client.list_artifacts(tried.run_id, "model")
    with mlflow.start_run(experiment_id="0"):
        assert once(folder, "other") == "1"
        assert client.list_artifacts(tried.run_id, "model"), "it is of another content"
        assert once(folder, "same") == "2"
    assert bool(client.list_artifacts(tried.run_id, "model")) == (status == "FINISHED")
    for version in client.search_model_versions(f"name = '{NAME}'"):
        assert client.list_artifacts(version.run_id, "model")


@pytest.mark.slow
def test_many_at_once_on_a_file(folder: Path) -> None:
    """200 versions, 20 readers, 10 registrations, as through the server."""
    many_at_once(NAME, folder)
