"""The whole graph, run by DVC on a tiny model: contracts, lineage, registry, and nothing done twice."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest

from components import contracts
from components.lineage import digest
from components.origin import trace
from tests.e2e import workspace
from tests.test_redaction import leaks, written

TABLES = {
    "responses": contracts.RESPONSES,
    "rejects": contracts.REJECTS,
    "embeddings": contracts.EMBEDDINGS,
    "deviations": contracts.DEVIATIONS,
    "pairs": contracts.PAIRS,
    "reference": contracts.REFERENCE,
    "generations": contracts.GENERATIONS,
}


@pytest.fixture
def store(finished: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[mlflow.MlflowClient]:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished}/mlflow.db")
    previous = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{finished}/mlflow.db")
    yield mlflow.MlflowClient()
    mlflow.set_tracking_uri(previous)


def test_every_artifact_keeps_its_contract(finished: Path) -> None:
    for name, table in TABLES.items():
        rows = table.read(finished / "artifacts" / f"{name}.parquet")
        assert rows.num_rows > 0
        for column in table.columns:
            assert column.nullable or rows.column(column.name).null_count == 0
    rejects = contracts.REJECTS.read(finished / "artifacts" / "rejects.parquet").to_pylist()
    assert sorted((row["row"], row["reason"]) for row in rejects) == [(25, "malformed"), (26, "no_response")]
    assert json.loads((finished / "metrics" / "ingest.json").read_text(encoding="utf-8"))["responses"] == 24
    for system in ("reward", "sft", "dpo", "ddpo"):
        model = finished / "artifacts" / "models" / system
        assert {"adapter_config.json", "adapter_model.safetensors", "training.json"} <= {p.name for p in model.iterdir()}
        assert not [p for p in model.rglob("*") if p.suffix in {".bin", ".pt", ".pth", ".pkl"}]
    systems = {row["system"] for row in contracts.GENERATIONS.read(finished / "artifacts" / "generations.parquet").to_pylist()}
    assert systems == {"gold", "sft", "dpo", "ddpo"}
    # Stories are kept for another evaluation.
    assert {path.relative_to(finished / ".work").parts[:2] for path in (finished / ".work").rglob("*.*")} == {
        ("evaluate", "stories")
    }


def test_digests_are_dvcs_and_lead_back_to_the_raw_data(finished: Path, store: mlflow.MlflowClient) -> None:
    lock = workspace.locked(finished)
    for path, value in lock.items():
        assert digest(finished / path) == value
    version = json.loads((finished / "artifacts" / "version.json").read_text(encoding="utf-8"))
    registered = store.get_model_version(version["name"], str(version["version"]))
    assert registered.tags["data.digest"] == digest(finished / "stories.jsonl")
    assert registered.tags["model.digest"] == lock["artifacts/models/ddpo"]
    origin = trace("evaluation", registered.tags["evaluation.digest"])
    walked = {item.digest for item in origin.walk()}
    aside = {"artifacts/rejects.parquet", "artifacts/weight_report", "artifacts/generations.parquet", "artifacts/version.json"}
    assert {value for path, value in lock.items() if path not in aside} <= walked
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=finished, capture_output=True, text=True).stdout.strip()
    assert {item.commit for item in origin.walk() if item.run_id} == {commit}
    assert {item.dirty for item in origin.walk() if item.run_id} == {"false"}


def test_the_verdict_is_on_the_version(finished: Path, store: mlflow.MlflowClient) -> None:
    version = json.loads((finished / "artifacts" / "version.json").read_text(encoding="utf-8"))
    registered = store.get_model_version(version["name"], str(version["version"]))
    assert registered.tags["validation_status"] == version["status"] in {"candidate", "rejected"}
    assert registered.tags["gate.reasons"] == version["reasons"] != ""
    assert ("candidate" in registered.aliases) == (version["status"] == "candidate")


def test_no_secret_of_the_environment_is_in_anything_that_the_run_wrote(finished: Path) -> None:
    assert "register" in (finished / "repro.log").read_text(encoding="utf-8")
    assert not leaks(*written(finished))


def test_a_second_run_does_nothing(finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*")}
    assert "Data and pipelines are up to date" in workspace.dvc(finished, "repro")
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "artifacts").rglob("*")}


def test_results_are_shown(finished: Path) -> None:
    shown = subprocess.run(["polyphony", "results"], cwd=finished, env=workspace.environment(), capture_output=True, text=True)
    assert shown.returncode == 0
    for word in ("gold", "sft", "dpo", "ddpo", "semantic diversity", "Registered: polyphony version 1", "report.html"):
        assert word in shown.stdout


@pytest.mark.slow
def test_other_weights_reuse_what_they_do_not_change(finished: Path, tmp_path: Path) -> None:
    """A floor changes deviations and what is trained with them; pairs, reference, SFT, reward and DPO stay."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    workspace.set_params(copy, **{"weight.floor": 0.3})
    printed = workspace.dvc(copy, "repro")
    changed = {path for path, value in workspace.locked(copy).items() if workspace.locked(finished)[path] != value}
    assert "artifacts/deviations.parquet" in changed and "artifacts/models/ddpo" in changed
    kept = {"responses.parquet", "embeddings.parquet", "pairs.parquet", "reference.parquet"}
    assert not changed & {*(f"artifacts/{name}" for name in kept), *(f"artifacts/models/{s}" for s in ("reward", "sft", "dpo"))}
    for stage in ("ingest", "embed", "train-sft", "train-reward", "reference"):
        assert f"Running stage '{stage}'" not in printed


@pytest.mark.slow
def test_another_objective_joins(finished: Path, tmp_path: Path) -> None:
    """Named in params.yaml, it is trained, compared and registered; the others stay."""
    copy = shutil.copytree(finished, tmp_path / "copy")
    workspace.set_params(copy, **{"train.objectives": ["dpo", "ddpo", "dorpo"], "register.candidate": "dorpo"})
    printed = workspace.dvc(copy, "repro")
    assert printed.count("Running stage") == 3
    systems = {row["system"] for row in contracts.GENERATIONS.read(copy / "artifacts" / "generations.parquet").to_pylist()}
    assert systems == {"gold", "sft", "dpo", "ddpo", "dorpo"}
    version = json.loads((copy / "artifacts" / "version.json").read_text(encoding="utf-8"))
    assert version["digests"][workspace.locked(copy)["artifacts/models/dorpo"]] == "dorpo"
