"""`polyphony impact`: every version that learned from a story, and none ruled out that cannot be."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.contracts import PAIRS, RESPONSES, Table
from components.lineage import digest
from components.trace import impact
from components.trace.content import Contents
from components.trace.impact import LEARNED, MEASURED, NOTHING, UNKNOWN, Impact, Sought
from components.trace.store import AwayError, open_store
from pipelines.front_door import main as polyphony
from tests.conftest import response_rows
from tests.trace.conftest import Project, pair_rows


def found(**sought: str) -> Impact:
    (one,) = impact.impact(Sought(**sought), open_store(), Contents(Path()), lambda _: None)
    return one


def row(split: str, part: str) -> dict[str, Any]:
    """A response of that side of the split that is in pairs as the winner, as the loser, or in none."""
    pairs = pair_rows(response_rows())
    winners, losers = ({pair[key] for pair in pairs} for key in ("chosen_id", "rejected_id"))
    parts: Mapping[str, set[str]] = {"winner": winners, "loser": losers}
    others = {row["response_id"] for row in response_rows()} - winners - losers
    ids = parts.get(part, others)
    return next(row for row in response_rows() if row["split"] == split and row["response_id"] in ids)


def ways(one: Impact) -> str:
    return "\n".join(one.how)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("by", ["response", "text"])
@pytest.mark.parametrize("part", ["winner", "loser", "neither"])
def test_how_a_version_learned_from_a_story(part: str, by: str) -> None:
    wanted = row("train", part)
    one = found(**{by: wanted["response_id" if by == "response" else "response"]})
    assert one.verdict == LEARNED
    assert "train-sft: trained on as a story to imitate (1 row)" in one.how
    assert "train-reward: trained the reward model that measured it (1 row)" in one.how
    assert ("train-ddpo: trained on as the winner of a pair (1 row)" in one.how) == (part == "winner")
    assert ("train-ddpo: trained on as the loser of a pair (1 row)" in one.how) == (part == "loser")
    assert "train-dpo" not in ways(one)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("part", ["winner", "neither"])
def test_a_story_of_the_test_side_is_only_measured_with(part: str) -> None:
    one = found(response=row("test", part)["response_id"])
    assert (one.verdict, one.how) == (MEASURED, ("evaluate: evaluated on (1 row)",))


@pytest.mark.usefixtures("project")
def test_a_prompt_is_in_all_that_was_written_to_it() -> None:
    one = found(prompt=row("train", "winner")["prompt_id"])
    assert one.verdict == LEARNED
    assert {
        "train-sft: trained on as a story to imitate (4 rows)",
        "train-ddpo: trained on as the prompt of a pair (1 row)",
    } <= set(one.how)


@pytest.mark.usefixtures("project")
def test_what_no_version_has() -> None:
    assert found(response="0" * 16).verdict == NOTHING
    assert found(text="A story of nobody's.").verdict == NOTHING
    assert found(data="0" * 32).verdict == NOTHING


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("path", "verdict"),
    [("stories.jsonl", LEARNED), ("pairs.parquet", LEARNED), ("models/dpo", MEASURED), ("models/reward", MEASURED)],
)
def test_data_by_its_digest(path: str, verdict: str) -> None:
    assert found(data=digest(Path(path))).verdict == verdict


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("table", ["responses.parquet", "pairs.parquet"])
@pytest.mark.parametrize("damage", ["gone", "spoiled"])
def test_what_cannot_be_read_cannot_be_ruled_out(table: str, damage: str) -> None:
    value = digest(Path(table))
    for place in ("remote", ".dvc/cache"):
        kept = Path(place, "files", "md5", value[:2], value[2:])
        kept.chmod(0o644)
        kept.unlink() if damage == "gone" else kept.write_bytes(b"PAR1")
    one = found(response="0" * 16)
    assert one.verdict == UNKNOWN
    assert value in ways(one)
    assert ("differs" if damage == "spoiled" else "dvc push") in ways(one)


def test_a_broken_lineage_cannot_be_ruled_out(project: Project) -> None:
    from components.lineage import tracking_client

    tracking_client().delete_run(project.runs["weight"])
    assert found(data="0" * 32).verdict == UNKNOWN
    assert found(response="0" * 16).verdict == UNKNOWN
    # What is known is known all the same.
    assert found(response=row("train", "neither")["response_id"]).verdict == LEARNED


@pytest.mark.usefixtures("project")
def test_a_version_of_somebody_else_cannot_be_ruled_out() -> None:
    from components.lineage import tracking_client

    client = tracking_client()
    client.create_registered_model("theirs")
    client.create_model_version("theirs", "s3://elsewhere", None)
    verdicts = {
        one.version.name: one.verdict
        for one in impact.impact(Sought(response="0" * 16), open_store(), Contents(Path()), lambda _: None)
    }
    assert verdicts == {"polyphony": NOTHING, "theirs": UNKNOWN}


def test_a_table_that_many_versions_share_is_read_once(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        project.register(alias="")
    read: list[str] = []
    inner = impact._count

    def count(path: Path, table: Table, sought: Sought) -> dict[str, int]:
        read.append(table.name)
        return inner(path, table, sought)

    monkeypatch.setattr(impact, "_count", count)
    several = impact.impact(
        Sought(response=row("train", "winner")["response_id"]), open_store(), Contents(Path()), lambda _: None
    )
    assert [one.verdict for one in several] == [LEARNED] * 5
    assert sorted(read) == [PAIRS.name, RESPONSES.name]


@pytest.mark.usefixtures("project")
def test_a_text_is_looked_for_as_ingest_would_have_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = tmp_path / "story.txt"
    story.write_bytes(b"\xef\xbb\xbf" + row("train", "winner")["response"].encode() + b"\r\n\r\nEdit: thanks for reading!\r\n")
    assert polyphony(["impact", "--text", str(story), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["aliases"]) == (LEARNED, ["champion"])
    assert polyphony(["impact", "--text", str(story)]) == 0
    assert polyphony(["impact", "--text", "none.txt"]) == 1
    assert "polyphony version 1 @champion: learned from it" in capsys.readouterr().out


@pytest.mark.usefixtures("project")
def test_what_dvc_lacks_is_read_where_the_engine_keeps_it(tmp_path: Path) -> None:
    from components.lineage import step_run

    value = digest(Path("responses.parquet"))
    kept = Path(shutil.copy("responses.parquet", tmp_path / "bucket.parquet"))
    with step_run("ingest", {}, {}) as run:
        run.finish({"responses": kept}, {}, {"responses": f"file://{kept}"})
    for place in ("remote", ".dvc/cache"):
        Path(place, "files", "md5", value[:2], value[2:]).unlink()
    from components.trace.ancestry import find

    origin = find(value, open_store()).model
    (place_,) = Contents(Path()).places(origin, None)
    assert place_.name == f"file://{kept}"


@pytest.mark.usefixtures("project")
def test_a_store_that_does_not_answer_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(*_: object) -> None:
        raise AwayError("MLflow does not answer")

    store = open_store()
    monkeypatch.setattr(store, "makers", away)
    with pytest.raises(AwayError):
        impact.impact(Sought(data="0" * 32), store, Contents(Path()), lambda _: None)
