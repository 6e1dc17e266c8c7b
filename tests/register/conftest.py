"""A pipeline's record on small files: every step's run, a real adapter, an evaluation."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest

from components.contracts import EXAMPLES, MEASUREMENTS
from components.evaluate.catalogue import described
from components.lineage import RAW, step_run, tracking_client

COMMIT = "c" * 40
PARAMETERS = {
    "ingest": {"source": "s3://me:hidden@bucket/stories.jsonl"},
    "train": {"seed": 0, "preference": {"beta": 0.1, "note": "a|b\nc"}},
    "evaluate": {"seed": 0, "samples": 4, "temperature": 1.0},
    "models": {"language": "tiny", "semantic": "stylometric", "style": "stylometric", "dtype": "float32", "max_tokens": 64},
}
WARNING = "The reward model is no better than length."
HOSTILE = "</p><script>alert(1)</script>"


def interval(mean: float, width: float = 0.1) -> dict[str, float]:
    return {"mean": mean, "low": mean - width, "high": mean + width}


def measurements(semantic: float = 0.3, style: float = 0.2, reward: float = 0.05) -> dict[str, Any]:
    """An evaluation's `metrics.json`, in which ddpo differs from dpo by so much, each time plus or minus 0.1."""

    def system(shift: float) -> dict[str, dict[str, float]]:
        means = {"reward": 0.123, "semantic_diversity": 0.456, "style_diversity": 0.234, "words": 101.5}
        return {key: interval(mean + shift) for key, mean in means.items()}

    difference = {
        "reward": interval(reward),
        "semantic_diversity": interval(semantic),
        "style_diversity": interval(style),
        "words": interval(3.0),
    }
    return {
        "prompts": 7,
        "samples": 4,
        "systems": {"gold": system(0.1), "sft": system(0.0), "dpo": system(0.01), "ddpo": system(0.02)},
        "differences": {"ddpo-dpo": difference, "ddpo-sft": difference},
        "metrics": described(difference),
        "warnings": [WARNING],
    }


def per_prompt(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of each prompt whose means are those of `measured`: all prompts alike but for a little that cancels out."""
    prompts = measured["prompts"]
    spread = [0.001 * (number - (prompts - 1) / 2) for number in range(prompts)]
    return [
        {"system": system, "prompt_id": f"prompt-{number}", "metric": metric, "value": interval["mean"] + spread[number]}
        for system, metrics in measured["systems"].items()
        for metric, interval in metrics.items()
        for number in range(prompts)
    ]


def examples(measured: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stories for the first two prompts, hostile ones among them."""
    return [
        {
            "system": system,
            "prompt_id": f"prompt-{number}",
            "prompt": f"Write about {number}. {HOSTILE}",
            "sample": sample,
            "text": f"{system} tells {number}.{sample} {HOSTILE}",
            "tokens": 7,
            "finish_reason": "human" if system == "gold" else "stop",
            "reward": 0.5,
        }
        for system in measured["systems"]
        for number in range(2)
        for sample in range(measured["samples"])
    ]


@dataclass
class Pipeline:
    """Steps that write files into the working directory and are recorded as the command line records them."""

    adapter: Path
    runs: dict[str, str] = field(default_factory=dict)

    def do(self, step: str, inputs: Mapping[str, str], outputs: Mapping[str, str], metrics: Mapping[str, Any]) -> None:
        """A finished step; inputs and outputs are name -> path."""
        with step_run(step, PARAMETERS, {name: Path(path) for name, path in inputs.items()}) as run:
            active = mlflow.active_run()
            assert active is not None
            self.runs[step] = active.info.run_id
            # As libraries do, beside the step's own parameters.
            mlflow.log_param("logged_by_a_library", "x")
            run.finish({name: Path(path) for name, path in outputs.items()}, metrics)

    def write(self) -> None:
        """What the steps before the evaluation write."""
        for name in ("raw", "responses", "pairs", "deviations", "reference", "validation-a", "validation-b"):
            Path(name).write_text(name, encoding="utf-8")
        for name in ("reward", "sft", "dpo", "ddpo"):
            folder = Path(name)
            folder.mkdir(exist_ok=True)
            for file in self.adapter.iterdir():
                (folder / file.name).write_bytes(file.read_bytes())
            (folder / "training.json").write_text(json.dumps({"objective": name}), encoding="utf-8")

    def record(self) -> None:
        """Runs of all steps."""
        data = {"responses": "responses", "validation": "validation-a"}
        tuned = {"pairs": "pairs", "reference": "reference", "sft": "sft", "validation": "validation-b"}
        self.do("ingest", {RAW: "raw"}, {"responses": "responses"}, {"responses": 1234567, "rejected": {"duplicate": 3}})
        self.do("validate-responses", {"responses": "responses"}, {"validation": "validation-a"}, {"passed": 1})
        self.do(
            "weight", {"responses": "responses"}, {"deviations": "deviations", "pairs": "pairs"}, {"mean_score_gap": 12.345678}
        )
        self.do("validate-weights", {"pairs": "pairs"}, {"validation": "validation-b"}, {"passed": 1})
        self.do("train-reward", data, {"model": "reward"}, {"spearman": 0.4321, "mae": None, "loss": 0.999})
        self.do("train-sft", data, {"model": "sft"}, {})
        self.do("reference", {"pairs": "pairs", "sft": "sft"}, {"reference": "reference"}, {})
        self.do("train-dpo", tuned, {"model": "dpo"}, {})
        self.do("train-ddpo", tuned | {"deviations": "deviations"}, {"model": "ddpo"}, {})
        self.evaluate(measurements())

    def evaluate(self, measured: Mapping[str, Any]) -> None:
        """An evaluation that finds this."""
        Path("evaluation").mkdir(exist_ok=True)
        Path("evaluation/metrics.json").write_text(json.dumps(measured), encoding="utf-8")
        Path("evaluation/report.html").write_text("<!doctype html>", encoding="utf-8")
        values = per_prompt(measured)
        MEASUREMENTS.write(Path("evaluation/measurements.parquet"), values)
        EXAMPLES.write(Path("evaluation/examples.parquet"), examples(measured))
        systems = {name: name for name in ("sft", "dpo", "ddpo")}
        self.do("evaluate", {"responses": "responses", "reward": "reward", **systems}, {"evaluation": "evaluation"}, {})

    def forget(self, step: str) -> None:
        """As though the step had run elsewhere, with another store."""
        tracking_client().delete_run(self.runs[step])


@pytest.fixture(scope="session")
def adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of the tiny model, with weights that change what it computes."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    folder = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    (folder / "README.md").unlink()
    return folder


@pytest.fixture(scope="session")
def recorded(adapter: Path, empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pipeline]:
    """A folder with a pipeline's artifacts and the store that has its runs."""
    folder = tmp_path_factory.mktemp("pipeline")
    shutil.copy(empty_store, folder / "mlflow.db")
    made = Pipeline(adapter)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # MLflow leaves there what it was told last.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.setenv("POLYPHONY_COMMIT", COMMIT)
        made.write()
        made.record()
    return folder, made


@pytest.fixture
def pipeline(recorded: tuple[Path, Pipeline], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """The same in the test's folder, to be changed."""
    folder, made = recorded
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv("POLYPHONY_COMMIT", COMMIT)
    return Pipeline(made.adapter, dict(made.runs))
