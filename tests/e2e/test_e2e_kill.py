"""SIGKILL in the middle of each step: nothing looks finished, and `dvc repro` completes with the same result."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import termios
from pathlib import Path

import pytest

from tests.e2e import workspace

# Where each stage is killed: at the first sign of its own work, which for a training is a finished step.
BAR, STEP = r"\d%\|", r"[1-9]\d*/\d+ \["
SIGNS = {
    "ingest": BAR,
    "validate": BAR,
    "embed": BAR,
    "weight": BAR,
    "validate-weights": BAR,
    "train-reward": STEP,
    "train-sft": STEP,
    "reference": BAR,
    "train@dpo": STEP,
    "train@ddpo": STEP,
    "evaluate": BAR,
    "register": r"polyphony version",
}


def run_and_kill(folder: Path, stage: str) -> bool:
    """Starts the stage and kills DVC and the step when its output shows the sign; whether that came before the end."""
    ours, theirs = pty.openpty()
    # On a terminal without columns no bar is drawn.
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 200, 0, 0))
    process = subprocess.Popen(
        ["dvc", "repro", "--force", "--single-item", stage],
        cwd=folder, env=workspace.environment(), stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = ""
    # DVC prints the stage's name and command first, in which the sign must not be looked for.
    start = re.compile(r"> python -m .*?\n", re.DOTALL)
    try:
        while chunk := os.read(ours, 4096).decode(errors="replace"):
            seen += chunk
            own = start.split(seen, maxsplit=1)
            if len(own) > 1 and re.search(SIGNS[stage], own[1]):
                os.killpg(process.pid, signal.SIGKILL)
                return True
    except OSError:
        # The terminal closes with its last process.
        pass
    finally:
        process.wait()
        os.close(ours)
    return False


@pytest.mark.slow
@pytest.mark.parametrize("stage", SIGNS)
def test_killed_and_run_again(finished: Path, tmp_path: Path, stage: str) -> None:
    # Without the stories that it kept, or there would be none to write.
    folder = shutil.copytree(finished, tmp_path / "workspace", symlinks=True, ignore=shutil.ignore_patterns(".work"))
    expected = workspace.locked(finished)
    assert run_and_kill(folder, stage), "the stage ended before it could be killed"
    # The registry is written before the file that tells of it.
    assert stage == "register" or not all((folder / path).exists() for path in workspace.locked(folder, stage))
    workspace.dvc(folder, "repro")
    version = "artifacts/version.json"
    found = workspace.locked(folder)
    assert {path for path in expected if found[path] != expected[path]} <= {version}
    assert json.loads((folder / version).read_text(encoding="utf-8"))["version"] == 1
