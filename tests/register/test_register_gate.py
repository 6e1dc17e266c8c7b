"""The gate's verdict, by hand."""

from __future__ import annotations

import pytest

from components.register.gate import judge
from components.register.params import Params


def difference(semantic: float, style: float, reward: float) -> dict[str, dict[str, float]]:
    """Lower ends of the intervals; the means lie 0.1 above."""
    lows = {"semantic_diversity": semantic, "style_diversity": style, "reward": reward}
    return {key: {"low": low, "mean": low + 0.1, "high": low + 0.2} for key, low in lows.items()}


@pytest.mark.parametrize(
    ("semantic", "style", "reward", "failed"),
    [
        (0.01, 0.01, 0.01, []),
        (0.01, 0.01, -0.099, []),
        (0.0, 0.01, 0.01, ["semantic_diversity"]),
        (0.01, -0.05, 0.01, ["style_diversity"]),
        (0.01, 0.01, -0.1, ["reward"]),
        (-1.0, -1.0, -1.0, ["semantic_diversity", "style_diversity", "reward"]),
        (float("nan"), 0.01, 0.01, ["semantic_diversity"]),
    ],
)
def test_both_axes_must_hold(semantic: float, style: float, reward: float, failed: list[str]) -> None:
    verdict = judge(difference(semantic, style, reward), "ddpo", "dpo", Params())
    assert [check.metric for check in verdict.checks if not check.passed] == failed
    assert verdict.passed == (not failed)


def test_bounds_are_parameters() -> None:
    found = difference(0.04, 0.06, -0.15)
    assert not judge(found, "ddpo", "dpo", Params(quality_tolerance=0.1)).passed
    assert judge(found, "ddpo", "dpo", Params(quality_tolerance=0.2)).passed
    assert not judge(found, "ddpo", "dpo", Params(quality_tolerance=0.2, diversity_gain=0.05)).passed


def test_reasons_name_what_failed() -> None:
    verdict = judge(difference(-0.1, 0.02, 0.0), "ddpo", "dpo", Params())
    assert verdict.reasons == "semantic_diversity: +0.000 [-0.100, +0.100] does not lie above +0.000"


def test_reasons_of_a_pass_name_everything() -> None:
    verdict = judge(difference(0.1, 0.02, 0.0), "ddpo", "dpo", Params())
    assert verdict.reasons.split("; ") == [
        "semantic_diversity: +0.200 [+0.100, +0.300] lies above +0.000",
        "style_diversity: +0.120 [+0.020, +0.220] lies above +0.000",
        "reward: +0.100 [+0.000, +0.200] lies above -0.100",
    ]
