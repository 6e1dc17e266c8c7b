"""Promotion on PostgreSQL and S3: as people do it, while servers restart and S3 fails, and killed at every request."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.champion.ledger import Ledger
from components.contracts import InputError
from components.lineage import tracking_client
from components.register import patience
from components.trace.ancestry import find
from components.trace.rest import RestStore
from components.trace.store import MlflowStore, open_store
from pipelines import platform
from tests.champion.conftest import better, polyphony, register, retrain
from tests.champion.test_champion_together import race
from tests.platform.proxy import FAIL, HANG, Proxy, first, killed
from tests.platform.test_platform_registry import meanwhile, restart
from tests.register.conftest import COMMIT, Pipeline, adapter

__all__ = ["adapter"]
pytestmark = pytest.mark.slow
NAME, FAULTY = "promoted", "promoted-under-faults"
HISTORY, MOVE, SETTLED = "POST /api/2.0/mlflow/model-versions/create", "/registered-models/alias", "/model-versions/set-tag"
READ, FETCH = "/registered-models/get", "/mlflow-artifacts/artifacts"


def recorded(trial: platform.Platform, adapter: Path, patch: pytest.MonkeyPatch) -> Pipeline:
    """A pipeline's artifacts in the working directory, and its runs on the server, which is MLflow's from here on."""
    patch.setenv("MLFLOW_TRACKING_URI", trial.uri)
    patch.setenv("POLYPHONY_COMMIT", COMMIT)
    pipeline = Pipeline(adapter)
    pipeline.write()
    pipeline.record()
    return pipeline


def test_one_wins_and_the_way_back(
    trial: platform.Platform, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline = recorded(trial, adapter, monkeypatch)
    versions = [register(name=NAME)]
    for number in (1, 2):
        retrain(pipeline, f"on the platform {number}", better(0.1 * number))
        versions.append(register(name=NAME))
    race(versions[:2], NAME)
    first = str(tracking_client().get_registered_model(NAME).aliases["champion"])
    promote = ["promote", "--model", NAME, "--version", versions[2], "--reason", "more diverse", "--yes"]
    assert polyphony(*promote) == 0
    assert polyphony("compare", f"{NAME}@champion", f"{NAME}/{first}") == 0
    assert polyphony("rollback", "--model", NAME, "--reason", "complaints") == 0
    assert str(tracking_client().get_registered_model(NAME).aliases["champion"]) == first
    capsys.readouterr()
    assert polyphony("history", "--model", NAME) == 0
    shown = capsys.readouterr().out
    assert shown.count("did not count") == 1 and "complaints" in shown
    assert polyphony("export", f"{NAME}/{versions[2]}", "--output", "out") == 0
    assert (Path("out") / "adapter_model.safetensors").read_bytes() == Path("ddpo/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def two(trial: platform.Platform, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two versions of one model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("two"))
        pipeline = recorded(trial, adapter, patch)
        versions = [register(name=FAULTY)]
        retrain(pipeline, "under faults", better(0.1))
        return [*versions, register(name=FAULTY)]


@pytest.fixture
def alias(two: list[str], mlflow_proxy: Proxy, s3_proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An alias of its own for each test, with a history of its own, that points to the first version."""
    alias = f"a{uuid.uuid4().hex[:8]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_proxy.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    monkeypatch.setattr(patience, "PAUSES", (0.2, 2.0))
    monkeypatch.setattr(patience, "WHOLE", 60.0)
    assert polyphony(*promotion(two[0], alias)) == 0
    yield alias
    mlflow_proxy.reset()
    s3_proxy.reset()


def test_the_server_says_the_same_with_and_without_mlflow(
    two: list[str], trial: platform.Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trial.uri)
    mine, theirs = open_store(), MlflowStore()
    assert isinstance(mine, RestStore)
    assert sorted(mine.versions(), key=str) == sorted(theirs.versions(), key=str) != []
    assert mine.version(FAULTY, alias="candidate") == theirs.version(FAULTY, alias="candidate")
    one, other = find(f"{FAULTY}/{two[1]}", mine), find(f"{FAULTY}/{two[1]}", theirs)
    assert one == other and one.registration is not None and not one.problems()
    assert [o.record for o in one.walk()] == [o.record for o in other.walk()]
    for store in (mine, theirs):
        assert store.record("0" * 32) is None
        for wanted in ({"version": "9"}, {"alias": "nobody"}, {"version": "first"}):
            with pytest.raises(InputError, match="no such version"):
                store.version(FAULTY, **wanted)


def promotion(version: str, alias: str) -> list[str]:
    return ["promote", "--model", FAULTY, "--version", version, "--to", alias, "--reason", "r", "--yes"]


def rollback(alias: str) -> list[str]:
    return ["rollback", "--model", FAULTY, "--of", alias, "--reason", "r"]


def moved(alias: str, *versions: str) -> None:
    """The history has these moves, none twice, all are done, and the alias points where the last one says."""
    ledger = Ledger(tracking_client(), FAULTY, alias)
    moves = ledger.moves()
    assert [move.version for move in moves] == list(versions) and all(move.settled for move in moves)
    assert ledger.pointed_at() == versions[-1]


@pytest.mark.parametrize("at", [READ, FETCH, HISTORY, MOVE, SETTLED])
def test_mlflow_fails_for_a_while(two: list[str], alias: str, mlflow_proxy: Proxy, at: str) -> None:
    mlflow_proxy.before = first(3, FAIL, at)
    assert polyphony(*promotion(two[1], alias)) == 0
    moved(alias, *two)
    if at != FETCH:
        mlflow_proxy.before = first(3, FAIL, at)
        assert polyphony(*rollback(alias)) == 0
        moved(alias, *two, two[0])


@pytest.mark.parametrize("at", [HISTORY, MOVE, SETTLED])
def test_the_answer_is_lost(two: list[str], alias: str, mlflow_proxy: Proxy, at: str) -> None:
    lost = first(2, FAIL, at)

    def after(request: str) -> None:
        if lost(request) == FAIL:
            raise ConnectionResetError

    mlflow_proxy.after = after
    assert polyphony(*promotion(two[1], alias)) == 0
    moved(alias, *two)


def test_s3_fails_for_a_while(two: list[str], alias: str, s3_proxy: Proxy) -> None:
    s3_proxy.before = first(6, FAIL, "GET")
    assert polyphony(*promotion(two[1], alias)) == 0
    moved(alias, *two)


@pytest.mark.parametrize(("at", "fate"), [(FETCH, FAIL), (HISTORY, HANG), (MOVE, FAIL), (SETTLED, HANG)])
def test_it_fails_for_good(
    two: list[str],
    alias: str,
    mlflow_proxy: Proxy,
    at: str,
    fate: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One clear line; the same command finishes it when MLflow is back."""
    monkeypatch.setattr(patience, "WHOLE", 1.0)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    mlflow_proxy.before = first(10_000, fate, at)
    assert polyphony(*promotion(two[1], alias)) == 1
    assert "MLflow or its storage failed while" in capsys.readouterr().err.splitlines()[-1]
    mlflow_proxy.reset()
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    assert polyphony(*promotion(two[1], alias)) == 0
    moved(alias, *two)


@pytest.mark.parametrize(("server", "at"), [("postgresql", HISTORY), ("postgresql", MOVE), ("mlflow", FETCH), ("mlflow", MOVE)])
def test_a_server_restarts(
    two: list[str], alias: str, mlflow_proxy: Proxy, trial: platform.Platform, server: str, at: str
) -> None:
    thread = meanwhile(mlflow_proxy, at, lambda: restart(trial, server))
    assert polyphony(*promotion(two[1], alias)) == 0
    thread.join()
    moved(alias, *two)


@pytest.mark.parametrize("at", [HISTORY, MOVE, SETTLED])
@pytest.mark.parametrize("when", ["before", "after"])
def test_killed(two: list[str], alias: str, mlflow_proxy: Proxy, at: str, when: str) -> None:
    """SIGKILL before the server gets a request of a rollback, and after it has answered."""
    assert polyphony(*promotion(two[1], alias)) == 0
    command = [sys.executable, "-m", "pipelines.front_door", *rollback(alias)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], env=dict(os.environ))
    assert killed(process, mlflow_proxy, when, at, ("POST", "PATCH")) == -signal.SIGKILL
    done = at != HISTORY or when == "after"
    if (at, when) == (SETTLED, "after"):
        moved(alias, *two, two[0])
        return
    assert Ledger(tracking_client(), FAULTY, alias).pointed_at() == (
        two[0] if at == SETTLED or (at, when) == (MOVE, "after") else two[1]
    )
    assert len(Ledger(tracking_client(), FAULTY, alias).moves()) == 2 + done
    assert polyphony(*rollback(alias)) == 0
    moved(alias, *two, two[0])
