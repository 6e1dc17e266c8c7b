"""Registration: what becomes a version, with what, and once."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from components.contracts import InputError
from components.lineage import digest, step_run, tracking_client
from components.register.__main__ import STEP
from components.register.params import Params
from components.register.record import tags
from components.register.step import run
from tests.register.conftest import COMMIT, WARNING, Pipeline, measurements

NAME = "polyphony"
pytestmark = pytest.mark.usefixtures("pipeline")


def register(model: str = "ddpo", **options: Any) -> dict[str, Any]:
    """Registers inside a run, as the command line does; returns what `version.json` says."""
    with step_run("register", {}, {}):
        run(
            register=Params(**options),
            model=Path(model),
            evaluation=Path("evaluation"),
            version=Path("version.json"),
        )
    summary: dict[str, Any] = json.loads(Path("version.json").read_text(encoding="utf-8"))
    return summary


def versions(name: str = NAME) -> list[Any]:
    return list(tracking_client().search_model_versions(f"name = '{name}'"))


def downloaded() -> Path:
    return Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}@candidate"))


def test_a_model_that_passes_becomes_the_candidate() -> None:
    summary = register()
    assert (summary["name"], summary["version"], summary["status"], summary["alias"]) == (NAME, 1, "candidate", ["candidate"])
    version = tracking_client().get_model_version_by_alias(NAME, "candidate")
    assert int(version.version) == 1
    assert version.tags["validation_status"] == "candidate"
    assert version.tags["gate.passed"] == "true"
    assert version.tags["gate.baseline"] == "dpo"
    assert version.tags["gate.reasons"] == version.description == summary["reasons"]
    assert version.tags["commit"] == COMMIT
    assert version.tags["dirty"] == "false"


def test_digests_are_those_of_the_files() -> None:
    summary = register()
    [version] = versions()
    assert version.tags["model.digest"] == digest(Path("ddpo"))
    assert version.tags["evaluation.digest"] == digest(Path("evaluation"))
    assert version.tags["data.digest"] == digest(Path("raw"))
    expected = {"raw": "raw", "validation-a": "validation", "validation-b": "validation"}
    expected |= {name: name for name in ("evaluation", "responses", "pairs", "deviations", "reference")}
    expected |= {name: name for name in ("reward", "sft", "dpo", "ddpo")}
    assert summary["digests"] == {digest(Path(path)): name for path, name in expected.items()}


def test_the_registered_folder_is_the_model_with_its_card_and_lineage(pipeline: Pipeline) -> None:
    register()
    folder = downloaded()
    assert {file.name for file in folder.iterdir()} == {file.name for file in Path("ddpo").iterdir()} | {
        "README.md",
        "lineage.json",
        "record.json",
    }
    for file in Path("ddpo").iterdir():
        if file.name != "README.md":
            assert (folder / file.name).read_bytes() == file.read_bytes()
    tree = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    walked = [digest(Path("evaluation"))]
    for entry in walked:
        walked += [source for source in tree[entry]["inputs"] if source not in walked]
    assert set(walked) == set(tree)
    assert tree[digest(Path("raw"))]["run_id"] == ""
    assert tree[digest(Path("ddpo"))]["run_id"] == pipeline.runs["train-ddpo"]
    assert {entry["commit"] for entry in tree.values() if entry["run_id"]} == {COMMIT}


def test_the_registered_adapter_loads(tiny_model: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    register()
    ids = torch.arange(3, 20)[None]

    def logits(folder: Path | None) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(tiny_model)
        model = PeftModel.from_pretrained(base, folder) if folder else base
        with torch.inference_mode():
            return model(input_ids=ids).logits

    assert torch.equal(logits(downloaded()), logits(Path("ddpo")))
    assert not torch.equal(logits(downloaded()), logits(None))


def test_a_model_that_fails_is_registered_as_rejected(pipeline: Pipeline) -> None:
    pipeline.evaluate(measurements(semantic=0.05, reward=-0.3))
    summary = register()
    assert (summary["version"], summary["status"], summary["alias"]) == (1, "rejected", [])
    [version] = versions()
    assert version.tags["validation_status"] == "rejected"
    assert version.tags["gate.passed"] == "false"
    reasons = version.tags["gate.reasons"].split("; ")
    assert [reason.split(":")[0] for reason in reasons] == ["semantic_diversity", "reward"]
    assert all("does not lie above" in reason for reason in reasons)
    assert {check["metric"]: check["low"] > check["bound"] for check in summary["gate"]} == {
        "semantic_diversity": False,
        "style_diversity": True,
        "reward": False,
    }
    with pytest.raises(MlflowException, match="candidate"):
        tracking_client().get_model_version_by_alias(NAME, "candidate")


def test_a_rejected_version_leaves_the_candidate() -> None:
    register()
    assert register(diversity_gain=1.0)["version"] == 2
    assert str(tracking_client().get_model_version_by_alias(NAME, "candidate").version) == "1"


def test_registered_twice_it_is_one_version() -> None:
    first = register()
    assert register() == first
    assert len(versions()) == 1


def test_what_differs_is_another_version(pipeline: Pipeline) -> None:
    """Another gate is another verdict, another evaluation another measurement."""
    assert register()["version"] == 1
    assert register(quality_tolerance=0.2)["version"] == 2
    pipeline.evaluate(measurements(semantic=0.4))
    assert register()["version"] == 3
    assert register(name="other")["version"] == 1


CALLS = ("create_registered_model", "search_model_versions", "log_artifacts", "create_model_version")


@pytest.mark.parametrize("call", [*CALLS, "set_registered_model_alias", "get_model_version"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_and_run_again_it_is_one_complete_version(monkeypatch: pytest.MonkeyPatch, call: str, after: bool) -> None:
    original = getattr(MlflowClient, call)

    class KilledError(BaseException):
        pass

    def killed(self: MlflowClient, *arguments: Any, **rest: Any) -> None:
        if after:
            original(self, *arguments, **rest)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, call, killed)
        with pytest.raises(KilledError):
            register()
    assert not Path("version.json").exists()
    # Whatever is in the registry by now is complete but for the alias.
    for version in versions():
        assert version.tags["validation_status"] == "candidate"
        assert (Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/{version.version}")) / "README.md").is_file()
    summary = register()
    assert (summary["version"], summary["alias"], len(versions())) == (1, ["candidate"], 1)
    assert (downloaded() / "adapter_model.safetensors").read_bytes() == Path("ddpo/adapter_model.safetensors").read_bytes()


def test_killed_before_the_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("components.register.step.atomic", lambda path: 1 / 0)  # noqa: ARG005
        with pytest.raises(ZeroDivisionError):
            register()
    assert register()["version"] == 1
    assert len(versions()) == 1


@pytest.mark.parametrize("step", ["ingest", "weight", "train-reward", "train-sft", "reference", "train-dpo", "evaluate"])
def test_a_broken_lineage_is_refused(pipeline: Pipeline, step: str) -> None:
    pipeline.forget(step)
    with pytest.raises(InputError, match="lineage is broken: no recorded run produced"):
        register()
    assert not versions()
    assert not Path("version.json").exists()


def test_a_changed_artifact_is_refused() -> None:
    Path("evaluation/metrics.json").write_text(json.dumps(measurements(semantic=0.9)), encoding="utf-8")
    with pytest.raises(InputError, match="lineage is broken"):
        register()


def test_a_model_that_was_not_evaluated_is_refused() -> None:
    shutil.copytree("ddpo", "retrained")
    Path("retrained/training.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="evaluation did not measure retrained"):
        register("retrained")
    assert not versions()


def test_a_baseline_that_was_not_evaluated() -> None:
    with pytest.raises(
        InputError, match=r"register.baseline: .* no comparison of 'ddpo' with 'orpo'; it has ddpo-dpo, ddpo-sft"
    ):
        register(baseline="orpo")
    assert not versions()


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "deep/er/model.pkl", "model.ckpt", "code.py", "noname"])
def test_what_may_hold_code_is_refused(name: str) -> None:
    file = Path("ddpo") / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps({}))
    with pytest.raises(InputError, match=f"not registered: {name} may hold code"):
        register()
    assert not versions()


def test_a_folder_without_an_adapter_is_refused() -> None:
    Path("ddpo/adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"it holds no adapter_model\.safetensors"):
        register()


def test_the_card(pipeline: Pipeline) -> None:
    register()
    card = (downloaded() / "README.md").read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---")[1])
    assert (head["base_model"], head["library_name"]) == ("tiny", "peft")
    assert (
        "| `ddpo` | 0.143 [0.043, 0.243] | 0.476 [0.376, 0.576] | 0.254 [0.154, 0.354] | 101.520 [101.420, 101.620] |" in card
    )
    assert "| `gold` | 0.223 [0.123, 0.323]" in card
    assert "7 test prompts, 4 samples each" in card
    assert "| style diversity | 0.254 [0.154, 0.354] | more | mean distance of two stories in style (cosine" in card
    assert f"**{WARNING}**" in card
    assert "it **passed**" in card
    assert "- semantic_diversity: +0.300 [+0.200, +0.400] lies above +0.000" in card
    assert "| ingest | responses | 1234567 |" in card
    assert "| ingest | rejected.duplicate | 3 |" in card
    assert "| weight | mean_score_gap | 12.35 |" in card
    assert "| train-reward | spearman | 0.4321 |" in card
    assert "| train.preference.beta | 0.1 | all |" in card
    assert "| validate-responses | passed | 1 |" in card
    assert "| source | s3://***bucket/stories.jsonl |" in card and "hidden" not in card
    # Neither pipes nor line ends break a table, and what libraries log is left out.
    assert "| train.preference.note | a\\|b c | all |" in card
    assert "logged_by_a_library" not in card
    assert "0.999" not in card
    for step, run_id in pipeline.runs.items():
        assert f"| {step} | `{run_id}` | `{COMMIT[:12]}` |" in card
    assert f"| raw | `{digest(Path('raw'))}` | the raw data |" in card
    for line in card.splitlines():
        if line.startswith("|"):
            assert line.endswith("|")


def test_the_card_of_a_rejected_model(pipeline: Pipeline) -> None:
    pipeline.evaluate(measurements(style=-0.2))
    register()
    source = Path(mlflow.artifacts.download_artifacts(f"models:/{NAME}/1"))
    card = (source / "README.md").read_text(encoding="utf-8")
    assert "it **did not pass**" in card
    assert "- style_diversity: -0.200 [-0.300, -0.100] does not lie above +0.000" in card


@pytest.mark.parametrize("name", ["a/b", "a:b", "it's", "", 'a"b'])
def test_names_that_the_registry_cannot_hold(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        Params(name=name)


def test_command_line(pipeline: Pipeline) -> None:
    params = Path("params.yaml")
    params.write_text("register: {}\n", encoding="utf-8")
    flags = ["--model", "ddpo", "--evaluation", "evaluation", "--version", "out/version.json", "--metrics", "metrics.json"]
    flags += ["--card", "card.md"]
    assert STEP.main(["--params", str(params), *flags]) == 0
    assert json.loads(Path("metrics.json").read_text(encoding="utf-8")) == {"passed": 1, "version": 1}
    assert json.loads(Path("out/version.json").read_text(encoding="utf-8"))["status"] == "candidate"
    # Kubeflow's page is the card, of the same record as the registry's tags.
    page = Path("card.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {NAME} version 1: candidate\n") and "it **passed**" in page and "plane.png" not in page
    record = json.loads((downloaded() / "record.json").read_text(encoding="utf-8"))
    assert record == json.loads(Path("out/version.json").read_text(encoding="utf-8"))["record"]
    assert tags(record).items() <= versions()[0].tags.items()
    # The run of the registration holds the artifacts, and is recorded like any other.
    [version] = versions()
    assert version.run_id not in pipeline.runs.values()
    assert tracking_client().get_run(version.run_id).data.tags["step"] == "register"
    assert STEP.main(["--params", str(params), *flags[:1], "dpo", *flags[2:]]) == 1
