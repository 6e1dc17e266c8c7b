"""`polyphony`: what it shows, and what it says where there is nothing to show."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipelines.front_door import main, metrics_table, results_table

DIFFERENCE = {"mean": 0.02, "low": 0.01, "high": 0.03, "p_adjusted": 0.01}
DIFFERENCES = dict.fromkeys(
    ("reward", "words", *(f"{kind}_diversity{matched}" for kind in ("semantic", "style") for matched in ("", "_matched"))),
    DIFFERENCE,
)
MEASURED: dict[str, Any] = {
    "prompts": 7,
    "samples": 4,
    "systems": {
        name: {
            "reward": {"mean": -0.1, "low": -0.25, "high": 0.05},
            "semantic_diversity": {"mean": 0.4444, "low": 0.3, "high": 0.5},
            "style_diversity": {"mean": 0.2, "low": 0.1, "high": 0.3},
            "words": {"mean": 101.6, "low": 90.2, "high": 1200.0},
        }
        for name in ("gold", "ddpo")
    },
    "differences": dict.fromkeys(("ddpo-gold", "dpo-gold", "dpo-ddpo"), DIFFERENCES),
    "matched_words": 50,
    "warnings": [],
}
OTHERS = {
    key: {"mean": 0.25, "low": 0.1, "high": 0.3} for key in ("semantic_diversity", "style_diversity", "words", "homogenisation")
}
VERSION = {
    "name": "polyphony",
    "version": 3,
    "status": "rejected",
    "reasons": "semantic_diversity: too low; reward: too low",
}


def write(folder: Path, *, version: bool = True) -> Path:
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(MEASURED), encoding="utf-8")
    if version:
        (folder / "version.json").write_text(json.dumps(VERSION), encoding="utf-8")
    return folder


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = write(tmp_path / "artifacts")
    assert main(["results", "--artifacts", str(artifacts)]) == 0
    shown = capsys.readouterr().out
    assert results_table(MEASURED) in shown
    assert "7 test prompts x 4 samples" in shown
    assert "ddpo is more diverse than people in meaning by 0.020 [0.010, 0.030]" in shown
    assert "Registered: polyphony version 3, rejected" in shown
    assert "  semantic_diversity: too low\n  reward: too low\n" in shown
    assert str(artifacts / "evaluation" / "report.html") in shown
    assert "make mlflow" in shown


def test_the_table_is_aligned() -> None:
    lines = results_table(MEASURED).splitlines()
    assert lines[0].split("  ")[0] == "system"
    assert lines[1].split() == "gold -0.100 [-0.250, 0.050] 0.444 [0.300, 0.500] 0.200 [0.100, 0.300] 102 [90, 1200]".split()
    columns = [line.index("[") for line in lines[1:]]
    assert len(set(columns)) == 1
    assert lines[0].index("words") == lines[1].index("102")


def test_all_metrics_are_shown_with_their_meaning_and_warnings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifacts = write(tmp_path / "artifacts")
    measured = {**MEASURED, "warnings": ["The reward model is no better than length."]}
    measured["systems"] = {**MEASURED["systems"], "dpo": {"reward": {"mean": 1.0, "low": 0.5, "high": 2.0}, **OTHERS}}
    (artifacts / "evaluation" / "metrics.json").write_text(json.dumps(measured), encoding="utf-8")
    lines = metrics_table(measured).splitlines()
    assert lines[0].split() == ["metric", "gold", "ddpo", "dpo"]
    assert lines[1].split() == ["reward", "↑", "-0.100", "-0.100", "1.000"]
    assert ["homogenisation", "↓", "-", "-", "0.250"] in [line.split() for line in lines]
    assert "homogenisation: mean ROUGE-L F1 of two stories" in lines
    assert not [line for line in lines if "Vendi" in line]
    assert main(["results", "--artifacts", str(artifacts), "--all"]) == 0
    shown = capsys.readouterr().out
    assert metrics_table(measured) in shown
    assert "Warning: The reward model is no better than length.\n" in shown


def test_the_table_fits_120_columns() -> None:
    """For the systems of the graph, whatever their numbers."""
    wide = {"mean": -0.5, "low": -0.75, "high": -0.25}
    metrics = dict.fromkeys(MEASURED["systems"]["gold"], wide) | {"words": {"mean": 1234.0, "low": 1111.0, "high": 1999.0}}
    table = results_table({"systems": {"ddpo-high-quality": metrics}})
    assert max(map(len, table.splitlines())) <= 120


def test_nothing_there_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "--artifacts", str(tmp_path / "none")]) == 1
    assert "nothing there yet. `make demo` or `dvc repro` writes it." in capsys.readouterr().err


def test_evaluated_and_not_registered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results", "--artifacts", str(write(tmp_path / "half", version=False))]) == 0
    shown = capsys.readouterr().out
    assert results_table(MEASURED) in shown
    assert "Not registered yet" in shown


@pytest.mark.parametrize("words", [[], ["resluts"], ["results", "--artefacts", "x"]])
def test_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert "usage: polyphony" in capsys.readouterr().err


def test_help_needs_nothing_heavy() -> None:
    """Modules of the standard library only: that is what makes it answer at once."""
    code = (
        "import sys\nfrom pipelines.front_door import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print(sorted({'numpy', 'pyarrow', 'torch', 'mlflow', 'pydantic', 'yaml'} & set(sys.modules)))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
    assert "results" in done.stdout
