"""Lineage by content: which step, of which code, made what from what.

Each step's MLflow run carries a tag per artifact it read (`consumed.<digest>`) and wrote (`produced.<digest>`), so that any
digest leads to the run that made it, whichever engine ran it and also where a later run found it in a cache;
`components.origin` walks that way.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from components.contracts import InputError
from components.live import Live, short
from components.provenance import provenance

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger("polyphony")
EXPERIMENT = "polyphony"
# The name under which ingest reads the source: where every lineage ends.
RAW = "raw"
# What a run's tags for artifacts begin with; the digest follows. The value is the artifact's name, or where it was written.
CONSUMED, PRODUCED, STORED = "consumed.", "produced.", "stored."
# The parameters as they were given, as JSON: all that a parameter file must say to have the step do the same.
PARAMETERS = "parameters"
# Seconds that a step which fails or is told to stop gives MLflow.
_LEAVING = 5
_WRITTEN = "the outputs are written, but not how they were made, and without that nothing can be registered"
# The run that is open in this process.
_open: StepRun | None = None
# Who takes live metrics in its stead.
_relay: Callable[..., None] | None = None


def digest(path: Path) -> str:
    """The digest of a file or a folder as DVC computes it: MD5 in hexadecimal, `<md5>.dir` for a folder."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    return folder_digest({file.relative_to(path).as_posix(): digest(file) for file in path.rglob("*") if file.is_file()})


def folder_digest(files: Mapping[str, str]) -> str:
    """The digest of a folder from those of its files, by their paths in it."""
    entries = [{"md5": value, "relpath": name} for name, value in sorted(files.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def tracking_client() -> MlflowClient:
    """The client of the store named by `MLFLOW_TRACKING_URI`; `sqlite:///mlflow.db` in the working directory otherwise."""
    import mlflow

    take_credentials_out()
    # Absolute: MLflow opens a store once for a process, which may change its working directory.
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}")
    return mlflow.MlflowClient()


def take_credentials_out() -> None:
    """MLflow prints and records the address it is given: name and password go where it reads them too."""
    address = urlsplit(os.environ.get("MLFLOW_TRACKING_URI", ""))
    if address.scheme in ("http", "https") and "@" in address.netloc:
        os.environ["MLFLOW_TRACKING_USERNAME"] = unquote(address.username or "")
        os.environ["MLFLOW_TRACKING_PASSWORD"] = unquote(address.password or "")
        os.environ["MLFLOW_TRACKING_URI"] = address._replace(netloc=address.netloc.rpartition("@")[2]).geturl()


@contextmanager
def step_run(
    step: str, parameters: Mapping[str, Any], inputs: Mapping[str, Path], given: Mapping[str, Any] | None = None
) -> Iterator[StepRun]:
    """An MLflow run around a step. Attaches to the run in `MLFLOW_RUN_ID` where an engine opened one.

    Args:
        parameters: all that the step reads, for people to compare.
        given: those of them that were given and are no defaults, from which a parameter file can be made again.

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
            mlflow.set_tags({"step": step, **provenance()})
            mlflow.set_tag(PARAMETERS, json.dumps(parameters if given is None else given))
            mlflow.set_tags({f"{CONSUMED}{value}": name for name, value in consumed.items()})
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

    def finish(
        self, outputs: Mapping[str, Path], metrics: Mapping[str, Any], stored: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """Records metrics and outputs; returns the digest of each output.

        Args:
            stored: the address at which an engine keeps each output.
        """
        import mlflow

        digests = {name: digest(path) for name, path in outputs.items()}
        with _recorded():
            if self.live.close():
                raise self.live.error or TimeoutError("metrics were not delivered")
            mlflow.log_metrics(scalars(metrics))
            mlflow.set_tags(
                {f"{STORED}{digests[name]}": address for name, address in (stored or {}).items() if name in digests}
            )
            mlflow.set_tags({f"{PRODUCED}{value}": name for name, value in digests.items()})
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
