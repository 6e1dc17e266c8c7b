"""What a run records of the code, packages, image and engine that ran it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from components import provenance


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A committed checkout, which is taken for the project's own."""
    for name in ("components/provenance.py", "dvc.lock", "metrics/weight.json", "params.yaml", "dvc.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / ".gitignore").write_text("__pycache__/\n", encoding="utf-8")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "m"]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=e", *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "components" / "provenance.py"))
    monkeypatch.delenv("POLYPHONY_COMMIT", raising=False)
    return tmp_path


def head(folder: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_an_image_names_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYPHONY_COMMIT", "0" * 40)
    assert provenance.git_state() == {"commit": "0" * 40, "dirty": "false"}


def test_outside_a_checkout_nothing_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("POLYPHONY_COMMIT", raising=False)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "components" / "provenance.py"))
    assert provenance.git_state() == {"commit": "unknown", "dirty": "unknown"}


@pytest.mark.parametrize("name", ["dvc.lock", "metrics/weight.json", "params.yaml", "notes.txt", "components/__pycache__/x"])
def test_what_is_no_code_may_change(checkout: Path, name: str) -> None:
    (checkout / name).parent.mkdir(exist_ok=True)
    (checkout / name).write_bytes(b"changed")
    assert provenance.git_state() == {"commit": head(checkout), "dirty": "false"}


@pytest.mark.parametrize("name", ["components/provenance.py", "dvc.yaml", "components/untracked.py"])
def test_what_is_code_may_not(checkout: Path, name: str) -> None:
    (checkout / name).write_bytes(b"changed")
    assert provenance.git_state() == {"commit": head(checkout), "dirty": "true"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"engine": "command line"}),
        ({"DVC_STAGE": "train@ddpo"}, {"engine": "dvc", "dvc.stage": "train@ddpo"}),
        (
            {"DVC_STAGE": "weight", "DVC_EXP_NAME": "salty-dog"},
            {"engine": "dvc", "dvc.stage": "weight", "engine.run": "salty-dog"},
        ),
        (
            {"POLYPHONY_RUN_ID": "1-2", "POLYPHONY_IMAGE": "registry/light@sha256:1"},
            {"engine": "kubeflow", "engine.run": "1-2", "image": "registry/light@sha256:1"},
        ),
        ({"POLYPHONY_ENGINE": "kfp.local"}, {"engine": "kfp.local"}),
    ],
)
def test_engines(variables: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DVC_STAGE", "DVC_EXP_NAME", "POLYPHONY_RUN_ID", "POLYPHONY_IMAGE", "POLYPHONY_ENGINE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = provenance.provenance()
    assert {key: found[key] for key in found.keys() - {"commit", "dirty", "packages"}} == expected
    versions = json.loads(found["packages"])
    assert {"python", "torch", "mlflow"} <= versions.keys()
