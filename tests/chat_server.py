"""An OpenAI-compatible endpoint on loopback that answers from a script, to show what a real model does not at will."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any

from tests import json_server

# What to answer to a request: a status and a document; None cuts the connection.
Script = Callable[[dict[str, Any]], tuple[int, dict[str, Any]] | None]


def said(text: str | None, finish: str = "stop", tokens: tuple[int, int] = (10, 5), **message: Any) -> dict[str, Any]:
    """A chat completion that says `text`."""
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}],
        "usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)},
    }


@dataclass
class Server:
    """A running endpoint: its address, and what it was asked."""

    base_url: str
    requests: list[dict[str, Any]] = field(default_factory=list)


@contextmanager
def serve(script: Script, port: int = 0) -> Iterator[Server]:
    """Serves `/v1/chat/completions`; at any free port, if none is given."""
    lock = threading.Lock()

    class Handler(json_server.Handler):
        def do_POST(self) -> None:  # noqa: N802
            request = json.loads(self.body())
            with lock:
                server.requests.append(request)
                answer = script(request)
            if answer is None:
                self.connection.close()
                return
            status, told = answer
            # Milliseconds that the client is to wait before it tries again.
            self.answer(told, status, **{"retry-after-ms": "1"})

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    with json_server.serving(http):
        yield server
