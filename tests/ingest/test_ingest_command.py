"""What the command line says of bad sources and bad parameters: one clear message, the right exit status, nothing half done."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from components.ingest.__main__ import STEP
from tests.conftest import story
from tests.ingest.sources import as_bytes, by_prompt, good_rows

GOOD = good_rows()
Command = Callable[..., Any]


@pytest.fixture
def source(tmp_path: Path) -> Callable[[bytes, str], Path]:
    def write(data: bytes, name: str) -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


def test_good_rows(command: Command, source: Any, tmp_path: Path) -> None:
    ended = command(source(as_bytes(GOOD, "jsonl"), "s.jsonl"))
    assert ended.status == 0
    assert "ingest: 12 rows read; rejected: none" in ended.log
    assert not (tmp_path / ".work" / "ingest").exists()


def test_a_missing_source(command: Command) -> None:
    ended = command("nowhere/stories.jsonl")
    assert ended.status == 1
    assert "nowhere/stories.jsonl: no such file or folder. Correct ingest.source" in ended.error


@pytest.mark.parametrize("kind", ["jsonl", "csv", "jsonl.gz", "csv.gz"])
def test_an_empty_source(command: Command, source: Any, kind: str) -> None:
    ended = command(source(b"", f"s.{kind}"))
    assert ended.status == 1
    assert f"s.{kind}: empty, it holds no rows; expected prompt, response, score, or post_title, " in ended.error


@pytest.mark.parametrize("kind", ["parquet", "parquet.gz"])
def test_an_empty_parquet_file(command: Command, source: Any, kind: str) -> None:
    ended = command(source(b"", f"s.{kind}"))
    assert ended.status == 1
    assert f"s.{kind}: not a Parquet file, or a damaged one" in ended.error


def test_an_empty_folder(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("x")
    ended = command(tmp_path / "empty")
    assert ended.status == 1
    assert "empty: no .jsonl, .csv or .parquet file in it (also .gz), only ['notes.txt']" in ended.error


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_wrong_columns_names_those_found_and_those_expected(command: Command, source: Any, kind: str) -> None:
    rows = [{"question": row["prompt"], "answer": row["response"], "votes": row["score"]} for row in GOOD]
    ended = command(source(as_bytes(rows, kind), f"s.{kind}"))
    assert ended.status == 1
    assert "question, answer, votes; expected prompt, response, score, or post_title, post_text, comment_texts, " in ended.error
    assert f"s.{kind}: " in ended.error


def test_very_many_and_very_long_columns_make_a_short_message(command: Command, source: Any) -> None:
    ended = command(source(as_bytes([{f"{i} {'x' * 5000}": i for i in range(300)}], "csv"), "s.csv"))
    assert ended.status == 1
    assert "wrong columns" in ended.error
    assert max(map(len, ended.error.splitlines())) < 2000


def test_malformed_json_at_a_line(command: Command, source: Any) -> None:
    """As long as something usable is left, it is no error; which line it is, is said."""
    data = as_bytes(GOOD, "jsonl").splitlines(keepends=True)
    ended = command(source(b"".join([*data[:6], b'{"prompt": \n', *data[6:]]), "s.jsonl"))
    assert ended.status == 0
    assert "13 rows read; rejected: malformed 1 (first: s.jsonl row 7)" in ended.log


def test_a_json_array(command: Command, source: Any) -> None:
    ended = command(source(json.dumps(GOOD).encode(), "s.json"))
    assert ended.status == 1
    assert "nothing usable is left" in ended.error
    assert "malformed 1 (first: s.json row 1)" in ended.error
    assert "It looks like a JSON array; write one object per line." in ended.error


@pytest.mark.parametrize("kind", ["jsonl.gz", "csv.gz", "parquet.gz"])
def test_a_truncated_gzip(command: Command, source: Any, kind: str) -> None:
    data = as_bytes([row | {"response": story(i, 90)} for i, row in enumerate(GOOD)], kind)
    ended = command(source(data[: len(data) // 2], f"s.{kind}"))
    assert ended.status == 1
    assert f"s.{kind}: the gzip file is damaged or cut short: " in ended.error
    assert "Fetch it again." in ended.error
    if kind != "parquet.gz":
        assert "read up to line " in ended.error


def test_a_gzip_that_is_none(command: Command, source: Any) -> None:
    ended = command(source(as_bytes(GOOD, "jsonl"), "s.jsonl.gz"))
    assert ended.status == 1
    assert "s.jsonl.gz: not a gzip file, or a damaged one" in ended.error


def test_a_truncated_parquet(command: Command, source: Any) -> None:
    ended = command(source(as_bytes(GOOD, "parquet")[:-20], "s.parquet"))
    assert ended.status == 1
    assert "s.parquet: not a Parquet file, or a damaged one: read up to row 0" in ended.error


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (as_bytes(GOOD, "csv").decode().encode("utf-16"), "text in UTF-16"),
        (as_bytes(GOOD, "csv").decode().encode("utf-16-le"), "binary data, or text in UTF-16"),
        (b"PK\x03\x04 and so on", "a zip archive"),
        (bytes(range(256)) * 4 + b"\0" * 200, "binary data"),
    ],
)
def test_other_kinds_of_file(command: Command, source: Any, data: bytes, what: str) -> None:
    ended = command(source(data, "s.csv"))
    assert ended.status == 1
    assert f"s.csv: {what}" in ended.error


def test_nothing_is_utf8(command: Command, source: Any) -> None:
    rows = [row | {"response": f"café {row['response']}"} for row in GOOD]
    data = b"".join(json.dumps(row, ensure_ascii=False).encode("latin-1") + b"\n" for row in rows)
    ended = command(source(data, "s.jsonl"))
    assert ended.status == 1
    assert "nothing usable is left" in ended.error
    assert "12 rows read; rejected: not_utf8 12 (first: s.jsonl row 1)." in ended.error


@pytest.mark.parametrize("scores", ["text", "nan"])
def test_no_score_is_a_number(command: Command, source: Any, scores: str) -> None:
    rows = [row | {"score": "many" if scores == "text" else float("nan")} for row in GOOD]
    ended = command(source(as_bytes(by_prompt(rows), "jsonl"), "s.jsonl"))
    assert ended.status == 1
    assert "nothing usable is left" in ended.error
    assert "score_not_a_number 12 (first: s.jsonl row 1)" in ended.error


def test_no_prompt_left_on_one_side(command: Command, source: Any) -> None:
    ended = command(source(as_bytes(GOOD[:3], "jsonl"), "s.jsonl"))
    assert ended.status == 1
    assert "one prompt is left, and the other side of the split would have none; at least two prompts are needed" in ended.error


def test_everything_is_too_long(command: Command, source: Any) -> None:
    rows = [row | {"response": f"{i} {'y' * 76_000}"} for i, row in enumerate(GOOD)]
    ended = command(source(as_bytes(rows, "csv"), "s.csv"))
    assert ended.status == 1
    assert "too_long 12 (first: s.csv row 2)" in ended.error


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"min_respones": 3}, "ingest.min_respones: unknown parameter; did you mean 'min_responses'?"),
        ({"rules": {"toolong": False}}, "ingest.rules.toolong: unknown parameter; did you mean 'too_long'?"),
        ({"repairs": {"html": False}}, "ingest.repairs.html: unknown parameter"),
        ({"test_share": 1.0}, "ingest.test_share: Input should be less than 1"),
        ({"min_responses": 0}, "ingest.min_responses: Input should be greater than or equal to 1"),
        ({"seed": "one"}, "ingest.seed: Input should be a valid integer"),
        ({"max_prompts": 1}, "ingest.max_prompts: Value error, must be 0 or at least 2"),
        ({"source": ""}, "ingest.source: "),
    ],
)
def test_parameters(command: Command, section: dict[str, Any], message: str) -> None:
    ended = command(**{"source": "nowhere"} | section)
    assert ended.status == 2
    assert message in ended.error


@pytest.mark.parametrize(
    ("models", "status", "message"),
    [
        ({"language": "no-such-model"}, 1, "model 'no-such-model': no such folder, and neither a hub id"),
        ({"language": "nobody/no-such-model"}, 1, "not in the local hub cache, and the hub is out of reach"),
        ({"language": "."}, 1, "model '.': no tokenizer can be loaded from ."),
        ({"max_tokens": 3}, 2, "models.max_tokens: Input should be greater than or equal to 16"),
    ],
)
def test_models(command: Command, source: Any, models: dict[str, Any], status: int, message: str) -> None:
    ended = command(source(as_bytes(GOOD, "jsonl"), "s.jsonl"), models=models)
    assert ended.status == status
    assert message in ended.error


def test_raw_takes_the_place_of_the_source(source: Any, command: Command, tmp_path: Path) -> None:
    path = source(as_bytes(GOOD, "jsonl"), "s.jsonl")
    assert command(path).status == 0
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace(str(path), "nowhere.jsonl"))
    outputs = ["--responses", str(tmp_path / "r.parquet"), "--rejects", str(tmp_path / "j.parquet")]
    assert STEP.main(["--params", str(params), "--raw", str(path), *outputs]) == 0
    assert (tmp_path / "r.parquet").read_bytes() == (tmp_path / "out" / "responses.parquet").read_bytes()
