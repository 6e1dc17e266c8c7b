"""Command line of the train step."""

from __future__ import annotations

import sys

from components.cli import Step
from components.train.objectives import OBJECTIVES

STEP = Step(
    name="train",
    about="Trains one model: reward, SFT, preference from the SFT model (dpo, ddpo) or from the base model (orpo, dorpo).",
    sections=("train", "models"),
    choices={"objective": tuple(OBJECTIVES)},
    optional={
        "responses": "clean responses (reward, sft)",
        "pairs": "preference pairs (all others)",
        "deviations": "weights of the winners (ddpo, dorpo, dorpo_released)",
        "validation": "the data's validation, which must have passed",
        "reference": "log-probabilities of the pairs under the SFT model (dpo, ddpo)",
        "sft": "the SFT model (dpo, ddpo)",
    },
    outputs={"model": "the trained adapter"},
)

if __name__ == "__main__":
    sys.exit(STEP.main())
