"""The graph that Kubeflow runs, here as plain processes, makes what `dvc repro` makes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient

from components.lineage import digest
from tests.e2e import parity, workspace


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["polyphony", "pipeline", "run", "--overrides", "params.yaml", *words],
        cwd=folder,
        env=workspace.environment() | {"MLFLOW_TRACKING_URI": ""},
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_same_as_with_dvc(tmp_path: Path, finished: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "workspace", ignore=shutil.ignore_patterns("artifacts", "mlflow.db"))
    done = run(folder, "--root", "runs")
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    (made,) = (folder / "runs").iterdir()
    found = parity.digests_of_tasks(made)
    assert found == parity.digests_of_stages(finished)
    assert parity.metrics_of_tasks(made) == parity.metrics_of_stages(finished)
    model = found["artifacts/models/ddpo"]
    assert parity.lineage(f"sqlite:///{folder}/mlflow.db", model) == parity.lineage(f"sqlite:///{finished}/mlflow.db", model)
    assert (made / "validate" / "data_docs").read_text(encoding="utf-8").startswith("<!doctype html>")
    told = json.loads((made / "ingest" / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    assert told["metrics"]["artifacts"][0]["metadata"]["responses"] == 24
    assert told["responses"]["artifacts"][0]["metadata"]["digest"] == found["artifacts/responses.parquet"]
    version = json.loads((made / "register" / "version").read_text(encoding="utf-8"))
    store = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert store.get_model_version(version["name"], str(version["version"])).tags["data.digest"] == digest(
        folder / "stories.jsonl"
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
