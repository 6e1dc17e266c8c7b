"""From the whole graph's version to production and out of the registry, with the installed command."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e import workspace


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """The store and the parameters of the finished workspace; the registry's artifacts stay where they are."""
    for name in ("mlflow.db", "params.yaml"):
        shutil.copy(finished / name, tmp_path / name)
    return tmp_path


def polyphony(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["polyphony", *words], cwd=folder, env=workspace.environment(), capture_output=True, text=True)


def test_promoted_tried_and_taken_along(folder: Path) -> None:
    promote = ["promote", "--model", "polyphony", "--version", "1", "--reason", "the first", "--yes", "--force"]
    promoted = polyphony(folder, *promote)
    assert promoted.returncode == 0, promoted.stderr
    assert "quality (reward)" in promoted.stdout and "is the champion" in promoted.stdout
    tried = polyphony(folder, "try", "polyphony@champion", "Write about the sea.", "-k", "2", "--json")
    assert tried.returncode == 0, tried.stderr
    told = json.loads(tried.stdout)
    assert len(told["stories"]) == 2 and set(told["diversity"]) == {"semantic_diversity", "style_diversity"}
    exported = polyphony(folder, "export", "polyphony@champion", "--merge", "--dtype", "float32", "--output", "merged")
    assert exported.returncode == 0, exported.stderr
    tokenizer = AutoTokenizer.from_pretrained(folder / "merged")
    model = AutoModelForCausalLM.from_pretrained(folder / "merged")
    ids = tokenizer("the sea", return_tensors="pt")
    assert model.generate(**ids, max_new_tokens=2, do_sample=False).shape[1] > ids["input_ids"].shape[1]
    moves = json.loads(polyphony(folder, "history", "--model", "polyphony", "--json").stdout)["moves"]
    assert [(move["version"], move["reason"], move["settled"]) for move in moves] == [("1", "the first", True)]
