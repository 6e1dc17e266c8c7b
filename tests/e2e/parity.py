"""What a run of `dvc repro` and one of `polyphony pipeline run` must have in common."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mlflow import MlflowClient

from components.lineage import digest, scalars
from components.origin import MlflowRecords, trace
from tests.e2e import workspace

# Artifact of dvc.yaml -> task and artifact; what is left out tells of runs or of times.
ARTIFACTS = {
    "artifacts/responses.parquet": "ingest/responses",
    "artifacts/rejects.parquet": "ingest/rejects",
    "artifacts/validation/responses": "validate/validation",
    "artifacts/embeddings.parquet": "gather/embeddings",
    "artifacts/deviations.parquet": "weight/deviations",
    "artifacts/pairs.parquet": "weight/pairs",
    "artifacts/weight_report": "weight/report",
    "artifacts/validation/weights": "validate-weights/validation",
    "artifacts/models/reward": "train-reward/model",
    "artifacts/models/sft": "train-sft/model",
    "artifacts/reference.parquet": "reference/reference",
    "artifacts/models/dpo": "for-loop-3-iteration-0/train-preference/model",
    "artifacts/models/ddpo": "for-loop-3-iteration-1/train-preference/model",
    "artifacts/generations.parquet": "evaluate/generations",
}
# Stage of dvc.yaml -> task.
TASKS = {
    **{name: name for name in ("ingest", "validate", "weight", "validate-weights", "train-reward", "train-sft", "reference")},
    "embed": "for-loop-2-iteration-0/embed",
    "train-dpo": "for-loop-3-iteration-0/train-preference",
    "train-ddpo": "for-loop-3-iteration-1/train-preference",
    "evaluate": "evaluate",
    "register": "register",
}
_TIMES = ("seconds", "per_second")


def digests_of_stages(folder: Path) -> dict[str, str]:
    lock = workspace.locked(folder)
    return {path: lock[path] for path in ARTIFACTS}


def digests_of_tasks(made: Path) -> dict[str, str]:
    return {path: digest(made / place) for path, place in ARTIFACTS.items()}


def metrics_of_stages(folder: Path) -> dict[str, dict[str, float]]:
    return {stage: _metrics(folder / "metrics" / f"{stage}.json") for stage in TASKS}


def metrics_of_tasks(made: Path) -> dict[str, dict[str, float]]:
    return {stage: _metrics(made / task / "metrics") for stage, task in TASKS.items()}


def _metrics(path: Path) -> dict[str, float]:
    values = scalars(json.loads(path.read_text(encoding="utf-8")))
    return {name: value for name, value in values.items() if not name.endswith(_TIMES)}


def lineage(store: str, model: str) -> set[Any]:
    """Each artifact on the way from a model back to the raw data: name, digest, step, and what that step read."""
    origin = trace("model", model, MlflowRecords(MlflowClient(store)))
    return {
        (found.name, found.digest, found.step, tuple(sorted((read.name, read.digest) for read in found.inputs)))
        for found in origin.walk()
    }
