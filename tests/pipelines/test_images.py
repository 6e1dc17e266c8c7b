"""The images hold what their steps import, at the versions of the lock, and nothing that only the engine needs."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from components.kubeflow import LIGHT, MODEL
from pipelines.package import PACKAGE, documents

ROOT = Path(__file__).parents[2]
LOCKED = set(re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
EXECUTORS = documents(PACKAGE.read_text(encoding="utf-8"))[0]["deploymentSpec"]["executors"].values()


def packages(image: str) -> set[str]:
    lines = (ROOT / "images" / f"{image.removeprefix('polyphony-')}.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if not line.startswith("#")}


def rooms(image: str) -> set[str]:
    """The steps that the package runs in an image."""
    containers = [executor["container"] for executor in EXECUTORS]
    return {found["command"][2].removeprefix("components.") for found in containers if found["image"] == image}


def imports(room: str) -> Iterator[str]:
    """Modules outside the project and the standard library that a room imports, itself or through others."""
    place = ROOT / "components" / room.replace(".", "/")
    files = place.glob("*.py") if place.is_dir() else [place.with_suffix(".py")]
    waiting = [path for path in files if path.name != "component.py"]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            for name in names:
                inside = ROOT / (name.replace(".", "/") + ".py")
                if name.startswith("components"):
                    waiting += [inside] if inside.is_file() else []
                elif name.partition(".")[0] not in sys.stdlib_module_names:
                    yield name.partition(".")[0]


@pytest.mark.parametrize("image", [LIGHT, MODEL])
def test_what_steps_import_is_in_their_image(image: str) -> None:
    provided = packages_distributions()
    for room in rooms(image):
        # vLLM is used where somebody has put it into an image of their own.
        for module in set(imports(room)) - {"pydantic_core", "vllm"}:
            names = {re.sub(r"[-_.]+", "-", name).lower() for name in provided[module]}
            # mlflow is split; the client is in the part that images have. Models are loaded by torch only in the model image.
            assert names & packages(image), f"{room} imports {module}"


@pytest.mark.parametrize("image", [LIGHT, MODEL])
def test_versions_come_from_the_lock(image: str) -> None:
    assert packages(image) <= LOCKED
    assert not packages(image) & {"kfp", "kfp-kubernetes", "pytest"}


def test_the_light_image_is_light() -> None:
    assert not packages(LIGHT) & {"torch", "transformers", "sentence-transformers"}


@pytest.mark.parametrize("image", [LIGHT, MODEL])
def test_every_step_of_an_image_is_tried_when_it_is_built(image: str) -> None:
    (found,) = (
        node.value
        for node in ast.parse((ROOT / "images" / "health.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "STEPS"
    )
    assert set(ast.literal_eval(found)[image.removeprefix("polyphony-")]) == rooms(image)
