"""An ablation as a person runs it: queued, run by DVC in copies of the workspace, drawn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e import workspace


def polyphony(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pipelines.front_door", "ablate", *arguments]
    done = subprocess.run(
        command, cwd=folder, env=workspace.environment() | {"PYTHONPATH": str(workspace.ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


@pytest.mark.slow
def test_an_ablation_from_queue_to_figure(finished: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(finished, tmp_path / "copy", symlinks=True)
    # Experiments run in copies of what is committed.
    for command in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", "ran"]):
        subprocess.run(["git", *command], cwd=copy, check=True)
    for name, value in (("user.name", "t"), ("user.email", "t@example.org")):
        subprocess.run(["git", "config", name, value], cwd=copy, check=True)
    assert "4 experiments are queued" in polyphony(copy, "queue", "responses", "--responses", "3")
    printed = polyphony(copy, "run")
    for stage in ("ingest", "embed", "train-reward", "train-sft"):
        assert f"Running stage '{stage}'" not in printed, "what no parameter touches is not made again"
    table = polyphony(copy, "figure", "responses", "--responses", "3")
    assert "| 3 | ddpo-both, floor | " in table
    measured = json.loads((copy / "ablations" / "responses.json").read_text(encoding="utf-8"))
    methods = [(cell["method"], cell.get("difference", {}).get("from")) for cell in measured["cells"]]
    assert methods == [
        ("dpo", None),
        ("ddpo-both", "dpo"),
        ("divpo", "dpo"),
        ("ddpo-both, floor", "dpo"),
        ("ddpo-both, best winners", "dpo"),
    ]
    assert (copy / "ablations" / "responses.png").read_bytes().startswith(b"\x89PNG")
