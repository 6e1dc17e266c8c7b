"""The step as a whole: split, counts, the same bytes, kills, full disks, memory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import components
from components.ingest.params import Params, Repairs
from components.ingest.repairs import REPAIRS
from components.lineage import digest
from tests.conftest import story
from tests.ingest.sources import Row, as_bytes, good_rows

ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(components.__file__).parents[1])}
GOOD = good_rows()


def many(prompts: int) -> list[Row]:
    return [
        {"prompt": f"Number {p}.", "response": f"{p} {r} {story(p, 3)}", "score": r} for p in range(prompts) for r in (1, 2)
    ]


# Split.


def test_the_split_is_by_prompt_and_about_as_asked_for(ingest: Callable[..., Any]) -> None:
    result = ingest(many(400), test_share=0.25)
    sides = {(row["prompt_id"], row["split"]) for row in result.rows()}
    assert len(sides) == 400
    count = Counter(side for _, side in sides)
    assert 75 < count["test"] < 125
    assert result.metrics["prompts"] == {"all": 400, "train": count["train"], "test": count["test"], "left_out": 0}
    assert result.metrics["responses_of"] == {"train": 2 * count["train"], "test": 2 * count["test"]}


def sides(result: Any) -> dict[str, str]:
    return {row["prompt"]: row["split"] for row in result.rows()}


def test_a_prompt_keeps_its_side_whatever_else_there_is(ingest: Callable[..., Any]) -> None:
    whole, part = sides(ingest(many(60), test_share=0.4)), sides(ingest(many(30), test_share=0.4))
    assert part.items() < whole.items()
    assert sides(ingest(many(60), test_share=0.4, seed=1)) != whole


@pytest.mark.parametrize("share", [1e-9, 1 - 1e-9])
def test_both_sides_have_a_prompt(ingest: Callable[..., Any], share: float) -> None:
    for prompts in (2, 5):
        count = Counter(sides(ingest(many(prompts), test_share=share)).values())
        assert sorted(count.values()) == sorted([1, prompts - 1])
        assert count["test" if share < 0.5 else "train"] == 1


def test_max_prompts_chooses_by_hash(ingest: Callable[..., Any]) -> None:
    result = ingest(many(60), max_prompts=20)
    chosen = sides(result)
    assert len(chosen) == 20
    assert result.metrics["prompts"]["left_out"] == 40
    assert result.faults() == []
    assert sides(ingest(list(reversed(many(60))), max_prompts=20)) == chosen
    assert sides(ingest(many(60), max_prompts=10)).keys() < chosen.keys()
    assert sides(ingest(many(60), max_prompts=20, seed=1)) != chosen
    assert sides(ingest(many(60), max_prompts=100)).keys() > chosen.keys()


# Counts.


def test_repairs_are_counted(ingest: Callable[..., Any]) -> None:
    rows = [dict(row) for row in GOOD]
    rows[0]["prompt"] = rows[1]["prompt"] = "[WP] A &quot;door&quot;."
    rows[2]["prompt"] = 'A "door".'
    rows[3]["response"] += "<\\newline>The end.\r\nEdit: typo"
    rows[4]["response"] += "\r\n"
    repaired = ingest(rows).metrics["repaired"]
    assert repaired.keys() == set(REPAIRS)
    assert {name: tuple(count.values()) for name, count in repaired.items() if any(count.values())} == {
        # One prompt, however many of its rows were repaired; outer white space goes without being counted.
        "html_entities": (1, 0),
        "prompt_tag": (1, 0),
        "newline_tokens": (0, 1),
        "line_endings": (0, 1),
        "author_notes": (0, 1),
    }


def test_repairs_can_be_switched_off(ingest: Callable[..., Any]) -> None:
    rows = [row | {"prompt": f"[WP] {row['prompt']}", "response": f"{row['response']} &amp; <\\newline>"} for row in GOOD]
    result = ingest(rows, repairs=dict.fromkeys(Repairs.model_fields, False))
    assert {(row["prompt"], row["response"]) for row in result.rows()} == {(row["prompt"], row["response"]) for row in rows}
    assert not any(count for counts in result.metrics["repaired"].values() for count in counts.values())


def test_tokens(ingest: Callable[..., Any], models: Any) -> None:
    from components.models.language import load_tokenizer, token_ids

    tokenizer = load_tokenizer(models)
    lengths = sorted(sum(map(len, token_ids(tokenizer, row["prompt"], row["response"]))) for row in GOOD)
    tokens = ingest(GOOD).metrics["tokens"]
    assert tokens == {"sum": sum(lengths), "p50": lengths[5], "p95": lengths[11], "max": lengths[-1]}


# The same bytes.


def test_batches_do_not_show(ingest: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [*many(40), *(row | {"response": ""} for row in many(3)), *many(2)]
    whole = ingest(rows)
    monkeypatch.setattr("components.ingest.step._BATCH_ROWS", 3)
    monkeypatch.setattr("components.ingest.step._WRITE_ROWS", 7)
    small = ingest(rows)
    assert digest(small.responses) == digest(whole.responses)
    assert digest(small.rejects) == digest(whole.rejects)
    assert small.metrics == whole.metrics


def program(folder: Path, tiny_model: Path, source: Path, run: str) -> list[str]:
    """A Python process in which `run` may call `main`, the step's command line with its arguments."""
    params = folder.with_suffix(".yaml")
    params.write_text(yaml.safe_dump({"ingest": {"source": str(source)}, "models": {"language": str(tiny_model)}}))
    arguments = ["--params", str(params), "--responses", "responses.parquet", "--rejects", "rejects.parquet"]
    head = f"import sys\nfrom components.ingest.__main__ import STEP\ndef main(): return STEP.main({arguments})\n"
    return [sys.executable, "-c", head + run]


def test_killed_in_the_middle_and_run_again(
    ingest: Callable[..., Any], tiny_model: Path, tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = many(1500)
    expected = ingest(rows)
    source = tmp_path / "source.jsonl"
    source.write_bytes(as_bytes(rows, "jsonl"))
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(store, folder)
    command = program(folder, tiny_model, source, "sys.exit(main())")
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stderr
    seen = ""
    # Some progress, but not all.
    while not any(f" {percent}%|" in seen for percent in range(1, 90)):
        character = process.stderr.read(1)
        assert character, seen
        seen += character
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stderr.close()
    assert (folder / ".work/ingest/stage/rows.sqlite").exists()
    assert not list(folder.glob("*.parquet"))
    # As a kill while writing would leave it.
    (folder / ".responses.parquet.partial").write_bytes(b"PAR1 half")
    monkeypatch.chdir(folder)
    from components.ingest.step import run
    from components.models.params import Params as Models

    outputs = {name: folder / f"{name}.parquet" for name in ("responses", "rejects")}
    metrics = run(ingest=Params(), models=Models(language=str(tiny_model)), raw=source, **outputs)
    assert metrics == expected.metrics
    assert digest(outputs["responses"]) == digest(expected.responses)
    assert digest(outputs["rejects"]) == digest(expected.rejects)
    assert sorted(path.name for path in folder.iterdir()) == [*(".work", "mlflow.db", "rejects.parquet", "responses.parquet")]


IN_64_KIB = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=64k none . && cd "$PWD" && "$@" && ls -A', "sh"]


def test_a_full_disk(tiny_model: Path, tmp_path: Path, store: Path) -> None:
    """A real file system of 64 KiB, the process's own: full while rows are read, and while they are written."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run([*IN_64_KIB, "true"], cwd=folder, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system of their own")
    source = tmp_path / "source.jsonl"
    source.write_bytes(as_bytes(many(1000), "jsonl"))
    # SQLite writes only what its cache cannot hold.
    run = "import components.ingest.stage as stage\nfor stage._CACHE_KIB in (16, 16_000): print(main())"
    command = program(folder, tiny_model, source, run)
    done = subprocess.run(
        [*IN_64_KIB, *command],
        cwd=folder,
        capture_output=True,
        text=True,
        env=ENVIRONMENT | {"MLFLOW_TRACKING_URI": f"sqlite:///{store}"},
    )
    assert done.stdout.split() == ["1", "1", ".work"]
    messages = [line for line in done.stderr.splitlines() if line.startswith("ingest: no space left on the device (")]
    assert len(messages) == 2
    assert "database or disk is full" in messages[0]
    assert "No space left on device" in messages[1]
    assert "Traceback" not in done.stderr


PEAKS = """
import json, sys
from pathlib import Path
import components.contracts, components.ingest.stage
from components.ingest.params import Params
from components.ingest.step import run
from components.models.params import Params as Models
# Buffers that fill up to a bound must not be mistaken for growth without one.
components.ingest.stage._CACHE_KIB = components.contracts.ROW_GROUP = 64

def row(i):
    # Most of the bytes are of rows that are rejected, which is quicker.
    words = range(i, i + 400) if i % 5 == 0 else range(i, i + 20)
    return json.dumps({"prompt": f"Number {i // 4}.", "response": " ".join(f"word{j}" for j in words), "score": i}) + "\\n"

def peak(rows):
    with open("source.jsonl", "w") as file:
        file.writelines(map(row, range(rows)))
    Path("/proc/self/clear_refs").write_text("5")
    out = {"responses": Path("r.parquet"), "rejects": Path("j.parquet")}
    run(ingest=Params(), models=Models(language=sys.argv[1]), raw=Path("source.jsonl"), **out)
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(status["VmHWM"].split()[0]), Path("source.jsonl").stat().st_size

peak(1000)
print(json.dumps([peak(1000), peak(8000)]))
"""


def test_memory_does_not_grow_with_the_file(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PEAKS, str(tiny_model)]
    done = subprocess.run(command, cwd=tmp_path, check=True, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    (peak, size), (larger_peak, larger_size) = json.loads(done.stdout)
    assert larger_peak - peak < 0.3 * (larger_size - size)
