"""Servers that outlive the command that started them, and are found again by it: a record of each lies in a folder."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic

# Seconds that a server gets to answer after its start, and to end after it was told to.
_STARTING, _ENDING = 120, 30


@dataclass(frozen=True)
class Server:
    """A server whose record and log lie in `folder`, as `<name>.json` and `<name>.log`.

    Attributes:
        goodbye: the signal upon which it ends in order.
    """

    name: str
    folder: Path
    goodbye: signal.Signals = signal.SIGTERM

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """Of the process that was recorded, 0 where none was."""
        return self._recorded()[0]

    @property
    def running(self) -> bool:
        """Whether the process that was recorded still runs, and not another that got its number since."""
        return self._process() is not None

    def start(
        self,
        command: Sequence[str],
        ready: Callable[[], bool],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Starts it in a session of its own, unless it runs, and waits until it is `ready`.

        Args:
            environment: all of it; this process's where not given.
            user: whose process it becomes, where this one is root's.

        Raises:
            InputError: if it ended or was not ready in time, with the end of its log.
        """
        if not self.running:
            self.end_orphans()
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                    **(as_user(user) if user else {}),
                )
            self._record(process.pid)
        deadline = time.monotonic() + _STARTING
        while not ready():
            if not self.running:
                raise InputError(
                    f"{self.name} ended as soon as it started. Its log, {self.log}, ends so:\n{self._last_lines()}"
                )
            if time.monotonic() > deadline:
                raise InputError(f"{self.name} does not answer after {_STARTING} s. Its log: {self.log}.")
            time.sleep(0.1)

    def stop(self) -> None:
        """Ends it, and what it may have left; does nothing where it does not run."""
        import psutil

        if process := self._process():
            process.send_signal(self.goodbye)
            try:
                process.wait(_ENDING)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait()
        self.end_orphans()
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.folder / f"{self.name}.json"

    def _record(self, pid: int) -> None:
        import psutil

        with atomic(self._path) as partial:
            partial.write_text(json.dumps({"pid": pid, "started": psutil.Process(pid).create_time()}), encoding="utf-8")

    def _recorded(self) -> tuple[int, float]:
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return 0, 0.0
        return record["pid"], record["started"]

    def _process(self) -> Any:
        import psutil

        pid, started = self._recorded()
        try:
            process = psutil.Process(pid)
            same = abs(process.create_time() - started) < 1 and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if pid and same else None

    def end_orphans(self) -> None:
        """Ends what is left of its session after it was killed: workers that would hold the port and the folder."""
        import psutil

        pid, started = self._recorded()
        if not pid or self.running:
            return
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) == pid and process.create_time() >= started - 1:
                    process.kill()
                    process.wait(_ENDING)
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue

    def _last_lines(self) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-8:])


def as_user(user: str) -> dict[str, Any]:
    """What `subprocess` takes to run something as another user, in none of this one's groups."""
    import pwd

    return {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def answers(port: int) -> bool:
    """Whether something listens there, on 127.0.0.1."""
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex(("127.0.0.1", port)) == 0
