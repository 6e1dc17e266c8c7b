"""A server on loopback that hands requests on to another, or does to them what a test says."""

from __future__ import annotations

import http.client
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import urlsplit

# What may be done to a request: nothing, an answer of 500, no answer until the test ends or says otherwise.
PASS, FAIL, HANG = "pass", "fail", "hang"
_OWN = {"connection", "keep-alive", "transfer-encoding", "content-length"}


@dataclass
class Proxy:
    """Between clients and `target`.

    Attributes:
        before: asked with `METHOD path` before a request is handed on; says what becomes of it.
        after: told the same when the target has answered, before the client hears of it.
        seen: all requests.
    """

    target: str
    before: Callable[[str], str] = lambda _: PASS
    after: Callable[[str], None] = lambda _: None
    seen: list[str] = field(default_factory=list)
    resume: Event = field(default_factory=Event)
    uri: str = ""

    def reset(self) -> None:
        self.before, self.after = (lambda _: PASS), (lambda _: None)
        self.seen.clear()
        self.resume.set()
        self.resume = Event()

    @contextmanager
    def running(self) -> Iterator[Proxy]:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{server.server_port}"
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            self.resume.set()
            server.shutdown()
            server.server_close()


def first(number: int, what: str, of: str = "") -> Callable[[str], str]:
    """Does `what` to the first requests that contain `of`."""
    left, lock = [number], Lock()

    def before(request: str) -> str:
        with lock:
            if of in request and left[0]:
                left[0] -= 1
                return what
        return PASS

    return before


def killed(process: subprocess.Popen[bytes], proxy: Proxy, when: str, at: str, methods: tuple[str, ...] = ("",)) -> int:
    """The exit status of a process that is killed `before` a request that contains `at` is handed on, or `after` its answer."""

    def kill(request: str) -> str:
        if at not in request or not request.startswith(methods):
            return PASS
        process.kill()
        process.wait()
        return HANG if when == "before" else PASS

    if when == "before":
        proxy.before = kill
    else:
        proxy.after = lambda request: (kill(request), None)[1]
    status = process.wait(120)
    proxy.reset()
    return status


def _handler(proxy: Proxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def _hand_on(self) -> None:
            body = self._body()
            request = f"{self.command} {self.path}"
            proxy.seen.append(request)
            fate = proxy.before(request)
            if fate == HANG:
                proxy.resume.wait(300)
                self.close_connection = True
                return
            if fate == FAIL:
                self._answer(500, [], b"")
                return
            try:
                connection = http.client.HTTPConnection(urlsplit(proxy.target).netloc, timeout=300)
                headers = {key: value for key, value in self.headers.items() if key.lower() not in _OWN}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                content = answer.read()
            except OSError:
                # As it looks to a client of a server that is away.
                self.close_connection = True
                return
            proxy.after(request)
            self._answer(answer.status, answer.getheaders(), content)

        def _body(self) -> bytes | None:
            if self.headers.get("Expect"):
                self.send_response_only(100)
                self.end_headers()
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length") or 0)) or None
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body

        def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
            self.send_response_only(status)
            for key, value in headers:
                if key.lower() not in _OWN:
                    self.send_header(key, value)
            length = {key.lower(): value for key, value in headers}.get("content-length", "0")
            self.send_header("Content-Length", length if self.command == "HEAD" else str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = _hand_on  # noqa: N815

        def log_message(self, *_: Any) -> None:
            """Keeps the tests' output clean."""

    return Handler
