"""Command line of the evaluate step."""

from __future__ import annotations

import sys

from components.cli import Step
from components.models.params import Params as Models

STEP = Step(
    name="evaluate",
    about="Stories from every trained system for the test prompts, their quality and their diversity.",
    sections=("evaluate", "models"),
    settled={"models": Models.settled},
    inputs={"responses": "the people's stories; its test prompts are used", "reward": "the reward model"},
    collections={"system": "a trained system's name and its adapter; or the folder of those in train.objectives"},
    folders={"system": "train.objectives"},
    outputs={"generations": "every story with its scores", "evaluation": "metrics.json, report.html and the plot"},
    pages={"comparison": lambda outputs: (outputs["evaluation"] / "report.html").read_text(encoding="utf-8")},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
