"""What a run will need, looked at before anything queues for a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from components.contracts import InputError
from components.lineage import tracking_client
from components.models.params import Params as Models
from components.params import ParameterError

# The resource name of a cluster's GPUs; not set where it has none.
GPU = "POLYPHONY_GPU"
# On how many nodes trainings are; not set where it is one.
NODES = "POLYPHONY_NODES"


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
    """Looks whether nodes can share all processes, whether MLflow answers, and whether the tokenizer has a chat template.

    Raises:
        InputError: naming what is missing.
    """
    shared, nodes = document["train"]["processes"], _nodes()
    if shared % nodes:
        raise InputError(
            f"train.processes is {shared}, and trainings are on {nodes} nodes here, which share them alike: make it "
            f"{nodes * max(1, shared // nodes)}, or choose a profile with one node."
        )

    from mlflow.exceptions import MlflowException

    from components.models.language import load_tokenizer

    # Minutes of retries are for a server that is away for a moment, not for a wrong address.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    try:
        tracking_client().search_experiments(max_results=1)
    except (MlflowException, OSError) as error:
        address = os.environ.get("MLFLOW_TRACKING_URI", "")
        raise InputError(f"MLflow at MLFLOW_TRACKING_URI={address!r} does not answer: {error}") from error
    load_tokenizer(Models(**document["models"]))
