"""Command line of the reference step."""

from __future__ import annotations

import sys

from components.cli import Step
from components.models.params import Params as Models

STEP = Step(
    name="reference",
    about="Log-probabilities of every pair under the SFT model, once for all objectives.",
    sections=("models",),
    settled={"models": Models.settled},
    inputs={"pairs": "preference pairs", "sft": "the SFT model"},
    outputs={"reference": "their log-probabilities"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
