"""`polyphony lineage reproduce`: the workspace has the code, parameters and data that made the model, or there is none."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.contracts import InputError
from components.lineage import RAW, digest
from components.trace.ancestry import find
from components.trace.content import Contents
from components.trace.reproduce import Plan, compare, reproduce
from components.trace.stages import stages
from components.trace.store import open_store
from pipelines.front_door import main as polyphony
from tests.e2e import workspace
from tests.trace.conftest import DVC_YAML, PARAMETERS, Project, git


def again(target: str = "polyphony@champion", **how: Any) -> Plan:
    return reproduce(find(target, open_store()), Contents(Path()), Path("again"), lambda _: None, **how)


def chain(project: Project, parameters: dict[str, Any] | None = None, steps: tuple[str, ...] = ()) -> None:
    """The model made again, with other parameters in the named steps (all where none are named)."""

    def of(step: str) -> dict[str, Any] | None:
        return parameters if not steps or step in steps else None

    project.do("ingest", {RAW: "stories.jsonl"}, {"responses": "responses.parquet"}, of("ingest"))
    project.do("weight", {"responses": "responses.parquet"}, {"pairs": "pairs.parquet"}, of("weight"))
    project.do("train-sft", {"responses": "responses.parquet"}, {"model": "models/sft"}, of("train-sft"))
    inputs = {"pairs": "pairs.parquet", "sft": "models/sft"}
    project.do("train-ddpo", inputs, {"model": "models/ddpo"}, of("train-ddpo"))


def changed(**values: Any) -> dict[str, Any]:
    parameters = copy.deepcopy(PARAMETERS)
    for name, value in values.items():
        *sections, key = name.split("__")
        place = parameters
        for section in sections:
            place = place[section]
        place[key] = value
    return parameters


def test_stages_of_a_matrix() -> None:
    found = stages(DVC_YAML, PARAMETERS)
    assert {step: stage.name for step, stage in found.items() if step.startswith("train-")} == {
        "train-sft": "train-sft",
        "train-reward": "train-reward",
        "train-dpo": "train@dpo",
        "train-ddpo": "train@ddpo",
    }
    assert found["train-ddpo"].options["model"] == "models/ddpo"
    assert found["train-ddpo"].code == ("components/train",)


def test_the_stages_of_the_project_are_those_of_its_runs() -> None:
    found = stages((workspace.ROOT / "dvc.yaml").read_text(encoding="utf-8"), {"train": {"objectives": ["dpo", "ddpo"]}})
    steps = {"ingest", "embed", "weight", "train-reward", "train-sft", "reference", "train-dpo", "train-ddpo", "evaluate"}
    assert steps | {"validate-responses", "validate-weights", "register"} <= set(found)


def test_the_workspace_has_all_that_made_the_model(project: Project) -> None:
    plan = again()
    assert (plan.commit, plan.stage) == (project.commit, "train@ddpo")
    assert git(Path("again"), "rev-parse", "HEAD") == project.commit
    assert digest(Path("again/stories.jsonl")) == digest(Path("stories.jsonl"))
    assert Path("again/params.yaml").read_bytes() == Path("params.yaml").read_bytes()
    assert list(plan.expected)[-1] == "models/ddpo"
    assert set(plan.expected) == {"responses.parquet", "rejects.parquet", "pairs.parquet", "models/sft", "models/ddpo"}
    assert json.loads(Path("again/reproduce.json").read_text(encoding="utf-8"))["expected"] == dict(plan.expected)


def test_what_came_out_is_compared(project: Project) -> None:
    plan = again()
    for name in plan.expected:
        (Path("again") / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if Path(name).is_dir() else shutil.copy)(name, Path("again") / name)
    assert compare(plan) == []
    (project.folder / "again" / "pairs.parquet").unlink()
    (project.folder / "again" / "models" / "sft" / "README.md").write_text("other", encoding="utf-8")
    assert [line.split(":")[0] for line in compare(plan)] == ["pairs.parquet", "models/sft"]


def test_parameters_are_those_of_the_runs(project: Project) -> None:
    """Also where the commit has others (as `dvc exp run -S` leaves it), with the comments kept."""
    chain(project, changed(train__preference__beta=0.5, weight__floor=0.2))
    again("models/ddpo")
    text = Path("again/params.yaml").read_text(encoding="utf-8")
    assert text.startswith("# Kept.")
    assert yaml.safe_load(text) == changed(train__preference__beta=0.5, weight__floor=0.2)


def test_a_parameter_that_was_not_given_has_its_default(project: Project) -> None:
    parameters = copy.deepcopy(PARAMETERS)
    del parameters["weight"]["floor"]
    chain(project, parameters)
    again("models/ddpo")
    assert yaml.safe_load(Path("again/params.yaml").read_text(encoding="utf-8"))["weight"] == {}


def test_a_value_that_a_step_does_not_depend_on_does_not_count(project: Project) -> None:
    """As where `sft` came from the cache when the learning of preferences was changed."""
    chain(project, changed(train__preference__beta=0.5), ("train-ddpo",))
    again("models/ddpo")
    assert yaml.safe_load(Path("again/params.yaml").read_text(encoding="utf-8"))["train"]["preference"]["beta"] == 0.5


@pytest.mark.usefixtures("project")
def test_what_the_model_is_trained_by_is_among_the_objectives() -> None:
    """As on Kubeflow, where a training is not told of the others."""
    text = Path("dvc.yaml").read_text(encoding="utf-8").replace("[dpo, ddpo]", "${train.objectives}")
    Path("dvc.yaml").write_text(text, encoding="utf-8")
    Path("params.yaml").write_text(json.dumps(changed(train__objectives=["dpo"])), encoding="utf-8")
    git(Path(), "commit", "-qam", "objectives")
    plan = again(commit=git(Path(), "rev-parse", "HEAD"))
    assert plan.stage == "train@ddpo"
    written = yaml.safe_load(Path("again/params.yaml").read_text(encoding="utf-8"))
    assert written["train"]["objectives"] == ["dpo", "ddpo"]


def test_values_that_no_one_file_can_have_are_refused(project: Project) -> None:
    chain(project, changed(train__seed=7), ("train-ddpo",))
    with pytest.raises(InputError, match=r"train\.seed: 0 in train-sft, 7 in train-ddpo"):
        again("models/ddpo")
    assert not Path("again").exists()


def test_another_commit_with_the_same_code_is_no_hindrance(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("README.md").write_text("words", encoding="utf-8")
    git(Path(), "add", "README.md")
    git(Path(), "commit", "-qm", "words")
    monkeypatch.setenv("POLYPHONY_COMMIT", git(Path(), "rev-parse", "HEAD"))
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    assert again("models/ddpo").commit == git(Path(), "rev-parse", "HEAD")


def test_another_commit_with_other_code_must_be_chosen(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("components/weight/step.py").write_text("changed", encoding="utf-8")
    git(Path(), "commit", "-qam", "other weights")
    monkeypatch.setenv("POLYPHONY_COMMIT", git(Path(), "rev-parse", "HEAD"))
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    with pytest.raises(InputError, match=r"weight ran at \w{12}, since when components/weight/step.py changed"):
        again("models/ddpo")
    plan = again("models/ddpo", commit=project.commit)
    assert plan.commit == project.commit


def test_a_commit_that_no_branch_has(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of DVC's experiments."""
    git(Path(), "checkout", "-q", "--detach")
    git(Path(), "commit", "-q", "--allow-empty", "-m", "experiment")
    commit = git(Path(), "rev-parse", "HEAD")
    git(Path(), "checkout", "-q", "-")
    git(Path(), "checkout", "-q", "HEAD~0")
    monkeypatch.setenv("POLYPHONY_COMMIT", commit)
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    assert again("models/ddpo").commit == commit


@pytest.mark.parametrize("state", [("unknown", "unknown"), ("head", "true")])
def test_code_that_is_nowhere_is_refused(project: Project, state: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from components import provenance

    found = {"commit": project.commit if state[0] == "head" else state[0], "dirty": state[1]}
    monkeypatch.setattr(provenance, "git_state", lambda: found)
    project.do("train-ddpo", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": "models/ddpo"})
    with pytest.raises(InputError, match="train-ddpo ran on code that is in no commit"):
        again("models/ddpo")
    plan = again("models/ddpo", commit=project.commit)
    assert "train-ddpo ran on code that is in no commit" in plan.notes


def test_stories_come_from_dvc_where_the_source_became_another(project: Project) -> None:
    chain(project, changed(ingest__source="https://example.org/all/stories.jsonl"))
    value = digest(Path("stories.jsonl"))
    with pytest.raises(InputError, match="--raw"):
        again("models/ddpo")
    kept = Path("remote/files/md5", value[:2], value[2:])
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy("stories.jsonl", kept)
    plan = again("models/ddpo")
    assert "data/raw/stories.jsonl: from the DVC remote store" in plan.notes
    assert digest(Path("again/data/raw/stories.jsonl")) == value
    source = yaml.safe_load(Path("again/params.yaml").read_text(encoding="utf-8"))["ingest"]["source"]
    assert source == "data/raw/stories.jsonl"


def test_stories_that_a_person_gives_must_be_the_same(project: Project, tmp_path: Path) -> None:
    chain(project, changed(ingest__source=str(tmp_path / "gone.jsonl")))
    other = tmp_path / "other.jsonl"
    other.write_text("others", encoding="utf-8")
    with pytest.raises(InputError, match="not the data that the model was made of"):
        again("models/ddpo", raw=other)
    again("models/ddpo", raw=Path("stories.jsonl"))
    assert digest(Path("again/data/raw/gone.jsonl")) == digest(Path("stories.jsonl"))


def test_a_lock_of_another_model_is_left_out(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    git(Path(), "add", "-f", "dvc.lock")
    git(Path(), "commit", "-qm", "lock")
    monkeypatch.setenv("POLYPHONY_COMMIT", git(Path(), "rev-parse", "HEAD"))
    chain(project)
    again("models/ddpo")
    assert Path("again/dvc.lock").read_bytes() == Path("dvc.lock").read_bytes()
    shutil.rmtree("again")
    Path("pairs.parquet").write_text("other pairs", encoding="utf-8")
    chain(project)
    assert any("another model" in note for note in again("models/ddpo").notes)
    assert not Path("again/dvc.lock").exists()


@pytest.mark.usefixtures("project")
def test_nothing_is_written_over(capsys: pytest.CaptureFixture[str]) -> None:
    Path("again").mkdir()
    assert polyphony(["lineage", "reproduce", "polyphony@champion", "--output", "again"]) == 1
    assert "again: exists" in capsys.readouterr().err


@pytest.mark.slow
def test_the_model_again_to_the_same_digest(finished: Path, tmp_path: Path) -> None:
    """What DVC made once, it makes again in the workspace, byte for byte, and without the first one's cache."""
    command = ["polyphony", "lineage", "reproduce", "polyphony/1", "--output", str(tmp_path / "again"), "--run"]
    environment = workspace.environment() | {"MLFLOW_TRACKING_URI": ""}
    done = subprocess.run(command, cwd=finished, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "artifacts have the digests that they had" in done.stdout
    lock = workspace.locked(finished)
    assert digest(tmp_path / "again" / "artifacts" / "models" / "ddpo") == lock["artifacts/models/ddpo"]
