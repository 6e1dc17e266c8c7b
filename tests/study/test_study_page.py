"""The page in a real browser, by mouse and by keyboard, to answers that are analysed."""

from __future__ import annotations

import json
from pathlib import Path

from components.study.analysis import analyse
from components.study.answers import load_study, read_answers
from components.study.export import PAGE
from tests.browser import opened


def test_a_study_from_page_to_analysis(study: Path, tmp_path: Path) -> None:
    files = []
    with opened(study / PAGE) as page:
        for name in ("ann", "ben"):
            page.reload()
            page.select_option("#who", name)
            page.click("#begin")
            while page.is_visible("#task"):
                assert page.is_disabled("#next")
                assert "taken" not in page.title()
                assert "<b>bold</b> {{ 7 * 7 }}" in page.inner_text("#A article")
                # By keyboard: into the group, to its last choice, and on.
                page.focus("#best input >> nth=0")
                page.keyboard.press("Space")
                page.keyboard.press("ArrowRight")
                page.check("#diverse input[value=tie]")
                page.focus("#next")
                page.keyboard.press("Enter")
            with page.expect_download() as download:
                page.click("#save")
            files.append(tmp_path / f"{name}.json")
            download.value.save_as(files[-1])
        assert page.problems == []
    loaded = load_study(study)
    answers = read_answers(loaded, files)
    assert {answer.diverse for answer in answers} == {"tie"}
    assert all(answer.best == loaded.key["tasks"][answer.task]["A"] for answer in answers)
    assert analyse(loaded, answers)["tasks"] == 5


def test_answers_survive_closing_the_page(study: Path) -> None:
    with opened(study / PAGE, width=390, height=800, dark=True) as page:
        page.click("#begin")
        page.check("#best input >> nth=1")
        page.check("#diverse input[value=A]")
        page.click("#next")
        page.reload()
        page.click("#begin")
        assert page.inner_text("#place").startswith("Task 2 of")
        page.click("#back")
        assert page.is_checked("#best input >> nth=1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=study / "phone.png", full_page=True)
        assert json.loads(page.inner_text("#data"))["questions"]
        assert page.problems == []
