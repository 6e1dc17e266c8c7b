"""Several at once, as processes: exactly one of two promotions wins, wherever it is killed, on a file and through a server."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from components.champion.ledger import Ledger
from components.lineage import tracking_client
from tests.champion.conftest import NAME, polyphony

# Waits until all are ready, so that they decide on the same champion.
PROMOTE = """
import sys, time
from pathlib import Path
from components.champion import promotion
from components.contracts import InputError
from components.lineage import tracking_client

name, version, others = sys.argv[1], sys.argv[2], int(sys.argv[3])

def agrees(review):
    Path(f"ready-{version}").touch()
    while len(list(Path().glob("ready-*"))) < others:
        time.sleep(0.01)
    return True

try:
    promotion.promote(tracking_client(), name, version, "champion", f"I want {version}", force=True, agrees=agrees)
except InputError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def server(versions: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A server on the store that has the versions."""
    del versions
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "2"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        # The client tries again until it answers.
        yield
        process.terminate()


def start(version: str, others: int, name: str = NAME) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", PROMOTE, name, version, str(others)],
        env=os.environ | {"PYTHONPATH": str(root)}, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def race(versions: list[str], name: str = NAME) -> None:
    """All versions are promoted at once by processes of their own."""
    processes = {version: start(version, len(versions), name) for version in versions}
    told = {version: process.communicate()[1] for version, process in processes.items()}
    won = [version for version, process in processes.items() if process.returncode == 0]
    assert len(won) == 1, told
    for version in set(versions) - set(won):
        assert f"made version {won[0]} the champion at the same time, and first" in told[version]
        assert f"promotion: I want {won[0]}" in told[version]
    client = tracking_client()
    assert str(client.get_registered_model(name).aliases["champion"]) == won[0]
    ledger = Ledger(client, name, "champion")
    assert [move.version for move in ledger.moves()] == won
    assert sorted(move.version for move in ledger.all()) == versions


def test_one_of_three_wins(versions: list[str]) -> None:
    race(versions)


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_one_of_three_wins_through_a_server(versions: list[str]) -> None:
    race(versions)
    for words in (["rollback", "--model", NAME, "--reason", "r"], ["history", "--model", NAME]):
        assert polyphony(*words) == (1 if words[0] == "rollback" else 0)
    loser = next(version for version in versions if version != tracking_client().get_registered_model(NAME).aliases["champion"])
    promote = ["promote", "--model", NAME, "--version", loser, "--reason", "r", "--yes", "--force"]
    assert polyphony(*promote) == 0
    assert polyphony("rollback", "--model", NAME, "--reason", "r") == 0
    assert polyphony("compare", f"{NAME}@champion", f"{NAME}/{loser}", "--html", "page.html") == 0
    assert polyphony("export", f"{NAME}@champion", "--output", "out") == 0


@pytest.mark.slow
def test_killed_at_any_moment_the_next_finishes_or_nothing_happened(versions: list[str]) -> None:
    """SIGKILL at growing times after the decision: the alias and the history agree after the next command."""
    client = tracking_client()
    ledger = Ledger(client, NAME, "champion")
    reached = set()
    for number in range(8):
        for ready in Path().glob("ready-*"):
            ready.unlink()
        version = versions[number % 2]
        if ledger.pointed_at() == version:
            continue
        process = start(version, 2)
        while not Path(f"ready-{version}").exists():
            time.sleep(0.01)
        Path("ready-go").touch()
        time.sleep(0.03 * number)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        moves, now = ledger.moves(), ledger.pointed_at()
        reached.add((moves[-1].settled if moves else None, bool(moves) and moves[-1].version == now))
        ledger.recover()
        moves = ledger.moves()
        assert (moves[-1].version if moves else "") == ledger.pointed_at()
        assert all(move.settled for move in moves)
    assert len(reached) > 1, reached
