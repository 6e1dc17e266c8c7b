"""A task of the pipeline in a container of this machine's Docker engine.

kfp's own way takes a container that vanished for one that succeeded, and shows it none of the folders that a run on this
machine names. Here a container sees the working directory under its own name, as a process would, and its exit status counts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kfp.local import docker_task_handler, status

from components.contracts import InputError
from components.models.resolve import cache_folder
from components.provenance import ENGINE, ENGINE_RUN

# Variables of this process that tasks are given, by what they begin with: addresses and credentials of stores, threads,
# and what the engine says of the run.
_PASSED_ON = ("AWS_", "FSSPEC_", "GIT_TOKEN", "GIT_USERNAME", "HF_", "MLFLOW_", "OMP_", ENGINE, ENGINE_RUN)
# And keys of endpoints, by what they end with.
_KEY = "_API_KEY"
# What Docker adds to a container's signal: 9 cannot be caught.
_KILLED = 128 + 9


def task(mounts: Collection[Path]) -> type[docker_task_handler.DockerTaskHandler]:
    """kfp's class for a task in a container, whose containers may also read `mounts`."""

    class Container(docker_task_handler.DockerTaskHandler):
        def run(self) -> status.Status:
            written = (Path.cwd(), Path(self.pipeline_root))
            ended = run(self.image, self.full_command, self.env_vars, written, mounts)
            return status.Status.SUCCESS if ended == 0 else status.Status.FAILURE

    return Container


def run(
    image: str, command: Sequence[str], variables: Mapping[str, str], written: Collection[Path], mounts: Collection[Path]
) -> int:
    """Runs a container in the foreground, with this terminal, user and working directory; returns its exit status.

    Args:
        written: folders that it may change.
        mounts: folders that it may read.
    """
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    given = {name: value for name, value in os.environ.items() if name.startswith(_PASSED_ON) or name.endswith(_KEY)}
    given |= {**variables, "HF_HOME": str(hub), "POLYPHONY_CACHE": str(cache_folder())}
    words = ["docker", "run", "--rm", "--pull", "never", "--network", "host", "--shm-size", "2g"]
    words += ["--user", f"{os.getuid()}:{os.getgid()}", "--security-opt", "label=disable", "--workdir", str(Path.cwd())]
    for folder in sorted({*written, hub, cache_folder()}):
        # Docker would make what is missing, and root its owner.
        folder.mkdir(parents=True, exist_ok=True)
        words += ["--volume", f"{folder}:{folder}"]
    for folder in sorted(mounts):
        words += ["--volume", f"{folder.resolve()}:{folder.resolve()}:ro"]
    # By name alone: a command line is for everybody to see.
    words += [word for name in sorted(given) for word in ("--env", name)]
    ended = subprocess.run([*words, image, *command], env=os.environ | given, check=False).returncode
    if ended == _KILLED:
        print("The container was killed: by hand, or for its memory.", flush=True)
    return ended


def check(images: Collection[str]) -> None:
    """Looks, before anything runs, whether containers can be started from these images.

    Raises:
        InputError: saying what is missing: Docker, its engine or an image.
    """
    if not shutil.which("docker"):
        raise InputError("--runner docker: there is no `docker` in PATH. Install it, or take --runner subprocess.")
    for image in images:
        looked = subprocess.run(["docker", "image", "inspect", image], capture_output=True, text=True, check=False)
        if looked.returncode and "No such image" in looked.stderr:
            raise InputError(f"--runner docker: there is no image {image!r} here. Build it: `make images`.")
        if looked.returncode:
            raise InputError(f"--runner docker: Docker does not answer: {looked.stderr.strip()}")
