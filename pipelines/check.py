"""What only the backend would reject, or worse accept: found in a package before it is uploaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from components.train.nodes import SETTINGS
from pipelines.cluster import SECRET
from pipelines.package import documents

# What the backend puts into arguments (its launcher and driver, 2.17); anything else reaches the program as it stands.
_KNOWN = re.compile(
    r"\$|\$\.(inputs\.parameters\['(?P<parameter>[^']+)'\]"
    r"|inputs\.artifacts\['(?P<artifact>[^']+)'\]\.(path|uri)"
    r"|outputs\.artifacts\['(?P<made>[^']+)'\]\.(path|uri)"
    r"|outputs\.parameters\['(?P<told>[^']+)'\]\.output_file)"
)
_PLACEHOLDER = re.compile(r"\{\{(.*?)\}\}")
_STRUCTURE = re.compile(r'^\{"(Concat|IfPresent)"')
_CREDENTIALS = re.compile(r"://[^/\s:@]+:[^/\s@]+@")


def problems(package: str, *, release: bool = False) -> list[str]:
    """Every problem of a package, one sentence each.

    Args:
        release: whether images must be named by digest: behind a tag that moves, the cache serves results of other code.
    """
    spec, platform = documents(package)
    mounts = platform.get("platforms", {}).get("kubernetes", {}).get("deploymentSpec", {}).get("executors", {})
    components = spec["components"]
    found = [f"input {name}: {fault}" for name, fault in _defaults(spec["root"])]
    for component in [spec["root"], *components.values()]:
        for name, task in component.get("dag", {}).get("tasks", {}).items():
            wanted = components[task["componentRef"]["name"]]
            found += [f"task {name}: {fault}" for fault in _unpassed(task, wanted)]
            if label := wanted.get("executorLabel"):
                resources = spec["deploymentSpec"]["executors"][label]["container"].get("resources", {})
                found += [f"task {name}: {fault}" for fault in _limits(resources, task, component, components)]
    for component in components.values():
        label = component.get("executorLabel")
        if label:
            container = spec["deploymentSpec"]["executors"][label]["container"]
            name = label.removeprefix("exec-")
            found += [f"task {name}: {fault}" for fault in _arguments(container, component)]
            found += [f"task {name}: {fault}" for fault in _needs(container, mounts.get(label, {}))]
            found += [f"task {name}: {fault}" for fault in _image(container["image"], release)]
    return found


def _defaults(root: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, declared in root.get("inputDefinitions", {}).get("parameters", {}).items():
        default = declared.get("defaultValue")
        if default and (SECRET.search(name) or _CREDENTIALS.search(str(default))):
            yield name, "holds a secret as its default, which everybody can read; use a Kubernetes secret."
        if not declared.get("description"):
            yield name, "has no description for the form."


def _unpassed(task: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[str]:
    item = task.get("parameterIterator", {}).get("itemInput")
    for kind in ("parameters", "artifacts"):
        passed = {*task.get("inputs", {}).get(kind, {}), item}
        for name in wanted.get("inputDefinitions", {}).get(kind, {}):
            if name not in passed:
                yield f"is not passed {name}: the backend resolves arguments before it adds defaults."


def _limits(
    resources: Mapping[str, Any], task: Mapping[str, Any], parent: Mapping[str, Any], components: Mapping[str, Any]
) -> Iterator[str]:
    """Of limits that are parameters: the backend's driver reads the task's own inputs, and of those texts alone."""
    for inside in _PLACEHOLDER.findall(str(list(_values(resources)))):
        match = _KNOWN.fullmatch(inside)
        name = match["parameter"] if match else inside
        passed = task.get("inputs", {}).get("parameters", {}).get(name, {})
        if "taskOutputParameter" in passed:
            made = passed["taskOutputParameter"]
            maker = components[parent["dag"]["tasks"][made["producerTask"]]["componentRef"]["name"]]
            declared = maker["outputDefinitions"]["parameters"][made["outputParameterKey"]]
        else:
            taken = passed.get("componentInputParameter")
            declared = parent.get("inputDefinitions", {}).get("parameters", {}).get(taken, {})
        if declared.get("parameterType") != "STRING":
            yield f"a limit is {name}, which is no text that the task is passed: the backend would take it for nothing."


def _values(resources: Mapping[str, Any]) -> Iterator[str]:
    for value in resources.values():
        if isinstance(value, Mapping):
            yield from _values(value)
        else:
            yield str(value)


def _arguments(container: Mapping[str, Any], component: Mapping[str, Any]) -> Iterator[str]:
    declared = {
        (side, kind): set(component.get(f"{side}Definitions", {}).get(kind, {}))
        for side in ("input", "output")
        for kind in ("parameters", "artifacts")
    }
    words = [*container.get("command", []), *container.get("args", [])]
    written: set[str] = set()
    for word in words:
        if _STRUCTURE.match(word):
            yield f"argument {word!r}: the backend does not resolve Concat, and IfPresent only in part."
            continue
        for inside in _PLACEHOLDER.findall(word):
            match = _KNOWN.fullmatch(inside)
            if match is None:
                yield f"argument {word!r}: the backend does not know this placeholder."
                continue
            groups = match.groupdict()
            known = {
                "parameter": declared["input", "parameters"],
                "artifact": declared["input", "artifacts"],
                "made": declared["output", "artifacts"],
                "told": declared["output", "parameters"],
            }
            for group, names in known.items():
                if groups[group] and groups[group] not in names:
                    yield f"argument {word!r}: there is no {groups[group]}."
            written |= {groups["made"] or "", groups["told"] or ""}
    for name in sorted((declared["output", "artifacts"] | declared["output", "parameters"]) - written):
        yield f"output {name}: no argument says where it goes."


def _needs(container: Mapping[str, Any], told: Mapping[str, Any]) -> Iterator[str]:
    resources = container.get("resources", {})
    if "accelerator" in resources:
        if not resources.get("resourceMemoryLimit"):
            yield "asks for a GPU without a memory limit: its node may kill others for it."
        if not any(mount["mountPath"] == "/dev/shm" for mount in told.get("emptyDirMounts", [])):  # noqa: S108
            yield "asks for a GPU without a mount at /dev/shm, where 64 MB end in bus errors."
    if any(variable["name"] == SETTINGS for variable in container.get("env", [])) and not told.get("pvcMount"):
        yield "starts a job on several nodes without a volume: nothing would reach them."
    for variable in container.get("env", []):
        if SECRET.search(variable["name"]) or _CREDENTIALS.search(variable.get("value", "")):
            yield f"variable {variable['name']}: holds a secret as plain text; use a Kubernetes secret."


def _image(image: str, release: bool) -> Iterator[str]:
    if release and not re.search(r"@sha256:[0-9a-f]{64}$", image):
        yield f"image {image}: not named by digest, as a release must."
