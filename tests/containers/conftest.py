"""The images, made by a real engine from a clean clone, and the services that containers talk to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import engine as docker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def engine() -> Iterator[dict[str, str]]:
    """What `docker` needs in its environment; the engine has the base image."""
    if reason := docker.missing():
        # CI is where containers are proved.
        (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
    with docker.running() as environment:
        docker.base(environment)
        yield environment


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of what is committed."""
    folder = tmp_path_factory.mktemp("clone") / "polyphony"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    return folder


@pytest.fixture(scope="session")
def images(engine: dict[str, str], checkout: Path) -> dict[str, str]:
    """The engine's environment, when `make images` has been through."""
    make_images(engine, checkout)
    return engine


def make_images(engine: dict[str, str], checkout: Path, *names: str) -> None:
    words = [f"BUILD_FLAGS=--network host --build-arg BASE_IMAGE={docker.BASE}"]
    if "PIP_FIND_LINKS" in os.environ:
        # There lies torch for CPUs.
        words.append("CPU_TORCH=")
    if names:
        words.append(f"IMAGES={' '.join(names)}")
    done = subprocess.run(
        ["make", "images", *words], cwd=checkout, env=os.environ | engine,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
