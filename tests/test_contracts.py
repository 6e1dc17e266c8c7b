"""Tables and files: declared types, bounded batches, whole or absent."""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import contracts
from components.contracts import (
    DEVIATIONS,
    EMBEDDINGS,
    RESPONSES,
    TABLES,
    InputError,
    Table,
    atomic,
    content_id,
    require_passed,
)
from tests.conftest import response_rows

ROWS = [{"response_id": str(i), "prompt_id": str(i // 3), "semantic": i / 7, "style": None, "weight": 1.0} for i in range(50)]


def example(table: Table) -> dict[str, Any]:
    """A row of the table; its vectors have two dimensions."""
    of_type = {pa.string(): "x", pa.int32(): 1, pa.int64(): 1, pa.float64(): 0.5}
    return {c.name: [0.6, 0.8] if c.vector else of_type[c.type] for c in table.columns}


def widths(table: Table) -> dict[str, int]:
    return {c.name: 2 for c in table.columns if c.vector}


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_what_is_written_is_read(tmp_path: Path, table: Table) -> None:
    path, rows = tmp_path / "deep" / "table.parquet", [example(table)] * 3
    table.write(path, rows, metadata={"model": "naïve"}, **widths(table))
    read = table.read(path)
    assert [{**row, **{name: pytest.approx(row[name]) for name in widths(table)}} for row in rows] == read.to_pylist()
    assert read.column_names == table.column_names()
    assert table.count(path) == 3
    assert table.metadata(path) == {"model": "naïve"}
    assert [field.nullable for field in read.schema] == [c.nullable for c in table.columns]
    assert table.read(path, table.column_names()[:1]).num_columns == 1


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.name)
def test_declarations_say_what_columns_mean(table: Table) -> None:
    assert table.meaning
    assert all(column.meaning for column in table.columns)


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(0, len(ROWS)), max_size=8), as_tables=st.booleans())
def test_the_same_rows_give_the_same_bytes_however_batched(cuts: list[int], as_tables: bool) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(contracts, "ROW_GROUP", 8)
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        DEVIATIONS.write(whole, ROWS)
        with DEVIATIONS.writer(parts) as writer:
            for start, stop in zip([0, *sorted(cuts)], [*sorted(cuts), len(ROWS)], strict=True):
                rows = ROWS[start:stop]
                writer.write(pa.Table.from_pylist(rows, DEVIATIONS.schema()) if as_tables else rows)
        assert parts.read_bytes() == whole.read_bytes()
        groups = pq.read_metadata(whole)
        assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == [8] * 6 + [2]


def test_batches(tmp_path: Path) -> None:
    DEVIATIONS.write(tmp_path / "t", ROWS)
    batches = list(DEVIATIONS.batches(tmp_path / "t", ["weight", "response_id"], rows=20))
    assert [batch.num_rows for batch in batches] == [20, 20, 10]
    ids = [name for batch in batches for name in batch.column("response_id").to_pylist()]
    assert ids == [row["response_id"] for row in ROWS]


def test_an_empty_table(tmp_path: Path) -> None:
    DEVIATIONS.write(tmp_path / "t", [])
    assert DEVIATIONS.count(tmp_path / "t") == 0
    assert DEVIATIONS.read(tmp_path / "t").to_pylist() == []
    assert list(DEVIATIONS.batches(tmp_path / "t")) == []


@pytest.mark.parametrize("rows", [[{**ROWS[0], "weight": None}], [{"response_id": "x", "prompt_id": "y"}]])
@pytest.mark.parametrize("as_table", [False, True])
def test_null_is_refused_where_it_is_not_declared(tmp_path: Path, rows: list[dict[str, Any]], as_table: bool) -> None:
    nullable = pa.schema([field.with_nullable(True) for field in DEVIATIONS.schema()])
    with pytest.raises(ValueError, match=r"null"):
        DEVIATIONS.write(tmp_path / "t", pa.Table.from_pylist(rows, nullable) if as_table else rows)
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_another_width_are_refused(tmp_path: Path) -> None:
    with pytest.raises(pa.ArrowInvalid):
        EMBEDDINGS.write(tmp_path / "t", [example(EMBEDDINGS)], semantic=3, style=2)
    assert list(tmp_path.iterdir()) == []


def write_folder(path: Path) -> None:
    path.mkdir()


def write_truncated(path: Path) -> None:
    RESPONSES.write(path, response_rows())
    path.write_bytes(path.read_bytes()[:-40])


def write_without_score(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(response_rows()).drop_columns(["score"]), path)


def write_text_scores(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([{**row, "score": "9"} for row in response_rows()]), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path, "no such responses table. Run the step that writes it."),
        (lambda path: path.write_bytes(b""), "not a Parquet file"),
        (lambda path: path.write_text("prompt,response\n"), "not a Parquet file"),
        (write_truncated, "not a Parquet file"),
        (write_folder, "not a Parquet file"),
        (
            write_without_score,
            "column 'score' is missing, expected double; found columns ['prompt_id', 'prompt',",
        ),
        (write_text_scores, "column 'score' is string, expected double"),
    ],
)
def test_other_files_are_refused_with_their_name(tmp_path: Path, write: Any, message: str) -> None:
    path = tmp_path / "r.parquet"
    write(path)
    for read in (RESPONSES.read, RESPONSES.count, lambda path: list(RESPONSES.batches(path))):
        with pytest.raises(InputError, match=re.escape(message)) as error:
            read(path)
        assert str(error.value).startswith(str(path))


def test_a_list_is_not_a_vector(tmp_path: Path) -> None:
    rows = [{"response_id": "x", "semantic": [1.0], "style": [1.0]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t")
    with pytest.raises(InputError, match=r"'semantic' is list<.*expected fixed_size_list<float>"):
        EMBEDDINGS.read(tmp_path / "t")


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_leaves_what_was_there_when_it_fails(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    path = tmp_path / "out"
    make(path, kind, "old")
    with pytest.raises(error), atomic(path) as partial:
        make(partial, kind, "half")
        raise error
    assert content(path) == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("stale", ["file", "folder"])
@pytest.mark.parametrize("before", ["nothing", "file", "folder"])
def test_atomic_replaces_and_clears_what_a_killed_run_left(tmp_path: Path, kind: str, stale: str, before: str) -> None:
    path = tmp_path / "out"
    make(tmp_path / ".out.partial", stale, "stale")
    if before != "nothing":
        make(path, before, "old")
    with atomic(path) as partial:
        assert not partial.exists()
        make(partial, kind, "new")
    assert content(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def make(path: Path, kind: str, text: str) -> None:
    if kind == "folder":
        (path / "deep").mkdir(parents=True)
        path = path / "deep" / "file"
    path.write_text(text, encoding="utf-8")


def content(path: Path) -> str:
    return (path / "deep" / "file" if path.is_dir() else path).read_text(encoding="utf-8")


def test_a_killed_writer_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from components.contracts import DEVIATIONS, ROW_GROUP\n"
        "row = dict(response_id='x', prompt_id='y', semantic=1.0, style=1.0, weight=1.0)\n"
        "with DEVIATIONS.writer(Path('t.parquet')) as writer:\n"
        "    writer.write([row] * ROW_GROUP)\n"
        "    print('half', flush=True); time.sleep(600)\n"
    )
    root = str(Path(__file__).parents[1])
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=tmp_path, env={"PYTHONPATH": root}, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "half\n"
        writer.send_signal(signal.SIGKILL)
    assert [path.name for path in tmp_path.iterdir()] == [".t.parquet.partial"]
    DEVIATIONS.write(tmp_path / "t.parquet", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """/dev/full answers every write with ENOSPC, as a full disk does."""
    table = pa.Table.from_pylist(ROWS, DEVIATIONS.schema())
    with pytest.raises(OSError, match="No space left") as error, atomic(tmp_path / "t.parquet") as partial:
        partial.symlink_to("/dev/full")
        pq.write_table(table, partial)
    assert error.value.errno == errno.ENOSPC
    assert list(tmp_path.iterdir()) == []
    assert Path("/dev/full").exists()


def test_require_passed(tmp_path: Path) -> None:
    require_passed(None)
    results = tmp_path / "results.json"
    with pytest.raises(InputError, match="not a validation"):
        require_passed(tmp_path)
    results.write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not a validation"):
        require_passed(tmp_path)
    results.write_text(json.dumps({"passed": True}), encoding="utf-8")
    require_passed(tmp_path)
    expectations = [
        {"description": "A holds.", "severity": "critical", "success": False},
        {"description": "B holds.", "severity": "warning", "success": False},
        {"description": "C holds.", "severity": "critical", "success": True},
    ]
    results.write_text(json.dumps({"passed": False, "expectations": expectations}), encoding="utf-8")
    with pytest.raises(InputError, match=r"did not pass validation: does not hold: A holds\. See index.html"):
        require_passed(tmp_path)


def test_ids_are_of_the_content() -> None:
    assert content_id("prompt", "réponse") == "9a92211fd9d35f42"
    assert content_id("prompt") != content_id("prompt", "")
    assert content_id("ab", "c") != content_id("a", "bc")
