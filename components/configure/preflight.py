"""What a run will need, looked at before anything queues for a GPU."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from components.contracts import InputError
from components.lineage import EXPERIMENT, tracking_client
from components.models.params import Params as Models
from components.models.resolve import on_hub, to_fetch
from components.params import ParameterError

# The resource name of a cluster's GPUs; not set where it has none.
GPU = "POLYPHONY_GPU"
# On how many nodes trainings are; not set where it is one.
NODES = "POLYPHONY_NODES"
_GB = 1e9


def processes(gpus: int) -> int | None:
    """How many processes a training has: one to a GPU of each node; None where there are no GPUs, and parameters say it.

    Args:
        gpus: of each node, as the form says.

    Raises:
        ParameterError: if the cluster has none and some are asked for, or the other way round.
    """
    name = os.environ.get(GPU)
    if gpus < 0 or (gpus and not name):
        raise ParameterError(
            f"gpus: {gpus}, where there are none: make it 0, or name the GPUs' resource as `accelerated.gpu` in the cluster's "
            "profile. On this machine train.processes says how many processes share a training."
        )
    if name and not gpus:
        raise ParameterError(f"gpus: 0, and trainings ask for {name} here: at least 1.")
    return gpus * _nodes() or None


def _nodes() -> int:
    return int(os.environ.get(NODES) or 1)


def preflight(document: Mapping[str, Any]) -> None:
    """Looks whether nodes can share all processes, keys are there, MLflow and its artifacts answer, all models exist, the
    tokenizer has a chat template, and what the hub has yet to send finds room.

    What trainings write lies on volumes that this task does not see: adapters and their checkpoints, small beside the models.

    Raises:
        InputError: naming what is missing.
    """
    shared, nodes = document["train"]["processes"], _nodes()
    if shared % nodes:
        raise InputError(
            f"train.processes is {shared}, and trainings are on {nodes} nodes here, which share them alike: make it "
            f"{nodes * max(1, shared // nodes)}, or choose a profile with one node."
        )
    _keys(document["evaluate"]["systems"])
    _tracking()
    models = Models(**document["models"])
    named = {system["model"] for system in document["evaluate"]["systems"].values() if not system["endpoint"]} - {""}
    # Folders may lie where this task does not see them, and versions of the registry are evaluate's to fetch.
    _models(models, [name for name in named if on_hub(name) or not {"/", "@"} & set(name)])


def _keys(systems: Mapping[str, Any]) -> None:
    endpoints = {name: system["endpoint"] for name, system in systems.items() if system["endpoint"]}
    missing = [
        f"evaluate.systems.{name}.endpoint.key: the environment variable {endpoint['key']} is not set"
        for name, endpoint in endpoints.items()
        if endpoint["key"] and not os.environ.get(endpoint["key"])
    ]
    if missing:
        hint = "On a cluster, the profile names secrets and the variables that they become under `secrets`."
        raise InputError("\n  ".join([f"{len(missing)} key(s) missing:", *missing, hint]))


def _tracking() -> None:
    import mlflow
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    # Minutes of retries are for a server that is away for a moment, not for a wrong address.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    address = os.environ.get("MLFLOW_TRACKING_URI", "")
    try:
        client = tracking_client()
        if run := os.environ.get("MLFLOW_RUN_ID"):
            place = client.get_run(run).info.artifact_uri
        else:
            # Made where it is not there, as the first step would.
            place = mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)).artifact_location
    except (MlflowException, OSError) as error:
        raise InputError(f"MLflow at MLFLOW_TRACKING_URI={address!r} does not answer, or refuses: {error}") from error
    try:
        # A folder that is not there is quickly listed.
        list_artifacts(artifact_uri=f"{place}/configure")
    except Exception as error:
        # Stores have exceptions of their own.
        raise InputError(
            f"MLflow at MLFLOW_TRACKING_URI={address!r} keeps artifacts at {place}, which cannot be read: {error}. Have the "
            "server hand them out, with credentials for its store, or give the tasks these."
        ) from error


def _models(models: Models, others: Sequence[str]) -> None:
    from huggingface_hub.constants import HF_HUB_CACHE

    from components.models.embedders import STYLOMETRIC
    from components.models.language import load_tokenizer

    load_tokenizer(models)
    names = {models.language, models.tokenizer, models.reward, models.semantic, models.style, *others} - {"", STYLOMETRIC}
    sizes = {name: size for name in sorted(names) if (size := to_fetch(name))}
    cache = Path(HF_HUB_CACHE)
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if sum(sizes.values()) > free:
        told = ", ".join(f"{name} {size / _GB:.1f} GB" for name, size in sizes.items())
        raise InputError(
            f"models are yet to be fetched from the hub ({told}), and {cache} has room for {free / _GB:.1f} GB: make room, or "
            "have HF_HOME (on a cluster `volumes.hub_cache`) name a place that has it."
        )
