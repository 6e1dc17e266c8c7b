"""Lineage by content: which step, of which code, made what from what.

Each step's MLflow run carries a tag per artifact it read (`consumed.<digest>`) and wrote (`produced.<digest>`), so that any
digest leads to the run that made it, whichever engine ran it and also where a later run found it in a cache.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

EXPERIMENT = "polyphony"
# The name under which ingest reads the source: where every lineage ends.
RAW = "raw"
# Where an engine says which of its runs a step belongs to, and the tag that keeps it.
ENGINE_RUN, ENGINE_TAG = "POLYPHONY_RUN_ID", "engine.run"
# What the DAG itself rewrites in the work tree: a change there does not make the code differ from its commit.
_WRITTEN_BY_THE_DAG = (":!dvc.lock", ":!metrics")


class UntraceableError(Exception):
    """A digest that no recorded run produced. The message names it and what consumed it."""


def digest(path: Path) -> str:
    """The digest of a file or a folder as DVC computes it: MD5 in hexadecimal, `<md5>.dir` for a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = (file for file in path.rglob("*") if file.is_file())
    entries = [{"md5": digest(file), "relpath": file.relative_to(path).as_posix()} for file in files]
    entries.sort(key=lambda entry: entry["relpath"])
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def git_state() -> dict[str, str]:
    """The commit of the code and whether tracked files differ from it; `unknown` outside a checkout.

    In an image, which carries no checkout, the commit comes from the environment variable `POLYPHONY_COMMIT`.
    """
    if commit := os.environ.get("POLYPHONY_COMMIT"):
        return {"commit": commit, "dirty": "false"}
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN_BY_THE_DAG)
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": "unknown"}
    return {"commit": commit, "dirty": str(bool(changed)).lower()}


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def tracking_client() -> MlflowClient:
    """The client of the store named by `MLFLOW_TRACKING_URI`; `sqlite:///mlflow.db` in the working directory otherwise."""
    import mlflow

    # Absolute: MLflow opens a store once for a process, which may change its working directory.
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}")
    return mlflow.MlflowClient()


@contextmanager
def step_run(step: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path]) -> Iterator[StepRun]:
    """An MLflow run around a step. Attaches to the run in `MLFLOW_RUN_ID` where an engine opened one."""
    import mlflow

    tracking_client()
    if "MLFLOW_RUN_ID" not in os.environ:
        mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
    consumed = {name: digest(path) for name, path in inputs.items()}
    with mlflow.start_run(run_name=step):
        mlflow.set_tags({"step": step, **git_state()})
        if run_id := os.environ.get(ENGINE_RUN):
            mlflow.set_tag(ENGINE_TAG, run_id)
        mlflow.set_tags({f"consumed.{value}": name for name, value in consumed.items()})
        mlflow.log_params({key: str(value)[:6000] for key, value in _flatten(parameters)})
        yield StepRun(consumed)


@dataclass
class StepRun:
    """What a finished step adds to its run."""

    consumed: Mapping[str, str]

    def finish(self, outputs: Mapping[str, Path], metrics: Mapping[str, Any]) -> dict[str, str]:
        """Records metrics and outputs; returns the digest of each output."""
        import mlflow

        mlflow.log_metrics(scalars(metrics))
        digests = {name: digest(path) for name, path in outputs.items()}
        mlflow.set_tags({f"produced.{value}": name for name, value in digests.items()})
        return digests


def recording() -> bool:
    """Whether a run is open in this process, so that training may log into it as it goes."""
    import sys

    mlflow = sys.modules.get("mlflow")
    return mlflow is not None and mlflow.active_run() is not None


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among the metrics, nested names joined by dots."""
    return {key: float(value) for key, value in _flatten(metrics) if isinstance(value, (int, float))}


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@dataclass(frozen=True)
class Origin:
    """An artifact, the run that made it, and the artifacts that run read. `run_id` is empty for the raw data."""

    name: str
    digest: str
    step: str = ""
    run_id: str = ""
    commit: str = ""
    dirty: str = ""
    inputs: tuple[Origin, ...] = field(default=())

    def walk(self) -> Iterator[Origin]:
        """This artifact and all that it came from, each once."""
        seen: set[tuple[str, str]] = set()
        waiting = [self]
        while waiting:
            origin = waiting.pop()
            if (origin.digest, origin.run_id) not in seen:
                seen.add((origin.digest, origin.run_id))
                yield origin
                waiting.extend(origin.inputs)


def trace(name: str, digest: str) -> Origin:
    """Walks from an artifact back to the raw data.

    Where several runs produced the same artifact, it takes the last that started before the run which read it.

    Raises:
        UntraceableError: if no finished run produced some artifact on the way.
    """
    client = tracking_client()
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    known: dict[str, Origin] = {}

    def visit(name: str, digest: str, consumer: Run | None) -> Origin:
        if name == RAW:
            return Origin(name, digest)
        if digest not in known:
            known[digest] = made(name, digest, consumer)
        return known[digest]

    def made(name: str, digest: str, consumer: Run | None) -> Origin:
        run = producer(digest, consumer)
        if run is None:
            reader = consumer.data.tags["step"] if consumer else "the caller"
            raise UntraceableError(
                f"no recorded run produced {name} ({digest}), which {reader} read. Run the step that writes it again "
                "(`dvc repro --force --single-item <stage>`) with the same MLFLOW_TRACKING_URI."
            )
        tags = run.data.tags
        read = sorted((value, key.removeprefix("consumed.")) for key, value in tags.items() if key.startswith("consumed."))
        inputs = tuple(visit(value, key, run) for value, key in read)
        return Origin(name, digest, tags["step"], run.info.run_id, tags["commit"], tags["dirty"], inputs)

    def producer(digest: str, consumer: Run | None) -> Run | None:
        produced = f"tags.`produced.{digest}` LIKE '%' AND attributes.status = 'FINISHED'"
        earlier = [f"{produced} AND attributes.start_time < {consumer.info.start_time}"] if consumer else []
        for condition in (*earlier, produced):
            if runs := client.search_runs(experiments, condition, max_results=1, order_by=["attributes.start_time DESC"]):
                return runs[0]
        return None

    return visit(name, digest, None)
