"""Registers what an evaluation measured, with its card and the lineage back to the raw data."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any

from components.contracts import MEASUREMENTS, InputError, atomic, content_id
from components.lineage import digest, tracking_client
from components.origin import UntraceableError, trace
from components.register.card import PLANE, render
from components.register.gate import Verdict, judge
from components.register.params import Params
from components.register.record import Record, make, status, tags
from components.register.registry import ARTIFACT, EVALUATION, FILES, MODEL, digests
from components.register.registry import register as register_version

log = logging.getLogger("polyphony")
ADAPTER = "adapter_model.safetensors"
# What an adapter's folder may hold: weights without code, and texts.
_SAFE = {".safetensors", ".json", ".jinja", ".txt", ".md", ".model"}


def run(*, register: Params, model: Path, evaluation: Path, version: Path) -> dict[str, Any]:
    """Registers `model` as a version of `register.name`; writes what was registered to `version`.

    A model that fails the gate is registered as rejected, with the reasons, and gets no alias. The evaluation is kept with
    the version, for later comparisons.

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
    record = make(
        name=register.name,
        model=origin,
        evaluation=lineage,
        verdict=verdict,
        gate=register.model_dump(include={"diversity_gain", "quality_tolerance"}),
        measured=measured,
        prompt_ids=_prompt_ids(evaluation),
        parameters={step: data.params for step, data in runs.items()},
        metrics={step: data.metrics for step, data in runs.items()},
    )
    key = hashlib.sha256(f"{model_digest} {lineage.digest} {register.model_dump_json()}".encode()).hexdigest()[:32]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        _fill(folder, model, evaluation, record)
        registered = register_version(
            client,
            register.name,
            key,
            {MODEL: folder, EVALUATION: evaluation},
            tags(record) | {ARTIFACT: digest(folder), FILES: json.dumps(digests(folder), sort_keys=True)},
            verdict.reasons,
            verdict.passed,
        )
    log.info("%s version %s: %s (%s)", register.name, registered.version, status(record), verdict.reasons)
    summary = {
        "name": register.name,
        "version": int(registered.version),
        "status": status(record),
        "reasons": verdict.reasons,
        # A server answers with a type of its own, which JSON does not know.
        "alias": list(registered.aliases),
        # A name may stand for several artifacts, such as the two validations.
        "digests": {item.digest: item.name for item in lineage.walk()},
        "gate": record["verdict"]["checks"],
        "record": record,
    }
    with atomic(version) as partial:
        partial.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return {"passed": int(verdict.passed), "version": int(registered.version)}


def _judge(measured: dict[str, Any], candidate: str, params: Params) -> Verdict:
    difference = measured["differences"].get(f"{candidate}-{params.baseline}")
    if difference is None:
        raise InputError(
            f"register.baseline: the evaluation has no comparison of {candidate!r} with {params.baseline!r}; "
            f"it has {', '.join(measured['differences'])}."
        )
    return judge(difference, candidate, params.baseline, params)


def _prompt_ids(evaluation: Path) -> str:
    """A digest of the ids of the evaluation's prompts."""
    ids = MEASUREMENTS.read(evaluation / "measurements.parquet", ["prompt_id"]).column("prompt_id").unique().to_pylist()
    return content_id(*sorted(ids))


def _fill(folder: Path, model: Path, evaluation: Path, record: Record) -> None:
    """What is registered: the model's files as they are, its card, its picture and its record."""
    shutil.copytree(model, folder)
    plane = evaluation / PLANE
    if plane.is_file():
        shutil.copy(plane, folder / PLANE)
    (folder / "README.md").write_text(render(record, plane=plane.is_file()), encoding="utf-8")
    (folder / "lineage.json").write_text(json.dumps(record["lineage"], indent=2) + "\n", encoding="utf-8")
    (folder / "record.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _check_files(model: Path) -> None:
    files = [file.relative_to(model) for file in model.rglob("*") if file.is_file()]
    if Path(ADAPTER) not in files:
        raise InputError(f"{model}: not registered: it holds no {ADAPTER}. Run the step that trains it.")
    if unsafe := sorted(str(file) for file in files if file.suffix not in _SAFE):
        raise InputError(
            f"{model}: not registered: {', '.join(unsafe)} may hold code (a pickle, say); only "
            f"{', '.join(sorted(_SAFE))} files are registered. Save weights as safetensors."
        )
