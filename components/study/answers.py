"""Reads answers, from the study's own page and from Label Studio, and refuses what cannot be trusted."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts import InputError
from components.study.export import KEY, TASKS, label_studio
from components.study.tasks import SIDES, TIE

# What reading a file of another form raises.
MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError)
# Names in messages: so many, then a count.
_NAMED = 5


@dataclass(frozen=True)
class Study:
    """What a study's folder holds: the key, and what was shown."""

    key: Mapping[str, Any]
    shown: Mapping[str, Any]

    @property
    def systems(self) -> tuple[str, str]:
        first, second = self.key["systems"]
        return first, second

    def side_of(self, task: str, answer: str) -> str:
        """The system behind a side of a task; a tie stays one."""
        return answer if answer == TIE else self.key["tasks"][task][answer]


@dataclass(frozen=True)
class Answer:
    """One annotator's answer to one task: for each question a system, or a tie."""

    annotator: str
    task: str
    best: str
    diverse: str


def load_study(folder: Path) -> Study:
    """The study in a folder that `export` wrote.

    Raises:
        InputError: if a file is missing, or the key is not the one with which the tasks were made.
    """
    try:
        key_text = (folder / KEY).read_text(encoding="utf-8")
        shown = json.loads((folder / TASKS).read_text(encoding="utf-8"))
        key, digest = json.loads(key_text), shown["key_digest"]
    except MALFORMED as error:
        raise InputError(f"{folder}: not a study ({error!r}). `polyphony study export` writes one.") from None
    if digest != hashlib.sha256(key_text.encode()).hexdigest():
        raise InputError(f"{folder / KEY}: not the key with which {folder / TASKS} was made, or changed since.")
    return Study(key, shown)


def read_answers(study: Study, files: Sequence[Path]) -> list[Answer]:
    """All answers, each task answered by as many annotators as were planned.

    Raises:
        InputError: if a file belongs to another study, holds anything that the study did not show or ask (its annotator may
            have known whose set is whose), an answer is none of the choices, is given twice, or is missing.
    """
    answers: list[Answer] = []
    for path in files:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            read = _from_label_studio if isinstance(content, list) else _from_page
            answers += read(study, path, content)
        except MALFORMED as error:
            raise InputError(f"{path}: no file of answers ({error!r}).") from None
    twice = [pair for pair, count in Counter((a.annotator, a.task) for a in answers).items() if count > 1]
    if twice:
        raise InputError(f"answered twice: {_list(f'{task} by {name}' for name, task in twice)}. Give each answer once.")
    _complete(study, answers)
    return answers


def _from_page(study: Study, path: Path, content: Any) -> list[Answer]:
    _same_study(study, path, content)
    _only(path, content, {"study", "key_digest", "annotator", "answers"})
    name = content["annotator"]
    if name not in study.key["assigned"]:
        raise InputError(f"{path}: {name!r} is no annotator of this study; those are {', '.join(study.key['assigned'])}.")
    for entry in content["answers"]:
        _only(path, entry, {"task", "best", "diverse"})
    return [_answer(study, path, name, entry.get("task"), entry) for entry in content["answers"]]


def _from_label_studio(study: Study, path: Path, content: Any) -> list[Answer]:
    asked = {task["data"]["task"]: task["data"] for task in label_studio(study.shown)}
    answers = []
    for item in content:
        data = item.get("data", {})
        _same_study(study, path, data)
        if asked.get(data.get("task")) != data:
            _only(path, data, set(next(iter(asked.values()))))
            raise InputError(f"{path}: task {data.get('task')!r} is not as it was exported: what was read is not known.")
        for annotation in item.get("annotations", ()):
            if annotation.get("was_cancelled"):
                continue
            given = {
                part["from_name"]: part["value"]["choices"][0] for part in annotation["result"] if part["type"] == "choices"
            }
            _only(path, given, {"best", "diverse"})
            who = annotation["completed_by"]
            name = str(who.get("email") or who["id"]) if isinstance(who, Mapping) else str(who)
            answers.append(_answer(study, path, name, data["task"], given))
    return answers


def _answer(study: Study, path: Path, annotator: str, task: Any, given: Mapping[str, Any]) -> Answer:
    if task not in study.key["tasks"]:
        raise InputError(f"{path}: {task!r} is no task of this study.")
    stories = len(study.key["tasks"][task]["samples"][SIDES[0]])
    allowed = {
        "best": {f"{side}{n}" for side in SIDES for n in range(1, stories + 1)} | {TIE},
        "diverse": {*SIDES, TIE},
    }
    for question, choices in allowed.items():
        if given.get(question) is None:
            raise InputError(f"{path}: incomplete: task {task} by {annotator} has no answer to {question!r}.")
        if given[question] not in choices:
            raise InputError(f"{path}: task {task}: {question} is {given[question]!r}; expected {', '.join(sorted(choices))}.")
    best = given["best"]
    return Answer(annotator, task, study.side_of(task, best if best == TIE else best[0]), study.side_of(task, given["diverse"]))


def _same_study(study: Study, path: Path, content: Mapping[str, Any]) -> None:
    for name in ("study", "key_digest"):
        if content.get(name) != study.shown[name]:
            raise InputError(
                f"{path}: {name} is {content.get(name)!r}, this study's is {study.shown[name]!r}: answers to another."
            )


def _only(path: Path, content: Mapping[str, Any], allowed: set[str]) -> None:
    if extra := sorted(set(content) - allowed):
        raise InputError(
            f"{path}: unblinded or changed: it holds {_list(extra)}, which the study neither showed nor asked. "
            "Whoever answered may have known whose set is whose; only untouched answers are analysed."
        )


def _complete(study: Study, answers: Sequence[Answer]) -> None:
    planned, given = study.key["per_task"], Counter(answer.task for answer in answers)
    by_name: dict[str, set[str]] = {}
    for answer in answers:
        by_name.setdefault(answer.annotator, set()).add(answer.task)
    missing = [task for task in study.key["tasks"] if given[task] < planned]
    if missing:
        who = [
            f"{name} ({len(left)})"
            for name, tasks in study.key["assigned"].items()
            if (left := set(tasks) - by_name.get(name, set()))
        ]
        raise InputError(
            f"incomplete: {len(missing)} of {len(study.key['tasks'])} tasks have fewer than {planned} answers: "
            f"{_list(missing)}. Answers are missing from {_list(who)}."
        )


def _list(names: Iterator[str] | Sequence[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
