"""`submit`, `schedule` and `versions` against an API on loopback, by kfp's own client."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines import api
from pipelines.cluster import Cluster
from pipelines.front_door import main
from pipelines.package import compile_package
from tests.pipelines.kubeflow_server import Kubeflow, serve

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def package() -> str:
    """Compiled once: the server's address, in which the profiles differ, is not in it."""
    return compile_package(Cluster(namespace="team", service_account="runner"))


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> Iterator[Kubeflow]:
    """A server, named by the profile `here.yaml`; the code is that of a clean commit."""
    monkeypatch.setattr("pipelines.package.compile_package", lambda _: package)
    # kfp keeps a context in the home folder.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("POLYPHONY_COMMIT", COMMIT)
    monkeypatch.delenv("KF_PIPELINES_ENDPOINT", raising=False)
    with serve() as running:
        (tmp_path / "here.yaml").write_text(
            f"host: {running.address}\nnamespace: team\nservice_account: runner\n", encoding="utf-8"
        )
        yield running


def call(action: str, *words: str) -> int:
    return main(["pipeline", action, "--cluster", "here.yaml", *words])


def test_submit_follows_the_run_to_its_end(server: Kubeflow, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KFP_TOKEN", "given")
    training = {"display_name": "Train SFT", "state": "RUNNING"}
    done = [{"display_name": "Ingest", "state": "SUCCEEDED"}]
    server.states = [
        {"state": "PENDING"},
        {"state": "RUNNING", "run_details": {"task_details": [*done, training]}},
        {"state": "RUNNING", "run_details": {"task_details": [*done, training]}},
        {"state": "SUCCEEDED", "run_details": {"task_details": [*done, training | {"state": "SUCCEEDED"}]}},
    ]
    words = ["--name", "first", "--input", "train_sft_epochs=3", "--overrides", "weight: {floor: 0.2}", "--poll", "0.001"]
    assert call("submit", *words) == 0
    (version,) = server.versions
    assert version["display_name"].startswith(f"{COMMIT[:12]}-") and version["pipeline_id"] == "pipeline-0"
    assert "components.ingest" in server.packages[0] and "schemaVersion: 2.1.0" in server.packages[0]
    (run,) = server.runs
    assert run["display_name"] == "first" and run["experiment_id"] == "experiment-0"
    assert run["pipeline_version_reference"] == {"pipeline_id": "pipeline-0", "pipeline_version_id": "version-0"}
    assert run["runtime_config"]["parameters"] == {"train_sft_epochs": 3, "overrides": "weight: {floor: 0.2}"}
    assert run["service_account"] == "runner"
    assert server.pipelines[0]["namespace"] == server.experiments[0]["namespace"] == "team"
    assert server.tokens == {"Bearer given"}
    told = capsys.readouterr().out
    assert f"{server.address}/#/runs/details/run-0" in told
    assert [line for line in told.splitlines() if line.endswith(("ING", "ED"))] == [
        *("first: PENDING", "Ingest: SUCCEEDED", "Train SFT: RUNNING", "first: RUNNING"),
        *("Train SFT: SUCCEEDED", "first: SUCCEEDED"),
    ]


def test_the_tasks_of_a_loop_are_told_apart(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ({"display_name": "Train preference", "task_id": name, "state": "RUNNING"} for name in "ab")
    done = {"state": "SUCCEEDED"}
    server.states = [{"state": "RUNNING", "run_details": {"task_details": [first, second | done]}}] * 3
    server.states += [done | {"run_details": {"task_details": [first | done, second | done]}}]
    assert call("submit", "--poll", "0.001") == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Train preference")]
    assert sorted(told) == ["Train preference: RUNNING", *["Train preference: SUCCEEDED"] * 2]


@pytest.mark.parametrize("state", ["FAILED", "CANCELED"])
def test_a_run_that_does_not_succeed(server: Kubeflow, state: str, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {"display_name": "Gate: responses", "state": "FAILED", "error": {"message": "exit code 1"}}
    server.states = [{"state": state, "run_details": {"task_details": [broken]}}]
    assert call("submit", "--poll", "0.001") == 1
    assert "Gate: responses: FAILED exit code 1" in capsys.readouterr().out


def test_the_same_commit_is_uploaded_once(server: Kubeflow) -> None:
    assert call("submit", "--no-wait") == call("submit", "--no-wait") == 0
    assert (len(server.pipelines), len(server.versions), len(server.runs), len(server.experiments)) == (1, 1, 2, 1)


def test_code_that_differs_from_its_commit_is_refused(
    server: Kubeflow, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("POLYPHONY_COMMIT")
    for dirty, told in (("true", "differs from its commit"), ("unknown", "no git checkout")):
        monkeypatch.setattr(api, "git_state", lambda dirty=dirty: {"commit": COMMIT, "dirty": dirty})
        assert call("submit", "--no-wait") == 1
        assert told in capsys.readouterr().err
        assert not server.versions
    assert call("submit", "--no-wait", "--dirty") == 0
    assert server.versions[0]["display_name"].endswith("-dirty")


def test_a_schedule(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("schedule", "--cron", "0 0 2 * * *", "--name", "nightly", "--input", "register_name=night") == 0
    (made,) = server.schedules
    assert made["display_name"] == "nightly" and made["trigger"]["cron_schedule"]["cron"] == "0 0 2 * * *"
    assert (made["max_concurrency"], made["no_catchup"]) == (1, True)
    assert made["runtime_config"]["parameters"] == {"register_name": "night"}
    assert "Schedule schedule-0" in capsys.readouterr().out


def test_versions(server: Kubeflow, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("versions") == 0
    assert capsys.readouterr().out == "" and not server.versions
    assert call("submit", "--no-wait") == 0
    capsys.readouterr()
    assert call("versions") == 0
    assert capsys.readouterr().out.startswith(f"2026-01-02 03:04  {COMMIT[:12]}-")


def test_a_server_that_refuses(server: Kubeflow, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.refusal = "User is not authorized with reason: not of the team"
    assert call("versions") == 1
    assert "not of the team" in capsys.readouterr().err
    (tmp_path / "here.yaml").write_text("{}", encoding="utf-8")
    assert call("versions") == 1
    assert "set `host` in the cluster's profile" in capsys.readouterr().err
