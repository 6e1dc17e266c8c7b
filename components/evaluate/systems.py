"""Every system that takes part, whoever runs it: from its name to what it takes to ask it for stories."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from components.contracts import InputError
from components.evaluate.params import Params, Sampling, System, named
from components.evaluate.registered import fetch, is_registered
from components.lineage import digest
from components.models.endpoint import Endpoint
from components.models.params import Params as Models
from components.models.resolve import resolve
from components.params import ParameterError

ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class Local:
    """A model that is run here.

    Attributes:
        models: its base model, tokenizer and precision.
        identity: changes with the weights.
        params: the sampling is its own.
        origin: what is said of it in metrics.json.
    """

    name: str
    models: Models
    adapter: Path | None
    identity: str
    params: Params
    origin: Mapping[str, Any]


@dataclass(frozen=True)
class Remote:
    """A model behind an endpoint; `sampling` is all that it is told, but for the limit of length in `params`."""

    name: str
    endpoint: Endpoint
    mode: str
    sampling: Sampling
    params: Params

    @property
    def origin(self) -> dict[str, Any]:
        settings = self.endpoint.model_dump(include={"model", "base_url", "input_price", "output_price"})
        return {**settings, "mode": self.mode, "sampling": self.sampling.given()}


def gather(artifacts: Mapping[str, Path], params: Params, models: Models) -> list[Local | Remote]:
    """All systems: the pipeline's own, then those of `evaluate.systems`, in the order given.

    Args:
        artifacts: name -> adapter of `models.language`.

    Raises:
        ParameterError: if a name is taken, or none.
        InputError: if a model or an adapter is missing, or the variable that should hold a key is not set.
    """
    for name in artifacts:
        try:
            named(name)
        except ValueError as error:
            raise ParameterError(f"--system {name}=...: {error}") from None
        if name in params.systems:
            raise ParameterError(f"{name!r} is the name of a --system and of one in evaluate.systems. Rename the latter.")
    if not artifacts and not params.systems:
        raise InputError("no system to evaluate. Give at least one as --system NAME=ADAPTER, or in evaluate.systems.")
    made: dict[str, Local | Remote] = {name: _artifact(name, adapter, params, models) for name, adapter in artifacts.items()}
    for name, system in params.systems.items():
        if not system.like:
            made[name] = _declared(name, system, params, models)
    for name, system in params.systems.items():
        if system.like:
            original = made.get(system.like)
            if original is None or params.systems.get(system.like, System()).like:
                others = [other for other in made if not params.systems.get(other, System()).like]
                raise ParameterError(f"evaluate.systems.{name}.like: no system {system.like!r}; there are {', '.join(others)}.")
            made[name] = _alike(name, original, system.sampling, params)
    return [made[name] for name in (*artifacts, *params.systems)]


def _artifact(name: str, adapter: Path, params: Params, models: Models) -> Local:
    if not (adapter / ADAPTER).is_file():
        raise InputError(f"{adapter}: no adapter here ({ADAPTER} is missing). Run the step that trains it.")
    content = digest(adapter)
    identity = content + _fingerprint(resolve(models.language))
    return Local(name, models, adapter, identity, params, {"model": models.language, "adapter": content})


def _declared(name: str, system: System, params: Params, models: Models) -> Local | Remote:
    own = params.sampled(system.sampling)
    if system.endpoint:
        if system.endpoint.key and not os.environ.get(system.endpoint.key):
            raise InputError(
                f"evaluate.systems.{name}: the environment variable {system.endpoint.key}, for the key, is not set."
            )
        return Remote(name, system.endpoint, system.mode, system.sampling, own)
    if system.model in ("", models.language):
        chosen = models.model_copy(update={"tokenizer": system.tokenizer or models.tokenizer})
        folder = resolve(models.language)
        return Local(name, chosen, None, _fingerprint(folder), own, {"model": models.language, **_revision(folder)})
    origin: dict[str, Any] = {"model": system.model}
    language = system.model
    if is_registered(system.model):
        version = fetch(system.model)
        folder, language = version.folder, str(version.folder)
        origin |= {"version": version.version, "digest": version.digest}
    else:
        folder = resolve(system.model)
        origin |= _revision(folder)
    adapter, tokenizer = None, system.tokenizer
    if (config := folder / "adapter_config.json").is_file():
        if not (folder / ADAPTER).is_file():
            raise InputError(f"evaluate.systems.{name}: {folder} has no {ADAPTER}; adapters are read from safetensors alone.")
        adapter, language = folder, str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
        origin["base"] = language
        if not tokenizer and (folder / "tokenizer_config.json").is_file():
            tokenizer = str(folder)
    try:
        base = resolve(language)
    except InputError as error:
        raise InputError(f"evaluate.systems.{name}: {error}") from error
    identity = _fingerprint(base) + (_fingerprint(folder) if adapter else "")
    chosen = models.model_copy(update={"language": language, "tokenizer": tokenizer})
    return Local(name, chosen, adapter, identity, own, origin)


def _alike(name: str, original: Local | Remote, sampling: Sampling, params: Params) -> Local | Remote:
    """Another system by the same model: what of the sampling is not its own is the original's."""
    own = original.params.sampled(sampling)
    if isinstance(original, Local):
        # Without the digest: sampled otherwise, it is not what was registered under that.
        origin = {"model": original.origin["model"], "like": original.name, "sampling": sampling.given()}
        return replace(original, name=name, params=own, origin=origin)
    merged = Sampling(**original.sampling.given() | sampling.given())
    return replace(original, name=name, sampling=merged, params=params.sampled(merged))


def _revision(folder: Path) -> dict[str, str]:
    """The commit of a hub model, which its folder in the hub's cache is named after."""
    return {"revision": folder.name} if folder.parent.name == "snapshots" else {}


def _fingerprint(folder: Path) -> str:
    """Changes whenever a model's files do; reads none of them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    told = [f"{path.relative_to(folder)} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    return hashlib.sha256("\n".join([str(folder), *told]).encode()).hexdigest()[:16]
