"""What is known of a version, as one record: the card, the registry's tags and Kubeflow's page are made of it.

It is kept beside the model as `record.json`, so that whoever loads a version later asks nothing else.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from components.contracts import InputError
from components.origin import Origin
from components.register.gate import Verdict

Record = dict[str, Any]
# Parameters of an evaluation that leave what is measured comparable, by what their names begin with.
_NEUTRAL = ("evaluate.seed", "evaluate.batch_size", "evaluate.max_prompts", "evaluate.systems")
_EMBEDDERS = ("models.semantic", "models.style")
# What an address may carry besides the place: who asks, and with which signature.
_SECRETS = re.compile(r"(?<=://)[^/@\s]+@|(?<=\?)[^\s'\"]*=[^\s'\"]*")
UNKNOWN = "unknown"


def make(
    *,
    name: str,
    model: Origin,
    evaluation: Origin,
    verdict: Verdict,
    gate: Mapping[str, float],
    measured: Mapping[str, Any],
    prompt_ids: str,
    parameters: Mapping[str, Mapping[str, str]],
    metrics: Mapping[str, Mapping[str, float]],
) -> Record:
    """The record.

    Args:
        model, evaluation: where the model and its evaluation come from.
        gate: the gate's bounds.
        measured: the evaluation's `metrics.json`.
        prompt_ids: a digest of the ids of the evaluation's prompts.
        parameters, metrics: what the run of each step of the lineage recorded, by step.
    """
    systems = {item.name: item.digest for item in evaluation.inputs if item.name in measured["systems"]}
    # Registered versions among them, which the parameters name.
    systems |= {name: origin["digest"] for name, origin in measured.get("origins", {}).items() if "digest" in origin}
    return {
        "name": name,
        "system": model.name,
        "trained_by": model.step,
        "base_model": _base_model(model, parameters[model.step]),
        "verdict": {**asdict(verdict), "passed": verdict.passed, "reasons": verdict.reasons, "gate": dict(gate)},
        "measured": {key: measured[key] for key in ("prompts", "samples", "systems", "metrics", "warnings")},
        "evaluation": {
            "systems": systems,
            "set": _evaluation_set(measured, prompt_ids, evaluation, parameters[evaluation.step]),
        },
        "code": _code(model, evaluation),
        "digests": {"model": model.digest, "evaluation": evaluation.digest, "data": _raw(evaluation)},
        "parameters": {step: {key: _public(value) for key, value in given.items()} for step, given in parameters.items()},
        "metrics": {step: dict(values) for step, values in metrics.items()},
        "lineage": _tree(evaluation),
    }


def tags(record: Record) -> dict[str, str]:
    """What the registry can be searched by."""
    verdict, digests = record["verdict"], record["digests"]
    return {
        "validation_status": status(record),
        "gate.passed": str(verdict["passed"]).lower(),
        "gate.reasons": verdict["reasons"],
        "gate.baseline": verdict["baseline"],
        "model.digest": digests["model"],
        "evaluation.digest": digests["evaluation"],
        "data.digest": digests["data"],
        "base_model": record["base_model"]["language"],
        "trained_by": record["trained_by"],
        **record["code"],
    }


def status(record: Record) -> str:
    return "candidate" if record["verdict"]["passed"] else "rejected"


def _base_model(model: Origin, parameters: Mapping[str, str]) -> dict[str, Any]:
    """What the training itself recorded of the models it used."""
    if "models.language" not in parameters:
        raise InputError(
            f"not registered: the run of {model.step} ({model.run_id}) does not say of which base model. Train it again."
        )
    return {
        "language": parameters["models.language"],
        "tokenizer": parameters.get("models.tokenizer", ""),
        "dtype": parameters.get("models.dtype", "bfloat16"),
        "max_tokens": int(parameters.get("models.max_tokens", 1024)),
        # A tuple, as text.
        "remote_code": list(ast.literal_eval(parameters.get("models.remote_code", "()"))),
    }


def _evaluation_set(
    measured: Mapping[str, Any], prompt_ids: str, evaluation: Origin, parameters: Mapping[str, str]
) -> dict[str, str]:
    """All that must be the same for two evaluations to be compared prompt by prompt, by name."""
    reward = next((item.digest for item in evaluation.inputs if item.name == "reward"), UNKNOWN)
    sampling = {key: value for key, value in parameters.items() if key.startswith("evaluate.") and not key.startswith(_NEUTRAL)}
    embedders = {key: parameters.get(key, UNKNOWN) for key in _EMBEDDERS}
    prompts = f"{measured['prompts']} ({prompt_ids})"
    return {"prompts": prompts, "samples": str(measured["samples"]), "reward model": reward, **embedders, **sampling}


def _code(model: Origin, evaluation: Origin) -> dict[str, str]:
    """The commit that trained the model, and whether the code of any step differed from its commit."""
    found = {item.dirty for item in evaluation.walk() if item.run_id}
    return {"commit": model.commit, "dirty": next((word for word in (UNKNOWN, "true") if word in found), "false")}


def _raw(evaluation: Origin) -> str:
    return ", ".join(sorted({item.digest for item in evaluation.walk() if not item.run_id}))


def _public(value: str) -> str:
    return _SECRETS.sub("***", value)


def _tree(origin: Origin) -> dict[str, Any]:
    """The lineage: every artifact once, naming the digests of what it was made from."""
    return {
        item.digest: {
            "artifact": item.name,
            "step": item.step,
            "run_id": item.run_id,
            "commit": item.commit,
            "dirty": item.dirty,
            "inputs": [source.digest for source in item.inputs],
        }
        for item in origin.walk()
    }
