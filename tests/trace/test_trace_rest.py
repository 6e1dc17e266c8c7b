"""MLflow's server asked without MLflow: who asks, what is tried again, and when it is left to MLflow."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from components.contracts import InputError
from components.trace import rest
from components.trace.rest import RestStore
from components.trace.store import MlflowStore, open_store
from tests.json_server import Handler, serving

EXPERIMENTS = json.dumps({"experiments": [{"experiment_id": "1"}]}).encode()
RUN = {"info": {"run_id": "r", "start_time": 5}, "data": {"tags": [{"key": "step", "value": "weight"}]}}


class Server(ThreadingHTTPServer):
    """Answers in turn what it is told, with what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: list[tuple[int, bytes]] = []
        self.asked: list[tuple[str, str]] = []
        self.uri = f"http://127.0.0.1:{self.server_port}"


class _Handler(Handler):
    server: Server

    def do_POST(self) -> None:  # noqa: N802
        self.body()
        self.do_GET()

    def do_GET(self) -> None:  # noqa: N802
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        status, content = self.server.answers.pop(0)
        self.send_response(status)
        if status == 307:
            self.send_header("Location", content.decode())
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Server]:
    monkeypatch.setattr(rest, "_PAUSES", (0.001, 0.001))
    monkeypatch.setenv("HOME", str(tmp_path))
    with serving(found := Server()):
        found.answers.append((200, EXPERIMENTS))
        yield found


def basic(pair: str) -> str:
    return f"Basic {base64.b64encode(pair.encode()).decode()}"


@pytest.mark.parametrize(
    ("variables", "kept", "sent"),
    [
        ({}, "", ""),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "pä:ss"}, "", basic("me:pä:ss")),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "", "Bearer t"),
        ({}, "mlflow_tracking_username=me\nmlflow_tracking_password=50%", basic("me:50%")),
        (
            {"MLFLOW_TRACKING_PASSWORD": "other"},
            "mlflow_tracking_username=me\nmlflow_tracking_password=p",
            basic("me:other"),
        ),
    ],
)
def test_it_says_who_asks_as_mlflow_does(
    server: Server, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], kept: str, sent: str, tmp_path: Path
) -> None:
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if kept:
        (tmp_path / ".mlflow").mkdir()
        (tmp_path / ".mlflow" / "credentials").write_text(f"[mlflow]\n{kept}\n", encoding="utf-8")
    RestStore(server.uri)
    assert server.asked == [("/api/2.0/mlflow/experiments/search", sent)]


def test_who_it_is_sent_on_to_learns_no_password(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    store = RestStore(server.uri)
    found = json.dumps({"model_version": {"name": "m", "version": "1", "aliases": ["champion"]}}).encode()
    server.answers += [(307, b"/elsewhere"), (200, found)]
    assert store.version("m", "1").aliases == ("champion",)
    assert server.asked[-1] == ("/elsewhere", "")


def test_what_may_pass_is_asked_again(server: Server) -> None:
    store = RestStore(server.uri)
    server.answers += [(503, b""), (429, b""), (200, json.dumps({"runs": [RUN]}).encode())]
    record = store.makers([("0", None)])["0", None]
    assert record is not None and (record.run_id, record.started, record.tags) == ("r", 5, {"step": "weight"})
    server.answers += [(503, b"")] * 3
    with pytest.raises(InputError, match=r"does not answer what it is asked .*503.* Try again"):
        store.makers([("1", None)])
    server.answers += [(403, b"{}")]
    with pytest.raises(InputError, match=r"does not let this account see it .*403"):
        store.version("m", "1")
    server.answers += [(200, b"<html>log in</html>")] * 3
    with pytest.raises(InputError, match="does not answer what it is asked"):
        store.versions()
    assert not server.answers


def run(number: int, **tags: str) -> dict[str, Any]:
    return {
        "info": {"run_id": f"r{number}", "start_time": number},
        "data": {"tags": [{"key": key.replace("_", "."), "value": value} for key, value in tags.items()]},
    }


@pytest.mark.parametrize("most", [2, 10])
def test_who_asks_for_all_versions_is_told_what_made_them(server: Server, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Without more questions, but where there may be older runs than those that were read."""
    monkeypatch.setattr(rest, "_AHEAD", most)
    store = RestStore(server.uri)
    pages: list[dict[str, Any]] = [
        {},
        {"model_versions": [{"name": "m", "version": "1"}]},
        {"runs": [run(9, produced_a="x", produced_b="y")], "next_page_token": "t"},
        {"runs": [run(7, produced_a="x"), run(3, produced_a="x")]},
    ]
    server.answers += [(200, json.dumps(page).encode()) for page in pages]
    assert [str(one) for one in store.versions()] == ["m version 1"]
    asked = len(server.asked)
    wanted: dict[tuple[str, int | None], str] = {("a", None): "r9", ("a", 8): "r7", ("b", 9): "r9", ("a", 5): "r3"}
    if most == 2:
        # Of "b" before 9, and of "a" before 5.
        older = [{}, {"runs": [run(3, produced_a="x")]}]
        server.answers += [(200, json.dumps(page).encode()) for page in older]
    assert {one: record and record.run_id for one, record in store.makers(wanted).items()} == wanted
    assert len(server.asked) == asked + (2 if most == 2 else 0)
    record = store.record("r9")
    assert record is not None and record.tags == {"produced.a": "x", "produced.b": "y"}
    assert not server.answers


@pytest.mark.parametrize("answer", [(401, b""), (500, b""), (200, b"<html>log in</html>"), (200, b'{"experiments": [{}]}')])
def test_who_does_not_get_in_is_left_to_mlflow(
    server: Server, monkeypatch: pytest.MonkeyPatch, answer: tuple[int, bytes]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server.answers = [answer, (200, EXPERIMENTS)]
    assert isinstance(open_store(), MlflowStore)
    server.answers = [(401, b""), (401, b"")]
    with pytest.raises(InputError, match="MLflow does not open its store"):
        open_store()


@pytest.mark.parametrize("name", ["MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_AUTH", "MLFLOW_WORKSPACE"])
def test_what_only_mlflow_knows_is_left_to_it(store: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, f"sqlite:///{store}")
    assert isinstance(open_store(), MlflowStore)
