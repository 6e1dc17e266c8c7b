"""The checker finds every trap that it knows, each put into the real package, and nothing in the package as it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.check import problems
from pipelines.cluster import load_cluster
from pipelines.command import given_inputs
from pipelines.front_door import main as polyphony
from pipelines.package import PACKAGE, compile_package, documents

DIGEST = "@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def gpu() -> str:
    return compile_package(load_cluster("gpu"))


def container(spec: dict[str, Any], task: str) -> dict[str, Any]:
    return spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]


def tasks(spec: dict[str, Any]) -> dict[str, Any]:
    """All tasks but those of the root, those of loops among them."""
    dags = [found["dag"]["tasks"] for found in spec["components"].values() if "dag" in found]
    return {name: found for dag in dags for name, found in dag.items()}


def executor(platform: dict[str, Any], task: str) -> dict[str, Any]:
    return platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][f"exec-{task}"]


def test_the_packages_have_no_problems(gpu: str) -> None:
    assert problems(PACKAGE.read_text(encoding="utf-8")) == []
    assert problems(gpu) == []


TRAPS: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "concat": (
        lambda spec, _: container(spec, "embed")["args"].append('{"Concat": ["--a=", "b"]}'),
        'task embed: argument \'{"Concat"',
    ),
    "if present": (
        lambda spec, _: container(spec, "embed")["args"].append('{"IfPresent": {"InputName": "params", "Then": ["--a"]}}'),
        "does not resolve Concat, and IfPresent only in part",
    ),
    "output file": (
        lambda spec, _: container(spec, "embed")["args"].append("--tell={{$.outputs.output_file}}"),
        "does not know this placeholder",
    ),
    "metadata": (
        lambda spec, _: container(spec, "embed")["args"].append("{{$.inputs.artifacts['responses'].metadata['a']}}"),
        "does not know this placeholder",
    ),
    "no such input": (
        lambda spec, _: container(spec, "embed")["args"].append("{{$.inputs.parameters['rate']}}"),
        "there is no rate",
    ),
    "output without a place": (
        lambda spec, _: container(spec, "embed")["args"].remove("--embeddings={{$.outputs.artifacts['embeddings'].path}}"),
        "output embeddings: no argument says where it goes",
    ),
    "unpassed parameter": (
        lambda spec, _: tasks(spec)["train-preference"]["inputs"]["parameters"].pop("objective"),
        "task train-preference: is not passed objective",
    ),
    "unpassed artifact": (
        lambda spec, _: tasks(spec)["embed"]["inputs"]["artifacts"].pop("validation"),
        "task embed: is not passed validation",
    ),
    "gpu without memory limit": (
        lambda spec, _: container(spec, "train-sft")["resources"].pop("resourceMemoryLimit"),
        "task train-sft: asks for a GPU without a memory limit",
    ),
    "limit that is a number": (
        lambda spec, _: spec["components"]["comp-configure"]["outputDefinitions"]["parameters"]["gpu_limit"].update(
            parameterType="NUMBER_INTEGER"
        ),
        "task train-sft: a limit is pipelinechannel--configure-gpu_limit, which is no text",
    ),
    "limit that does not reach a loop": (
        lambda spec, _: tasks(spec)["train-preference"]["inputs"]["parameters"].pop("pipelinechannel--configure-gpu_limit"),
        "task train-preference: a limit is pipelinechannel--configure-gpu_limit, which is no text that the task is passed",
    ),
    "gpu without shm": (
        lambda _, platform: executor(platform, "train-sft").pop("emptyDirMounts"),
        "task train-sft: asks for a GPU without a mount at /dev/shm",
    ),
    "several nodes without a volume": (
        lambda spec, _: container(spec, "gate")["env"].append({"name": "POLYPHONY_TRAINJOB", "value": "{}"}),
        "task gate: starts a job on several nodes without a volume",
    ),
    "secret by name": (
        lambda spec, _: container(spec, "embed")["env"].append({"name": "HF_TOKEN", "value": "x"}),
        "variable HF_TOKEN: holds a secret",
    ),
    "secret in an address": (
        lambda spec, _: container(spec, "embed")["env"].append({"name": "STORE", "value": "https://me:pass@host"}),
        "variable STORE: holds a secret",
    ),
    "secret as a default": (
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"]["ingest_source"].update(defaultValue="s3://a:b@c/d"),
        "input ingest_source: holds a secret",
    ),
    "no description": (
        lambda spec, _: spec["root"]["inputDefinitions"]["parameters"]["overrides"].pop("description"),
        "input overrides: has no description",
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_every_trap_is_found(gpu: str, trap: str) -> None:
    change, told = TRAPS[trap]
    spec, platform = documents(gpu)
    change(spec, platform)
    (found,) = problems(yaml.safe_dump_all([spec, platform]))
    assert told in found


def test_a_release_names_images_by_digest(gpu: str) -> None:
    spec, platform = documents(gpu)
    assert len(problems(gpu, release=True)) == len(spec["deploymentSpec"]["executors"])
    for found in spec["deploymentSpec"]["executors"].values():
        found["container"]["image"] += DIGEST
    assert problems(yaml.safe_dump_all([spec, platform]), release=True) == []


def test_compile_writes_nothing_that_has_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "out" / "package.yaml"
    assert polyphony(["pipeline", "compile", "--release", "--output", str(target)]) == 1
    assert "not named by digest" in capsys.readouterr().err
    assert not target.exists()
    assert polyphony(["pipeline", "compile", "--output", str(target)]) == 0
    assert target.read_bytes() == PACKAGE.read_bytes()


@pytest.mark.parametrize(
    ("profile", "told"),
    [
        ("imagse: {}", "imagse: Extra inputs are not permitted"),
        ("environment: {HF_TOKEN: x}", "HF_TOKEN: secrets do not belong here"),
        ("accelerated: {memory: lots}", "accelerated.memory"),
        ("[1, 2", "not readable as YAML"),
    ],
)
def test_mistakes_in_a_profile(tmp_path: Path, profile: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").write_text(profile, encoding="utf-8")
    assert polyphony(["pipeline", "compile", "--cluster", str(tmp_path / "mine.yaml")]) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["compile", "--cluster", "none"], "Give a file, or one of: gpu, plain"),
        (["run", "--input", "epochs=3"], "expected NAME=VALUE with one of"),
        (["run", "--input", "train_sft_epochs=many"], "--input train_sft_epochs=many: expected a whole number"),
        (["run", "--overrides", "none.yaml"], "--overrides none.yaml: "),
    ],
)
def test_mistakes_in_a_call(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert polyphony(["pipeline", *words]) == 2
    assert told in capsys.readouterr().err


def test_inputs_have_the_types_of_the_form(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("weight: {floor: 0.2}", encoding="utf-8")
    words = ["train_sft_epochs=3", "train_preference_learning_rate=5e-6", "ingest_source=a=b", 'objectives=["dpo", "orpo"]']
    inputs = given_inputs(words, str(tmp_path / "mine.yaml"))
    assert inputs == {
        "train_sft_epochs": 3,
        "train_preference_learning_rate": 5e-6,
        "ingest_source": "a=b",
        "objectives": ["dpo", "orpo"],
        "overrides": "weight: {floor: 0.2}",
    }
    assert type(inputs["train_sft_epochs"]) is int
    assert given_inputs([], "weight: {gap: 3}") == {"overrides": "weight: {gap: 3}"}


def test_docker_needs_a_server_that_containers_reach(capsys: pytest.CaptureFixture[str]) -> None:
    assert polyphony(["pipeline", "run", "--runner", "docker"]) == 1
    assert "containers need a server that they can reach" in capsys.readouterr().err
