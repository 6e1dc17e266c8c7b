"""Where an artifact comes from: the walk from its digest back to the raw data, over what `components.lineage` recorded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from components.lineage import CONSUMED, PRODUCED, RAW, tracking_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Look-ups that a tracking server is asked for at once, and runs that each brings at most.
AT_ONCE, NEWEST = 8, 5
NEWEST_FIRST = "attributes.start_time DESC"


class UntraceableError(Exception):
    """A digest that no recorded run produced. The message names it and what consumed it."""


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


class SearchedRecords:
    """Records behind a search like MLflow's, which is asked for each digest once, as a rule.

    Args:
        search: the last `NEWEST` runs that match a filter of MLflow's, the last first.
        at_once: questions that it is asked at the same time.
    """

    def __init__(self, search: Callable[[str], list[Record]], at_once: int) -> None:
        self._search, self._at_once = search, at_once
        # The last makers of a digest, the last first, and the digests that may have older ones.
        self._known: dict[str, list[Record]] = {}
        self._older: set[str] = set()

    def remember(self, records: Iterable[Record], *, all_there_are: bool) -> None:
        """Takes finished runs, the last first, for what will be asked; of older ones than these it asks as before."""
        for record in records:
            for key in record.tags:
                if key.startswith(PRODUCED):
                    self._known.setdefault(key.removeprefix(PRODUCED), []).append(record)
        if not all_there_are:
            self._older |= self._known.keys()

    def makers(self, wanted: Collection[Wanted]) -> dict[Wanted, Record | None]:
        asked = sorted({digest for digest, _ in wanted} - self._known.keys())
        if self._at_once > 1:
            with ThreadPoolExecutor(self._at_once) as pool:
                found = dict(zip(asked, pool.map(self._makers, asked), strict=True))
        else:
            found = {digest: self._makers(digest) for digest in asked}
        self._known |= found
        self._older |= {digest for digest, makers in found.items() if len(makers) == NEWEST}
        return {one: self._maker(*one) for one in wanted}

    def _maker(self, digest: str, before: int | None) -> Record | None:
        known = self._known[digest]
        earlier = [record for record in known if before is None or record.started < before]
        if not earlier and digest in self._older:
            earlier = self._makers(digest, f" AND attributes.start_time < {before}")
        found = earlier or known
        return found[0] if found else None

    def _makers(self, digest: str, condition: str = "") -> list[Record]:
        # The key of a tag is the first part of the table's primary key; this reads the rows of one digest.
        return self._search(f"tags.`{PRODUCED}{digest}` LIKE '%' AND attributes.status = 'FINISHED'{condition}")


class MlflowRecords(SearchedRecords):
    """Records in a tracking store, through MLflow."""

    def __init__(self, client: MlflowClient) -> None:
        self._client = client
        self._experiments: list[str] = []
        token = None
        while token != "":
            page = client.search_experiments(page_token=token)
            self._experiments += [experiment.experiment_id for experiment in page]
            token = page.token or ""
        super().__init__(self._runs, AT_ONCE if client.tracking_uri.startswith("http") else 1)

    def _runs(self, condition: str) -> list[Record]:
        found = self._client.search_runs(self._experiments, condition, max_results=NEWEST, order_by=[NEWEST_FIRST])
        return [as_record(run) for run in found]


def as_record(run: Run) -> Record:
    return Record(run.info.run_id, run.info.start_time, run.data.tags, run.data.params)
