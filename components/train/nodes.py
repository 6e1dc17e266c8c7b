"""What a training on several nodes is given, by the cluster's profile through the environment of its task."""

from __future__ import annotations

import os

from pydantic import Field, ValidationError

from components.contracts import InputError
from components.params import Section
from components.train.params import Params

# Where the settings stand, as JSON; not set where one node trains.
SETTINGS = "POLYPHONY_TRAINJOB"


class Settings(Section):
    """What a job is given."""

    nodes: int = Field(ge=2)
    runtime: str = Field(min_length=1, description="ClusterTrainingRuntime or TrainingRuntime that runs torch on many nodes")
    namespace: str = Field("", description="empty for the task's own")
    resources: dict[str, str] = Field(description="of a node: cpu and memory")
    gpu: str = Field("", description="resource name of its GPUs, of which each process gets one; empty: on CPUs")
    hours: float = Field(gt=0, description="time after which the job is ended")
    shared_memory: str = Field(description="size of /dev/shm")
    volumes: dict[str, str] = Field(description="claim -> where it is mounted, in the task and in the pods alike")
    service_account: str = ""
    node_selector: dict[str, str] = Field({})
    tolerations: tuple[dict[str, str], ...] = ()
    environment: dict[str, str] = Field({})
    poll: float = Field(5, gt=0, description="seconds between two looks at the job")


def settings() -> Settings | None:
    """What the task's environment says; None where the training is on one node.

    Raises:
        InputError: if it is not what a profile writes.
    """
    text = os.environ.get(SETTINGS)
    if not text:
        return None
    try:
        return Settings.model_validate_json(text)
    except ValidationError as error:
        raise InputError(f"{SETTINGS}: {error}. Compile the package again.") from None


def processes_of_a_node(train: Params, given: Settings) -> int:
    """
    Raises:
        InputError: if the processes cannot be divided among the nodes.
    """
    each, rest = divmod(train.processes, given.nodes)
    if rest or not each:
        raise InputError(f"train.processes is {train.processes}, which {given.nodes} nodes cannot share alike: see `nodes`.")
    return each
