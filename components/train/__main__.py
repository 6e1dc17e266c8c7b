"""Command line of the train step."""

from __future__ import annotations

import sys

from components.cli import Step

STEP = Step(
    name="train",
    about="Trains one model: reward, SFT, or preference (dpo, ddpo) from the SFT model.",
    sections=("train", "models"),
    choices={"objective": ("reward", "sft", "dpo", "ddpo")},
    optional={
        "responses": "clean responses (reward, sft)",
        "pairs": "preference pairs (dpo, ddpo)",
        "deviations": "weights of the winners (ddpo)",
        "validation": "the data's validation, which must have passed",
        "reference": "log-probabilities of the pairs under the SFT model (dpo, ddpo)",
        "sft": "the SFT model (dpo, ddpo)",
    },
    outputs={"model": "the trained adapter"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
