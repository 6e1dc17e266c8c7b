"""Loops on this machine: over a list that a task made, and their artifacts as a list in the task after them."""

import json
from pathlib import Path
from typing import Any

import pytest
from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.contracts import InputError
from components.kubeflow import EXECUTOR_INPUT, expand
from pipelines import local
from pipelines.cluster import Cluster

# A program that writes its last argument to the file before it, and tells Kubeflow of its artifacts.
WRITE = """
import json, pathlib, sys
from components import kubeflow
*words, path, text = [word for word in sys.argv[1:] if not word.startswith('--executor-input')]
path = pathlib.Path(path)
path.parent.mkdir(parents=True, exist_ok=True)
if text in ('dpo', 'ddpo'):
    assert words == ['kept'], words
    path.mkdir()
    path = path / 'training.json'
    text = json.dumps({'objective': text})
path.write_text(text)
for word in sys.argv:
    if word.startswith('--executor-input='):
        kubeflow.report(word.partition('=')[2], {}, {})
"""
LIST = """
import pathlib, sys
from components import kubeflow
*words, path = kubeflow.expand(sys.argv[1:])
pathlib.Path(path).write_text('\\n'.join(word for word in words if word.startswith('--model')))
"""


@dsl.container_component
def decide(word: dsl.OutputPath(str)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    return dsl.ContainerSpec(image="x", command=["python", "-c", WRITE], args=[f"{word}", "kept"])


@dsl.container_component
def choose(names: dsl.OutputPath(list)) -> dsl.ContainerSpec:  # type: ignore[valid-type]
    return dsl.ContainerSpec(image="x", command=["python", "-c", WRITE], args=[f"{names}", '["dpo", "ddpo"]'])


@dsl.container_component
def learn(name: str, word: str, model: Output[Artifact]) -> dsl.ContainerSpec:
    words = [f"{word}", EXECUTOR_INPUT, f"{model.path}", f"{name}"]
    return dsl.ContainerSpec(image="x", command=["python", "-c", WRITE], args=words)


@dsl.container_component
def compare(names: list, target: str, models: Input[list[Artifact]]) -> dsl.ContainerSpec:
    del models
    words = [EXECUTOR_INPUT, f"--models=@models:{names}", "--model=@models:ddpo", "--model-of-none=@others", f"{target}"]
    return dsl.ContainerSpec(image="x", command=["python", "-c", LIST], args=words)


@dsl.container_component
def end(status: dsl.PipelineTaskFinalStatus) -> dsl.ContainerSpec:
    return dsl.ContainerSpec(image="x", command=["python", "-c", "pass"], args=[f"{status}"])


def test_a_loop_and_what_comes_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    target = tmp_path / "told"

    def graph(cluster: Cluster) -> Any:
        del cluster

        @dsl.pipeline(name="loops")
        def loops(target: str) -> None:
            with dsl.ExitHandler(end()):
                names, word = choose().outputs["names"], decide().outputs["word"]
                with dsl.ParallelFor(names, parallelism=1) as name:
                    learned = learn(name=name, word=word)
                compare(names=names, target=target, models=dsl.Collected(learned.outputs["model"]))

        return loops

    monkeypatch.setattr(local, "pipeline", graph)
    assert local.run(Cluster(), {"target": str(target)}, "subprocess", tmp_path / "runs")
    told = target.read_text(encoding="utf-8").splitlines()
    dpo, ddpo = (tmp_path / "runs").glob("*/for-loop-*-iteration-*/learn/model")
    if "iteration-0" in str(ddpo):
        dpo, ddpo = ddpo, dpo
    assert told == [f"--models=dpo={dpo}", f"--models=ddpo={ddpo}", f"--model={ddpo}", "--model-of-none=@others"]


def executor_input(*uris: str) -> str:
    artifacts = {"models": {"artifacts": [{"uri": uri} for uri in uris]}}
    return EXECUTOR_INPUT.replace("{{$}}", json.dumps({"inputs": {"artifacts": artifacts}}))


def test_where_the_launcher_puts_artifacts() -> None:
    words = ["--part=@models", executor_input("minio://bucket/a", "s3://bucket/b/c", "gs://d", "/local")]
    assert expand(words)[:-1] == ["--part=0=/minio/bucket/a", "--part=1=/s3/bucket/b/c", "--part=2=/gcs/d", "--part=3=/local"]
    assert expand(["--part=@models"]) == ["--part=@models"]


def test_models_that_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "training.json").write_text('{"objective": "dpo"}', encoding="utf-8")
    with pytest.raises(InputError, match="no model of ddpo among those of dpo"):
        expand(["--model=@models:ddpo", executor_input(str(tmp_path))])
    with pytest.raises(InputError, match="does not say how the model was trained"):
        expand(["--model=@models:dpo", executor_input(str(tmp_path / "nothing"))])
