"""Lineage by content: which step, of which code, made what from what.

Each step's MLflow run carries a tag per artifact it read (`consumed.<digest>`) and wrote (`produced.<digest>`), so that any
digest leads to the run that made it, whichever engine ran it and also where a later run found it in a cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
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
# Look-ups that a tracking server is asked for at once, and runs that each brings at most.
_AT_ONCE, _NEWEST = 8, 5

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
    return folder_digest({file.relative_to(path).as_posix(): digest(file) for file in path.rglob("*") if file.is_file()})


def folder_digest(files: Mapping[str, str]) -> str:
    """The digest of a folder from those of its files, by their paths in it."""
    entries = [{"md5": value, "relpath": name} for name, value in sorted(files.items())]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def tracking_client() -> MlflowClient:
    """The client of the store named by `MLFLOW_TRACKING_URI`; `sqlite:///mlflow.db` in the working directory otherwise."""
    import mlflow

    _take_credentials_out()
    # Absolute: MLflow opens a store once for a process, which may change its working directory.
    mlflow.set_tracking_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path('mlflow.db').resolve()}")
    return mlflow.MlflowClient()


def _take_credentials_out() -> None:
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


@dataclass(frozen=True)
class Record:
    """What the run of a step recorded; `started` is in milliseconds since 1970."""

    run_id: str
    started: int
    tags: Mapping[str, str]
    parameters: Mapping[str, str]

    def consumed(self) -> list[tuple[str, str]]:
        """Name and digest of what it read, by name."""
        return sorted((name, key.removeprefix(CONSUMED)) for key, name in self.tags.items() if key.startswith(CONSUMED))


# A digest, and the time before which the run that made it started; None: any.
Wanted = tuple[str, int | None]


class Records(Protocol):
    """Where records of runs are looked up."""

    def makers(self, wanted: Collection[Wanted]) -> dict[Wanted, Record | None]:
        """For each, the last finished run that produced the digest and started before that time; the last of all where none
        did; None where no finished run produced it."""


@dataclass(frozen=True)
class Origin:
    """An artifact, the run that made it, and the artifacts that run read.

    Attributes:
        run_id: empty for the raw data, and where there is a gap.
        gap: why it is not known where the artifact comes from, and what to do.
        record: what the run recorded.
    """

    name: str
    digest: str
    step: str = ""
    run_id: str = ""
    commit: str = ""
    dirty: str = ""
    inputs: tuple[Origin, ...] = field(default=())
    gap: str = ""
    record: Record | None = field(default=None, compare=False, repr=False)

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


def trace(name: str, digest: str, records: Records | None = None, *, gaps: bool = False) -> Origin:
    """Walks from an artifact back to the raw data.

    Where several runs produced the same artifact, it takes the last that started before the run which read it; an artifact
    that several runs read may so have several makers.

    Args:
        records: where to look; the tracking store where left out.
        gaps: have the result tell what is not known, instead of an error.

    Raises:
        UntraceableError: if no finished run produced some artifact on the way.
    """
    records = records or MlflowRecords(tracking_client())
    found: dict[Wanted, Record | None] = {}
    level: set[Wanted] = {(digest, None)} if name != RAW else set()
    # All of one distance at once: as many questions as the tree is deep.
    while level:
        answers = records.makers(level)
        found |= answers
        readers = [record for record in answers.values() if record is not None]
        level = {(value, reader.started) for reader in readers for name_, value in reader.consumed() if name_ != RAW}
        level -= found.keys()
    known: dict[tuple[str, str, str], Origin] = {}

    def visit(name: str, digest: str, consumer: Record | None, path: tuple[str, ...]) -> Origin:
        if name == RAW:
            return Origin(name, digest)
        record = found[digest, consumer.started if consumer else None]
        if record is None or record.run_id in path:
            reader = consumer.tags["step"] if consumer else "the caller"
            why = "no recorded run produced" if record is None else "only runs that were made from it produced"
            gap = (
                f"{why} {name} ({digest}), which {reader} read. Run the step that writes it again "
                "(`dvc repro --force --single-item <stage>`) with the same MLFLOW_TRACKING_URI."
            )
            if not gaps:
                raise UntraceableError(gap)
            return Origin(name, digest, gap=gap)
        key = (name, digest, record.run_id)
        if key not in known:
            tags = record.tags
            inputs = tuple(visit(*read, record, (*path, record.run_id)) for read in record.consumed())
            known[key] = Origin(
                *(name, digest, tags["step"], record.run_id, tags["commit"], tags["dirty"], inputs), record=record
            )
        return known[key]

    return visit(name, digest, None, ())


class MlflowRecords:
    """Records in a tracking store, through MLflow; for each digest it is asked once, as a rule."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        # The last makers of a digest, the last first.
        self._known: dict[str, list[Record]] = {}
        self._experiments: list[str] = []
        token = None
        while token != "":
            page = client.search_experiments(page_token=token)
            self._experiments += [experiment.experiment_id for experiment in page]
            token = page.token or ""

    def makers(self, wanted: Collection[Wanted]) -> dict[Wanted, Record | None]:
        asked = sorted({digest for digest, _ in wanted} - self._known.keys())
        if self._client.tracking_uri.startswith("http"):
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                self._known |= zip(asked, pool.map(self._makers, asked), strict=True)
        else:
            self._known |= {digest: self._makers(digest) for digest in asked}
        return {one: self._maker(*one) for one in wanted}

    def _maker(self, digest: str, before: int | None) -> Record | None:
        known = self._known[digest]
        earlier = [record for record in known if before is None or record.started < before]
        if not earlier and len(known) == _NEWEST:
            earlier = self._makers(digest, f" AND attributes.start_time < {before}")
        found = earlier or known
        return found[0] if found else None

    def _makers(self, digest: str, condition: str = "") -> list[Record]:
        # The key of a tag is the first part of the table's primary key; this reads the rows of one digest.
        found = self._client.search_runs(
            self._experiments,
            f"tags.`{PRODUCED}{digest}` LIKE '%' AND attributes.status = 'FINISHED'{condition}",
            max_results=_NEWEST,
            order_by=["attributes.start_time DESC"],
        )
        return [Record(run.info.run_id, run.info.start_time, run.data.tags, run.data.params) for run in found]
