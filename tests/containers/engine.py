"""A Docker engine of the tests' own, and a base image where none can be pulled: Debian's packages are all that they need.

What takes minutes is kept in `~/.cache/polyphony-tests`: the engine's images, among them the base.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "polyphony-tests"
BASE = "polyphony-base"
_SUITE = "bookworm"
_TRUSTED = Path("/etc/ssl/certs/ca-certificates.crt")
_INSTALL = "apt-get install --no-install-recommends docker.io debootstrap postgresql"


def missing() -> str:
    """What stands in the way of an engine here, and how to get it; empty where nothing does."""
    if os.geteuid() != 0:
        return "a Docker engine starts as root alone"
    absent = [name for name in ("dockerd", "docker", "debootstrap") if not shutil.which(name)]
    return f"no {', '.join(absent)} here; on Debian: {_INSTALL}" if absent else ""


@contextmanager
def running() -> Iterator[dict[str, str]]:
    """An engine, without network of its own, while this lasts; yields what `docker` needs in its environment."""
    CACHE.mkdir(parents=True, exist_ok=True)
    # A path to a socket may be no longer than 107 bytes.
    run = Path(tempfile.mkdtemp(prefix="polyphony-docker-"))
    socket = f"unix://{run}/socket"
    options = ["--iptables=false", "--bridge=none", "--default-ulimit", "nofile=1024:2048", "--pidfile", str(run / "pid")]
    options += ["--data-root", str(CACHE / "docker"), "--exec-root", str(run / "exec"), "-H", socket]
    # The classic builder: the other is a plugin that Debian does not have.
    environment = {"DOCKER_HOST": socket, "DOCKER_BUILDKIT": "0"}
    with (CACHE / "lock").open("w") as lock:
        # Engines do not share a folder; one test session after the other.
        fcntl.flock(lock, fcntl.LOCK_EX)
        with (run / "log").open("w") as log:
            engine = subprocess.Popen(["dockerd", *options], stdout=log, stderr=log, start_new_session=True)
        try:
            _wait(engine, environment, run / "log")
            yield environment
        finally:
            if engine.poll() is None:
                _docker(environment, "image", "prune", "--force")
            engine.terminate()
            engine.wait()
    # The network namespace of containers that use the host's, which the engine leaves mounted.
    subprocess.run(["umount", str(run / "exec" / "netns" / "default")], capture_output=True)
    shutil.rmtree(run)


def base(environment: dict[str, str]) -> str:
    """Makes the image that takes the place of `python:3.11-slim-bookworm`, where there is none yet; returns its name.

    It has this machine's certificates and settings for pip, which on another network would stand in a mirrored base image.
    """
    settings = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    certificates = _TRUSTED.read_bytes() if _TRUSTED.exists() else b""
    made_from = hashlib.sha256(repr((_SUITE, sorted(settings.items()))).encode() + certificates).hexdigest()
    known = _docker(environment, "images", "--quiet", "--filter", f"label=made_from={made_from}", BASE)
    if known.strip():
        return BASE
    packages = "python3,python3-venv,ca-certificates"
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "root"
        _call(["debootstrap", "--variant=minbase", f"--include={packages}", _SUITE, str(root)])
        for kept in (root / "var/cache/apt/archives", root / "var/lib/apt/lists"):
            shutil.rmtree(kept)
            kept.mkdir()
        if certificates:
            (root / _TRUSTED.relative_to("/")).write_bytes(certificates)
            settings["SSL_CERT_FILE"] = str(_TRUSTED)
        for place in settings.get("PIP_FIND_LINKS", "").split():
            if Path(place).is_dir():
                shutil.copytree(place, root / place.lstrip("/"))
        changes = [f"ENV {name}={value}" for name, value in settings.items()] + [f"LABEL made_from={made_from}"]
        archive = Path(scratch) / "base.tar"
        _call(["tar", "-C", str(root), "-cf", str(archive), "."])
        _docker(environment, "import", *(word for change in changes for word in ("--change", change)), str(archive), BASE)
    return BASE


def _wait(engine: subprocess.Popen[bytes], environment: dict[str, str], log: Path) -> None:
    last = time.monotonic() + 60
    while subprocess.run(["docker", "info"], env=os.environ | environment, capture_output=True).returncode:
        if engine.poll() is not None or time.monotonic() > last:
            raise RuntimeError(f"the Docker engine did not start:\n{log.read_text(encoding='utf-8')[-3000:]}")
        time.sleep(0.2)


def _docker(environment: dict[str, str], *words: str) -> str:
    return _call(["docker", *words], environment)


def _call(command: list[str], environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, env=os.environ | (environment or {}), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}:\n{(done.stdout + done.stderr)[-3000:]}")
    return done.stdout
