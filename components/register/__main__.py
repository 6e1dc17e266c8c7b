"""Command line of the register step."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from components.cli import Step


def card(outputs: Mapping[str, Path]) -> str:
    """The model card, in Markdown."""
    from components.register.card import page

    version = json.loads(outputs["version"].read_text(encoding="utf-8"))
    return page(version["record"], version["version"])


STEP = Step(
    name="register",
    about="Registers the model with its card and lineage; the gate's verdict decides its alias.",
    sections=("register",),
    inputs={"model": "the model to register", "evaluation": "the evaluation that measured it"},
    outputs={"version": "what was registered (version.json)"},
    pages={"card": card},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
