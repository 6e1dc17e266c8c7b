"""What a finished step tells Kubeflow Pipelines, so that its UI shows it.

Kubeflow hands a container its executor input, a JSON document that names every output artifact and the file in which to
describe them. kfp itself is not needed, and not in the images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from components.contracts import atomic

METRICS = "metrics"
# The two images, under the names that `make images` gives them; a cluster's profile says where they are there.
LIGHT, MODEL = "polyphony-light", "polyphony-model"
# The executor input, as an argument of a container.
EXECUTOR_INPUT = "--executor-input={{$}}"


def addresses(executor_input: str) -> dict[str, str]:
    """Where Kubeflow keeps each output artifact, by name."""
    artifacts = json.loads(executor_input)["outputs"].get("artifacts", {})
    return {name: uri for name, found in artifacts.items() if (uri := found["artifacts"][0].get("uri"))}


def report(executor_input: str, metrics: Mapping[str, float], digests: Mapping[str, str]) -> None:
    """Describes all output artifacts: the artifact `metrics` by its numbers, the others by their digest where it is known.

    Artifacts that are left out would not exist for the tasks that follow, so all are named. Numbers that JSON cannot hold
    (NaN, infinities) are left out.
    """
    outputs = json.loads(executor_input)["outputs"]
    artifacts = outputs.get("artifacts", {})
    for name, found in artifacts.items():
        metadata = found["artifacts"][0].setdefault("metadata", {})
        if name == METRICS:
            metadata.update({key: value for key, value in metrics.items() if math.isfinite(value)})
        elif name in digests:
            metadata["digest"] = digests[name]
    with atomic(Path(outputs["outputFile"])) as partial:
        partial.write_text(json.dumps({"artifacts": artifacts}), encoding="utf-8")
