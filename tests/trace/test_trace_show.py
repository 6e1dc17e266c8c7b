"""`polyphony lineage show`: the whole tree, from either way of reading the store, and nothing unclean hidden."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from components.contracts import InputError
from components.lineage import RAW, digest
from components.trace.ancestry import find
from components.trace.render import page, text
from components.trace.store import MlflowStore, SqliteStore, open_store
from pipelines.front_door import main as polyphony
from tests.trace.conftest import Project


def test_the_tree_reaches_from_the_version_to_the_raw_data(project: Project) -> None:
    ancestry = find("polyphony@champion", open_store())
    assert ancestry.label == "polyphony version 1 @champion"
    assert ancestry.model.step == "train-ddpo"
    assert {origin.step for origin in ancestry.walk()} == {*project.runs, ""} - {"register"}
    assert ancestry.registration is not None and ancestry.registration.run_id == project.runs["register"]
    assert (
        text(ancestry).splitlines()[3].startswith(f"version {ancestry.registration.digest}  << register [{len(project.runs)}]")
    )
    assert [origin.digest for origin in ancestry.walk() if origin.name == RAW] == [digest(Path("stories.jsonl"))]
    assert list(ancestry.runs()) == list(project.runs.values())
    assert ancestry.problems() == []


@pytest.mark.parametrize("target", ["polyphony/1", "models/ddpo", "digest"])
def test_ways_to_ask(project: Project, target: str) -> None:
    ancestry = find(digest(Path("models/ddpo")) if target == "digest" else target, open_store())
    assert ancestry.model.run_id == project.runs["train-ddpo"]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("target", ["polyphony@best", "polyphony/9", "other@champion", "nothing at all"])
def test_what_does_not_exist_is_told(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert polyphony(["lineage", "show", target]) == 1
    assert target in capsys.readouterr().err


@pytest.mark.usefixtures("project")
def test_the_file_and_mlflow_say_the_same() -> None:
    """The tables are MLflow's own, and may change with its version."""
    mine, theirs = open_store(), MlflowStore()
    assert isinstance(mine, SqliteStore)
    assert sorted(mine.versions(), key=str) == sorted(theirs.versions(), key=str) != []
    assert mine.version("polyphony", alias="champion") == theirs.version("polyphony", alias="champion")
    one, other = find("polyphony/1", mine), find("polyphony/1", theirs)
    assert one == other
    assert [o.record for o in one.walk()] == [o.record for o in other.walk()]
    for store in (mine, theirs):
        with pytest.raises(InputError, match="polyphony/9"):
            store.version("polyphony", "9")


def test_tables_of_another_version_are_left_to_mlflow(project: Project) -> None:
    with sqlite3.connect("mlflow.db") as database:
        database.execute("ALTER TABLE tags RENAME TO labels")
    assert not SqliteStore(project.folder / "mlflow.db").readable()


@pytest.mark.usefixtures("project")
def test_each_look_up_is_one_in_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked reads the rows of the digests in question, and no table as a whole."""
    wanted: list[tuple[str, int | None]] = [(digest(Path("models/ddpo")), None), (digest(Path("pairs.parquet")), 2**50)]
    database = sqlite3.connect("mlflow.db")

    def plan(statement: str, values: Any) -> list[str]:
        return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]

    asked: list[str] = []
    store = SqliteStore(Path("mlflow.db"))
    inner = store._rows

    def rows(statement: str, values: list[str]) -> Any:
        asked.extend(plan(statement.format(", ".join("?" * len(values))), values))
        return inner(statement, values)

    monkeypatch.setattr(store, "_rows", rows)
    assert all(store.makers(wanted).values())
    assert asked and not [step for step in asked if step.startswith("SCAN")]

    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    asked.clear()
    theirs = MlflowStore()

    def listen(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
        if "tags" in statement and "produced." in str(values):
            asked.extend(plan(statement, values))

    event.listen(Engine, "before_cursor_execute", listen)
    try:
        assert all(theirs.makers(wanted).values())
    finally:
        event.remove(Engine, "before_cursor_execute", listen)
    scans = [step for step in asked if step.startswith("SCAN") and not step.startswith("SCAN anon")]
    assert asked and not scans


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no such MLflow store"):
        open_store()
    assert not (tmp_path / "mlflow.db").exists()


def test_text_shows_every_artifact_once_and_every_run_whole(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_IMAGE", "registry/model@sha256:1")
    monkeypatch.setenv("POLYPHONY_RUN_ID", "run-7")
    project.do("weight", {"responses": "responses.parquet"}, {"pairs": "pairs.parquet"})
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    shown = text(find("models/ddpo", open_store()))
    lines = shown.splitlines()
    assert sum("<< ingest" in line for line in lines) == 1
    assert sum("raw data" in line for line in lines) == 1
    for value in (project.commit[:12], "registry/model@sha256:1", "kubeflow run-7", "torch 2", project.runs["weight"]):
        assert value in shown
    assert "train.preference.beta=0.1" in shown
    assert "weight.floor=0.0" in shown


@pytest.mark.parametrize(
    ("commit", "dirty", "word"),
    [("a" * 40, "true", "DIRTY"), ("unknown", "unknown", "UNKNOWN COMMIT"), ("a" * 40, "unknown", "DIRTY")],
)
def test_nothing_unclean_is_hidden(
    project: Project, commit: str, dirty: str, word: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Deep in the tree, and where a clean run made the same before."""
    from components import provenance

    monkeypatch.setattr(provenance, "git_state", lambda: {"commit": commit, "dirty": dirty})
    run = project.do("weight", {"responses": "responses.parquet"}, {"pairs": "pairs.parquet"})
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    ancestry = find(digest(Path("models/ddpo")), open_store())
    assert any(run in problem for problem in ancestry.problems())
    assert word in text(ancestry)
    assert word in page(ancestry)
    assert polyphony(["lineage", "show", "models/ddpo", "--json"]) == 0
    assert any(run in problem for problem in json.loads(capsys.readouterr().out)["problems"])


def test_a_gap_is_shown_where_it_is(project: Project) -> None:
    from components.lineage import tracking_client

    tracking_client().delete_run(project.runs["ingest"])
    ancestry = find("polyphony/1", open_store())
    assert "no recorded run produced responses" in ancestry.problems()[0]
    assert "UNKNOWN ORIGIN" in text(ancestry)
    assert "unknown origin" in page(ancestry)


def test_json_names_all_and_is_whole(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    assert polyphony(["lineage", "show", "polyphony@champion", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["version"]["aliases"] == ["champion"]
    assert set(told["runs"]) == set(project.runs.values())
    assert told["runs"][project.runs["train-ddpo"]]["parameters"]["train"]["preference"]["beta"] == 0.1
    artifacts = told["artifacts"]
    assert all(source in artifacts for entry in artifacts.values() for source in entry["inputs"])
    assert told["model"] in artifacts[told["evaluation"]]["inputs"]


@pytest.mark.usefixtures("project")
def test_the_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    target = tmp_path / "lineage.html"
    assert polyphony(["lineage", "show", "polyphony@champion", "--html", str(target)]) == 0
    shown = target.read_text(encoding="utf-8")
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert "tiny <b>" not in shown and "tiny &lt;b&gt;" in shown
    assert "src=" not in shown and "href=" not in shown
    assert "width=device-width" in shown and "prefers-color-scheme: dark" in shown
