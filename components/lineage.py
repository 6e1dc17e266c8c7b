"""Lineage by content: which step, of which code, made what from what.

Each step's MLflow run carries a tag per artifact it read (`consumed.<digest>`) and wrote (`produced.<digest>`), so that any
digest leads to the run that made it, whichever engine ran it and also where a later run found it in a cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import InputError
from components.live import Live, short

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger("polyphony")
EXPERIMENT = "polyphony"
# The name under which ingest reads the source: where every lineage ends.
RAW = "raw"
# Where an engine says which of its runs a step belongs to, and the tag that keeps it.
ENGINE_RUN, ENGINE_TAG = "POLYPHONY_RUN_ID", "engine.run"
# What the DAG itself rewrites in the work tree: a change there does not make the code differ from its commit.
_WRITTEN_BY_THE_DAG = (":!dvc.lock", ":!metrics")

# Seconds that a step which fails or is told to stop gives MLflow.
_LEAVING = 5
_WRITTEN = "the outputs are written, but not how they were made, and without that nothing can be registered"
# The run that is open in this process.
_open: StepRun | None = None
# Who takes live metrics in its stead.
_relay: Callable[..., None] | None = None


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
    """An MLflow run around a step. Attaches to the run in `MLFLOW_RUN_ID` where an engine opened one.

    Raises:
        InputError: if MLflow is out of reach before or after the step, for longer than MLflow's own retries last
            (`MLFLOW_HTTP_REQUEST_MAX_RETRIES`). During the step it may be.
    """
    global _open
    import mlflow

    consumed = {name: digest(path) for name, path in inputs.items()}
    try:
        with _recorded("nothing was done yet"):
            client = tracking_client()
            if "MLFLOW_RUN_ID" not in os.environ:
                mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT))
            opened = mlflow.start_run(run_name=step)
            mlflow.set_tags({"step": step, **git_state()})
            if run_id := os.environ.get(ENGINE_RUN):
                mlflow.set_tag(ENGINE_TAG, run_id)
            mlflow.set_tags({f"consumed.{value}": name for name, value in consumed.items()})
            mlflow.log_params({key: str(value)[:6000] for key, value in _flatten(parameters)})
        _open = run = StepRun(consumed, Live(client, opened.info.run_id))
        yield run
        with _recorded():
            mlflow.end_run()
    except BaseException as error:
        if _open is not None:
            _open.live.close(_LEAVING)
        _give_up("KILLED" if isinstance(error, (KeyboardInterrupt, SystemExit)) else "FAILED")
        raise
    finally:
        _open = None
    for action in run.afterwards:
        action()


@contextmanager
def _recorded(done: str = _WRITTEN) -> Iterator[None]:
    """Turns whatever MLflow raises into an `InputError` that says what was done and what to do."""
    try:
        yield
    except Exception as error:
        raise InputError(
            f"MLflow is out of reach; {done}. Start it (MLFLOW_TRACKING_URI) and run the same command again; long work is kept "
            f"and goes on from where it was. ({short(error)})"
        ) from error


def _give_up(status: str) -> None:
    """Ends the run that is open as failed, without waiting for a server that may be gone."""
    import mlflow

    hurried = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_LEAVING)}
    before = {name: os.environ.get(name) for name in hurried}
    os.environ.update(hurried)
    try:
        mlflow.end_run(status)
    except Exception as error:
        log.warning("the MLflow run could not be marked %s (%s)", status.lower(), error)
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@dataclass
class StepRun:
    """What a finished step adds to its run.

    Attributes:
        consumed: the digest of each input.
        live: metrics on their way.
        afterwards: what is done when all is recorded.
    """

    consumed: Mapping[str, str]
    live: Live
    afterwards: list[Callable[[], None]] = field(default_factory=list)

    def finish(self, outputs: Mapping[str, Path], metrics: Mapping[str, Any]) -> dict[str, str]:
        """Records metrics and outputs; returns the digest of each output."""
        import mlflow

        digests = {name: digest(path) for name, path in outputs.items()}
        with _recorded():
            if self.live.close():
                raise self.live.error or TimeoutError("metrics were not delivered")
            mlflow.log_metrics(scalars(metrics))
            mlflow.set_tags({f"produced.{value}": name for name, value in digests.items()})
        return digests


def live(values: Mapping[str, float], step: int, when: float) -> None:
    """Sends metrics of step `step`, at the time `when` (seconds since 1970), to the open run, if one is; never waits for it."""
    if _relay is not None:
        _relay(values=values, step=step, when=when)
    elif _open is not None:
        _open.live.add(values, step, when)


def relay(to: Callable[..., None]) -> None:
    """Has `live` call `to` instead: in a process that works for another, in which the run is open."""
    global _relay
    _relay = to


def when_recorded(action: Callable[[], None]) -> None:
    """Does `action` when the open run has recorded what the step made; at once where no run is open.

    For the removal of kept work, which would be missed if the record failed and the step had to run again.
    """
    if _open is None:
        action()
    else:
        _open.afterwards.append(action)


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
