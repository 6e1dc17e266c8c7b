"""A Kubeflow Pipelines API on loopback: what the commands of this project call, with the paths and bodies of v2beta1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.json_server import Handler, serving

BASE = "/apis/v2beta1"


class Kubeflow(ThreadingHTTPServer):
    """What was sent, and the states through which a run will go."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pipelines: list[dict[str, Any]] = []
        self.versions: list[dict[str, Any]] = []
        self.packages: list[str] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: list[dict[str, Any]] = []
        self.states: list[dict[str, Any]] = [{"state": "SUCCEEDED"}]
        self.refusal = ""
        self.tokens: set[str | None] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(Handler):
    server: Kubeflow

    def do_GET(self) -> None:  # noqa: N802
        path = urlsplit(self.path).path.removeprefix(BASE)
        server = self.server
        if path == "/healthz":
            self.answer({"multi_user": True})
        elif server.refusal:
            self.answer({"message": server.refusal}, 403)
        elif path == "/pipelines":
            asked = json.loads(parse_qs(urlsplit(self.path).query)["filter"][0])["predicates"][0]
            self.answer({"pipelines": [p for p in server.pipelines if p["display_name"] == asked["stringValue"]]})
        elif path.startswith("/pipelines/") and path.endswith("/versions"):
            self.answer({"pipeline_versions": server.versions[::-1]})
        elif path == "/experiments":
            self.answer({"experiments": server.experiments})
        elif path.startswith("/runs/"):
            state = server.states.pop(0) if len(server.states) > 1 else server.states[0]
            self.answer({**server.runs[-1], **state})
        else:
            self.answer({"message": f"no such path: {path}"}, 404)

    def do_POST(self) -> None:  # noqa: N802
        parts = urlsplit(self.path)
        path, asked = parts.path.removeprefix(BASE), parse_qs(parts.query)
        body = self.body()
        server = self.server
        server.tokens.add(self.headers.get("Authorization"))
        if path == "/pipelines/upload_version":
            made = {"pipeline_id": asked["pipelineid"][0], "pipeline_version_id": f"version-{len(server.versions)}"}
            made |= {"display_name": asked["name"][0], "created_at": "2026-01-02T03:04:05Z"}
            server.versions.append(made)
            server.packages.append(body.decode())
            self.answer(made)
        elif path == "/pipelines":
            server.pipelines.append(json.loads(body) | {"pipeline_id": "pipeline-0"})
            self.answer(server.pipelines[-1])
        elif path == "/experiments":
            server.experiments.append(json.loads(body) | {"experiment_id": "experiment-0"})
            self.answer(server.experiments[-1])
        elif path == "/runs":
            server.runs.append(json.loads(body) | {"run_id": "run-0"})
            self.answer(server.runs[-1])
        elif path == "/recurringruns":
            server.schedules.append(json.loads(body) | {"recurring_run_id": "schedule-0"})
            self.answer(server.schedules[-1])
        else:
            self.answer({"message": f"no such path: {path}"}, 404)


@contextmanager
def serve() -> Iterator[Kubeflow]:
    server = Kubeflow()
    with serving(server):
        yield server
