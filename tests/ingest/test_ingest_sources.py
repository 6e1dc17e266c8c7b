"""The same stories, wherever they are and however they are written, give the same responses."""

from __future__ import annotations

import functools
import http.server
import json
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from components.contracts import REJECTS, RESPONSES, InputError, content_id
from components.ingest.fetch import source_path
from components.ingest.params import Params
from components.lineage import digest
from tests.ingest.sources import Row, as_bytes, by_prompt, good_rows

KINDS = ("jsonl", "csv", "parquet", "jsonl.gz", "csv.gz", "parquet.gz")
# With what CSV must quote and what is not ASCII.
GOOD = [row | {"response": f'{row["response"]} "Ja", said Zoë,\nand left…'} for row in good_rows()]


@pytest.fixture
def expected(ingest: Callable[..., Any]) -> str:
    return digest(ingest(GOOD).responses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", [list, by_prompt])
def test_every_layout_and_form(
    ingest: Callable[..., Any], expected: str, kind: str, layout: Callable[[list[Row]], list[Row]]
) -> None:
    result = ingest(layout(GOOD), kind)
    assert digest(result.responses) == expected
    assert result.faults() == []


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz"])
def test_the_form_is_seen_where_the_name_does_not_tell(
    ingest: Callable[..., Any], expected: str, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "source.data"
    path.write_bytes(as_bytes(GOOD, kind))
    assert digest(ingest(path).responses) == expected


def test_other_columns_order_of_columns_bom_and_crlf_do_not_matter(ingest: Callable[..., Any], expected: str) -> None:
    rows = [{"response_id": "gpt-x", "source": "here", **dict(reversed(row.items())), "prompt_id": 7} for row in GOOD]
    for kind in KINDS[:3]:
        data = as_bytes(rows, kind)
        if kind != "parquet":
            data = b"\xef\xbb\xbf" + data.replace(b"}\n", b"}\r\n")
        assert digest(ingest(data, kind).responses) == expected


@given(st.randoms(use_true_random=False))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_row_order_does_not_matter(ingest: Callable[..., Any], shuffler: random.Random) -> None:
    """Neither for clean rows nor for those that are repaired, rejected, or there twice with another score."""
    rows = [
        *GOOD,
        *(row | {"score": row["score"] + 1, "response": f"{row['response']}\r\n\r\nEdit: typo"} for row in GOOD[:4]),
        *(row | {"score": 2.5} for row in GOOD[2:5]),
        *(row | {"prompt": f"[WP] {row['prompt']}"} for row in GOOD[5:7]),
        GOOD[0] | {"response": " "},
        GOOD[0] | {"prompt": "Alone."},
    ]
    expected, faults = (result := ingest(rows)).responses, result.faults()
    shuffler.shuffle(rows)
    result = ingest(rows, kind="parquet")
    assert digest(result.responses) == digest(expected)
    assert sorted(reason for _, reason in result.faults()) == sorted(reason for _, reason in faults)
    assert result.metrics["prompts"]["all"] == 4


def test_rows_are_sorted_and_their_ids_are_of_their_texts(ingest: Callable[..., Any]) -> None:
    rows = ingest(GOOD).rows()
    assert rows == sorted(rows, key=lambda row: (row["prompt_id"], row["response_id"]))
    assert {(row["prompt"], row["response"], row["score"]) for row in rows} == {tuple(row.values()) for row in GOOD}
    for row in rows:
        assert row["prompt_id"] == content_id(row["prompt"])
        assert row["response_id"] == content_id(row["prompt"], row["response"])


def test_a_folder_is_one_source(ingest: Callable[..., Any], expected: str, tmp_path: Path) -> None:
    folder = tmp_path / "stories"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "c.jsonl.gz").write_bytes(as_bytes([*GOOD[:5], GOOD[0] | {"response": ""}], "jsonl.gz"))
    (folder / "a.parquet").write_bytes(as_bytes(by_prompt(GOOD[5:9]), "parquet"))
    (folder / "d.csv").write_bytes(as_bytes(GOOD[9:], "csv"))
    (folder / "README.md").write_text("Not stories.")
    (folder / ".hidden.jsonl").write_text("Not stories either.")
    result = ingest(folder)
    assert digest(result.responses) == expected
    assert result.metrics["files"] == 3
    assert [(row["file"], row["row"]) for row in REJECTS.read(result.rejects).to_pylist()] == [("b/c.jsonl.gz", 6)]


def test_parquet_of_other_string_types(ingest: Callable[..., Any], expected: str, tmp_path: Path) -> None:
    table = pa.Table.from_pylist(GOOD)
    table = table.set_column(0, "prompt", table["prompt"].dictionary_encode())
    table = table.set_column(1, "response", table["response"].cast(pa.large_string()))
    pq.write_table(table, tmp_path / "other.parquet")
    assert digest(ingest(tmp_path / "other.parquet").responses) == expected


# Sources elsewhere.


def fetched(source: str) -> Path:
    return source_path({"ingest": Params(source=source)})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A web server on this machine: its folder and its address."""
    folder = tmp_path / "www"
    folder.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_http(ingest: Callable[..., Any], expected: str, server: tuple[Path, str]) -> None:
    folder, address = server
    # Links in the stories must not make it look like a folder.
    linked = [row | {"response": f"{row['response']} {address}/stories.jsonl/more"} for row in GOOD]
    for name, rows in (("stories.jsonl", linked), ("stories.csv.gz", GOOD)):
        (folder / name).write_bytes(as_bytes(rows, name.partition(".")[2]))
        path = fetched(f"{address}/{name}?version=1")
        assert path.name == name
        assert path.read_bytes() == (folder / name).read_bytes()
    assert digest(ingest(path).responses) == expected
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file or folder"):
        fetched(f"{address}/missing.jsonl")


def test_an_unreachable_server() -> None:
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:9/x\.jsonl: "):
        fetched("http://127.0.0.1:9/x.jsonl")


def test_a_folder_of_a_file_system_by_url(ingest: Callable[..., Any], expected: str) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/set/a.jsonl": as_bytes(GOOD[:7], "jsonl"), "/bucket/set/b/c.csv": as_bytes(GOOD[7:], "csv")})
    memory.pipe({"/bucket/set/card.md": b"not stories", "/bucket/other/x.jsonl": b"{}"})
    path = fetched("memory://bucket/set")
    assert sorted(str(file.relative_to(path)) for file in path.rglob("*.*")) == ["a.jsonl", "b/c.csv"]
    assert digest(ingest(path).responses) == expected
    with pytest.raises(InputError, match=r"no \.jsonl, \.csv or \.parquet file in it"):
        memory.pipe("/bucket/none/card.md", b"not stories")
        fetched("memory://bucket/none")
    with pytest.raises(InputError, match="no such file or folder"):
        fetched("memory://bucket/nowhere")


def test_local_sources_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_bytes(as_bytes(GOOD, "jsonl"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert fetched(f"file://{path}") == fetched(str(path)) == fetched("~/stories.jsonl") == path


def test_a_copied_source_is_removed_at_the_end(ingest: Callable[..., Any]) -> None:
    fsspec.filesystem("memory").pipe("/once.jsonl", as_bytes(GOOD, "jsonl"))
    ingest(fetched("memory://once.jsonl"))
    assert not Path(".work/ingest").exists()


@pytest.mark.parametrize("url", ["nosuchprotocol://x/y.jsonl", "s3://"])
def test_urls_that_nothing_can_open(url: str) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        fetched(url)


def test_in_the_table_nothing_else_is_kept(ingest: Callable[..., Any]) -> None:
    """A response_id often names the model that wrote it."""
    result = ingest([row | {"response_id": "secret-model", "source": "secret"} for row in GOOD])
    assert RESPONSES.read(result.responses).schema.names == RESPONSES.column_names()
    assert "secret" not in json.dumps(result.rows())
