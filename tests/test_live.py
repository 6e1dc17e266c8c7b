"""Metrics on their way to MLflow: kept while it is out of reach, delivered later; and what a step says that cannot record."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from components import lineage
from components.contracts import InputError
from components.live import Live
from components.origin import trace
from components.train.params import Params, Sft
from tests.train.test_train_stops import Net, trainer

# Longer than anything here takes: a bound, not a pause.
_BOUND = 120


class Message(logging.Handler):
    """An event for a message of the log."""

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words, self.seen = words, threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if self.words in record.getMessage():
            self.seen.set()


@contextmanager
def message(words: str) -> Iterator[threading.Event]:
    handler, logger = Message(words), logging.getLogger("polyphony")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield handler.seen
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def broken(store: Path) -> Iterator[None]:
    """The store takes no metrics."""
    with closing(sqlite3.connect(store)) as connection:
        connection.execute("ALTER TABLE metrics RENAME TO away")
        try:
            yield
        finally:
            connection.execute("ALTER TABLE away RENAME TO metrics")


def history(run_id: str, name: str) -> list[tuple[int, int, float]]:
    found = lineage.tracking_client().get_metric_history(run_id, name)
    return sorted((metric.step, metric.timestamp, metric.value) for metric in found)


def test_kept_while_the_store_is_out_of_reach(store: Path) -> None:
    client = lineage.tracking_client()
    run_id = client.create_run("0").info.run_id
    live = Live(client, run_id)
    with message("takes no metrics now") as refused, broken(store):
        for step in range(5):
            live.add({"loss": step / 2, "margin": -step}, step, 1000 + step)
        assert refused.wait(_BOUND)
        assert live.error is not None
    assert live.close(_BOUND) == 0
    assert history(run_id, "loss") == [(step, 1000 * (1000 + step), step / 2) for step in range(5)]
    assert history(run_id, "margin") == [(step, 1000 * (1000 + step), -step) for step in range(5)]


def test_what_could_not_be_delivered_is_counted(store: Path) -> None:
    client = lineage.tracking_client()
    live = Live(client, client.create_run("0").info.run_id)
    with broken(store):
        live.add({"a": 1, "b": 2}, 1, 1.0)
        assert live.close() == 2


def test_more_than_one_call_takes(store: Path) -> None:  # noqa: ARG001
    client = lineage.tracking_client()
    run_id = client.create_run("0").info.run_id
    live = Live(client, run_id)
    for step in range(300):
        live.add(dict.fromkeys("abcd", step), step, step)
    assert live.close() == 0
    assert [len(history(run_id, name)) for name in "abcd"] == [300] * 4


def test_nothing_was_added() -> None:
    assert Live(None, "").close() == 0  # type: ignore[arg-type]


def test_a_step_that_cannot_record_says_so_and_keeps_its_work(store: Path, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("m")
    removed: list[int] = []
    told = "MLflow is out of reach; the outputs are written"
    with pytest.raises(InputError, match=told) as raised, lineage.step_run("train", {}, {}) as run, broken(store):
        lineage.when_recorded(lambda: removed.append(1))
        run.finish({"model": tmp_path / "model"}, {"loss": 1.0})
    assert "run the same command again" in str(raised.value)
    assert not removed
    # The next attempt finds the store, and only then is the work removed.
    with lineage.step_run("train", {}, {}) as run:
        lineage.when_recorded(lambda: removed.append(2))
        lineage.live({"loss": 3.0}, 7, 1.0)
        run.finish({"model": tmp_path / "model"}, {})
        assert not removed
    assert removed == [2]
    origin = trace("model", lineage.digest(tmp_path / "model"))
    assert history(origin.run_id, "loss") == [(7, 1000, 3.0)]


def test_without_a_run_work_is_removed_at_once() -> None:
    removed: list[int] = []
    lineage.when_recorded(lambda: removed.append(1))
    lineage.live({"loss": 1.0}, 1, 1.0)
    assert removed == [1]


def test_a_training_reports_every_step_also_those_before_a_kill(store: Path, tmp_path: Path) -> None:  # noqa: ARG001
    from components.train.fit import fit

    params = Params(sft=Sft(batch_size=4), checkpoint_minutes=1e-9)
    with pytest.raises(InputError, match="not finite"), lineage.step_run("train-sft", {}, {}):
        fit(trainer(tmp_path / "work", Net(bad=8)), params, "sft", "")
    with lineage.step_run("train-sft", {"train": {"seed": 0}}, {}) as run:
        fit(trainer(tmp_path / "work", Net()), params, "sft", "")
        run.finish({}, {})
    runs = {found.info.status: found for found in lineage.tracking_client().search_runs(["1"])}
    steps = {status: [step for step, _, _ in history(found.info.run_id, "train/loss")] for status, found in runs.items()}
    assert steps == {"FAILED": [1, 2], "FINISHED": [1, 2, 3]}
    # Parameters are the step's own, and not what Transformers was told.
    assert runs["FINISHED"].data.params == {"train.seed": "0"}


@contextmanager
def server(store: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    tool = str(Path(sys.executable).with_name("mlflow"))
    command = [tool, "server", "--backend-store-uri", f"sqlite:///{store}", "--port", str(port), "--workers", "1"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def until(answers: Callable[[], object]) -> None:
    """Waits for a server to answer: bounded, and by asking it."""
    end = time.monotonic() + _BOUND
    while True:
        try:
            answers()
        except Exception:
            assert time.monotonic() < end
            time.sleep(0.2)
        else:
            return


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training goes on without it; what was measured meanwhile is delivered to the server that comes back."""
    from components.train.fit import fit

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    params = Params(sft=Sft(batch_size=4), checkpoint_minutes=60)
    client = lineage.tracking_client()
    with server(store, port):
        until(client.search_experiments)
        begun = lineage.step_run("train-sft", {}, {})
        run = begun.__enter__()
    with message("takes no metrics now") as refused:
        fit(trainer(tmp_path / "work", Net()), params, "sft", "")
        assert refused.wait(_BOUND)
    with server(store, port):
        until(client.search_experiments)
        run.finish({}, {"examples": 12})
        begun.__exit__(None, None, None)
        (found,) = client.search_runs(["1"])
        assert found.info.status == "FINISHED"
        assert [step for step, _, _ in history(found.info.run_id, "train/loss")] == [1, 2, 3]
        assert found.data.metrics["examples"] == 12
    with pytest.raises(InputError, match="MLflow is out of reach; nothing was done yet"), lineage.step_run("x", {}, {}):
        pass
