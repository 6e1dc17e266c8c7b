"""Promotion on PostgreSQL and S3, as people do it."""

from __future__ import annotations

from pathlib import Path

import pytest

from components.lineage import tracking_client
from pipelines import platform
from tests.champion.conftest import better, polyphony, register, retrain
from tests.champion.test_champion_together import race
from tests.register.conftest import COMMIT, Pipeline, adapter

__all__ = ["adapter"]
pytestmark = pytest.mark.slow
NAME = "promoted"


def test_one_wins_and_the_way_back(
    trial: platform.Platform, adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", trial.uri)
    monkeypatch.setenv("POLYPHONY_COMMIT", COMMIT)
    pipeline = Pipeline(adapter)
    pipeline.write()
    pipeline.record()
    versions = [register(name=NAME)]
    for number in (1, 2):
        retrain(pipeline, f"on the platform {number}", better(0.1 * number))
        versions.append(register(name=NAME))
    race(versions[:2], NAME)
    first = str(tracking_client().get_registered_model(NAME).aliases["champion"])
    promote = ["promote", "--model", NAME, "--version", versions[2], "--reason", "more diverse", "--yes"]
    assert polyphony(*promote) == 0
    assert polyphony("compare", f"{NAME}@champion", f"{NAME}/{first}") == 0
    assert polyphony("rollback", "--model", NAME, "--reason", "complaints") == 0
    assert str(tracking_client().get_registered_model(NAME).aliases["champion"]) == first
    capsys.readouterr()
    assert polyphony("history", "--model", NAME) == 0
    shown = capsys.readouterr().out
    assert shown.count("did not count") == 1 and "complaints" in shown
    assert polyphony("export", f"{NAME}/{versions[2]}", "--output", "out") == 0
    assert (Path("out") / "adapter_model.safetensors").read_bytes() == Path("ddpo/adapter_model.safetensors").read_bytes()
