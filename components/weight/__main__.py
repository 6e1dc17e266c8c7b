"""Command line of the weight step."""

from __future__ import annotations

import sys

from components.cli import Step

STEP = Step(
    name="weight",
    about="Measures how far each response deviates from its prompt's others, and chooses the preference pairs.",
    sections=("weight",),
    inputs={"responses": "clean responses", "embeddings": "their embeddings"},
    outputs={
        "deviations": "deviation and weight of each response",
        "pairs": "preference pairs",
        "report": "folder with report.html and plots",
    },
    pages={"weights_page": lambda outputs: (outputs["report"] / "report.html").read_text(encoding="utf-8")},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
