"""The tests of registration once more, on a server with PostgreSQL and S3."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2 import sql

from pipelines.platform import Platform
from tests.register.conftest import COMMIT, Pipeline

# Collected here they use the fixture of this module.
from tests.register.test_register_step import (  # noqa: F401
    test_a_broken_lineage_is_refused,
    test_a_changed_artifact_is_refused,
    test_a_model_that_fails_is_registered_as_rejected,
    test_a_model_that_passes_becomes_the_candidate,
    test_a_rejected_version_leaves_the_candidate,
    test_command_line,
    test_digests_are_those_of_the_files,
    test_killed_and_run_again_it_is_one_complete_version,
    test_killed_before_the_version_is_told,
    test_registered_twice_it_is_one_version,
    test_the_registered_folder_is_the_model_with_its_card_and_lineage,
    test_what_differs_is_another_version,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("pipeline")]


@pytest.fixture(scope="module")
def database(trial: Platform) -> Iterator[Any]:
    """A cursor of the server's database, for this module only: others restart the server."""
    address = trial.database.replace("+psycopg2", "")
    # As a context, a connection would begin a transaction, and hold what it has locked.
    with closing(psycopg2.connect(address, passfile=trial.password_file)) as connection:
        connection.autocommit = True
        yield connection.cursor()


@pytest.fixture(scope="module")
def recorded_there(
    trial: Platform, database: Any, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Pipeline, list[str]]:
    """The pipeline's artifacts, its runs in copies of the tables that are not empty, and the names of all tables."""
    folder = tmp_path_factory.mktemp("pipeline-there")
    made = Pipeline(adapter)
    # Runs that other modules have left made the same digests, and would stand in for one that is missing.
    database.execute("TRUNCATE runs, registered_models CASCADE")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", trial.uri)
        patch.setenv("POLYPHONY_COMMIT", COMMIT)
        made.write()
        made.record()
    database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    tables = [name for (name,) in database.fetchall()]
    database.execute("CREATE SCHEMA kept")
    for name in tables:
        database.execute(sql.SQL("CREATE TABLE kept.{0} AS TABLE public.{0}").format(sql.Identifier(name)))
        if not database.rowcount:
            database.execute(sql.SQL("DROP TABLE kept.{}").format(sql.Identifier(name)))
    return folder, made, tables


@pytest.fixture
def pipeline(
    recorded_there: tuple[Path, Pipeline, list[str]],
    trial: Platform,
    database: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Pipeline:
    """As the fixture of that name on files: every test finds the runs as they were recorded, and no model."""
    folder, made, tables = recorded_there
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    names = [sql.Identifier("public", name) for name in tables]
    # No foreign keys are looked at meanwhile.
    restore = [sql.SQL("SET LOCAL session_replication_role = replica; TRUNCATE {}").format(sql.SQL(", ").join(names))]
    database.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'kept'")
    kept = [sql.Identifier(name) for (name,) in database.fetchall()]
    restore += [sql.SQL("INSERT INTO public.{0} TABLE kept.{0}").format(name) for name in kept]
    database.execute(sql.SQL("BEGIN; {}; COMMIT").format(sql.SQL("; ").join(restore)))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trial.uri)
    monkeypatch.setenv("POLYPHONY_COMMIT", COMMIT)
    return Pipeline(made.adapter, dict(made.runs))
