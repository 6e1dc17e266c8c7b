"""The experiments of an ablation set parameters that exist, to values that are allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from components.params import check
from pipelines.ablations import ablation
from pipelines.front_door import main

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["responses", "deviation"])
def test_every_experiment_is_a_valid_change_of_params_yaml(name: str) -> None:
    chosen = ablation(name)
    methods = {method for experiment in chosen.experiments for method in experiment.methods.values()}
    assert chosen.baseline in methods
    assert len({experiment.name for experiment in chosen.experiments}) == len(chosen.experiments)
    for experiment in chosen.experiments:
        document: Any = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        for setting in experiment.settings:
            path, _, value = setting.partition("=")
            *sections, key = path.split(".")
            place = document
            for section in sections:
                place = place[section]
            assert key in place, path
            place[key] = yaml.safe_load(value)
        assert list(check(document, "params")["train"].objectives) == list(experiment.methods)


def test_the_grid_is_that_of_the_paper() -> None:
    responses = ablation("responses")
    assert [e.at for e in responses.experiments if e.name.endswith("plain")] == ["2", "4", "6", "8", "12"]
    at_four = {method for e in responses.experiments if e.at == "4" for method in e.methods.values()}
    assert at_four == {"dpo", "divpo", "ddpo-both", "ddpo-both, floor", "ddpo-both, best winners"}
    deviation = ablation("deviation")
    assert {(e.at, method) for e in deviation.experiments for method in e.methods.values()} == {
        (kind, objective) for kind in ("semantic", "style", "both") for objective in ("ddpo", "dorpo")
    }


@pytest.mark.parametrize(
    ("counts", "told"), [("2,four", "expected numbers"), ("1,2", "different numbers from 2 on"), ("2,2", "different numbers")]
)
def test_numbers_that_cannot_be_are_refused(counts: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "figure", "responses", "--responses", counts]) == 1
    assert told in capsys.readouterr().err
