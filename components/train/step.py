"""Trains one model: the reward model, the SFT model, or a preference model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic, require_passed
from components.lineage import when_recorded
from components.models.params import Params as Models
from components.train import nodes
from components.train.manifest import claim, manifest
from components.train.objectives import OBJECTIVES
from components.train.params import Params


def run(
    *,
    train: Params,
    models: Models,
    objective: str,
    responses: Path | None,
    pairs: Path | None,
    deviations: Path | None,
    validation: Path | None,
    reference: Path | None,
    sft: Path | None,
    model: Path,
) -> dict[str, Any]:
    """Trains by `objective` and writes the adapter to `model`: safetensors, tokenizer and `training.json`.

    Checkpoints lie in the work folder, under a name made of all that the result depends on; a killed run goes on from the
    last one and ends with the same bytes. They are kept until the lineage is recorded too.

    Args:
        responses: for `reward` and `sft`.
        pairs: for all others.
        reference, sft: for `dpo` and `ddpo`, which go on from the SFT model; the `orpo` family starts from the base model.
        deviations: for `ddpo`, `dorpo` and `dorpo_released`; the others weigh every pair 1.

    Raises:
        InputError: if an input that the objective needs is missing, or the data failed validation.
    """
    kind = OBJECTIVES[objective]
    given = {"responses": responses, "pairs": pairs, "deviations": deviations, "reference": reference, "sft": sft}
    inputs = {name: path for name in kind.needs if (path := given[name]) is not None}
    if missing := [f"--{name}" for name in kind.needs if name not in inputs]:
        raise InputError(f"--objective {objective} needs {', '.join(missing)}.")
    require_passed(validation)
    many = nodes.settings() if objective != "reward" else None
    if many is not None:
        nodes.processes_of_a_node(train, many)
    elif train.processes > 1 and objective != "reward":
        from components.train.launch import check

        check(train)
    with claim(manifest(objective, kind.section, train, models, inputs)) as work, atomic(model) as folder:
        if objective == "reward":
            from components.train.reward import train_reward

            metrics = train_reward(models, train, inputs["responses"], folder, work)
        elif many is not None:
            from components.train.trainjob import train_on_nodes

            metrics = train_on_nodes(objective, train, models, inputs, folder, work, many)
        elif train.processes > 1:
            from components.train.launch import train_by_many

            metrics = train_by_many(objective, train, models, inputs, folder, work)
        else:
            from components.train.language import train_language

            metrics = train_language(objective, train, models, inputs, folder, work)
    when_recorded(lambda: shutil.rmtree(work, ignore_errors=True))
    return metrics
