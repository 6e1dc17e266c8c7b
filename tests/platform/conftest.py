"""A platform of the tests' own."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines import platform


@pytest.fixture(scope="session")
def reachable() -> Iterator[Path]:
    """A folder that every user can enter, which pytest's are not: PostgreSQL does not run as root."""
    folder = Path(tempfile.mkdtemp(prefix="polyphony-"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def trial(reachable: Path) -> Iterator[platform.Platform]:
    """A platform on PostgreSQL and the stand-in for S3."""
    with platform.start(reachable / "trial", artifacts="trial", workers=1) as running:
        yield running
