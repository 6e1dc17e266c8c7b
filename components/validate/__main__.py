"""Command line of the validate step."""

from __future__ import annotations

import sys

from components.cli import Step

STEP = Step(
    name="validate",
    about="Great Expectations on the responses, or on the weights and pairs made from them.",
    sections=("validate",),
    choices={"suite": ("responses", "weights")},
    inputs={"responses": "clean responses"},
    optional={
        "deviations": "deviations and weights of the responses; for --suite weights",
        "pairs": "preference pairs; for --suite weights",
    },
    outputs={"validation": "folder with results.json and the Data Docs, index.html"},
    pages={"data_docs": lambda outputs: (outputs["validation"] / "index.html").read_text(encoding="utf-8")},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
