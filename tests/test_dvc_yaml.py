"""dvc.yaml describes the graph of DESIGN, and says of each stage what the step's own command line says."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from components.cli import Step
from components.params import SECTIONS, Section, load

ROOT = Path(__file__).parents[1]
EDGES = {
    ("ingest", "validate"),
    ("ingest", "embed"),
    ("validate", "embed"),
    ("ingest", "weight"),
    ("embed", "weight"),
    ("ingest", "validate-weights"),
    ("weight", "validate-weights"),
    ("ingest", "train-reward"),
    ("validate", "train-reward"),
    ("ingest", "train-sft"),
    ("validate", "train-sft"),
    ("weight", "reference"),
    ("train-sft", "reference"),
    *((source, f"train@{o}") for o in ("dpo", "ddpo") for source in ("weight", "validate-weights", "reference", "train-sft")),
    ("ingest", "evaluate"),
    *((source, "evaluate") for source in ("train-reward", "train-sft", "train@dpo", "train@ddpo")),
    ("train@ddpo", "register"),
    ("evaluate", "register"),
}


def stages() -> Iterator[tuple[str, dict[str, Any]]]:
    """The stages of dvc.yaml with their matrix multiplied out, and parameters put in, but for the source of the data."""
    for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].items():
        text = yaml.safe_dump(stage)
        if "matrix" not in stage:
            yield name, yaml.safe_load(put_in(text))
            continue
        ((key, values),) = stage["matrix"].items()
        for value in parameter(values[2:-1]):
            yield f"{name}@{value}", yaml.safe_load(put_in(text.replace(f"${{item.{key}}}", value)))


def parameter(path: str) -> Any:
    """The value of `section.parameter` in params.yaml."""
    value = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    for key in path.split("."):
        value = value[key]
    return value


def put_in(text: str) -> str:
    return re.sub(r"\$\{(register[\w.]+)\}", lambda found: str(parameter(found[1])), text)


def within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


STAGES = dict(stages())


def paths(entries: list[Any]) -> set[str]:
    return {path for entry in entries for path in ([entry] if isinstance(entry, str) else entry)}


def step_of(stage: dict[str, Any]) -> tuple[Step, Any]:
    """The step that a stage runs, and its arguments as the step's own parser reads them."""
    words = shlex.split(stage["cmd"])
    assert words[:2] == ["python", "-m"]
    step: Step = importlib.import_module(f"{words[2]}.__main__").STEP
    given = step.parser().parse_args(words[3:])
    for name, listed in step.folders.items():
        pairs = [[(key, path)] if key else [(k, path / k) for k in parameter(listed)] for key, path in getattr(given, name)]
        setattr(given, name, [pair for some in pairs for pair in some])
    return step, given


def test_edges() -> None:
    made_by = {path: name for name, stage in STAGES.items() for path in paths(stage["outs"])}
    read = [(name, path) for name, stage in STAGES.items() for path in paths(stage["deps"])]
    found = {(maker, name) for name, path in read for made, maker in made_by.items() if within(made, path)}
    assert found == EDGES


@pytest.mark.parametrize("name", STAGES)
def test_what_a_stage_declares_is_what_its_command_reads_and_writes(name: str) -> None:
    stage = STAGES[name]
    step, given = step_of(stage)
    read = {str(value) for key in (*step.inputs, *step.optional) if (value := getattr(given, key))}
    read |= {str(path) for key in step.collections for _, path in getattr(given, key)}
    artifacts = {path for path in paths(stage["deps"]) if path.startswith("artifacts/")}
    assert all(any(within(path, declared) for declared in artifacts) for path in read)
    assert all(any(within(path, declared) for path in read) for declared in artifacts)
    assert {str(getattr(given, key)) for key in step.outputs} == paths(stage["outs"])
    assert paths(stage["metrics"]) == {str(given.metrics)}
    room = f"components/{step.name}"
    assert {room, "components/contracts.py"} <= paths(stage["deps"])
    assert all((ROOT / path).exists() for path in paths(stage["deps"]) - artifacts if "$" not in path)
    listed = set(step.folders.values())
    assert {parameter.partition(".")[0] for parameter in set(stage["params"]) - listed} <= set(step.sections)
    assert listed <= set(stage["params"])


@pytest.mark.parametrize("name", STAGES)
def test_every_module_that_a_stage_imports_is_a_dependency(name: str) -> None:
    """Otherwise a change of code would leave stale results. What neither reads nor computes data is left out."""
    names = ("cli", "kubeflow", "lineage", "live", "params", "provenance", "redaction", "models/params")
    neutral = {f"components/{name}.py" for name in names}
    declared = paths(STAGES[name]["deps"])
    step, _ = step_of(STAGES[name])
    waiting = [path.relative_to(ROOT).as_posix() for path in (ROOT / "components" / step.name).glob("*.py")]
    seen: set[str] = set()
    while waiting:
        file = waiting.pop()
        if file in seen:
            continue
        seen.add(file)
        for line in (ROOT / file).read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] == ["from"] and words[1].startswith("components"):
                imported = words[1].replace(".", "/") + ".py"
                waiting += [imported] if (ROOT / imported).is_file() else []
    uncovered = {file for file in seen if not any(file == path or file.startswith(f"{path}/") for path in declared)}
    assert uncovered - neutral == set()


def test_params_yaml_holds_every_parameter() -> None:
    document = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert list(document) == list(SECTIONS)

    def compare(values: dict[str, Any], section: type[Section], where: str) -> None:
        assert list(values) == list(section.model_fields), where
        for name, field in section.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
                compare(values[name], field.annotation, f"{where}.{name}")

    for name, section in load(ROOT / "params.yaml").items():
        compare(document[name], type(section), name)


def test_help_needs_no_heavy_import() -> None:
    """Torch and its like stay out of the command lines: `--help` answers at once."""
    import subprocess
    import sys

    rooms = sorted({step_of(stage)[0].name for stage in STAGES.values()})
    heavy = "{'torch', 'transformers', 'mlflow', 'great_expectations', 'matplotlib', 'pandas', 'datasets'}"
    modules = [f"components.{room}.__main__" for room in rooms] + ["pipelines.front_door"]
    code = f"import sys, {', '.join(modules)}; sys.exit(str({heavy} & set(sys.modules) or '') or 0)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
