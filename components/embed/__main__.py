"""Command line of the embed step."""

from __future__ import annotations

import sys

from components.cli import Step

STEP = Step(
    name="embed",
    about="Embeds every response twice: what it is about, and how it is written.",
    sections=("embed", "models"),
    inputs={"responses": "clean responses"},
    optional={"validation": "their validation, which must have passed"},
    counts={"shard": 0, "of": 1},
    outputs={"embeddings": "semantic and style vectors of each response"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
