"""Versions of a model in the registry: what `register` makes of trainings and evaluations."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from components.lineage import step_run
from components.register.params import Params
from components.register.step import run
from pipelines.front_door import main
from tests.register.conftest import COMMIT, Pipeline, adapter, measurements, pipeline, recorded

__all__ = ["adapter", "pipeline", "recorded"]
NAME = "polyphony"


def register(model: str = "ddpo", **options: Any) -> str:
    """Registers as the command line does; returns the version's number."""
    with step_run("register", {}, {}):
        run(register=Params(**options), model=Path(model), evaluation=Path("evaluation"), version=Path("version.json"))
    return str(json.loads(Path("version.json").read_text(encoding="utf-8"))["version"])


def retrain(pipeline: Pipeline, note: str, measured: Mapping[str, Any] | None = None) -> None:
    """Another training and its evaluation, of the same systems; nothing else changes."""
    Path("ddpo/training.json").write_text(json.dumps({"note": note}), encoding="utf-8")
    pipeline.do("train-ddpo", {"pairs": "pairs", "deviations": "deviations", "sft": "sft"}, {"model": "ddpo"}, {})
    pipeline.evaluate(measured or measurements())


def better(by: float) -> dict[str, Any]:
    """An evaluation in which ddpo is by so much more diverse than `measurements` has it, at the same reward."""
    found = measurements()
    for metric in ("semantic_diversity", "style_diversity"):
        for part in (found["systems"]["ddpo"], found["differences"]["ddpo-dpo"]):
            part[metric] = {key: value + by for key, value in part[metric].items()}
    return found


def polyphony(*words: str) -> int:
    return main(words)


@pytest.fixture(scope="session")
def three(recorded: tuple[Path, Pipeline], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with three versions in its store, each more diverse than the one before, on the same evaluation set."""
    folder = tmp_path_factory.mktemp("three") / "versions"
    source, made = recorded
    shutil.copytree(source, folder)
    pipeline = Pipeline(made.adapter, dict(made.runs))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("POLYPHONY_COMMIT", COMMIT)
        numbers = [register()]
        for step in (1, 2):
            retrain(pipeline, str(step), better(0.1 * step))
            numbers.append(register())
    return folder, numbers


@pytest.fixture
def versions(three: tuple[Path, list[str]], pipeline: Pipeline, tmp_path: Path) -> list[str]:
    """The same in the test's folder, to be changed; their artifacts are shared."""
    del pipeline
    folder, numbers = three
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return numbers
