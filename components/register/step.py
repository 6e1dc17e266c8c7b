"""Registers what an evaluation measured, with its card and the lineage back to the raw data."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic
from components.lineage import Origin, UntraceableError, digest, trace, tracking_client
from components.models.params import Params as Models
from components.register.card import Record, render
from components.register.gate import Verdict, judge
from components.register.params import Params
from components.register.registry import register as register_version

log = logging.getLogger("polyphony")
# The tag with the digest of all that a version holds, its card included.
ARTIFACT = "artifact.digest"
ADAPTER = "adapter_model.safetensors"
# What an adapter's folder may hold: weights without code, and texts.
_SAFE = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}


def run(*, register: Params, models: Models, model: Path, evaluation: Path, version: Path) -> dict[str, Any]:
    """Registers `model` as a version of `register.name`; writes what was registered to `version`.

    A model that fails the gate is registered as rejected, with the reasons, and gets no alias.

    Raises:
        InputError: if the model is not the one that was evaluated, is no adapter, may hold code, or has no complete lineage.
    """
    _check_files(model)
    model_digest = digest(model)
    try:
        lineage = trace("evaluation", digest(evaluation))
    except UntraceableError as error:
        raise InputError(f"not registered: its lineage is broken: {error}") from error
    origin = next((item for item in lineage.inputs if item.digest == model_digest), None)
    if origin is None:
        raise InputError(f"{evaluation} did not measure {model} ({model_digest}). Run evaluate on this model.")
    measured = json.loads((evaluation / "metrics.json").read_text(encoding="utf-8"))
    verdict = _judge(measured, origin.name, register)
    client = tracking_client()
    runs = {item.step: client.get_run(item.run_id).data for item in lineage.walk() if item.run_id}
    record = Record(
        name=register.name,
        base_model=models.language,
        measured=measured,
        verdict=verdict,
        model=origin,
        evaluation=lineage,
        parameters={step: data.params for step, data in runs.items()},
        metrics={step: data.metrics for step, data in runs.items()},
    )
    key = hashlib.sha256(f"{model_digest} {lineage.digest} {register.model_dump_json()}".encode()).hexdigest()[:32]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        shutil.copytree(model, folder)
        (folder / "README.md").write_text(render(record), encoding="utf-8")
        (folder / "lineage.json").write_text(json.dumps(_tree(lineage), indent=2) + "\n", encoding="utf-8")
        # By which whoever fetches the version knows that it is whole.
        tags = _tags(verdict, origin, lineage) | {ARTIFACT: digest(folder)}
        registered = register_version(client, register.name, key, folder, tags, verdict.reasons, verdict.passed)
    log.info("%s version %s: %s (%s)", register.name, registered.version, _status(verdict), verdict.reasons)
    summary = {
        "name": register.name,
        "version": int(registered.version),
        "status": _status(verdict),
        "reasons": verdict.reasons,
        # A server answers with a type of its own, which JSON does not know.
        "alias": list(registered.aliases),
        # A name may stand for several artifacts, such as the two validations.
        "digests": {item.digest: item.name for item in lineage.walk()},
        "gate": [
            {"metric": check.metric, "mean": check.mean, "low": check.low, "high": check.high, "bound": check.bound}
            for check in verdict.checks
        ],
    }
    with atomic(version) as partial:
        partial.write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return {"passed": int(verdict.passed), "version": int(registered.version)}


def _judge(measured: dict[str, Any], candidate: str, params: Params) -> Verdict:
    difference = measured["differences"].get(f"{candidate}-{params.baseline}")
    if difference is None:
        raise InputError(
            f"register.baseline: the evaluation has no comparison of {candidate!r} with {params.baseline!r}; "
            f"it has {', '.join(measured['differences'])}."
        )
    return judge(difference, candidate, params.baseline, params)


def _status(verdict: Verdict) -> str:
    return "candidate" if verdict.passed else "rejected"


def _tags(verdict: Verdict, model: Origin, evaluation: Origin) -> dict[str, str]:
    return {
        "validation_status": _status(verdict),
        "gate.passed": str(verdict.passed).lower(),
        "gate.reasons": verdict.reasons,
        "gate.baseline": verdict.baseline,
        "model.digest": model.digest,
        "evaluation.digest": evaluation.digest,
        "data.digest": ", ".join(sorted({item.digest for item in evaluation.walk() if not item.run_id})),
        "commit": model.commit,
        "dirty": str(any(item.dirty == "true" for item in evaluation.walk())).lower(),
    }


def _tree(origin: Origin) -> dict[str, Any]:
    """The lineage as JSON: every artifact once, naming the digests of what it was made from."""
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


def _check_files(model: Path) -> None:
    files = [file.relative_to(model) for file in model.rglob("*") if file.is_file()]
    if Path(ADAPTER) not in files:
        raise InputError(f"{model}: not registered: it holds no {ADAPTER}. Run the step that trains it.")
    if unsafe := sorted(str(file) for file in files if file.suffix not in _SAFE):
        raise InputError(
            f"{model}: not registered: {', '.join(unsafe)} may hold code (a pickle, say); only "
            f"{', '.join(sorted(_SAFE))} files are registered. Save weights as safetensors."
        )
