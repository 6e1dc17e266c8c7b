"""The graph that Kubeflow runs, here as plain processes; tests/e2e/test_e2e_platform.py compares it with what DVC makes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from components.lineage import digest
from tests.e2e import workspace


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["polyphony", "pipeline", "run", "--overrides", "params.yaml", *words],
        cwd=folder,
        env=workspace.environment() | {"MLFLOW_TRACKING_URI": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_other_objectives_side_by_side(tmp_path: Path, tiny_model: Path, finished: Path) -> None:
    """All of them are evaluated together, and the one asked for is registered; shards of embeddings become what one makes."""
    folder = workspace.make(tmp_path / "workspace", tiny_model)
    inputs = ('objectives=["dorpo", "dpo", "orpo"]', "registered=dorpo", "embed_shards=3")
    done = run(folder, "--root", "runs", *(word for setting in inputs for word in ("--input", setting)))
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    (made,) = (folder / "runs").iterdir()
    assert digest(made / "gather" / "embeddings") == workspace.locked(finished)["artifacts/embeddings.parquet"]
    measured = json.loads((made / "evaluate" / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    assert list(measured["systems"]) == ["sft", "dorpo", "dpo", "orpo", "gold"]
    (model,) = (place for place in made.glob("for-loop-3-*/train-preference/model") if objective(place) == "dorpo")
    version = json.loads((made / "register" / "version").read_text(encoding="utf-8"))
    assert version["digests"][digest(model)] == "dorpo"


def objective(model: Path) -> str:
    return str(json.loads((model / "training.json").read_text(encoding="utf-8"))["objective"])


@pytest.mark.slow
def test_wrong_parameters_end_the_run_at_once(tmp_path: Path, tiny_model: Path) -> None:
    """Nothing else starts but what closes the run, and the log says why."""
    folder = workspace.make(tmp_path / "workspace", tiny_model)
    done = run(folder, "--root", "runs", "--input", "train_sft_epochs=0", "--input", "weight_deviation=stile")
    assert done.returncode == 1
    assert "weight.deviation" in done.stderr and "configure" in done.stderr
    assert not [path for path in (folder / "runs").rglob("*") if path.is_file()]
