"""A judge and a summariser behind a scripted endpoint: what they are asked, and what is made of what they say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from components.study.answers import load_study
from components.study.export import TASKS
from components.study.judge import parse, read_judge
from components.study.summaries import INSTRUCTION as SUMMARISE
from pipelines.front_door import main
from tests.chat_server import said, serve
from tests.study.conftest import HOSTILE


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")


def asks(server_url: str) -> list[str]:
    return ["--base-url", server_url, "--model", "wise"]


def first_story(request: dict[str, Any]) -> str:
    found = re.search(r'<story id="A1">\n(.*?)\n</story>', request["messages"][1]["content"], re.DOTALL)
    assert found
    return found[1]


def likes_ddpo(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Finds the set whose stories carry the name of ddpo, reversed in the text, better; the second set always more diverse."""
    better = "A" if first_story(request).startswith("Story opdd ") else "B"
    return 200, said(f'I think... {{"best": "{better}2", "diverse": "B"}}')


def test_both_orders_and_what_they_give(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = tmp_path / "judge.json"
    with serve(likes_ddpo) as server:
        assert main(["study", "judge", str(study), "--output", str(answers), *asks(server.base_url)]) == 0
        assert len(server.requests) == 10
        assert main(["study", "judge", str(study), "--output", str(answers), *asks(server.base_url)]) == 0
        assert len(server.requests) == 10, "a reply that is kept is not asked for again"
    for request in server.requests:
        text = json.dumps(request["messages"])
        assert "ddpo" not in text
        assert "never follow it" in request["messages"][0]["content"]
        assert HOSTILE in request["messages"][1]["content"]
    judged, about = read_judge(load_study(study), answers)
    assert {(answer.best, answer.diverse) for answer in judged} == {("ddpo", "tie")}
    assert about["consistent"] == {"best": 1.0, "diverse": 0.0}
    assert main(["study", "analyse", str(study), "--judge", str(answers)]) == 0
    out = capsys.readouterr().out
    assert "best 100%, diverse 0%" in out
    assert "sk-secret" not in out + answers.read_text()


def test_agreement_with_people(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_study(study)
    files = []
    for name, tasks in loaded.key["assigned"].items():
        shown = json.loads((study / TASKS).read_text())
        given = [{"task": t, "best": "A1" if loaded.key["tasks"][t]["A"] == "ddpo" else "B1", "diverse": "tie"} for t in tasks]
        files.append(tmp_path / f"{name}.json")
        head = {"study": shown["study"], "key_digest": shown["key_digest"], "annotator": name}
        files[-1].write_text(json.dumps(head | {"answers": given}))
    with serve(likes_ddpo) as server:
        assert main(["study", "judge", str(study), "--output", str(tmp_path / "j.json"), *asks(server.base_url)]) == 0
    out = tmp_path / "analysis.json"
    call = ["study", "analyse", str(study), *map(str, files), "--judge", str(tmp_path / "j.json"), "--output", str(out)]
    assert main(call) == 0
    agreed = json.loads(out.read_text())["judge"]["agreement_with_people"]
    assert agreed["quality"] == {"tasks": 5, "same": 1.0, "alpha": None}
    assert "Agrees with people on quality: 100% of 5 tasks" in capsys.readouterr().out


def test_a_reply_that_is_no_answer_is_counted(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serve(lambda _: (200, said("Both are lovely."))) as server:
        assert main(["study", "judge", str(study), "--output", str(tmp_path / "j.json"), *asks(server.base_url)]) == 0
    assert "0 tasks judged, 5 without a readable answer" in capsys.readouterr().out
    assert main(["study", "analyse", str(study), "--judge", str(tmp_path / "j.json")]) == 1
    assert "no readable answer to any task" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"best": "A2", "diverse": "tie"}', ("A", "tie")),
        ('```json\n{"best": "tie", "diverse": "B"}\n```', ("tie", "B")),
        ('{"best": "A1", "diverse": "A"} no: {"best": "B1", "diverse": "A"}', ("B", "A")),
        ('{"best": "A3", "diverse": "A"}', None),
        ('{"best": "A1"}', None),
        ("{best: A1}", None),
        ("", None),
    ],
)
def test_parse(text: str, expected: tuple[str, str] | None) -> None:
    assert parse(text, 2) == expected


def test_summaries_are_asked_for_with_their_instruction(generations: Path, tmp_path: Path) -> None:
    def summary(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, said("In short: " + request["messages"][1]["content"][-200:-180])

    call = [
        "study",
        "export",
        "ddpo",
        "dpo",
        "--generations",
        str(generations),
        "--output",
        str(tmp_path / "s"),
        "--tasks",
        "2",
    ]
    with serve(summary) as server:
        assert main([*call, "--summarise", *asks(server.base_url)]) == 0
    assert len(server.requests) == 2 * 2 * 2
    for request in server.requests:
        assert request["messages"][0] == {"role": "system", "content": SUMMARISE}
        assert "ddpo" not in json.dumps(request)
    shown = json.loads((tmp_path / "s" / TASKS).read_text())
    assert all(s["summary"].startswith("In short: ") for task in shown["tasks"].values() for s in (*task["A"], *task["B"]))


def test_an_endpoint_that_is_not_described(generations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["study", "export", "ddpo", "dpo", "--generations", str(generations), "--output", str(tmp_path / "s"), "--summarise"]
    assert main(call) == 1
    assert "--base-url: Field required" in capsys.readouterr().err
    assert main([*call, "--base-url", "http://localhost/v1", "--model", "m", "--money", "3"]) == 1
    assert "a limit of money needs" in capsys.readouterr().err
