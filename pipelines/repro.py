"""DVC as this environment has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def dvc(*words: str, folder: Path = Path()) -> int:
    """Runs DVC in `folder` and returns its status; it and the stages are of this Python, also where its environment was not
    activated."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=folder, env=os.environ | {"PATH": path}, check=False)
    return done.returncode
