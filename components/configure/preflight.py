"""What a run will need, looked at before anything queues for a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from components.contracts import InputError
from components.lineage import tracking_client
from components.models.params import Params as Models

# How many GPUs the trainings of a cluster get; not set where they get none.
GPUS = "POLYPHONY_GPUS"
# On how many nodes; not set where it is one.
NODES = "POLYPHONY_NODES"


def preflight(document: Mapping[str, Any]) -> None:
    """Looks whether there are GPUs for all processes, whether MLflow answers, and whether the tokenizer has a chat template.

    Raises:
        InputError: naming what is missing.
    """
    processes, gpus, nodes = document["train"]["processes"], os.environ.get(GPUS), int(os.environ.get(NODES) or 1)
    if gpus and processes > int(gpus):
        raise InputError(f"train.processes is {processes}, and trainings get {gpus} GPU(s) here: see `gpus` in the profile.")
    if processes % nodes:
        raise InputError(
            f"train.processes is {processes}, and trainings are on {nodes} nodes here, which share them alike: make it "
            f"{nodes * max(1, processes // nodes)}, or choose a profile with one node."
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
