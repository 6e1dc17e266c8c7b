"""Command line of the register step."""

from __future__ import annotations

import sys

from components.cli import Step

STEP = Step(
    name="register",
    about="Registers the model with its card and lineage; the gate's verdict decides its alias.",
    sections=("register", "models"),
    inputs={"model": "the model to register", "evaluation": "the evaluation that measured it"},
    outputs={"version": "what was registered (version.json)"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
