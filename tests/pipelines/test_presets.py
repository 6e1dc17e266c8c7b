"""Presets: each is valid, says what to run, and changes params.yaml without losing a word of it; estimates."""

from __future__ import annotations

import json
import shlex
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.params import check, load
from components.train.__main__ import STEP
from components.train.outlook import plan_model
from pipelines import presets
from pipelines.front_door import main
from tests.test_dvc_yaml import parameter

ROOT = Path(__file__).parents[2]
MODELS = ("llama-3.1-8b", "mistral-7b-v0.3")
RUNS = ("sft", "dpo", "ddpo-semantic", "ddpo-style", "ddpo-both", "orpo", "dorpo", "divpo")
LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "tie_word_embeddings": False,
}


@pytest.fixture
def params(tmp_path: Path) -> Path:
    return Path(shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml"))


def test_all_of_the_papers_runs_are_there() -> None:
    assert set(presets.names()) == {*MODELS, *RUNS, "writingprompts"}


@pytest.mark.parametrize("names", [("writingprompts", *both) for both in product(MODELS, RUNS)])
def test_every_run_is_valid(names: tuple[str, ...]) -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    list(presets.lay_over(document, presets.merged(names)))
    sections: Any = check(document, "presets")
    train, weight = sections["train"], sections["weight"]
    assert (train.lora.r, train.lora.alpha, train.lora.target_modules) == (128, 256, ("q_proj", "v_proj"))
    assert train.preference.learning_rate == train.orpo.learning_rate == 5e-6
    assert train.sft.batch_size == 12
    assert sections["models"].tokenizer == sections["models"].language.replace("-v0.3", "-Instruct-v0.3") or (
        sections["models"].tokenizer == f"{sections['models'].language}-Instruct"
    )
    run = names[-1]
    assert weight.pairs == ("divpo" if run == "divpo" else "gap")
    assert weight.deviation == (run.removeprefix("ddpo-") if run.startswith("ddpo-") else "both")


@pytest.mark.parametrize("name", RUNS)
def test_what_is_to_be_run_then(name: str) -> None:
    """Every stage exists, and every command is one that the step understands."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    for part in presets.load(name)["then"].split(" && "):
        words = shlex.split(part)
        if words[:2] == ["dvc", "repro"]:
            for stage in words[2:]:
                assert stage.partition("@")[0] in stages
                assert "@" not in stage or stage.partition("@")[2] in parameter("train.objectives")
        else:
            assert words[:3] == ["python", "-m", "components.train"]
            assert STEP.parser().parse_args(words[3:]).objective == name


def test_applied_by_name(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Values change, comments and order do not, and the values are read alike by DVC and by the steps."""
    before = params.read_text(encoding="utf-8")
    assert main(["preset", "ddpo-style", "--params", str(params), "--metrics", "none"]) == 0
    after = params.read_text(encoding="utf-8")
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines(), strict=True) if old != new]
    ((old, new),) = changed
    assert (old.split()[:2], new.split()[:2]) == (["deviation:", "both"], ["deviation:", "style"])
    assert old.partition("#")[2] == new.partition("#")[2]
    shown = capsys.readouterr().out
    assert "weight.deviation: both -> style" in shown and "then: dvc repro" in shown
    assert "135 million weights" in shown and "preference: at most about" in shown


def test_every_preset_leaves_every_comment(params: Path) -> None:
    comments = [line.partition("#")[2] for line in params.read_text(encoding="utf-8").splitlines()]
    document = presets._yaml().load(params.read_text(encoding="utf-8"))
    list(presets.lay_over(document, presets.merged(presets.names())))
    text = presets.dump(document)
    assert [line.partition("#")[2] for line in text.splitlines()] == comments
    params.write_text(text, encoding="utf-8")
    sections: Any = load(params)
    assert sections["train"].sft.learning_rate == 3e-5
    # YAML 1.1, which the steps read, takes 3e-05 for a text.
    assert yaml.safe_load(text)["train"]["sft"]["learning_rate"] == 3e-5


def test_a_dry_run_changes_nothing(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = params.read_bytes()
    assert main(["preset", "divpo", "--dry-run", "--params", str(params), "--metrics", "none"]) == 0
    assert params.read_bytes() == before
    assert "weight.pairs: gap -> divpo" in capsys.readouterr().out


def test_a_model_out_of_reach_is_no_obstacle(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preset", "llama-3.1-8b", "--params", str(params)]) == 0
    assert "no estimate: model 'meta-llama/Llama-3.1-8B'" in capsys.readouterr().out
    assert yaml.safe_load(params.read_text(encoding="utf-8"))["train"]["lora"]["r"] == 128
    assert main(["estimate", "--params", str(params)]) == 1


def test_a_preset_that_does_not_exist(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = params.read_bytes()
    assert main(["preset", "ddpo", "ddpo-bot", "--params", str(params)]) == 1
    assert "did you mean" in capsys.readouterr().err
    assert params.read_bytes() == before


def test_parameters_at_fault(params: Path, capsys: pytest.CaptureFixture[str]) -> None:
    params.write_text("weight: {flor: 1}\n", encoding="utf-8")
    assert main(["preset", "dpo", "--params", str(params)]) == 2
    assert "did you mean 'floor'" in capsys.readouterr().err
    assert params.read_text(encoding="utf-8") == "weight: {flor: 1}\n"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preset"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == presets.names()


def test_overrides_for_kubeflow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preset", "mistral-7b-v0.3", "divpo", "--overrides"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert found["weight"] == {"deviation": "both", "pairs": "divpo", "rho": 0.25}
    assert found["models"]["language"] == "mistralai/Mistral-7B-v0.3"


def test_estimates_of_known_data(params: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ingest = {"responses": 1000, "responses_of": {"train": 900, "test": 100}, "tokens": {"sum": 300_000, "max": 800}}
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "ingest.json").write_text(json.dumps(ingest), encoding="utf-8")
    assert main(["estimate", "--params", str(params), "--metrics", str(tmp_path / "metrics")]) == 0
    shown = capsys.readouterr().out
    assert "sft: 900 examples, 270,000 tokens, 1 times, in 225 steps" in shown
    # Until pairs are chosen, half as many as there are responses.
    assert "preference: 450 examples, 270,000 tokens, 1 times, in 113 steps" in shown
    (tmp_path / "metrics" / "weight.json").write_text('{"pairs": {"train": 40}}', encoding="utf-8")
    assert main(["estimate", "--params", str(params), "--metrics", str(tmp_path / "metrics")]) == 0
    assert "preference: 40 examples, 24,000 tokens, 1 times, in 10 steps" in capsys.readouterr().out


def test_llamas_arithmetic(tmp_path: Path) -> None:
    """Published: 8,030,261,248 weights; rank 128 on q (4096 to 4096) and v (4096 to 1024) of 32 layers."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA), encoding="utf-8")
    document = presets.merged(["llama-3.1-8b"])
    document["models"]["language"] = str(tmp_path)
    sections: Any = check({"models": document["models"], "train": document["train"]}, "test")
    model = plan_model(sections["train"], sections["models"])
    assert model.weights == 8_030_261_248
    assert model.trained == 32 * 128 * (4096 + 4096 + 4096 + 1024)
