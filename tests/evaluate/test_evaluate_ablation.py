"""Evaluations of several experiments beside one another."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from components.contracts import MEASUREMENTS, InputError
from components.evaluate.ablation import METRICS, Cell, draw, measure, table


def measurements(path: Path, systems: dict[str, float], prompts: int = 12, missing_gold: int = 2) -> Path:
    """Rewards around 0 and diversities around each system's figure, with the prompts' own differences on top."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, prompts)
    rows = [
        {"system": name, "prompt_id": f"p{p:02}", "metric": metric, "value": (0.0 if metric == "reward" else level) + noise[p]}
        for name, level in systems.items()
        for p in range(prompts - (missing_gold if name == "gold" else 0))
        for metric in (*METRICS, "words")
    ]
    MEASUREMENTS.write(path, rows)
    return path


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    plain = measurements(tmp_path / "plain", {"dpo": 0.3, "ddpo": 0.5, "gold": 0.6})
    floor = measurements(tmp_path / "floor", {"ddpo": 0.4, "gold": 0.6})
    return [
        Cell("dpo", "4", "", plain, "dpo"),
        Cell("ddpo-both", "4", "dpo", plain, "ddpo"),
        Cell("floor", "4", "dpo", floor, "ddpo"),
    ]


def test_differences_are_paired_across_experiments(cells: list[Cell]) -> None:
    """The prompts' own differences are the same in both, so a paired difference has no spread at all."""
    measured = measure(cells, seed=0)
    assert measured["prompts"] == 12
    dpo, both, floor = measured["cells"]
    assert "difference" not in dpo
    for cell, gain in ((both, 0.2), (floor, 0.1)):
        found = cell["difference"]["semantic_diversity"]
        assert cell["difference"]["from"] == "dpo"
        assert found["mean"] == pytest.approx(gain)
        assert found["high"] - found["low"] == pytest.approx(0, abs=1e-9)
        assert found["p"] <= found["p_adjusted"] < 0.05
        assert cell["difference"]["reward"]["mean"] == pytest.approx(0, abs=1e-9)
    assert dpo["reward"]["high"] - dpo["reward"]["low"] > 0.05
    assert set(measured["gold"]) == set(METRICS)


def test_table_and_figure(cells: list[Cell], tmp_path: Path) -> None:
    measured = measure(cells, seed=0)
    text = table(measured, "responses")
    assert "| 4 | floor | " in text
    assert "+0.100 [+0.100, +0.100] *" in text
    assert "12 prompts" in text
    draw(measured, "responses", tmp_path / "figure")
    assert (tmp_path / "figure").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_compared_is_refused(cells: list[Cell], tmp_path: Path) -> None:
    other = measurements(tmp_path / "other", {"ddpo": 0.5}, prompts=11)
    with pytest.raises(InputError, match="measured on other prompts"):
        measure([*cells, Cell("x", "6", "", other, "ddpo")], seed=0)
    with pytest.raises(InputError, match="no system orpo; it has ddpo, gold"):
        measure([Cell("x", "4", "", cells[2].measurements, "orpo")], seed=0)
