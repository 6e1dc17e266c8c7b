"""Where versions and runs are looked up: in MLflow's SQLite file, at its server, or, where it is neither, through MLflow."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, Protocol

from components.contracts import InputError
from components.lineage import PRODUCED, take_credentials_out, tracking_client
from components.live import short
from components.origin import MlflowRecords, Record, Records, Wanted, as_record

# Values that one statement is given.
_VALUES = 500
# What else may say where the store is and who may ask.
_MLFLOWS = ("MLFLOW_REGISTRY_URI", "MLFLOW_TRACKING_AUTH", "MLFLOW_TRACKING_AWS_SIGV4", "MLFLOW_WORKSPACE")
# What MLflow calls a name or a number that it does not know.
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}


class AwayError(InputError):
    """The store does not answer, or not to this account: nothing is known of what was asked."""


@dataclass(frozen=True)
class Version:
    """A registered model version. `source` is where its files lie, `run_id` the run that registered it."""

    name: str
    version: str
    run_id: str
    source: str
    aliases: tuple[str, ...]
    tags: Mapping[str, str]

    def __str__(self) -> str:
        return f"{self.name} version {self.version}"


class Store(Records, Protocol):
    """Records of runs, and the registry."""

    def record(self, run_id: str) -> Record | None:
        """What a run recorded; None where there is no such run."""

    def version(self, name: str, version: str = "", alias: str = "") -> Version:
        """A version by its number or by its alias.

        Raises:
            InputError: if there is none.
        """

    def versions(self) -> list[Version]:
        """All versions of all models; makes ready for being asked where each comes from."""


def open_store() -> Store:
    """The store named by `MLFLOW_TRACKING_URI`; `mlflow.db` in the working directory otherwise."""
    take_credentials_out()
    address = os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if any(os.environ.get(name) for name in _MLFLOWS):
        return MlflowStore()
    if address.startswith(("http://", "https://")):
        from components.trace.rest import RestStore

        try:
            return RestStore(address)
        except (OSError, HTTPException, ValueError, KeyError):
            # MLflow knows more ways to get in, waits longer, and says why it does not.
            return MlflowStore()
    if address.startswith("sqlite:///"):
        path = Path(address.removeprefix("sqlite:///"))
        if not path.is_file():
            raise InputError(f"{path}: no such MLflow store. Name it in MLFLOW_TRACKING_URI, or run in the folder that has it.")
        store = SqliteStore(path)
        if store.readable():
            return store
    return MlflowStore()


class MlflowStore(MlflowRecords):
    """Any store that MLflow knows."""

    def __init__(self) -> None:
        from mlflow.exceptions import MlflowException

        try:
            super().__init__(tracking_client())
        except MlflowException as error:
            raise InputError(f"MLflow does not open its store, MLFLOW_TRACKING_URI: {short(error)}") from error

    def record(self, run_id: str) -> Record | None:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise AwayError(f"MLflow does not say what run {run_id} is: {short(error)}") from error
            return None
        return as_record(run) if run.info.lifecycle_stage == "active" else None

    def version(self, name: str, version: str = "", alias: str = "") -> Version:
        from mlflow.exceptions import MlflowException

        try:
            found = (
                self._client.get_model_version_by_alias(name, alias) if alias else self._client.get_model_version(name, version)
            )
        except MlflowException as error:
            if error.error_code not in ABSENT:
                raise AwayError(f"MLflow does not say what {name} is: {short(error)}") from error
            raise none(name, version, alias) from error
        # A version that was looked up by its alias does not tell its aliases.
        return _version(self._client.get_model_version(name, found.version))

    def versions(self) -> list[Version]:
        models = _all(self._client.search_registered_models)
        aliases = [(model.name, version, alias) for model in models for alias, version in model.aliases.items()]
        return with_aliases(map(_version, _all(self._client.search_model_versions)), aliases)


def with_aliases(versions: Iterable[Version], aliases: Iterable[tuple[str, Any, str]]) -> list[Version]:
    """Versions that were searched for, which do not tell their aliases, with those of their models: name, version, alias."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, version, alias in aliases:
        found.setdefault((name, str(version)), []).append(alias)
    return [replace(one, aliases=tuple(sorted(found.get((one.name, one.version), [])))) for one in versions]


def _all(search: Callable[..., Any]) -> Iterator[Any]:
    """What a search of MLflow's finds, page by page."""
    token = None
    while token != "":
        page = search(max_results=200, page_token=token)
        yield from page
        token = page.token or ""


def _version(found: Any) -> Version:
    return Version(
        *(found.name, str(found.version), found.run_id or "", found.source or ""),
        tuple(sorted(found.aliases)),
        dict(found.tags),
    )


def none(name: str, version: str, alias: str) -> InputError:
    """What to say where there is no such version."""
    wanted = f"{name}@{alias}" if alias else f"{name}/{version}"
    return InputError(f"{wanted}: no such version in the registry. `polyphony history --model {name}` lists what there is.")


class SqliteStore:
    """MLflow's own tables, read only. Importing MLflow takes longer than all that is asked of it here."""

    def __init__(self, path: Path) -> None:
        self._database = sqlite3.connect(f"file:{path.resolve()}?mode=ro", uri=True)

    def readable(self) -> bool:
        """Whether the tables are those that are known here."""
        try:
            self.makers([("", None)])
            self.versions()
        except sqlite3.Error:
            return False
        return True

    def makers(self, wanted: Collection[Wanted]) -> dict[Wanted, Record | None]:
        made: dict[str, list[tuple[int, str]]] = {digest: [] for digest, _ in wanted}
        # `key` is the first column of the primary key of tags.
        rows = self._rows(
            "SELECT tags.key, runs.start_time, runs.run_uuid FROM tags JOIN runs ON runs.run_uuid = tags.run_uuid "
            "WHERE runs.status = 'FINISHED' AND runs.lifecycle_stage = 'active' AND tags.key IN ({})",
            [PRODUCED + digest for digest in made],
        )
        for key, started, run_id in rows:
            made[key.removeprefix(PRODUCED)].append((started, run_id))
        chosen = {one: _last(made[one[0]], one[1]) for one in wanted}
        records = self._records({run[1]: run[0] for run in chosen.values() if run is not None})
        return {one: records[run[1]] if run is not None else None for one, run in chosen.items()}

    def record(self, run_id: str) -> Record | None:
        query = "SELECT start_time FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
        row = self._database.execute(query, (run_id,)).fetchone()
        return self._records({run_id: row[0]})[run_id] if row else None

    def _records(self, started: Mapping[str, int]) -> dict[str, Record]:
        kept: dict[str, dict[str, dict[str, str]]] = {run: {"tags": {}, "params": {}} for run in started}
        for table in ("tags", "params"):
            statement = f"SELECT run_uuid, key, value FROM {table} WHERE run_uuid IN ({{}})"  # noqa: S608 - two names, above
            for run_id, key, value in self._rows(statement, list(started)):
                kept[run_id][table][key] = value
        return {run: Record(run, started[run], found["tags"], found["params"]) for run, found in kept.items()}

    def version(self, name: str, version: str = "", alias: str = "") -> Version:
        if alias:
            query = "SELECT version FROM registered_model_aliases WHERE name = ? AND alias = ?"
            row = self._database.execute(query, (name, alias)).fetchone()
            if row is None:
                raise none(name, version, alias)
            version = str(row[0])
        found = self._versions("name = ? AND version = ?", (name, version))
        if not found:
            raise none(name, version, alias)
        return found[0]

    def versions(self) -> list[Version]:
        return self._versions("1", ())

    def _versions(self, condition: str, values: tuple[str, ...]) -> list[Version]:
        def all_of(columns: str, table: str) -> Iterator[tuple[Any, ...]]:
            yield from self._database.execute(f"SELECT name, version, {columns} FROM {table} WHERE {condition}", values)  # noqa: S608

        tags: dict[tuple[str, int], dict[str, str]] = {}
        for name, version, key, value in all_of("key, value", "model_version_tags"):
            tags.setdefault((name, version), {})[key] = value
        aliases: dict[tuple[str, int], list[str]] = {}
        for name, version, alias in all_of("alias", "registered_model_aliases"):
            aliases.setdefault((name, version), []).append(alias)
        return [
            Version(
                name,
                str(number),
                run_id or "",
                source or "",
                tuple(sorted(aliases.get((name, number), []))),
                tags.get((name, number), {}),
            )
            for name, number, run_id, source, stage in all_of("run_id, source, current_stage", "model_versions")
            if stage != "Deleted_Internal"
        ]

    def _rows(self, statement: str, values: list[str]) -> Iterator[tuple[Any, ...]]:
        """The rows of a statement with `{}` in place of the values, which are given a share at a time."""
        for start in range(0, len(values), _VALUES):
            share = values[start : start + _VALUES]
            yield from self._database.execute(statement.format(", ".join("?" * len(share))), share)


def _last(runs: list[tuple[int, str]], before: int | None) -> tuple[int, str] | None:
    """The last that started before that time, the last of all where none did; None where there is none."""
    earlier = [run for run in runs if before is None or run[0] < before]
    return max(earlier or runs, default=None)
