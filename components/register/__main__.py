"""Command line of the register step."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from components.cli import Step


def verdict(outputs: Mapping[str, Path]) -> str:
    """What was registered, and why as what, in Markdown."""
    version = json.loads(outputs["version"].read_text(encoding="utf-8"))
    reasons = "".join(f"- {reason}\n" for reason in version["reasons"].split("; "))
    return f"## {version['name']} version {version['version']}: {version['status']}\n\n{reasons}"


STEP = Step(
    name="register",
    about="Registers the model with its card and lineage; the gate's verdict decides its alias.",
    sections=("register", "models"),
    inputs={"model": "the model to register", "evaluation": "the evaluation that measured it"},
    outputs={"version": "what was registered (version.json)"},
    pages={"verdict": verdict},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
