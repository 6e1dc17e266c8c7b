"""`dvc metrics diff` between two evaluations."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from components.evaluate.metrics import compare


def means(shift: float) -> dict[str, Any]:
    """What the step returns, and `--metrics` writes."""
    values = {"reward": np.arange(8.0) + shift, "semantic_diversity": np.linspace(0.2, 0.4, 8)}
    document = compare({"dpo": values, "ddpo": values}, seed=0)
    return {"prompts": 8} | {
        name: {key: value["mean"] for key, value in found.items()} for name, found in document["systems"].items()
    }


def test_dvc_tells_what_changed_of_each_system_and_metric(tmp_path: Path) -> None:
    def call(*words: str) -> str:
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout

    git = ("git", "-c", "user.name=a", "-c", "user.email=a@example.org")
    call(*git, "init", "-q")
    call(sys.executable, "-m", "dvc", "init", "-q")
    (tmp_path / "dvc.yaml").write_text("metrics: [evaluate.json]\n", encoding="utf-8")
    (tmp_path / "evaluate.json").write_text(json.dumps(means(0.0)), encoding="utf-8")
    call(*git, "add", "-A")
    call(*git, "commit", "-qm", "a run")
    (tmp_path / "evaluate.json").write_text(json.dumps(means(0.25)), encoding="utf-8")
    found = json.loads(call(sys.executable, "-m", "dvc", "metrics", "diff", "--json"))
    assert found == {"evaluate.json": {f"{name}.reward": {"old": 3.5, "new": 3.75, "diff": 0.25} for name in ("dpo", "ddpo")}}
