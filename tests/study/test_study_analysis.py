"""The analysis against the published results and cases computed by hand."""

from __future__ import annotations

import pytest

from components.study.analysis import agreement_with, analyse, krippendorff, majority, outcome
from components.study.answers import Answer, Study
from components.study.tasks import TIE

STUDY = Study({"study": "s", "systems": ["ours", "other"]}, {})


def annotated(wins: int, losses: int, tasks: int = 100) -> list[str]:
    return ["ours"] * wins + ["other"] * losses + [TIE] * (tasks - wins - losses)


@pytest.mark.parametrize(("wins", "losses", "bound"), [(100, 0, 0.001), (68, 24, 0.001), (62, 26, 0.001)])
def test_published_rates_give_the_published_significance(wins: int, losses: int, bound: float) -> None:
    """DDPO-both against GPT-4o (diversity, quality) and against DPO (diversity): Chung et al. 2025."""
    answers = [Answer("a", f"t{i}", said, said) for i, said in enumerate(annotated(wins, losses))]
    result = analyse(STUDY, answers)
    for question in ("quality", "diversity"):
        found = result["questions"][question]
        assert found["wins"]["ours"]["rate"] == wins / 100
        assert found["wins"]["other"]["rate"] == losses / 100
        assert found["ties"] == 100 - wins - losses
        assert found["p"] < bound
        assert found["wins"]["ours"]["low"] < wins / 100 <= found["wins"]["ours"]["high"]


def test_sign_test_by_hand() -> None:
    """6 wins and 2 losses: 2 (C(8,0) + C(8,1) + C(8,2)) / 2^8 = 74 / 256, whatever the ties."""
    for ties in (0, 5):
        assert outcome(annotated(6, 2, 8 + ties), ("ours", "other"))["p"] == pytest.approx(74 / 256)
    assert outcome(annotated(0, 0, 3), ("ours", "other"))["p"] is None


def test_wilson_interval_by_hand() -> None:
    """10 of 10: low = n / (n + z^2) with z = 1.959964."""
    found = outcome(annotated(10, 0, 10), ("ours", "other"))["wins"]["ours"]
    assert found["low"] == pytest.approx(10 / (10 + 1.959964**2), rel=1e-6)
    assert found["high"] == 1


def test_majority() -> None:
    assert majority(["ours"]) == "ours"
    assert majority(["ours", "other"]) == TIE
    assert majority(["ours", "other", "ours"]) == "ours"
    assert majority(["ours", "other", TIE]) == TIE


def test_krippendorff_by_hand() -> None:
    """Tasks (x,x) (y,y) (x,y) (x,x): 8 values, 5 x and 3 y; alpha = 1 - (8 - 1) * 2 / (2 * 5 * 3)."""
    given = {"t1": "xx", "t2": "yy", "t3": "xy", "t4": "xx"}
    ratings = [(str(i), task, said) for task, pair in given.items() for i, said in enumerate(pair)]
    expected = 1 - 7 * 2 / (2 * 5 * 3)
    assert krippendorff(ratings) == pytest.approx(expected)
    # A task that only one annotator answered says nothing of agreement.
    assert krippendorff([*ratings, ("0", "t5", "y")]) == pytest.approx(expected)
    assert krippendorff([("0", "t1", "x"), ("0", "t2", "y")]) is None
    assert krippendorff([("0", "t1", "x"), ("1", "t1", "x")]) is None


def test_several_annotators() -> None:
    answers = [
        Answer(name, task, said, TIE)
        for task, of_task in {"t1": "aab", "t2": "abb", "t3": "ab-"}.items()
        for name, letter in zip("xyz", of_task, strict=True)
        for said in ({"a": "ours", "b": "other", "-": TIE}[letter],)
    ]
    result = analyse(STUDY, answers)
    quality = result["questions"]["quality"]
    assert (quality["wins"]["ours"]["count"], quality["wins"]["other"]["count"], quality["ties"]) == (1, 1, 1)
    assert quality["p"] == 1
    assert result["annotators"]["x"]["quality"]["wins"]["ours"]["rate"] == 1
    assert result["questions"]["diversity"]["agreement"] is None


def test_agreement_of_a_judge_with_people() -> None:
    people = [Answer("a", f"t{i}", said, TIE) for i, said in enumerate(["ours", "ours", "other", "other"])]
    judge = [Answer("j", f"t{i}", said, TIE) for i, said in enumerate(["ours", "ours", "other", "ours"])]
    found = agreement_with(people, [*judge, Answer("j", "t9", "ours", TIE)])["quality"]
    assert (found["tasks"], found["same"]) == (4, 0.75)
    assert found["alpha"] == pytest.approx(1 - 7 * 2 / (2 * 5 * 3))
