"""Whose stories are in which model: from a story, a prompt or data to every registered version that learned from it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from components.contracts import PAIRS, RESPONSES, InputError, Table
from components.origin import Origin
from components.trace.ancestry import Ancestry, of_version
from components.trace.content import Contents, fetch
from components.trace.store import AwayError, Store, Version

LEARNED, MEASURED, UNKNOWN, NOTHING = "learned", "measured", "unknown", "nothing"


@dataclass(frozen=True)
class Sought:
    """What somebody wants to know about: one of these.

    Attributes:
        data: the digest of an artifact, such as the raw data.
        prompt, response: an id.
        text: a story, as it stands in the tables after cleaning.
    """

    data: str = ""
    prompt: str = ""
    response: str = ""
    text: str = ""


@dataclass
class Found:
    """What one table holds of it. Counts are rows; `trouble` says why the table could not be read."""

    counts: dict[str, int] = field(default_factory=dict)
    trouble: str = ""


@dataclass(frozen=True)
class Impact:
    """What it is to a version: LEARNED, MEASURED (in its evaluation only), UNKNOWN (cannot be ruled out) or NOTHING."""

    version: Version
    verdict: str
    how: tuple[str, ...]


def impact(sought: Sought, store: Store, contents: Contents, advance: Callable[[int], Any]) -> list[Impact]:
    """What something is to every registered version; every table is read once.

    Args:
        advance: is told how many versions are done.
    """
    tables = _Tables(sought, contents)
    found = []
    for version in store.versions():
        found.append(_one(version, sought, store, tables))
        advance(1)
    return found


def _one(version: Version, sought: Sought, store: Store, tables: _Tables) -> Impact:
    try:
        ancestry = of_version(version, store)
    except AwayError:
        raise
    except InputError as error:
        return Impact(version, UNKNOWN, (str(error),))
    gaps = tuple(origin.gap for origin in ancestry.walk() if origin.gap)
    trained = list(ancestry.model.walk())
    if sought.data:
        learned = [f"{origin.name} is in its lineage" for origin in trained if origin.digest == sought.data]
        measured = [
            f"{origin.name} is in its evaluation's lineage" for origin in ancestry.walk() if origin.digest == sought.data
        ]
        unknown: list[str] = []
    else:
        learned, measured, unknown = _rows(ancestry, trained, tables)
    verdict = LEARNED if learned else UNKNOWN if unknown or gaps else MEASURED if measured else NOTHING
    how = {LEARNED: [*learned, *measured, *unknown], UNKNOWN: [*unknown, *gaps, *measured], MEASURED: measured, NOTHING: []}[
        verdict
    ]
    return Impact(version, verdict, tuple(dict.fromkeys(how)))


def _rows(ancestry: Ancestry, trained: Iterable[Origin], tables: _Tables) -> tuple[list[str], list[str], list[str]]:
    """What the version learned from it, what it was measured with, and what cannot be told."""
    learned: list[str] = []
    measured: list[str] = []
    unknown: list[str] = []
    in_model = {origin.run_id for origin in trained if origin.run_id}
    for run_id, origin in ancestry.runs().items():
        for source in origin.inputs:
            uses = [use for use in _USES.get((_kind(origin.step), source.name), ()) if run_id in in_model or not use[2]]
            if not uses:
                # Also what only another system learned, with which this one was compared.
                continue
            found = tables.look(source, PAIRS if source.name == "pairs" else RESPONSES)
            if found.trouble:
                unknown.append(f"{origin.step} read {source.name} {source.digest}: {found.trouble}")
            for what, words, learns in uses:
                if count := found.counts.get(what, 0):
                    (learned if learns else measured).append(
                        f"{origin.step}: {words} ({count} {'row' if count == 1 else 'rows'})"
                    )
    return learned, measured, unknown


def _kind(step: str) -> str:
    return "train-preference" if step.startswith("train-") and step not in ("train-sft", "train-reward") else step


# By step and table that it reads: what is counted there, what the step does with it, and whether that is learning.
_USES: dict[tuple[str, str], tuple[tuple[str, str, bool], ...]] = {
    ("train-sft", "responses"): (("train", "trained on as a story to imitate", True),),
    ("train-preference", "pairs"): (
        ("winner", "trained on as the winner of a pair", True),
        ("loser", "trained on as the loser of a pair", True),
        ("prompt", "trained on as the prompt of a pair", True),
    ),
    ("train-reward", "responses"): (("train", "trained the reward model that measured it", False),),
    ("weight", "responses"): (("train", "compared with for the weights of its prompt's pairs", True),),
    ("evaluate", "responses"): (("test", "evaluated on", False),),
}


class _Tables:
    """What is in which table, found out once for each."""

    def __init__(self, sought: Sought, contents: Contents) -> None:
        self._sought, self._contents = sought, contents
        self._known: dict[str, Found] = {}

    def look(self, origin: Origin, table: Table) -> Found:
        if origin.digest not in self._known:
            self._known[origin.digest] = self._read(origin, table)
        return self._known[origin.digest]

    def _read(self, origin: Origin, table: Table) -> Found:
        tried = []
        with tempfile.TemporaryDirectory() as scratch:
            for place in self._contents.places(origin, None):
                if place.trouble:
                    tried.append(f"{place.name} {place.trouble}")
                    continue
                copy = Path(scratch) / table.name
                try:
                    if fetch(place, origin.digest, copy, lambda _: None):
                        return Found(_count(copy, table, self._sought))
                    tried.append(f"{place.name} differs from its digest")
                except (InputError, OSError, pa.ArrowException) as error:
                    tried.append(f"{place.name}: {error}")
        return Found(trouble="; ".join(tried) or "kept in no DVC cache or remote, nor at a recorded address (`dvc push`)")


def _count(path: Path, table: Table, sought: Sought) -> dict[str, int]:
    """Rows that hold what is sought: by side of the split in responses; by `winner`, `loser`, `prompt` in pairs."""
    if table is RESPONSES:
        columns = {"prompt_id": sought.prompt, "response_id": sought.response, "response": sought.text}
        wanted = {column: (column, value) for column, value in columns.items() if value}
    else:
        wanted = {}
        for what, identity, text in (("winner", "chosen_id", "chosen"), ("loser", "rejected_id", "rejected")):
            if sought.response or sought.text:
                wanted[what] = (identity, sought.response) if sought.response else (text, sought.text)
        if sought.prompt:
            wanted["prompt"] = ("prompt_id", sought.prompt)
    counts: dict[str, int] = {}
    for batch in table.batches(path, [*{column for column, _ in wanted.values()}, "split"]):
        for what, (column, value) in wanted.items():
            for split in batch.filter(pc.equal(batch.column(column), value)).column("split").to_pylist():
                # Pairs of the test side are trained on by nothing.
                key = split if table is RESPONSES else what if split == "train" else "test"
                counts[key] = counts.get(key, 0) + 1
    return counts


def cleaned(text: str) -> str:
    """A story as ingest's default repairs leave it."""
    from components.ingest.params import Repairs
    from components.ingest.repairs import ANY, RESPONSE, repair

    return repair(text, [name for name in (*ANY, *RESPONSE) if getattr(Repairs(), name)])[0]


def counted(impacts: Collection[Impact]) -> dict[str, int]:
    """How many versions there are of each verdict."""
    return {verdict: sum(one.verdict == verdict for one in impacts) for verdict in (LEARNED, MEASURED, UNKNOWN, NOTHING)}
