"""A registered version from MLflow, downloaded once and checked against its record."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import NamedTuple

from components.contracts import InputError, atomic
from components.lineage import digest, tracking_client
from components.models.resolve import cache_folder

log = logging.getLogger("polyphony")
_NAME = re.compile(r"(models:/)?([^/@:]+)@([^/@]+)|models:/([^/@:]+)/(\d+)")
# The tag by which `register` says what a version holds.
_DIGEST = "artifact.digest"


class Registered(NamedTuple):
    """A version that an alias may have led to, and where its files are."""

    name: str
    version: str
    digest: str
    folder: Path


def is_registered(model: str) -> bool:
    """Whether a model's name is that of a registered version: models:/NAME/VERSION, models:/NAME@ALIAS or NAME@ALIAS."""
    return _NAME.fullmatch(model) is not None


def fetch(model: str) -> Registered:
    """The version, from the cache where it is there.

    Raises:
        InputError: if there is no such version, MLflow does not answer, or the files are not those of its record.
    """
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client = tracking_client()
    found = _NAME.fullmatch(model)
    assert found is not None  # noqa: S101
    _, by_alias, alias, by_number, number = found.groups()
    try:
        version = client.get_model_version_by_alias(by_alias, alias) if alias else client.get_model_version(by_number, number)
    except (MlflowException, OSError) as error:
        raise InputError(
            f"model {model!r}: MLflow has no such version (MLFLOW_TRACKING_URI names the server): {error}"
        ) from None
    label = f"{version.name} version {version.version}"
    expected = version.tags.get(_DIGEST)
    if expected is None:
        raise InputError(f"model {model!r}: {label} has no record of its digest ({_DIGEST}). Register it again.")
    folder = cache_folder() / "registered" / expected.removesuffix(".dir")
    if not folder.is_dir():
        log.info("downloading %s: %s", label, folder)
        with atomic(folder) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as scratch:
            try:
                downloaded = download_artifacts(artifact_uri=version.source, dst_path=scratch)
            except (MlflowException, OSError) as error:
                raise InputError(f"model {model!r}: {label} cannot be downloaded: {error}") from None
            Path(downloaded).rename(partial)
            _check(partial, expected, label)
    _check(folder, expected, label)
    return Registered(version.name, str(version.version), expected, folder)


def _check(folder: Path, expected: str, label: str) -> None:
    if (actual := digest(folder)) != expected:
        raise InputError(
            f"{folder}: not what was registered as {label}: its digest is {actual}, on record is {expected}. Remove the "
            "folder, if it is there, to download it again; if that does not help, the store has changed it."
        )
