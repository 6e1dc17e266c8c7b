"""An OpenAI-compatible endpoint on loopback that answers from a script, to show what a real model does not at will."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

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

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                answer = script(request)
            if answer is None:
                self.connection.close()
                return
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Type", "application/json")
            # Milliseconds that the client is to wait before it tries again.
            self.send_header("retry-after-ms", "1")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server = Server(f"http://127.0.0.1:{http.server_port}/v1")
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
