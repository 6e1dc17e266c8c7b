"""Command line of the train step."""

from __future__ import annotations

import sys

from components.cli import Step
from components.models.params import Params as Models
from components.train import nodes
from components.train.objectives import OBJECTIVES


def settled(models: Models) -> Models:
    """As it is where it trains: on many nodes not here, and with GPUs of their own."""
    given = nodes.settings()
    on_gpus = given is not None and given.gpu and models.dtype == "auto"
    return models.model_copy(update={"dtype": "bfloat16"}) if on_gpus else models.settled()


STEP = Step(
    name="train",
    about="Trains one model: reward, SFT, preference from the SFT model (dpo, ddpo) or from the base model (orpo, dorpo).",
    sections=("train", "models"),
    settled={"models": settled},
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
