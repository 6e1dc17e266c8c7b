"""A project on small files: a git and DVC repository with a remote, recorded runs of every step, a registered version."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import pytest

from components.contracts import PAIRS, RESPONSES
from components.lineage import RAW, digest, step_run, tracking_client
from tests.conftest import response_rows

DVC_YAML = """
stages:
  ingest:
    cmd: python -m components.ingest --params params.yaml --responses responses.parquet --rejects rejects.parquet
    deps: ["${ingest.source}", components/ingest]
    outs: [responses.parquet, rejects.parquet]
  weight:
    cmd: python -m components.weight --params params.yaml --responses responses.parquet --pairs pairs.parquet
    deps: [responses.parquet, components/weight]
    outs: [pairs.parquet]
  train-sft:
    cmd: python -m components.train --params params.yaml --objective sft --responses responses.parquet --model models/sft
    deps: [responses.parquet, components/train]
    outs: [models/sft]
  train-reward:
    cmd: python -m components.train --params params.yaml --objective reward --responses responses.parquet --model models/reward
    deps: [responses.parquet, components/train]
    outs: [models/reward]
  train:
    matrix: {objective: [dpo, ddpo]}
    cmd: python -m components.train --params params.yaml --objective ${item.objective} --pairs pairs.parquet
      --sft models/sft --model models/${item.objective}
    deps: [pairs.parquet, models/sft, components/train]
    outs: ["models/${item.objective}"]
  evaluate:
    cmd: python -m components.evaluate --params params.yaml --responses responses.parquet --evaluation evaluation
    deps: [responses.parquet, models/reward, models/sft, models/dpo, models/ddpo, components/evaluate]
    outs: [evaluation]
"""
PARAMETERS: dict[str, Any] = {
    "ingest": {"source": "stories.jsonl", "seed": 0},
    "weight": {"floor": 0.0},
    "train": {"seed": 0, "sft": {"epochs": 1}, "preference": {"epochs": 1, "beta": 0.1}},
    "models": {"language": "tiny <b>"},
}
SECTIONS = {
    "ingest": ("ingest", "models"),
    "weight": ("weight",),
    "train": ("train", "models"),
    "evaluate": ("models",),
    "register": (),
}


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def pair_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each prompt the best response against the worst; the others are in no pair."""
    prompts: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        prompts.setdefault(row["prompt_id"], []).append(row)
    found = []
    for several in prompts.values():
        low, *_, high = sorted(several, key=lambda row: row["score"])
        sides = {}
        for side, row in (("chosen", high), ("rejected", low)):
            sides |= {f"{side}_id": row["response_id"], side: row["response"], f"{side}_score": row["score"]}
        found.append({key: high[key] for key in ("prompt_id", "prompt", "split")} | sides)
    return found


@dataclass
class Project:
    """The working directory is its folder."""

    folder: Path
    commit: str
    runs: dict[str, str] = field(default_factory=dict)

    def do(
        self, step: str, inputs: Mapping[str, str], outputs: Mapping[str, str], parameters: Mapping[str, Any] | None = None
    ) -> str:
        """Records a step; inputs and outputs are name -> path. Returns the run's id."""
        sections = SECTIONS[step.partition("-")[0]]
        given = {name: (parameters or PARAMETERS)[name] for name in sections}
        with step_run(step, given, {name: Path(path) for name, path in inputs.items()}, given) as run:
            active = mlflow.active_run()
            assert active is not None
            self.runs[step] = active.info.run_id
            run.finish({name: Path(path) for name, path in outputs.items()}, {})
        return self.runs[step]

    def record(self) -> None:
        """Runs of all steps."""
        self.do("ingest", {RAW: "stories.jsonl"}, {"responses": "responses.parquet", "rejects": "rejects.parquet"})
        data = {"responses": "responses.parquet"}
        self.do("weight", data, {"pairs": "pairs.parquet"})
        self.do("train-reward", data, {"model": "models/reward"})
        self.do("train-sft", data, {"model": "models/sft"})
        for objective in ("dpo", "ddpo"):
            self.do(f"train-{objective}", {"pairs": "pairs.parquet", "sft": "models/sft"}, {"model": f"models/{objective}"})
        systems = {name: f"models/{name}" for name in ("reward", "sft", "dpo", "ddpo")}
        self.do("evaluate", data | systems, {"evaluation": "evaluation"})

    def register(self, name: str = "polyphony", model: str = "models/ddpo", alias: str = "champion") -> str:
        """Registers the model with its evaluation as the register step does; returns the version."""
        client = tracking_client()
        held = self.folder / "registry" / f"{len(list((self.folder / 'registry').glob('*')))}"
        shutil.copytree(model, held / "model")
        shutil.copytree("evaluation", held / "evaluation")
        (held / "model" / "README.md").write_text("the card", encoding="utf-8")
        files = {
            path.relative_to(held / "model").as_posix(): digest(path) for path in (held / "model").rglob("*") if path.is_file()
        }
        tags = {
            "model.digest": digest(Path(model)),
            "evaluation.digest": digest(Path("evaluation")),
            "gate.reasons": "<script>alert(1)</script>",
            "files": json.dumps(files),
        }
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name)
        (held / "version.json").write_text(json.dumps(tags), encoding="utf-8")
        read, written = {"model": model, "evaluation": "evaluation"}, {"version": str(held / "version.json")}
        run = self.do("register", read, written)
        version = client.create_model_version(name, str(held / "model"), run, tags=tags)
        if alias:
            client.set_registered_model_alias(name, alias, version.version)
        return str(version.version)


def write(folder: Path) -> None:
    """The artifacts of all steps."""
    rows = response_rows()
    RESPONSES.write(folder / "responses.parquet", rows)
    PAIRS.write(folder / "pairs.parquet", pair_rows(rows))
    (folder / "rejects.parquet").write_text("rejects", encoding="utf-8")
    for name in ("reward", "sft", "dpo", "ddpo"):
        (folder / "models" / name).mkdir(parents=True)
        for file in ("adapter_model.safetensors", "adapter_config.json", "README.md"):
            (folder / "models" / name / file).write_text(f"{name} {file}", encoding="utf-8")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text("{}", encoding="utf-8")


@pytest.fixture(scope="session")
def made(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The project, made once."""
    from dvc.repo import Repo

    folder = tmp_path_factory.mktemp("project")
    shutil.copy(empty_store, folder / "mlflow.db")
    git(folder, "init", "-q")
    for name in ("ingest", "weight", "train", "evaluate"):
        (folder / "components" / name).mkdir(parents=True)
        (folder / "components" / name / "step.py").write_text("", encoding="utf-8")
    (folder / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (folder / "params.yaml").write_text(f"# Kept.\n{json.dumps(PARAMETERS, indent=1)}\n", encoding="utf-8")
    (folder / "stories.jsonl").write_text('{"prompt": "p", "response": "r", "score": 1}\n', encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # MLflow leaves there what it was told last.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        repo = Repo.init(str(folder))
        with repo.config.edit() as config:
            config["remote"]["store"] = {"url": str(folder / "remote")}
            config["core"]["remote"] = "store"
        git(folder, "add", "-A", "--", ".", ":!mlflow.db")
        git(folder, "commit", "-qm", "start")
        project = Project(folder, git(folder, "rev-parse", "HEAD"))
        patch.setenv("POLYPHONY_COMMIT", project.commit)
        write(folder)
        project.record()
        Repo(str(folder)).commit(force=True)
        Repo(str(folder)).push()
        project.register()
    return project


@pytest.fixture
def project(made: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    """A copy in the test's folder, to be changed."""
    shutil.copytree(made.folder, tmp_path, dirs_exist_ok=True)
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("UPDATE model_versions SET source = replace(source, ?, ?)", (str(made.folder), str(tmp_path)))
    config = tmp_path / ".dvc" / "config"
    config.write_text(config.read_text(encoding="utf-8").replace(str(made.folder), str(tmp_path)), encoding="utf-8")
    monkeypatch.setenv("POLYPHONY_COMMIT", made.commit)
    return Project(tmp_path, made.commit, dict(made.runs))
