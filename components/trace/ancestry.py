"""What is asked about, and the tree from there back to the raw data, with all that is wrong with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from components.contracts import InputError
from components.lineage import PARAMETERS, PRODUCED, RAW, digest
from components.origin import Origin, trace
from components.params import SECTIONS
from components.provenance import ENGINE_TAG
from components.trace.store import Store, Version

_DIGEST = re.compile(r"[0-9a-f]{32}(\.dir)?")
_VERSION = re.compile(r"(?P<name>[^@/]+)(?:@(?P<alias>[^@/]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Ancestry:
    """Where something comes from.

    Attributes:
        label: what was asked about.
        version: the version, where that is one.
        model: the artifact.
        evaluation: what measured it; only a version has one. The model is among its inputs.
        registration: what `register` wrote of the version, made from both; its digest is empty where that run did not end.
    """

    label: str
    model: Origin
    version: Version | None = None
    evaluation: Origin | None = None
    registration: Origin | None = None

    def walk(self) -> Iterator[Origin]:
        """All artifacts, each once, from the evaluation or the model on."""
        seen: set[tuple[str, str]] = set()
        for root in (self.evaluation, self.model):
            for origin in root.walk() if root else ():
                if (origin.digest, origin.run_id) not in seen:
                    seen.add((origin.digest, origin.run_id))
                    yield origin

    def readers(self) -> dict[str, Origin]:
        """For each digest of raw data, an artifact of a run that read it."""
        return {source.digest: origin for origin in self.walk() for source in origin.inputs if source.name == RAW}

    def runs(self) -> dict[str, Origin]:
        """An artifact of each run, by the run's id, in the order in which the runs started; the registration's among them."""
        made = {origin.run_id: origin for origin in self.walk() if origin.record}
        if self.registration:
            made[self.registration.run_id] = self.registration
        return dict(sorted(made.items(), key=lambda item: item[1].record.started if item[1].record else 0))

    def problems(self) -> list[str]:
        """What keeps the tree from saying where all comes from, in words; each thing once."""
        found: dict[str, None] = {}
        for origin in (*self.walk(), *([self.registration] if self.registration else ())):
            if origin.gap:
                found[f"{origin.name}: {origin.gap}"] = None
            elif origin.run_id and origin.dirty != "false":
                found[_unclean(origin)] = None
        return sorted(found)


def _unclean(origin: Origin) -> str:
    run = f"{origin.step} (run {origin.run_id})"
    if origin.commit == "unknown":
        return f"{run} ran outside a git checkout: its code is unknown. Run it again from a commit."
    return f"{run} ran on code that differs from its commit {origin.commit[:12]} and is kept nowhere. Commit, and run it again."


def find(target: str, store: Store) -> Ancestry:
    """The ancestry of `MODEL@ALIAS`, `MODEL/VERSION`, a digest or the path of an artifact.

    Raises:
        InputError: if there is no such thing, or nothing says where the version comes from.
    """
    if _DIGEST.fullmatch(target):
        return Ancestry(target, trace(_produced_as(target, store), target, store, gaps=True))
    if Path(target).exists():
        value = digest(Path(target))
        return Ancestry(f"{target} ({value})", trace(_produced_as(value, store), value, store, gaps=True))
    if found := _VERSION.fullmatch(target):
        name, alias, version = found["name"], found["alias"] or "", found["version"] or ""
        return of_version(store.version(name, version, alias), store)
    raise InputError(f"{target}: expected MODEL@ALIAS, MODEL/VERSION, a digest as in dvc.lock, or the path of an artifact.")


def of_version(version: Version, store: Store) -> Ancestry:
    """The ancestry of a registered version.

    Raises:
        InputError: if the version does not say which artifacts it was made of.
    """
    label = " ".join([str(version), *(f"@{alias}" for alias in version.aliases)])
    model_digest, evaluation_digest = version.tags.get("model.digest"), version.tags.get("evaluation.digest")
    if not model_digest:
        raise InputError(f"{version}: registered by something else: it has no tag model.digest.")
    if not evaluation_digest:
        model = trace("model", model_digest, store, gaps=True)
        return Ancestry(label, model, version, registration=_registration(version, [model], store))
    evaluation = trace("evaluation", evaluation_digest, store, gaps=True)
    measured = [origin for origin in evaluation.inputs if origin.digest == model_digest]
    model = measured[0] if measured else trace("model", model_digest, store, gaps=True)
    return Ancestry(label, model, version, evaluation, _registration(version, [model, evaluation], store))


def _registration(version: Version, inputs: Sequence[Origin], store: Store) -> Origin | None:
    """The run that registered the version, where that was the pipeline's step."""
    record = store.record(version.run_id) if version.run_id else None
    if record is None or record.tags.get("step") != "register":
        return None
    tags = record.tags
    written = [key.removeprefix(PRODUCED) for key, name in tags.items() if key.startswith(PRODUCED) and name == "version"]
    return Origin(
        *("version", written[0] if written else "", "register", record.run_id),
        # Killed at its very beginning, it says nothing yet.
        *(tags.get("commit", "unknown"), tags.get("dirty", "unknown"), tuple(inputs)),
        record=record,
    )


def _produced_as(digest: str, store: Store) -> str:
    """The name under which the digest was written."""
    record = store.makers([(digest, None)])[digest, None]
    return record.tags[f"produced.{digest}"] if record else "artifact"


def given(origin: Origin) -> dict[str, Any]:
    """The parameters that its run was given, by section; as text where an older run recorded no more than that."""
    assert origin.record is not None  # noqa: S101 - the callers' runs have one
    try:
        found = json.loads(origin.record.tags[PARAMETERS])
    except (KeyError, ValueError):
        # Libraries log parameters of their own beside the step's.
        return {
            key: value for key, value in origin.record.parameters.items() if key.partition(".")[0] in SECTIONS and "." in key
        }
    return found if isinstance(found, dict) else {}


def flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by their dotted names."""
    if isinstance(values, dict) and (values or not prefix):
        for key, value in values.items():
            yield from flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, values


def document(ancestry: Ancestry) -> dict[str, Any]:
    """The ancestry as JSON: artifacts name those they were made from and the run that made them; runs say all of theirs.

    `inputs` of artifacts and `model` and `evaluation` are keys of `artifacts`.
    """
    version = ancestry.version
    return {
        "target": ancestry.label,
        "version": {
            "name": version.name,
            "version": version.version,
            "aliases": list(version.aliases),
            "run": version.run_id,
            "tags": dict(version.tags),
        }
        if version
        else None,
        "model": _key(ancestry.model),
        "evaluation": _key(ancestry.evaluation) if ancestry.evaluation else None,
        "problems": ancestry.problems(),
        "artifacts": {
            _key(origin): {
                "name": origin.name,
                "digest": origin.digest,
                "run": origin.run_id,
                "raw": origin.name == RAW,
                "gap": origin.gap,
                "inputs": [_key(source) for source in origin.inputs],
            }
            for origin in ancestry.walk()
        },
        "runs": {run_id: about(origin) for run_id, origin in ancestry.runs().items()},
    }


def _key(origin: Origin) -> str:
    """A digest alone is no key: several runs may have made it."""
    return f"{origin.digest}:{origin.run_id}"


def about(origin: Origin) -> dict[str, Any]:
    """What is known of the run that made an artifact."""
    assert origin.record is not None  # noqa: S101 - the callers' runs have one
    tags = origin.record.tags
    return {
        "step": origin.step,
        "commit": origin.commit,
        "dirty": origin.dirty,
        "started": origin.record.started,
        "engine": tags.get("engine", ""),
        "engine_run": tags.get(ENGINE_TAG, ""),
        "dvc_stage": tags.get("dvc.stage", ""),
        "image": tags.get("image", ""),
        "packages": json.loads(tags.get("packages", "{}")),
        "parameters": given(origin),
    }
