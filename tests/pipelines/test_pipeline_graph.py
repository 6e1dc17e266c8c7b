"""The compiled package, dvc.yaml and the command lines describe one graph, and say the same of each step."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kfp.local.placeholder_utils import resolve_individual_placeholder
from pydantic import ValidationError

from components import kubeflow
from components.configure.__main__ import parser as configure_parser
from components.configure.fan import compared, shards
from components.configure.merge import TASKS, merge, part
from components.params import SECTIONS
from components.train.nodes import SETTINGS, Settings
from pipelines.check import problems
from pipelines.cluster import Cluster, Images, load_cluster
from pipelines.graph import pipeline
from pipelines.package import PACKAGE, compile_package, documents
from tests.test_dvc_yaml import EDGES, STAGES, step_of

SPEC, PLATFORM = documents(PACKAGE.read_text(encoding="utf-8"))
# Over what the loops go by default.
ITEMS = {"train-preference": ["dpo", "ddpo"], "embed": ["0"]}
# Stage of dvc.yaml -> task of the package, and the part of the parameters that it gets.
TASK_OF = {
    "ingest": ("ingest", "ingest"),
    "validate": ("validate", "validate"),
    "embed": ("embed", "embed"),
    "weight": ("weight", "weight"),
    "validate-weights": ("validate-weights", "validate"),
    "train-reward": ("train-reward", "reward"),
    "train-sft": ("train-sft", "sft"),
    "reference": ("reference", "reference"),
    "train@dpo": ("train-preference", "preference"),
    "train@ddpo": ("train-preference", "preference"),
    "evaluate": ("evaluate", "evaluate"),
    "register": ("register", "register"),
}
# Only on Kubeflow.
ENGINE_ONLY = {"configure", "gate", "gate-2", "gather"}
# Read by steps, but without effect on their results, so that dvc.yaml leaves them out.
NEUTRAL = {"models.remote_code", "train.checkpoint_minutes"}


BODY = SPEC["components"]["comp-exit-handler-1"]["dag"]["tasks"]
LOOPS = {name: SPEC["components"][found["componentRef"]["name"]] for name, found in BODY.items() if "loop" in name}
# Task in a loop -> the loop.
INSIDE = {task: loop for loop, found in LOOPS.items() for task in found["dag"]["tasks"]}


def tasks() -> dict[str, Any]:
    """All tasks, those of loops among them."""
    inside = {name: found for loop in LOOPS.values() for name, found in loop["dag"]["tasks"].items()}
    return {name: found for name, found in BODY.items() if name not in LOOPS} | inside


def parameters(task: str) -> dict[str, Any]:
    """Parameter inputs of a task: name -> where the value comes from; that of a loop's item is the item."""
    passed = dict(tasks()[task]["inputs"].get("parameters", {}))
    if task not in INSIDE:
        return passed
    loop = BODY[INSIDE[task]]
    item = loop["parameterIterator"]["itemInput"]
    outside = loop["inputs"]["parameters"] | {item: "item"}
    return {name: outside[found["componentInputParameter"]] for name, found in passed.items()}


def container(task: str) -> dict[str, Any]:
    return SPEC["deploymentSpec"]["executors"][f"exec-{task}"]["container"]


def artifacts(task: str) -> dict[str, tuple[str, str]]:
    """Artifact inputs of a task: name -> producing task and its output, through loops; what a loop makes is collected."""
    found = tasks()[task]["inputs"].get("artifacts", {})
    if task in INSIDE:
        outside = BODY[INSIDE[task]]["inputs"]["artifacts"]
        found = {name: outside[taken["componentInputArtifact"]] for name, taken in found.items()}
    made = {}
    for name, taken in found.items():
        producer, output = taken["taskOutputArtifact"]["producerTask"], taken["taskOutputArtifact"]["outputArtifactKey"]
        if producer in LOOPS:
            (selected,) = LOOPS[producer]["dag"]["outputs"]["artifacts"][output]["artifactSelectors"]
            producer, output = selected["producerSubtask"], selected["outputArtifactKey"]
        made[name] = (producer, output)
    return made


def rendered(task: str, backend: bool, root: Path = Path("/"), **values: Any) -> list[str]:
    """A container's arguments with placeholders replaced, as the backend's launcher or kfp.local does it.

    Artifacts are at `/<task>/<name>`; those of a loop at `/<task>/<item>/<name>`, with the record of a training in `root`. The
    backend writes numbers as Go's %v does, kfp.local as JSON.
    """
    spec = SPEC["components"][f"comp-{task}"]
    outputs = {name: f"/{task}/{name}" for name in spec.get("outputDefinitions", {}).get("artifacts", {})}
    files = {name: f"/{task}/{name}" for name in spec.get("outputDefinitions", {}).get("parameters", {})}
    lists = {name for name, found in spec["inputDefinitions"].get("artifacts", {}).items() if found.get("isArtifactList")}
    inputs = {name: "/" + "/".join(made) for name, made in artifacts(task).items() if name not in lists}
    collected = {}
    for name in lists:
        producer, output = artifacts(task)[name]
        # In another order than that of the loop: the backend promises none.
        collected[name] = [root / producer / item / output for item in reversed(ITEMS[producer])]
        for item, place in zip(reversed(ITEMS[producer]), collected[name], strict=True):
            place.mkdir(parents=True, exist_ok=True)
            (place / "training.json").write_text(json.dumps({"objective": item}), encoding="utf-8")
    told: dict[str, Any] = {
        "inputs": {
            "parameterValues": values,
            "artifacts": {name: {"artifacts": [{"uri": uri}]} for name, uri in inputs.items()}
            | {name: {"artifacts": [{"uri": str(place)} for place in places]} for name, places in collected.items()},
        },
        "outputs": {
            "outputFile": f"/{task}/output.json",
            "parameters": {name: {"outputFile": path} for name, path in files.items()},
            "artifacts": {name: {"artifacts": [{"uri": uri}]} for name, uri in outputs.items()},
        },
    }
    words = container(task)["args"]
    if not backend:
        return [resolve_individual_placeholder(word, told, "p", "t", "/root", "1", "2") for word in words]
    known = {f"{{{{$.inputs.parameters['{name}']}}}}": go(value) for name, value in values.items()}
    known |= {f"{{{{$.inputs.artifacts['{name}'].path}}}}": uri for name, uri in inputs.items()}
    known |= {f"{{{{$.outputs.artifacts['{name}'].path}}}}": uri for name, uri in outputs.items()}
    known |= {f"{{{{$.outputs.parameters['{name}'].output_file}}}}": path for name, path in files.items()}
    known["{{$}}"] = json.dumps(told)
    # Each argument holds one placeholder; values are not looked into again.
    return [re.sub(r"\{\{.*?\}\}", lambda match: known[match[0]], word, count=1) for word in words]


def go(value: Any) -> str:
    """Text of a parameter as the backend writes it: 1.0 is `1`, 5e-6 is `5e-06`, a list is JSON without spaces."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return json.dumps(value, separators=(",", ":"))
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e21 else repr(float(value))


def test_the_package_is_that_of_the_code() -> None:
    """`polyphony pipeline compile` renews it."""
    assert compile_package(load_cluster("plain")) == PACKAGE.read_text(encoding="utf-8")


def test_steps_and_edges_are_those_of_dvc_yaml() -> None:
    assert set(tasks()) == {task for task, _ in TASK_OF.values()} | ENGINE_ONLY
    assert set(TASK_OF) == set(STAGES)
    assert {stage.partition("@")[2] for stage, (task, _) in TASK_OF.items() if task == "train-preference"} == set(
        form()["objectives"]["defaultValue"]
    )
    # What gathers the shards stands for them.
    stages_of = {task: [stage for stage, (of, _) in TASK_OF.items() if of == task] for task, _ in TASK_OF.values()}
    stages_of |= {"gather": ["embed"]}
    found = {
        (before, after)
        for task, afters in stages_of.items()
        for producer, _ in artifacts(task).values()
        for before in stages_of.get(producer, [])
        for after in afters
        # Of several models, one is registered.
        if task != "register" or before in ("evaluate", f"train@{form()['registered']['defaultValue']}")
    }
    assert found - {("embed", "embed"), ("ingest", "embed")} == EDGES - {("ingest", "embed")}


def form() -> dict[str, Any]:
    return SPEC["root"]["inputDefinitions"]["parameters"]


def test_gates_stand_between_validation_and_what_is_costly() -> None:

    def behind(gate: str) -> set[str]:
        waiting = {name for name, found in BODY.items() if gate in found.get("dependentTasks", [])}
        return {task for task in tasks() if INSIDE.get(task, task) in waiting}

    assert behind("gate") == {"embed", "train-reward", "train-sft"}
    assert behind("gate-2") == {"train-preference"}
    assert artifacts("gate") == {"validation": ("validate", "validation")}
    assert artifacts("gate-2") == {"validation": ("validate-weights", "validation")}


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("backend", [True, False])
def test_a_task_calls_its_step_as_the_stage_does(stage: str, backend: bool, tmp_path: Path) -> None:
    """The same words and the same inputs, each from the same producer, under the same name."""
    task, _ = TASK_OF[stage]
    step, by_dvc = step_of(STAGES[stage])
    assert container(task)["command"] == ["python", "-m", f"components.{step.name}"]
    objectives = form()["objectives"]["defaultValue"]
    values = {
        "params": '{"a": 5e-06}',
        "source": "s",
        "objective": stage.partition("@")[2] or form()["registered"]["defaultValue"],
    }
    values |= {"objectives": objectives, "shard": "0", "of": 1, "gpu_limit": "1"}
    passed = parameters(task)
    if task in ITEMS:
        assert "item" in passed.values()
    words = kubeflow.expand(rendered(task, backend, tmp_path, **{name: values[name] for name in passed}))
    by_kubeflow = step.parser().parse_args(words)
    assert by_kubeflow.params == '{"a": 5e-06}'
    for word in (*step.choices, *step.counts):
        assert getattr(by_kubeflow, word) == getattr(by_dvc, word)
    made_by = {path: name for name, found in STAGES.items() for path in found["outs"]}

    def place(path: Path) -> str:
        """Where what a stage of dvc.yaml writes lies here; the shards of an embedding are put together on the way."""
        maker = made_by[str(path)]
        producer = {"embed": "gather"}.get(maker, TASK_OF[maker][0])
        return f"{tmp_path}/{producer}/{maker.partition('@')[2]}/model" if "@" in maker else f"/{producer}/"

    for name in (*step.inputs, *step.optional):
        path, there = getattr(by_dvc, name), getattr(by_kubeflow, name)
        assert (path is None) == (there is None), name
        if path is not None:
            assert str(there).startswith(place(path))
    for name in step.collections:
        asked, given_ones = getattr(by_dvc, name), getattr(by_kubeflow, name)
        assert [key for key, _ in given_ones] == [key for key, _ in asked]
        assert all(str(there).startswith(place(path)) for (_, path), (_, there) in zip(asked, given_ones, strict=True))
    for name in (*step.outputs, "metrics", *step.pages):
        assert getattr(by_kubeflow, name).as_posix() == f"/{task}/{name}"
    assert json.loads(by_kubeflow.executor_input)["outputs"]["outputFile"] == f"/{task}/output.json"


def leaves(document: Any, prefix: str = "") -> Iterator[str]:
    if not isinstance(document, dict):
        yield prefix.removesuffix(".")
        return
    for key, value in document.items():
        yield from leaves(value, f"{prefix}{key}.")


@pytest.mark.parametrize("stage", STAGES)
def test_a_task_gets_the_parameters_of_its_stage(stage: str) -> None:
    """No fewer, or defaults would stand in for them; no more, or a cache would miss without need."""
    everything = merge([], "")
    task, name = TASK_OF[stage]
    assert parameters(task)["params"]["taskOutputParameter"]["outputParameterKey"] == name
    given = set(leaves(json.loads(part(everything, TASKS[name]))))
    # What a collection's keys are comes from the form.
    declared = set(STAGES[stage]["params"]) - set(step_of(STAGES[stage])[0].folders.values())
    wanted = {leaf for leaf in leaves(everything) if any(leaf == p or leaf.startswith(f"{p}.") for p in declared)}
    assert wanted <= given
    assert given - wanted <= NEUTRAL


def test_the_form_has_the_defaults_of_the_parameters() -> None:
    everything = merge([], "")
    settings = dict(
        re.findall(
            r"^--set=([\w.]+)=\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}$", "\n".join(container("configure")["args"]), re.M
        )
    )
    assert set(settings.values()) | {"overrides", "objectives", "registered", "gpus", "embed_shards"} == set(form())
    for path, name in settings.items():
        value = everything
        for key in path.split("."):
            value = value[key]
        assert form()[name]["defaultValue"] == value
        assert path.replace(".", "_") == name
    assert all(found["description"] for found in form().values())


TEXTS = st.text(max_size=40) | st.sampled_from(["", "5e-6", "true", "None", "--x=y", "'\"\n\\n", "{{$}}", "naïve – 日本 🖋"])


@settings(deadline=None, max_examples=60)
@given(source=TEXTS.filter(lambda text: text), name=st.sampled_from(["polyphony", "a b.c-d"]),
       objectives=st.permutations(["dpo", "ddpo", "orpo", "dorpo"]), shard_count=st.integers(1, 99),
       rate=st.floats(1e-12, 1, exclude_min=True), epochs=st.integers(1, 10**6), gap=st.floats(0, 1e6))  # fmt: skip
def test_configure_reads_the_same_from_the_backend_and_here(
    source: str, name: str, objectives: list[str], shard_count: int, rate: float, epochs: int, gap: float
) -> None:
    """Numbers such as 5e-6, empty strings, booleans, quotes, newlines and Unicode arrive as they were given."""
    given_form = {key: found["defaultValue"] for key, found in form().items()} | {
        "ingest_source": source,
        "register_name": name,
        "objectives": objectives,
        "embed_shards": shard_count,
        "train_preference_learning_rate": rate,
        "train_sft_epochs": epochs,
        "overrides": json.dumps({"weight": {"gap": gap, "high_quality_winners": True}}),
    }
    read = []
    for backend in (True, False):
        # kfp.local looks for placeholders in what it has just put in; the backend's launcher does not.
        if not backend and "{{$" in source:
            continue
        whole = {key for key, found in form().items() if found["parameterType"] == "NUMBER_INTEGER"}
        values = {key: (int(value) if key in whole else value) for key, value in given_form.items()}
        given_words = configure_parser().parse_args(rendered("configure", backend, **values))
        read.append(merge(given_words.set, given_words.overrides))
        assert json.loads(compared(given_words.compare, given_words.candidate, read[-1])) == objectives
        assert len(json.loads(shards(given_words.embed_shards))) == shard_count
    for document in read:
        assert document["ingest"]["source"] == source
        assert document["train"]["preference"]["learning_rate"] == rate
        assert document["train"]["sft"]["epochs"] == epochs
        assert document["weight"]["gap"] == gap and document["weight"]["high_quality_winners"] is True
        assert document["register"]["name"] == name
        # And once more, from configure to the step, which reads its part as a document given inline.
        for of in TASKS.values():
            text = part(document, of)
            assert text.startswith("{")
            assert json.loads(text) == {s: {k: document[s][k] for k in json.loads(text)[s]} for s in of.sections}


def test_every_step_gets_what_the_cluster_has() -> None:
    cluster = load_cluster("gpu")
    cluster = cluster.model_copy(update={"accelerated": cluster.accelerated.model_copy(update={"gpus": 4})})
    assert pipeline(cluster).component_spec.inputs["gpus"].default == 4
    spec, platform = documents(compile_package(cluster))
    told = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        heavy = label.removeprefix("exec-").startswith(("embed", "train", "reference", "evaluate"))
        resources = executor["container"]["resources"]
        assert ("accelerator" in resources) == heavy
        if heavy:
            many = label in ("exec-train-sft", "exec-train-preference")
            chosen = "{{$.inputs.parameters['pipelinechannel--configure-gpu_limit']}}"
            assert resources["accelerator"]["resourceCount"] == (chosen if many else "1")
        assert resources["resourceMemoryLimit"] == ("64G" if heavy else "16G")
        assert ("nodeSelector" in told[label]) == heavy == ("tolerations" in told[label])
        assert int(told[label]["activeDeadlineSeconds"]) > 0
        assert told[label]["secretAsEnv"][0]["secretName"] == "mlflow-credentials"
        assert told[label]["fieldPathAsEnv"][0]["name"] == "POLYPHONY_RUN_ID"
        retried = next(
            (
                t
                for c in spec["components"].values()
                for n, t in c.get("dag", {}).get("tasks", {}).items()
                if f"exec-{n}" == label
            ),
            {},
        )
        tried_once = label.removeprefix("exec-") in ("configure", "gate", "gate-2", "closing")
        assert ("retryPolicy" in retried) != tried_once
        # The images of this profile have no digest.
        assert not retried.get("cachingOptions", {}).get("enableCache", False)
    assert platform["platforms"]["kubernetes"]["pipelineConfig"]["resourceTtlOnCompletion"] == 7 * 86400


def test_tasks_in_loops_ask_to_be_tried_again() -> None:
    """Each itself, in the loop's own graph: the loop as a whole would begin anew with what is done."""
    assert set(INSIDE) == {"embed", "train-preference"}
    assert all(tasks()[name]["retryPolicy"]["maxRetryCount"] == 2 for name in INSIDE)
    assert not any("retryPolicy" in BODY[loop] for loop in LOOPS)


def tasks_of(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: task for found in spec["components"].values() for name, task in found.get("dag", {}).get("tasks", {}).items()}


def test_the_cache_is_keyed_by_digests() -> None:
    """Behind a tag that moves there may be other code: no cache then. Nor for what looks at the world, or changes it."""
    pinned = Images(light=f"r/light@sha256:{'0' * 64}", model=f"r/model@sha256:{'1' * 64}")
    spec, _ = documents(compile_package(load_cluster("gpu").model_copy(update={"images": pinned})))
    cached = {name for name, task in tasks_of(spec).items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == set(tasks()) - {"configure", "register"}
    assert {found["container"]["image"] for found in spec["deploymentSpec"]["executors"].values()} == {
        pinned.light,
        pinned.model,
    }


def test_trainings_on_several_nodes() -> None:
    """Their tasks start a job and need no GPU themselves; everything else, the inputs of the form too, is as with one node."""
    cluster = load_cluster("gpu")
    several = cluster.model_copy(update={"accelerated": cluster.accelerated.model_copy(update={"nodes": 3, "gpus": 8})})
    spec, platform = documents(package := compile_package(several))
    assert problems(package) == []
    one, _ = documents(compile_package(cluster))
    inputs, of_one = (found["root"]["inputDefinitions"]["parameters"] for found in (spec, one))
    assert inputs == of_one | {"gpus": of_one["gpus"] | {"defaultValue": 8.0}}
    told = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    for label, executor in spec["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["args"] == one["deploymentSpec"]["executors"][label]["container"]["args"]
        environment = {found["name"]: found["value"] for found in container["env"]}
        assert (SETTINGS in environment) == (label in ("exec-train-sft", "exec-train-preference"))
        if SETTINGS not in environment:
            continue
        assert "accelerator" not in container["resources"]
        assert "{{" not in json.dumps(container["resources"])
        given = Settings.model_validate_json(environment[SETTINGS])
        assert (given.nodes, given.gpu, given.resources) == (3, "nvidia.com/gpu", {"cpu": "8", "memory": "64G"})
        assert {
            mount["pvcNameParameter"]["runtimeValue"]["constant"]: mount["mountPath"] for mount in told[label]["pvcMount"]
        } == (given.volumes)
        assert int(told[label]["activeDeadlineSeconds"]) == given.hours * 3600
        assert given.environment["HF_HOME"] == environment["HF_HOME"]
    looked_at = {found["name"]: found["value"] for found in container_of(spec, "configure")["env"]}
    assert (looked_at["POLYPHONY_GPU"], looked_at["POLYPHONY_NODES"]) == ("nvidia.com/gpu", "3")
    with pytest.raises(ValidationError, match=r"volumes\.checkpoints"):
        Cluster(accelerated=several.accelerated)


def container_of(spec: dict[str, Any], task: str) -> dict[str, Any]:
    return spec["deploymentSpec"]["executors"][f"exec-{task}"]["container"]


def test_sections_are_all_handed_out() -> None:
    assert {section for of in TASKS.values() for section in of.sections} == set(SECTIONS)
    assert yaml.safe_load(part(merge([], ""), TASKS["weight"]))["weight"]["gap"] == 5.0
