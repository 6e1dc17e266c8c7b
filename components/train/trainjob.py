"""A training on several nodes: a Kubeflow Trainer job, started, heard and ended by the task that would train on one node.

The job's pods run the processes of `worker`, as on one machine. Data goes in and the model comes out through the volume of the
checkpoints, which all nodes see under one name. What a pod measures stands in its log and is recorded by the task.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from components.contracts import InputError, atomic
from components.models.params import Params as Models
from components.provenance import ENGINE_RUN, IMAGE
from components.train.checkpoints import STOPPED
from components.train.launch import hear, job
from components.train.nodes import Settings, processes_of_a_node
from components.train.params import Params
from components.train.worker import ERROR, EXAMPLES, JOB

if TYPE_CHECKING:
    from kubeflow.trainer import TrainerClient

log = logging.getLogger("polyphony")
# Lines that a pod that failed is quoted with.
_LAST_WORDS = 20
# Failures in a row after which the API counts as gone, and seconds that a job's end may take.
_PATIENCE, _ENDING = 30, 60
# The pods of a job, and their container, as the torch runtime calls them.
_NODE = "node"


def train_on_nodes(
    objective: str, train: Params, models: Models, inputs: Mapping[str, Path], folder: Path, work: Path, given: Settings
) -> dict[str, Any]:
    """`train_language` by `train.processes` processes on `given.nodes` nodes; otherwise takes and returns the same.

    A job of the same training that an earlier try left behind is ended first; its checkpoint is gone on from.

    Raises:
        InputError: what a process raised as one; if Kubernetes does not answer or refuses.
        RuntimeError: if the job failed otherwise, with the last words of the pods that failed.
        SystemExit: with `STOPPED`, after the job was ended, if this process got SIGTERM.
    """
    each = processes_of_a_node(train, given)
    work = work.resolve()
    shared = {name: _copied(path, work / "inputs" / name) for name, path in inputs.items()}
    made = work / "model"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir()
    with atomic(work / JOB) as partial:
        partial.write_text(json.dumps(job(objective, train, models, shared, made, work, watched=False)), encoding="utf-8")
    for left in (ERROR, EXAMPLES):
        (work / left).unlink(missing_ok=True)
    name = f"polyphony-{work.name.replace('_', '-')}"
    with _answers(given), _ending_at_sigterm():
        client = _client(given)
        _end(client, name)
        try:
            _start(client, name, each, work / JOB, given)
            status, words = _follow(client, name, given.poll)
        finally:
            _end(client, name)
    if (work / ERROR).exists():
        raise InputError((work / ERROR).read_text(encoding="utf-8"))
    if status != "Complete":
        raise RuntimeError(f"TrainJob {name} failed.\n{words}")
    shutil.copytree(made, folder, dirs_exist_ok=True)
    return json.loads((folder / "training.json").read_text(encoding="utf-8"))["metrics"]


def _copied(source: Path, target: Path) -> Path:
    with atomic(target) as partial:
        if source.is_dir():
            shutil.copytree(source, partial)
        else:
            shutil.copyfile(source, partial)
    return target


def _client(given: Settings) -> TrainerClient:
    from kubeflow.common.types import KubernetesBackendConfig
    from kubeflow.trainer import TrainerClient

    # It asks for a version that it then does not use, and says so where it may not.
    logging.getLogger("kubeflow").setLevel(logging.ERROR)
    return TrainerClient(backend_config=KubernetesBackendConfig(namespace=given.namespace or None))


def _start(client: TrainerClient, name: str, each: int, task: Path, given: Settings) -> None:
    from kubeflow.trainer import CustomTrainerContainer
    from kubeflow.trainer.options import kubernetes as options
    from kubeflow.trainer.options.common import Name

    # Models of the hub are on their volume: the task has looked for them, and the pods need no token.
    environment = {"HF_HUB_OFFLINE": "1", **given.environment}
    resources = given.resources | ({given.gpu: str(each)} if given.gpu else {})
    if not given.gpu:
        environment["ACCELERATE_USE_CPU"] = "true"
    volumes = [{"name": f"volume-{i}", "persistentVolumeClaim": {"claimName": claim}} for i, claim in enumerate(given.volumes)]
    mounts = [{"name": f"volume-{i}", "mountPath": path} for i, path in enumerate(given.volumes.values())]
    volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": given.shared_memory}})
    mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})  # noqa: S108
    pod = options.PodSpecPatch(
        service_account_name=given.service_account or None,
        volumes=volumes,
        containers=[options.ContainerPatch(name=_NODE, volume_mounts=mounts)],
        node_selector=given.node_selector or None,
        tolerations=list(given.tolerations) or None,
    )
    template = options.JobTemplatePatch(spec=options.JobSpecPatch(template=options.PodTemplatePatch(spec=pod)))
    jobs = options.JobSetSpecPatch(replicated_jobs=[options.ReplicatedJobPatch(name=_NODE, template=template)])
    patch = options.TrainingRuntimeSpecPatch(template=options.JobSetTemplatePatch(spec=jobs))
    # The runtime says in PET_* where the nodes meet, which torchrun reads and Accelerate's launcher does not.
    command = ["python", "-m", "torch.distributed.run", f"--nproc-per-node={each}", "--module", "components.train.worker"]
    client.train(
        runtime=given.runtime,
        trainer=CustomTrainerContainer(
            image=os.environ[IMAGE], num_nodes=given.nodes, resources_per_node=resources, env=environment
        ),
        options=[
            Name(name),
            options.Labels({"polyphony/run": os.environ.get(ENGINE_RUN, "none")}),
            options.TrainerCommand([*command, str(task)]),
            options.RuntimePatch(training_runtime_spec=patch),
            options.ActiveDeadlineSeconds(round(given.hours * 3600)),
        ],
    )
    log.info("TrainJob %s: %d processes on each of %d nodes", name, each, given.nodes)


def _follow(client: TrainerClient, name: str, seconds: float) -> tuple[str, str]:
    """Passes on what the first node says until the job ends; returns the job's status, and what pods that failed said last."""
    heard: dict[str, int] = {}
    failures = 0
    while True:
        try:
            found = client.get_job(name)
            first = next((step for step in found.steps if step.name == f"{_NODE}-0" and step.status != "Pending"), None)
            if first is not None:
                # Also to the end of what has ended: a log taken at once is cut into other lines.
                for number, line in enumerate(client.get_job_logs(name, step=first.name, follow=True)):
                    # A log that was cut off is told again from its beginning.
                    if number >= heard.get(first.pod_name, 0):
                        hear(f"{line}\n")
                        heard[first.pod_name] = number + 1
            if found.status in ("Complete", "Failed"):
                return found.status, "\n".join(_last_words(client, found)) if found.status == "Failed" else ""
            failures = 0
        except (RuntimeError, TimeoutError):
            failures += 1
            if failures == _PATIENCE:
                raise
        time.sleep(seconds)


def _last_words(client: TrainerClient, found: Any) -> Iterator[str]:
    failed = [step for step in found.steps if step.status == "Failed"]
    for step in failed or found.steps:
        lines = list(client.get_job_logs(found.name, step=step.name))[-_LAST_WORDS:]
        yield "\n".join([f"{step.pod_name} ({step.status or 'not started'}) ended with:", *lines])
    if not found.steps:
        yield "It had no pods: see its events (kubectl describe trainjob)."


def _end(client: TrainerClient, name: str) -> None:
    """Ends a job and waits until it is gone: its processes save a checkpoint first. Nothing where there is none."""
    try:
        client.delete_job(name)
    except RuntimeError as error:
        if not _missing(error):
            raise
        return
    until = time.monotonic() + _ENDING
    while time.monotonic() < until:
        try:
            client.get_job(name)
        except RuntimeError as error:
            if _missing(error):
                return
        time.sleep(0.2)
    log.warning("TrainJob %s: still there after %d s", name, _ENDING)


def _missing(error: BaseException) -> bool:
    return getattr(error.__cause__, "status", None) == 404


@contextmanager
def _answers(given: Settings) -> Iterator[None]:
    """What the SDK raises names the call and keeps the reason to itself."""
    from kubernetes.config import ConfigException

    try:
        yield
    except (RuntimeError, TimeoutError, ConfigException) as error:
        cause = error.__cause__ or error
        raise InputError(
            f"Kubernetes: {error}: {getattr(cause, 'body', None) or cause}. The task's service account must be allowed to "
            f"create, get and delete trainjobs, to get {given.runtime}, and to get pods and their logs."
        ) from error


@contextmanager
def _ending_at_sigterm() -> Iterator[None]:
    """SIGTERM interrupts whatever is waited for, so that the job is ended with this process."""
    if threading.current_thread() is not threading.main_thread():
        # Only the main thread may say what signals do.
        yield
        return

    def stop(*_: Any) -> None:
        # Once: what ends the job is not to be interrupted.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise SystemExit(STOPPED)

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        with suppress(ValueError):
            signal.signal(signal.SIGTERM, before)
