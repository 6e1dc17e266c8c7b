"""What the answers of a study show: win rates, a sign test, agreement."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from components.study.answers import Answer, Study
from components.study.tasks import TIE

# Question -> the field of an answer that holds it.
QUESTIONS = {"quality": "best", "diversity": "diverse"}
CONFIDENCE = 0.95


def analyse(study: Study, answers: Sequence[Answer]) -> dict[str, Any]:
    """Win rates over tasks, for each question, and the same for each annotator.

    Where several annotators answered a task, what most of them said is its outcome; without a most frequent answer it is a
    tie.

    Returns:
        `tasks`; `questions`: question -> see `outcome`, with `agreement`, Krippendorff's alpha (None where no two annotators
        answered the same task, or all answers are alike); `annotators`: name -> question -> see `outcome`.
    """
    questions: dict[str, Any] = {}
    annotators: dict[str, dict[str, Any]] = {name: {} for name in sorted({answer.annotator for answer in answers})}
    for question, field in QUESTIONS.items():
        by_task: dict[str, list[str]] = {}
        by_name: dict[str, list[str]] = {}
        for answer in answers:
            by_task.setdefault(answer.task, []).append(getattr(answer, field))
            by_name.setdefault(answer.annotator, []).append(getattr(answer, field))
        outcomes = [majority(given) for given in by_task.values()]
        ratings = [(answer.annotator, answer.task, getattr(answer, field)) for answer in answers]
        questions[question] = outcome(outcomes, study.systems) | {"agreement": krippendorff(ratings)}
        for name, given in by_name.items():
            annotators[name][question] = outcome(given, study.systems)
    return {
        "study": study.key["study"],
        "systems": list(study.systems),
        "tasks": len({answer.task for answer in answers}),
        "questions": questions,
        "annotators": annotators,
    }


def majority(given: Sequence[str]) -> str:
    """The most frequent answer; a tie where two are equally frequent."""
    (first, most), *rest = Counter(given).most_common(2)
    return TIE if rest and rest[0][1] == most else first


def outcome(outcomes: Sequence[str], systems: tuple[str, str]) -> dict[str, Any]:
    """Wins, ties and the two-sided sign test, which leaves ties out (exact binomial, p = 1/2).

    Returns:
        `wins`: system -> {count, rate, low, high}: share of all outcomes with its 95 % Wilson interval; `ties`; `p`, None
        where all are ties.
    """
    from scipy.stats import binomtest

    counts = Counter(outcomes)
    wins: dict[str, Any] = {}
    for system in systems:
        interval = binomtest(counts[system], len(outcomes)).proportion_ci(CONFIDENCE, method="wilson")
        wins[system] = {
            "count": counts[system],
            "rate": counts[system] / len(outcomes),
            "low": float(interval.low),
            "high": float(interval.high),
        }
    decided = counts[systems[0]] + counts[systems[1]]
    p = float(binomtest(counts[systems[0]], decided).pvalue) if decided else None
    return {"wins": wins, "ties": counts[TIE], "p": p}


def krippendorff(ratings: Sequence[tuple[str, str, str]]) -> float | None:
    """Krippendorff's alpha for nominal answers, over the tasks that at least two annotators answered.

    Args:
        ratings: (annotator, task, answer).

    Returns:
        1 for perfect agreement, 0 for that of chance; None where it is not defined.
    """
    from nltk.metrics.agreement import AnnotationTask

    answered = Counter(task for _, task, _ in ratings)
    shared = [rating for rating in ratings if answered[rating[1]] > 1]
    if len({answer for _, _, answer in shared}) < 2:
        return None
    return float(AnnotationTask(shared).alpha())


def agreement_with(people: Sequence[Answer], judge: Sequence[Answer]) -> dict[str, Any]:
    """How far a judge agrees with people, on the tasks that both answered.

    Returns:
        question -> {tasks, same: share of tasks with the same outcome, alpha: Krippendorff's, of people's majority and the
        judge}.
    """
    result: dict[str, Any] = {}
    for question, field in QUESTIONS.items():
        given: dict[str, list[str]] = {}
        for answer in people:
            given.setdefault(answer.task, []).append(getattr(answer, field))
        judged: Mapping[str, str] = {answer.task: getattr(answer, field) for answer in judge}
        both = [(majority(given[task]), judged[task], task) for task in given if task in judged]
        ratings = [rating for p, j, task in both for rating in (("people", task, p), ("judge", task, j))]
        result[question] = {
            "tasks": len(both),
            "same": sum(p == j for p, j, _ in both) / len(both) if both else None,
            "alpha": krippendorff(ratings),
        }
    return result
