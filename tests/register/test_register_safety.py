"""What is registered holds no secret, and nothing in the card does more than be read."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from mlflow.artifacts import download_artifacts

from components.lineage import tracking_client
from components.register.__main__ import STEP
from components.register.card import page, render
from tests.register.conftest import HOSTILE, Pipeline
from tests.test_redaction import SECRETS, leaks, written

FLAGS = ["--model=ddpo", "--evaluation=evaluation", "--version=version.json", "--metrics=metrics.json"]
MARKUP = (
    "<script>alert(1)</script> <img src=x onerror=alert(2)> [read](javascript:alert(3)) ![seen](https://evil.example/x.png) "
    "<https://evil.example> `</code><script>` {{ 7 * 7 }} | **bold**\n\n# Heading\n\n<iframe src=https://evil.example>"
)


def registered() -> dict[str, object]:
    Path("params.yaml").write_text("register: {}\n", encoding="utf-8")
    assert STEP.main(["--params=params.yaml", *FLAGS]) == 0
    version: dict[str, object] = json.loads(Path("version.json").read_text(encoding="utf-8"))
    return version


@pytest.mark.usefixtures("pipeline")
def test_no_secret_is_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    registered()
    assert (tmp_path / "mlflow.db").exists()
    kept = Path(download_artifacts("models:/polyphony/1", dst_path=str(tmp_path / "registered")))
    assert (kept / "README.md").exists() and (kept / "record.json").exists()
    assert not leaks(*capfd.readouterr(), *written(tmp_path))


def test_no_story_reaches_the_card_or_the_tags(pipeline: Pipeline) -> None:
    """They are people's, and untrusted; the evaluation, kept beside the model, has them as data and in its escaped report."""
    del pipeline
    version = registered()
    told = json.dumps(version) + json.dumps(tracking_client().search_model_versions()[0].tags)
    for name in ("README.md", "record.json"):
        told += Path(download_artifacts(f"models:/polyphony/1/{name}")).read_text(encoding="utf-8")
    assert "alert(1)" in HOSTILE and "alert(1)" not in told


def test_the_card_shows_markup_as_text(pipeline: Pipeline) -> None:
    """As a viewer that lets HTML through would show it."""
    del pipeline
    record = copy.deepcopy(registered()["record"])
    assert isinstance(record, dict)
    record["base_model"]["language"] = MARKUP
    record["measured"]["warnings"] = [MARKUP]
    for given in record["parameters"].values():
        given["ingest.source"] = MARKUP
    for text in (render(record), page(record, "1")):
        body = text.split("---\n", 2)[-1]
        tokens = [
            token
            for block in MarkdownIt("gfm-like", {"html": True, "linkify": False}).parse(body)
            for token in (block, *(block.children or []))
        ]
        assert not [token.content for token in tokens if token.type.startswith("html_")]
        assert not [token.attrs["href"] for token in tokens if token.type == "link_open"]
        assert {token.attrs["src"] for token in tokens if token.type == "image"} <= {"plane.png"}
        assert "Heading" not in [token.content for token in tokens if token.markup == "#"]
