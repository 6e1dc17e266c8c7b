"""What a run will need, looked at before anything queues for a GPU."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from components.contracts import InputError
from components.lineage import tracking_client
from components.models.params import Params as Models


def preflight(document: Mapping[str, Any]) -> None:
    """Looks whether MLflow answers and whether the language model has a tokenizer with a chat template.

    Raises:
        InputError: naming what is missing.
    """
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
