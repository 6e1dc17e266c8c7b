"""What a step tells Kubeflow: every artifact, with its numbers or its digest."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from components.cli import Step
from components.contracts import atomic
from components.lineage import digest

STEP = Step(
    name="sketch",
    about="Draws a sketch.",
    sections=("weight",),
    outputs={"picture": "what is drawn"},
    pages={"frame": lambda outputs: f"<p>{outputs['picture'].read_text(encoding='utf-8')}</p>"},
)


def draw(**given: Any) -> dict[str, Any]:
    with atomic(given["picture"]) as partial:
        partial.write_text(f"seed {given['weight'].seed}", encoding="utf-8")
    return {"lines": 3, "of": {"pen": 2}, "tool": "pen", "undefined": float("nan")}


@pytest.fixture(autouse=True)
def step(monkeypatch: pytest.MonkeyPatch, store: Path) -> None:  # noqa: ARG001
    monkeypatch.setitem(sys.modules, "components.sketch.step", SimpleNamespace(run=draw))


def executor_input(tmp_path: Path, *names: str) -> str:
    """As Kubeflow gives it; it may name artifacts that the step does not know."""
    artifacts = {name: {"artifacts": [{"name": name, "uri": f"s3://bucket/{name}"}]} for name in names}
    outputs = {"outputFile": str(tmp_path / "told" / "executor_output.json"), "artifacts": artifacts}
    return json.dumps({"inputs": {"parameterValues": {"params": '{"weight": {}}'}}, "outputs": outputs})


def test_all_artifacts_are_told_with_numbers_and_digests(tmp_path: Path) -> None:
    given = executor_input(tmp_path, "picture", "metrics", "frame")
    words = ['--params={"weight": {"seed": 7}}', "--picture=out/picture", "--metrics=out/metrics", "--frame=out/frame"]
    assert STEP.main([*words, f"--executor-input={given}"]) == 0
    told = json.loads((tmp_path / "told" / "executor_output.json").read_text(encoding="utf-8"))["artifacts"]
    assert set(told) == {"picture", "metrics", "frame"}
    described = {name: found["artifacts"][0] for name, found in told.items()}
    assert {name: found["uri"] for name, found in described.items()} == {name: f"s3://bucket/{name}" for name in told}
    assert described["metrics"]["metadata"] == {"lines": 3.0, "of.pen": 2.0}
    assert described["picture"]["metadata"] == {"digest": digest(Path("out/picture"))}
    assert described["frame"]["metadata"] == {}
    assert Path("out/frame").read_text() == "<p>seed 7</p>"
    assert json.loads(Path("out/metrics").read_text())["lines"] == 3


def test_nothing_is_told_of_a_step_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "components.sketch.step", SimpleNamespace(run=fail))
    given = executor_input(tmp_path, "picture")
    assert STEP.main(['--params={"weight": {}}', "--picture=p", f"--executor-input={given}"]) == 130
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ('{"weight": {"sede": 3}}', "did you mean 'seed'?"),
        ('{"weight": {"seed": 3}', "--params: not readable as YAML"),
        ("{}", "--params: section(s) missing: weight"),
    ],
)
def test_mistakes_in_a_document_given_inline(
    document: str, told: str, capsys: pytest.CaptureFixture[str], write_params: Callable[..., Path]
) -> None:
    del write_params
    assert STEP.main([f"--params={document}", "--picture=p"]) == 2
    assert told in capsys.readouterr().err
