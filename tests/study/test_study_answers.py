"""What goes out is blinded; what comes back is refused where it was not, or is incomplete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from components.contracts import InputError
from components.study.answers import load_study, read_answers
from components.study.export import KEY, LABEL_STUDIO, LABEL_STUDIO_CONFIG, PAGE, TASKS, export, plan
from pipelines.front_door import main


def page_answers(folder: Path, annotator: str, **changes: Any) -> dict[str, Any]:
    """What the page saves when an annotator always says A1 and B."""
    shown = json.loads((folder / TASKS).read_text())
    answers = [{"task": task, "best": "A1", "diverse": "B"} for task in shown["assigned"][annotator]]
    return {"study": shown["study"], "key_digest": shown["key_digest"], "annotator": annotator, "answers": answers} | changes


def save(folder: Path, name: str, content: Any) -> Path:
    path = folder.parent / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def label_studio_answers(folder: Path) -> list[dict[str, Any]]:
    """The tasks with annotations as Label Studio exports them."""
    return [
        item
        | {
            "id": number,
            "annotations": [
                {
                    "completed_by": {"id": 1, "email": "ann@example.org"},
                    "was_cancelled": False,
                    "result": [
                        {"from_name": name, "to_name": "prompt", "type": "choices", "value": {"choices": [choice]}}
                        for name, choice in (("best", "B2"), ("diverse", "tie"))
                    ],
                }
            ],
        }
        for number, item in enumerate(json.loads((folder / LABEL_STUDIO).read_text()))
    ]


def test_only_the_key_names_systems(study: Path) -> None:
    key = json.loads((study / KEY).read_text())
    assert {name for task in key["tasks"].values() for name in (task["A"], task["B"])} == {"ddpo", "dpo"}
    for name in (TASKS, PAGE, LABEL_STUDIO, LABEL_STUDIO_CONFIG):
        text = (study / name).read_text()
        assert "ddpo" not in text
        assert '"dpo"' not in text
        assert "sample" not in text


def test_answers_lead_to_systems(study: Path) -> None:
    files = [save(study, name, page_answers(study, name)) for name in ("ann", "ben")]
    loaded = load_study(study)
    answers = read_answers(loaded, files)
    assert len(answers) == 5
    for answer in answers:
        hidden = loaded.key["tasks"][answer.task]
        assert (answer.best, answer.diverse) == (hidden["A"], hidden["B"])


def test_label_studio(study: Path) -> None:
    loaded = load_study(study)
    answers = read_answers(loaded, [save(study, "export", label_studio_answers(study))])
    assert {(a.annotator, a.diverse) for a in answers} == {("ann@example.org", "tie")}
    assert all(answer.best == loaded.key["tasks"][answer.task]["B"] for answer in answers)


def test_cancelled_annotations_do_not_count(study: Path) -> None:
    content = label_studio_answers(study)
    content[0]["annotations"][0]["was_cancelled"] = True
    with pytest.raises(InputError, match="incomplete: 1 of 5"):
        read_answers(load_study(study), [save(study, "export", content)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(systems=["ddpo", "dpo"]), "unblinded or changed: it holds systems"),
        (lambda c: c["answers"][0].update(A="ddpo"), "unblinded or changed: it holds A"),
        (lambda c: c["answers"].pop(), "incomplete: 1 of 5 tasks"),
        (lambda c: c["answers"][0].pop("diverse"), "incomplete: task"),
        (lambda c: c["answers"][0].update(best="A3"), "best is 'A3'"),
        (lambda c: c["answers"][0].update(task="t0"), "'t0' is no task"),
        (lambda c: c["answers"].append(c["answers"][0]), "answered twice"),
        (lambda c: c.update(study="other"), "answers to another"),
        (lambda c: c.update(key_digest="0" * 64), "answers to another"),
        (lambda c: c.update(annotator="eve"), "'eve' is no annotator"),
        (lambda c: c.pop("annotator"), "no file of answers"),
        (lambda c: c.update(answers=[3]), "no file of answers"),
    ],
)
def test_refused(study: Path, change: Any, message: str) -> None:
    content = page_answers(study, "ann")
    change(content)
    files = [save(study, "ann", content), save(study, "ben", page_answers(study, "ben"))]
    with pytest.raises(InputError, match=message):
        read_answers(load_study(study), files)


def test_label_studio_with_more_or_other_data_is_refused(study: Path) -> None:
    more, other = label_studio_answers(study), label_studio_answers(study)
    more[0]["data"]["system_a"] = "ddpo"
    with pytest.raises(InputError, match="unblinded or changed: it holds system_a"):
        read_answers(load_study(study), [save(study, "more", more)])
    other[0]["data"]["A1"] = "Another story."
    with pytest.raises(InputError, match="not as it was exported"):
        read_answers(load_study(study), [save(study, "other", other)])


def test_another_key_is_refused(study: Path) -> None:
    key = json.loads((study / KEY).read_text())
    for task in key["tasks"].values():
        task["A"], task["B"] = task["B"], task["A"]
    (study / KEY).write_text(json.dumps(key))
    with pytest.raises(InputError, match="not the key"):
        load_study(study)


@pytest.mark.parametrize("content", [3, "x", [3], [{"data": 3}], {}])
def test_what_is_no_file_of_answers(study: Path, content: Any) -> None:
    with pytest.raises(InputError, match=r"other\.json: "):
        read_answers(load_study(study), [save(study, "other", content)])


def test_a_study_is_not_written_over(study: Path, generations: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (study / KEY).read_bytes()
    call = ["study", "export", "ddpo", "dpo", "--generations", str(generations), "--output", str(study)]
    assert main(call) == 1
    assert "is there already" in capsys.readouterr().err
    assert (study / KEY).read_bytes() == before
    with pytest.raises(SystemExit):
        main([*call, "--tasks", "0"])
    assert "--tasks: '0' is no whole number from 1 on" in capsys.readouterr().err


def test_summaries_must_cover_every_story(tmp_path: Path, generations: Path) -> None:
    study = tmp_path / "summarised"

    def write(summaries: dict[tuple[str, str, int], str]) -> None:
        shutil.rmtree(study, ignore_errors=True)
        export(plan(generations, ("ddpo", "dpo"), count=9, annotators=["a"], per_task=1, seed=0), study, 0, summaries)

    whole = {(name, f"p{p}", s): f"In short {p}" for name in ("ddpo", "dpo") for p in range(6) for s in range(2)}
    write(whole)
    shown = json.loads((study / TASKS).read_text())
    assert all(story["summary"].startswith("In short") for task in shown["tasks"].values() for story in task["A"])
    with pytest.raises(InputError, match="none of story 0 by ddpo for prompt p0"):
        write({key: value for key, value in whole.items() if key != ("ddpo", "p0", 0)})


def test_command_line(study: Path, generations: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "again"
    call = ["study", "export", "ddpo", "dpo", "--generations", str(generations), "--output", str(folder), "--annotators", "ann"]
    assert main(call) == 0
    assert "keep from them" in capsys.readouterr().out
    answers = save(folder, "answers", page_answers(folder, "ann"))
    assert main(["study", "analyse", str(folder), str(answers), "--output", str(tmp_path / "analysis.json")]) == 0
    assert "6 tasks" in capsys.readouterr().out
    assert json.loads((tmp_path / "analysis.json").read_text())["people"]["tasks"] == 6
    assert main(["study", "export", "ddpo", "orpo", "--generations", str(generations), "--output", str(folder)]) == 1
    assert "no stories by orpo; it has ddpo, dpo, gold" in capsys.readouterr().err
    assert main(["study", "analyse", str(study), str(answers)]) == 1
    assert "answers to another" in capsys.readouterr().err
