"""What a finished step tells Kubeflow Pipelines, so that its UI shows it.

Kubeflow hands a container its executor input, a JSON document that names every output artifact and the file in which to
describe them. kfp itself is not needed, and not in the images.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic

METRICS = "metrics"
# The two images, under the names that `make images` gives them; a cluster's profile says where they are there.
LIGHT, MODEL = "polyphony-light", "polyphony-model"
# The executor input, as an argument of a container.
EXECUTOR_INPUT = "--executor-input={{$}}"


# An argument that stands for artifacts of a list: `--flag=@INPUT`, `--flag=@INPUT:NAME`, `--flag=@INPUT:["NAME", ...]`.
_OF_A_LIST = re.compile(r"(--[\w-]+)=@(\w+)(?::(.+))?", re.DOTALL)
_EXECUTOR_INPUT = EXECUTOR_INPUT.partition("=")[0] + "="
# Where the backend's launcher puts what lies at an address.
_MOUNTS = {"gs://": "/gcs/", "minio://": "/minio/", "s3://": "/s3/"}


def expand(argv: Sequence[str]) -> list[str]:
    """The arguments, with what stands for artifacts of a list replaced by their places.

    A loop's artifacts reach the task after it as a list, which no placeholder can put into a container's arguments. The
    launcher fetches all of it and names it in the executor input:

    - `--part=@parts` becomes `--part=0=PATH --part=1=PATH ...`;
    - `--system=@models:["dpo","ddpo"]` becomes `--system=dpo=PATH --system=ddpo=PATH`, the models of these objectives;
    - `--model=@models:ddpo` becomes `--model=PATH`.

    Raises:
        InputError: if the list does not hold what is asked for.
    """
    told = next((word.removeprefix(_EXECUTOR_INPUT) for word in argv if word.startswith(_EXECUTOR_INPUT)), None)
    if told is None:
        return list(argv)
    lists = json.loads(told).get("inputs", {}).get("artifacts", {})
    return [word for argument in argv for word in _expanded(argument, lists)]


def _expanded(argument: str, lists: Mapping[str, Any]) -> Iterator[str]:
    found = _OF_A_LIST.fullmatch(argument)
    if found is None or found[2] not in lists:
        yield argument
        return
    flag, name, wanted = found.groups()
    paths = [_place(artifact["uri"]) for artifact in lists[name]["artifacts"]]
    if wanted is None:
        yield from (f"{flag}={number}={path}" for number, path in enumerate(paths))
        return
    models = {_objective(path): path for path in paths}
    several = wanted.startswith("[")
    for objective in json.loads(wanted) if several else [wanted]:
        if objective not in models:
            raise InputError(f"no model of {objective} among those of {', '.join(models)}.")
        yield f"{flag}={objective}={models[objective]}" if several else f"{flag}={models[objective]}"


def _objective(model: Path) -> str:
    record = model / "training.json"
    try:
        return str(json.loads(record.read_text(encoding="utf-8"))["objective"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{record}: does not say how the model was trained ({error!r}). Run its training again.") from None


def _place(uri: str) -> Path:
    for scheme, mount in _MOUNTS.items():
        if uri.startswith(scheme):
            return Path(mount + uri.removeprefix(scheme))
    return Path(uri)


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
