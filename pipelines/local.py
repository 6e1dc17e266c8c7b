"""The pipeline on this machine: the graph that Kubeflow runs, by kfp's own orchestrator.

As plain processes it needs no Docker. kfp refuses container components there; two checks of a class of its private `kfp.local`
stand in the way, and a third place in that of loops (seen in 2.17.0, which pyproject.toml pins). What does Docker's part is in
`containers`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kfp import local
from kfp.local import docker_task_handler, io, status, subprocess_task_handler
from kfp.local.orchestrator import task_spec_utils

from components.contracts import InputError
from components.provenance import ENGINE, ENGINE_RUN, IMAGE
from pipelines import containers
from pipelines.cluster import Cluster
from pipelines.graph import pipeline

# What steps record as their engine.
_ENGINE = "kfp.local"


class _Process(subprocess_task_handler.SubprocessTaskHandler):
    """A container's command as a process of this environment, with this terminal."""

    def validate_image(self, image: str) -> None:
        del image

    def validate_not_container_component(self, full_command: list[str]) -> None:
        del full_command

    def run(self) -> status.Status:
        program, *arguments = self.full_command
        command = [sys.executable if program == "python" else program, *arguments]
        # The image that the graph names for the task is not what runs here.
        given = {name: value for name, value in self.env_vars.items() if name != IMAGE}
        done = subprocess.run(command, env=os.environ | given, check=False)
        return status.Status.SUCCESS if done.returncode == 0 else status.Status.FAILURE


def run(cluster: Cluster, inputs: Mapping[str, Any], runner: str, root: Path, mounts: Sequence[Path] = ()) -> bool:
    """Runs the pipeline; every task's outputs lie in a folder of its name under `root`. Returns whether all went well.

    Args:
        runner: `subprocess` or `docker`.
        mounts: folders that containers may read, beside the working directory.

    Raises:
        InputError: if Docker is asked for without an engine, the images or a tracking server that containers can reach.
    """
    # A graph cannot give its tasks the id of a run that it does not know; on Kubernetes they find it on their pods.
    settings = {ENGINE: _ENGINE, ENGINE_RUN: f"local-{uuid.uuid4()}"}
    with _containers(cluster, mounts) if runner == "docker" else _processes() as chosen, _environment(settings), _loops():
        # What a cluster is told of each task means nothing here, and kfp warns of each.
        warnings.filterwarnings("ignore", message=".*have no effect in the current local runner", category=UserWarning)
        local.init(runner=chosen, pipeline_root=str(root.resolve()), raise_on_error=True)
        try:
            pipeline(cluster)(**inputs)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return False
    return True


@contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    """Tasks inherit these from this process."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _loops() -> Iterator[None]:
    """Mends two faults of kfp.local's loops.

    It finds the list that a task made only where that output is called Output; and whatever else a loop takes from a task's
    output, it replaces by the loop's item.
    """
    find_before, iterate_before = io.IOStore.get_parent_input, task_spec_utils.create_parameter_loop_iteration_task_spec

    def find(store: io.IOStore, key: str) -> Any:
        try:
            return find_before(store, key)
        except ValueError:
            for task, outputs in store._task_output_data.items():
                for name, value in outputs.items():
                    if key == f"pipelinechannel--{task}-{name}":
                        return value
            raise

    def iterate(loop: Any, item: Any, name: str) -> Any:
        iteration = iterate_before(loop, item, name)
        for key, taken in loop.inputs.parameters.items():
            if taken.HasField("task_output_parameter"):
                iteration.inputs.parameters[key].CopyFrom(taken)
        return iteration

    io.IOStore.get_parent_input = find
    task_spec_utils.create_parameter_loop_iteration_task_spec = iterate
    try:
        yield
    finally:
        io.IOStore.get_parent_input = find_before
        task_spec_utils.create_parameter_loop_iteration_task_spec = iterate_before


@contextmanager
def _processes() -> Iterator[local.SubprocessRunner]:
    before = subprocess_task_handler.SubprocessTaskHandler
    subprocess_task_handler.SubprocessTaskHandler = _Process
    try:
        yield local.SubprocessRunner(use_venv=False)
    finally:
        subprocess_task_handler.SubprocessTaskHandler = before


@contextmanager
def _containers(cluster: Cluster, mounts: Sequence[Path]) -> Iterator[local.DockerRunner]:
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    if not address.startswith(("http://", "https://")):
        raise InputError(
            f"MLFLOW_TRACKING_URI={address!r}: containers need a server that they can reach. "
            "Start one with `make mlflow`, and set MLFLOW_TRACKING_URI=http://127.0.0.1:5000."
        )
    containers.check((cluster.images.light, cluster.images.model))
    before = docker_task_handler.DockerTaskHandler
    docker_task_handler.DockerTaskHandler = containers.task(mounts)
    try:
        yield local.DockerRunner()
    finally:
        docker_task_handler.DockerTaskHandler = before
