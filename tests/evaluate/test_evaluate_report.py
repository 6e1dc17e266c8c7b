"""The report in a real browser: it shows what metrics.json says, runs nothing of a story, and can be used by keyboard."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.evaluate import plane, report
from components.evaluate.browser import extremes
from components.evaluate.catalogue import BY_KEY, METRICS, described
from components.evaluate.metrics import compare, count
from components.evaluate.statements import number
from components.evaluate.stories import GOLD, Story
from tests.browser import opened

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><script>document.title = 'taken'</script> {{ 7 * 7 }}"
SYSTEMS = ("sft", "dpo", "ddpo", GOLD)
PROMPTS = {f"p{n}": f"Prompt {n} {HOSTILE}" for n in range(5)}
SAMPLES = 3


def unit(vectors: Any) -> Any:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A page, and the figures from which it was made."""
    rng = np.random.default_rng(0)
    values = {name: {m.key: rng.uniform(0, 1, len(PROMPTS)) * 10 ** (3 - m.digits) for m in METRICS} for name in SYSTEMS}
    stories = [
        Story(name, prompt, sample, f"Story {name} {prompt} {sample}. {HOSTILE}", 9, "human" if name == GOLD else "stop")
        for name in SYSTEMS
        for prompt in PROMPTS
        for sample in range(SAMPLES)
    ]
    measured: dict[str, Any] = {
        "prompts": len(PROMPTS),
        "samples": SAMPLES,
        "gold_prompts": len(PROMPTS),
        "resamples": 1000,
        "matched_words": 50,
        "metrics": described(BY_KEY),
        "reward_model": {"spearman": 0.3, "pair_accuracy": 0.6, "mae": 0.2, "length_correlation": 0.1},
        "warnings": ["The reward model is no better than length."],
        "stories": {name: count([s for s in stories if s.system == name], 50) for name in SYSTEMS},
        **compare(values, seed=0),
    }
    semantic = unit(rng.normal(size=(len(stories), 4)))
    trained = {"ddpo": {"objective": "ddpo", "metrics": {"examples": 29, "zero_weight_share": 0.344}}}
    path = tmp_path_factory.mktemp("report") / "report.html"
    rewards = rng.uniform(size=len(stories)).tolist()
    report.write(path, measured, PROMPTS, stories, rewards, semantic, trained, [("seed", "0")])
    return path, measured


@pytest.fixture
def page(made: tuple[Path, dict[str, Any]]) -> Iterator[Any]:
    with opened(made[0]) as page:
        yield page


def test_numbers_on_the_page_are_those_of_metrics_json(page: Any, made: tuple[Path, dict[str, Any]]) -> None:
    systems = json.loads(json.dumps(made[1]["systems"]))
    rows = page.eval_on_selector_all("#systems tbody tr", "rows => rows.map(r => [...r.children].map(c => c.innerText))")
    assert [row[0] for row in rows] == list(SYSTEMS)
    for name, *cells in rows:
        for (key, _, digits), cell in zip(report.COLUMNS, cells, strict=True):
            low, high = (number(systems[name][key][end], digits) for end in ("low", "high"))
            assert cell.split("\n") == [number(systems[name][key]["mean"], digits), f"[{low}, {high}]"]
    all_rows = page.eval_on_selector_all("#metrics tbody tr", "rows => rows.map(r => [...r.children].map(c => c.textContent))")
    for metric, row in zip(METRICS, all_rows, strict=True):
        assert row[0].startswith(metric.title)
        assert [cell.split("[")[0] for cell in row[1:]] == [
            number(systems[n][metric.key]["mean"], metric.digits) for n in SYSTEMS
        ]
    assert page.inner_text("#trainings tbody").split() == ["ddpo", "ddpo", "29", "0.344", "—", "—", "—", "—"]


def test_stories_are_shown_and_never_run(page: Any) -> None:
    assert page.title().startswith("Quality and diversity")
    assert "Story ddpo p0 0. <img src=x onerror=" in page.inner_text("details.prompt[open]")
    assert "{{ 7 * 7 }}" in page.inner_text("details.prompt[open]")
    assert page.query_selector_all("details img") == []
    assert page.problems == []


def test_two_systems_side_by_side_by_keyboard(page: Any) -> None:
    def shown() -> list[str]:
        sections = "details.prompt[open] [data-system]:not([hidden])"
        placed = page.eval_on_selector_all(sections, "s => s.map(e => [e.style.order, e.dataset.system])")
        return [name for _, name in sorted(placed)]

    def prompt() -> str:
        return page.inner_text("details.prompt[open] summary")[:8]

    assert shown() == ["ddpo", "dpo"]
    page.keyboard.press("s")
    assert shown() == ["dpo", "ddpo"]
    page.select_option("#left", GOLD)
    assert shown() == [GOLD, "ddpo"]
    page.focus("body")
    for key, expected in (("j", "Prompt 1"), ("j", "Prompt 2"), ("k", "Prompt 1")):
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press(key)
        assert prompt() == expected
    page.click("#following")
    assert prompt() == "Prompt 2"
    assert page.evaluate("document.activeElement.tagName") in ("SUMMARY", "BUTTON")
    assert page.problems == []


def test_the_most_alike_and_the_most_different_pair_are_marked(page: Any) -> None:
    badges = page.eval_on_selector_all(
        "details.prompt [data-system]", "s => s.map(e => [...e.querySelectorAll('.badge')].map(b => b.textContent).sort())"
    )
    assert len(badges) == len(PROMPTS) * len(SYSTEMS)
    assert all(found == ["= most alike"] * 2 + ["≠ most different"] * 2 for found in badges)


def test_extremes_by_hand() -> None:
    angles = np.radians([0, 10, 90])
    alike, different = extremes({n: np.array([np.cos(a), np.sin(a)]) for n, a in enumerate(angles, 1)})
    assert alike is not None and different is not None
    assert (alike.first, alike.second, alike.distance) == (1, 2, pytest.approx(1 - np.cos(np.radians(10))))
    assert (different.first, different.second, different.distance) == (1, 3, pytest.approx(1))
    assert extremes({1: np.array([1.0])}) == (None, None)


@pytest.mark.parametrize("dark", [False, True])
def test_on_a_phone(made: tuple[Path, dict[str, Any]], dark: bool) -> None:
    with opened(made[0], width=390, height=844, dark=dark) as page:
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        light = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0] > 128")
        assert light is not dark
        assert page.problems == []


def test_the_plane_as_rows(made: tuple[Path, dict[str, Any]]) -> None:
    """What dvc.yaml's plot reads; its template is valid Vega-Lite."""
    import altair

    rows = plane.rows(made[1]["systems"])
    assert {(row["system"], row["kind"]) for row in rows} == {(s, d) for s in SYSTEMS for d in plane.DIVERSITIES.values()}
    for row in rows:
        assert row["diversity_low"] <= row["diversity"] <= row["diversity_high"]
        assert row["reward"] == made[1]["systems"][row["system"]]["reward"]["mean"]
    template = (Path(__file__).parents[2] / ".dvc" / "plots" / "plane.json").read_text(encoding="utf-8")
    altair.Chart.from_dict(json.loads(template.replace('"<DVC_METRIC_DATA>"', json.dumps(rows))))
