"""What a step is run by: code, packages, image and engine, as tags of its MLflow run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path

# Where an engine says which of its runs a step belongs to, and the tag that keeps it.
ENGINE_RUN, ENGINE_TAG = "POLYPHONY_RUN_ID", "engine.run"
# Where the graph says which image a task was given.
IMAGE = "POLYPHONY_IMAGE"
# Where an engine that gives no other sign says its name.
ENGINE = "POLYPHONY_ENGINE"
# What the DAG itself rewrites in the work tree, and the parameters, which each run records: a change there does not make the
# code differ from its commit.
_NOT_CODE = (":!dvc.lock", ":!metrics", ":!params.yaml")
# Packages that read, compute or write what the artifacts hold.
_PACKAGES = (
    *("accelerate", "datasets", "dvc", "gguf", "great-expectations", "mlflow", "mlflow-skinny", "numpy", "pandas", "peft"),
    *("pyarrow", "safetensors", "scipy", "sentence-transformers", "tokenizers", "torch", "transformers", "trl", "vllm"),
)


def provenance() -> dict[str, str]:
    """The tags: `commit`, `dirty`, `engine`, `packages` (JSON, name -> version); `engine.run`, `image` and `dvc.stage` where
    there is one."""
    stage = os.environ.get("DVC_STAGE")
    engine_run = os.environ.get(ENGINE_RUN) or os.environ.get("DVC_EXP_NAME")
    named = os.environ.get(ENGINE) or ("dvc" if stage else "kubeflow" if os.environ.get(ENGINE_RUN) else "command line")
    found = {**git_state(), "engine": named, "packages": json.dumps(packages())}
    others = {ENGINE_TAG: engine_run, "image": os.environ.get(IMAGE), "dvc.stage": stage}
    return found | {key: value for key, value in others.items() if value}


def packages() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on, where installed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest(*places: str) -> str:
    """Changes with the code in these files and folders (without what lies deeper), named from `components`."""
    root = Path(__file__).parent
    files = [file for place in places for file in ([root / place] if place.endswith(".py") else (root / place).glob("*.py"))]
    named = (str(file.relative_to(root)).encode() + b"\0" + file.read_bytes() for file in sorted(files))
    return hashlib.sha256(b"\0".join(named)).hexdigest()[:16]


def git_state() -> dict[str, str]:
    """The commit of the code and whether the code differs from it; `unknown` outside a checkout.

    It differs where a tracked file does, or where `components` holds a file that is neither tracked nor ignored. In an image,
    which carries no checkout, the commit comes from the environment variable `POLYPHONY_COMMIT`.
    """
    if commit := os.environ.get("POLYPHONY_COMMIT"):
        return {"commit": commit, "dirty": "false"}
    try:
        commit = _git("rev-parse", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_NOT_CODE)
        changed += _git("ls-files", "--others", "--exclude-standard", "--", "components")
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown", "dirty": "unknown"}
    return {"commit": commit, "dirty": str(bool(changed)).lower()}


def _git(*arguments: str) -> str:
    root = Path(__file__).parents[1]
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True).stdout.strip()
