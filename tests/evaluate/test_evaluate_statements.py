"""What the report says in words, and where it puts the points."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.evaluate.plane import HEIGHT, WIDTH, draw, panels
from components.evaluate.statements import number, statement, statements

# Mean, interval, p after correction.
Values = tuple[float, float, float, float]
UP, DOWN, UNCLEAR = ((0.03, 0.01, 0.05, 0.01), (-0.2, -0.3, -0.1, 0.049), (0.004, -0.01, 0.018, 0.6))
# The interval leaves 0 out, but with so many comparisons that is no wonder.
MANY = (0.03, 0.001, 0.06, 0.2)
LONGER = (40.2, 30.0, 50.4, 0.001)
Interval = dict[str, float]


def interval(values: tuple[float, ...]) -> Interval:
    return dict(zip(("mean", "low", "high", "p_adjusted"), values, strict=False))


def difference(
    semantic: Values, style: Values, reward: Values, words: Values = UNCLEAR, matched: tuple[Values, Values] | None = None
) -> dict[str, Interval]:
    found = {"semantic_diversity": semantic, "style_diversity": style, "reward": reward, "words": words}
    found |= dict(zip(("semantic_diversity_matched", "style_diversity_matched"), matched or (semantic, style), strict=True))
    return {name: interval(values) for name, values in found.items()}


@pytest.mark.parametrize(
    ("semantic", "style", "reward", "expected"),
    [
        (
            UP,
            UP,
            DOWN,
            "ddpo is more diverse than dpo in meaning by 0.030 [0.010, 0.050] and in style by 0.030 [0.010, 0.050], "
            "at a quality difference of −0.200 [−0.300, −0.100].",
        ),
        (
            UP,
            DOWN,
            UP,
            "ddpo is more diverse than dpo in meaning by 0.030 [0.010, 0.050], and is less diverse than dpo in style by 0.200 "
            "[0.100, 0.300], at a quality difference of +0.030 [+0.010, +0.050].",
        ),
        (
            UNCLEAR,
            UP,
            UNCLEAR,
            "ddpo is more diverse than dpo in style by 0.030 [0.010, 0.050], and not shown to differ in meaning (+0.004 "
            "[−0.010, +0.018]), at a quality difference of +0.004 [−0.010, +0.018], which may be chance.",
        ),
        (
            UNCLEAR,
            UNCLEAR,
            DOWN,
            "ddpo is not shown to differ from dpo in diversity, in meaning (+0.004 [−0.010, +0.018]) or in style (+0.004 "
            "[−0.010, +0.018]), at a quality difference of −0.200 [−0.300, −0.100].",
        ),
        (
            MANY,
            UP,
            MANY,
            "ddpo is more diverse than dpo in style by 0.030 [0.010, 0.050], and not shown to differ in meaning (+0.030 "
            "[+0.001, +0.060], corrected p 0.20), at a quality difference of +0.030 [+0.001, +0.060], corrected p 0.20, which "
            "may be chance.",
        ),
    ],
)
def test_statement(semantic: Values, style: Values, reward: Values, expected: str) -> None:
    assert statement("ddpo", "dpo", difference(semantic, style, reward), 50, False) == expected
    doubted = statement("ddpo", "dpo", difference(semantic, style, reward), 50, True)
    assert doubted == expected.removesuffix(".") + "; mind the warning about the reward model."


@pytest.mark.parametrize(
    ("words", "matched", "expected"),
    [
        (LONGER, (UP, DOWN), ""),
        (UNCLEAR, (UNCLEAR, UP), ""),
        (
            LONGER,
            (UNCLEAR, DOWN),
            " Stories of ddpo are longer by 40 [30, 50] words. In the first 50 words of all, ddpo is not shown to differ from "
            "people in diversity, in meaning (+0.004 [−0.010, +0.018]).",
        ),
        (
            DOWN,
            (DOWN, UNCLEAR),
            " Stories of ddpo are shorter by 0 [0, 0] words. In the first 50 words of all, ddpo is less diverse than people in "
            "meaning by 0.200 [0.100, 0.300], and not shown to differ in style (+0.004 [−0.010, +0.018]).",
        ),
    ],
)
def test_length_is_spoken_of_where_it_changes_what_is_said(
    words: Values, matched: tuple[Values, Values], expected: str
) -> None:
    usual = statement("ddpo", "gold", difference(UP, DOWN, UNCLEAR), 50, False)
    assert statement("ddpo", "gold", difference(UP, DOWN, UNCLEAR, words, matched), 50, False) == usual + expected


def test_every_two_systems_once_and_people_last() -> None:
    names = ["sft", "dpo", "ddpo", "gold"]
    same = difference(UP, UP, UP)
    said = statements(
        {
            "systems": dict.fromkeys(names),
            "differences": {f"{a}-{b}": same for a in names for b in names if a != b},
            "matched_words": 50,
            "warnings": [],
        }
    )
    pairs = [(text.split()[0], text.split("than ")[1].split()[0]) for text in said]
    assert pairs == [
        ("ddpo", "dpo"),
        ("ddpo", "sft"),
        ("dpo", "sft"),
        ("ddpo", "people"),
        ("dpo", "people"),
        ("sft", "people"),
    ]


def test_what_the_pipeline_trained_comes_first() -> None:
    names = ["dpo", "ddpo", "base", "hot", "gold"]
    origins = {"dpo": {"adapter": "1"}, "ddpo": {"adapter": "2"}, "base": {"model": "m"}, "hot": {"like": "ddpo"}}
    differences = {f"{a}-{b}": difference(UP, UP, UP) for a in names for b in names if a != b}
    said = statements(
        {
            "systems": dict.fromkeys(names),
            "origins": origins,
            "differences": differences,
            "matched_words": 50,
            "warnings": [],
        }
    )
    pairs = [(text.split()[0], text.split("than ")[1].split()[0]) for text in said]
    assert pairs[:3] == [("ddpo", "dpo"), ("ddpo", "people"), ("dpo", "people")]
    assert pairs[3:7] == [("ddpo", "hot"), ("ddpo", "base"), ("dpo", "hot"), ("dpo", "base")]
    assert len(pairs) == len(set(pairs)) == 10
    assert pairs[-1] == ("hot", "base")


def test_every_system_is_in_the_legend_of_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    names = [f"a-system-by-a-long-name-{n}" for n in range(12)] + ["gold"]
    metrics = dict.fromkeys(("reward", "semantic_diversity", "style_diversity"), interval(UP))
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    draw(dict.fromkeys(names, metrics), tmp_path / "plane.png")
    (figure,) = figures
    figure.draw_without_rendering()
    box, (legend,) = figure.bbox, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == names
    assert box.x0 <= legend.get_window_extent().x0 and legend.get_window_extent().x1 <= box.x1
    looks = {(line[0].get_marker(), line[0].get_color()) for line in figure.axes[0].containers}
    assert len(looks) == len(names)


@pytest.mark.parametrize(("value", "text"), [(-0.0001, "0.000"), (-0.25, "−0.250"), (0.0, "0.000"), (12.3456, "12.346")])
def test_number(value: float, text: str) -> None:
    assert number(value) == text


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-3, 3)] * 3, *[st.floats(0, 2)] * 3), min_size=1, max_size=6))
def test_the_plane_shows_every_system(places: list[tuple[float, ...]]) -> None:
    names = ["gold", *(f"system-{i}" for i in range(5))][: len(places)]
    metrics = ("reward", "semantic_diversity", "style_diversity")
    systems = {
        name: {m: interval((v, v - width, v + width)) for m, v, width in zip(metrics, place[:3], place[3:], strict=True)}
        for name, place in zip(names, places, strict=True)
    }
    for panel in panels(systems):
        assert [point.name for point in panel.points] == names
        for point in panel.points:
            assert panel.left <= point.x_low <= point.x <= point.x_high <= panel.right
            assert panel.top <= point.y_high <= point.y <= point.y_low <= panel.bottom
        for x, _ in panel.x_ticks:
            assert 0 <= x <= WIDTH
        for y, _ in panel.y_ticks:
            assert 0 <= y <= HEIGHT
        assert len({(point.label_x, point.label_y) for point in panel.points}) == len(names)
