"""The step: every distinct text once, in order, killed and continued with the same bytes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.contracts import EMBEDDINGS, RESPONSES, InputError, content_id
from components.embed import step
from components.embed.__main__ import STEP
from components.embed.gather import main as gather
from components.embed.params import Params
from components.embed.step import run
from components.lineage import digest
from components.models.params import Params as Models
from components.models.stylometric import features
from tests.conftest import response_rows, story

STYLES = Models(semantic="stylometric", style="stylometric")


def embed(
    responses: Path,
    out: Path,
    models: Models = STYLES,
    validation: Path | None = None,
    shard: int = 0,
    of: int = 1,
    **options: Any,
) -> dict[str, Any]:
    inputs = {"responses": responses, "validation": validation}
    return run(embed=Params(**options), models=models, **inputs, embeddings=out, shard=shard, of=of)


def write(path: Path, texts: list[str]) -> Path:
    """A responses table of these texts, each under a prompt of its own."""
    row = {"score": 1.0, "split": "train"}
    ids = [(f"{i:04}", text) for i, text in enumerate(texts)]
    rows = [row | {"prompt_id": i, "prompt": i, "response_id": content_id(i, text), "response": text} for i, text in ids]
    RESPONSES.write(path, rows)
    return path


def matrix(path: Path, kind: str) -> np.ndarray[Any, Any]:
    return np.array(EMBEDDINGS.read(path).column(kind).to_pylist(), np.float32)


def test_unit_vectors_in_the_order_of_the_responses(tmp_path: Path, responses: Path) -> None:
    metrics = embed(responses, out := tmp_path / "e.parquet", batch_size=3, chunk=5)
    rows = response_rows()
    assert EMBEDDINGS.read(out).column("response_id").to_pylist() == [row["response_id"] for row in rows]
    for kind in ("semantic", "style"):
        np.testing.assert_allclose(matrix(out, kind), [features(row["response"]) for row in rows], atol=1e-7)
        np.testing.assert_allclose(np.linalg.norm(matrix(out, kind), axis=1), 1, atol=1e-6)
    assert EMBEDDINGS.metadata(out) == {"semantic": "stylometric", "style": "stylometric"}
    width = matrix(out, "style").shape[1]
    assert metrics == {
        "texts": len(rows),
        "distinct_texts": len(rows),
        "width": {"semantic": width, "style": width},
        "truncated": {"semantic": 0, "style": 0},
    }
    assert not any(Path(".work/embed").iterdir())


def test_the_packaged_embedders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they cut is counted, and the bytes are the same in any folder."""
    texts = ["A short one.", "the lamp and the sea " * 80, "Another short one, in which it rains."]
    responses = write(tmp_path / "r.parquet", texts)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        metrics = embed(responses, Path("e.parquet"), Models())
    a, b = tmp_path / "a" / "e.parquet", tmp_path / "b" / "e.parquet"
    assert digest(a) == digest(b)
    assert metrics["truncated"] == {"semantic": 1, "style": 0}
    assert metrics["width"]["semantic"] == matrix(a, "semantic").shape[1] == 384
    np.testing.assert_allclose(np.linalg.norm(matrix(a, "semantic"), axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix(a, "style"), [features(text) for text in texts], atol=1e-7)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of every call of the embedder."""
    encode, calls = step.encode, []

    def watched(model: Any, texts: list[str], *rest: Any) -> Any:
        calls.append(texts)
        return encode(model, texts, *rest)

    monkeypatch.setattr(step, "encode", watched)
    return calls


def test_every_distinct_text_once(tmp_path: Path, calls: list[list[str]]) -> None:
    texts = [f"Story {i % 7} of the sea." for i in range(30)]
    metrics = embed(write(tmp_path / "r.parquet", texts), out := tmp_path / "e.parquet", chunk=3)
    assert calls == [texts[0:3], texts[3:6], texts[6:7]]
    assert (metrics["texts"], metrics["distinct_texts"]) == (30, 7)
    np.testing.assert_allclose(matrix(out, "style"), [features(text) for text in texts], atol=1e-7)


def embed_until_killed(responses: Path, out: Path, calls: list[list[str]], chunks: int, **options: Any) -> None:
    """In a process of its own, which is killed in the chunk after so many."""
    if child := os.fork():
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        return
    try:
        watched = step.encode

        def deadly(*arguments: Any) -> Any:
            if len(calls) == chunks:
                os.kill(os.getpid(), signal.SIGKILL)
            return watched(*arguments)

        step.encode = deadly  # type: ignore[assignment]
        embed(responses, out, **options)
    finally:
        os._exit(1)


def test_killed_and_continued(tmp_path: Path, responses: Path, calls: list[list[str]]) -> None:
    embed(responses, expected := tmp_path / "expected.parquet", chunk=7)
    assert [len(texts) for texts in calls] == [7, 7, 7, 3]
    calls.clear()
    out = tmp_path / "out" / "e.parquet"
    embed_until_killed(responses, out, calls, 2, chunk=7)
    assert sorted(path.name for path in Path(".work/embed").rglob("*.*")) == ["0.safetensors", "1.safetensors"]
    assert not out.exists()
    # As a kill while a chunk or the table is written would leave them.
    (next(Path(".work/embed").iterdir()) / ".2.safetensors.partial").write_bytes(b"half")
    out.parent.mkdir()
    (out.parent / ".e.parquet.partial").write_bytes(b"PAR1")
    embed(responses, out, chunk=7)
    assert [len(texts) for texts in calls] == [7, 3]
    assert digest(out) == digest(expected)
    assert not any(Path(".work/embed").iterdir())
    assert [path.name for path in out.parent.iterdir()] == ["e.parquet"]


@pytest.mark.parametrize("change", ["responses", "options", "models"])
def test_chunks_of_another_run_are_not_taken(tmp_path: Path, responses: Path, calls: list[list[str]], change: str) -> None:
    embed_until_killed(responses, tmp_path / "e.parquet", calls, 2, chunk=7)
    models, options = STYLES, {"chunk": 7}
    if change == "responses":
        RESPONSES.write(responses, response_rows(words=29))
    elif change == "options":
        options["batch_size"] = 5
    else:
        models = Models()
    embed(responses, tmp_path / "e.parquet", models, **options)
    embedders = 2 if change == "models" else 1
    assert [len(texts) for texts in calls[::embedders]] == [7, 7, 7, 3]


def test_responses_that_did_not_pass_are_refused(tmp_path: Path, responses: Path) -> None:
    (tmp_path / "validation").mkdir()
    results = tmp_path / "validation" / "results.json"
    results.write_text(json.dumps({"passed": False}))
    with pytest.raises(InputError, match="did not pass validation"):
        embed(responses, tmp_path / "e.parquet", validation=results.parent)
    results.write_text(json.dumps({"passed": True}))
    assert embed(responses, tmp_path / "e.parquet", validation=results.parent)["texts"] == 24


def test_no_responses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"r\.parquet: holds no responses"):
        embed(write(tmp_path / "r.parquet", []), tmp_path / "e.parquet")


@pytest.mark.parametrize(
    ("sections", "status", "message"),
    [
        ({}, 0, ""),
        ({"models": {"semantic": "no-such-model"}}, 1, "embed: model 'no-such-model': no such folder, and neither a hub id"),
        (
            {"models": {"style": "nobody/nothing"}},
            1,
            "embed: model 'nobody/nothing': no such folder, not in the local hub cache",
        ),
        ({"embed": {"batchsize": 3}}, 2, "embed.batchsize: unknown parameter; did you mean 'batch_size'?"),
        ({"embed": {"chunk": 0}}, 2, "embed.chunk: Input should be greater than or equal to 1"),
    ],
)
def test_command_line(
    tmp_path: Path,
    responses: Path,
    write_params: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    sections: dict[str, Any],
    status: int,
    message: str,
) -> None:
    sections = {"embed": {}, "models": {}} | sections
    sections["models"] = {"semantic": "stylometric", "style": "stylometric"} | sections["models"]
    out, metrics = tmp_path / "e.parquet", tmp_path / "m.json"
    arguments = ["--params", str(write_params(**sections)), "--responses", str(responses)]
    assert STEP.main([*arguments, "--embeddings", str(out), "--metrics", str(metrics)]) == status
    assert message in capsys.readouterr().err
    assert out.exists() == metrics.exists() == (status == 0)
    assert STEP.main([*arguments[:-1], str(tmp_path / "missing.parquet"), "--embeddings", str(out)]) == status or 1


@pytest.mark.parametrize("shards", [1, 2, 3, 7])
def test_shards_together_are_the_bytes_of_one(tmp_path: Path, shards: int, store: Path) -> None:
    """Also where a text occurs in several chunks, batches are not full, and there are more shards than chunks."""
    del store
    texts = [story(i % 23, 5 + i % 23) for i in range(40)]
    responses = write(tmp_path / "r.parquet", texts)
    options = {"batch_size": 3, "chunk": 5}
    whole = embed(responses, tmp_path / "whole.parquet", **options)
    paths = [tmp_path / f"{shard}.parquet" for shard in range(shards)]
    parts = [embed(responses, path, shard=shard, of=shards, **options) for shard, path in enumerate(paths)]
    for key in ("texts", "distinct_texts"):
        assert sum(part[key] for part in parts) == whole[key]
    together = tmp_path / "together.parquet"
    words = [f"--part={number}={path}" for number, path in reversed(list(enumerate(paths)))]
    assert gather([f"--responses={responses}", *words, f"--embeddings={together}"]) == 0
    assert together.read_bytes() == (tmp_path / "whole.parquet").read_bytes()


def test_shards_that_do_not_belong_together(tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del store
    responses = write(tmp_path / "r.parquet", [story(i) for i in range(20)])
    other = write(tmp_path / "other.parquet", [story(100 + i) for i in range(20)])
    paths = [tmp_path / f"{shard}.parquet" for shard in range(2)]
    for shard, (table, path) in enumerate(zip((responses, other), paths, strict=True)):
        embed(table, path, shard=shard, of=2, chunk=5)
    for words in ([paths[0], paths[0]], paths):
        given = [f"--part={number}={path}" for number, path in enumerate(words)]
        assert gather([f"--responses={responses}", *given, f"--embeddings={tmp_path / 'out'}"]) == 1
    told = capsys.readouterr().err
    assert "20 responses; 20 in the shards, 10 of them distinct" in told and "is in no shard" in told
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="counted from 0 to 1"):
        embed(responses, tmp_path / "out", shard=2, of=2)
