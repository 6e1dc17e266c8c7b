"""A copy of the project in a folder of its own, with small data and a tiny model, in which DVC runs the whole graph."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import response_rows

ROOT = Path(__file__).parents[2]
# What makes a run small, as a person would set it with `dvc exp run -S`.
SMALL = {
    "models.max_tokens": 256,
    "ingest.source": "stories.jsonl",
    "ingest.test_share": 0.3,
    "embed.chunk": 7,
    "train.checkpoint_minutes": 1e-6,
    "train.reward.epochs": 1,
    "train.lora.r": 4,
    "evaluate.samples": 2,
    "evaluate.max_new_tokens": 12,
}


def make(folder: Path, language: Path, **values: Any) -> Path:
    """The project's files in a new repository, committed, with `SMALL` and other parameters and the given language model."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/", "metrics/")) and name != "dvc.lock":
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    rows = [{key: row[key] for key in ("prompt", "response", "score")} for row in response_rows(prompts=6, responses=4)]
    lines = [json.dumps(row) for row in rows] + ['{"prompt": "Broken', json.dumps(rows[0] | {"response": " "})]
    (folder / "stories.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    set_params(folder, **{**SMALL, **values, "models.language": str(language)})
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return folder


def set_params(folder: Path, **values: Any) -> None:
    document = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    for name, value in values.items():
        *sections, key = name.split(".")
        place = document
        for section in sections:
            place = place[section]
        place[key] = value
    (folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")


def environment() -> dict[str, str]:
    """`python` and `dvc` are those of the environment that runs the tests."""
    tools = Path(sys.executable).parent
    return os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}


def dvc(folder: Path, *arguments: str) -> str:
    """What the command printed.

    Raises:
        AssertionError: with that, if the command failed.
    """
    done = subprocess.run(
        ["dvc", *arguments], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def locked(folder: Path, stage: str | None = None) -> dict[str, str]:
    """Digest of every artifact in dvc.lock, or of one stage's, by path; metrics are none."""
    stages = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    outs = [out for name, entry in stages.items() if stage in (None, name) for out in entry["outs"]]
    return {out["path"]: out["md5"] for out in outs if out["path"].startswith("artifacts/")}
