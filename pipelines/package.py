"""The compiled pipeline: a file that Kubeflow takes, the same bytes for the same graph."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import yaml

from components.contracts import atomic
from pipelines.cluster import Cluster

# The package that is part of the project, made with the profile `plain`.
PACKAGE = Path(__file__).parent / "polyphony.yaml"


def compile_package(cluster: Cluster) -> str:
    """The package for a cluster, as text."""
    from kfp import compiler

    from pipelines.graph import pipeline

    logging.getLogger("kfp").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(scratch) / "package.yaml"
        compiler.Compiler().compile(pipeline(cluster), str(path))
        return path.read_text(encoding="utf-8")


def write_package(text: str, path: Path) -> None:
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")


def documents(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A package's two documents: the pipeline, and what Kubernetes is told of its tasks (empty where nothing is)."""
    # Ten times as fast, where PyYAML was built with it.
    spec, *platform = yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return spec, platform[0] if platform else {}
